"""Every call on files that the service and its workers make, failing once and for as long as it takes.

What an operation calls is recorded first; then it is done again for each kind of call, each error, and each way in
which the failure ends, with strace making the calls fail in a process that runs (`tests.faults.injection`).
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from tests.acceptance.harness import packet, telling_in
from tests.faults.figures import Outcome, Tally
from tests.faults.injection import ERRORS, Call, calls_in, inject, record, why_not
from tests.faults.witness import ANSWER_SECONDS, Watched

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from random import Random

ROLES: Final = ("service", "worker")

ENDINGS: Final = {
    "once": "1",  # of each thread
    "persistent": "1+",
    "killed": "1+",  # while it goes on
}

FAILING_SECONDS: Final = 0.7
"""How long a persistent failure goes on at least: longer than it takes until what waits is written out, retried and
looked for again."""

ONCE_SECONDS: Final = 2.0
"""How long to wait at most for what one failure holds up, before strace lets go."""

FAR: Final = 3600.0

_IGNORED_PLACES: Final = frozenset({"doom"})  # the handler's own


class Operation(NamedTuple):
    """What is done while calls fail.

    Attributes:
        name: As in the docs.
        act: It, in a thread of its own: it may have to wait for the failure's end.
        prepare: What has to be there before.
        durability: Of the spool.
    """

    name: str
    act: Callable[[Watched, str], None]
    prepare: Callable[[Watched, str], None] = lambda service, prefix: None
    durability: str = "fsync"


# The operations. What they enqueue is named by a prefix of their own.


def _enqueue(service: Watched, prefix: str) -> None:
    for number in range(3):
        service.spool_task(f"{prefix}.{number}")


def _post(service: Watched, prefix: str) -> None:
    for number in range(2):
        service.post_task(f"{prefix}.{number}", key=True)


def _enqueue_large(service: Watched, prefix: str) -> None:
    for number in range(2):
        service.spool_task(f"{prefix}.{number}", body=os.urandom(80_000), priority=str(number))


def _enqueue_paused(service: Watched, prefix: str) -> None:
    service.pause(paused=True)
    _enqueue(service, prefix)


def _resume(service: Watched, prefix: str) -> None:
    service.pause(paused=False)


def _wait(service: Watched, prefix: str) -> None:
    time.sleep(FAILING_SECONDS)


def _have_files(service: Watched, prefix: str) -> None:
    before = len(service.files)
    _enqueue_paused(service, prefix)
    service.await_that(lambda: len(service.files) >= before + 3, ANSWER_SECONDS)


def _have_retrying(service: Watched, prefix: str) -> None:
    service.pause(paused=True)
    for number in range(2):
        service.spool_task(f"{prefix}.{number}", do="retry")


def _have_doomed(service: Watched, prefix: str) -> None:
    service.doom.touch()
    service.pause(paused=True)
    service.spool_task(f"{prefix}.0", handler="doomed")


def _have_scheduled(service: Watched, prefix: str) -> None:
    service.ids = [service.post_task(f"{prefix}.{number}", at=time.time() + FAR) for number in range(2)]
    service.await_that(lambda: len(service.files) >= 2, ANSWER_SECONDS)


def _operate(service: Watched, prefix: str) -> None:
    first, second = service.ids
    service.act(first, "hold")
    service.act(first, "release")
    service.act(first, "reschedule", {"at": time.time() + FAR / 2})
    service.act(first, "run")
    if service.act(second, "cancel"):
        service.witness.cancelled.add(f"{prefix}.1")


def _bring_files(service: Watched, prefix: str) -> None:
    for number in range(2):
        n = f"{prefix}.{number}"
        content = packet(service.vars_of(n))
        name = f"uwsgi_spoolfile_on_elsewhere_1_{time.time_ns()}_1_1_1"
        made = service.folder / "made"
        made.write_bytes(content if number == 0 else content[:-2])
        if number == 0:
            service.witness.sent.add(n)
            service.witness.acknowledged.add(n)
        else:
            # An old one: its writer has ended.
            os.utime(made, (1, 1))
            service.torn.append(content[:-2])
        made.rename(service.spool / name)


OPERATIONS: Final = (
    Operation("enqueue and run", _enqueue),
    Operation('enqueue and run, durability "os"', _enqueue, durability="os"),
    Operation("enqueue with an idempotency key", _post),
    Operation("enqueue as a file", _enqueue_large),
    Operation("write out", _wait, _enqueue_paused),
    Operation("claim and finish a file", _resume, _have_files),
    Operation("retry", _resume, _have_retrying),
    Operation("set aside what failed", _resume, _have_doomed),
    Operation("hold, release, reschedule, run now, cancel", _operate, _have_scheduled),
    Operation("find files of others", _bring_files),
)


class Case(NamedTuple):
    """One failure."""

    operation: Operation
    role: str
    call: Call
    error: str
    ending: str

    def __str__(self) -> str:
        return (
            f"{self.operation.name}: {self.call.name} {self.call.place} of the {self.role}: {self.error} {self.ending}"
        )


@dataclass(slots=True)
class OperationTally(Tally):
    """What comes of the cases of one operation."""

    kinds: int = 0

    def outcome(self, name: str) -> Outcome:
        """As a row."""
        counted = ("not hit", "acknowledged", "refused", "refused and ran", "run again", "restarted")
        figures: dict[str, int | float | str] = {"kinds of calls": self.kinds}
        figures |= {key: self.figures[key] for key in counted}
        return Outcome(name, self.tried, {**figures, "recovered in, s": self.slowest}, self.violations)


class Bench:
    """A service to which this is done, and done again."""

    def __init__(self, service: Watched) -> None:
        self.service = service
        self._logs = service.folder.parent
        self._count = 0

    def calls(self, operation: Operation) -> dict[str, list[Call]]:
        """The kinds of calls that an operation makes, by role."""
        prefix = self._prefix()
        operation.prepare(self.service, prefix)
        logs = {role: self._logs / f"{prefix}.{role}" for role in ROLES}
        with contextlib.ExitStack() as stack:
            for role, pid in self._pids().items():
                stack.enter_context(record([pid], logs[role]))
            operation.act(self.service, prefix)
            self.service.all_ran(FAILING_SECONDS)
        if self.service.settle() is None:
            raise AssertionError(f"{operation.name} does not work without a fault: {self.service.problem}")
        found = {role: calls_in(log.read_text(errors="replace"), self.service.folder) for role, log in logs.items()}
        for log in logs.values():
            log.unlink()
        return {role: [call for call in calls if call.place not in _IGNORED_PLACES] for role, calls in found.items()}

    def run(self, case: Case, tally: OperationTally) -> None:
        """Make one failure, and judge."""
        service, prefix = self.service, self._prefix()
        witness = service.witness
        before = (
            len(witness.acknowledged),
            len(witness.refused),
            witness.again,
            len(witness.violations()),
            len(witness.unsure & set(witness.ran)),
        )
        case.operation.prepare(service, prefix)
        acting = threading.Thread(target=case.operation.act, args=(service, prefix))
        log = self._logs / f"{prefix}.log"
        with inject([self._pids()[case.role]], case.call, case.error, ENDINGS[case.ending], log) as tracing:
            began = time.monotonic()
            acting.start()
            if case.ending == "once":
                acting.join(ONCE_SECONDS)
                service.all_ran(max(0.0, began + ONCE_SECONDS - time.monotonic()))
            else:
                acting.join(FAILING_SECONDS)
                time.sleep(max(0.0, began + FAILING_SECONDS - time.monotonic()))
            if case.ending == "killed":
                service.kill()
        tally.tried += 1
        tally.figures["not hit"] += not tracing.hits
        log.unlink()
        acting.join(ANSWER_SECONDS * 4)
        found = [f"{case}: {text}" for text in self._recover(case, tally)]
        found += [f"{case}: {text}" for text in witness.violations()[before[3] :]]
        tally.figures["acknowledged"] += len(witness.acknowledged) - before[0]
        tally.figures["refused"] += len(witness.refused) - before[1]
        tally.figures["refused and ran"] += len(witness.unsure & set(witness.ran)) - before[4]
        tally.figures["run again"] += witness.again - before[2]
        tally.violations += found

    def _recover(self, case: Case, tally: OperationTally) -> Iterator[str]:
        service = self.service
        if case.ending == "killed":
            service.witness.killed()
            service.start()
        elif service.process is not None and service.process.poll() is not None:
            yield f"the service ended with exit code {service.process.returncode}"
            service.witness.killed()
            service.start()
        seconds = service.settle()
        if seconds is None:
            tally.figures["restarted"] += 1
            problem = service.problem
            if "restart" not in problem:
                yield f"it did not recover, and does not say that it has to be restarted: {problem or 'no problem'}"
            if not service.restart():
                yield "it did not stop in order"
            seconds = service.settle()
        if seconds is None:
            yield f"it did not recover after a restart: {service.problem or sorted(service.witness.missing)}"
        else:
            tally.slowest = max(tally.slowest, seconds)
        if missing := service.take_torn():
            yield f"{missing} files that could not be parsed are gone"

    def _pids(self) -> dict[str, int]:
        assert self.service.process is not None
        return {"service": self.service.process.pid, "worker": self.service.pid_of_worker()}

    def _prefix(self) -> str:
        self._count += 1
        return f"{self.service.folder.name}-{self._count}"


@contextlib.contextmanager
def running(folder: Path, durability: str) -> Iterator[Bench]:
    """A service in a folder of its own."""
    place = folder / durability
    place.mkdir()
    with telling_in(place) as telling:
        service = Watched(place, telling, durability=durability)
        try:
            yield Bench(service.start())
            service.stop()
        finally:
            service.close()


class Syscalls:
    """See the module."""

    title = "Calls of the system that fail"
    promise = (
        "Whatever call on a file fails, once or persistently, with ENOSPC, EIO, EDQUOT or EMFILE, in the service or in"
        " a worker: every client gets an answer; no acknowledged task is lost, no refused one runs, unless the service"
        " is killed while calls fail; when they fail no longer all goes on, by itself or, where the service says that"
        " it takes one, after a restart; and after a kill -9 while calls fail nothing acknowledged is lost either."
    )

    def run(self, scale: float, folder: Path, random: Random) -> list[Outcome]:
        """See `Scenario.run`. Less than all is a choice at random, of one case of each operation at least."""
        if reason := why_not():
            return [Outcome(f"not tried: {reason}", 0)]
        tallies: dict[str, OperationTally] = {}
        for durability in ("fsync", "os"):
            with running(folder, durability) as bench:
                for operation in OPERATIONS:
                    if operation.durability == durability:
                        tallies[operation.name] = _tried(bench, operation, scale, random)
        return [tally.outcome(name) for name, tally in tallies.items()]


def _tried(bench: Bench, operation: Operation, scale: float, random: Random) -> OperationTally:
    calls = bench.calls(operation)
    cases = cases_of(operation, calls)
    tally = OperationTally(kinds=sum(map(len, calls.values())))
    for case in random.sample(cases, max(1, min(len(cases), round(scale * len(cases))))):
        bench.run(case, tally)
        print(f"{case}: {tally.violations[-3:]}", file=sys.stderr)
    return tally


def cases_of(operation: Operation, calls: dict[str, list[Call]]) -> list[Case]:
    """All failures of an operation that are tried."""
    return [
        Case(operation, role, call, error, ending)
        for role in ROLES
        for call in calls[role]
        for error in ERRORS
        for ending in ENDINGS
        if ending != "killed" or (role == "service" and error == "EIO")
    ]


SCENARIO: Final = Syscalls()
