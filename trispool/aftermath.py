"""What becomes of tasks that have left a worker's hand.

Rules it keeps:

1. What an attempt did to a task is decided in one place (`_attempt_ended`, by `trispool.retry`) and recorded there.
2. A worker's word is taken by a plain call. Whatever then needs the store is done by `settle`, for all that came
   together; a task that it is about runs until then, as far as the backlog knows, so that a scan which comes across its
   file does not take it for a new one.
3. A task that an operator wants cancelled while it runs ends so, whatever came of the attempt, unless that went well:
   then it was done before.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from typing import TYPE_CHECKING, Final

import structlog
import trio

from trispool.backlog import SETTLE_SECONDS, Backlog, Running
from trispool.errors import SpoolUnavailable, TaskRefused
from trispool.packet import encode_vars
from trispool.retry import Done, GiveUp, RunAgain, decide
from trispool.store import Claim
from trispool.task import MAX_KEPT_VARS, TaskState
from trispool.workforce import (
    RAN,
    RAN_BADLY,
    UNREADABLE,
    DispatcherSettings,
    History,
    Loss,
    Report,
    Watcher,
    handler_asked_for,
    row_of_attempt,
    row_of_unreadable,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from trispool.retry import RetryPolicy
    from trispool.store import SpoolStore
    from trispool.task import AttemptRow, Task

__all__ = ["Aftermath", "Cancelling", "kept_vars"]

_NOT_BEGUN: Final = frozenset({"returned", "not_due", "settling", "unreadable"})
"""The codes of reports of tasks that are there and whose handler was not called."""

_Policies = dict[str, "RetryPolicy"]

_log = structlog.get_logger()


class Cancelling:
    """The wish that a running task be cancelled.

    Args:
        by: Who wants it.

    Attributes:
        settled: Set when the task has been cancelled, or it is known that it cannot be.
        problem: Why it could not, or None.
    """

    __slots__ = ("by", "problem", "settled")

    def __init__(self, by: str) -> None:
        self.by = by
        self.settled = trio.Event()
        self.problem: SpoolUnavailable | None = None


def kept_vars(task: Task | None) -> bytes | None:
    """What the history keeps of a task's vars; see `trispool.task.AttemptRow`."""
    if task is None:
        return None
    try:
        payload = encode_vars(task.vars)
    except TaskRefused:  # others may write what we would not
        return None
    return payload if len(payload) <= MAX_KEPT_VARS else None


