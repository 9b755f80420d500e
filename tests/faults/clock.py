"""A wall clock that is set while tasks wait.

The machine's clock is left alone. A library that is loaded before all others (`clock.c`) shows the service and its
workers a clock of their own, and stamps what they write to files with it, as a kernel does whose clock is set. Files
that others put there are stamped here.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
import subprocess
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.acceptance.harness import Service, packet, telling_in
from tests.faults.figures import Outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from random import Random

HANDLERS: Final = Path(__file__).parent / "workers" / "in_and_out.py"
SOURCE: Final = Path(__file__).with_name("clock.c")

MAX_STEPS: Final = 4096
"""As in the source."""

TIMES: Final = 10
"""Each way to set the clock, at scale 1."""

TASKS: Final = 60
"""Each time."""

HOUR: Final = 3600.0

LATE_SECONDS: Final = 15.0
"""A due task with nothing in its way is stalled after so long: the service looks at the clock every ten seconds."""

BETWEEN_SECONDS: Final = 1.0
"""From the moment at which the service saw that a task is due until its handler sees the clock, which may have been set
back in between."""

EXACT: Final = 0.001
"""Seconds to which an `at` is sent, and compared."""

SPOOLED: Final = b"\xff\x00\x00\x01"


class Clock:
    """The wall clock of a service.

    Args:
        folder: For its file.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "steps"
        self.path.write_bytes(bytes(8 + 16 * MAX_STEPS))
        with self.path.open("r+b") as steps:
            self._mapped = mmap.mmap(steps.fileno(), 0)
        self.steps: list[tuple[float, float]] = []
        self.set(0.0)

    @property
    def offset(self) -> float:
        """How far it is from the real one, seconds."""
        return self.steps[-1][1]

    def now(self) -> float:
        """What it shows."""
        return time.time() + self.offset

    def set(self, offset: float) -> None:
        """Set it so far from the real one."""
        count = len(self.steps)
        struct.pack_into("<qq", self._mapped, 8 + 16 * count, time.time_ns(), round(offset * 1e9))
        struct.pack_into("<q", self._mapped, 0, count + 1)
        self.steps.append((time.monotonic(), offset))

    def furthest(self, since: float, until: float) -> float:
        """The largest of its offsets in a time, on the monotonic clock."""
        ends = [when for when, _ in self.steps[1:]] + [until]
        return max(offset for (_, offset), end in zip(self.steps, ends, strict=True) if end >= since)

    def close(self) -> None:
        """Nobody looks at it any more."""
        self._mapped.close()


@dataclass(slots=True)
class Asked:
    """A task: when it was to start, by the wall clock, or None."""

    at: float | None


@dataclass(slots=True)
class Ran:
    """A start: on the monotonic clock, and what the wall clock of the handler showed."""

    monotonic: float
    wall: float


@dataclass
class Watched:
    """A service with a clock, and what was asked of it.

    Attributes:
        service: The service.
        clock: Its clock.
        notes: The file that handlers write to.
        random: Chooses.
        asked: Tasks by name.
    """

    service: Service
    clock: Clock
    notes: Path
    random: Random
    asked: dict[str, Asked] = field(default_factory=dict)

    def ask(self, count: int, at: Callable[[], float] | None = None, *, do: str = "") -> list[str]:
        """Ask for tasks by a socket, by HTTP and as files."""
        names = []
        for _ in range(count):
            n = str(len(self.asked))
            when = None if at is None else round(at(), 3)
            vars = {"n": n, "do": do, **({} if when is None else {"at": f"{when:.3f}"})}
            self.asked[n] = Asked(when)
            match self.random.randrange(4):
                case 0:
                    self.service.put(vars)
                case 1:
                    self._drop(n, vars, when)
                case _:
                    if (answer := self.service.send(vars)) != SPOOLED:
                        raise AssertionError(f"{n} was answered {answer!r}")
            names.append(n)
        return names

    def _drop(self, n: str, vars: dict[str, str], at: float | None) -> None:
        now = self.clock.now()
        path = self.service.folder / f"uwsgi_spoolfile_on_other_1_{n}_1_{int(now)}_{int(now % 1 * 1e6)}"
        path.write_bytes(packet(vars))
        os.utime(path, (at or now, at or now))
        path.rename(self.service.spool / path.name)

    def ran(self, word: str = "ended") -> dict[str, list[Ran]]:
        """What handlers have noted."""
        found: dict[str, list[Ran]] = {}
        for line in self.notes.read_text().splitlines():
            what, n, monotonic, wall = line.split()
            if what == word:
                found.setdefault(n, []).append(Ran(float(monotonic), float(wall)))
        return found

    def await_all(self, names: list[str]) -> float:
        """Wait until these have ended, or are stalled; gives the seconds."""
        began = time.monotonic()
        while time.monotonic() < began + LATE_SECONDS and not self.ran().keys() >= {*names}:
            time.sleep(0.05)
        return time.monotonic() - began

    def pause(self, *, paused: bool) -> None:
        """Let no more tasks start, or again."""
        self.service.ask("PATCH", "/spools/default", {"paused": paused})

    def settle(self) -> None:
        """Wait until what waits has a file."""
        self.service.wait_until(
            lambda: len(list(self.service.spool.glob("uwsgi_spoolfile_*"))) >= len(self.asked) - len(self.ran()),
            "written out",
        )


