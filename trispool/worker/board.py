"""The page of memory that a worker and the service share.

    offset  type      written by  what
    0       u64       worker      number of the task whose handler holds the interpreter; 0: none
    8       f64       worker      when that task was begun, CLOCK_MONOTONIC seconds (one clock for all processes)
    16      f64       worker      when it is overdue, same clock; 0: never
    24      f64       worker      when the first of the running async handlers is overdue; 0: never
    32      u64       service     tasks numbered below this and not begun are recalled
    64      u8[slots] worker      mark of task n at n modulo slots: see `MARKS`; the service clears it before it sends n

The rules that make it safe without a lock:

1. The worker writes a task's mark before it moves on to the next number, so whoever reads the number first and then
   the mark never takes a finished task for one that was not begun.
2. To begin task n the worker writes that it does, then looks whether n is recalled. The service writes the recall,
   waits `RECALL_SETTLES`, then looks what was begun. Either the worker sees the recall or the service sees the
   beginning: a store reaches the other processor in well under a microsecond, though not at once.
3. Deadlines are acted on only when two looks 20 ms apart saw the same task and the same deadline, so a look that
   catches these fields between two writes does no harm.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from trispool.worker.frames import Code

__all__ = ["BEGUN", "HELD", "MARKS", "RECALL_SETTLES", "RETURNED", "TOLD", "Board"]

RECALL_SETTLES: Final = 0.001
"""Seconds from writing a recall to acting on it: some thousand times longer than a store takes to be seen."""

MARKS: Final[dict[Code, int]] = {
    "ok": 1,
    "retry": 2,
    "ignore": 3,
    "failed": 4,
    "timeout": 5,
    "gone": 6,
    "locked": 7,
    "not_due": 8,
    "unreadable": 9,
    "settling": 10,
    "returned": 11,
    "cancelled": 12,
}
"""The mark of a task that has ended."""

BEGUN: Final = 255
"""The mark of a task of an async worker whose handler runs. (Of a sync worker's the number tells.)"""

HELD: Final = 254
"""The mark of a task of an async worker that is claimed but waits for others of its handler to end."""

TOLD: Final = 253
"""The mark of a task of an async worker whose handler runs and has been cancelled by an operator."""

RETURNED: Final = MARKS["returned"]

_CODES: Final[dict[int, Code]] = {mark: code for code, mark in MARKS.items()}
_HEADER: Final = 64
_NUMBER, _RECALLED = 0, 4  # in units of 8 bytes
_STARTED, _DEADLINE, _LOOP_DEADLINE = 1, 2, 3


class Board:
    """The shared page, seen from either side.

    Args:
        fd: The memory; a copy of the descriptor is kept for as long as the board is open.
        slots: How many marks it has.

    Attributes:
        words: The page as integers; a worker's loop writes `words[0]` and reads `words[4]`.
        times: The page as floats; a worker's loop writes `times[1]` to `times[3]`.
        marks: The marks.
    """

    def __init__(self, fd: int, slots: int) -> None:
        self.slots = slots
        self._page = mmap.mmap(fd, _HEADER + slots)
        self._view = memoryview(self._page)
        header = self._view[:_HEADER]
        self.words = header.cast("Q")
        self.times = header.cast("d")
        self.marks = self._view[_HEADER : _HEADER + slots]

    @staticmethod
    def create_memory(slots: int) -> int:
        """A descriptor of fresh memory for a board, of fixed size: who truncates it, by accident, gets an error."""
        fd = os.memfd_create("trispool-board", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(fd, _HEADER + slots)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def close(self) -> None:
        """Let go of the memory."""
        for view in (self.words, self.times, self.marks, self._view):
            view.release()
        self._page.close()

    # What the worker does (its sync loop does the same in place, because calls cost more than stores)

    def begin(self, number: int, started: float, deadline: float) -> None:
        """The handler of this task now holds the interpreter."""
        times = self.times
        times[_DEADLINE] = deadline
        times[_STARTED] = started
        self.words[_NUMBER] = number

    def end(self) -> None:
        """No handler holds the interpreter."""
        self.words[_NUMBER] = 0

    def mark(self, number: int, mark: int) -> None:
        """Note how far a task is."""
        self.marks[number & (self.slots - 1)] = mark

    def set_loop_deadline(self, deadline: float) -> None:
        """When the first of the running async handlers is overdue; 0: never."""
        self.times[_LOOP_DEADLINE] = deadline

    def is_recalled(self, number: int) -> bool:
        """Whether the service wants this task back. Look only after having noted that it is begun."""
        return number < self.words[_RECALLED]

    # What the service does

    def clear(self, first: int, count: int) -> None:
        """Make room for the marks of tasks about to be sent."""
        start = first & (self.slots - 1)
        end = start + count
        if end <= self.slots:
            self.marks[start:end] = bytes(count)
        else:
            self.marks[start:] = bytes(self.slots - start)
            self.marks[: end - self.slots] = bytes(end - self.slots)

    def recall(self, before: int) -> None:
        """Have no task numbered below `before` begun any more."""
        self.words[_RECALLED] = before

    @property
    def running(self) -> tuple[int, float, float]:
        """The task whose handler holds the interpreter (0: none), when it was begun, when it is overdue (0: never)."""
        return self.words[_NUMBER], self.times[_STARTED], self.times[_DEADLINE]

    @property
    def loop_deadline(self) -> float:
        """When the first of the running async handlers is overdue; 0: never."""
        return self.times[_LOOP_DEADLINE]

    def code(self, number: int) -> Code | None:
        """How a task ended, or None if it has not ended."""
        return _CODES.get(self.marks[number & (self.slots - 1)])

    def is_taken(self, number: int) -> bool:
        """Whether the worker has the task beyond recall by this page. Read `running` first: rule 1."""
        return self.marks[number & (self.slots - 1)] != 0

    def is_begun(self, number: int) -> bool:
        """Whether an async worker's handler runs the task."""
        return self.marks[number & (self.slots - 1)] in (BEGUN, TOLD)

    def is_told(self, number: int) -> bool:
        """Whether that handler has been cancelled by an operator."""
        return self.marks[number & (self.slots - 1)] == TOLD
