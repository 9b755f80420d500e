"""A handler file for uWSGI, run by uWSGI itself and under trispool: it tries things out and tells what came of them."""

# mypy: ignore-errors
# It is written against uWSGI, whose modules have no types, as handlers are.

from __future__ import annotations

import contextlib
import os

import uwsgi
from compat_telling import SPOOL, plain, tell, try_out

ANYWHERE = {
    "constants": "(uwsgi.SPOOL_OK, uwsgi.SPOOL_RETRY, uwsgi.SPOOL_IGNORE)",
    "spooler": "type(uwsgi.spooler)",
    "spoolers": "uwsgi.spoolers",
    "opt keys": "type(uwsgi.opt), {type(key) for key in uwsgi.opt}",
    "opt spooler": "uwsgi.opt['spooler']",
    "opt flag": "uwsgi.opt['master']",
    "version": "uwsgi.version",
    "version_info": "uwsgi.version_info",
    "hostname": "uwsgi.hostname",
    "numproc": "uwsgi.numproc",
    "cores": "uwsgi.cores",
    "has_threads": "uwsgi.has_threads",
    "loop": "uwsgi.loop",
    "unbit": "uwsgi.unbit",
    "is_a_reload": "uwsgi.is_a_reload",
    "applications": "uwsgi.applications",
    "started_on": "type(uwsgi.started_on)",
    "buffer_size": "type(uwsgi.buffer_size)",
    "sockets": "type(uwsgi.sockets)",
    "masterpid": "type(uwsgi.masterpid()), uwsgi.masterpid() > 1",
    "worker_id": "uwsgi.worker_id()",
    "mule_id": "uwsgi.mule_id()",
    "i_am_the_spooler": "uwsgi.i_am_the_spooler()",
    "i_am_the_spooler with arguments": "uwsgi.i_am_the_spooler(1, 2)",
    "spooler_dir": "uwsgi.spooler_dir()",
    "log": "uwsgi.log('a line')",
    "log bytes": "uwsgi.log(b'x')",
    "log a number": "uwsgi.log(1)",
    "log nothing": "uwsgi.log()",
    "log NUL": "uwsgi.log('a\\0b')",
    "log by name": "uwsgi.log(line='x')",
    "unknown attribute": "uwsgi.no_such_thing",
}

