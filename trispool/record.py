"""What the schedule keeps of a task, as bytes; pure.

    | at, double | due_at, double | enqueued, µs, i64 | counter, u64 | priority, i64, -1: none | cut, u16 | flags, u8 |

`cut` is how much longer the task's `ref` is than its id, which is the end of it; the `ref` itself is kept elsewhere. A
task of which that is not true, or whose numbers are too large, is odd: then `cut` is `ODD`, and its entry is kept, too.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from trispool.task import Entry

__all__ = [
    "BRIEF",
    "FLAGS_AT",
    "FRESH",
    "ODD",
    "READY",
    "RECORD",
    "SIZE",
    "Waiting",
    "odd_record_of",
    "ready_key",
    "record_of",
]

RECORD: Final = struct.Struct("<ddqQqHB")
SIZE: Final = RECORD.size
BRIEF: Final = struct.Struct("<8xdq18xB")
"""Of a record: due_at, the microseconds of the order, flags."""

FLAGS_AT: Final = SIZE - 1
FRESH: Final = 1
READY: Final = 2
ODD: Final = 0xFFFF

_NO_PRIORITY: Final = 1 << 63
_pack: Final = RECORD.pack


class Waiting(NamedTuple):
    """A task that waits, as it was when it was asked for.

    Attributes:
        entry: The task.
        due_at: Unix seconds from which on it is ready.
        is_ready: Whether it has been found due.
    """

    entry: Entry
    due_at: float
    is_ready: bool


def record_of(entry: Entry, due_at: float) -> bytes:
    """The record of a task that is not ready. Raises `struct.error` if it is odd."""
    task_id, ref, at, priority, (microseconds, counter), fresh = entry
    cut = len(ref) - len(task_id)
    if cut and not (0 <= cut < ODD and ref.endswith(task_id)):
        raise struct.error
    return _pack(at, due_at, microseconds, counter, -1 if priority is None else priority, cut, FRESH if fresh else 0)


def odd_record_of(entry: Entry, due_at: float) -> bytes:
    """The same of an odd one."""
    return _pack(entry.at, due_at, 0, 0, 0, ODD, FRESH if entry.fresh else 0)


def ready_key(priority: int | None, order: tuple[int, int], slot: int) -> int:
    """The item of a task in the queue of those that are ready; see `trispool.schedule`."""
    microseconds, counter = order
    rank = (_NO_PRIORITY if priority is None else priority) << 96
    return (rank | max(0, microseconds) << 32 | min(counter, 0xFFFF_FFFF)) << 32 | slot
