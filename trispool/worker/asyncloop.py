"""Runs tasks in a Trio loop: the loop of a worker that has async handlers. The only module here that imports Trio.

Tasks are begun in the order in which they came. An async handler runs beside the others, up to its own `concurrency`
(the spool's is kept by the service, which gives no more). A handler that is not async runs at once, in the loop: while
it runs nothing else does. A thread would not help, since what hangs in a thread cannot be ended.

An async handler that takes longer than its timeout is cancelled, and so is one whose task an operator cancels. One that
does not let itself be cancelled, and one that keeps the loop from running, cost this process its life: the service sees
both on the board.
"""

from __future__ import annotations

import time
from collections import deque
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

import trio

from trispool.calling import Result, call, call_async, call_legacy, failed, find, legacy_env, name_of, no_handler
from trispool.compat import context
from trispool.handlers import Handler
from trispool.task import MAX_KEPT_VARS
from trispool.worker import frames
from trispool.worker.board import BEGUN, HELD, MARKS, TOLD
from trispool.worker.claims import leave_fork, let_go, make_task, no_files, open_carried, why_not

if TYPE_CHECKING:
    from collections.abc import Callable

    from trispool.calling import Legacy
    from trispool.claimed import ClaimedFile
    from trispool.spooldir import SpoolDirectory
    from trispool.worker.board import Board
    from trispool.worker.claims import Carried, Places
    from trispool.worker.frames import Code
    from trispool.worker.link import WorkerEnd
    from trispool.worker.output import TaskStream

__all__ = ["AsyncLoop"]

_current: Final[ContextVar[str | None]] = ContextVar("trispool_task", default=None)


class _Job(NamedTuple):
    """A task in hand.

    Attributes:
        number: Its number.
        item: As it came.
        held: Its file, or its content.
        found: Who runs it.
        name: What that one is called.
    """

    number: int
    item: frames.Item
    held: ClaimedFile | Carried
    found: Handler[..., Any] | Legacy | None
    name: str

    @property
    def task_id(self) -> str:
        return self.item[0][0]

    @property
    def ref(self) -> str:
        return self.item[0][1]

    @property
    def is_file(self) -> bool:
        return self.item[0][2] is None


class _Gate:
    """Keeps a handler's `concurrency`."""

    def __init__(self, limit: int | None) -> None:
        self.limit = limit
        self.running = 0
        self.waiting: deque[_Job] = deque()

    @property
    def is_full(self) -> bool:
        """Whether the next task must wait."""
        return self.limit is not None and self.running >= self.limit