SPOOLING = {
    "spool": "uwsgi.spool({b'case': b'1', b'key': b'value'})",
    "send_to_spooler": "uwsgi.send_to_spooler({b'case': b'1'})",
    "spool an empty dict": "uwsgi.spool({})",
    "spool nothing": "uwsgi.spool()",
    "spool None": "uwsgi.spool(None)",
    "spool a list": "uwsgi.spool([(b'a', b'b')])",
    "spool text": "uwsgi.spool('a')",
    "str key": "uwsgi.spool({'a': b'b'})",
    "int key": "uwsgi.spool({1: b'b'})",
    "None key": "uwsgi.spool({None: b'b'})",
    "str value": "uwsgi.spool({b'a': 'b'})",
    "int value": "uwsgi.spool({b'a': 1})",
    "bool value": "uwsgi.spool({b'a': True})",
    "float value": "uwsgi.spool({b'a': 1.5})",
    "None value": "uwsgi.spool({b'a': None})",
    "object value": "uwsgi.spool({b'a': object()})",
    "bytearray value": "reread(uwsgi.spool({b'a': bytearray(b'xy')}))",
    "memoryview value": "reread(uwsgi.spool({b'a': memoryview(b'xy')}))",
    "list of numbers as a value": "reread(uwsgi.spool({b'a': [65, 66]}))",
    "tuple of numbers as a value": "reread(uwsgi.spool({b'a': (65, 66)}))",
    "list of text as a value": "uwsgi.spool({b'a': ['x']})",
    "list of large numbers as a value": "uwsgi.spool({b'a': [256]})",
    "dict as a value": "reread(uwsgi.spool({b'a': {65: 1}}))",
    "object with bytes": "reread(uwsgi.spool({b'a': With()}))",
    "bytes of a subclass": "reread(uwsgi.spool({Sub(b'a'): Sub(b'b')}))",
    "dict of a subclass": "reread(uwsgi.spool(SubDict({b'a': b'b'})))",
    "empty value": "reread(uwsgi.spool({b'a': b''}))",
    "empty value in the middle": "reread(uwsgi.spool({b'a': b'', b'b': b'1'}))",
    "keywords": "uwsgi.spool(a=b'b')",
    "keywords with the body only": "uwsgi.spool(body=b'b')",
    "keywords beside a dict": "reread(uwsgi.spool({b'a': b'b'}, c=b'd', **{'body': b'e'}))",
    "a second argument": "reread(uwsgi.spool({b'a': b'b'}, {b'c': b'd'}))",
    "body": "reread(uwsgi.spool({b'a': b'b', b'body': b'content'}))",
    "body is taken out": "after({b'a': b'b', b'body': b'content'})",
    "body is taken out of a bad dict": "after({b'a': 1, b'body': b'content'})",
    "empty body": "reread(uwsgi.spool({b'a': b'b', b'body': b''}))",
    "empty body is taken out": "after({b'a': b'b', b'body': b''})",
    "body of str": "uwsgi.spool({b'a': b'b', b'body': 'content'})",
    "body of bytearray": "reread(uwsgi.spool({b'a': b'b', b'body': bytearray(b'xy')}))",
    "body with a str key": "uwsgi.spool({b'a': b'b', 'body': b'content'})",
    "large body": "size(uwsgi.spool({b'a': b'b', b'body': b'x' * 300000}))",
    "at": "mtime(uwsgi.spool({b'a': b'b', b'at': b'4000000000'}))",
    "at as str": "uwsgi.spool({b'a': b'b', b'at': '4000000000'})",
    "at as int": "uwsgi.spool({b'a': b'b', b'at': 4000000000})",
    "at zero": "reread(uwsgi.spool({b'a': b'b', b'at': b'0'}))",
    "at with a fraction": "mtime(uwsgi.spool({b'a': b'b', b'at': b'4000000000.75'}))",
    "at of letters": "uwsgi.spool({b'a': b'b', b'at': b'abc'})",
    "priority": "uwsgi.spool({b'a': b'b', b'priority': b'3'})",
    "priority stays a var": "reread(uwsgi.spool({b'a': b'b', b'priority': b'3'}))",
    "priority as int": "uwsgi.spool({b'a': b'b', b'priority': 3})",
    "priority outside": "uwsgi.spool({b'a': b'b', b'priority': b'../x'})",
    "empty priority": "uwsgi.spool({b'a': b'b', b'priority': b''})",
    "spooler by its directory": "uwsgi.spool({b'a': b'b', b'spooler': SPOOL.encode()})",
    "spooler as str": "uwsgi.spool({b'a': b'b', b'spooler': SPOOL})",
    "spooler unknown": "uwsgi.spool({b'a': b'b', b'spooler': b'/nowhere'})",
    "empty spooler": "uwsgi.spool({b'a': b'b', b'spooler': b''})",
    "empty key": "uwsgi.spool({b'': b'b'})",
    "value of 65535": "uwsgi.spool({b'a': b'x' * 65535})",
    "value of 65536": "uwsgi.spool({b'a': b'x' * 65536})",
    "values of 65531": "size(uwsgi.spool({b'a': b'x' * 65530}))",
    "values of 70000": "uwsgi.spool({b'a': b'x' * 35000, b'b': b'x' * 35000})",
}

