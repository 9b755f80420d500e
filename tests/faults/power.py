"""Power cuts: what a real service and its workers did to their files is traced, and disks are made of it.

`tests.faults.disk` says what may be on a disk when the power goes at some moment. A real service is started on it, and
`tests.faults.powerjudge` holds what it finds and runs against what had been acknowledged until that moment.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Final, NamedTuple

from tests.faults.disk import CHOICES, Choice, History
from tests.faults.figures import Outcome
from tests.faults.powerjudge import Promises, Verdict
from tests.faults.powerrun import Disk, replayed, take_trace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from tests.faults.powerrun import Trace
    from tests.faults.tracing import Call

TRACES: Final = 10
"""Of each way to keep tasks, at scale 1."""

DISKS_A_CHOICE: Final = 10
"""Of each trace."""

TASKS: Final = 75
"""In each half of a trace, batches counted as one."""

DISKS_AT_ONCE: Final = 40
"""Each is a spool, with a worker, of one service: to start a service costs as much as to judge ten disks."""

WAYS: Final = (("rows first", False), ("files at once", True))
"""How tasks are kept: by a service that runs them itself, or that leaves them to others (`external`)."""


LOSSES: Final = 3
"""Disks to see that each of `LOST` is found."""

LOOKED_AT: Final = 20
"""Moments, to find them."""

SEEN: Final = "without any sync of "
"""How the rows of `LOST` begin."""


class Lost(NamedTuple):
    """Syncs that are taken out of a trace, to see that the judge finds it."""

    what: str
    is_lost: Callable[[Call, str], bool]
    choice: Choice
    external: bool


LOST: Final = (
    Lost("the database's log", lambda _, path: path.endswith(".db-wal"), CHOICES[0], False),
    Lost(
        "files, before they have a name",
        lambda _, path: "/.trispool/tmp" in path,
        CHOICES[2],
        True,
    ),
    Lost("folders", lambda _, path: path.endswith(("/spool", "/0", "/1", "/2", "/3")), CHOICES[0], True),
)


class Planned(NamedTuple):
    """A power cut."""

    row: str
    promises: Promises
    history: History
    cut: int
    choice: Choice
    seed: int

    @property
    def disk(self) -> Disk:
        content = self.history.disk(self.cut, self.choice, Random(self.seed))
        # Nobody waits for what is meant to be lost.
        return Disk(content, set() if self.row.startswith(SEEN) else self.promises.awaited(self.cut))


@dataclass
class Row:
    """A row of the table in the making."""

    tried: int = 0
    bad: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class PowerCut:
    """The scenario."""

    title: str = "Power cuts"
    promise: str = (
        'With `durability = "fsync"` what was acknowledged is there after a power cut at any moment, whatever of that'
        " which was not synced has reached the disk, in whatever order and in whatever parts; no part of a task runs."
    )

    def run(self, scale: float, folder: Path, random: Random) -> list[Outcome]:
        """See `Scenario`."""
        rows: dict[str, Row] = {}
        replays = folder / "replays"
        replays.mkdir()
        for number in range(max(1, round(TRACES * scale))):
            for way, external in WAYS:
                place = folder / f"trace{number}-{external}"
                place.mkdir()
                # A short run starts the second one once: each start costs seconds.
                times = 1 if external and scale < 0.05 else 2
                tasks = max(15, round(TASKS * min(1, scale * 5)))
                trace = take_trace(place, random, external=external, tasks=tasks, times=times)
                planned = [*_plan(trace, way, max(1, round(DISKS_A_CHOICE * min(1, scale * 10))), random)]
                if number == 0:
                    planned += _plan_losses(trace, external, random)
                for start in range(0, len(planned), DISKS_AT_ONCE):
                    _replay(planned[start : start + DISKS_AT_ONCE], replays, rows)
        return [_outcome(name, row) for name, row in rows.items()]


def _plan(trace: Trace, way: str, disks: int, random: Random) -> Iterator[Planned]:
    promises = Promises(trace.calls, trace.sent)
    history = History(trace.calls, trace.root)
    for choice in CHOICES:
        for _ in range(disks):
            cut = _moment(promises, history, random)
            yield Planned(f"{way}: {choice.name}", promises, history, cut, choice, random.getrandbits(64))


def _moment(promises: Promises, history: History, random: Random) -> int:
    """A moment at which the power goes: often just when something has been promised, or is being synced."""
    match random.randrange(4):
        case 0 | 1:
            return random.choice(promises.moments) + 1
        case 2:
            return random.choice(random.choice(history.syncs)) + 1
        case _:
            return random.randrange(history.end)


def _plan_losses(trace: Trace, external: bool, random: Random) -> Iterator[Planned]:
    promises = Promises(trace.calls, trace.sent)
    kept = History(trace.calls, trace.root)
    for lost in LOST:
        if lost.external == external:
            history = History(trace.calls, trace.root, lost.is_lost)

            def missing(cut: int, lost: Lost = lost, history: History = history) -> int:
                return _size(kept, cut, lost.choice) - _size(history, cut, lost.choice)

            # Just when something has been promised, and where most is missing: a later sync of another kind, as that
            # of the whole file system, may have made up for it.
            some = random.sample(promises.moments, min(LOOKED_AT, len(promises.moments)))
            for cut in sorted((moment + 1 for moment in some), key=missing)[-LOSSES:]:
                yield Planned(f"{SEEN}{lost.what}", promises, history, cut, lost.choice, random.getrandbits(64))


def _size(history: History, cut: int, choice: Choice) -> int:
    return sum(len(laid.content or b"") for laid in history.disk(cut, choice, Random(0)) if laid.same is None)


def _replay(planned: Sequence[Planned], folder: Path, rows: dict[str, Row]) -> None:
    found = replayed(folder, [one.disk for one in planned])
    if any(isinstance(one, str) for one in found) and len(planned) > 1:
        # One disk on which no service runs is not to hide what the others have.
        for one in planned:
            _replay([one], folder, rows)
        return
    for one, what in zip(planned, found, strict=True):
        row = rows.setdefault(one.row, Row())
        verdict = Verdict([what]) if isinstance(what, str) else one.promises.judge(one.cut, what)
        row.tried += 1
        row.bad += bool(verdict.violations)
        row.counts += verdict.counts
        row.violations += [f"{text} (cut {one.cut}, seed {one.seed})" for text in verdict.violations]


def _outcome(name: str, row: Row) -> Outcome:
    figures: dict[str, int | float | str] = {
        "acknowledged": row.counts["acknowledged"],
        "of these to be kept": row.counts["to be kept"],
        "bad disks": row.bad,
        "ended, ran again": row.counts["ended, ran again"],
        "parts set aside": row.counts["set aside"],
        "operator's acts": row.counts["operator's acts"],
        "of these undone": row.counts["of these undone"],
    }
    if name.startswith(SEEN):
        # This has to be seen: the judge is blind otherwise.
        return Outcome(name, row.tried, figures, [] if row.bad else ["nothing was found to be lost"])
    return Outcome(name, row.tried, figures, row.violations)


SCENARIO: Final = PowerCut()
