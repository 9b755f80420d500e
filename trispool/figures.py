"""What happens in one spool, counted: by handler and outcome, since the start and in the last hour, with its times.

Rules it keeps:

1. What a task costs here does not depend on how many there were. Counts go into the tally of the present slot of ten
   seconds; when a slot is over, the tallies of the handlers that ran in it are folded into longer ones.
2. Memory is bounded: `MAX_HANDLERS` handlers, 360 slots of ten seconds for the spool, and for each handler that runs
   twelve tallies of five minutes.
3. Who watches single tasks is told of at most so many of them; while nobody does, no task costs anything for it.

Pure but for the clock that it is given. Times are Unix seconds, lengths of time seconds.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from typing import TYPE_CHECKING, Final, NamedTuple

from trispool.histogram import Histogram
from trispool.tally import SLOT_SECONDS, Flow, HandlerFigures, Record, Tally, per_second
from trispool.task import TaskState

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from trispool.backlog import Running
    from trispool.task import AttemptRow, Entry

__all__ = ["MAX_HANDLERS", "OTHER", "SERIES_SLOTS", "Figures", "Slot", "SpoolFigures"]

SERIES_SLOTS: Final = 360
"""So many slots of ten seconds are kept: an hour."""

MAX_HANDLERS: Final = 200
"""Further ones are counted together, as `OTHER`: each is some forty lines of metrics, and 10 kB here when it runs."""

OTHER: Final = "other"

_NOT_RUN: Final = "set_aside"
"""The outcome of what was no task: it has no times."""

_kind_of: Final = attrgetter("handler", "outcome")


class Slot(NamedTuple):
    """Ten seconds of a spool; slots in which nothing happened are left out.

    Attributes:
        number: Of the slot: its beginning in Unix seconds, divided by `SLOT_SECONDS`.
        flow: Counts.
        queue_p50: Median and 95th percentile of the time that tasks waited after they were due, or None: none did.
        run_p50: The same of the time that they ran.
    """

    number: int
    flow: Flow
    queue_p50: float | None
    queue_p95: float | None
    run_p50: float | None
    run_p95: float | None


@dataclass(frozen=True, slots=True)
class SpoolFigures:
    """Everything that is counted of a spool, at a moment; nothing of it changes any more.

    Attributes:
        at: When.
        since: When counting began.
        all: All handlers together.
        handlers: Those that have run something since, by name.
        series: The last hour, the oldest slot first, without the slot that is under way.
        scans: How long full scans took, since then.
        commits: How long tasks that came waited to be kept, since then; those that came together count once.
    """

    at: float
    since: float
    all: HandlerFigures
    handlers: Sequence[HandlerFigures]
    series: Sequence[Slot]
    scans: Histogram
    commits: Histogram


class Figures:
    """See the module. It is the dispatcher's watcher; one per spool, with one owner, so it needs no lock.

    Args:
        clock: Unix seconds.

    Attributes:
        scans: For the scanner: how long full scans take.
        commits: For who keeps tasks: how long that takes.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.scans = Histogram()
        self.commits = Histogram()
        self._clock = clock
        self._since = self._steady_since = clock()
        self._number = int(self._since // SLOT_SECONDS)
        self._set_slot()
        self._enqueued = 0
        self._started = 0
        self._current: dict[str | None, Tally] = {}
        self._records: dict[str, Record] = {}
        self._all = Record()
        self._series: deque[Slot] = deque(maxlen=SERIES_SLOTS)
        # Of single tasks, while somebody watches; and how many more there were.
        self._changes: dict[str, TaskState] | None = None
        self._room = 0
        self._more = 0

    # What the dispatcher says; see `trispool.workforce.Watcher`

    def enqueued(self, entries: Sequence[Entry]) -> None:
        """Tasks came."""
        now = self._clock()
        if not self._begins <= now < self._ends:
            self._turn(now)
        self._enqueued += len(entries)
        if self._changes is not None:
            for entry in entries:
                self._note(entry.id, TaskState.SCHEDULED if entry.at > now else TaskState.READY)

    def started(self, taken: Sequence[Running]) -> None:
        """Tasks were handed to a worker."""
        now = self._clock()
        if not self._begins <= now < self._ends:
            self._turn(now)
        self._started += len(taken)
        if self._changes is not None:
            for running in taken:
                self._note(running.entry.id, TaskState.RUNNING)

    def ended(self, rows: Sequence[AttemptRow], state: TaskState) -> None:
        """Attempts have ended; the tasks are in that state now."""
        now = self._clock()
        if not self._begins <= now < self._ends:
            self._turn(now)
        for (handler, outcome), alike in groupby(rows, _kind_of):
            group = [*alike]
            tally = self._current.get(handler) or self._tally(handler)
            tally.outcomes[outcome] += len(group)
            if outcome != _NOT_RUN:
                tally.queue.observe_all([row.queue_seconds for row in group])
                tally.run.observe_all([row.run_seconds for row in group])
            if state is TaskState.DEAD:
                tally.dead += len(group)
        if self._changes is not None:
            for row in rows:
                self._note(row.task, state)

    def changed(self, task_id: str, state: TaskState) -> None:
        """An operator has brought a task into that state."""
        if self._changes is not None:
            self._note(task_id, state)

    # Who watches single tasks

    def watch(self, limit: int) -> None:
        """Keep, from now on, what becomes of tasks, for at most so many of them between two calls of `take_changes`."""
        if self._changes is None:
            self._changes = {}
        self._room = limit

    def stop_watching(self) -> None:
        """Keep nothing of single tasks."""
        self._changes = None
        self._more = 0

    def take_changes(self) -> tuple[Mapping[str, TaskState], int]:
        """What became of tasks since the last call: the state of each now, and how many changes are not told."""
        if self._changes is None:
            return {}, 0
        taken, self._changes = self._changes, {}
        more, self._more = self._more, 0
        return taken, more

    def _note(self, task_id: str, state: TaskState) -> None:
        changes = self._changes
        assert changes is not None
        if task_id in changes or len(changes) < self._room:
            changes[task_id] = state
        else:
            self._more += 1

    # Who reads

    def snapshot(self) -> SpoolFigures:
        """Everything that is counted, to be looked at in any thread."""
        now = self._clock()
        if not self._begins <= now < self._ends:
            self._turn(now)
        present = self._present()
        nothing = Tally()
        handlers = [
            record.figures(name, self._current.get(name or None, nothing), now, self._steady_since)
            for name, record in sorted(self._records.items())
        ]
        everything = self._all.figures("", present, now, self._steady_since)
        oldest = self._number - SERIES_SLOTS
        series = [slot for slot in self._series if slot.number >= oldest]
        return SpoolFigures(now, self._since, everything, handlers, series, self.scans.copy(), self.commits.copy())

    def rates(self) -> Flow:
        """How many a second in the last ten seconds; cheaper than `snapshot`."""
        now = self._clock()
        if not self._begins <= now < self._ends:
            self._turn(now)
        flows = [self._present().flow()]
        part = 1 - (now - self._begins) / SLOT_SECONDS
        if self._series and self._series[-1].number == self._number - 1:
            flows.append(Flow(*(count * part for count in self._series[-1].flow)))
        return per_second(flows, min(SLOT_SECONDS, max(1.0, now - self._steady_since)))

    # Inside

    def _tally(self, handler: str | None) -> Tally:
        """The tally of the present slot for a handler."""
        name = handler or ""
        if name not in self._records:
            if len(self._records) >= MAX_HANDLERS:
                name = OTHER
            self._records.setdefault(name, Record())
        return self._current.setdefault(name or None, Tally())

    def _present(self) -> Tally:
        """All handlers' counts of the present slot."""
        present = Tally()
        for tally in self._current.values():
            present.add(tally)
        present.enqueued = self._enqueued
        present.started = self._started
        return present

    def _set_slot(self) -> None:
        self._begins = self._number * SLOT_SECONDS
        self._ends = self._begins + SLOT_SECONDS

    def _turn(self, now: float) -> None:
        """End the present slot: `now` is in another one."""
        number = int(now // SLOT_SECONDS)
        present = self._present()
        flow = present.flow()
        if any(flow):
            self._series.append(
                Slot(
                    self._number,
                    flow,
                    *present.queue.percentiles(0.5, 0.95),
                    *present.run.percentiles(0.5, 0.95),
                )
            )
            self._all.add(self._number, present)
            for handler, tally in self._current.items():
                self._records[handler or ""].add(self._number, tally)
            self._current.clear()
            self._enqueued = self._started = 0
        if number < self._number:
            # The clock was set back. Slots of the future would be told as the past for as long as it was set.
            self._series.clear()
            self._steady_since = now
            for record in (self._all, *self._records.values()):
                record.forget_when()
        self._number = number
        self._set_slot()
