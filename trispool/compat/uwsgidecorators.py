"""The stand-in for uWSGI's module `uwsgidecorators`: `@spool`, `@spoolraw` and `@spoolforever`.

    @spool
    def encode(arguments): ...               # encode({"path": "/a.mov"}) spools it; it gets text keys and values

    @spool(pass_arguments=True)
    def encode(path, preset="fast"): ...     # encode("/a.mov", preset="slow") pickles its arguments

`@spool` is done when the function returns, `@spoolforever` runs again each `frequency`, with `@spoolraw` the function
returns `uwsgi.SPOOL_OK` or another of these. As uWSGI's, this module assigns `uwsgi.spooler` when it is imported.

What is different, on purpose: pickled arguments without a signature of this installation (`trispool.compat.signing`)
are not unpickled; the attempt fails. That includes what a real uWSGI wrote with `pass_arguments=True`, since a packet
from the network makes exactly such a file. Where only trusted processes can reach the spool's directory and sockets,
`TRISPOOL_TRUST_PICKLE=1` in the environment lets those through. A key `spooler_task_name` among the vars does not
replace the name of the task.
"""

from __future__ import annotations

import functools
import os
import pickle
from typing import TYPE_CHECKING, Any, Final, NoReturn

from trispool import producer
from trispool.compat import context as _context
from trispool.compat import signing, uwsgi
from trispool.errors import TrispoolError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["UntrustedPickle", "manage_spool_request", "spool", "spooler_functions", "spoolforever", "spoolraw"]

spooler_functions: dict[str, Callable[..., Any]] = {}
"""The decorated functions by their names."""

SIGNATURE: Final = "trispool_signature"
"""The var with the signature. uWSGI does not know it, and runs such a task as it runs its own."""

_FOR_THE_SPOOLER: Final = ("message_dict", "spooler", "priority", "at", "body")
"""Keyword arguments that are for the spooler, not for the function, where arguments are passed."""


class UntrustedPickle(TrispoolError):
    """Pickled arguments without a signature of this installation are not unpickled."""


def manage_spool_request(env: Mapping[Any, Any]) -> int:
    """Run the function that a task names: this is `uwsgi.spooler`.

    Returns:
        What the decorator has promised in the task, else what the function returned.

    Raises:
        UntrustedPickle: The task carries pickled arguments that were not pickled here.
        LookupError: It names no function, or none that is decorated.
    """
    vars = {_text(key): value for key, value in env.items()}
    vars["spooler_task_name"] = env.get("spooler_task_name", b"")
    name = _text(vars.get("ud_spool_func", b""))
    function = spooler_functions.get(name)
    if function is None:
        raise LookupError(f"there is no spool function {name!r} (var ud_spool_func)")
    if "args" in vars:
        args, kwargs = _unpickle(vars, name)
        returned = function(*args, **kwargs)
    else:
        vars = {key: _text(value) for key, value in vars.items()}
        returned = function(vars)
    return int(_text(vars["ud_spool_ret"]) if "ud_spool_ret" in vars else returned)


def _unpickle(vars: Mapping[str, Any], name: str) -> tuple[Any, Any]:
    args, kwargs = vars["args"], vars["kwargs"]
    if os.environ.get("TRISPOOL_TRUST_PICKLE") != "1":
        directory = _context.current.directory
        signature = vars.get(SIGNATURE, b"")
        if directory is None or not signing.verify(directory, signature, name.encode(), args, kwargs):
            raise UntrustedPickle(
                f"the arguments of {name} are not unpickled: their signature is {'wrong' if signature else 'missing'}."
                " Where all who can reach the spool are trusted, set TRISPOOL_TRUST_PICKLE=1"
            )
    return pickle.loads(args), pickle.loads(kwargs)


