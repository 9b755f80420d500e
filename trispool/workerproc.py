"""The service's handle of one worker process: hand over tasks, hear of them, decide when it has to go.

Every task that `WorkerProcess.give` takes comes back exactly once: in `worker_reported`, or in `worker_lost`.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec
import structlog
import trio

from trispool.control import WorkerStatus
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

QUIT_SECONDS: Final = 5.0
"""How long a worker that was told to quit may take to exit (`atexit` functions, threads that were left running)."""

_CONTENT_PER_FRAME: Final = 4 * 1024 * 1024
_UNRUN: Final = frozenset({"gone", "locked", "not_due", "unreadable", "settling", "returned"})

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
        self,
        setup: frames.Setup,
        employer: Employer,
        pace: Pace,
        keeper: Keeper,
        *,
        max_tasks: int = 0,
    ) -> None:
        self.is_async = False
        self.handlers: Mapping[str, Mapping[str, Any]] = {}
        self.leaving = trio.Event()
        self.gone = trio.Event()
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
        self._open: dict[int, Claim] = {}  # the tasks in its hand, by number
        self._next = 1
        self._unanswered = 0  # more than those in hand if some were taken back without its word
        self._batches: deque[int] = deque()  # the number behind each batch on its way
        self._is_stuck = False
        self._retiring = False
        self._started_at: float | None = None
        self._recalled = 0  # all below this
        self._settles_at = 0.0
        self._expired: tuple[int, float] | None = None

    # What the dispatcher sees

    @property
    def pid(self) -> int:
        """Its process id; 0 until it has one. Kept when it has died."""
        return self._link.pid

    @property
    def cause(self) -> str | None:
        """Why it ended, in words."""
        return self._link.cause

    @property
    def room(self) -> int:
        """How many more tasks to give it now."""
        if self.ready_at is None or self._retiring or self._is_stuck or not self._link.alive:
            return 0
        if self.is_async:
            return max(0, min(MAX_BATCH, self._setup.concurrency - self._unanswered, self._left))
        if len(self._batches) >= 2:
            return 0
        return max(0, min(MAX_BATCH, self._pace.ahead - self._unanswered, self._left))

    @property
    def in_hand(self) -> int:
        """How many tasks it has."""
        return len(self._open)

    def give(self, claims: Sequence[Claim], attempts: Sequence[int]) -> None:
        """Hand over tasks, to be run in this order. Never blocks.

        If the worker has died or was told to quit since its `room` was read, they come back, `returned`, before this
        call does.

        Args:
            claims: The tasks, one or more, at most `room`.
            attempts: Which attempt it is for each, 1 for the first.
        """
        if not self._link.alive or self.leaving.is_set():
            self._employer.worker_reported(self, [Report(0, "returned", claim=claim) for claim in claims])
            return
        first, count = self._next, len(claims)
        self._link.board.clear(first, count)
        self._open.update(zip(range(first, first + count), claims, strict=True))
        self._next = first + count
        self._unanswered += count
        self._left -= count
        if not self.is_async:
            self._batches.append(self._next)
        items = list(zip(claims, attempts, strict=True))
        start = size = 0
        if claims[0].content is not None:
            for number, claim in enumerate(claims, 1):
                size += len(claim.content[1]) if claim.content is not None else 0
                if size > _CONTENT_PER_FRAME:
                    self._link.send(("run", first + start, items[start:number]))
                    start, size = number, 0
        if start < count:
            self._link.send(("run", first + start, items[start:] if start else items))
        self._keeper.worker_is_busy()

    def recall(self) -> None:
        """Take back what it has not begun: that comes as `returned` within a few milliseconds."""
        if self._open and self._link.alive:
            self._recalled = self._next
            self._link.board.recall(self._next)
            self._settles_at = time.monotonic() + RECALL_SETTLES
            self.is_recalling = True
            if self.is_async:
                self._link.send(("recall",))
            self._keeper.worker_is_busy()

    # What the pool does

    def retire(self) -> None:
        """Have it finish what it has begun and then quit; what it has not begun comes back."""
        self._retiring = self.was_ended = True
        self.recall()
        self._quit_if_done()

    def kill(self, cause: str) -> None:
        """End it at once. What it runs comes back and is not to blame."""
        self.was_ended = self._retiring = True
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
        claim = self._open.get(number)
        if claim is not None:
            task_id, since = claim.id, time.time() - (time.monotonic() - started)
        elif self.is_async and self._open:
            task_id = next(reversed(self._open.values())).id
        state: Literal["starting", "idle", "busy", "quitting"] = "busy" if self._open else "idle"
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
        if not self._link.alive or not self._open:
            self.is_recalling = False
            return
        board = self._link.board
        if self.is_recalling and now >= self._settles_at:
            self._take_back()
        number, started, deadline = board.running
        if number in self._open:
            if deadline and now > deadline:
                self._overdue(number, deadline, f"harakiri: ran longer than {round(deadline - started, 3):g} s")
            elif now - started > STUCK_SECONDS:
                self._is_stuck = True
                if len(self._open) > 1 and not self.is_recalling:
                    self._take_finished(now, started)
                    if any(other != number and not board.is_taken(other) for other in self._open):
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
                    await self._link.run(self._keeper.worker_has_started)
                except OSError:
                    raise  # it could not be started
                except BaseException:
                    self.was_ended = True
                    raise
                nursery.cancel_scope.cancel()
        except* OSError as group:
            self.problem = f"no process could be started: {group.exceptions[0]}"
        finally:
            self.ended_at = time.monotonic()
            self._settle()
            self._link.close()
            self.leaving.set()
            self.gone.set()

    # Inside

    async def _limit_quitting(self) -> None:
        await self.leaving.wait()
        await trio.sleep(QUIT_SECONDS)
        self._link.kill(f"did not exit within {QUIT_SECONDS:g} s")

    def _quit_if_done(self) -> None:
        if (self._retiring or self._left <= 0) and not self._unanswered and not self.leaving.is_set():
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
                self.is_async = message.is_async
                self.handlers = {name: msgspec.structs.asdict(info) for name, info in message.handlers.items()}
                self._keeper.worker_is_ready()
                self._employer.worker_ready(self)
            case frames.Broken():
                self.problem = message.traceback

    def _take_reports(self, reports: list[Report]) -> None:
        if not reports:
            return
        open_ = self._open
        known: list[Report] = []
        total, ran = 0.0, 0
        for report in reports:
            claim = open_.pop(report.number, None)
            if claim is None:
                continue  # it was taken back without the worker's word
            report.claim = claim
            known.append(report)
            if report.started_at:
                total += report.run_seconds
                ran += 1
        self._unanswered -= len(reports)
        self._is_stuck = False
        behind, batches = reports[-1].number + 1, self._batches
        while batches and batches[0] <= behind:
            batches.popleft()
        if ran:
            self.tasks_done += ran
            self._pace.measured(total, ran)
        if not open_:
            self.is_recalling = False
        if known:
            self._employer.worker_reported(self, known)
        self._quit_if_done()

    def _take_line(self, stream: Stream, task_id: str | None, line: str) -> None:
        if task_id is None:
            claim = self._open.get(self._link.board.running[0])
            task_id = None if claim is None else claim.id
        self._employer.worker_log(self, stream, task_id, line)

    def _take_back(self) -> None:
        self.is_recalling = False
        board = self._link.board
        running = board.running[0]  # read before the marks: see `trispool.worker.board`
        numbers = [
            number
            for number in self._open
            if number < self._recalled and number != running and not board.is_taken(number)
        ]
        if numbers:
            self._employer.worker_reported(
                self, [Report(number, "returned", claim=self._open.pop(number)) for number in numbers]
            )

    def _take_finished(self, now: float, began: float) -> None:
        """Do not let what has ended wait for the end of a slow task to be reported."""
        board = self._link.board
        numbers = [number for number in self._open if board.code(number) == "ok"]
        if numbers:
            # They ended shortly before the slow one began; how long they took is not known.
            at = time.time() - (now - began)
            self.tasks_done += len(numbers)
            self._employer.worker_reported(
                self, [Report(number, "ok", at, claim=self._open.pop(number)) for number in numbers]
            )

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
        reports: list[Report] = []
        returned: list[Claim] = []
        suspects: list[Claim] = []
        if self._open:
            board = self._link.board
            running = board.running[0]
            for number, claim in self._open.items():
                code = board.code(number)
                if code is not None and code not in _UNRUN:
                    error = None if code == "ok" else "its worker died before it could tell more"
                    reports.append(Report(number, code, time.time(), error=error, claim=claim))
                elif self.was_ended or code is not None:
                    returned.append(claim)
                elif number == running or (self.is_async and running not in self._open and board.is_begun(number)):
                    suspects.append(claim)
                else:
                    returned.append(claim)
            self._open.clear()
            self.died_at_work = bool(suspects)
        if reports:
            self.tasks_done += len(reports)
            self._employer.worker_reported(self, reports)
        if self.ready_at is not None:
            self._employer.worker_lost(self, returned, suspects, self.cause or "")
