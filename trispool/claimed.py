"""Holding a spool file: the lock that says who runs a task.

Ours are open-file-description locks (fcntl(2), `F_OFD_SETLK`). They conflict with the POSIX record locks of uWSGI
(`core/lock.c`, `uwsgi_fcntl_is_locked`), so both may work on one directory; unlike those they are not lost when some
other descriptor of the file is closed, as when a handler reads its own spool file, and the kernel frees them when their
owner dies.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from typing import TYPE_CHECKING, Final

from trispool import spoolfile
from trispool.errors import TrispoolError
from trispool.task import MAX_VARS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = [
    "ClaimedFile",
    "Gone",
    "Locked",
    "NotDue",
    "Settling",
    "Unclaimable",
    "Unreadable",
    "lock",
    "open_locked",
    "read_task",
]

# struct flock with 64-bit offsets: l_type, l_whence, (padding), l_start, l_len, l_pid, which must be 0, (padding)
_WRITE_LOCK: Final = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
_FLAGS: Final = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_flags = _FLAGS | os.O_NOATIME
"""To note when a file was read is a write of its own, 2 µs of ext4's. Only a file's owner may go without; where others'
files lie, every file is opened as usual."""

_LONGEST_HEAD: Final = 4 + MAX_VARS
_NOT_A_FILE: Final = (errno.ELOOP, errno.EISDIR, errno.ENXIO, errno.ENOTDIR)


class Unclaimable(TrispoolError):
    """The task cannot be run now."""


class Gone(Unclaimable):
    """The file is no longer there."""


class Locked(Unclaimable):
    """Somebody else is at work on the file."""


class Settling(Unclaimable):
    """Not now: the file is incomplete but young, so its writer may not have finished, or the system cannot open it."""


class NotDue(Unclaimable):
    """The task is for later.

    Args:
        at: Unix seconds from which on it may run.
    """

    def __init__(self, at: float) -> None:
        super().__init__()
        self.at = at


class Unreadable(Unclaimable):
    """The file is no spool file.

    Args:
        reason: What is wrong with it.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class ClaimedFile:
    """A spool file that is ours to run until it is closed.

    Attributes:
        ref: Its path below the spool directory.
        payload: The task's encoded vars.
        vars: The task's vars.
        body: The task's body.
        at: Its mtime, Unix seconds.

    Args:
        fd: The locked descriptor, owned from now on.
        unlink: Removes the file, given `ref` and `fd`.
    """

    __slots__ = ("_fd", "_unlink", "at", "body", "payload", "ref", "vars")

    def __init__(
        self,
        fd: int,
        ref: str,
        payload: bytes,
        vars: Mapping[bytes, bytes],
        body: bytes,
        at: float,
        unlink: Callable[[str, int], None],
    ) -> None:
        self._fd = fd
        self._unlink = unlink
        self.ref = ref
        self.payload = payload
        self.vars = vars
        self.body = body
        self.at = at

    def remove(self) -> None:
        """The task is done: delete its file and let go of it.

        A person may have moved the file while it ran. It is then looked for in the other places where it would run
        again; one that was taken out of the spool is left where it is.

        Raises:
            OSError: The file could not be deleted; it is let go of all the same.
        """
        try:
            self._unlink(self.ref, self._fd)
        finally:
            os.close(self._fd)

    def close(self) -> None:
        """Let go of the file; it waits again."""
        os.close(self._fd)


def open_locked(folder: int, ref: str) -> int:
    """Open a spool file and lock it.

    Args:
        folder: A descriptor of the spool directory.
        ref: The file's path below it.

    Returns:
        A descriptor; closing it lets go of the file.

    Raises:
        Gone: There is no such file.
        Locked: Somebody else runs it.
        Unreadable: It is a symbolic link or something else that is not opened.
        Settling: The system refuses (no descriptors left, no permission).
    """
    global _flags
    try:
        fd = os.open(ref, _flags, dir_fd=folder)
    except FileNotFoundError:
        raise Gone from None
    except OSError as error:
        if error.errno == errno.EPERM and _flags != _FLAGS:
            _flags = _FLAGS
            return open_locked(folder, ref)
        if error.errno in _NOT_A_FILE:
            raise Unreadable(error.strerror or str(error)) from error
        raise Settling(f"{ref} cannot be opened: {error.strerror or error}") from error
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _WRITE_LOCK)
    except (BlockingIOError, PermissionError):
        os.close(fd)
        raise Locked from None
    except BaseException:
        os.close(fd)
        raise
    return fd


def lock(fd: int) -> None:
    """Lock a spool file until `fd`, which is open for writing, is closed.

    Raises:
        Locked: Somebody else runs it.
    """
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _WRITE_LOCK)
    except (BlockingIOError, PermissionError):
        raise Locked from None


def read_task(fd: int, size: int, body_limit: int | None = None) -> tuple[bytes, dict[bytes, bytes], bytes]:
    """The encoded vars of a spool file, the same decoded, and its body.

    Args:
        fd: The file, at its beginning.
        size: Its size, bytes.
        body_limit: Read so many bytes of the body at most.

    Raises:
        MalformedSpoolFile: It is none.
    """
    # The head first: what is no task is not read whole, however long it is.
    head = _read_all(fd, min(size, _LONGEST_HEAD))
    payload, vars_, body = spoolfile.parts(head)
    if size <= len(head) and body_limit is None:
        return payload, vars_, body
    if body_limit is not None:
        size = min(size, len(head) - len(body) + body_limit)
        body = body[:body_limit]
    return payload, vars_, body + _read_all(fd, size - len(head)) if size > len(head) else body


def _read_all(fd: int, size: int) -> bytes:
    data = os.read(fd, size)
    while len(data) < size and (more := os.read(fd, size - len(data))):  # over 2 GiB in one read
        data += more
    return data
