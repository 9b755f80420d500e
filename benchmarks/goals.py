"""What trispool is to reach, and what it has: a table out of the figures of several benchmarks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from benchmarks import draining, lateness, million
from benchmarks.batches import BATCHES
from benchmarks.latency import CPU, IDLE, P99
from benchmarks.peers.contenders import PEERS, Peer
from benchmarks.peers.ours import COUNTED
from benchmarks.report import RUN, shown
from benchmarks.servers import Kind

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from benchmarks.report import Measure, Result

__all__ = ["GOALS", "Goal", "lines"]

UWSGI, OS, FSYNC = (kind.value for kind in (Kind.UWSGI, Kind.OS, Kind.FSYNC))


@dataclass(frozen=True, slots=True)
class Goal:
    """One aim.

    Attributes:
        aim: In words.
        benchmark: Whose figures it needs.
        reached: The figure; None: it has not been taken.
        limit: What it is to reach.
        unit: Of both.
        more: Whether it is to be at least the limit, and not at most.
    """

    aim: str
    benchmark: str
    reached: Callable[[Result], float | None]
    limit: float
    unit: str
    more: bool = False

    def line(self, results: Mapping[str, Result]) -> str:
        """Its line of the table."""
        result = results.get(self.benchmark)
        figure = None if result is None else self.reached(result)
        bound = f"at {'least' if self.more else 'most'} {shown(self.limit)} {self.unit}"
        if figure is None:
            return f"| {self.aim} | {bound} | not measured | |"
        kept = figure >= self.limit if self.more else figure <= self.limit
        return f"| {self.aim} | {bound} | {shown(figure)} {self.unit} | {'yes' if kept else '**no**'} |"


def lines(results: Mapping[str, Result]) -> list[str]:
    """The table in Markdown."""
    return ["| aim | | reached | |", "| --- | --- | --- | --- |", *(goal.line(results) for goal in GOALS)]


def _figure(measure: Measure, who: str = OS) -> Callable[[Result], float | None]:
    return lambda result: result.median(measure.name, who)


def _times(name: str, one: str, other: str, *, less: bool = False) -> Callable[[Result], float | None]:
    """How many times as much one has as another, or as little."""

    def ratio(result: Result) -> float | None:
        ours, theirs = result.median(name, one), result.median(name, other)
        if ours is None or theirs is None:
            return None
        above, below = (theirs, ours) if less else (ours, theirs)
        return above / below if below else float("inf")

    return ratio


def _best_of(peers: Sequence[Peer]) -> Callable[[Result], float | None]:
    """How many times as many tasks the line that counts runs in a second as the best of these."""

    def ratio(result: Result) -> float | None:
        rates = [rate for peer in peers if (rate := result.median(RUN.name, peer.name)) is not None]
        ours = result.median(RUN.name, COUNTED)
        return ours / max(rates) if rates and ours is not None else None

    return ratio


GOALS: Final = (
    Goal(
        'enqueue by Unix socket, on disk before the answer ("fsync"), against uWSGI, which does not sync',
        "enqueue",
        _times("Unix socket: enqueued", FSYNC, UWSGI),
        1.5,
        "×",
        more=True,
    ),
    Goal("the same by TCP socket", "enqueue", _times("TCP socket: enqueued", FSYNC, UWSGI), 1.5, "×", more=True),
    Goal(
        f'enqueue by HTTP, {BATCHES}, on disk before the answer ("fsync")',
        "http",
        lambda result: result.median(f"{BATCHES}: enqueued", FSYNC),
        15_000,
        "tasks/s",
        more=True,
    ),
    Goal("drain, with history, against uWSGI", "drain", _times(draining.RATE.name, OS, UWSGI), 1, "×", more=True),
    Goal("start of a task on an idle server, p99", "latency", _figure(P99), 1, "ms"),
    Goal("the same beside 100,000 scheduled tasks", "scheduled", _figure(P99), 2, "ms"),
    Goal("the same beside 1,000,000", "million", _figure(P99), 2, "ms"),
    Goal(
        "CPU a task beside 100,000 scheduled tasks, against uWSGI",
        "scheduled",
        _times(CPU.name, OS, UWSGI, less=True),
        100,
        "times less",
        more=True,
    ),
    Goal("lateness of `at`, p99", "at", _figure(lateness.P99), 5, "ms"),
    Goal("tasks that start before their `at`", "at", _figure(lateness.EARLY), 0, "tasks"),
    Goal(
        f"end to end, {COUNTED}, against the best of the other queues, synced or not",
        "peers",
        _best_of(PEERS),
        5,
        "×",
        more=True,
    ),
    Goal(
        "the same against the best of those that are on disk before the answer, too",
        "peers",
        _best_of([peer for peer in PEERS if peer.synced]),
        5,
        "×",
        more=True,
    ),
    Goal(
        "from exec to the start of a task, with 1,000,000 scheduled tasks", "million", _figure(million.FIRST), 10, "s"
    ),
    Goal("from exec until all of them are known", "million", _figure(million.KNOWN), 10, "s"),
    Goal("memory with 1,000,000 scheduled tasks", "million", _figure(million.MEMORY), 400, "MB"),
    Goal("CPU of an idle server with 100,000 waiting tasks", "rest", _figure(IDLE), 10, IDLE.unit),
    Goal("the same with 1,000,000", "million", _figure(IDLE), 10, IDLE.unit),
)
