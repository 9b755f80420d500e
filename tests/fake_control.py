"""A service for tests of its faces: remembers what it is told and answers from plain attributes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from trispool.control import Health, Page, SpoolStatus, TaskDetail, TaskSummary
from trispool.errors import TaskNotFound, TaskRefused, TrispoolError
from trispool.task import Accepted, NewTask, TaskState

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

__all__ = ["FakeControl"]


class FakeControl:
    """Implements `trispool.control.Control`.

    Attributes:
        batches: What each call of `enqueue` brought.
        failures: Index in a batch to the error that `enqueue` returns for it.
        id_format: Makes the id of the task with the number `{}`.
        before_enqueue: Awaited by `enqueue` before it keeps anything.
        calls: The other calls, as (name, arguments).
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
        self.state_of_health = Health(True)
        self.crash: Exception | None = None

    @property
    def kept(self) -> list[NewTask]:
        """All tasks that came, in order."""
        return [task for batch, _ in self.batches for task in batch]

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

    def spools(self) -> Sequence[SpoolStatus]:
        if self.crash is not None:
            raise self.crash
        return list(self.status.values())

    def spool(self, name: str) -> SpoolStatus:
        if name not in self.status:
            raise TaskRefused(f"There is no spool {name!r}.", status=404)
        return self.status[name]

    def set_frequency(self, name: str, seconds: float) -> None:
        self.calls.append(("set_frequency", name, seconds))
        if seconds < 0.01:
            raise TaskRefused("frequency: too small")
        self.status[name] = replace(self.spool(name), frequency=seconds)

    def pause(self, name: str) -> None:
        self.calls.append(("pause", name))
        self.status[name] = replace(self.spool(name), paused=True)

    def resume(self, name: str) -> None:
        self.calls.append(("resume", name))
        self.status[name] = replace(self.spool(name), paused=False)

    async def scan(self, name: str) -> None:
        self.spool(name)
        self.calls.append(("scan", name))

    async def tasks(
        self,
        *,
        spool: str | None = None,
        state: TaskState | None = None,
        q: str | None = None,
        order: Literal["asc", "desc"] = "asc",
        limit: int = 50,
        cursor: str | None = None,
    ) -> Page:
        self.calls.append(("tasks", spool, state, q, order, limit, cursor))
        return self.page

    async def task(self, task_id: str) -> TaskDetail:
        if task_id not in self.details:
            raise TaskNotFound(f"There is no task {task_id!r}.")
        return self.details[task_id]

    def health(self) -> Health:
        return self.state_of_health

    def add_detail(
        self, task_id: str, vars: dict[bytes, bytes] | None, body: bytes | None, state: TaskState = TaskState.READY
    ) -> None:
        """Let `task` know a task."""
        summary = TaskSummary(task_id, "default", state, 1700000000.25, None, 1699999999.5)
        self.details[task_id] = TaskDetail(summary, vars, body, [])
