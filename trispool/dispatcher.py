"""Due tasks meet free workers.

Rules it keeps:

1. A task starts when it is due and a worker has room; among due ones in the order of the schedule. Nothing is started
   before the first scan has ended, since what it finds last may be what must run first.
2. What an attempt did to a task is decided in one place (`_attempt_ended`, by `trispool.retry`) and recorded there.
3. A worker's word is taken by a plain call; whatever then needs the store is done by the loop of `run_dispatcher`, for
   all that came together.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import structlog
import trio

from trispool.backlog import SETTLE_SECONDS, Backlog, Running
from trispool.errors import SpoolUnavailable, TrispoolError
from trispool.retry import Done, GiveUp, RetryPolicy, decide
from trispool.task import AttemptRow, Entry, NewTask, Retrying
from trispool.workforce import RAN, History, Loss, Report, Worker, row_of_attempt, row_of_unreadable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from trispool.store import Change, Claim, SpoolStore

__all__ = ["Dispatcher", "DispatcherSettings"]

LONGEST_SLEEP: Final = 10.0
"""The loop looks this often although nothing is due, seconds: somebody may have set the clock."""

ENQUEUE_SECONDS: Final = 30.0
"""For so long an enqueue is seen to its end for a caller that has been cancelled, seconds."""

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class DispatcherSettings:
    """What the configuration says of a spool's running.

    Attributes:
        name: The spool's name.
        frequency: Seconds from a failed attempt to the next, where nothing else is said.
        policy: For handlers that have no retry policy of their own.
    """

    name: str
    frequency: float
    policy: RetryPolicy = field(default_factory=RetryPolicy)


class Dispatcher:
    """See the module. It is the pool's employer and the scanner's observer.

    Args:
        store: The spool's store.
        history: Where attempts are recorded.
        settings: How to run it.
        remembered: Tasks that wait for another attempt, by id.
        frequency_wanted: Called when a handler sets the frequency, seconds.
        clock: Unix seconds.
    """

    def __init__(
        self,
        store: SpoolStore,
        history: History,
        settings: DispatcherSettings,
        *,
        remembered: Mapping[str, Retrying] | None = None,
        frequency_wanted: Callable[[float], None] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.backlog = Backlog(settings.frequency, remembered)
        self.counts: Counter[str] = Counter()
        self._store = store
        self._history = history
        self._settings = settings
        self._clock = clock
        self._frequency_wanted = frequency_wanted or self.set_frequency
        self._log = _log.bind(spool=settings.name)
        self._workers: list[Worker] = []
        self._policies: dict[tuple[int, str], RetryPolicy] = {}
        self._wake = trio.Event()
        self._scanned = False
        self._paused = False
        self._draining = False
        self._to_finish: list[Claim] = []
        self._to_release: list[Claim] = []
        self._to_set_aside: list[tuple[Running, str, AttemptRow]] = []

    # What an operator and the faces do

    @property
    def paused(self) -> bool:
        """Whether an operator said that no task shall start."""
        return self._paused

    def pause(self) -> None:
        """Start no more tasks; those that run go on."""
        self._paused = True

    def resume(self) -> None:
        """Start tasks again."""
        self._paused = False
        self._wake.set()

    def drain(self) -> None:
        """Start no more tasks, for good."""
        self._draining = True

    def set_frequency(self, seconds: float) -> None:
        """Retry every `seconds` from now on, what waits for its next attempt included."""
        self.backlog.set_frequency(seconds, self._clock())
        self._wake.set()

    async def enqueue(self, tasks: Sequence[NewTask]) -> Sequence[Entry | TrispoolError]:
        """Keep tasks and let them run; see `SpoolStore.add`."""
        # What is in the store must be in the schedule too, also if the caller has gone meanwhile.
        with trio.move_on_after(ENQUEUE_SECONDS, shield=True):
            results = await self._store.add(tasks)
            now = self._clock()
            for result in results:
                if isinstance(result, Entry):
                    self.backlog.added(result, now)
            self._wake.set()
            return results
        return [SpoolUnavailable("the disk does not answer")] * len(tasks)

    # What the scanner says

    def scan_begins(self) -> None:
        """See `trispool.scanner.Observer`."""
        self.backlog.scan_begins()

    def scan_saw(self, entries: Sequence[Entry]) -> None:
        """See `trispool.scanner.Observer`."""
        now = self._clock()
        for entry in entries:
            self.backlog.saw(entry, now)
        self._wake.set()

    async def scan_ended(self) -> None:
        """See `trispool.scanner.Observer`."""
        for refs in self.backlog.unseen():
            for ref in refs:
                self.backlog.gone(ref)
            await trio.lowlevel.checkpoint()
        self._scanned = True
        for task_id in self.backlog.forget_lost():
            self._history.forget(task_id)
        self._wake.set()

    def changed(self, changes: Sequence[Change]) -> None:
        """See `trispool.scanner.Observer`."""
        now = self._clock()
        for ref, entry in changes:
            if entry is None:
                self.backlog.gone(ref)
            else:
                self.backlog.saw(entry, now, told=True)
                self._wake.set()

    # What the pool says

    def worker_ready(self, worker: Worker) -> None:
        """A worker has imported its handlers and takes tasks."""
        self._workers.append(worker)
        default = self._settings.policy
        for name, handler in worker.handlers.items():
            self._policies[worker.pid, name] = RetryPolicy(
                default.max_attempts if handler["retries"] is None else handler["retries"] + 1,
                default.backoff if handler["backoff"] is None else handler["backoff"],
            )
        self._wake.set()

    def worker_reported(self, worker: Worker, reports: Sequence[Report]) -> None:
        """A worker has run tasks, or found that it cannot."""
        now = self._clock()
        for report in reports:
            running = self.backlog.ended(report.claim.ref)
            if running is None:
                continue
            if report.code in RAN:
                self._attempt_ended(worker, running, report, now)
            else:
                self._not_run(running, report, now)
        self._wake.set()

    def worker_lost(self, worker: Worker, returned: Sequence[Claim], suspects: Sequence[Claim], cause: str) -> None:
        """A worker process has ended; `returned` had not been begun, `suspects` were running."""
        now = self._clock()
        if worker in self._workers:
            self._workers.remove(worker)
        self._policies = {key: policy for key, policy in self._policies.items() if key[0] != worker.pid}
        for claim in returned:
            if running := self.backlog.ended(claim.ref):
                self._to_release.append(claim)
                self.backlog.put_back(running, now)
        for claim in suspects:
            if running := self.backlog.ended(claim.ref):
                outcome = "timeout" if cause.startswith("harakiri") else "lost"
                self._attempt_ended(worker, running, Loss(claim, outcome, running.given_at, now, cause), now)
        self._wake.set()

    def worker_progress(self, worker: Worker, task_id: str, fraction: float, text: str) -> None:
        """A handler has told how far it is."""
        found = self.backlog.find(task_id)
        if isinstance(found, Running):
            found.progress = (fraction, text)

    def worker_set_frequency(self, seconds: float) -> None:
        """A handler wants the spool scanned so often, seconds; 0: as configured (`uwsgi.set_spooler_frequency`)."""
        self._frequency_wanted(seconds or self._settings.frequency)

    def worker_log(self, worker: Worker, stream: str, task_id: str | None, line: str) -> None:
        """A handler has written a line."""
        self._log.info("handler_output", task=task_id, stream=stream, worker=worker.pid, line=line)

    def _attempt_ended(self, worker: Worker, running: Running, report: Report, now: float) -> None:
        entry, code = running.entry, report.code
        self.counts[code] += 1
        policy = self._settings.policy
        if report.handler is not None:
            policy = self._policies.get((worker.pid, report.handler), policy)
        row = row_of_attempt(running, report)
        if code == "ok":
            self._finished(running, report.claim)
            self._history.record(row)
            return
        if code != "retry":
            self._log.warning(
                "attempt_ended_badly",
                task=entry.id,
                attempt=running.attempt,
                outcome=code,
                handler=report.handler,
                error=report.error,
                traceback=report.traceback,
            )
        decision = decide(
            code,
            running.attempt,
            now,
            policy=policy,
            frequency=self.backlog.frequency,
            jitter=random.random(),
            retry_at=report.retry_at,
        )
        assert not isinstance(decision, Done)
        if isinstance(decision, GiveUp):
            self._to_set_aside.append((running, decision.reason, row))
            return
        self._to_release.append(report.claim)
        self._history.remember(self.backlog.wait_again(running, decision, now, report.error or code))
        self._history.record(row)

    def _finished(self, running: Running, claim: Claim) -> None:
        self._to_finish.append(claim)
        if self.backlog.finished(running.entry.id):
            self._history.forget(running.entry.id)

    def _not_run(self, running: Running, report: Report, now: float) -> None:
        code, entry = report.code, running.entry
        if code == "gone":
            if self.backlog.finished(entry.id):
                self._history.forget(entry.id)
            return
        if code == "unreadable":
            reason = str(report.detail)
            self._to_set_aside.append((running, reason, row_of_unreadable(running, now, reason)))
            return
        self._to_release.append(report.claim)
        if code == "not_due":
            self.backlog.put_back(running, now, at=float(str(report.detail)))
        elif code == "locked":
            self.backlog.put_back(running, now, at=now + self.backlog.frequency, locked=True)
        elif code == "settling":
            if report.detail:
                self._log.warning("task_cannot_be_opened", task=entry.id, reason=report.detail)
            self.backlog.put_back(running, now, at=now + SETTLE_SECONDS)
        else:
            self.backlog.put_back(running, now)

    # The loop

    async def run_dispatcher(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Hand due tasks to workers until cancelled."""
        task_status.started()
        while True:
            with trio.move_on_after(self._sleep_seconds()):
                await self._wake.wait()
            self._wake = trio.Event()
            await self.settle()
            if self._scanned and not self._paused and not self._draining:
                await self._hand_out()

    async def settle(self) -> None:
        """Tell the store what the workers' reports mean for it."""
        if self._to_finish:
            done, self._to_finish = self._to_finish, []
            await self._store.finish(done)
        if self._to_release:
            released, self._to_release = self._to_release, []
            await self._store.release(released)
        while self._to_set_aside:
            running, reason, row = self._to_set_aside.pop()
            await self._set_aside(running, reason, row)

    def _sleep_seconds(self) -> float:
        if self._paused or self._draining or not self._scanned:
            return LONGEST_SLEEP
        due_at = self.backlog.next_due()
        if due_at is None:
            return LONGEST_SLEEP
        return min(LONGEST_SLEEP, max(0.0, due_at - self._clock()))

    async def _hand_out(self) -> None:
        now = self._clock()
        ready = self.backlog.look(now)
        # Idle workers first: a task given behind another one waits for it.
        free = sorted((worker for worker in self._workers if worker.room > 0), key=lambda worker: worker.in_hand)
        for number, worker in enumerate(free):
            if not ready:
                break
            share = -(-ready // (len(free) - number))
            taken = self.backlog.take(min(worker.room, share), now, worker.pid)
            ready -= len(taken)
            claims = await self._store.claim([running.entry for running in taken])
            if len(claims) < len(taken):
                self._drop_unclaimed(taken, claims)
                taken = [running for claim in claims if (running := self.backlog.running.get(claim.ref))]
            if claims:
                worker.give(claims, [running.attempt for running in taken])

    def _drop_unclaimed(self, taken: Sequence[Running], claims: Sequence[Claim]) -> None:
        claimed = {claim.ref for claim in claims}
        for running in taken:
            if running.entry.ref not in claimed:
                self.backlog.ended(running.entry.ref)

    async def _set_aside(self, running: Running, reason: str, row: AttemptRow) -> None:
        entry = running.entry
        try:
            kept = await self._store.set_aside(entry)
        except SpoolUnavailable as error:
            self._log.error("task_not_set_aside", task=entry.id, reason=reason, error=str(error))
            now = self._clock()
            self.backlog.put_back(running, now, at=now + self.backlog.frequency)
            return
        if kept:
            self._log.error("task_set_aside", task=entry.id, reason=reason)
            self.counts["dead"] += 1
            row = row._replace(state="dead", error=row.error or reason)
        self._history.record(row)
        if self.backlog.finished(entry.id):
            self._history.forget(entry.id)
