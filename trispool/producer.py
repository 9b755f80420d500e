"""Where tasks that are made in this process go: into a spool directory, as files, without a service in between.

In a worker that is the worker's own spool, elsewhere the directory in the environment variable `TRISPOOL_SPOOL`.
Whoever runs that directory finds the file within milliseconds. It is on disk before `put` returns, unless the worker's
spool, or `TRISPOOL_DURABILITY=os`, says otherwise.
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

from trispool.errors import SpoolUnavailable, TaskRefused, TrispoolError
from trispool.spooldir import SpoolDirectory

if TYPE_CHECKING:
    from trispool.task import Entry, NewTask

__all__ = ["directory_for", "put", "use"]

_lock = threading.Lock()
_opened: dict[str, SpoolDirectory] = {}
_current: tuple[str, SpoolDirectory] | None = None


def use(name: str, directory: SpoolDirectory | None) -> None:
    """Say which spool this process belongs to; a worker does so once, before it imports handlers.

    Args:
        name: The spool's name.
        directory: Its directory; None: it has none, or no longer.
    """
    global _current
    _current = (name, directory) if directory is not None else None


def directory_for(spool: str | None = None) -> SpoolDirectory:
    """The directory of a spool.

    Args:
        spool: None: this process's. Else its absolute directory, which must exist, or the name of this process's spool.

    Raises:
        SpoolUnavailable: It is not known where tasks go, or it cannot be opened.
        TaskRefused: Another name: only the service knows other spools by their names.
    """
    if _current is not None and spool in (None, *_current_names()):
        return _current[1]
    if spool is None:
        spool = os.environ.get("TRISPOOL_SPOOL", "")
        if not spool:
            raise SpoolUnavailable(
                "where should the task go? Set TRISPOOL_SPOOL to the absolute path of the spool directory"
            )
        if not os.path.isabs(spool):
            raise SpoolUnavailable(f"TRISPOOL_SPOOL={spool}: an absolute path is expected")
    if not os.path.isabs(spool):
        raise TaskRefused(
            f"spool={spool}: only the service knows the names of other spools, give the directory", status=404
        )
    return _open(spool)


def _current_names() -> tuple[str, str]:
    assert _current is not None
    return _current[0], _current[1].path


def _open(path: str) -> SpoolDirectory:
    path = os.path.realpath(path)
    with _lock:
        directory = _opened.get(path)
        if directory is None:
            try:
                directory = SpoolDirectory(path, fsync=os.environ.get("TRISPOOL_DURABILITY") != "os", create=False)
            except OSError as error:
                raise SpoolUnavailable(f"{path}: {error.strerror or error}") from error
            _opened[path] = directory
    return directory


def put(task: NewTask) -> Entry:
    """Keep a task in the spool it asks for.

    Raises:
        SpoolUnavailable: It could not be kept.
        TaskRefused: It cannot be kept.
    """
    directory = directory_for(task.spool)
    result = directory.add([task])[0]
    if isinstance(result, SpoolUnavailable) and _replaced(directory):
        result = _open(directory.path).add([task])[0]
    if isinstance(result, TrispoolError):
        raise result
    return result


def _replaced(directory: SpoolDirectory) -> bool:
    """Whether a directory that we opened has been deleted, as in a deploy; it is then forgotten."""
    if (_current is not None and directory is _current[1]) or os.fstat(directory.fd).st_nlink:
        return False
    with _lock:
        if _opened.get(directory.path) is directory:
            del _opened[directory.path]
    # It stays open: another thread may be in the middle of using it, and the numbers of closed descriptors come again.
    return True
