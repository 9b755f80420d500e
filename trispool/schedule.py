"""The index of what waits: pure, in memory, told the time.

Rules it keeps:

1. `take` never gives a task before its time, and of those that are due the one first that has the smallest priority,
   then the one enqueued first (design: order of running).
2. Every operation costs O(log n) at most: a wake-up is not a look at every task, as it is in uWSGI
   (`core/spooler.c`, `spooler_scandir`).
3. A task stands in it once, by its `ref`.

Two heaps: `_later` by due time, `_ready` by order of running. A task that moves leaves its old heap slot behind; the
slot is recognised by its sequence number and dropped when it comes up (lazy deletion), or all at once when they are
more than half of a heap.
"""

from __future__ import annotations

import heapq
from collections import deque
from typing import TYPE_CHECKING, Final, Generic, Protocol, TypeVar

from trispool.task import MAX_PRIORITY

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Schedulable", "Schedule", "Waiting"]

_NO_PRIORITY: Final = MAX_PRIORITY + 1
_COMPACT_FROM: Final = 1024
"""Fewer stale heap slots than this are not worth a rebuild."""


class Schedulable(Protocol):
    """What the schedule needs to know of a task (`trispool.store.Entry` has it)."""

    @property
    def ref(self) -> str:
        """The key of the task."""
        ...

    @property
    def priority(self) -> int | None:
        """Smaller runs first, None last."""
        ...

    @property
    def order(self) -> tuple[int, int]:
        """Sorts by time of enqueuing."""
        ...


EntryT = TypeVar("EntryT", bound=Schedulable)


class Waiting(Generic[EntryT]):
    """A task that waits.

    Attributes:
        entry: The task.
        due_at: Unix seconds from which on it is ready.
        is_ready: Whether it has been found due.
        seen: For the owner's use: a number, 0 at first.
    """

    __slots__ = ("due_at", "entry", "is_ready", "seen", "slot")

    def __init__(self, entry: EntryT, due_at: float, slot: int) -> None:
        self.entry = entry
        self.due_at = due_at
        self.is_ready = False
        self.seen = 0
        self.slot = slot


class Schedule(Generic[EntryT]):
    """See the module. It has one owner and changes only between two awaits, so it needs no lock."""

    def __init__(self) -> None:
        self._waiting: dict[str, Waiting[EntryT]] = {}
        self._later: list[tuple[float, int, Waiting[EntryT]]] = []
        self._ready: list[tuple[int, int, Waiting[EntryT]]] = []
        # In the order of becoming ready, which is that of due times but for tasks found late; may hold stale ones.
        self._by_age: deque[tuple[int, Waiting[EntryT]]] = deque()
        self._ready_count = 0
        self._last_slot = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[Waiting[EntryT]]:
        return iter(self._waiting.values())

    @property
    def ready(self) -> int:
        """How many tasks are due, as of the last look."""
        return self._ready_count

    @property
    def scheduled(self) -> int:
        """How many tasks are for later, as of the last look."""
        return len(self._waiting) - self._ready_count

    def get(self, ref: str) -> Waiting[EntryT] | None:
        """The waiting task of that `ref`, if it waits."""
        return self._waiting.get(ref)

    def put(self, entry: EntryT, due_at: float, now: float) -> Waiting[EntryT]:
        """Let a task wait; one of the same `ref` is replaced.

        Args:
            entry: The task.
            due_at: Unix seconds from which on it may run.
            now: Unix seconds.
        """
        self.discard(entry.ref)
        self._last_slot += 1
        waiting = Waiting(entry, due_at, self._last_slot)
        self._waiting[entry.ref] = waiting
        if due_at <= now:
            self._make_ready(waiting)
        else:
            heapq.heappush(self._later, (due_at, self._last_slot, waiting))
        return waiting

    def discard(self, ref: str) -> Waiting[EntryT] | None:
        """Forget a task, if it waits.

        Returns:
            What was forgotten.
        """
        waiting = self._waiting.pop(ref, None)
        if waiting is not None:
            self._leave(waiting)
            self._compact()
        return waiting

    def take(self, limit: int, now: float) -> list[Waiting[EntryT]]:
        """Take out the tasks that are to run next.

        Args:
            limit: How many at most.
            now: Unix seconds.
        """
        self.look(now)
        taken: list[Waiting[EntryT]] = []
        ready = self._ready
        while ready and len(taken) < limit:
            _, slot, waiting = heapq.heappop(ready)
            if waiting.slot == slot:
                del self._waiting[waiting.entry.ref]
                self._leave(waiting)
                taken.append(waiting)
        return taken

    def look(self, now: float) -> int:
        """Find out what has become due.

        Returns:
            How many tasks are ready.
        """
        later = self._later
        while later and later[0][0] <= now:
            _, slot, waiting = heapq.heappop(later)
            if waiting.slot == slot:
                self._make_ready(waiting)
        return self._ready_count

    def next_due(self) -> float | None:
        """When the next task becomes due, Unix seconds, or None if there is none for later."""
        later = self._later
        while later and later[0][2].slot != later[0][1]:
            heapq.heappop(later)
        return later[0][0] if later else None

    def oldest_ready_at(self) -> float | None:
        """Since when the task waits that became ready first, Unix seconds, or None."""
        while self._by_age and self._by_age[0][1].slot != self._by_age[0][0]:
            self._by_age.popleft()
        return self._by_age[0][1].due_at if self._by_age else None

    def _make_ready(self, waiting: Waiting[EntryT]) -> None:
        entry, slot = waiting.entry, waiting.slot
        waiting.is_ready = True
        self._ready_count += 1
        # One number: a heap of a million compares it 20 times a task, and tuples in tuples take twice as long.
        microseconds, counter = entry.order
        priority = _NO_PRIORITY if entry.priority is None else entry.priority
        rank = priority << 96 | max(0, microseconds) << 32 | min(counter, 0xFFFF_FFFF)
        heapq.heappush(self._ready, (rank, slot, waiting))
        self._by_age.append((slot, waiting))

    def _leave(self, waiting: Waiting[EntryT]) -> None:
        waiting.slot = 0  # its heap slots are stale now
        if waiting.is_ready:
            self._ready_count -= 1

    def _compact(self) -> None:
        if len(self._later) > 2 * self.scheduled + _COMPACT_FROM:
            self._later = [item for item in self._later if item[2].slot == item[1]]
            heapq.heapify(self._later)
        if len(self._ready) > 2 * self._ready_count + _COMPACT_FROM:
            self._ready = [item for item in self._ready if item[2].slot == item[1]]
            heapq.heapify(self._ready)
        if len(self._by_age) > 2 * self._ready_count + _COMPACT_FROM:
            self._by_age = deque(item for item in self._by_age if item[1].slot == item[0])