class Aftermath:
    """See the module.

    Args:
        backlog: What waits and runs.
        store: The spool's store.
        history: Where attempts are recorded.
        settings: Those of the spool.
        clock: Unix seconds.
        watcher: Who is told what happens.

    Attributes:
        counts: How many attempts ended in which way, and how many tasks were set aside (`dead`).
    """

    def __init__(
        self,
        backlog: Backlog,
        store: SpoolStore,
        history: History,
        settings: DispatcherSettings,
        clock: Callable[[], float],
        watcher: Watcher,
    ) -> None:
        self.counts: Counter[str] = Counter()
        self._backlog = backlog
        self._store = store
        self._history = history
        self._settings = settings
        self._clock = clock
        self._watcher = watcher
        self._log = _log.bind(spool=settings.name)
        self._cancelling: dict[str, Cancelling] = {}  # by ref
        self._to_judge: deque[tuple[_Policies, Running, Report]] = deque()
        self._to_finish: list[Claim] = []
        self._to_set_aside: deque[tuple[Running, str, AttemptRow]] = deque()
        self._to_cancel: deque[tuple[Running, Claim, Cancelling, AttemptRow]] = deque()
        self._to_release: list[Claim] = []

    # What comes from workers

    def reported(self, policies: _Policies, reports: Sequence[Report]) -> None:
        """A worker has run tasks, or found that it cannot.

        Args:
            policies: When the tasks of its handlers are tried again; see `trispool.workforce.policies_of`.
            reports: What it says.
        """
        now, ended = self._clock(), self._backlog.ended
        well: list[AttemptRow] = []
        for report in reports:
            running = ended(report.claim.ref)
            if running is None or (self._cancelling and self._is_cancelled(running, report, now)):
                continue
            if report.code == "ok":
                self._to_finish.append(report.claim)
                well.append(row_of_attempt(running, report, report.handler))
            elif report.code in RAN:
                if report.handler is None and report.code in RAN_BADLY:
                    self._judge_later(policies, running, report)
                else:
                    self._attempt_ended(policies, running, report, report.handler, now)
            else:
                self._not_run(running, report, now)
        if well:
            self.counts["ok"] += len(well)
            if self._backlog.knows_attempts:
                for row in well:
                    self.forget_attempts(row.task)
            self._history.record(*well)
            self._watcher.ended(well, TaskState.DONE)

    def forget_attempts(self, task_id: str) -> None:
        """The task no longer waits for another attempt."""
        if self._backlog.finished(task_id):
            self._history.forget(task_id)

    def lost(self, policies: _Policies, returned: Sequence[Claim], suspects: Sequence[Claim], cause: str) -> None:
        """A worker process has ended.

        Args:
            policies: See `reported`.
            returned: What it had not begun.
            suspects: What it was running.
            cause: What became of it.
        """
        now = self._clock()
        for claim in returned:
            if running := self._backlog.ended(claim.ref):
                self._not_begun(running, claim, now)
        for claim in suspects:
            if running := self._backlog.ended(claim.ref):
                outcome = "timeout" if cause.startswith("harakiri") else "lost"
                loss = Loss(claim, outcome, running.given_at, now, cause)
                if not self._is_cancelled(running, loss, now):
                    self._judge_later(policies, running, loss)

    def not_begun(self, running: Running, claim: Claim) -> None:
        """A task that was claimed has not been given to a worker."""
        self._backlog.ended(running.entry.ref)
        self._not_begun(running, claim, self._clock())

    def _not_begun(self, running: Running, claim: Claim, now: float) -> None:
        if not self._is_cancelled(running, Loss(claim, "returned", now, now, ""), now):
            self._to_release.append(claim)
            self._put_back(running, now)

    def _put_back(self, running: Running, now: float, *, at: float | None = None, locked: bool = False) -> None:
        self._backlog.put_back(running, now, at=at, locked=locked)
        self._watcher.changed(running.entry.id, TaskState.READY if at is None or at <= now else TaskState.SCHEDULED)

    def not_there(self, running: Running) -> None:
        """A task that was to be run could not be claimed."""
        self._backlog.ended(running.entry.ref)
        self._backlog.vanished(running)
        self._cannot_cancel(running)

    # Cancelling

    def cancel(self, running: Running, by: str) -> Cancelling:
        """Let a running task end as cancelled; who calls this then sees to it that it ends.

        Args:
            running: The task.
            by: Who wants it.
        """
        return self._cancelling.setdefault(running.entry.ref, Cancelling(by))

    @property
    def is_cancelling(self) -> bool:
        """Whether there are tasks that are to end as cancelled."""
        return bool(self._cancelling)

    def wants_cancelled(self, running: Running) -> bool:
        """Whether an operator has cancelled this task."""
        return running.entry.ref in self._cancelling

    def _is_cancelled(self, running: Running, report: Report, now: float) -> bool:
        """Take care of a task that has left the worker's hand, if it has been cancelled."""
        if report.code in ("ok", "gone", "locked"):
            # It was done before; or whoever has taken its file decides what becomes of it.
            self._cannot_cancel(running)
            return False
        cancelling = self._cancelling.pop(running.entry.ref, None)
        if cancelling is None:
            return False
        row = row_of_attempt(running, report, report.handler)._replace(
            number=running.attempt - (report.code in _NOT_BEGUN),
            outcome="cancelled",
            state=TaskState.CANCELLED.value,
            started_at=report.started_at or now,
            error=f"by {cancelling.by}",
        )
        self._backlog.keep(running)
        self._to_cancel.append((running, report.claim, cancelling, row))
        return True

    def _cannot_cancel(self, running: Running) -> None:
        if cancelling := self._cancelling.pop(running.entry.ref, None):
            cancelling.settled.set()

    # What an attempt did to a task

    def _judge_later(self, policies: _Policies, running: Running, report: Report) -> None:
        # The worker did not live to tell whose the task was. It is read for that.
        self._backlog.keep(running)
        self._to_judge.append((policies, running, report))

    def _attempt_ended(
        self, policies: Mapping[str, RetryPolicy], running: Running, report: Report, handler: str | None, now: float
    ) -> None:
        entry, code = running.entry, report.code
        self.counts[code] += 1
        row = row_of_attempt(running, report, handler)
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
            frequency=self._backlog.frequency,
            jitter=random.random(),
            retry_at=report.retry_at,
        )
        assert not isinstance(decision, Done)
        if isinstance(decision, GiveUp):
            self._give_up(running, decision.reason, row)
            return
        self._to_release.append(report.claim)
        self._wait_again(running, decision, row, now, report.error or code)

    def _wait_again(self, running: Running, again: RunAgain, row: AttemptRow, now: float, error: str) -> None:
        known = self._backlog.wait_again(running, again, now, error)
        self._history.remember(known)
        self._history.record(row)
        self._watcher.ended([row], TaskState.SCHEDULED if known.due_at > now else TaskState.READY)

    def _not_run(self, running: Running, report: Report, now: float) -> None:
        code, entry = report.code, running.entry
        if code == "unreadable":
            reason = str(report.detail)
            self._give_up(running, reason, row_of_unreadable(running, now, reason))
            return
        self._to_release.append(report.claim)
        if code == "gone":
            self._backlog.vanished(running)
        elif code == "not_due":
            self._put_back(running, now, at=float(str(report.detail)))
        elif code == "locked":
            self._put_back(running, now, at=now + self._backlog.frequency, locked=True)
        elif code == "settling" and report.detail:
            self._log.warning("task_cannot_be_opened", task=entry.id, reason=report.detail)
            self._put_back(running, now, at=now + self._backlog.frequency)
        elif code == "settling":
            self._put_back(running, now, at=now + SETTLE_SECONDS)
        else:
            self._put_back(running, now)

    def _give_up(self, running: Running, reason: str, row: AttemptRow) -> None:
        self._backlog.keep(running)
        self._to_set_aside.append((running, reason, row))

    # What needs the store

    async def settle(self) -> None:
        """Tell the store what the workers' reports mean for it; what a cancelled call leaves, the next one does."""
        while self._to_judge:
            policies, running, report = self._to_judge[0]
            handler = await handler_asked_for(report.claim, self._store, policies)
            self._to_judge.popleft()
            self._backlog.ended(running.entry.ref)
            now = self._clock()
            if not self._is_cancelled(running, report, now):
                self._attempt_ended(policies, running, report, handler, now)
        if self._to_finish:
            done = tuple(self._to_finish)
            await self._store.finish(done)
            del self._to_finish[: len(done)]
        while self._to_set_aside:
            await self._set_aside(*self._to_set_aside[0])
            self._to_set_aside.popleft()
        while self._to_cancel:
            await self._remove(*self._to_cancel[0])
            self._to_cancel.popleft()
        # Last, and until there are none: what has come back meanwhile waits already, and may be claimed after this.
        while self._to_release:
            released = tuple(self._to_release)
            await self._store.release(released)
            del self._to_release[: len(released)]

    async def _set_aside(self, running: Running, reason: str, row: AttemptRow) -> None:
        entry = running.entry
        try:
            kept = await self._store.set_aside(entry)
        except SpoolUnavailable as error:
            reason, kept = f"{reason} ({error})", False
        self._backlog.ended(entry.ref)
        self._cannot_cancel(running)  # if that came meanwhile: whoever wants it looks where the task is now
        if kept:
            self._backlog.taken_out(entry.ref)
            self._log.error("task_set_aside", task=entry.id, reason=reason)
            self.counts["dead"] += 1
            row = row._replace(state="dead", error=row.error or reason)
            self._history.record(row)
            self.forget_attempts(entry.id)
            self._watcher.ended([row], TaskState.DEAD)
            return
        # It is gone, or somebody else is at work on it, or the disk is full.
        self._log.error("task_not_set_aside", task=entry.id, reason=reason)
        self._to_release.append(Claim(entry.id, entry.ref))
        now = self._clock()
        if row.outcome != UNREADABLE:
            again = RunAgain(now + self._backlog.frequency, running.attempt, by_frequency=True)
            self._wait_again(running, again, row, now, reason)
        else:
            self._put_back(running, now, at=now + self._backlog.frequency)

    async def _remove(self, running: Running, claim: Claim, cancelling: Cancelling, row: AttemptRow) -> None:
        await self._store.release([claim])
        entry = self._backlog.as_it_is(running)
        removed: Task | None = None
        is_there = True
        try:
            removed = await self._store.remove(entry)
            is_there = removed is None and await self._store.get(entry.ref, body_limit=0) is not None
        except SpoolUnavailable as error:
            cancelling.problem = error
        self._backlog.ended(running.entry.ref)
        if is_there:
            # Another process has it, or what its handler has started holds its file, or the disk fails.
            self._log.error("task_not_cancelled", task=entry.id, reason=str(cancelling.problem or "its file is in use"))
            self._put_back(running, self._clock(), at=self._clock() + self._backlog.frequency, locked=True)
        else:
            self._backlog.taken_out(entry.ref)
            self.forget_attempts(entry.id)
            self.counts[row.outcome] += 1
            row = row._replace(vars=kept_vars(removed))
            self._history.record(row)
            self._watcher.ended([row], TaskState.CANCELLED)
        cancelling.settled.set()
        self._cannot_cancel(running)  # who asked for it, too, meanwhile
