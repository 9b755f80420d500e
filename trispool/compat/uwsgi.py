"""The stand-in for uWSGI's module `uwsgi`: what of it belongs to the spooler.

What is different, on purpose:

- `spool` refuses what uWSGI would store wrongly (values over 65,535 bytes, `priority` that is not digits, `at` that is
  no number) and says why in its ValueError; `at` keeps its fraction; `spooler` may be the spool's name, too.
- `spooler_jobs` is about the process's own spool and includes tasks with a priority, but not those of the last quarter
  of a second that have no file yet; `spooler_get_task` also reads a task that is running, and never takes its lock.

Values are bytes where uWSGI has bytes under Python 3. Functions whose arguments uWSGI does not look at take any.
"""

from __future__ import annotations

import operator
import os
import socket
import sys
import time
from typing import TYPE_CHECKING, Any, Final, NoReturn

from trispool import producer, spoolfile
from trispool.calling import legacy_env
from trispool.compat import context as _context
from trispool.errors import (
    MalformedPacket,
    MalformedSpoolFile,
    SpoolUnavailable,
    TaskRefused,
)
from trispool.packet import decode_vars, encode_vars, task_from_vars

if TYPE_CHECKING:
    from trispool.calling import Legacy
    from trispool.compat.context import Option

__all__ = [
    "SPOOL_IGNORE",
    "SPOOL_OK",
    "SPOOL_RETRY",
    "applications",
    "buffer_size",
    "cores",
    "has_threads",
    "hostname",
    "i_am_the_spooler",
    "is_a_reload",
    "log",
    "loop",
    "masterpid",
    "mule_id",
    "numproc",
    "opt",
    "parsefile",
    "send_to_spooler",
    "set_spooler_frequency",
    "sockets",
    "spool",
    "spooler_dir",
    "spooler_get_task",
    "spooler_jobs",
    "spooler_pid",
    "spooler_pids",
    "spoolers",
    "started_on",
    "unbit",
    "version",
    "version_info",
    "worker_id",
]

SPOOL_OK: Final = -2
SPOOL_RETRY: Final = -1
SPOOL_IGNORE: Final = 0

version: Final = b"2.0.31"
"""The uWSGI that this module behaves as."""

version_info: Final = (2, 0, 31, 0, b"")
hostname: Final = socket.gethostname().encode(errors="surrogateescape")
started_on: Final = int(time.time())
cores: Final = 1
has_threads: Final = 1
buffer_size: Final = 0xFFFF
is_a_reload: Final = False
loop: Final = None
unbit: Final = None
applications: Final = None
sockets: Final[list[int]] = []

spooler: Legacy
"""Assigned by handlers: `uwsgi.spooler = f`."""

spoolers: tuple[bytes, ...] = ()
opt: dict[str, Option] = {}
numproc: int = 1

_HEADER_BYTES: Final = 4
_LARGEST_INT: Final = 2**31 - 1


def configure() -> None:
    """Take the values that depend on the process; `trispool.compat.install` calls this."""
    global spoolers, opt, numproc
    spoolers = tuple(os.fsencode(path) for path in _context.current.spoolers)
    opt = _context.current.options()
    numproc = _context.current.processes


# Making tasks


def spool(*args: Any, **kwargs: Any) -> bytes:  # noqa: ANN401 # uWSGI looks at the types itself
    """Spool a task (`plugins/python/uwsgi_pymodule.c`, `py_uwsgi_send_spool`).

    Args:
        args: A dict with bytes keys and values; all else is ignored. Its `b"body"` is taken out and becomes the body.
        kwargs: Used if there is no dict; since keys must be bytes, every one of them is an error, as under uWSGI.

    Returns:
        The path of the spool file.

    Raises:
        ValueError: There is no dict, a key is not bytes, a value cannot be made bytes, or the task is not taken.
    """
    vars: Any = args[0] if args else kwargs or None
    if not isinstance(vars, dict):
        raise ValueError("The argument of spooler callable must be a dictionary")
    body = vars.get(b"body")
    if isinstance(body, bytes):
        del vars[b"body"]
    else:
        body = b""
    raw: dict[bytes, bytes] = {}
    for key, value in vars.items():
        if not isinstance(key, bytes):
            raise _not_bytes()
        raw[key] = value if isinstance(value, bytes) else _bytes_of(value)
    try:
        task = task_from_vars(encode_vars(raw), raw, body)
        if task.spool is not None and not _is_spooler(task.spool):
            raise TaskRefused(f"there is no spooler {task.spool}")
        directory = producer.directory_for(task.spool)
        entry = producer.put(task)
    except (TaskRefused, SpoolUnavailable) as error:
        raise ValueError(f"unable to spool job: {error}") from error
    return os.fsencode(directory.absolute(entry.ref))


send_to_spooler = spool


def _not_bytes() -> ValueError:
    return ValueError("spooler callable dictionary must contains only bytes")


def _bytes_of(value: object) -> bytes:
    """What C's `PyObject_Bytes` makes of a value: unlike `bytes()`, nothing of text and numbers."""
    kind = type(value)
    if isinstance(value, str) or (hasattr(kind, "__index__") and not hasattr(kind, "__bytes__")):
        raise _not_bytes()
    try:
        return bytes(value)  # type: ignore[call-overload, no-any-return] # it tells whether it can
    except Exception:
        raise _not_bytes() from None


def _is_spooler(wanted: str) -> bool:
    if wanted == _context.current.spool and _context.current.is_worker:
        return True
    return os.path.isabs(wanted) and os.path.realpath(wanted) in map(os.path.realpath, _context.current.spoolers)


