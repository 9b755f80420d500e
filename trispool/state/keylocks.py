"""Who is at work on a key: one at a time, in this process and in all others that use the same file.

In the process that is a `trio.Lock` for each key. Between processes it is a lock of one byte of a file (fcntl(2),
`F_OFD_SETLK`), whose place is a hash of the key; the kernel frees the locks of a process that dies. Two keys with the
same place wait for each other, which happens once in 2**62 pairs, and does no harm.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from contextlib import asynccontextmanager
from hashlib import sha256
from typing import TYPE_CHECKING, Final

import trio

from trispool.errors import SpoolUnavailable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

__all__ = ["KeyLocks"]

LOOK_SECONDS: Final = 0.02
"""How often to look whether another process has finished with a key."""

WAIT_SECONDS: Final = 40.0
"""How long to wait for another process, longer than an enqueue takes at most."""


class KeyLocks:
    """See the module.

    Args:
        path: The file; made if it is missing. It stays empty.

    Raises:
        OSError: It cannot be opened.
    """

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        self._locks: dict[tuple[str, str], trio.Lock] = {}

    def close(self) -> None:
        """Free all locks."""
        os.close(self._fd)

    @asynccontextmanager
    async def locked(self, owner: str, key: str) -> AsyncIterator[None]:
        """Nobody else is at work on this key meanwhile.

        Raises:
            SpoolUnavailable: Another process is, and does not come to an end.
        """
        lock = self._locks.setdefault((owner, key), trio.Lock())
        try:
            async with lock:
                place = int.from_bytes(sha256(f"{owner}\0{key}".encode()).digest()[:8], "big") >> 2
                await self._lock_elsewhere(place)
                try:
                    yield
                finally:
                    fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, _flock(fcntl.F_UNLCK, place))
        finally:
            if not lock.locked() and self._locks.get((owner, key)) is lock:
                del self._locks[owner, key]

    async def _lock_elsewhere(self, place: int) -> None:
        with trio.move_on_after(WAIT_SECONDS):
            while True:
                try:
                    fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, _flock(fcntl.F_WRLCK, place))
                except OSError as error:
                    if error.errno not in (errno.EAGAIN, errno.EACCES):
                        raise SpoolUnavailable(f"keys cannot be locked now: {error.strerror or error}") from error
                else:
                    return
                await trio.sleep(LOOK_SECONDS)
        raise SpoolUnavailable("another service is at work on a request with this key")


def _flock(kind: int, place: int) -> bytes:
    """struct flock with 64-bit offsets: l_type, l_whence, (padding), l_start, l_len, l_pid, which is 0, (padding)."""
    return struct.pack("hhqqi4x", kind, os.SEEK_SET, place, 1, 0)
