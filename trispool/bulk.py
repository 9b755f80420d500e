"""Bulk actions: one action on very many tasks, in the background, a little at a time.

A run first selects the tasks that its filter means and that permit the action, and then acts on each: what comes into a
spool later on is not touched. Ids that were named are all acted on, so that each has its result.

    run_bulk's nursery ─┬─ forgets old runs
                        └─ runs, at most 4 ─── 8 hands, each at work on one task

A hand gives way after each task and the selection after each few hundred, so that others wait for a run no longer than
for a few single actions.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from contextlib import aclosing
from typing import TYPE_CHECKING, Final, Protocol

import structlog
import trio

from trispool.actions import permits
from trispool.bulkrun import Run
from trispool.errors import SpoolUnavailable, TaskNotFound, TaskRefused, TrispoolError
from trispool.operating import Action, ActionResult, BulkPreview
from trispool.task import LATEST_AT, TaskState

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Iterator, Sequence

    from trispool.control import TaskSummary
    from trispool.operating import Actor, BulkPage, BulkRequest, BulkStatus, TaskFilter

__all__ = ["BulkRuns", "BulkTasks"]

MAX_RUNNING: Final = 4
"""Runs at once: an operator has one or two under way, and each has its share of the disk."""

HANDS: Final = 8
"""Tasks at once in a run. Most of an action is waiting for the disk; some wait seconds, until a handler gives way."""

MAX_IDS: Final = 100_000
"""In one request."""

MAX_KEPT: Final = 1_000_000
"""Results of all runs that have ended; beyond that the oldest run is forgotten before its time."""

ANSWER_SECONDS: Final = 1.0
"""For so long whoever begins or stops a run waits for its end."""

REMEMBER_SECONDS: Final = 3600.0
"""For so long a run that has ended is known."""

PROGRESS_SECONDS: Final = 0.25
"""The least time between two words on the progress of a run."""

SAMPLE: Final = 10
"""Ids in a preview."""

_SLICE: Final = 500
_FORGET_SECONDS: Final = 60.0
_UNFINISHED: Final = (TaskState.SCHEDULED, TaskState.READY, TaskState.RUNNING, TaskState.HELD, TaskState.DEAD)

_log = structlog.get_logger()


class BulkTasks(Protocol):
    """The tasks of a service, as far as bulk actions are concerned."""

    def select(
        self, wanted: TaskFilter, states: Collection[TaskState], /
    ) -> AsyncGenerator[Sequence[TaskSummary], None]:
        """All tasks that a filter means and that are in one of these states, each once, in chunks of a few hundred.

        Raises:
            TaskRefused: The filter makes no sense (no such spool).
            SpoolUnavailable: A spool cannot be read now.
        """
        ...

    async def summary(self, task_id: str, /) -> TaskSummary:
        """One task.

        Raises:
            TaskNotFound: There is none of that id.
        """
        ...

    async def act(self, task_id: str, action: Action, actor: Actor, /, *, at: float | None) -> TaskSummary:
        """As `trispool.control.Control.act`, but that the audit log is not told of it."""
        ...


class BulkRuns:
    """The bulk actions of a service; see `trispool.control.Control` for what the methods promise.

    Args:
        tasks: What is acted on.
        on_progress: Told how far a run is, four times a second at most, and when it has ended.
        on_end: Told of the end of a run that whoever began it has not seen.
        clock: Unix seconds.
    """

    def __init__(
        self,
        tasks: BulkTasks,
        *,
        on_progress: Callable[[BulkStatus], None] | None = None,
        on_end: Callable[[BulkStatus, Actor], Awaitable[None]] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._tasks = tasks
        self._on_progress = on_progress
        self._on_end = on_end
        self._clock = clock
        self._runs: dict[str, Run] = {}
        self._previews = trio.CapacityLimiter(MAX_RUNNING)
        self._nursery: trio.Nursery | None = None

    async def run_bulk(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Carry out what `start_bulk` begins, until cancelled; what is then under way is `stopped`."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                task_status.started()
                while True:
                    await trio.sleep(_FORGET_SECONDS)
                    self._forget()
        finally:
            self._nursery = None

    async def preview(self, request: BulkRequest) -> BulkPreview:
        """See `Control.preview`. Tasks that are done or cancelled are meant only if the filter says so."""
        _check(request)
        matched: Counter[str] = Counter()
        sample: list[str] = []
        refused = 0
        async with self._previews, aclosing(self._meant(request)) as chunks:
            async for chunk in chunks:
                for task in chunk:
                    if task is None or not permits(request.action, task.state, task.attempts):
                        refused += 1
                        continue
                    matched[str(task.state)] += 1
                    if len(sample) < SAMPLE:
                        sample.append(task.id)
        return BulkPreview(matched.total(), refused, dict(matched), sample)

    async def start_bulk(self, request: BulkRequest, actor: Actor) -> BulkStatus:
        """See `Control.start_bulk`.

        Raises:
            SpoolUnavailable: The service ends.
        """
        _check(request)
        if self._nursery is None:
            raise SpoolUnavailable("the service is stopping")
        self._forget()
        if sum(not run.ended.is_set() for run in self._runs.values()) >= MAX_RUNNING:
            raise TaskRefused(f"{MAX_RUNNING} bulk actions are under way, which is as many as may be", status=429)
        run = Run(request.action, request.at, actor, self._clock())
        self._runs[run.id] = run
        self._nursery.start_soon(self._carry_out, run, request)
        try:
            with trio.move_on_after(ANSWER_SECONDS):
                await run.ended.wait()
        finally:
            run.is_alone = True
        if run.refusal is not None:
            self._runs.pop(run.id, None)
            raise run.refusal
        return run.status()

    def bulk(self, bulk_id: str, *, limit: int = 500, cursor: str | None = None) -> BulkPage:
        """See `Control.bulk`; a page has at most `MAX_PAGE` results."""
        return self._known(bulk_id).page(limit, cursor)

    async def stop_bulk(self, bulk_id: str) -> BulkStatus:
        """See `Control.stop_bulk`. The actions under way are finished; it waits for them, but no longer than 1 s."""
        run = self._known(bulk_id)
        run.stop()
        with trio.move_on_after(ANSWER_SECONDS):
            await run.ended.wait()
        return run.status()

    # Inside

    def _known(self, bulk_id: str) -> Run:
        self._forget()
        try:
            return self._runs[bulk_id]
        except KeyError:
            raise TaskRefused(f"there is no bulk action {bulk_id!r}", status=404) from None

    def _forget(self) -> None:
        ended = [run for run in self._runs.values() if run.ended.is_set()]
        kept = sum(run.weight for run in ended)
        for run in sorted(ended, key=lambda run: run.ended_at):
            if run.ended_at > trio.current_time() - REMEMBER_SECONDS and kept <= MAX_KEPT:
                break
            kept -= run.weight
            del self._runs[run.id]

    async def _carry_out(self, run: Run, request: BulkRequest) -> None:
        try:
            with run.selection:
                await self._select(run, request)
            if not run.is_stopping:
                run.selected()
                await self._act_on_all(run)
        except TaskRefused as error:
            run.refusal = error
            run.fail(str(error))
        except TrispoolError as error:
            run.fail(str(error))
        except Exception as error:  # one run that goes wrong is no reason to end the service
            _log.exception("bulk_action_failed", bulk=run.id, action=str(run.action))
            while isinstance(error, ExceptionGroup):
                error = error.exceptions[0]
            run.fail(f"it failed: {error!r}")
        finally:
            run.end(self._clock())
            if run.refusal is None:
                self._tell(run)
                if run.is_alone and self._on_end is not None:
                    await self._on_end(run.status(), run.actor)

    async def _select(self, run: Run, request: BulkRequest) -> None:
        if request.ids is not None:
            async for ids in _distinct(request.ids):
                for task_id in ids:
                    run.ids.append(task_id)
            return
        async with aclosing(self._meant(request)) as chunks:
            async for chunk in chunks:
                for task in chunk:
                    if task is not None and permits(run.action, task.state, task.attempts):
                        run.ids.append(task.id)

    async def _meant(self, request: BulkRequest) -> AsyncGenerator[Sequence[TaskSummary | None], None]:
        """The tasks that a request means, permitted or not; None stands for an id that is unknown."""
        if request.filter is not None:
            states = _UNFINISHED if request.filter.state is None else (request.filter.state,)
            async with aclosing(self._tasks.select(request.filter, states)) as chunks:
                async for chunk in chunks:
                    yield chunk
                    await trio.lowlevel.checkpoint()
        async for ids in _distinct(request.ids or ()):
            for task_id in ids:
                found = None
                with contextlib.suppress(TaskNotFound):
                    found = await self._tasks.summary(task_id)
                yield (found,)
                await trio.lowlevel.checkpoint()

    async def _act_on_all(self, run: Run) -> None:
        numbered = enumerate(run.ids.rows())
        async with trio.open_nursery() as nursery:
            for _ in range(HANDS):
                nursery.start_soon(self._lend_a_hand, run, numbered)

    async def _lend_a_hand(self, run: Run, numbered: Iterator[tuple[int, str]]) -> None:
        for number, task_id in numbered:
            run.ended_one(number, await self._act_on(run, task_id))
            if trio.current_time() >= run.told_at + PROGRESS_SECONDS:
                self._tell(run)
            await trio.lowlevel.checkpoint()
            if run.is_stopping:
                return

    async def _act_on(self, run: Run, task_id: str) -> ActionResult:
        try:
            task = await self._tasks.act(task_id, run.action, run.actor, at=run.at)
        except TaskNotFound as error:
            return ActionResult(task_id, None, 404, str(error))
        except TaskRefused as error:
            return ActionResult(task_id, None, error.status, str(error))
        except SpoolUnavailable as error:
            return ActionResult(task_id, None, 503, str(error))
        return ActionResult(task_id, task.state)

    def _tell(self, run: Run) -> None:
        run.told_at = trio.current_time()
        if self._on_progress is not None:
            self._on_progress(run.status())


def _check(request: BulkRequest) -> None:
    if (request.ids is None) == (request.filter is None):
        raise TaskRefused("ids, filter: exactly one of them is expected")
    if request.ids is not None and len(request.ids) > MAX_IDS:
        raise TaskRefused(f"ids: {len(request.ids)} of them; at most {MAX_IDS} are expected", status=413)
    if (request.at is not None) != (request.action is Action.RESCHEDULE):
        raise TaskRefused(f"at={request.at}: expected with reschedule, and only then")
    if request.at is not None and not 0 <= request.at <= LATEST_AT:
        raise TaskRefused(f"at={request.at}: Unix seconds from 0 to {LATEST_AT:.0f} are expected")


async def _distinct(ids: Sequence[str]) -> AsyncGenerator[Sequence[str], None]:
    """Each id once, in order, a few hundred at a time."""
    seen: set[str] = set()
    for start in range(0, len(ids), _SLICE):
        chunk = [task_id for task_id in dict.fromkeys(ids[start : start + _SLICE]) if task_id not in seen]
        seen.update(chunk)
        yield chunk
        await trio.lowlevel.checkpoint()
