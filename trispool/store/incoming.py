"""The tasks of a directory store that have no file yet, in memory: pure, told the time.

A task is kept here from the commit that keeps it until it is finished or has a file:

    WAITING ──claim──► CLAIMED ──finish──► (gone)
       ▲  ▲                │
       │  └────release─────┘
       └──failed── LEAVING ──published──► (gone: it is a file now)

A task that is LEAVING is not claimed; whoever wants it waits until it has left, or looks for it later. To leave takes
two trips to the disk.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Final

from trispool.packet import decode_vars
from trispool.store import Claim
from trispool.task import Entry, Task

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from trispool.incomingfile import IncomingRow

__all__ = ["MAX_BYTES", "MAX_ROWS", "Incoming", "Kept", "State", "entry_of_row"]

MAX_ROWS: Final = 50_000
MAX_BYTES: Final = 64 * 1024 * 1024
"""What may wait in memory, tasks and bytes of their vars and bodies; three seconds of the fastest enqueuing. What the
workers have in hand does not count: it may stay for hours, and would leave no room."""

_tuple: Final = tuple.__new__


class State(enum.Enum):
    """See the module."""

    WAITING = enum.auto()
    CLAIMED = enum.auto()
    LEAVING = enum.auto()


class Kept:
    """One task.

    Attributes:
        row: As it stands in the database.
        entry: As the schedule has it.
        state: See the module.
        since: When it began to wait, on Trio's clock.
        content: As it was claimed: each claim has a content of its own.
        size: Bytes of vars and body.
    """

    __slots__ = ("content", "entry", "row", "since", "size", "state")

    def __init__(self, row: IncomingRow, entry: Entry) -> None:
        self.row = row
        self.entry = entry
        self.size = len(row.payload) + len(row.body)
        self.state = State.WAITING
        self.since = 0.0
        self.content: tuple[bytes, bytes] | None = None

    def task(self, body_limit: int | None) -> Task:
        """As a person sees it."""
        entry = self.entry
        return Task(
            entry.id,
            decode_vars(self.row.payload),
            self.row.body[:body_limit],
            entry.at,
            entry.priority,
            enqueued_at=entry.order[0] / 1e6,
        )


class Incoming:
    """See the module. It has one owner and changes only between two awaits, so it needs no lock."""

    def __init__(self) -> None:
        self._kept: dict[str, Kept] = {}  # by id
        # Those that are not claimed.
        self._count = 0
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    def __contains__(self, task_id: str) -> bool:
        return task_id in self._kept

    def __iter__(self) -> Iterator[Kept]:
        return iter(self._kept.values())

    def has_room(self, count: int, size: int) -> bool:
        """Whether so many more tasks of so many bytes may come. More than ever may wait is let in alone."""
        return not self._count or (self._count + count <= MAX_ROWS and self._bytes + size <= MAX_BYTES)

    def put(self, tasks: Sequence[Kept], now: float) -> None:
        """These wait, since that time."""
        size = 0
        for kept in tasks:
            kept.since = now
            self._kept[kept.row.task] = kept
            size += kept.size
        self._count += len(tasks)
        self._bytes += size

    def at(self, ref: str) -> Kept | None:
        """The task of that `ref`."""
        kept = self._kept.get(ref.rpartition("/")[2])
        return kept if kept is not None and kept.entry.ref == ref else None

    def payloads(self, refs: Sequence[str]) -> dict[str, bytes]:
        """The encoded vars of those of some tasks that are here, by ref."""
        if not self._kept:
            return {}
        return {ref: kept.row.payload for ref in refs if (kept := self.at(ref)) is not None}

    def leaving(self, entries: Sequence[Entry]) -> list[Entry]:
        """Those of some tasks that are on their way into files."""
        get, leaving = self._kept.get, State.LEAVING
        return [
            entry
            for entry in entries
            if (kept := get(entry.id)) is not None and kept.state is leaving and kept.entry.ref == entry.ref
        ]

    def claim(self, entries: Sequence[Entry]) -> list[Claim]:
        """Claims for some tasks, in order, whether they are here or have files. Those that wait here are run now."""
        get, waiting = self._kept.get, State.WAITING
        claims: list[Claim] = []
        count = size = 0
        for entry in entries:
            task_id, ref, content = entry.id, entry.ref, None
            kept = get(task_id)
            if kept is not None and kept.state is waiting and kept.entry.ref == ref:
                kept.state = State.CLAIMED
                content = kept.content = kept.row.payload, kept.row.body
                count += 1
                size += kept.size
            # As Claim(...) does, in half the time: every task comes through here.
            claims.append(_tuple(Claim, (task_id, ref, content)))
        self._count -= count
        self._bytes -= size
        return claims

    def release(self, kept: Kept, now: float) -> None:
        """What was claimed waits again."""
        if kept.state is State.CLAIMED:
            kept.state, kept.since, kept.content = State.WAITING, now, None
            self._counts(kept, 1)

    def claimed(self, task_id: str, content: tuple[bytes, bytes] | None) -> Kept | None:
        """The task that was claimed so, unless it has been released since."""
        kept = self._kept.get(task_id)
        return kept if kept is not None and kept.content is content else None

    def discard(self, task_id: str) -> None:
        """It is finished, or has a file."""
        kept = self._kept.pop(task_id, None)
        if kept is not None and kept.state is not State.CLAIMED:
            self._counts(kept, -1)

    def _counts(self, kept: Kept, sign: int) -> None:
        self._count += sign
        self._bytes += sign * kept.size

    def waiting(self, before: float, limit: int, size: int) -> list[Kept]:
        """Some that have waited since before a time; of those the newest, since the workers take the oldest first.

        Args:
            before: On Trio's clock.
            limit: How many at most.
            size: Bytes of their vars and bodies; one that has more comes alone.
        """
        found: list[Kept] = []
        for kept in reversed(self._kept.values()):
            if kept.state is State.WAITING and kept.since <= before:
                size -= kept.size
                if found and size < 0:
                    break
                found.append(kept)
                if len(found) == limit:
                    break
        return found

    def entries(self, size: int) -> Iterator[Sequence[Entry]]:
        """All, in parts between which they may change; what has come since is not among them."""
        ids = list(self._kept)
        for start in range(0, len(ids), size):
            yield [self._kept[task_id].entry for task_id in ids[start : start + size] if task_id in self._kept]


def entry_of_row(row: IncomingRow, order: tuple[int, int]) -> Entry:
    """The entry of a task in the database."""
    ref = row.task if row.priority is None else f"{row.priority}/{row.task}"
    return Entry(row.task, ref, row.at, row.priority, order)
