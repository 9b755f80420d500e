"""Starts of the service while calls on files fail: it goes to work, or says in a line why it cannot.

Before each start it was killed with tasks that had no file yet, so that there is something to be found again.
"""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, Final, NamedTuple

from tests.acceptance.harness import telling_in
from tests.faults.figures import Outcome
from tests.faults.injection import ERRORS, RECORDING, Call, calls_in, injecting, under, why_not
from tests.faults.witness import Watched

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path
    from random import Random

REFUSED: Final = 2
"""The exit code of a service that cannot start as it is configured."""


class Case(NamedTuple):
    """One start."""

    call: Call
    error: str

    def __str__(self) -> str:
        return f"{self.call.name} {self.call.place}: {self.error}"


class Starts:
    """See the module."""

    title = "Calls of the system that fail at the start"
    promise = (
        "Whatever call on a file below the service's directories fails while it starts, persistently, with ENOSPC, EIO,"
        " EDQUOT or EMFILE: it starts, or ends with exit code 2 and a line that says why; and nothing that was"
        " acknowledged before is lost."
    )

    def run(self, scale: float, folder: Path, random: Random) -> list[Outcome]:
        """See `Scenario.run`. Less than all is a choice at random."""
        if reason := why_not():
            return [Outcome(f"not tried: {reason}", 0)]
        with prepared(folder) as service:
            calls = calls_of_start(service)
            cases = [Case(call, error) for call in calls for error in ERRORS]
            chosen = random.sample(cases, max(1, min(len(cases), round(scale * len(cases)))))
            return [tried(service, chosen, kinds=len(calls))]


@contextlib.contextmanager
def prepared(folder: Path) -> Iterator[Watched]:
    """A service that has run and been killed."""
    place = folder / "starts"
    place.mkdir()
    with telling_in(place) as telling:
        service = Watched(place, telling, durability="fsync")
        try:
            service.start()
            yield service
        finally:
            service.close()


def leave_tasks(service: Watched, prefix: str) -> None:
    """Let a service that runs take some tasks, and kill it."""
    service.pause(paused=True)
    for number in range(3):
        service.spool_task(f"{prefix}.{number}")
    service.kill()
    service.witness.killed()


def calls_of_start(service: Watched) -> list[Call]:
    """The kinds of calls of a start that can be told by their path: the others would be those of the interpreter."""
    leave_tasks(service, "recorded")
    log = service.folder.with_suffix(".log")
    if service.attempt(under(RECORDING, log)) is not None:
        raise AssertionError(f"it does not start without a fault: {service.said}")
    service.settle()
    calls = calls_in(log.read_text(errors="replace"), service.folder)
    # The directory it is started in is looked into by the interpreter, which imports from there.
    return [call for call in calls if call.path is not None and call.place not in (".", "service.log")]


def tried(service: Watched, cases: Sequence[Case], kinds: int) -> Outcome:
    """Start it so many times."""
    figures: dict[str, int | float | str] = {"kinds of calls": kinds}
    violations: list[str] = []
    started = hit = 0
    slowest = 0.0
    log = service.folder.with_suffix(".log")
    for number, case in enumerate(cases):
        leave_tasks(service, f"{number}")
        code = service.attempt(under(injecting(case.call, case.error, "1+"), log))
        said = service.said
        started += code is None
        if code is None:
            service.kill()
            service.witness.killed()
        elif code != REFUSED or "Traceback" in said:
            violations.append(f"{case}: it ended with exit code {code}: {said.splitlines()[-1:]}")
        hit += "(INJECTED)" in log.read_text(errors="replace")
        service.start()
        seconds = service.settle()
        slowest = max(slowest, seconds or 0.0)
        if seconds is None:
            violations.append(f"{case}: it did not recover: {service.problem}")
        print(f"{case}: {code} {violations[-1:]}", file=sys.stderr)
    witness = service.witness
    figures |= {
        "not hit": len(cases) - hit,
        "started": started,
        "refused to start": len(cases) - started,
        "acknowledged": len(witness.acknowledged),
        "lost": len(witness.missing),
        "run again": witness.again,
        "recovered in, s": slowest,
    }
    return Outcome("start", len(cases), figures, [*violations, *witness.violations()])


SCENARIO: Final = Starts()
