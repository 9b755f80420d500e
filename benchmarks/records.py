"""When each task started, told by the handler's processes through files that they map into memory.

    u64 count | count times: f64 key, f64 Unix time, f64 monotonic time

One file a process, named by its pid. CLOCK_MONOTONIC is the same in all processes, so a time that the client took
before it sent may be subtracted.

Where a process runs but one task (RQ's workers fork for each), all append to one file, `appended`, the same without the
count: a system call, and thus two microseconds more a task.
"""

from __future__ import annotations

import mmap
import os
import struct
import time
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["CAPACITY", "Appender", "Record", "Recorder", "Records"]

CAPACITY: Final = 1 << 18
"""Records of one process. The file is sparse, so what is not used costs nothing."""

_APPENDED: Final = "appended"
_COUNT: Final = struct.Struct("<Q")
_RECORD: Final = struct.Struct("<ddd")


class Record(NamedTuple):
    """One start of a handler.

    Attributes:
        key: The number that the client gave the task.
        at: Unix seconds.
        monotonic: `time.monotonic()`.
    """

    key: float
    at: float
    monotonic: float


class Recorder:
    """The handler's side; under a microsecond a task.

    Args:
        folder: Where the files are. Nothing is opened before the first task: uWSGI imports handlers, then forks.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._page: mmap.mmap | None = None
        self._number = 0

    def add(self, key: float) -> None:
        """A task has started."""
        page = self._page or self._open()
        _RECORD.pack_into(page, _COUNT.size + self._number * _RECORD.size, key, time.time(), time.monotonic())
        self._number += 1
        _COUNT.pack_into(page, 0, self._number)

    def _open(self) -> mmap.mmap:
        size = _COUNT.size + CAPACITY * _RECORD.size
        fd = os.open(os.path.join(self._folder, str(os.getpid())), os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.ftruncate(fd, size)
            self._page = mmap.mmap(fd, size)
        finally:
            os.close(fd)
        return self._page


class Appender:
    """The handler's side where it runs in many processes, or in several threads.

    Args:
        folder: Where the file is.
    """

    def __init__(self, folder: str) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self._fd = os.open(os.path.join(folder, _APPENDED), flags, 0o600)

    def add(self, key: float) -> None:
        """A task has started."""
        os.write(self._fd, _RECORD.pack(key, time.time(), time.monotonic()))


class Records:
    """The measuring side: what all processes have recorded so far.

    Args:
        folder: Where the files are.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._pages: dict[str, mmap.mmap] = {}

    def count(self) -> int:
        """How many tasks have started."""
        self._find()
        appended = self._folder / _APPENDED
        return sum(self._counts().values()) + (appended.stat().st_size // _RECORD.size if appended.exists() else 0)

    def read(self, skip: int = 0) -> list[Record]:
        """All starts, in the order of time.

        Args:
            skip: Leave out so many of the first.
        """
        self._find()
        found = []
        for name, count in self._counts().items():
            end = _COUNT.size + count * _RECORD.size
            found += [Record(*numbers) for numbers in _RECORD.iter_unpack(self._pages[name][_COUNT.size : end])]
        if (appended := self._folder / _APPENDED).exists():
            found += [Record(*numbers) for numbers in _RECORD.iter_unpack(appended.read_bytes())]
        found.sort(key=lambda record: record.monotonic)
        return found[skip:]

    def close(self) -> None:
        """Let go of the files."""
        for page in self._pages.values():
            page.close()
        self._pages.clear()

    def _find(self) -> None:
        for path in self._folder.iterdir():
            if path.name != _APPENDED and path.name not in self._pages and path.stat().st_size:
                with path.open("rb") as file:
                    self._pages[path.name] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def _counts(self) -> dict[str, int]:
        return {name: _COUNT.unpack_from(page)[0] for name, page in self._pages.items()}