class AsyncLoop:
    """See the module, and `trispool.worker.syncloop.SyncLoop` for the arguments."""

    def __init__(
        self,
        setup: frames.Setup,
        link: WorkerEnd,
        board: Board,
        directory: SpoolDirectory | None,
        places: Places,
        streams: tuple[TaskStream, ...],
        compat: dict[str, Any],
        on_message: Callable[[frames.ToWorker], None],
    ) -> None:
        self._setup = setup
        self._link = link
        self._board = board
        self._claim = directory.claim if directory is not None else no_files
        self._places = places
        self._streams = streams
        self._compat = compat
        self._on_message = on_message
        self._carried = context.current.carried
        self._gates: dict[str, _Gate] = {}
        self._arrived: deque[tuple[int, frames.Item]] = deque()
        self._in_hand = 0
        self._scopes: dict[int, trio.CancelScope] = {}  # of the async handlers that run
        self._deadlines: dict[int, float] = {}  # of those of them that have one
        self._reports: list[tuple[Any, ...]] = []
        self._wake_starter = trio.Event()
        self._wake_reporter = trio.Event()
        self._quitting = False
        self._nursery: trio.Nursery

    @staticmethod
    def current() -> str | None:
        """The id of the task that the caller belongs to, or None."""
        return _current.get()

    def run(self) -> None:
        """Run tasks until told to quit.

        Raises:
            ExceptionGroup: With `ServiceGone` or an OSError: the service has ended.
        """
        trio.run(self._main)

    async def _main(self) -> None:
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._receive)
            nursery.start_soon(self._start)
            nursery.start_soon(self._send_reports)
        self._flush()

    async def _receive(self) -> None:
        while True:
            for message in self._link.receive_nowait():
                if isinstance(message, frames.Run):
                    self._in_hand += len(message.items)
                    self._arrived.extend(enumerate(message.items, message.first))
                    self._wake_starter.set()
                elif isinstance(message, frames.Recall):
                    self._give_back()
                elif isinstance(message, frames.Cancel):
                    self._cancel(message.number)
                elif isinstance(message, frames.Quit):
                    self._quitting = True
                    self._end_if_done()
                else:
                    self._on_message(message)
            await trio.lowlevel.wait_readable(self._link.fileno())

    async def _start(self) -> None:
        while True:
            await self._wake_starter.wait()
            self._wake_starter = trio.Event()
            while self._arrived:
                if self._begin(*self._arrived.popleft()):
                    await trio.lowlevel.checkpoint()

    def _begin(self, number: int, item: frames.Item) -> bool:
        """Begin a task.

        Returns:
            Whether that took the loop's time.
        """
        (_, ref, content), _ = item
        self._board.mark(number, BEGUN)
        if self._board.is_recalled(number):
            self._ended(number, "returned")
            return False
        held: ClaimedFile | Carried
        try:
            held = self._claim(ref) if content is None else open_carried(content)
        except Exception as error:
            code, detail = why_not(error)
            self._ended(number, code, 0.0, 0.0, None, None, None, None, detail)
            return False
        found = find(held.vars, self._compat.get("spooler"))
        name = "" if found is None else name_of(found, held.vars)
        job = _Job(number, item, held, found, name)
        if content is not None:
            self._carried[job.task_id] = ref, held.vars, held.body
        if not isinstance(found, Handler) or not found.is_async:
            self._run_inline(job)
            return True
        gate = self._gates.get(name)
        if gate is None:
            gate = self._gates[name] = _Gate(found.concurrency)
        if gate.is_full:
            self._board.mark(number, HELD)
            gate.waiting.append(job)
        else:
            self._let_in(gate, job)
        return False

    def _let_in(self, gate: _Gate, job: _Job) -> None:
        gate.running += 1
        self._board.mark(job.number, BEGUN)
        scope = self._scopes[job.number] = trio.CancelScope()
        self._nursery.start_soon(self._run_async, gate, job, scope)

    async def _run_async(self, gate: _Gate, job: _Job, scope: trio.CancelScope) -> None:
        handler = cast("Handler[..., Any]", job.found)
        _current.set(job.task_id)
        timeout = self._timeout(handler)
        began, began_at = time.monotonic(), time.time()
        if timeout:
            scope.deadline = trio.current_time() + timeout
            self._deadlines[job.number] = began + timeout
            self._show_deadline()
        result: Result | None = None
        try:
            task = self._make_task(job) if handler.takes_task else None
            with scope:
                result = await call_async(handler, job.held.vars, job.held.body, task)
        except trio.Cancelled:
            raise
        except BaseException as error:  # what came together with a cancellation, or is not the handler's
            result = failed(error)
        if result is None:
            is_wish = self._board.is_told(job.number)
            result = Result("cancelled") if is_wish else Result("timeout", f"timed out after {timeout:g} s")
        if self._link.is_closed:
            leave_fork(result)
        del self._scopes[job.number]
        if self._deadlines.pop(job.number, None) is not None:
            self._show_deadline()
        self._finish(job, result, began_at, time.monotonic() - began)
        gate.running -= 1
        if gate.waiting and not gate.is_full:
            self._let_in(gate, gate.waiting.popleft())

    def _run_inline(self, job: _Job) -> None:
        found, held = job.found, job.held
        token = _current.set(job.task_id)
        began, began_at = time.monotonic(), time.time()
        timeout = self._timeout(found)
        self._board.begin(job.number, began, began + timeout if timeout else 0.0)
        try:
            if isinstance(found, Handler):
                result = call(found, held.vars, held.body, self._make_task(job) if found.takes_task else None)
            elif found is not None:
                self._places.enter_legacy(job.ref)
                name = job.ref.rpartition("/")[2].encode()
                result = call_legacy(found, legacy_env(name, held.vars, held.body))
            else:
                result = no_handler(held.vars)
        except BaseException as error:  # not the handler's: `call` and `call_legacy` let nothing through
            result = failed(error)
        finally:
            self._places.enter()
            _current.reset(token)
        if self._link.is_closed:
            leave_fork(result)
        self._finish(job, result, began_at, time.monotonic() - began)
        self._board.end()

    def _make_task(self, job: _Job) -> Any:  # noqa: ANN401 # a Task; the name is the handler's argument type
        return make_task(job.task_id, job.ref, job.held, job.item[1], self._setup.spool)

    def _timeout(self, found: Handler[..., Any] | Legacy | None) -> float:
        if isinstance(found, Handler) and found.timeout is not None:
            return found.timeout
        return self._setup.timeout

    def _show_deadline(self) -> None:
        self._board.set_loop_deadline(min(self._deadlines.values(), default=0.0))

    def _finish(self, job: _Job, result: Result, began_at: float, seconds: float) -> None:
        for stream in self._streams:
            if stream.unended:
                stream.end_line(job.task_id)
        if job.is_file:
            result = let_go(cast("ClaimedFile", job.held), result)
        else:
            self._carried.pop(job.task_id, None)
        payload = job.held.payload
        self._ended(
            job.number,
            cast("Code", result.code),
            began_at,
            seconds,
            job.name or None,
            result.error,
            result.traceback,
            result.retry_at,
            None,
            payload if result.code == "ok" and len(payload) <= MAX_KEPT_VARS else None,
        )

    def _ended(self, number: int, code: Code, *more: object) -> None:
        self._board.mark(number, MARKS[code])
        self._reports.append((number, code, *more))
        self._in_hand -= 1
        self._wake_reporter.set()
        self._end_if_done()

    def _cancel(self, number: int) -> None:
        if scope := self._scopes.get(number):
            self._board.mark(number, TOLD)
            scope.cancel()
            return
        for gate in self._gates.values():
            for job in gate.waiting:
                if job.number == number:
                    gate.waiting.remove(job)
                    self._return(job)
                    return
        # It has ended, or has not been begun: then the board tells that it is recalled.

    def _give_back(self) -> None:
        for gate in self._gates.values():
            while gate.waiting:
                self._return(gate.waiting.popleft())

    def _return(self, job: _Job) -> None:
        if job.is_file:
            cast("ClaimedFile", job.held).close()
        else:
            self._carried.pop(job.task_id, None)
        self._ended(job.number, "returned")

    def _end_if_done(self) -> None:
        if self._quitting and not self._in_hand:
            self._nursery.cancel_scope.cancel()

    async def _send_reports(self) -> None:
        while True:
            await self._wake_reporter.wait()
            self._wake_reporter = trio.Event()
            self._flush()

    def _flush(self) -> None:
        if self._reports:
            self._link.send(("done", self._reports))
            self._reports = []
