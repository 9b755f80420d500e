"""What happened in some stretch of time, as counts: of ten seconds, of the last hour, since the start. Pure.

Times are Unix seconds, lengths of time seconds.
"""

from __future__ import annotations

from collections import defaultdict, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

from trispool.histogram import Histogram

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "FAILED",
    "SLOT_SECONDS",
    "Flow",
    "HandlerFigures",
    "LedgerStatistics",
    "Rates",
    "Record",
    "Tally",
    "per_second",
]

SLOT_SECONDS: Final = 10
"""A slot of the series."""

LONG_SLOTS: Final = 30
"""So many of them are one long slot, five minutes, …"""

LONG_SLOTS_KEPT: Final = 12
"""… and so many of those, the present one included, are what is called the last hour: 55 to 60 minutes."""

RECENT_SLOTS: Final = 6

FAILED: Final = frozenset({"failed", "timeout", "lost", "set_aside"})
"""Outcomes that went wrong. (`retry` and `ignore` are what a handler wanted.)"""


class Flow(NamedTuple):
    """How many tasks came, were handed to a worker, ended an attempt, and ended it badly."""

    enqueued: float
    started: float
    ended: float
    failed: float


class Tally:
    """What happened in some stretch of time.

    Attributes:
        enqueued: Tasks that came; of a handler 0, as who runs a task is known when it has run.
        started: Tasks that were handed to a worker; of a handler 0.
        outcomes: Attempts, by how they ended.
        dead: Tasks that were given up.
        queue: From the moment they were due to their start.
        run: How long they ran.
    """

    __slots__ = ("dead", "enqueued", "outcomes", "queue", "run", "started")

    def __init__(self) -> None:
        self.enqueued = 0
        self.started = 0
        self.dead = 0
        self.outcomes: defaultdict[str, int] = defaultdict(int)
        self.queue = Histogram()
        self.run = Histogram()

    def add(self, other: Tally) -> None:
        """Count all that another one has."""
        self.enqueued += other.enqueued
        self.started += other.started
        self.dead += other.dead
        for outcome, count in other.outcomes.items():
            self.outcomes[outcome] += count
        self.queue.add(other.queue)
        self.run.add(other.run)

    def subtract(self, other: Tally) -> None:
        """Forget what another one has, all of which was added before."""
        self.enqueued -= other.enqueued
        self.started -= other.started
        self.dead -= other.dead
        for outcome, count in other.outcomes.items():
            self.outcomes[outcome] -= count
            if not self.outcomes[outcome]:
                del self.outcomes[outcome]
        self.queue.subtract(other.queue)
        self.run.subtract(other.run)

    def copy(self) -> Tally:
        """One that no longer changes."""
        copied = Tally()
        copied.enqueued = self.enqueued
        copied.started = self.started
        copied.dead = self.dead
        copied.outcomes = self.outcomes.copy()
        copied.queue = self.queue.copy()
        copied.run = self.run.copy()
        return copied

    def flow(self) -> Flow:
        """The counts alone."""
        failed = sum(count for outcome, count in self.outcomes.items() if outcome in FAILED)
        return Flow(self.enqueued, self.started, sum(self.outcomes.values()), failed)


class Rates(NamedTuple):
    """How many a second, over the last ten seconds, the last minute and the last hour."""

    ten_seconds: Flow
    minute: Flow
    hour: Flow


@dataclass(frozen=True, slots=True)
class HandlerFigures:
    """One handler, or all of a spool together.

    Attributes:
        name: Its whole name; empty: the handler is not known, `OTHER`: those beyond `MAX_HANDLERS`.
        total: Since the start.
        hour: Of the last hour.
        rates: A second; of a handler `enqueued` and `started` are 0.
    """

    name: str
    total: Tally
    hour: Tally
    rates: Rates


class Record:
    """What is kept of a handler, or of all of them together, up to the end of the last slot."""

    def __init__(self) -> None:
        self.total = Tally()
        self.hour = Tally()
        self._long: deque[tuple[int, Tally]] = deque()
        self._recent: deque[tuple[int, Flow]] = deque(maxlen=RECENT_SLOTS)

    def add(self, number: int, tally: Tally) -> None:
        """Take what happened in a slot that is over; from now on `tally` is ours."""
        self.expire(number)
        self.total.add(tally)
        self.hour.add(tally)
        self._recent.append((number, tally.flow()))
        long_number = number // LONG_SLOTS
        if self._long and self._long[-1][0] == long_number:
            self._long[-1][1].add(tally)
        else:
            self._long.append((long_number, tally))

    def expire(self, number: int) -> None:
        """Forget what is more than an hour ago in the slot of that number."""
        oldest = number // LONG_SLOTS - LONG_SLOTS_KEPT + 1
        while self._long and self._long[0][0] < oldest:
            self.hour.subtract(self._long.popleft()[1])

    def forget_when(self) -> None:
        """Keep the totals only: the clock was set, so nobody knows how long ago the rest was."""
        self.hour = Tally()
        self._long.clear()
        self._recent.clear()

    def figures(self, name: str, current: Tally, now: float, since: float) -> HandlerFigures:
        """Everything.

        Args:
            name: Of the handler.
            current: What has happened in the present slot.
            now: Unix seconds.
            since: When counting began, or the clock was set; rates are of no longer time.
        """
        self.expire(int(now // SLOT_SECONDS))
        total, hour = self.total.copy(), self.hour.copy()
        total.add(current)
        hour.add(current)
        uptime = max(1.0, now - since)
        long_seconds = LONG_SLOTS * SLOT_SECONDS
        hour_seconds = now % long_seconds + (LONG_SLOTS_KEPT - 1) * long_seconds
        rates = Rates(
            ten_seconds=self._rate(1, current, now, uptime),
            minute=self._rate(RECENT_SLOTS, current, now, uptime),
            hour=per_second([hour.flow()], min(hour_seconds, uptime)),
        )
        return HandlerFigures(name, total, hour, rates)

    def _rate(self, slots: int, current: Tally, now: float, uptime: float) -> Flow:
        number, into = divmod(now, SLOT_SECONDS)
        flows = [current.flow()]
        for then, flow in self._recent:
            age = int(number) - then
            if age < slots:
                flows.append(flow)
            elif age == slots:
                # Of the oldest slot as much counts as still belongs to the time that is asked for.
                flows.append(Flow(*(count * (1 - into / SLOT_SECONDS) for count in flow)))
        return per_second(flows, min(slots * SLOT_SECONDS, uptime))


def per_second(flows: Sequence[Flow], seconds: float) -> Flow:
    """How many a second, if so many were in so long a time."""
    return Flow(*(sum(counts) / seconds for counts in zip(*flows, strict=True)))


@dataclass(slots=True)
class LedgerStatistics:
    """Since the start: rows written, rows that disk or SQLite did not take, and commits that failed or took so long."""

    written: int = 0
    dropped: int = 0
    failed_commits: int = 0
    commits: Histogram = field(default_factory=Histogram)
