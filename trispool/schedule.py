"""The index of what waits: pure, in memory, told the time.

Rules it keeps:

1. `take` never gives a task before its time, and of those that are due the one first that has the smallest priority,
   then the one enqueued first (design: order of running).
2. Every operation costs O(log n) at most: a wake-up is not a look at every task, as it is in uWSGI
   (`core/spooler.c`, `spooler_scandir`).
3. A task stands in it once, by its `ref`.
4. A task costs some 290 bytes, 130 of them its name, and nothing that the garbage collector has to walk through: as
   objects a million tasks took 620 MB, and a full collection kept the loop from running for half a second.

Two queues: `_later`, a heap by due time, and `_ready` by order of running. Their items are integers whose lowest 32
bits are the task's slot, the place of its record (`trispool.record`):

    later:   | due time, the 64 bits of a double (sorts as the number does)           | slot, 32 bits |
    ready:   | priority, 63 bits and one for none | enqueued, µs, 64 bits | counter, 32 | slot, 32 bits |

`_keys` has the item of each task. One that moves leaves its old item behind; that is recognised by not being the one in
`_keys` and dropped when it comes up (lazy deletion), or with all others when they are more than half of a queue.
"""

from __future__ import annotations

import contextlib
import heapq
import struct
from array import array
from collections import deque
from typing import TYPE_CHECKING, Final

from trispool.readyqueue import ReadyQueue
from trispool.record import (
    BRIEF,
    FLAGS_AT,
    FRESH,
    ODD,
    READY,
    RECORD,
    SIZE,
    Waiting,
    odd_record_of,
    ready_key,
    record_of,
)
from trispool.task import Entry

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["Schedule", "Waiting"]

_COMPACT_FROM: Final = 1024
"""Fewer stale heap items than this are not worth a rebuild."""

_SLOT: Final = 0xFFFF_FFFF
_unpack: Final = RECORD.unpack_from
_tuple: Final = tuple.__new__
_DOUBLE: Final = struct.Struct("<d")
_BITS: Final = struct.Struct("<q")


