"""Two services that were started on one spool by mistake.

Both take tasks from clients, both have workers; one of them, or both, are ended while that goes on. Then one is started
alone, and what all of them ran together is held against what clients were told.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from tests.acceptance.harness import LONG, Service, packet, telling_in
from tests.faults.figures import Outcome

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from random import Random

    from tests.acceptance.harness import Telling

HANDLERS: Final = Path(__file__).parent / "workers" / "in_and_out.py"

TIMES: Final = 10
"""Each way to end, at scale 1."""

SPOOLED: Final = b"\xff\x00\x00\x01"

RECORDED_SECONDS: Final = 0.5
"""A task that ended so long before a kill is on record. It takes some hundredths of a second."""

LOAD_SECONDS: Final = 1.5
"""Before the first of them is ended, at least: longer than what a kill excuses."""

Ends = Literal["both are stopped", "the first is killed", "the second is killed", "both are killed"]

ENDS: Final[Sequence[Ends]] = (
    "both are stopped",
    "the first is killed",
    "the second is killed",
    "both are killed",
)


@dataclass(slots=True)
class Seen:
    """What clients were told, and what handlers noted.

    Attributes:
        sent: Names of tasks.
        acknowledged: Those that clients were told of, or that a file was made of.
        began: When each was begun, on the monotonic clock.
        ended: When each ended.
        killed_at: When a service was killed, or None.
        log: Of the service that came second.
        refused: What a client had to hear though nobody had ended its service.
    """

    sent: set[str] = field(default_factory=set)
    acknowledged: set[str] = field(default_factory=set)
    began: dict[str, list[float]] = field(default_factory=dict)
    ended: dict[str, list[float]] = field(default_factory=dict)
    killed_at: float | None = None
    log: str = ""
    refused: list[str] = field(default_factory=list)


def judge(seen: Seen) -> tuple[Counter[str], list[str]]:
    """What is to be said of it: counts, and promises that were broken."""
    counts = Counter({"acknowledged": len(seen.acknowledged), "lost": 0, "run twice": 0, "says so": 0})
    violations = [*seen.refused]
    for n in sorted(seen.acknowledged - seen.ended.keys()):
        counts["lost"] += 1
        violations.append(f"{n} was acknowledged and is lost")
    violations += [f"{n} ran, and nobody sent it" for n in sorted(seen.ended.keys() - seen.sent)]
    for n, times in seen.ended.items():
        if len(times) > 1:
            counts["run twice"] += 1
            # What had just ended when its service was killed was not on record yet.
            if seen.killed_at is None or min(times) < seen.killed_at - RECORDED_SECONDS or len(times) > 2:
                violations.append(f"{n} ran {len(times)} times, {times} (killed: {seen.killed_at})")
    if "no_write_behind" in seen.log:
        counts["says so"] += 1
    else:
        violations.append("the second service does not say that there is another one")
    return counts, violations


class Pair:
    """Two services on one directory.

    Args:
        folder: An empty one.
        telling: What their handlers tell.
        durability: Of both.
    """

    def __init__(self, folder: Path, telling: Telling, durability: str) -> None:
        self.notes = folder / "notes"
        self.notes.touch()
        self.seen = Seen()
        self.services = []
        (folder / "spool").mkdir()
        for name in ("first", "second"):
            (folder / name).mkdir()
            (folder / name / "spool").symlink_to(folder / "spool")
            settings = {"import": [str(HANDLERS)], "durability": durability, "frequency": 1}
            self.services.append(Service(folder / name, telling, **settings))
        self.directory = folder / "spool"
        self._stop = threading.Event()
        self._ended: set[int] = set()

    def load(self, number: int, random: Random) -> None:
        """A client of one of them, until it is told to stop or its service has gone."""
        service = self.services[number]
        count = 0
        while not self._stop.is_set():
            count += 1
            n = f"{'ab'[number]}{count}"
            self.seen.sent.add(n)
            vars = {"n": n, "do": random.choice(("", "", "", "slow", "retry"))}
            if random.random() < 0.2:
                vars["at"] = str(time.time() + random.random())
            if random.random() < 0.2:
                vars["priority"] = str(random.randrange(3))
            try:
                answer = service.send(vars)
            except OSError as error:
                answer = repr(error).encode()
            if answer == SPOOLED:
                self.seen.acknowledged.add(n)
            elif number in self._ended:
                return
            else:
                self.seen.refused.append(f"{n} was answered {answer!r}")
            time.sleep(random.choice((0, 0, 0.001, 0.02)))

    def make_files(self, random: Random) -> None:
        """Somebody who puts files there."""
        count = 0
        while not self._stop.wait(random.random() * 0.02):
            count += 1
            n = f"f{count}"
            self.seen.sent.add(n)
            name = f"uwsgi_spoolfile_on_other_1_{count}_1_{int(time.time())}_0"
            path = self.directory.parent / name
            path.write_bytes(packet({"n": n, "do": random.choice(("", "slow"))}))
            path.rename(self.directory / name)
            self.seen.acknowledged.add(n)

    def end(self, how: Ends, seconds: float, random: Random) -> None:
        """Let clients work for so long, and meanwhile end services."""
        loads = [threading.Thread(target=self.load, args=(number, random)) for number in (0, 1)]
        loads.append(threading.Thread(target=self.make_files, args=(random,)))
        for load in loads:
            load.start()
        try:
            time.sleep(seconds)
            match how:
                case "both are stopped":
                    for number in random.sample((0, 1), 2):
                        self._end(number, signal.SIGTERM)
                case "the first is killed" | "the second is killed":
                    self._end(int("second" in how), signal.SIGKILL)
                    # The other one goes on, and takes over what this one had.
                    time.sleep(seconds)
                    self._end(int("first" in how), signal.SIGTERM)
                case "both are killed":
                    for number in (0, 1):
                        self._end(number, signal.SIGKILL)
        finally:
            self._stop.set()
            for load in loads:
                load.join()

    def _end(self, number: int, how: signal.Signals) -> None:
        self._ended.add(number)
        if how == signal.SIGKILL and self.seen.killed_at is None:
            self.seen.killed_at = time.clock_gettime(time.CLOCK_MONOTONIC)
        self.services[number].stop(how)

    def finish(self) -> Seen:
        """Let one of them run what is left."""
        service = self.services[0].start()
        end = time.monotonic() + LONG
        while time.monotonic() < end:
            self._read()
            if not self.seen.acknowledged - self.seen.ended.keys():
                break
            time.sleep(0.05)
        with contextlib.suppress(AssertionError):
            service.wait_until(
                lambda: not any(service.status()[state] for state in ("ready", "running", "scheduled")), "at rest"
            )
        service.stop()
        self._read()
        self.seen.log = self.services[1].log.read_text()
        return self.seen

    def _read(self) -> None:
        self.seen.began.clear()
        self.seen.ended.clear()
        for line in self.notes.read_text().splitlines():
            word, n, when, _ = line.split()
            (self.seen.began if word == "began" else self.seen.ended).setdefault(n, []).append(float(when))


@dataclass(frozen=True)
class Two:
    """The scenario."""

    title: str = "Two services on one spool"
    promise: str = (
        "Two services that were started on one directory by mistake run each task once between them, and the second"
        " says that there is another; when one is killed, only what ran in that moment runs again."
    )

    def run(self, scale: float, folder: Path, random: Random) -> list[Outcome]:
        """See `Scenario`."""
        outcomes = []
        # A short run has one of them: each costs three starts.
        for how in ENDS if scale * TIMES >= 1 else ENDS[1:2]:
            counts: Counter[str] = Counter()
            violations: list[str] = []
            times = max(1, round(TIMES * scale))
            for number in range(times):
                place = folder / f"{how.replace(' ', '-')}-{number}"
                place.mkdir()
                seen = _once(place, how, random)
                count, broken = judge(seen)
                counts += count
                violations += broken
            outcomes.append(Outcome(how, times, _figures(counts), violations))
        return outcomes


def _once(folder: Path, how: Ends, random: Random) -> Seen:
    with telling_in(folder) as telling:
        pair = Pair(folder, telling, random.choice(("os", "fsync")))
        os.environ["NOTES"] = str(pair.notes)  # services have the environment of who starts them
        try:
            for service in pair.services:
                service.start()
            pair.end(how, LOAD_SECONDS + random.random(), random)
            return pair.finish()
        finally:
            del os.environ["NOTES"]
            for service in pair.services:
                service.close()


def _figures(counts: Mapping[str, int]) -> dict[str, int | float | str]:
    return {name: counts.get(name, 0) for name in ("acknowledged", "lost", "run twice", "says so")}


SCENARIO: Final = Two()
