"""The unfinished tasks of some spools in order, as many as a page has: what waits, runs, is held, or is dead.

Rules it keeps:

1. A task that is there all the while is found, whatever is done to it meanwhile: held, taken by a worker, put back.
2. It is found once, in the state in which it was seen last.
3. Memory is for the tasks of the page, not for those of the spool.
4. The loop is kept for 1 ms at a time, or 2 ms. In a thread it would take as long, since Python runs one at a time, and
   everything else would wait for the interpreter's switch interval again and again.

What waits is in memory in no order, so all of it is looked at: some 15 ms for 100,000 tasks. What is held or dead comes
sorted by time of enqueuing, so of that only a page is looked at unless it is to be sorted, or filtered, by due time.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_left, bisect_right
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

import trio

from trispool.backlog import Backlog, Running
from trispool.control import TaskSummary
from trispool.schedule import Waiting
from trispool.store import Aside
from trispool.task import TaskState

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from trispool.cursors import Key
    from trispool.ledger import Ledger
    from trispool.operating import TaskFilter
    from trispool.store import Shelf, SpoolStore
    from trispool.task import Entry

__all__ = ["UNFINISHED", "Batch", "Found", "Listable", "first_of", "state_of", "summary_of"]

UNFINISHED: Final = frozenset({TaskState.SCHEDULED, TaskState.READY, TaskState.RUNNING, TaskState.HELD, TaskState.DEAD})
"""The states that a task may leave again."""

_WAITING: Final = frozenset({TaskState.SCHEDULED, TaskState.READY})

_lock: Final[trio.lowlevel.RunVar[trio.Lock]] = trio.lowlevel.RunVar("trispool_looking_through")

_PART: Final = 500
"""Tasks looked at before others have their turn: 0.05 ms, or 1 ms if all of them have to be considered."""


class Listable(Protocol):
    """A spool, as far as lists are concerned."""

    @property
    def name(self) -> str: ...
    @property
    def backlog(self) -> Backlog: ...
    @property
    def store(self) -> SpoolStore: ...
    @property
    def ledger(self) -> Ledger: ...


class Found(NamedTuple):
    """An unfinished task, as it was when it was come across."""

    key: Key
    spool: Listable
    item: Waiting | Running | Aside


class Batch(NamedTuple):
    """The tasks that come first, in order.

    Attributes:
        found: The tasks.
        behind: The others come behind this key; None: there are no others.
    """

    found: list[Found]
    behind: Key | None


async def first_of(
    spools: Sequence[Listable],
    wanted: TaskFilter,
    states: Collection[TaskState],
    *,
    by_due: bool,
    descending: bool,
    after: Key | None,
    count: int,
) -> Batch:
    """The unfinished tasks that come first.

    Args:
        spools: Where to look.
        wanted: Which tasks; its `spool`, `state`, `handler` and `q` are not looked at.
        states: In which states.
        by_due: Sorted by the time they are due, else by that of enqueuing.
        descending: The last first.
        after: Only those behind this key.
        count: How many at most.

    Raises:
        SpoolUnavailable: What is held or dead cannot be read now.
    """
    best = _Best(wanted, states, by_due=by_due, descending=descending, after=after, count=count)
    for spool in spools:
        await _look_through(spool, best)
    return best.batch()


async def _look_through(spool: Listable, best: _Best) -> None:
    schedule = spool.backlog.schedule
    with schedule.noting() as put:
        if best.states & _WAITING:
            async with _turn():
                for part in _shuffled(_parts(schedule.slots)):
                    _glance(spool, part, best)
                    await trio.lowlevel.checkpoint()
        # They are looked at before what they may become meanwhile, and again when nothing changes any more.
        _consider_running(spool, best)
        if TaskState.HELD in best.states:
            await _look_along(spool, await spool.store.held(), TaskState.HELD, best)
        if TaskState.DEAD in best.states:
            await _look_along(spool, await spool.store.dead(), TaskState.DEAD, best)
        # From here on nothing changes. Those that were put meanwhile may have been missed.
        for waiting in [*schedule.odd(), *filter(None, map(schedule.get, put))]:
            best.consider(spool, waiting)
        _consider_running(spool, best)


def _consider_running(spool: Listable, best: _Best) -> None:
    for running in spool.backlog.running.values():
        best.consider(spool, running)


def _turn() -> trio.Lock:
    """One goes through a schedule at a time: of many, each would keep the loop for its slice, turn by turn."""
    try:
        return _lock.get()
    except LookupError:
        lock = trio.Lock()
        _lock.set(lock)
        return lock


def _parts(count: int) -> list[range]:
    """The parts of a range."""
    return [range(start, min(count, start + _PART)) for start in range(0, count, _PART)]


def _shuffled(parts: list[range]) -> list[range]:
    """In no order: if each task came before those that were looked at, all of them would have to be considered."""
    return random.sample(parts, len(parts))


def _glance(spool: Listable, slots: range, best: _Best) -> None:
    """Consider the tasks in some slots of the schedule that may be among the best."""
    schedule, by_due = spool.backlog.schedule, best.by_due
    # Of the two states: 0 is scheduled, 2 ready.
    unwanted = 0 if TaskState.SCHEDULED not in best.states else 2 if TaskState.READY not in best.states else -1
    (low, high), (due_low, due_high) = best.enqueued, best.due
    # Most parts have none that comes first, which is soon seen.
    values = schedule.column(slots.start, slots.stop, due=by_due)
    begin, end = best.due if by_due else best.enqueued
    if not values or max(values) < begin or min(values) > end:
        return
    likely = [
        (due_at if by_due else microseconds, slot)
        for slot, (due_at, microseconds, flags) in zip(slots, schedule.briefs(slots.start, slots.stop), strict=False)
        if low <= microseconds <= high and due_low <= due_at <= due_high and flags & 2 != unwanted
    ]
    likely.sort(reverse=best.descending)
    for value, slot in likely:
        if not best.may_take(value):
            break
        waiting = schedule.at(slot)
        if waiting is not None:
            best.consider(spool, waiting)


async def _look_along(spool: Listable, shelf: Shelf, state: TaskState, best: _Best) -> None:
    """Consider the tasks that lie aside, which are sorted by time of enqueuing."""
    by_due = best.by_due
    low, high = best.enqueued
    begin, end = bisect_left(shelf, low, key=_microseconds), bisect_right(shelf, high, key=_microseconds)
    parts = _parts(end - begin)
    for part in _shuffled(parts) if by_due else reversed(parts) if best.descending else parts:
        entries = shelf[begin + part.start : begin + part.stop]
        if not by_due and not best.may_take(_microseconds(entries[-1 if best.descending else 0])):
            break
        (low, high), (due_low, due_high) = best.enqueued, best.due
        likely = [
            (entry.at if by_due else entry.order[0], number)
            for number, entry in enumerate(entries)
            if low <= entry.order[0] <= high and due_low <= entry.at <= due_high
        ]
        likely.sort(reverse=best.descending)
        for value, number in likely:
            if not best.may_take(value):
                break
            best.consider(spool, Aside(state, entries[number]))
        await trio.lowlevel.checkpoint()


def _microseconds(entry: Entry) -> int:
    return entry.order[0]


class _Best:
    """The tasks that come first, of those that are considered.

    Attributes:
        enqueued: Between which two numbers of microseconds, or at one of them, a task must have been enqueued to be
            among them; what comes nearer to the end of the order makes it smaller. A first glance: `consider` is exact.
        due: The same for the time it is due, Unix seconds.
    """

    def __init__(
        self,
        wanted: TaskFilter,
        states: Collection[TaskState],
        *,
        by_due: bool,
        descending: bool,
        after: Key | None,
        count: int,
    ) -> None:
        self.states = frozenset(states)
        self.descending = descending
        self.by_due = by_due
        self._wanted = wanted
        self._after = after
        self._count = count
        self._found: dict[tuple[str, str], Found] = {}  # by spool and id
        self._last: Key | None = None  # of those that have been chosen when others were dropped
        self.due = (_or(wanted.due_after, -math.inf), _or(wanted.due_before, math.inf))
        # A microsecond more at both ends, since these have been rounded.
        self.enqueued = (
            _or(wanted.enqueued_after, -math.inf) * 1e6 - 1,
            _or(wanted.enqueued_before, math.inf) * 1e6 + 1,
        )
        if after is not None:
            self._narrow(after, is_begin=True)

    def _narrow(self, key: Key, *, is_begin: bool) -> None:
        (low, high), value = (self.due, key[0]) if self.by_due else (self.enqueued, key[1])
        window = (max(low, value), high) if is_begin is not self.descending else (low, min(high, value))
        if self.by_due:
            self.due = window
        else:
            self.enqueued = window

    def may_take(self, value: float) -> bool:
        """Whether one of this due time, or these microseconds, may be among them, and those that come behind it."""
        low, high = self.due if self.by_due else self.enqueued
        return value >= low if self.descending else value <= high

    def consider(self, spool: Listable, item: Waiting | Running | Aside) -> None:
        """Take this task if it is among them so far; what was known of it before counts no more."""
        entry, wanted = item.entry, self._wanted
        due_at = entry.at if isinstance(item, Aside) else item.due_at
        enqueued_at = entry.order[0] / 1e6
        key = (due_at if self.by_due else 0.0, *entry.order, spool.name, entry.id)
        if (spool.name, entry.id) in self._found:
            del self._found[spool.name, entry.id]
        if (
            state_of(item) not in self.states
            or (wanted.due_after is not None and due_at < wanted.due_after)
            or (wanted.due_before is not None and due_at >= wanted.due_before)
            or (wanted.enqueued_after is not None and enqueued_at < wanted.enqueued_after)
            or (wanted.enqueued_before is not None and enqueued_at >= wanted.enqueued_before)
            or (self._after is not None and not self._comes_before(self._after, key))
            or (self._last is not None and self._comes_before(self._last, key))
        ):
            return
        self._found[spool.name, entry.id] = Found(key, spool, item)
        if len(self._found) >= 2 * self._count + 16:
            self._choose()

    def _comes_before(self, first: Key, second: Key) -> bool:
        return first > second if self.descending else first < second

    def _choose(self) -> list[Found]:
        chosen = self._in_order()[: self._count]
        self._found = {(found.spool.name, found.item.entry.id): found for found in chosen}
        self._last = chosen[-1].key
        self._narrow(self._last, is_begin=False)
        return chosen

    def _in_order(self) -> list[Found]:
        # Of a few runs that are sorted: this takes a fifth of the time that a heap does.
        return sorted(self._found.values(), key=_key_of, reverse=self.descending)

    def batch(self) -> Batch:
        """These tasks."""
        found = self._choose() if len(self._found) > self._count else self._in_order()
        return Batch(found, self._last)


def _key_of(found: Found) -> Key:
    return found.key


def _or(value: float | None, default: float) -> float:
    return default if value is None else value


def state_of(item: Waiting | Running | Aside) -> TaskState:
    """The state of an unfinished task."""
    if isinstance(item, Waiting):
        return TaskState.READY if item.is_ready else TaskState.SCHEDULED
    return TaskState.RUNNING if isinstance(item, Running) else item.state


def summary_of(spool: Listable, item: Waiting | Running | Aside, last: TaskSummary | None = None) -> TaskSummary:
    """An unfinished task as a row of a list.

    Args:
        spool: Its spool.
        item: The task.
        last: The same as its last attempt left it, if the history knows it.
    """
    entry, backlog = item.entry, spool.backlog
    state = state_of(item)
    running = item if isinstance(item, Running) else None
    attempts, error = backlog.attempts(entry.id), backlog.last_error(entry.id)
    if last is not None and isinstance(item, Aside):
        attempts, error = attempts or last.attempts, error or last.last_error
    return TaskSummary(
        id=entry.id,
        spool=spool.name,
        state=state,
        at=entry.at if isinstance(item, Aside) else item.due_at,
        # Where a dead one lies does not tell its priority.
        priority=last.priority if last and state is TaskState.DEAD else entry.priority,
        enqueued_at=entry.order[0] / 1e6,
        attempts=running.attempt if running else attempts,
        last_error=error,
        finished_at=last.finished_at if last and state is TaskState.DEAD else None,
        run_seconds=last.run_seconds if last and state is TaskState.DEAD else None,
        progress=running.progress if running else None,
        handler=last.handler if last else None,
    )
