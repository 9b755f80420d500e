"""Writing tasks that were kept elsewhere out as spool files, many at once.

Three steps, so that between them it can be seen to that a task is not run meanwhile, and is never in two places:

1. `prepare` writes the files under `.trispool/tmp`, has them reach the disk, and locks them.
2. `publish` puts them where everybody sees them; nobody can run them yet.
3. `let_go` unlocks them, when the tasks are no longer anywhere else.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from typing import TYPE_CHECKING, Final

from trispool import spoolfile
from trispool.claimed import lock
from trispool.errors import TrispoolError
from trispool.spoolwriter import nanoseconds, write_all

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from trispool.spoolwriter import SpoolWriter
    from trispool.task import Entry

__all__ = ["Leaving", "discard", "let_go", "prepare", "publish"]

_FLAGS: Final = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC

FEW: Final = 3
"""So many files are quicker to sync one by one. On an ext4, one fsync took 0.7 ms; syncfs(2) 2 ms for 64 files, 6 ms
for 256, 20 ms for 1,024."""

_HONEST_SYNCFS: Final = (5, 8)
"""Since this Linux syncfs(2) tells of errors in writing."""


class Leaving:
    """A task on its way into a file.

    Attributes:
        entry: The task as it will be.
        error: Why it is not there, or None.
        fd: Its file, locked; -1: none.
    """

    __slots__ = ("body", "entry", "error", "fd", "payload")

    def __init__(self, entry: Entry, payload: bytes, body: bytes) -> None:
        self.entry = entry
        self.payload = payload
        self.body = body
        self.error: Exception | None = None
        self.fd = -1


def prepare(writer: SpoolWriter, tasks: Sequence[Leaving]) -> None:
    """Step 1. What fails has an `error`, and no file.

    Nobody else may be at work on the same tasks: what is found under the name of one was left by a process that died.
    """
    for task in tasks:
        try:
            _prepare(writer, task)
        except (OSError, TrispoolError) as error:
            task.error = error
            discard(writer, [task])
    if writer.fsync:
        made = [task for task in tasks if task.fd >= 0]
        syncfs = _syncfs() if len(made) > FEW else None
        if syncfs is not None:
            try:
                syncfs(writer.temporary)
            except OSError as error:
                _fail(writer, made, error)
        else:
            for task in made:
                try:
                    os.fsync(task.fd)
                except OSError as error:
                    _fail(writer, [task], error)


def _prepare(writer: SpoolWriter, task: Leaving) -> None:
    name = task.entry.id
    try:
        task.fd = os.open(name, _FLAGS, 0o600, dir_fd=writer.temporary)
    except FileExistsError:
        os.unlink(name, dir_fd=writer.temporary)
        task.fd = os.open(name, _FLAGS, 0o600, dir_fd=writer.temporary)
    write_all(task.fd, spoolfile.encode(task.payload, task.body))
    at_ns = nanoseconds(task.entry.at)
    os.utime(task.fd, ns=(at_ns, at_ns))
    lock(task.fd)


def publish(writer: SpoolWriter, tasks: Sequence[Leaving]) -> None:
    """Step 2. What fails has an `error`, and no file."""
    touched: set[str] = set()
    there: list[Leaving] = []
    for task in tasks:
        try:
            if writer.broken is not None:
                raise OSError(writer.broken)
            writer.publish(task.entry.id, task.entry, touched)
        except (OSError, TrispoolError) as error:
            _fail(writer, [task], error)
        else:
            there.append(task)
    if writer.fsync and touched:
        try:
            writer.sync_folders(touched)
        except OSError as error:
            for task in there:
                with contextlib.suppress(OSError):
                    writer.take_back(task.entry.ref)
            _fail(writer, there, error)


def let_go(writer: SpoolWriter, tasks: Iterable[Leaving]) -> None:
    """Step 3."""
    for task in tasks:
        if task.fd >= 0:
            writer.lets_go(task.entry.ref)
            os.close(task.fd)
            task.fd = -1


def discard(writer: SpoolWriter, tasks: Iterable[Leaving]) -> None:
    """Give up what has been prepared."""
    for task in tasks:
        if task.fd >= 0:
            writer.discard(task.entry.id)
            os.close(task.fd)
            task.fd = -1


def _fail(writer: SpoolWriter, tasks: Iterable[Leaving], error: Exception) -> None:
    for task in tasks:
        task.error = error
        discard(writer, [task])


def _syncfs() -> Callable[[int], None] | None:
    """syncfs(2), which Python does not have, or None where it does not tell whether it worked."""
    release = os.uname().release.split(".")
    try:
        if (int(release[0]), int(release[1])) < _HONEST_SYNCFS:
            return None
        function = ctypes.CDLL(None, use_errno=True).syncfs
    except (ValueError, IndexError, OSError, AttributeError):
        return None

    def syncfs(fd: int) -> None:
        if function(fd):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

    return syncfs
