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
from collections import Counter, deque
from typing import TYPE_CHECKING, Final

import structlog
import trio

from trispool.backlog import SETTLE_SECONDS, Backlog, Running
from trispool.errors import SpoolUnavailable, TrispoolError
from trispool.retry import Done, GiveUp, RunAgain, decide
from trispool.store import Claim
from trispool.task import AttemptRow, Entry, NewTask, Retrying
from trispool.workforce import (
    RAN,
    RAN_BADLY,
    UNREADABLE,
    DispatcherSettings,
    History,
    Loss,
    Report,
    Worker,
    handler_asked_for,
    policies_of,
    row_of_attempt,
    row_of_unreadable,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from trispool.retry import RetryPolicy
    from trispool.store import Change, SpoolStore

__all__ = ["Dispatcher", "DispatcherSettings"]

LONGEST_SLEEP: Final = 10.0
"""The loop looks this often although nothing is due, seconds: somebody may have set the clock."""

ENQUEUE_SECONDS: Final = 30.0
"""For so long an enqueue is seen to its end for a caller that has been cancelled, seconds."""

LOOK_AT_ONCE: Final = 500
"""Tasks that are found due in one go, some 2 ms: a hundred thousand may have been asked for at midnight."""

_log = structlog.get_logger()


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
        self._policies: dict[int, dict[str, RetryPolicy]] = {}  # by worker and handler
        self._wake = trio.Event()
        self._scanned = False
        self._paused = False
        self._draining = False
        self._to_finish: list[Claim] = []
        self._to_release: list[Claim] = []
        self._to_set_aside: deque[tuple[Running, str, AttemptRow]] = deque()
        self._to_judge: deque[tuple[dict[str, RetryPolicy], Running, Report]] = deque()

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
        self._policies[worker.pid] = policies_of(worker, self._settings.policy)
        self._wake.set()

    def worker_reported(self, worker: Worker, reports: Sequence[Report]) -> None:
        """A worker has run tasks, or found that it cannot."""
        now = self._clock()
        policies = self._policies.get(worker.pid, {})
        for report in reports:
            running = self.backlog.ended(report.claim.ref)
            if running is None:
                continue
            if report.code in RAN:
                if report.handler is None and report.code in RAN_BADLY:
                    self._judge_later(policies, running, report)
                else:
                    self._attempt_ended(policies, running, report, report.handler, now)
            else:
                self._not_run(running, report, now)
        self._wake.set()

    def worker_lost(self, worker: Worker, returned: Sequence[Claim], suspects: Sequence[Claim], cause: str) -> None:
        """A worker process has ended; `returned` had not been begun, `suspects` were running."""
        now = self._clock()
        if worker in self._workers:
            self._workers.remove(worker)
        policies = self._policies.pop(worker.pid, {})
        for claim in returned:
            if running := self.backlog.ended(claim.ref):
                self._to_release.append(claim)
                self.backlog.put_back(running, now)
        for claim in suspects:
            if running := self.backlog.ended(claim.ref):
                outcome = "timeout" if cause.startswith("harakiri") else "lost"
                self._judge_later(policies, running, Loss(claim, outcome, running.given_at, now, cause))
        self._wake.set()

    def worker_progress(self, worker: Worker, task_id: str, fraction: float, text: str) -> None:
        """A handler has told how far it is."""
        found = self.backlog.find(task_id)
        if isinstance(found, Running):
            found.progress = (fraction, text)

    def worker_set_frequency(self, seconds: float) -> None:
        """A handler wants the spool scanned so often, seconds; 0: as configured (`uwsgi.set_spooler_frequency`)."""
        self._frequency_wanted(seconds if seconds > 0 else self._settings.frequency)

    def worker_log(self, worker: Worker, stream: str, task_id: str | None, line: str) -> None:
        """A handler has written a line."""
        self._log.info("handler_output", task=task_id, stream=stream, worker=worker.pid, line=line)

    def _judge_later(self, policies: dict[str, RetryPolicy], running: Running, report: Report) -> None:
        # The worker did not live to tell whose the task was. It is read for that.
        self.backlog.keep(running)
        self._to_judge.append((policies, running, report))

    def _attempt_ended(
        self, policies: Mapping[str, RetryPolicy], running: Running, report: Report, handler: str | None, now: float
    ) -> None:
        entry, code = running.entry, report.code
        self.counts[code] += 1
        row = row_of_attempt(running, report, handler)
        if code == "ok":
            self._to_finish.append(report.claim)
            if self.backlog.finished(entry.id):
                self._history.forget(entry.id)
            self._history.record(row)
            return
        if code != "retry":
            self._log.warning(
                "attempt_ended_badly",
                task=entry.id,
                attempt=running.attempt,
                outcome=code,
                handler=handler,
                error=report.error,
                traceback=report.traceback,
            )
        decision = decide(
            code,
            running.attempt,
            now,
            policy=policies.get(handler or "", self._settings.policy),
            frequency=self.backlog.frequency,
            jitter=random.random(),
            retry_at=report.retry_at,
        )
        assert not isinstance(decision, Done)
        if isinstance(decision, GiveUp):
            self._give_up(running, decision.reason, row)
            return
        self._to_release.append(report.claim)
        self._history.remember(self.backlog.wait_again(running, decision, now, report.error or code))
        self._history.record(row)

    def _not_run(self, running: Running, report: Report, now: float) -> None:
        code, entry = report.code, running.entry
        if code == "unreadable":
            reason = str(report.detail)
            self._give_up(running, reason, row_of_unreadable(running, now, reason))
            return
        self._to_release.append(report.claim)
        if code == "gone":
            self.backlog.vanished(running)
        elif code == "not_due":
            self.backlog.put_back(running, now, at=float(str(report.detail)))
        elif code == "locked":
            self.backlog.put_back(running, now, at=now + self.backlog.frequency, locked=True)
        elif code == "settling" and report.detail:
            self._log.warning("task_cannot_be_opened", task=entry.id, reason=report.detail)
            self.backlog.put_back(running, now, at=now + self.backlog.frequency)
        elif code == "settling":
            self.backlog.put_back(running, now, at=now + SETTLE_SECONDS)
        else:
            self.backlog.put_back(running, now)

    def _give_up(self, running: Running, reason: str, row: AttemptRow) -> None:
        # A scan that comes across its file meanwhile must not take it for a new task.
        self.backlog.keep(running)
        self._to_set_aside.append((running, reason, row))

    # The loop

    async def run_dispatcher(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Hand due tasks to workers until cancelled."""
        task_status.started()
        while True:
            with trio.move_on_after(self._sleep_seconds()):
                await self._wake.wait()
            self._wake = trio.Event()
            await self.settle()
            now = await self._find_due()
            if self._scanned and not self._paused and not self._draining:
                await self._hand_out(now)

    async def settle(self) -> None:
        """Tell the store what the workers' reports mean for it; what a cancelled call leaves, the next one does."""
        while self._to_judge:
            policies, running, report = self._to_judge[0]
            handler = await handler_asked_for(report.claim, self._store, policies)
            self._to_judge.popleft()
            self.backlog.ended(running.entry.ref)
            self._attempt_ended(policies, running, report, handler, self._clock())
        if self._to_finish:
            done = tuple(self._to_finish)
            await self._store.finish(done)
            del self._to_finish[: len(done)]
        if self._to_release:
            released = tuple(self._to_release)
            await self._store.release(released)
            del self._to_release[: len(released)]
        while self._to_set_aside:
            await self._set_aside(*self._to_set_aside[0])
            self._to_set_aside.popleft()

    def _sleep_seconds(self) -> float:
        if self._paused or self._draining or not self._scanned:
            return LONGEST_SLEEP
        due_at = self.backlog.next_due()
        if due_at is None:
            return LONGEST_SLEEP
        return min(LONGEST_SLEEP, max(0.0, due_at - self._clock()))

    async def _find_due(self) -> float:
        now = self._clock()
        self.backlog.look(now, LOOK_AT_ONCE)
        while (due_at := self.backlog.next_due()) is not None and due_at <= now:
            await trio.lowlevel.checkpoint()
            self.backlog.look(now, LOOK_AT_ONCE)
        return now

    async def _hand_out(self, now: float) -> None:
        while self.backlog.ready:
            # Idle workers first: a task given behind another one waits for it.
            free = sorted((worker for worker in self._workers if worker.room > 0), key=lambda worker: worker.in_hand)
            if not free:
                return
            for number, worker in enumerate(free):
                share = -(-self.backlog.ready // (len(free) - number))
                await self._give(worker, self.backlog.take(min(worker.room, share), now, worker.pid))
            # Is there more? One may have had room for more than its share, and another not for its.

    async def _give(self, worker: Worker, taken: Sequence[Running]) -> None:
        if not taken:
            return
        claims = await self._store.claim([running.entry for running in taken])
        if len(claims) < len(taken):
            claimed = {claim.ref for claim in claims}
            for running in taken:
                if running.entry.ref not in claimed:
                    self.backlog.ended(running.entry.ref)
                    self.backlog.vanished(running)
            taken = [running for running in taken if running.entry.ref in claimed]
        if claims:
            worker.give(claims, [running.attempt for running in taken])

    async def _set_aside(self, running: Running, reason: str, row: AttemptRow) -> None:
        entry = running.entry
        try:
            kept = await self._store.set_aside(entry)
        except SpoolUnavailable as error:
            reason, kept = f"{reason} ({error})", False
        self.backlog.ended(entry.ref)
        if kept:
            self._log.error("task_set_aside", task=entry.id, reason=reason)
            self.counts["dead"] += 1
            self._history.record(row._replace(state="dead", error=row.error or reason))
            if self.backlog.finished(entry.id):
                self._history.forget(entry.id)
            return
        # It is gone, or somebody else is at work on it, or the disk is full.
        self._log.error("task_not_set_aside", task=entry.id, reason=reason)
        self._to_release.append(Claim(entry.id, entry.ref))
        self._wake.set()
        now = self._clock()
        if row.outcome != UNREADABLE:
            self._history.record(row)
            again = RunAgain(now + self.backlog.frequency, running.attempt, by_frequency=True)
            self._history.remember(self.backlog.wait_again(running, again, now, reason))
        else:
            self.backlog.put_back(running, now, at=now + self.backlog.frequency)
