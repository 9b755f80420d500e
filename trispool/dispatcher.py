"""Due tasks meet free workers.

Rules it keeps:

1. A task starts when it is due and a worker has room; among due ones in the order of the schedule. Nothing is started
   before the first scan has ended, since what it finds last may be what must run first.
2. A worker's word is taken by a plain call; what follows from it is the business of `trispool.aftermath`, and whatever
   of that needs the store is done by the loop of `run_dispatcher`, for all that came together.
"""

from __future__ import annotations

import contextlib
import math
import time
from typing import TYPE_CHECKING, Final

import structlog
import trio

from trispool.aftermath import Aftermath, Cancelling, kept_vars
from trispool.backlog import Backlog, Running
from trispool.errors import SpoolUnavailable, TrispoolError
from trispool.task import Entry, NewTask, Retrying, Task, TaskState
from trispool.workforce import (
    DispatcherSettings,
    History,
    Report,
    Unwatched,
    Watcher,
    Worker,
    policies_of,
    row_of_action,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from trispool.retry import RetryPolicy
    from trispool.store import Change, Claim, SpoolStore

__all__ = ["Dispatcher", "DispatcherSettings"]

LONGEST_SLEEP: Final = 10.0
"""The loop looks this often although nothing is due, seconds: somebody may have set the clock."""
CLOCK_STEP_SECONDS: Final = 1.0
"""A clock that goes back by more has been set."""

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
        watcher: Who is told what happens.
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
        watcher: Watcher | None = None,
    ) -> None:
        self.backlog = Backlog(settings.frequency, remembered)
        self._store = store
        self._history = history
        self._settings = settings
        self._clock = clock
        self._frequency_wanted = frequency_wanted or self.set_frequency
        self._log = _log.bind(spool=settings.name)
        self._workers: list[Worker] = []
        self._policies: dict[int, dict[str, RetryPolicy]] = {}  # by worker and handler
        self._wake = trio.Event()
        self._looked_at = -math.inf
        self._scanned = False
        self._paused = False
        self._draining = False
        self._caught_up = trio.Event()
        self._watcher = watcher or Unwatched()
        self._aftermath = Aftermath(self.backlog, store, history, settings, clock, self._watcher)

    @property
    def counts(self) -> Mapping[str, int]:
        """How many attempts ended in which way, and how many tasks were set aside (`dead`)."""
        return self._aftermath.counts

    # What an operator and the faces do

    @property
    def paused(self) -> bool:
        """Whether an operator said that no task shall start."""
        return self._paused

    @property
    def scanned(self) -> bool:
        """Whether the first scan has ended; nothing is started before."""
        return self._scanned

    async def wait_caught_up(self) -> None:
        """Until what the first scan found due has been handed to workers, or must not be."""
        await self._caught_up.wait()

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
            entries = [result for result in results if isinstance(result, Entry)]
            new = []
            for number, entry in enumerate(entries, 1):
                # A scan that has come across it before us has told the watcher, unless it was the first one.
                if self.backlog.added(entry, now) or not self._scanned:
                    new.append(entry)
                if not number % LOOK_AT_ONCE:
                    with trio.CancelScope(shield=True):  # no deadline, as they are kept: nothing is waited for
                        await trio.lowlevel.checkpoint()
            self._watcher.enqueued(new)
            self._wake.set()
            return results
        return [SpoolUnavailable("the disk does not answer")] * len(tasks)

    # What an operator has done, in the store, to a task that waits or lies there; `by` is who that was

    def cancel(self, running: Running, by: str) -> Cancelling:
        """Let a running task end as cancelled; who calls this sees to it that it ends."""
        self._wake.set()
        return self._aftermath.cancel(running, by)

    def has_cancelled(self, entry: Entry, by: str, removed: Task) -> None:
        """It is gone for good."""
        attempts = self.backlog.attempts(entry.id)
        self.backlog.taken_out(entry.ref)
        self._aftermath.forget_attempts(entry.id)
        entry = entry._replace(priority=removed.priority)
        self._note(entry, attempts, "cancelled", TaskState.CANCELLED, by, kept_vars(removed))

    def has_held(self, entry: Entry, by: str) -> None:
        """It no longer waits to be run."""
        self.backlog.taken_out(entry.ref)
        self._note(entry, self.backlog.attempts(entry.id), "held", TaskState.HELD, by)

    def has_restored(self, entry: Entry, outcome: str, by: str) -> None:
        """It waits again.

        Args:
            entry: The task, as it is now.
            outcome: `released`: due when it was; `hurried`, `rescheduled`: due at its `at`; `retried`: as a new one.
            by: Who did it.
        """
        now = self._clock()
        attempts = self.backlog.attempts(entry.id)
        if outcome == "retried":
            self._aftermath.forget_attempts(entry.id)
        self.backlog.added(entry, now)
        if outcome in ("hurried", "rescheduled"):
            self._move(entry, entry.at, now)
        self._note(entry, attempts, outcome, self._state_of(entry, now), by)

    def has_moved(self, entry: Entry, due_at: float, outcome: str, by: str) -> None:
        """It waits until another time.

        Args:
            entry: The task, as it is now.
            due_at: When, Unix seconds.
            outcome: `hurried`, `retried` or `rescheduled`.
            by: Who did it.
        """
        found = self.backlog.find(entry.id)
        if found is None or found.entry.ref != entry.ref:
            return  # it was due already, and a worker has been quicker
        now = self._clock()
        self._move(entry, due_at, now)
        self._note(entry, self.backlog.attempts(entry.id), outcome, self._state_of(entry, now), by)

    def _move(self, entry: Entry, due_at: float, now: float) -> None:
        if known := self.backlog.move(entry, due_at, now):
            self._history.remember(known)

    def _state_of(self, entry: Entry, now: float) -> TaskState:
        found = self.backlog.find(entry.id)
        if isinstance(found, Running):
            return TaskState.RUNNING
        return TaskState.SCHEDULED if found is not None and found.due_at > now else TaskState.READY

    def _note(
        self, entry: Entry, attempts: int, outcome: str, state: TaskState, by: str, vars: bytes | None = None
    ) -> None:
        self._history.record(row_of_action(entry, attempts, outcome, state, self._clock(), by, vars))
        self._watcher.changed(entry.id, state)
        self._wake.set()

    # What the scanner says

    def scan_begins(self) -> None:
        """See `trispool.scanner.Observer`."""
        self.backlog.scan_begins()

    def scan_saw(self, entries: Sequence[Entry]) -> None:
        """See `trispool.scanner.Observer`."""
        new = self.backlog.saw_all(entries, self._clock())
        if self._scanned:  # before, nothing is started
            if new:
                self._watcher.enqueued(new)
            self._wake.set()

    def scan_unknown(self, refs: Sequence[str]) -> Sequence[str]:
        """See `trispool.scanner.Observer`."""
        return self.backlog.unknown(refs)

    @property
    def is_missing_any(self) -> bool:
        """See `trispool.scanner.Observer`."""
        return self.backlog.is_missing_any

    async def scan_ended(self) -> None:
        """See `trispool.scanner.Observer`."""
        self.backlog.scan_ends()
        for refs in self.backlog.unseen():
            for ref in refs:
                self.backlog.gone(ref)
            await trio.lowlevel.checkpoint()
        self._scanned = True
        self._wake.set()
        for lost in self.backlog.lost():
            # If it is not known what is held, nothing is forgotten; the next scan will do.
            with contextlib.suppress(SpoolUnavailable):
                held = await self._store.held_among(lost)
                for task_id in self.backlog.forget_lost(task_id for task_id in lost if task_id not in held):
                    self._history.forget(task_id)

    def changed(self, changes: Sequence[Change]) -> None:
        """See `trispool.scanner.Observer`."""
        now = self._clock()
        for ref, entry in changes:
            if entry is None:
                self.backlog.gone(ref)
            else:
                if self.backlog.saw(entry, now, told=True):
                    self._watcher.enqueued([entry])
                self._wake.set()

    # What the pool says

    def worker_ready(self, worker: Worker) -> None:
        """A worker has imported its handlers and takes tasks."""
        self._workers.append(worker)
        self._policies[worker.pid] = policies_of(worker, self._settings.policy)
        self._wake.set()

    def worker_reported(self, worker: Worker, reports: Sequence[Report]) -> None:
        """A worker has run tasks, or found that it cannot."""
        self._aftermath.reported(self._policies.get(worker.pid, {}), reports)
        self._wake.set()

    def worker_lost(self, worker: Worker, returned: Sequence[Claim], suspects: Sequence[Claim], cause: str) -> None:
        """A worker process has ended; `returned` had not been begun, `suspects` were running."""
        if worker in self._workers:
            self._workers.remove(worker)
        self._aftermath.lost(self._policies.pop(worker.pid, {}), returned, suspects, cause)
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

    # The loop

    async def run_dispatcher(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Hand due tasks to workers until cancelled."""
        task_status.started()
        while True:
            if not self._wake.is_set():
                with trio.move_on_after(self._sleep_seconds()):
                    await self._wake.wait()
            else:
                await trio.lowlevel.checkpoint()
            self._wake = trio.Event()
            await self.settle()
            now = await self._find_due()
            if self._scanned:
                may_start = not self._paused and not self._draining
                if may_start:
                    await self._hand_out(now)
                if not may_start or not self.backlog.ready:
                    self._caught_up.set()

    async def settle(self) -> None:
        """Tell the store what the workers' reports mean for it; what a cancelled call leaves, the next one does."""
        await self._aftermath.settle()

    def _sleep_seconds(self) -> float:
        if self._paused or self._draining or not self._scanned:
            return LONGEST_SLEEP
        due_at = self.backlog.next_due()
        if due_at is None:
            return LONGEST_SLEEP
        return min(LONGEST_SLEEP, max(0.0, due_at - self._clock()))

    async def _find_due(self) -> float:
        now = self._clock()
        if now < self._looked_at - CLOCK_STEP_SECONDS:  # nobody is to wait until it comes there again
            self.backlog.set_frequency(self.backlog.frequency, now)
        self._looked_at = now
        self.backlog.look(now, LOOK_AT_ONCE)
        while (due_at := self.backlog.next_due()) is not None and due_at <= now:
            await trio.lowlevel.checkpoint()
            self.backlog.look(now, LOOK_AT_ONCE)
        return now

    async def _hand_out(self, now: float) -> None:
        while ready := self.backlog.ready:
            # Idle workers first: a task given behind another one waits for it. And few quick ones wait for the end of
            # others rather than behind them: then more have come, and all are handed over in one go.
            free = sorted(
                (item for item in self._workers if item.room > 0 and (not item.in_hand or ready >= item.fewest)),
                key=lambda worker: worker.in_hand,
            )
            if not free:
                return
            for number, worker in enumerate(free):
                # What came back meanwhile must have come back to the store before it is claimed again.
                await self.settle()
                share = max(worker.fewest, -(-self.backlog.ready // (len(free) - number)))
                await self._give(worker, self.backlog.take(min(worker.room, share), now, worker.pid))
            # Is there more? One may have had room for more than its share, and another not for its.

    async def _give(self, worker: Worker, taken: Sequence[Running]) -> None:
        if not taken:
            return
        claims = await self._store.claim([running.entry for running in taken])
        if len(claims) < len(taken) or self._aftermath.is_cancelling:
            claims, taken = self._still_wanted(claims, taken)
        if claims:
            self._watcher.started(taken)
            worker.give(claims, [running.attempt for running in taken])

    def _still_wanted(
        self, claims: Sequence[Claim], taken: Sequence[Running]
    ) -> tuple[Sequence[Claim], Sequence[Running]]:
        """Those of the tasks that are there, and have not been cancelled while they were claimed."""
        claimed = {claim.ref: claim for claim in claims}
        wanted: dict[str, Running] = {}
        for running in taken:
            ref = running.entry.ref
            if (claim := claimed.get(ref)) is None:
                self._aftermath.not_there(running)
            elif self._aftermath.wants_cancelled(running):
                self._aftermath.not_begun(running, claim)
                self._wake.set()
            else:
                wanted[ref] = running
        return [claimed[ref] for ref in wanted], [*wanted.values()]
