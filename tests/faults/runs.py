"""What handlers did, told through files that they map into memory: what was written before a kill -9 is there after it.

    u64 count | count times: u64 number, f64 started, f64 started (Unix), f64 ended, u64 attempt, u64 outcome, id

One file a process, named by its pid, by the life of the service that it belongs to, and by when it was made.
"""

from __future__ import annotations

import enum
import mmap
import os
import struct
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from pathlib import Path

CAPACITY: Final = 1 << 16
"""Of one process. The file is sparse, so what is not used costs nothing."""

_COUNT: Final = struct.Struct("<Q")
_RECORD: Final = struct.Struct("<QdddQQ144s")
_ENDED: Final = struct.Struct("<dQQ")
_ENDED_AT: Final = 24


class End(enum.IntEnum):
    """How a handler's call ended."""

    NONE = 0
    OK = 1
    AGAIN = 2
    """It asked to be run again, or raised."""
    TORN = 3
    """The task was not what had been sent. (It ends as OK, so that this is seen once.)"""


@dataclass(frozen=True, slots=True)
class Run:
    """One call of a handler.

    Attributes:
        number: What the sender calls the task.
        task: The id that trispool gave it.
        attempt: Which one it was, as trispool says; 0 if it did not say.
        started: On the monotonic clock.
        started_at: Unix seconds.
        ended: On the monotonic clock; 0 if it did not come to its end.
        end: How it ended.
        worker: The process that it was in.
        life: Which of the services that ran in turn had started that process.
    """

    number: int
    task: str
    attempt: int
    started: float
    started_at: float
    ended: float
    end: End
    worker: int
    life: int


class Recorder:
    """The handler's side.

    Args:
        folder: Where the files are.
        life: See `Run`.
    """

    def __init__(self, folder: str, life: str) -> None:
        self._folder = folder
        self._life = life
        self._open()

    def started(self, number: int, task: str, attempt: int) -> Call:
        """A handler was called."""
        if self._count == CAPACITY:
            self._open()  # the old one is closed when the last call in it has ended
        place = _COUNT.size + self._count * _RECORD.size
        _RECORD.pack_into(
            self._page, place, number, time.monotonic(), time.time(), 0.0, attempt, End.NONE, task.encode()
        )
        # Last, so that what is counted is whole; and not by `pack_into`, which first writes zeros: killed there, a
        # process would have run nothing.
        self._count += 1
        self._counted[0] = self._count
        return Call(self._page, place, attempt)

    def _open(self) -> None:
        name = f"{os.getpid()}.{self._life}.{time.monotonic_ns()}"
        fd = os.open(os.path.join(self._folder, name), os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.ftruncate(fd, _COUNT.size + CAPACITY * _RECORD.size)
            self._page = mmap.mmap(fd, 0)
            self._counted = memoryview(self._page)[: _COUNT.size].cast("Q")
        finally:
            os.close(fd)
        self._count = 0


class Call(NamedTuple):
    """A call of a handler that is under way."""

    page: mmap.mmap
    place: int
    attempt: int

    def ended(self, end: End) -> None:
        """It is about to return."""
        _ENDED.pack_into(self.page, self.place + _ENDED_AT, time.monotonic(), self.attempt, end)


class Runs:
    """The judge's side: all that handlers have told.

    Args:
        folder: Where the files are.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def read(self) -> list[Run]:
        """All calls so far, in the order of time."""
        runs: list[Run] = []
        for path in self._folder.iterdir():
            worker, life, _ = map(int, path.name.split("."))
            with path.open("rb") as file:
                head = file.read(_COUNT.size)
                count = _COUNT.unpack(head)[0] if len(head) == _COUNT.size else 0
                for number, started, at, ended, attempt, end, task in _RECORD.iter_unpack(
                    file.read(count * _RECORD.size)
                ):
                    name = task.rstrip(b"\0").decode()
                    runs.append(Run(number, name, attempt, started, at, ended, End(end), worker, life))
        runs.sort(key=lambda run: run.started)
        return runs

    def workers(self, life: int) -> set[int]:
        """The processes of a life that have run something, those that have ended since included."""
        found = set()
        for path in self._folder.glob(f"*.{life}.*"):
            with path.open("rb") as file:
                if file.read(_COUNT.size).strip(b"\0"):
                    found.add(int(path.name.partition(".")[0]))
        return found