class _SpoolRaw:
    """A decorated function: calling it spools a task that calls the function."""

    outcome: int | None = None
    """What the task ends with, whatever the function returns; None: that counts."""

    def __init__(self, f: Callable[..., Any], pass_arguments: bool) -> None:
        self.f = f
        self.pass_arguments = pass_arguments
        self.base_dict = {"ud_spool_func": f.__name__}
        spooler_functions[f.__name__] = f
        f.spool = self.__call__  # type: ignore[attr-defined] # uWSGI does so, for users of its older versions

    def __call__(self, *args: Any, **kwargs: Any) -> bytes:  # noqa: ANN401 # they are the function's
        """Spool a task.

        Returns:
            The path of the spool file.

        Raises:
            ValueError: The task is not taken.
        """
        if self.outcome is not None:
            self.base_dict["ud_spool_ret"] = str(self.outcome)
        vars: dict[Any, Any] = dict(self.base_dict)
        if self.pass_arguments:
            for key in _FOR_THE_SPOOLER:
                if key in kwargs:
                    vars[key] = kwargs.pop(key)
            vars.update(self._pickled(args, kwargs, vars.get("spooler")))
        else:
            if args:
                vars.update(args[0])
            vars.update(kwargs)
        return uwsgi.spool({_bytes(key): _bytes(value) for key, value in vars.items()})

    def _pickled(self, args: Any, kwargs: Any, spooler: bytes | str | None) -> dict[str, bytes]:  # noqa: ANN401
        pickled = {"args": pickle.dumps(args), "kwargs": pickle.dumps(kwargs)}
        try:
            directory = producer.directory_for(_text(spooler) if spooler else None)
            pickled[SIGNATURE] = signing.sign(directory, self.f.__name__.encode(), *pickled.values())
        except TrispoolError as error:
            raise ValueError(f"unable to spool job: {error}") from error
        return pickled

    def spool(self, *args: Any, **kwargs: Any) -> bytes:  # noqa: ANN401
        """The same as calling it."""
        return self(*args, **kwargs)


class _Spool(_SpoolRaw):
    outcome = uwsgi.SPOOL_OK


class _SpoolForever(_SpoolRaw):
    outcome = uwsgi.SPOOL_RETRY


def _decorator(kind: type[_SpoolRaw], f: Callable[..., Any] | None, pass_arguments: bool) -> Any:  # noqa: ANN401
    if not f:
        return functools.partial(kind, pass_arguments=pass_arguments)
    return kind(f, pass_arguments)


def spoolraw(f: Callable[..., Any] | None = None, pass_arguments: bool = False) -> Any:  # noqa: ANN401
    """Declare a function that runs tasks and returns what becomes of them.

    Args:
        f: The function.
        pass_arguments: Whether it gets the arguments of the call, pickled meanwhile, instead of one dict.
    """
    return _decorator(_SpoolRaw, f, pass_arguments)


def spool(f: Callable[..., Any] | None = None, pass_arguments: bool = False) -> Any:  # noqa: ANN401
    """Declare a function that runs tasks, which are done when it returns; see `spoolraw`."""
    return _decorator(_Spool, f, pass_arguments)


def spoolforever(f: Callable[..., Any] | None = None, pass_arguments: bool = False) -> Any:  # noqa: ANN401
    """Declare a function that runs each of its tasks again and again; see `spoolraw`."""
    return _decorator(_SpoolForever, f, pass_arguments)


def _text(value: Any) -> Any:  # noqa: ANN401
    return value.decode() if isinstance(value, bytes) else value


def _bytes(value: Any) -> Any:  # noqa: ANN401
    return value.encode() if isinstance(value, str) else value


uwsgi.spooler = manage_spool_request

_INSTEAD: Final = {
    "cron": "spool a task with `at`",
    "filemon": "use inotify in a process of your own",
    "lock": "use fcntl.flock, or @handler(concurrency=1)",
    "mule": "spool a task",
    "mulefunc": "use @spool(pass_arguments=True)",
    "rbtimer": "spool a task with `at`",
    "signal": "spool a task",
    "timer": "spool a task with `at`",
}


def __getattr__(name: str) -> NoReturn:
    if name.startswith("__"):
        raise AttributeError(f"module 'uwsgidecorators' has no attribute {name!r}")
    found = _INSTEAD.get(name)
    raise AttributeError(f"uwsgidecorators.{name} is not offered by trispool{f': {found}' if found else ''}")