def early(watched: Watched) -> list[str]:
    """Starts before their time, in words."""
    found = []
    for n, starts in watched.ran("began").items():
        at = watched.asked[n].at
        for start in starts:
            # It is judged by the latest that the clock showed between the service's look and the handler's.
            furthest = watched.clock.furthest(start.monotonic - BETWEEN_SECONDS, start.monotonic)
            offset = watched.clock.furthest(start.monotonic, start.monotonic)
            if at is not None and start.wall - offset + furthest < at - EXACT:
                found.append(f"{n} started {at - start.wall:.3f} s early")
    return found


def judge(watched: Watched, expected: list[str], forbidden: list[str]) -> list[str]:
    """Broken promises, in words.

    Args:
        watched: What happened.
        expected: Tasks that had to run by now.
        forbidden: Tasks that had not to run yet.
    """
    ran = watched.ran()
    violations = early(watched)
    violations += [f"{n} is stalled" for n in expected if n not in ran]
    violations += [f"{n} started long before its time" for n in forbidden if n in watched.ran("began")]
    violations += [f"{n} ran {len(ends)} times" for n, ends in ran.items() if len(ends) > 1]
    return violations


# Ways to set the clock. Each gives the tasks that have to run, those that must not yet, and the seconds until all had.


def forward(watched: Watched) -> tuple[list[str], list[str], float]:
    """An hour forward, while tasks wait for times within that hour, and for later ones."""
    clock, random = watched.clock, watched.random
    start = clock.now()
    within = watched.ask(TASKS, lambda: start + random.uniform(60, HOUR))
    later = watched.ask(5, lambda: start + random.uniform(2, 3) * HOUR)
    if random.random() < 0.5:
        watched.settle()
    clock.set(clock.offset + HOUR)
    return within, later, watched.await_all(within)


def back(watched: Watched) -> tuple[list[str], list[str], float]:
    """An hour back; what is asked for then runs at once, and what has a time, then."""
    clock, random = watched.clock, watched.random
    start = clock.now()
    timed = watched.ask(5, lambda: start + random.uniform(2, 3))
    clock.set(clock.offset - HOUR)
    new = watched.ask(TASKS)
    new += watched.ask(TASKS, lambda: clock.now() + random.uniform(0, 1))
    return new, timed, watched.await_all(new)


def back_while_due(watched: Watched) -> tuple[list[str], list[str], float]:
    """An hour back, while tasks wait that are due."""
    clock, random = watched.clock, watched.random
    watched.pause(paused=True)
    due = watched.ask(TASKS)
    if random.random() < 0.5:
        watched.settle()
    clock.set(clock.offset - HOUR)
    watched.pause(paused=False)
    return due, [], watched.await_all(due)


def back_and_restart(watched: Watched) -> tuple[list[str], list[str], float]:
    """The same, and the service is started again."""
    clock = watched.clock
    watched.pause(paused=True)
    due = watched.ask(TASKS)
    watched.service.stop()
    clock.set(clock.offset - HOUR)
    watched.service.start()
    return due, [], watched.await_all(due)


