"""What the faces of trispool (HTTP API, sockets, later the dashboard) may see and do: values and one protocol.

The service implements `Control`; whoever needs it is given it. Times are Unix seconds, lengths of time seconds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from trispool.errors import TrispoolError
    from trispool.task import Accepted, NewTask, TaskState

__all__ = [
    "Attempt",
    "Control",
    "Health",
    "Page",
    "SpoolStatus",
    "TaskDetail",
    "TaskSummary",
    "WorkerStatus",
]


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """One worker process.

    Attributes:
        pid: Its process id, 0 while it is down.
        state: What it does.
        task_id: The task it runs, or None. Of an async worker the one begun last.
        task_since: Since when.
        tasks_done: How many it has run.
        started_at: When it was started.
        is_async: Whether it runs several async handlers at once.
    """

    pid: int
    state: Literal["starting", "idle", "busy", "quitting", "down"]
    task_id: str | None = None
    task_since: float | None = None
    tasks_done: int = 0
    started_at: float | None = None
    is_async: bool = False


@dataclass(frozen=True, slots=True)
class SpoolStatus:
    """One spool at this moment.

    Attributes:
        problem: What an operator should know (handlers do not import, spool is read-only), or None.
        finished: How many attempts ended in which outcome since the service started.
        oldest_ready_at: When the longest-waiting due task became due, or None.
        retrying: How many of the scheduled tasks have failed before.
    """

    name: str
    directory: str | None
    frequency: float
    processes: int
    paused: bool
    durability: str
    ready: int = 0
    scheduled: int = 0
    running: int = 0
    retrying: int = 0
    dead: int = 0
    oldest_ready_at: float | None = None
    finished: Mapping[str, int] = field(default_factory=dict)
    workers: Sequence[WorkerStatus] = ()
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Attempt:
    """One run of a task, or one thing that happened to it, as the ledger has it.

    Attributes:
        outcome: `ok`, `retry`, `ignore`, `failed`, `lost` (the worker died in it), `timeout` or `set_aside`.
        queue_seconds: From the moment it was due to its start.
    """

    number: int
    outcome: str
    started_at: float
    queue_seconds: float = 0.0
    run_seconds: float = 0.0
    worker_pid: int = 0
    handler: str | None = None
    error: str | None = None
    traceback: str | None = None


@dataclass(frozen=True, slots=True)
class TaskSummary:
    """A task as a row of a list.

    Attributes:
        at: When it is (or was) due.
        attempts: How many runs it had.
        progress: (fraction, text) as its handler last said, while it runs.
    """

    id: str
    spool: str
    state: TaskState
    at: float
    priority: int | None
    enqueued_at: float
    attempts: int = 0
    last_error: str | None = None
    finished_at: float | None = None
    run_seconds: float | None = None
    progress: tuple[float, str] | None = None


@dataclass(frozen=True, slots=True)
class TaskDetail:
    """Everything known of one task; `vars` and `body` are None once it has been removed from the spool."""

    summary: TaskSummary
    vars: Mapping[bytes, bytes] | None
    body: bytes | None
    attempts: Sequence[Attempt]


@dataclass(frozen=True, slots=True)
class Page:
    """A part of a long list; `cursor` asks for the next part, None says this was the last."""

    items: Sequence[TaskSummary]
    cursor: str | None


@dataclass(frozen=True, slots=True)
class Health:
    """Whether the service does its work, and if not, why."""

    ok: bool
    problems: Sequence[str] = ()


class Control(Protocol):
    """The service, as its faces use it."""

    async def enqueue(
        self, tasks: Sequence[NewTask], *, default_spool: str | None = None
    ) -> Sequence[Accepted | TrispoolError]:
        """Keep tasks; one result for each, in order, once each is as durable as its spool promises.

        A task's own `spool` (a name or an absolute directory) goes before `default_spool` (a name), which goes before
        the service's first spool.
        """
        ...

    def spools(self) -> Sequence[SpoolStatus]:
        """All spools, in the order of the configuration."""
        ...

    def spool(self, name: str) -> SpoolStatus:
        """One spool.

        Raises:
            TaskRefused: There is none of that name (status 404).
        """
        ...

    def set_frequency(self, name: str, seconds: float) -> None:
        """Scan and retry every `seconds` from now on.

        Raises:
            TaskRefused: No such spool (status 404), or `seconds` is not a positive number.
        """
        ...

    def pause(self, name: str) -> None:
        """Start no more tasks of this spool; it goes on taking them. Raises as `spool` does."""
        ...

    def resume(self, name: str) -> None:
        """Start tasks again. Raises as `spool` does."""
        ...

    async def scan(self, name: str) -> None:
        """Look through the spool now. Raises as `spool` does."""
        ...

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
        """Tasks, waiting and finished, by time of enqueuing.

        Raises:
            TaskRefused: No such spool, or `cursor` is not one of ours.
        """
        ...

    async def task(self, task_id: str) -> TaskDetail:
        """One task.

        Raises:
            TaskNotFound: Neither waiting nor in the history.
        """
        ...

    def health(self) -> Health:
        """Whether every part of the service does its work."""
        ...
