"""A service for tests of its faces: remembers what it is told and answers from plain attributes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import trio

from trispool.control import Health, Page, SpoolStatus, TaskDetail, TaskSummary, WorkerStatus
from trispool.errors import TaskNotFound, TaskRefused, TrispoolError
from trispool.operating import (
    Action,
    ActionResult,
    Actor,
    AuditPage,
    AuditRow,
    BulkPage,
    BulkPreview,
    BulkRequest,
    BulkStatus,
    Event,
    OnceKey,
    SpoolChange,
    TaskQuery,
)
from trispool.task import Accepted, NewTask, TaskState

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence

__all__ = ["FakeControl"]

BECOMES = {
    Action.CANCEL: TaskState.CANCELLED,
    Action.HOLD: TaskState.HELD,
    Action.RELEASE: TaskState.READY,
    Action.RUN: TaskState.READY,
    Action.RETRY: TaskState.READY,
    Action.RESCHEDULE: TaskState.SCHEDULED,
}


class FakeControl:
    """Implements `trispool.control.Control`.

    Attributes:
        batches: What each call of `enqueue` brought.
        failures: Index in a batch to the error that `enqueue` returns for it.
        id_format: Makes the id of the task with the number `{}`.
        before_enqueue: Awaited by `enqueue` before it keeps anything.
        calls: The other calls, as (name, arguments).
        page: What `tasks` answers.
        details: The tasks there are.
        refusal: Raised by whatever changes something.
        bulk_state: Of the bulk actions that are started from now on.
        happening: The events so far; `events` waits for further ones. `tell` adds one.
        heartbeat: Seconds after which `events` gives None.
        readers: How many `events` are open.
        notes: What `note` was told.
        rows: What `audit` answers.
    """

    def __init__(self) -> None:
        self.status = {
            "default": SpoolStatus("default", "/srv/spool", 30.0, 2, paused=False, durability="fsync", ready=3),
            "mail": SpoolStatus("mail", "/srv/mail", 5.0, 1, paused=True, durability="os"),
        }
        self.batches: list[tuple[Sequence[NewTask], str | None]] = []
        self.failures: dict[int, TrispoolError] = {}
        self.id_format = "task-{}"
        self.before_enqueue: Callable[[], Awaitable[None]] | None = None
        self.calls: list[tuple[object, ...]] = []
        self.page = Page([], None)
        self.details: dict[str, TaskDetail] = {}
        self.refusal: TrispoolError | None = None
        self.bulks: dict[str, BulkPage] = {}
        self.bulk_state = "finished"
        self.happening: list[Event] = []
        self.heartbeat = 15.0
        self.readers = 0
        self.rows: list[AuditRow] = []
        self.notes: list[tuple[Actor, str, str, object, object, str]] = []
        self.state_of_health = Health(True)
        self.state_of_readiness = Health(True)
        self.crash: Exception | None = None
        self._once: dict[tuple[str, str], tuple[bytes, Sequence[Accepted | TrispoolError]]] = {}
        self._happened = trio.Event()

    @property
    def kept(self) -> list[NewTask]:
        """All tasks that came, in order."""
        return [task for batch, _ in self.batches for task in batch]

    # Enqueuing

    async def enqueue(
        self, tasks: Sequence[NewTask], *, default_spool: str | None = None
    ) -> Sequence[Accepted | TrispoolError]:
        if self.before_enqueue is not None:
            await self.before_enqueue()
        first = len(self.kept)
        self.batches.append((tasks, default_spool))
        return [
            self.failures.get(index)
            or Accepted(self.id_format.format(first + index), default_spool or "default", task.at)
            for index, task in enumerate(tasks)
        ]

    async def enqueue_once(
        self, key: OnceKey, tasks: Sequence[NewTask], *, default_spool: str | None = None
    ) -> tuple[Sequence[Accepted | TrispoolError], bool]:
        if (key.owner, key.key) in self._once:
            fingerprint, results = self._once[key.owner, key.key]
            if fingerprint != key.fingerprint:
                raise TaskRefused("This key was used for another request.", status=422)
            return results, True
        results = await self.enqueue(tasks, default_spool=default_spool)
        self._once[key.owner, key.key] = (key.fingerprint, results)
        return results, False

    # Spools and workers

    def spools(self) -> Sequence[SpoolStatus]:
        if self.crash is not None:
            raise self.crash
        return list(self.status.values())

    def spool(self, name: str) -> SpoolStatus:
        if name not in self.status:
            raise TaskRefused(f"There is no spool {name!r}.", status=404)
        return self.status[name]

    async def change_spool(self, name: str, change: SpoolChange, actor: Actor) -> SpoolStatus:
        self._called("change_spool", name, change, actor)
        spool = self.spool(name)
        self.status[name] = replace(
            spool,
            frequency=spool.frequency if change.frequency is None else change.frequency,
            paused=spool.paused if change.paused is None else change.paused,
            processes=spool.processes if change.processes is None else change.processes,
        )
        return self.status[name]

    async def scan(self, name: str, actor: Actor) -> SpoolStatus:
        self._called("scan", name, actor)
        return self.spool(name)

    async def restart_worker(self, pid: int, actor: Actor, *, kill: bool = False) -> WorkerStatus:
        self._called("restart_worker", pid, actor, kill)
        for spool in self.status.values():
            for worker in spool.workers:
                if worker.pid == pid:
                    return worker
        raise TaskRefused(f"There is no worker {pid}.", status=404)

    # Tasks

    async def tasks(self, query: TaskQuery) -> Page:
        self._called("tasks", query)
        return self.page

    async def task(self, task_id: str) -> TaskDetail:
        if task_id not in self.details:
            raise TaskNotFound(f"There is no task {task_id!r}.")
        return self.details[task_id]

    async def act(self, task_id: str, action: Action, actor: Actor, *, at: float | None = None) -> TaskSummary:
        self._called("act", task_id, action, actor, at)
        detail = await self.task(task_id)
        summary = replace(
            detail.summary, state=BECOMES[action], at=detail.summary.at if at is None else at, last_error=None
        )
        self.details[task_id] = replace(detail, summary=summary)
        return summary

    async def preview(self, request: BulkRequest) -> BulkPreview:
        self._called("preview", request)
        known = [task_id for task_id in self._meant(request) if task_id in self.details]
        return BulkPreview(len(known), len(self._meant(request)) - len(known), {"ready": len(known)}, known[:20])

    async def start_bulk(self, request: BulkRequest, actor: Actor) -> BulkStatus:
        self._called("start_bulk", request, actor)
        results = [
            ActionResult(task_id, BECOMES[request.action])
            if task_id in self.details
            else ActionResult(task_id, None, 404, f"There is no task {task_id!r}.")
            for task_id in self._meant(request)
        ]
        done = sum(result.status == 200 for result in results)
        status = BulkStatus(
            f"bulk-{len(self.bulks)}",
            request.action,
            self.bulk_state,  # type: ignore[arg-type]
            len(results),
            done,
            len(results) - done,
            actor.name,
            1700000000.0,
            1700000001.5 if self.bulk_state == "finished" else None,
        )
        self.bulks[status.id] = BulkPage(status, results, None)
        return status

    def bulk(self, bulk_id: str, *, limit: int = 500, cursor: str | None = None) -> BulkPage:
        self._called("bulk", bulk_id, limit, cursor)
        if bulk_id not in self.bulks:
            raise TaskRefused(f"There is no bulk action {bulk_id!r}.", status=404)
        page = self.bulks[bulk_id]
        start = int(cursor) if cursor and cursor.isascii() and cursor.isdigit() else 0
        more = str(start + limit) if start + limit < len(page.results) else None
        return replace(page, results=page.results[start : start + limit], cursor=more)

    async def stop_bulk(self, bulk_id: str, actor: Actor) -> BulkStatus:
        self._called("stop_bulk", bulk_id, actor)
        page = self.bulk(bulk_id)
        if page.status.state == "running":
            self.bulks[bulk_id] = replace(page, status=replace(page.status, state="stopped", finished_at=1700000002.0))
        return self.bulks[bulk_id].status

    # Watching

    async def stats(self) -> Mapping[str, object]:
        return {"now": 1700000000.0, "spools": {}}

    async def metrics(self) -> bytes:
        return b"# HELP trispool_up 1.\n# TYPE trispool_up gauge\ntrispool_up 1.0\n"

    async def events(self, after: str | None = None) -> AsyncGenerator[Event | None, None]:
        self.readers += 1
        try:
            position = len(self.happening)
            if after is not None:
                position = next((n + 1 for n, event in enumerate(self.happening) if event.id == after), 0)
            while True:
                while position < len(self.happening):
                    position += 1
                    yield self.happening[position - 1]
                happened = self._happened
                with trio.move_on_after(self.heartbeat) as waiting:
                    await happened.wait()
                if waiting.cancelled_caught:
                    yield None
        finally:
            self.readers -= 1

    def tell(self, name: str, data: Mapping[str, object]) -> None:
        """Let an event happen."""
        self.happening.append(Event(f"1-{len(self.happening) + 1}", name, data))
        self._happened.set()
        self._happened = trio.Event()

    async def audit(
        self,
        *,
        actor: str | None = None,
        action: str | None = None,
        target: str | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> AuditPage:
        self._called("audit", actor, action, target, limit, cursor)
        return AuditPage(self.rows[:limit], "next" if len(self.rows) > limit else None)

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
        self.notes.append((actor, action, target, before, after, outcome))

    def health(self) -> Health:
        return self.state_of_health

    def readiness(self) -> Health:
        return self.state_of_readiness

    # For tests

    def add_detail(
        self, task_id: str, vars: dict[bytes, bytes] | None, body: bytes | None, state: TaskState = TaskState.READY
    ) -> None:
        """Let `task` know a task."""
        summary = TaskSummary(task_id, "default", state, 1700000000.25, None, 1699999999.5)
        self.details[task_id] = TaskDetail(summary, vars, body, [])

    def _called(self, *call: object) -> None:
        self.calls.append(call)
        if self.refusal is not None:
            raise self.refusal

    def _meant(self, request: BulkRequest) -> Sequence[str]:
        return list(self.details) if request.ids is None else list(request.ids)
