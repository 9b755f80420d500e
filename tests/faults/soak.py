"""An hour of mixed load: what a service and its workers hold, memory, descriptors, threads, history, does not grow.

A line is fitted to the samples, those of the warm-up left out; what it rises by until the end is the growth. A leak of
five bytes a task would be seen in an hour.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.faults import zygote
from tests.faults.figures import Outcome
from tests.faults.judge import Evidence, judge
from tests.faults.lives import Life, Plain
from tests.faults.load import Answer, Load

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from random import Random

SECONDS: Final = 3600.0
"""At scale 1."""

WARM_UP: Final = 0.4
"""The share of the time in which things may grow: caches fill, and the history is first pruned after ten minutes."""

SAMPLES: Final = 600
"""In all, but not more than ten a second."""

PAUSE_SECONDS: Final = 0.12
"""The longest pause of a sender between two bursts: some 130 tasks a second of all senders together."""

KEEP_HISTORY: Final = "5m"
"""What is older goes every ten minutes, so the history has its full size after twenty, within the warm-up."""

FULL_SECONDS: Final = 3000.0
"""In a run that is shorter the history, and the last events, which the service keeps in memory for readers that come
back (eight megabytes of them as JSON), may not have had their full size when the warm-up ended."""

ASKING_SECONDS: Final = 0.5
"""Between two questions of the operator who watches."""

EVENTS_SECONDS: Final = 2.0
"""For so long the operator reads events, and then goes."""


@dataclass(frozen=True, slots=True)
class Bound:
    """What is sampled, and how much of it may be added after the warm-up.

    Attributes:
        name: What it is, with its unit.
        most: The growth that is allowed, in that unit.
        most_if_short: The same in a run of less than `FULL_SECONDS`; None: any.
        read: Takes a sample, of a process or of the spool directory.
    """

    name: str
    most: float
    most_if_short: float | None
    read: Callable[[Path], float]


def _memory(process: Path) -> float:
    """Memory of a process alone, MB; the file that a handler records its calls in is mapped, and does grow."""
    for line in (process / "status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise OSError(f"{process} is dead")


def _threads(process: Path) -> float:
    return len(os.listdir(process / "task"))


def _descriptors(process: Path) -> float:
    return len(os.listdir(process / "fd"))


def _database(spool: Path) -> float:
    """What the history takes on disk, MB."""
    return sum(path.stat().st_size for path in (spool / ".trispool").glob("spool.db*")) / 1e6


OF_A_PROCESS: Final = (
    Bound("memory, MB", 4.0, 40.0, _memory),
    Bound("descriptors", 2.0, 2.0, _descriptors),
    Bound("threads", 2.0, 2.0, _threads),
)

OF_THE_HISTORY: Final = Bound("on disk, MB", 8.0, None, _database)


class Samples:
    """What was sampled of one thing.

    Args:
        bound: What.
    """

    def __init__(self, bound: Bound) -> None:
        self._bound = bound
        self._points: list[tuple[float, float]] = []

    def add(self, at: float, value: float) -> None:
        """Another sample."""
        self._points.append((at, value))

    def growth(self) -> float:
        """How much a line that fits the samples best rises from the end of the warm-up to the last one."""
        start, end = self._points[0][0], self._points[-1][0]
        points = [(at, value) for at, value in self._points if at >= start + WARM_UP * (end - start)]
        middle = sum(at for at, _ in points) / len(points)
        mean = sum(value for _, value in points) / len(points)
        spread = sum((at - middle) ** 2 for at, _ in points)
        if not spread:
            return 0.0
        slope = sum((at - middle) * (value - mean) for at, value in points) / spread
        return slope * (points[-1][0] - points[0][0])

    def outcome(self, name: str) -> Outcome:
        """As a row.

        Args:
            name: Of what it is.
        """
        is_short = self._points[-1][0] - self._points[0][0] < FULL_SECONDS
        most = self._bound.most_if_short if is_short else self._bound.most
        values = [value for _, value in self._points]
        growth = self.growth()
        figures: Mapping[str, int | float | str] = {
            "first": round(values[0], 1),
            "least": round(min(values), 1),
            "most": round(max(values), 1),
            "last": round(values[-1], 1),
            "grown after the warm-up": round(growth, 2),
            "may grow by": "" if most is None else most,
        }
        violations = []
        if most is not None and growth > most:
            violations.append(f"grew by {growth:.2f}, which is more than {most:g}")
        return Outcome(f"{name}: {self._bound.name}", len(values), figures, violations)


class Soak:
    """The scenario."""

    title = "An hour of mixed load"
    promise = (
        "Under load of all kinds, with somebody who watches, neither service nor workers hold more and more: memory, "
        "descriptors and threads stay as they are after the warm-up, and the history stays as large as it may be. "
        "Every task runs once."
    )

    def run(self, scale: float, folder: Path, random: Random) -> list[Outcome]:
        """See `tests.faults.figures.Scenario`."""
        seconds = SECONDS * scale
        parent = Plain()
        try:
            life = Life(parent, folder / "soak", "os", with_async=False, keep_history=KEEP_HISTORY)
            life.start()
            life.wait_until_it_answers()
            load = Load(life.place, random, with_async=False, pause=PAUSE_SECONDS)
            operator = Operator(life)
            load.start()
            operator.start()
            try:
                outcomes, workers = _sampled(life, seconds)
            finally:
                operator.stop()
                load.stop()
            outcomes.append(_judged(life, load, seconds, lost=workers != sorted(zygote.children(life.pid))))
            outcomes.append(Outcome("operator's questions", operator.asked, {}, operator.problems))
            return outcomes
        finally:
            parent.close()


def _sampled(life: Life, seconds: float) -> tuple[list[Outcome], list[int]]:
    """Sample for so long; gives what was found, and the workers there were."""
    workers = _wait_for_workers(life)
    places = {"service": life.pid, **{f"worker {number}": pid for number, pid in enumerate(workers, 1)}}
    samples = {(name, bound): Samples(bound) for name in places for bound in OF_A_PROCESS}
    history = Samples(OF_THE_HISTORY)
    pause = max(0.1, seconds / SAMPLES)
    began = time.monotonic()
    while (now := time.monotonic()) < began + seconds:
        for (name, bound), found in samples.items():
            # One that has died is told below.
            with contextlib.suppress(OSError):
                found.add(now, bound.read(Path(f"/proc/{places[name]}")))
        history.add(now, OF_THE_HISTORY.read(life.place.spool))
        time.sleep(pause)
    outcomes = [found.outcome(name) for (name, _), found in samples.items()]
    outcomes.append(history.outcome("history"))
    return outcomes, workers


def _wait_for_workers(life: Life) -> list[int]:
    while len(workers := life.runs().workers(1)) < 2:
        time.sleep(0.02)
    return sorted(workers)


def _judged(life: Life, load: Load, seconds: float, *, lost: bool) -> Outcome:
    """What became of the tasks; the service has ended after this."""
    life.end({number for number, task in load.sent.items() if task.answer is Answer.ACKNOWLEDGED})
    runs = life.runs().read()
    # The history has been pruned, and kills.py looks at it.
    history = {run.task: 1 for run in runs if run.end.name == "OK"}
    verdict = judge(Evidence(load.sent, runs, [], history, life.left()))
    problems = [*verdict.violations, *life.problems, *(["a worker was lost"] if lost else [])]
    figures = {name: verdict.figures()[name] for name in ("acknowledged", "lost", "run twice")}
    return Outcome("tasks", len(load.sent), {**figures, "a second": round(len(load.sent) / seconds)}, problems)


class Operator(threading.Thread):
    """Somebody who watches: lists, figures, and events that are read for a while.

    Attributes:
        asked: How many questions were answered.
        problems: What was not answered.
    """

    def __init__(self, life: Life) -> None:
        super().__init__(name="operator")
        self.asked = 0
        self.problems: list[str] = []
        self._life = life
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Stop, and wait until it has."""
        self._stopped.set()
        self.join()

    def run(self) -> None:
        """See `threading`."""
        questions: Sequence[str] = (
            "/api/v1/tasks?limit=50",
            "/api/v1/tasks?state=done&limit=50",
            "/api/v1/tasks?q=again&limit=20",
            "/api/v1/stats",
            "/api/v1/workers",
            "/metrics",
        )
        while not self._stopped.wait(ASKING_SECONDS):
            question = questions[self.asked % len(questions)]
            try:
                if self.asked % 20 == 19:
                    self._life.get("/api/v1/events", seconds=EVENTS_SECONDS)
                else:
                    self._life.get(question)
                self.asked += 1
            except (OSError, http.client.HTTPException) as error:
                self.problems.append(f"{question}: {type(error).__name__}: {error}")


SCENARIO = Soak()