class Schedule:
    """See the module. It has one owner and changes only between two awaits, so it needs no lock."""

    def __init__(self) -> None:
        self._notes: list[list[str]] = []
        self._begin_anew()

    def _begin_anew(self) -> None:
        self._keys: dict[str, int] = {}
        self._later: list[int] = []
        self._ready = ReadyQueue()
        # In the order of becoming ready, which is that of due times but for tasks found late; may hold stale ones.
        self._by_age: deque[int] = deque()
        self._ready_count = 0
        # By slot.
        self._refs: list[str | None] = []
        self._records = bytearray()
        self._marks = array("I")
        self._odd: dict[int, Entry] = {}
        self._free = array("I")

    def __len__(self) -> int:
        return len(self._keys)

    def __contains__(self, ref: str) -> bool:
        return ref in self._keys

    @property
    def ready(self) -> int:
        """How many tasks are due, as of the last look."""
        return self._ready_count

    @property
    def scheduled(self) -> int:
        """How many tasks are for later, as of the last look."""
        return len(self._keys) - self._ready_count

    def get(self, ref: str) -> Waiting | None:
        """The waiting task of that `ref`, if it waits."""
        key = self._keys.get(ref)
        return None if key is None else self._waiting(ref, key & _SLOT)

    def put(self, entry: Entry, due_at: float, now: float, mark: int = 0) -> bool:
        """Let a task wait; one of the same `ref` is replaced.

        Args:
            entry: The task.
            due_at: Unix seconds from which on it may run; later than 1970 if it is not ready.
            now: Unix seconds.
            mark: See `mark`.

        Returns:
            Whether none was replaced.
        """
        ref = entry.ref
        for noted in self._notes:
            noted.append(ref)
        is_new = ref not in self._keys
        if not is_new:
            self._leave(self._keys.pop(ref) & _SLOT)
            self._compact()
        try:
            record = record_of(entry, due_at)
            is_odd = False
        except struct.error:
            record = odd_record_of(entry, due_at)
            is_odd = True
        if self._free:
            slot = self._free.pop()
            self._refs[slot] = ref
            self._records[slot * SIZE : slot * SIZE + SIZE] = record
            self._marks[slot] = mark
        else:
            slot = len(self._refs)
            self._refs.append(ref)
            self._records += record
            self._marks.append(mark)
        if is_odd:
            self._odd[slot] = entry
        if due_at <= now:
            self._keys[ref] = key = ready_key(entry.priority, entry.order, slot)
            self._make_ready(key)
        else:
            self._keys[ref] = key = _BITS.unpack_from(record, _DOUBLE.size)[0] << 32 | slot
            heapq.heappush(self._later, key)
        return is_new

    def put_new(
        self, entries: Sequence[Entry], due_ats: Sequence[float], now: float, mark: int = 0
    ) -> tuple[Sequence[Entry], Sequence[Entry]]:
        """`put` for very many tasks of which hardly any waits, in half the time.

        Returns:
            Those that have been put, and those that have not: they wait already, or have to be put one by one.
        """
        if self._free:
            return (), entries
        put: list[Entry] = []
        keys, refs, later, push = self._keys, self._refs, self._later, heapq.heappush
        left: list[Entry] = []
        slot = len(refs)
        bits = memoryview(array("d", due_ats)).cast("B").cast("q")
        for entry, due_at, sortable in zip(entries, due_ats, bits, strict=True):
            try:
                record = record_of(entry, due_at)
            except struct.error:
                left.append(entry)
                continue
            ref = entry.ref
            key = sortable << 32 | slot if due_at > now else ready_key(entry.priority, entry.order, slot)
            # To ask first whether it waits would be another look into a very large table.
            if keys.setdefault(ref, key) is not key:
                left.append(entry)
                continue
            put.append(entry)
            refs.append(ref)
            self._records += record
            if due_at > now:
                push(later, key)
            else:
                self._make_ready(key)
            slot += 1
        self._marks.extend([mark] * len(put))
        for noted in self._notes:
            noted += [entry.ref for entry in put]
        return put, left

    def discard(self, ref: str) -> Waiting | None:
        """Forget a task, if it waits; returns what was forgotten."""
        waiting = self.get(ref)
        if waiting is not None:
            self._leave(self._keys.pop(ref) & _SLOT)
            self._compact()
        return waiting

    def take(self, limit: int, now: float) -> list[Waiting]:
        """Take out the tasks that are to run next.

        Args:
            limit: How many at most.
            now: Unix seconds.
        """
        self.look(now)
        taken: list[Waiting] = []
        keys, refs, free, waiting = self._keys, self._refs, self._free, self._waiting
        while len(taken) < limit and (first := self._ready.pop(limit - len(taken))):
            for key in first:
                slot = key & _SLOT
                ref = refs[slot]
                if ref is not None and keys[ref] is key:
                    taken.append(waiting(ref, slot))
                    # As `_leave` does.
                    del keys[ref]
                    refs[slot] = None
                    free.append(slot)
                    if self._odd:
                        self._odd.pop(slot, None)
        self._ready_count -= len(taken)
        self._forget_old()
        self._compact()
        return taken

    def look(self, now: float, limit: int | None = None) -> int:
        """Find out what has become due.

        Args:
            now: Unix seconds.
            limit: How many to find at most (some 3 µs each); if there are more, `next_due` is not later than `now`.

        Returns:
            How many tasks are ready.
        """
        later, keys, refs = self._later, self._keys, self._refs
        beyond = _BITS.unpack(_DOUBLE.pack(now))[0] + 1 << 32
        left = len(later) if limit is None else limit
        while left > 0 and later and later[0] < beyond:
            left -= 1
            key = heapq.heappop(later)
            slot = key & _SLOT
            ref = refs[slot]
            if ref is not None and keys[ref] is key:
                entry = self._waiting(ref, slot).entry
                keys[ref] = key = ready_key(entry.priority, entry.order, slot)
                self._make_ready(key)
        return self._ready_count

    def next_due(self) -> float | None:
        """When the next task becomes due, Unix seconds, or None if there is none for later."""
        later = self._later
        while later and not self._is_live(later[0]):
            heapq.heappop(later)
        return self._due_at(later[0]) if later else None

    def oldest_ready_at(self) -> float | None:
        """Since when the task waits that became ready first, Unix seconds, or None."""
        self._forget_old()
        return self._due_at(self._by_age[0]) if self._by_age else None

    # Marks, for the owner's use: numbers that grow

    def confirm(self, ref: str, at: float, mark: int) -> bool:
        """Mark a task, if it waits and has no higher mark.

        Returns:
            Whether it waits with this `at` and not as a fresh one: then its entry is as it should be.
        """
        if not self.see(ref, mark):
            return False
        return bool(_DOUBLE.unpack_from(self._records, (self._keys[ref] & _SLOT) * SIZE)[0] == at)

    def see(self, ref: str, mark: int) -> bool:
        """`confirm` for a task of which only the name has been seen: whether it waits, and not as a fresh one."""
        key = self._keys.get(ref)
        if key is None:
            return False
        slot = key & _SLOT
        if self._marks[slot] < mark:
            self._marks[slot] = mark
        return not self._records[slot * SIZE + FLAGS_AT] & FRESH

    def mark_of(self, ref: str) -> int:
        """The mark of a waiting task."""
        return self._marks[self._keys[ref] & _SLOT]

    def marked_below(self, mark: int, start: int, stop: int) -> list[str]:
        """Those with a smaller mark, of the tasks whose slot is in a range; `slots` says how many there are.

        Args:
            mark: The mark.
            start: The first slot.
            stop: The slot behind the last.
        """
        refs = self._refs[start:stop]
        return [ref for ref, own in zip(refs, self._marks[start:stop], strict=True) if own < mark and ref is not None]

    # Slots: for looking through all that waits, a part at a time

    @property
    def slots(self) -> int:
        """How many slots there are, used or not."""
        return len(self._refs)

    def briefs(self, start: int, stop: int) -> Iterator[tuple[float, int, int]]:
        """A first glance at the slots of a range: due time, microseconds of the order, and 2 (or 3) if it is ready.

        A slot that is not used tells what was in it last, and one of an odd entry 0 for the order; see `at` and `odd`.
        """
        return BRIEF.iter_unpack(self._records[start * SIZE : stop * SIZE])

    def column(self, start: int, stop: int, *, due: bool) -> list[float]:
        """Of `briefs` the due times, or the microseconds, in a third of the time."""
        records = self._records[start * SIZE : stop * SIZE]
        offset = 8 if due else 16
        values = bytearray(len(records) // SIZE * 8)
        # All first bytes, then all second ones, …: eight loops in C instead of one here.
        for byte in range(8):
            values[byte::8] = records[offset + byte :: SIZE]
        return [*(memoryview(values).cast("d") if due else memoryview(values).cast("q"))]

    def at(self, slot: int) -> Waiting | None:
        """The waiting task in a slot, if it is used."""
        ref = self._refs[slot]
        return None if ref is None else self._waiting(ref, slot)

    def odd(self) -> list[Waiting]:
        """The tasks that `briefs` does not tell all of: those with an order that fits no record."""
        return [waiting for slot in self._odd if (waiting := self.at(slot))]

    @contextlib.contextmanager
    def noting(self) -> Iterator[list[str]]:
        """Note the `ref` of each task that is put meanwhile: it may have come into a slot that was looked at before."""
        noted: list[str] = []
        self._notes.append(noted)
        try:
            yield noted
        finally:
            self._notes = [other for other in self._notes if other is not noted]

    # Inside

    def _waiting(self, ref: str, slot: int) -> Waiting:
        at, due_at, microseconds, counter, priority, cut, flags = _unpack(self._records, slot * SIZE)
        if cut == ODD:
            entry = self._odd[slot]
        else:
            # As Entry(...) does, in half the time: every task comes through here.
            entry = _tuple(
                Entry,
                (
                    ref[cut:] if cut else ref,
                    ref,
                    at,
                    None if priority < 0 else priority,
                    (microseconds, counter),
                    flags & FRESH != 0,
                ),
            )
        return _tuple(Waiting, (entry, due_at, flags & READY != 0))

    def _make_ready(self, key: int) -> None:
        self._records[(key & _SLOT) * SIZE + FLAGS_AT] |= READY
        self._ready_count += 1
        self._ready.push(key)
        self._by_age.append(key)

    def _leave(self, slot: int) -> None:
        self._refs[slot] = None
        if self._records[slot * SIZE + FLAGS_AT] & READY:
            self._ready_count -= 1
        if self._odd:
            self._odd.pop(slot, None)
        self._free.append(slot)

    def _is_live(self, key: int) -> bool:
        ref = self._refs[key & _SLOT]
        return ref is not None and self._keys[ref] is key

    def _due_at(self, key: int) -> float:
        due_at: float = _DOUBLE.unpack_from(self._records, (key & _SLOT) * SIZE + _DOUBLE.size)[0]
        return due_at

    def _forget_old(self) -> None:
        by_age, keys, refs = self._by_age, self._keys, self._refs
        while by_age and ((ref := refs[by_age[0] & _SLOT]) is None or keys[ref] is not by_age[0]):
            by_age.popleft()

    def _compact(self) -> None:
        if not self._keys and len(self._refs) > _COMPACT_FROM:
            self._begin_anew()
            return
        if len(self._later) > 2 * self.scheduled + _COMPACT_FROM:
            self._later = [key for key in self._later if self._is_live(key)]
            heapq.heapify(self._later)
        if len(self._ready) > 2 * self._ready_count + _COMPACT_FROM:
            self._ready.keep(self._is_live)
        if len(self._by_age) > 2 * self._ready_count + _COMPACT_FROM:
            self._by_age = deque(key for key in self._by_age if self._is_live(key))
