"""`Control` over the spools of this service: what its faces may see and do, and a word on it in the audit log.

An action is seen to its end, and told to the audit log, also for a caller that has gone meanwhile.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final, Protocol

import trio

from trispool.bulk import BulkRuns
from trispool.control import Health, TaskDetail
from trispool.errors import TaskNotFound, TaskRefused, TrispoolError
from trispool.health import healthiness, readiness
from trispool.listing import list_tasks, select_tasks
from trispool.operating import Action
from trispool.routing import Receiver, Router
from trispool.unfinished import Listable, summary_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Collection, Mapping, Sequence

    from trispool.actions import Found
    from trispool.control import Page, SpoolStatus, TaskSummary, WorkerStatus
    from trispool.events import EventHub
    from trispool.operating import (
        Actor,
        AuditPage,
        BulkPage,
        BulkPreview,
        BulkRequest,
        BulkStatus,
        Event,
        OnceKey,
        SpoolChange,
        TaskFilter,
        TaskQuery,
    )
    from trispool.reports import Reports
    from trispool.state import State
    from trispool.task import Accepted, NewTask, TaskState

__all__ = ["Controller", "ManagedSpool"]

MAX_SHOWN: Final = 64 * 1024 * 1024
"""Bytes of a body that are read into memory to be looked at; files that others drop may be of any size."""

AUDIT_SECONDS: Final = 5.0
"""For so long a row of the audit log is waited for when its writer has been cancelled, or when the disk hangs."""


class ManagedSpool(Listable, Receiver, Protocol):
    """One spool of the service; see `trispool.livespool.LiveSpool`."""

    async def find_task(self, task_id: str) -> Found | None: ...
    async def act(self, task_id: str, action: Action, by: str, at: float | None = None) -> TaskSummary | None: ...
    async def scan_now(self) -> None: ...
    def change(self, change: SpoolChange) -> None: ...
    def restart_worker(self, pid: int, *, kill: bool = False) -> bool: ...
    def status(self) -> SpoolStatus: ...


class Controller:
    """See `trispool.control.Control`.

    Args:
        spools: At least one; the first takes the tasks that name none.
        state: What belongs to no spool.
        hub: Tells those who watch.
        reports: Figures.

    Attributes:
        bulk_runs: The bulk actions; somebody has to run them.
        is_stopping: Whether the service has been told to end.
    """

    def __init__(self, spools: Sequence[ManagedSpool], state: State, hub: EventHub, reports: Reports) -> None:
        self.bulk_runs = BulkRuns(
            _BulkTasks(self),
            on_progress=lambda status: hub.publish("bulk", status.id, _plain(status)),
            on_end=lambda status, actor: self.note(actor, "bulk.end", status.id, after=_plain(status)),
        )
        self.is_stopping = False
        self._spools = {spool.name: spool for spool in spools}
        self._router = Router(spools, state.once)
        self._state = state
        self._hub = hub
        self._reports = reports

    # Enqueuing

    async def enqueue(
        self, tasks: Sequence[NewTask], *, default_spool: str | None = None
    ) -> Sequence[Accepted | TrispoolError]:
        """See `Control.enqueue`."""
        return await self._router.enqueue(tasks, default_spool=default_spool)

    async def enqueue_once(
        self, key: OnceKey, tasks: Sequence[NewTask], *, default_spool: str | None = None
    ) -> tuple[Sequence[Accepted | TrispoolError], bool]:
        """See `Control.enqueue_once`."""
        return await self._router.enqueue_once(key, tasks, default_spool=default_spool)

    # Spools and workers

    def spools(self) -> Sequence[SpoolStatus]:
        """See `Control.spools`."""
        return [spool.status() for spool in self._spools.values()]

    def spool(self, name: str) -> SpoolStatus:
        """See `Control.spool`."""
        return self._router.named(name).status()

    async def change_spool(self, name: str, change: SpoolChange, actor: Actor) -> SpoolStatus:
        """See `Control.change_spool`."""
        spool = self._router.named(name)
        wanted = {key: value for key, value in asdict(change).items() if value is not None}
        before = _settings(spool.status(), wanted)
        try:
            spool.change(change)
        except TrispoolError as error:
            await self.note(actor, "spool.change", name, before=before, after=wanted, outcome=str(error))
            raise
        status = spool.status()
        await self.note(actor, "spool.change", name, before=before, after=_settings(status, wanted))
        settings = _settings(status, status.configured)
        self._hub.publish("settings", name, {"spool": name, "by": actor.name, **settings})
        return status

    async def scan(self, name: str, actor: Actor) -> SpoolStatus:
        """See `Control.scan`."""
        spool = self._router.named(name)
        outcome = "ok"
        try:
            await spool.scan_now()
        except TrispoolError as error:
            outcome = str(error)
            raise
        finally:
            await self.note(actor, "spool.scan", name, outcome=outcome)
        return spool.status()

    async def restart_worker(self, pid: int, actor: Actor, *, kill: bool = False) -> WorkerStatus:
        """See `Control.restart_worker`."""
        for spool in self._spools.values():
            for worker in spool.status().workers:
                if worker.pid == pid and spool.restart_worker(pid, kill=kill):
                    await self.note(actor, "worker.restart", str(pid), before=_plain(worker), after={"kill": kill})
                    return worker
        await self.note(actor, "worker.restart", str(pid), outcome="there is no such worker")
        raise TaskRefused(f"there is no worker {pid}", status=404)

    # Tasks

    async def tasks(self, query: TaskQuery) -> Page:
        """See `Control.tasks`."""
        return await list_tasks([*self._spools.values()], query)

    async def task(self, task_id: str) -> TaskDetail:
        """See `Control.task`."""
        spool, found = await self.find(task_id)
        history = found.history or await spool.ledger.history(task_id)
        summary = found.summary
        if found.item is not None:
            summary = summary_of(spool, found.item, history.last if history else None)
        task = found.entry and await spool.store.get(found.entry.ref, body_limit=MAX_SHOWN + 1)
        if task is None:
            vars_, attempts = (history.vars, history.attempts) if history else (None, [])
            return TaskDetail(summary, vars_, None, attempts)
        if len(task.body) > MAX_SHOWN:
            raise TaskRefused("the body is too large to be shown; its file is in the spool", status=413)
        return TaskDetail(summary, task.vars, task.body, history.attempts if history else [])

    async def find(self, task_id: str) -> tuple[ManagedSpool, Found]:
        """A task and its spool.

        Raises:
            TaskNotFound: No spool knows it.
            SpoolUnavailable: It cannot be looked for now.
        """
        for spool in self._spools.values():
            if (found := await spool.find_task(task_id)) is not None:
                return spool, found
        raise TaskNotFound(f"there is no task {task_id!r}")

    async def act(self, task_id: str, action: Action, actor: Actor, *, at: float | None = None) -> TaskSummary:
        """See `Control.act`."""
        before = after = None
        outcome = "ok"
        try:
            _, found = await self.find(task_id)
            before = _brief(found.summary, action)
            summary = await self.act_unnoted(task_id, action, actor, at)
            after = _brief(summary, action)
        except TrispoolError as error:
            outcome = str(error)
            raise
        finally:
            await self.note(actor, f"task.{action}", task_id, before=before, after=after, outcome=outcome)
        return summary

    async def act_unnoted(self, task_id: str, action: Action, actor: Actor, at: float | None) -> TaskSummary:
        """`act` without a word to the audit log."""
        for spool in self._spools.values():
            if (summary := await spool.act(task_id, action, actor.name, at)) is not None:
                return summary
        raise TaskNotFound(f"there is no task {task_id!r}")

    def select(self, wanted: TaskFilter, states: Collection[TaskState]) -> AsyncGenerator[Sequence[TaskSummary], None]:
        """See `trispool.bulk.BulkTasks`."""
        return select_tasks([*self._spools.values()], wanted, states)

    # Bulk actions

    async def preview(self, request: BulkRequest) -> BulkPreview:
        """See `Control.preview`."""
        return await self.bulk_runs.preview(request)

    async def start_bulk(self, request: BulkRequest, actor: Actor) -> BulkStatus:
        """See `Control.start_bulk`."""
        asked = {
            "ids": None if request.ids is None else len(request.ids),
            "filter": request.filter and {key: value for key, value in asdict(request.filter).items() if value},
            "at": request.at,
        }
        action, target = f"tasks.{request.action}", (request.filter and request.filter.spool) or ""
        after, outcome = None, "ok"
        try:
            status = await self.bulk_runs.start_bulk(request, actor)
            after = _plain(status)
        except TrispoolError as error:
            outcome = str(error)
            raise
        finally:
            await self.note(actor, action, target, before=asked, after=after, outcome=outcome)
        return status

    def bulk(self, bulk_id: str, *, limit: int = 500, cursor: str | None = None) -> BulkPage:
        """See `Control.bulk`."""
        return self.bulk_runs.bulk(bulk_id, limit=limit, cursor=cursor)

    async def stop_bulk(self, bulk_id: str, actor: Actor) -> BulkStatus:
        """See `Control.stop_bulk`."""
        after, outcome = None, "ok"
        try:
            status = await self.bulk_runs.stop_bulk(bulk_id)
            after = _plain(status)
        except TrispoolError as error:
            outcome = str(error)
            raise
        finally:
            await self.note(actor, "bulk.stop", bulk_id, after=after, outcome=outcome)
        return status

    # Watching

    async def stats(self) -> Mapping[str, object]:
        """See `Control.stats`."""
        return await self._reports.stats()

    async def metrics(self) -> bytes:
        """See `Control.metrics`."""
        return await self._reports.metrics()

    def events(self, after: str | None = None) -> AsyncGenerator[Event | None, None]:
        """See `Control.events`."""
        return self._hub.read(after)

    async def audit(
        self,
        *,
        actor: str | None = None,
        action: str | None = None,
        target: str | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> AuditPage:
        """See `Control.audit`."""
        return await self._state.audit.page(actor=actor, action=action, target=target, limit=limit, cursor=cursor)

    async def note(
        self,
        actor: Actor,
        action: str,
        target: str,
        *,
        before: object = None,
        after: object = None,
        outcome: str = "ok",
    ) -> None:
        """See `Control.note`."""
        with trio.move_on_after(AUDIT_SECONDS, shield=True):
            await self._state.audit.note(actor, action, target, before=before, after=after, outcome=outcome)

    def health(self) -> Health:
        """See `Control.health`."""
        health = healthiness(self.spools())
        if self._state.problem is None:
            return health
        return Health(False, [*health.problems, f"state_dir: {self._state.problem}"])

    def readiness(self) -> Health:
        """See `Control.readiness`."""
        return readiness(self.spools(), stopping=self.is_stopping)


class _BulkTasks:
    """See `trispool.bulk.BulkTasks`."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller

    def select(self, wanted: TaskFilter, states: Collection[TaskState]) -> AsyncGenerator[Sequence[TaskSummary], None]:
        return self._controller.select(wanted, states)

    async def summary(self, task_id: str) -> TaskSummary:
        _, found = await self._controller.find(task_id)
        return found.summary

    async def act(self, task_id: str, action: Action, actor: Actor, *, at: float | None) -> TaskSummary:
        return await self._controller.act_unnoted(task_id, action, actor, at)


def _settings(status: SpoolStatus, keys: Mapping[str, object]) -> dict[str, object]:
    return {key: getattr(status, key) for key in keys}


def _brief(summary: TaskSummary, action: Action) -> dict[str, object]:
    """What the audit log says of a task: its state, and when it is due if that is what was changed."""
    brief: dict[str, object] = {"state": str(summary.state)}
    return brief | {"at": summary.at} if action in (Action.RUN, Action.RESCHEDULE) else brief


def _plain(value: Any) -> dict[str, Any]:  # noqa: ANN401 # any of our frozen values
    """A value as a JSON document."""
    return {key: str(item) if isinstance(item, Action) else item for key, item in asdict(value).items()}