# Looking at tasks


def spooler_jobs(*args: object) -> list[bytes]:
    """The paths of all waiting tasks, those for later included."""
    try:
        directory = producer.directory_for()
        names = directory.names()
    except (SpoolUnavailable, OSError):
        return []
    own = _context.current.directory
    if own is not None and own.path == directory.path:
        names += [own.absolute(ref) for ref, _, _ in _context.current.carried.values()]
    return [os.fsencode(path) for path in names]


def spooler_get_task(path: str, /) -> dict[Any, bytes] | None:
    """A task as its handler sees it.

    Args:
        path: Its file; a relative path is looked for in the spool directory, too, where uWSGI's handlers run.

    Returns:
        The task, or None if that is not a readable spool file.

    Raises:
        TypeError: `path` is not a str.
        ValueError: There is a NUL character in it.
    """
    _check_text(path, "spooler_get_task")
    where = path
    if not os.path.isabs(path) and not os.path.exists(path) and _context.current.directory is not None:
        where = _context.current.directory.absolute(path)
    try:
        with open(where, "rb") as file:
            vars, body = spoolfile.decode(file.read())
    except (OSError, MalformedSpoolFile):
        # One that runs here may have no file yet.
        own = _context.current.directory
        carried = _context.current.carried.get(os.path.basename(path))
        meant = os.path.realpath(path), os.path.realpath(where)
        if own is None or carried is None or own.absolute(carried[0]) not in meant:
            return None
        vars, body = dict(carried[1]), carried[2]
    return legacy_env(os.fsencode(path), vars, body)


def parsefile(path: str, /) -> dict[bytes, bytes] | None:
    """The vars of a file with a uwsgi packet, or None if it cannot be read as one.

    Raises:
        TypeError: `path` is not a str.
        ValueError: There is a NUL character in it.
    """
    _check_text(path, "parsefile")
    try:
        with open(path, "rb") as file:
            header = file.read(_HEADER_BYTES)
            if len(header) < _HEADER_BYTES or header[0] not in (0, 17):
                return None
            size = int.from_bytes(header[1:3], "little")
            payload = file.read(size)
        return decode_vars(payload) if len(payload) == size else None
    except (OSError, MalformedPacket):
        return None


# About the process


def set_spooler_frequency(seconds: int, /) -> bool:
    """Change the time between scans, for the whole spool.

    Args:
        seconds: 0: as configured. uWSGI takes a negative number for "never", which is next to that here.

    Raises:
        TypeError: `seconds` is not an int.
        OverflowError: It has more than 32 bits.
    """
    number = operator.index(seconds)
    if not -_LARGEST_INT <= number + 1 <= _LARGEST_INT + 1:
        raise OverflowError(f"signed integer is {'greater than maximum' if number > 0 else 'less than minimum'}")
    _context.current.set_frequency(number if number >= 0 else _LARGEST_INT)
    return True


def spooler_pid(*args: object) -> int:
    """The process of the first worker; 0: not known."""
    return _context.current.pids[0] if _context.current.pids else 0


def spooler_pids(*args: object) -> list[int]:
    """The processes of all workers."""
    return list(_context.current.pids)


def spooler_dir(*args: object) -> bytes | None:
    """The directory of the worker's spool.

    Raises:
        ValueError: This process is no worker.
    """
    if not _context.current.is_worker:
        raise ValueError("This process is not a spooler")
    directory = _context.current.directory
    return os.fsencode(directory.path) if directory is not None else None


def i_am_the_spooler(*args: object) -> bool | None:
    """True in a worker, else None."""
    return True if _context.current.is_worker else None


def masterpid(*args: object) -> int:
    """The service's process; 0: there is none."""
    return _context.current.master_pid


def worker_id(*args: object) -> int:
    """0: this is no web worker."""
    return 0


def mule_id(*args: object) -> int:
    """0: this is no mule."""
    return 0


def log(line: str, /) -> bool:
    """Write a line to the log.

    Raises:
        TypeError: `line` is not a str.
        ValueError: There is a NUL character in it.
    """
    _check_text(line, "log")
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
    return True


def _check_text(value: object, function: str) -> None:
    """What C's `PyArg_ParseTuple` with "s" checks."""
    if not isinstance(value, str):
        raise TypeError(f"{function}() argument 1 must be str, not {type(value).__name__}")
    if "\0" in value:
        raise ValueError("embedded null character")


# What is not here

_INSTEAD: Final = {
    "add_cron": "spool a task with `at`",
    "add_file_monitor": "use inotify in a process of your own",
    "add_ms_timer": "spool a task with `at`",
    "add_rb_timer": "spool a task with `at`",
    "add_timer": "spool a task with `at`",
    "cache": "use a database, or a file",
    "farm": "spool a task",
    "lock": "use fcntl.flock, or @handler(concurrency=1)",
    "mule": "spool a task",
    "queue": "spool a task",
    "register_signal": "spool a task",
    "reload": "send SIGHUP to the process masterpid()",
    "sharedarea": "use multiprocessing.shared_memory",
    "signal": "spool a task",
    "stop": "send SIGTERM to the process masterpid()",
    "unlock": "use fcntl.flock, or @handler(concurrency=1)",
}


def __getattr__(name: str) -> NoReturn:
    if name == "spooler" or name.startswith("__"):
        raise AttributeError(f"module 'uwsgi' has no attribute {name!r}")
    found = _INSTEAD.get(name) or _INSTEAD.get(name.partition("_")[0])
    raise AttributeError(f"uwsgi.{name} is not offered by trispool{f': {found}' if found else ''}")