def back_while_retrying(watched: Watched) -> tuple[list[str], list[str], float]:
    """An hour back, while tasks wait for another attempt in some tenths of a second."""
    clock = watched.clock
    again = watched.ask(TASKS, do="retry")
    while len(watched.ran("began")) < TASKS / 2:
        time.sleep(0.005)
    clock.set(clock.offset - HOUR)
    again = [n for n in again if n not in watched.ran()]
    # Their time is one of the wall clock, as that of every back-off but the frequency: it comes when the clock has come
    # there again.
    seconds = watched.await_all([])
    clock.set(clock.offset + HOUR)
    return again, [], seconds + watched.await_all(again)


def steps(watched: Watched) -> tuple[list[str], list[str], float]:
    """Steps of up to three seconds, forward and back, across the times of tasks."""
    clock, random = watched.clock, watched.random
    base = clock.offset
    names = []
    for _ in range(TASKS // 3):
        names += watched.ask(3, lambda: clock.now() + random.uniform(0, 4))
        clock.set(base + random.choice((random.uniform(-3, 3), random.uniform(-0.05, 0.05))))
        time.sleep(random.uniform(0, 0.2))
    clock.set(base + 5)
    return names, [], watched.await_all(names)


WAYS: Final = {
    "an hour forward, across times": forward,
    "an hour back, then new tasks": back,
    "an hour back, with due tasks": back_while_due,
    "an hour back, and a restart": back_and_restart,
    "an hour back, during back-off": back_while_retrying,
    "small steps, across times": steps,
}

SHORT: Final = (back_while_due, steps)


@dataclass(frozen=True)
class ClockSet:
    """The scenario."""

    title: str = "The clock is set"
    promise: str = (
        "No task starts before its `at` by the wall clock, and none that is due waits longer than some seconds, whether"
        " the clock is set forward or back. (A back-off other than the frequency is until a time of the wall clock.)"
    )

    def run(self, scale: float, folder: Path, random: Random) -> list[Outcome]:
        """See `Scenario`."""
        library = folder / "clock.so"
        subprocess.run(["gcc", "-O2", "-shared", "-fPIC", "-o", library, SOURCE, "-ldl"], check=True)
        outcomes = []
        # A short run leaves out what waits until the service looks at the clock, and most of the others.
        ways = WAYS if scale * TIMES >= 1 else {name: way for name, way in WAYS.items() if way in SHORT}
        for number, (name, way) in enumerate(ways.items()):
            counts: Counter[str] = Counter()
            violations: list[str] = []
            longest = 0.0
            times = max(1, round(TIMES * scale))
            for time_ in range(times):
                place = folder / f"{number}-{time_}"
                place.mkdir()
                with opened(place, library, random) as watched:
                    expected, forbidden, seconds = way(watched)
                    violations += judge(watched, expected, forbidden)
                    counts["tasks"] += len(watched.asked)
                    counts["ran"] += len(watched.ran())
                    counts["early"] += len(early(watched))
                longest = max(longest, seconds)
            figures = {**{key: counts[key] for key in ("tasks", "ran", "early")}, "longest wait, s": round(longest, 2)}
            outcomes.append(Outcome(name, times, figures, violations))
        return outcomes


@contextlib.contextmanager
def opened(folder: Path, library: Path, random: Random) -> Iterator[Watched]:
    """A service with a clock of its own."""
    notes = folder / "notes"
    notes.touch()
    clock = Clock(folder)
    ours = {"LD_PRELOAD": str(library), "CLOCK_STEPS": str(clock.path), "NOTES": str(notes)}
    with telling_in(folder) as telling:
        settings = {"import": [str(HANDLERS)], "frequency": 30, "durability": random.choice(("os", "fsync"))}
        service = Service(folder, telling, **settings)
        os.environ.update(ours)  # services have the environment of who starts them
        try:
            service.start()
            yield Watched(service, clock, notes, random)
            service.stop()
        finally:
            for name in ours:
                del os.environ[name]
            service.close()
            clock.close()


SCENARIO: Final = ClockSet()