LOOKING = {
    "set_spooler_frequency": "uwsgi.set_spooler_frequency(5)",
    "set_spooler_frequency 0": "uwsgi.set_spooler_frequency(0)",
    "set_spooler_frequency of bool": "uwsgi.set_spooler_frequency(True)",
    "set_spooler_frequency of float": "uwsgi.set_spooler_frequency(1.5)",
    "set_spooler_frequency of str": "uwsgi.set_spooler_frequency('5')",
    "set_spooler_frequency of None": "uwsgi.set_spooler_frequency(None)",
    "set_spooler_frequency of nothing": "uwsgi.set_spooler_frequency()",
    "set_spooler_frequency of much": "uwsgi.set_spooler_frequency(2 ** 31)",
    "set_spooler_frequency of most": "uwsgi.set_spooler_frequency(2 ** 31 - 1)",
    "set_spooler_frequency of little": "uwsgi.set_spooler_frequency(-2 ** 31 - 1)",
    "set_spooler_frequency of least": "uwsgi.set_spooler_frequency(-2 ** 31)",
    "set_spooler_frequency of more": "uwsgi.set_spooler_frequency(2 ** 70)",
    "set_spooler_frequency back": "uwsgi.set_spooler_frequency(1)",
    "spooler_jobs": "type(uwsgi.spooler_jobs()), {type(job) for job in uwsgi.spooler_jobs()}",
    "spooler_jobs finds a task": "uwsgi.spool({b'a': b'jobs'}) in uwsgi.spooler_jobs()",
    "spooler_jobs finds a later task": "uwsgi.spool({b'a': b'jobs', b'at': b'4000000000'}) in uwsgi.spooler_jobs()",
    "spooler_jobs with arguments": "type(uwsgi.spooler_jobs(1, 2))",
    "spooler_jobs by name": "uwsgi.spooler_jobs(a=1)",
    "spooler_get_task": "uwsgi.spooler_get_task(uwsgi.spool({b'a': b'b'}).decode())",
    "spooler_get_task with body": "uwsgi.spooler_get_task(uwsgi.spool({b'a': b'b', b'body': b'content'}).decode())",
    "spooler_get_task for later": "uwsgi.spooler_get_task(uwsgi.spool({b'a': b'b', b'at': b'4000000000'}).decode())",
    "spooler_get_task of nothing": "uwsgi.spooler_get_task('/nowhere')",
    "spooler_get_task of a folder": "uwsgi.spooler_get_task(SPOOL)",
    "spooler_get_task of bytes": "uwsgi.spooler_get_task(b'/nowhere')",
    "spooler_get_task of None": "uwsgi.spooler_get_task(None)",
    "spooler_get_task without": "uwsgi.spooler_get_task()",
    "spooler_get_task NUL": "uwsgi.spooler_get_task('a\\0')",
    "spooler_get_task empty": "uwsgi.spooler_get_task('')",
    "spooler_get_task short": "uwsgi.spooler_get_task(written(b'\\x11\\x09'))",
    "spooler_get_task truncated": "uwsgi.spooler_get_task(written(b'\\x11\\x09\\0\\0\\x01\\0a'))",
    "spooler_pid": "type(uwsgi.spooler_pid())",
    "spooler_pid is mine": "uwsgi.spooler_pid() == os.getpid()",
    "spooler_pids": "uwsgi.spooler_pids() == [uwsgi.spooler_pid()]",
    "spooler_pids with arguments": "type(uwsgi.spooler_pids(1))",
    "parsefile": "uwsgi.parsefile(written(b'\\x11\\x06\\0\\0\\x01\\0a\\x01\\0bbody'))",
    "parsefile of a request": "uwsgi.parsefile(written(b'\\0\\x06\\0\\0\\x01\\0a\\x01\\0b'))",
    "parsefile of another modifier": "uwsgi.parsefile(written(b'\\x05\\x06\\0\\0\\x01\\0a\\x01\\0b'))",
    "parsefile of modifier2": "uwsgi.parsefile(written(b'\\x11\\x06\\0\\x01\\x01\\0a\\x01\\0b'))",
    "parsefile without vars": "uwsgi.parsefile(written(b'\\x11\\0\\0\\0'))",
    "parsefile truncated": "uwsgi.parsefile(written(b'\\x11\\x06\\0\\0\\x01\\0a'))",
    "parsefile short": "uwsgi.parsefile(written(b'\\x11'))",
    "parsefile empty": "uwsgi.parsefile(written(b''))",
    "parsefile broken": "uwsgi.parsefile(written(b'\\x11\\x06\\0\\0\\x01\\0a\\x05\\0b'))",
    "parsefile empty key": "uwsgi.parsefile(written(b'\\x11\\x05\\0\\0\\0\\0\\x01\\0b'))",
    "parsefile doubled key": "uwsgi.parsefile(written(b'\\x11\\x0c\\0\\0\\x01\\0a\\x01\\0b\\x01\\0a\\x01\\0c'))",
    "parsefile of nothing": "uwsgi.parsefile('/nowhere')",
    "parsefile of a folder": "uwsgi.parsefile(SPOOL)",
    "parsefile of bytes": "uwsgi.parsefile(b'/nowhere')",
}


class Sub(bytes):
    """Bytes of another type."""


class SubDict(dict):
    """A dict of another type."""


class Number(int):
    """An int of another type."""


class With:
    """An object that says how it becomes bytes."""

    def __bytes__(self) -> bytes:
        return b"with"


def reread(path: bytes) -> tuple[str, bytes]:
    """What is in a spool file."""
    with open(path, "rb") as file:
        return plain(os.fsdecode(path)), file.read()


def after(vars: dict[object, object]) -> dict[object, object]:
    """What is left of a dict after `spool`."""
    with contextlib.suppress(ValueError):
        uwsgi.spool(vars)
    return vars


def size(path: bytes) -> int:
    return os.stat(path).st_size


def mtime(path: bytes) -> float:
    return os.stat(path).st_mtime


def written(data: bytes) -> str:
    """A file with these bytes."""
    path = os.path.join(os.path.dirname(SPOOL), "written")
    with open(path, "wb") as file:
        file.write(data)
    return path


def show(env: dict[object, bytes]) -> list[str]:
    return sorted(
        f"{type(key).__name__} {type(value).__name__} {plain(repr((key, value)))}" for key, value in env.items()
    )


def handle(env: dict[object, bytes]) -> object:
    """Runs the tasks of the test: one tries all out, some return odd things, some only show what they are."""
    if b"try out" in env:
        try_out("spooler", {**ANYWHERE, **SPOOLING, **LOOKING}, globals())
    elif b"returns" in env:
        source = env[b"returns"].decode()
        tell("returning", source, None)
        return eval(source)
    elif b"show" in env:
        tell("env", env[b"show"].decode(), show(env))
    return uwsgi.SPOOL_OK


try_out("import", {name: source for name, source in ANYWHERE.items() if name != "masterpid"}, globals())
uwsgi.spooler = handle
