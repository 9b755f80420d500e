"""What senders were told, what handlers did, when processes were killed: which promises were kept, and which were not.

- What was acknowledged has run to its end, at least once, whole.
- What ran had been sent, was not refused, and ran no earlier than it was to.
- What ran well ran again only if it was in flight when its process, or the service, was killed.
- It never ran twice at the same time, and was never enqueued twice.
- The history has each task that ran well once as done; it may lack one that was in flight at a kill.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from tests.faults.load import Answer
from tests.faults.runs import End

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from tests.faults.load import Sent
    from tests.faults.runs import Run

IN_FLIGHT_SECONDS: Final = 0.5
"""What ended so shortly before a kill may not have been on record yet: milliseconds, on a machine that does little
else. How long it was at most is one of the figures."""

ROUNDING_SECONDS: Final = 1e-6
"""The clock and the time of a file are floating point numbers somewhere."""


@dataclass(frozen=True, slots=True)
class Kill:
    """A process that was killed.

    Attributes:
        at: On the monotonic clock, just before.
        life: Which of the services that ran in turn, or whose worker.
        worker: The worker's process id; None: it was the service, and all its workers with it.
    """

    at: float
    life: int
    worker: int | None = None


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that the outside saw.

    Attributes:
        sent: Every task that was sent, by its number.
        runs: Every call of a handler.
        kills: Every process that was killed.
        history: How often the history says that a task is done, by its id.
        left: Files of tasks that are still there, or were set aside, at the end.
    """

    sent: Mapping[int, Sent]
    runs: Sequence[Run]
    kills: Sequence[Kill]
    history: Mapping[str, int]
    left: Sequence[str] = ()


@dataclass(slots=True)
class Verdict:
    """What was found."""

    sent: int = 0
    acknowledged: int = 0
    lost: int = 0
    calls: int = 0
    twice: int = 0
    """Calls more than it took, all of them of tasks that were in flight at a kill or else violations."""
    missing: int = 0
    """Tasks that ran well and that the history does not have."""
    in_flight: float = 0.0
    """The longest time between the end of a call and the kill for which it was called again, seconds."""
    violations: list[str] = field(default_factory=list)

    def add(self, other: Verdict) -> None:
        """Put another one, of other tasks, to this one."""
        self.sent += other.sent
        self.acknowledged += other.acknowledged
        self.lost += other.lost
        self.calls += other.calls
        self.twice += other.twice
        self.missing += other.missing
        self.in_flight = max(self.in_flight, other.in_flight)
        self.violations += other.violations

    def figures(self) -> dict[str, int | float]:
        """As the columns of a table."""
        return {
            "sent": self.sent,
            "acknowledged": self.acknowledged,
            "lost": self.lost,
            "handler calls": self.calls,
            "run twice": self.twice,
            "in flight at most, ms": self.in_flight * 1000,
            "not in the history": self.missing,
        }


def judge(evidence: Evidence) -> Verdict:
    """See the module."""
    acknowledged = sum(task.answer is Answer.ACKNOWLEDGED for task in evidence.sent.values())
    verdict = Verdict(sent=len(evidence.sent), acknowledged=acknowledged, calls=len(evidence.runs))
    kills = _Kills(evidence.kills)
    by_number: defaultdict[int, list[Run]] = defaultdict(list)
    for run in sorted(evidence.runs, key=lambda run: run.started):
        by_number[run.number].append(run)
    for number, runs in by_number.items():
        task = evidence.sent.get(number)
        if task is None:
            verdict.violations.append(f"task {number} ran and had not been sent")
        else:
            verdict.violations += _against(number, task, runs)
        _look_for_twice(number, runs, kills, verdict)
    for number, task in evidence.sent.items():
        if task.answer is Answer.ACKNOWLEDGED and not any(run.end is End.OK for run in by_number.get(number, ())):
            verdict.lost += 1
            verdict.violations.append(f"task {number} ({task.way}) was acknowledged and has not run to its end")
    _look_at_history(evidence, by_number, kills, verdict)
    verdict.violations += [f"{name} is left" for name in evidence.left]
    return verdict


class _Kills:
    """When processes were killed."""

    def __init__(self, kills: Iterable[Kill]) -> None:
        self._at = {(kill.life, kill.worker): kill.at for kill in kills}

    def of(self, run: Run) -> float | None:
        """When the process of a run was killed, or the service that it belonged to."""
        found = [self._at.get((run.life, run.worker)), self._at.get((run.life, None))]
        times = [at for at in found if at is not None]
        return min(times) if times else None

    def caught(self, run: Run) -> bool:
        """Whether a run was in flight then: it may not have been on record."""
        at = self.of(run)
        return at is not None and (not run.ended or at - run.ended < IN_FLIGHT_SECONDS)


def _against(number: int, task: Sent, runs: Sequence[Run]) -> list[str]:
    found = []
    if task.answer is Answer.REFUSED:
        found.append(f"task {number} ({task.way}) was refused and ran")
    if len({run.task for run in runs}) > 1:
        found.append(f"task {number} ({task.way}) was enqueued twice: {sorted({run.task for run in runs})}")
    if (early := task.at - min(run.started_at for run in runs)) > ROUNDING_SECONDS:
        found.append(f"task {number} ({task.way}) ran {early:.6f} s early")
    if any(run.end is End.TORN for run in runs):
        found.append(f"task {number} ({task.way}) was not what had been sent")
    return found


def _look_for_twice(number: int, runs: Sequence[Run], kills: _Kills, verdict: Verdict) -> None:
    for run, following in zip(runs, [*runs[1:], None], strict=True):
        killed = kills.of(run)
        if not run.ended and killed is None:
            verdict.violations.append(f"task {number}: a call never ended, and nobody killed it")
        if following is None:
            break
        if following.started < (run.ended or killed or run.started):
            verdict.violations.append(f"task {number} ran twice at the same time")
        elif kills.caught(run):
            if run.end is not End.AGAIN:
                verdict.twice += 1
            if run.ended and killed is not None and run.end is not End.AGAIN:
                verdict.in_flight = max(verdict.in_flight, killed - run.ended)
        elif run.end is not End.AGAIN:
            verdict.twice += 1
            since = "" if killed is None else f", {killed - run.ended:.3f} s before a kill"
            verdict.violations.append(f"task {number} ran well{since}, and was run again")
        elif following.attempt and following.attempt <= run.attempt:
            verdict.violations.append(f"task {number}: attempt {run.attempt} failed, and then came {following.attempt}")


def _look_at_history(
    evidence: Evidence, by_number: Mapping[int, Sequence[Run]], kills: _Kills, verdict: Verdict
) -> None:
    ran_well: dict[str, list[Run]] = defaultdict(list)
    for runs in by_number.values():
        for run in runs:
            if run.end is End.OK:
                ran_well[run.task].append(run)
    for task, runs in ran_well.items():
        if not evidence.history.get(task):
            verdict.missing += 1
            if not any(kills.caught(run) for run in runs):
                verdict.violations.append(f"{task} ran well, and the history does not know it")
    for task, count in Counter(evidence.history).items():
        if count > 1:
            verdict.violations.append(f"{task} is in the history {count} times as done")
        if count and task not in ran_well:
            verdict.violations.append(f"{task} is in the history as done, and has not run well")
