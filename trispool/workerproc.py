"""The service's handle of one worker process: hand over tasks, hear of them, decide when it has to go.

Every task that `WorkerProcess.give` takes comes back exactly once: in `worker_reported`, or in `worker_lost`.
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec
import structlog
import trio

from trispool.control import WorkerStatus
from trispool.hand import Hand
from trispool.pace import MAX_BATCH
from trispool.worker import frames
from trispool.worker.board import RECALL_SETTLES
from trispool.workerlink import Message, Report, Stream, WorkerLink

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from trispool.employer import Employer, Keeper
    from trispool.pace import Pace
    from trispool.store import Claim

__all__ = ["WorkerProcess"]

STUCK_SECONDS: Final = 0.02
"""A worker that has been in one task for so long gives back those that wait behind it."""

OVERDUE_SECONDS: Final = 5.0
"""An async handler that so long after its deadline has not let itself be cancelled costs the worker its life."""

GIVE_WAY_SECONDS: Final = 5.0
"""For so long the handler of a task that an operator cancels may go on in an async worker, to clean up."""

QUIT_SECONDS: Final = 5.0
"""How long a worker that was told to quit may take to exit (`atexit` functions, threads that were left running)."""

CANCELLED: Final = "killed: an operator cancelled its task"
"""Why it ended, then."""

_log = structlog.get_logger()


class WorkerProcess:
    """One worker process, from its start to its end.

    Args:
        setup: What it shall be.
        employer: Whose tasks it runs.
        pace: How long handlers take.
        keeper: Whose worker it is.
        max_tasks: It quits after so many; 0: never.

    Attributes:
        is_async: Whether it has async handlers and so runs several tasks at once.
        handlers: What its handlers say of themselves, by name.
        leaving: Set when it takes no more tasks, for good: it was told to quit, or is dead.
        gone: Set when nothing of it is left.
        decided: Set when it is ready, or will never be.
        problem: Why it never became ready, or None.
        ready_at: When it was ready, `time.monotonic()`; None: not yet.
        ended_at: When it was seen dead, `time.monotonic()`.
        tasks_done: How many tasks it has run.
        was_ended: Whether its end was our wish.
        was_overdue: Whether it was killed because a task took too long.
        died_at_work: Whether it died by itself while it ran a task.
        is_recalling: Whether tasks are on their way back.
    """

    def __init__(
        self, setup: frames.Setup, employer: Employer, pace: Pace, keeper: Keeper, *, max_tasks: int = 0
    ) -> None:
        self.is_async = False
        self.handlers: Mapping[str, Mapping[str, Any]] = {}
        self.leaving = trio.Event()
        self.gone = trio.Event()
        self.decided = trio.Event()
        self.problem: str | None = None
        self.ready_at: float | None = None
        self.ended_at: float | None = None
        self.tasks_done = 0
        self.was_ended = False
        self.was_overdue = False
        self.died_at_work = False
        self.is_recalling = False
        self._setup = setup
        self._employer = employer
        self._pace = pace
        self._keeper = keeper
        self._left = max_tasks or sys.maxsize
        self._log = _log.bind(spool=setup.spool)
        self._link = WorkerLink(setup, self._take, self._take_line)
        self._hand = Hand()
        self._is_blameless = False  # what it runs, for its end
        self._is_stuck = self._has_too_much = False
        self._retiring = False
        self._started_at: float | None = None
        self._settles_at = 0.0
        self._expired: tuple[int, float] | None = None
        self._cancelling: dict[int, float] = {}  # tasks to be cancelled, and when to kill for them
        self._killed_for: int | None = None

    # What the dispatcher sees

    @property
    def pid(self) -> int:
        """Its process id; 0 until it has one. Kept when it has died."""
        return self._link.pid

    @property
    def is_alive(self) -> bool:
        """Whether there is a process that can be spoken to."""
        return self._link.alive

    @property
    def cause(self) -> str | None:
        """Why it ended, in words."""
        return self._link.cause

    @property
    def room(self) -> int:
        """How many more tasks to give it now."""
        if self.ready_at is None or self._retiring or self._is_stuck or self._is_cancelling or not self._link.alive:
            return 0
        if self.is_async:
            return max(0, min(MAX_BATCH, self._setup.concurrency - self._hand.unanswered, self._left))
        if self._hand.batches >= 2:
            return 0
        return max(0, min(MAX_BATCH, self._pace.ahead - self._hand.unanswered, self._left))

    @property
    def in_hand(self) -> int:
        """How many tasks it has."""
        return len(self._hand.tasks)

    @property
    def fewest(self) -> int:
        """See `trispool.workforce.Worker`."""
        return 1 if self.is_async else self._pace.fewest

    def give(self, claims: Sequence[Claim], attempts: Sequence[int]) -> None:
        """Hand over tasks, to be run in this order. Never blocks.

        If the worker has died, or was told to quit or to cancel a task, since its `room` was read, they come back,
        `returned`, before this call does.

        Args:
            claims: The tasks, one or more, at most `room`.
            attempts: Which attempt it is for each, 1 for the first.
        """
        if not self._link.alive or self.leaving.is_set() or self._is_cancelling:
            self._employer.worker_reported(self, [Report(0, "returned", claim=claim) for claim in claims])
            return
        self._left -= len(claims)
        for first, items in self._hand.put(claims, attempts):
            self._link.send(("run", first, items))
        self._keeper.worker_is_busy()

    def recall(self) -> None:
        """Take back what it has not begun: that comes as `returned` within a few milliseconds."""
        if self._hand.tasks and self._link.alive:
            self._hand.recall()
            self._settles_at = time.monotonic() + RECALL_SETTLES
            self.is_recalling = True
            if self.is_async:
                self._link.send(("recall",))
            self._keeper.worker_is_busy()

    # What the pool does

    def cancel(self, task_id: str) -> bool:
        """See to it that a task ends; see `trispool.pool.Pool.cancel`."""
        number = self._hand.number_of(task_id)
        if number is None:
            return False
        if self._link.alive and number not in self._cancelling:
            self._cancelling[number] = time.monotonic() + GIVE_WAY_SECONDS
            if not self._link.board.is_taken(number):
                # Also if a sync worker runs it: none of those behind it may have been begun when the worker is killed.
                self.recall()
            if self.is_async:
                self._link.send(("cancel", number))
        return True

    def retire(self) -> None:
        """Have it finish what it has begun and then quit; what it has not begun comes back."""
        self._retiring = self.was_ended = True
        self.recall()
        self._quit_if_done()

    def kill(self, cause: str) -> None:
        """End it at once. What it runs comes back and is not to blame."""
        self.was_ended = self._retiring = self._is_blameless = True
        self._link.kill(cause)

    def tell_pids(self, pids: Sequence[int]) -> None:
        """Tell it which processes the spool has."""
        self._link.send(("pids", pids))

    def tell_frequency(self, seconds: float) -> None:
        """Tell it the spool's frequency."""
        self._link.send(("frequency", seconds))

    def status(self) -> WorkerStatus:
        """What it does at this moment."""
        if not self._link.alive:
            return WorkerStatus(0, "down", tasks_done=self.tasks_done)
        task_id = since = None
        number, started, _ = self._link.board.running
        claim = self._hand.tasks.get(number)
        if claim is not None:
            task_id, since = claim.id, time.time() - (time.monotonic() - started)
        elif self.is_async and self._hand.tasks:
            task_id = next(reversed(self._hand.tasks.values())).id
        state: Literal["starting", "idle", "busy", "quitting"] = "busy" if self._hand.tasks else "idle"
        if self._retiring or self.leaving.is_set():
            state = "quitting"
        elif self.ready_at is None:
            state = "starting"
        return WorkerStatus(self.pid, state, task_id, since, self.tasks_done, self._started_at, self.is_async)

    def watch(self, now: float) -> None:
        """Look at the board: is a task overdue, do others wait behind a slow one? To be called every 20 ms.

        Args:
            now: `time.monotonic()`.
        """
        hand = self._hand
        if not self._link.alive or not hand.tasks:
            self.is_recalling = False
            return
        board = self._link.board
        if self.is_recalling and now >= self._settles_at:
            self.is_recalling = False
            self._tell(hand.take_unbegun())
        if self._cancelling:
            self._see_to_cancelled(now)
        number, started, deadline = board.running
        if number in hand.tasks:
            if deadline and now > deadline:
                self._overdue(number, deadline, f"harakiri: ran longer than {round(deadline - started, 3):g} s")
                return
            if now - started > STUCK_SECONDS:
                self._is_stuck = True
                if len(hand.tasks) > 1 and not self.is_recalling:
                    # They ended shortly before this one began.
                    finished = hand.take_finished(time.time() - (now - started))
                    self.tasks_done += len(finished)
                    self._tell(finished)
                    if hand.has_unbegun():
                        self.recall()
        deadline = board.loop_deadline
        if deadline and now > deadline + OVERDUE_SECONDS:
            self._overdue(0, deadline, "harakiri: a handler did not let itself be cancelled when its time was over")

    async def run(self) -> None:
        """Start the process; return when it is gone and all that it had has been given back."""
        self._started_at = time.time()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._limit_quitting)
                try:
                    await self._link.run(self._started)
                except OSError:
                    raise  # it could not be started
                except BaseException:
                    self.was_ended = self._is_blameless = True
                    raise
                nursery.cancel_scope.cancel()
        except* OSError as group:
            self.problem = f"no process could be started: {group.exceptions[0]}"
        finally:
            self.ended_at = time.monotonic()
            if self.ready_at is None and self.problem is None and not self.was_ended:
                self.problem = f"a worker ended while it imported them: {self.cause}"
            self._settle()
            self._link.close()
            self.leaving.set()
            self.decided.set()
            self.gone.set()

    # Inside

    def _started(self) -> None:
        self._hand.board = self._link.board
        self._keeper.worker_has_started()

    async def _limit_quitting(self) -> None:
        await self.leaving.wait()
        await trio.sleep(QUIT_SECONDS)
        self._link.kill(f"did not exit within {QUIT_SECONDS:g} s")

    def _quit_if_done(self) -> None:
        if (self._retiring or self._left <= 0) and not self._hand.unanswered and not self.leaving.is_set():
            self.was_ended = self._link.is_quitting = True
            self._link.send(("quit",))
            self.leaving.set()

    def _take(self, message: Message) -> None:
        match message:
            case frames.Done():
                self._take_reports(message.reports)
            case frames.Progress():
                self._employer.worker_progress(self, message.id, message.fraction, message.text)
            case frames.SetFrequency():
                self._employer.worker_set_frequency(message.seconds)
            case frames.Ready():
                self.ready_at = time.monotonic()
                self.decided.set()
                self.is_async = self._hand.is_async = message.is_async
                self.handlers = {name: msgspec.structs.asdict(info) for name, info in message.handlers.items()}
                self._keeper.worker_is_ready()
                self._employer.worker_ready(self)
            case frames.Broken():
                self.problem = message.traceback

    def _take_reports(self, reports: list[Report]) -> None:
        if not reports:
            return
        known = self._hand.answered(reports)
        self._is_stuck = False
        lengths = [report.run_seconds for report in known if report.started_at]
        if lengths:
            self.tasks_done += len(lengths)
            self._pace.measured(sum(lengths), len(lengths))
            had, self._has_too_much = self._has_too_much, self._pace.is_too_much(len(self._hand.tasks))
            # Twice in a row: a task may have been slow because others used the processor.
            if had and self._has_too_much and not self.is_async:
                self.recall()
        if not self._hand.tasks:
            self.is_recalling = False
        # Also if there are none, since what had been recalled is answered now: there is room again.
        self._employer.worker_reported(self, known)
        self._quit_if_done()

    def _take_line(self, stream: Stream, task_id: str | None, line: str) -> None:
        if task_id is None:
            claim = self._hand.running
            task_id = None if claim is None else claim.id
        self._employer.worker_log(self, stream, task_id, line)

    def _tell(self, reports: list[Report]) -> None:
        if reports:
            self._employer.worker_reported(self, reports)

    @property
    def _is_cancelling(self) -> bool:
        return any(number in self._hand.tasks for number in self._cancelling)

    def _see_to_cancelled(self, now: float) -> None:
        tasks, board = self._hand.tasks, self._link.board
        running = board.running[0]
        for number, deadline in tuple(self._cancelling.items()):
            if number not in tasks:
                del self._cancelling[number]
            elif board.code(number) is not None:
                continue  # it has ended, as will soon be said
            elif not self.is_async:
                if number == running and not self.is_recalling:
                    self._kill_for(number)
            elif number != running and running in tasks and not board.is_told(number):
                # Another task holds the loop, so that it has not heard yet.
                self._cancelling[number] = now + GIVE_WAY_SECONDS
            elif now > deadline and board.is_begun(number):
                self._kill_for(number)

    def _kill_for(self, number: int) -> None:
        self.was_ended = self._retiring = True
        if self._link.cause is None:
            self._killed_for = number
        self._link.kill(CANCELLED)

    def _overdue(self, number: int, deadline: float, cause: str) -> None:
        # Two looks must agree: see `trispool.worker.board`, rule 3.
        if self._expired == (number, deadline):
            self.was_overdue = True
            self._link.kill(cause)
        else:
            self._link.dump_traceback()
        self._expired = number, deadline

    def _settle(self) -> None:
        """Give back what it had when it died."""
        reports, returned, suspects = self._hand.take_all(blameless=self._is_blameless, cancelled=self._killed_for)
        self.died_at_work = bool(suspects)
        if reports:
            self.tasks_done += len(reports)
            self._employer.worker_reported(self, reports)
        if self.ready_at is not None:
            self._employer.worker_lost(self, returned, suspects, self.cause or "")
