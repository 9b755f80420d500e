"""The same as `compat_probe`, for `uwsgidecorators`: functions say what they get, one of them spools the others."""

# mypy: ignore-errors
# It is written against uWSGI, whose modules have no types, as handlers are.

from __future__ import annotations

import threading  # noqa: F401 # the cases use it

import uwsgi
import uwsgidecorators  # noqa: F401 # the cases use it
from compat_telling import SPOOL, plain, tell, try_out  # noqa: F401 # the cases use SPOOL
from uwsgidecorators import *  # noqa: F403 # as handlers do
from uwsgidecorators import spool, spoolforever, spoolraw

CASES = {
    "a dict": "told(simple({'a': 'b'}))",
    "a dict of bytes": "told(simple({b'a': b'b'}))",
    "keywords": "told(simple(a='b', c=b'd'))",
    "a dict and keywords": "told(simple({'a': 'b'}, c='d'))",
    "nothing": "told(simple())",
    "pairs": "told(simple([('a', 'b')]))",
    "text that is not ASCII": "told(simple(a='\\u00e4'))",
    "a number": "simple(a=1)",
    "at as a number": "simple(at=4000000000)",
    "at": "told(simple({'a': 'b'}, at='4000000000'))",
    "priority": "told(simple(priority='2'))",
    "another spooler": "told(simple(spooler=SPOOL))",
    "body": "told(simple(a='b', body='content'))",
    "body of bytes": "told(simple(a='b', body=b'content'))",
    "spool of the object": "told(simple.spool({'a': 'old way'}))",
    "spool of the function": "told(simple.f.spool({'a': 'older way'}))",
    "the result of raw": "told(raw({'a': 'b'}))",
    "raw without a result": "told(raw_none({'a': 'b'}))",
    "raw with text as a result": "told(raw_text({'a': 'b'}))",
    "raw that raises": "told(raw_raises({'a': 'b'}))",
    "raw that wants no argument": "told(raw_without({'a': 'b'}))",
    "forever": "told(forever({'a': 'b'}))",
    "passed": "told(passed(1, 'two', x=[3], y=None))",
    "passed nothing": "told(passed())",
    "passed with all": "told(passed(1, at='1', body='content', message_dict=b'', spooler=SPOOL))",
    "passed with at as a number": "passed(1, at=1)",
    "passed for later": "told(passed(1, at='4000000000'))",
    "passed by the old way": "told(passed.spool(1))",
    "passed raw": "told(passed_raw(7, b='8'))",
    "passed something that cannot be pickled": "passed(threading.Lock())",
    "passed too much": "passed('x' * 70000)",
    "a forged result": "told(simple({'ud_spool_ret': '-1', 'a': 'forged'}))",
    "attributes": "(simple.f.__name__, simple.pass_arguments, passed.pass_arguments, simple.base_dict)",
    "functions": "sorted(uwsgidecorators.spooler_functions)",
    "spooler": "uwsgi.spooler is uwsgidecorators.manage_spool_request",
    "decorated without a function": "type(spool(pass_arguments=True))",
    "a missing name": "uwsgidecorators.no_such_thing",
}

ROUNDS = []


def told(path: bytes) -> tuple[str, object, bytes]:
    """Where a task was written, its vars without our signature, and its body."""
    vars = uwsgi.parsefile(path.decode())
    with open(path, "rb") as file:
        content = file.read()
    body = content[4 + int.from_bytes(content[1:3], "little") :]
    return plain(path.decode()), sorted((k, v) for k, v in vars.items() if k != b"trispool_signature"), body


def got(name: str, *args: object, **kwargs: object) -> None:
    tell("got", name, plain(repr((args, sorted(kwargs.items())))))


@spool
def simple(arguments: dict[str, str]) -> None:
    got("simple", sorted(arguments.items()))


@spoolraw
def raw(arguments: dict[str, str]) -> int:
    got("raw", sorted(arguments.items()))
    return uwsgi.SPOOL_OK


@spoolraw
def raw_none(arguments: dict[str, str]) -> None:
    got("raw_none", sorted(arguments.items()))


@spoolraw
def raw_text(arguments: dict[str, str]) -> str:
    got("raw_text", sorted(arguments.items()))
    return "-2"


@spoolraw
def raw_raises(arguments: dict[str, str]) -> int:
    got("raw_raises", sorted(arguments.items()))
    raise RuntimeError("no")


@spoolraw
def raw_without() -> int:
    got("raw_without")
    return uwsgi.SPOOL_OK


@spoolforever
def forever(arguments: dict[str, str]) -> None:
    ROUNDS.append(1)
    got(f"forever {len(ROUNDS)}", sorted(arguments.items()))


@spool(pass_arguments=True)
def passed(*args: object, **kwargs: object) -> None:
    got("passed", *args, **kwargs)


@spoolraw(pass_arguments=True)
def passed_raw(*args: object, **kwargs: object) -> int:
    got("passed_raw", *args, **kwargs)
    return uwsgi.SPOOL_OK


@spool
def start(arguments: dict[str, str]) -> None:
    """Spools all the others."""
    try_out("decorators", CASES, globals())
