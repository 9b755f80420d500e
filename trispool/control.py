"""What the faces of trispool (HTTP API, sockets, later the dashboard) may see and do: values and one protocol.

The service implements `Control`; whoever needs it is given it. Times are Unix seconds, lengths of time seconds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping, Sequence

    from trispool.errors import TrispoolError
    from trispool.operating import (
        Action,
        Actor,
        AuditPage,
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
        held: How many tasks an operator has told to wait.
        configured: What the configuration says of what can be changed: `frequency`, `processes`, `paused`.
        scanned: Whether the first scan is over; nothing runs before.
        refusing: Why its store keeps no tasks that come now, or None.
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
    held: int = 0
    configured: Mapping[str, float | bool] = field(default_factory=dict)
    scanned: bool = True
    refusing: str | None = None


@dataclass(frozen=True, slots=True)
class Attempt:
    """One run of a task, or one thing that happened to it, as the ledger has it.

    Attributes:
        outcome: `ok`, `retry`, `ignore`, `failed`, `lost` (the worker died in it), `timeout` or `set_aside`; or what an
            operator did: `cancelled`, `held`, `released`, `hurried` (run now), `retried`, `rescheduled`. Of these
            `number` is how many runs came before, and `error` tells who did it.
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
        handler: What ran it, or what it asks for if that is known.
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
    handler: str | None = None


@dataclass(frozen=True, slots=True)
class TaskDetail:
    """Everything known of one task.

    `body` is None once it has been removed from the spool, `vars` too if the history does not have them.
    """

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
    """The service, as its faces use it. What changes something is in the audit log when it returns."""

    # Enqueuing

    async def enqueue(
        self, tasks: Sequence[NewTask], *, default_spool: str | None = None
    ) -> Sequence[Accepted | TrispoolError]:
        """Keep tasks; one result for each, in order, once each is as durable as its spool promises.

        A task's own `spool` (a name or an absolute directory) goes before `default_spool` (a name), which goes before
        the service's first spool. Those of one spool are kept in one transaction where its store has such.
        """
        ...

    async def enqueue_once(
        self, key: OnceKey, tasks: Sequence[NewTask], *, default_spool: str | None = None
    ) -> tuple[Sequence[Accepted | TrispoolError], bool]:
        """`enqueue`, unless it was done before under this key, in the last 24 hours: then the tasks of then.

        Calls with the same key wait for each other. What was not kept may be tried again under its key.

        Returns:
            What `enqueue` returns, and whether that is of an earlier call.

        Raises:
            TaskRefused: The key was used for another request (status 422).
            SpoolUnavailable: Keys cannot be remembered now.
        """
        ...

    # Spools and workers

    def spools(self) -> Sequence[SpoolStatus]:
        """All spools, in the order of the configuration."""
        ...

    def spool(self, name: str) -> SpoolStatus:
        """One spool.

        Raises:
            TaskRefused: There is none of that name (status 404).
        """
        ...

    async def change_spool(self, name: str, change: SpoolChange, actor: Actor) -> SpoolStatus:
        """Change settings of a spool at once, all that are given or none.

        Raises:
            TaskRefused: No such spool (status 404), or a value is out of range (status 400).
        """
        ...

    async def scan(self, name: str, actor: Actor) -> SpoolStatus:
        """Look through the spool now, and return when that is done. Raises as `spool` does."""
        ...

    async def restart_worker(self, pid: int, actor: Actor, *, kill: bool = False) -> WorkerStatus:
        """Replace a worker process by a new one, when it has finished what it runs.

        Args:
            pid: Which.
            actor: Who wants it.
            kill: At once; what it runs is given back and runs again.

        Returns:
            The worker as it was.

        Raises:
            TaskRefused: There is no such worker (status 404).
        """
        ...

    # Tasks

    async def tasks(self, query: TaskQuery) -> Page:
        """Tasks, waiting and finished; a page takes a bounded amount of work, so it may be short and yet not the last.

        Raises:
            TaskRefused: No such spool, `cursor` is not one of ours, or `sort` does not fit the state.
        """
        ...

    async def task(self, task_id: str) -> TaskDetail:
        """One task.

        Raises:
            TaskNotFound: Neither waiting nor in the history.
        """
        ...

    async def act(self, task_id: str, action: Action, actor: Actor, *, at: float | None = None) -> TaskSummary:
        """Do something to one task.

        Args:
            task_id: Which.
            action: What.
            actor: Who wants it.
            at: For `reschedule`, Unix seconds.

        Returns:
            The task as it is now.

        Raises:
            TaskNotFound: There is no such task.
            TaskRefused: It is in a state in which that cannot be done (status 409).
            SpoolUnavailable: The spool cannot be changed now.
        """
        ...

    async def preview(self, request: BulkRequest) -> BulkPreview:
        """What `start_bulk` would act on. Raises as `tasks` does."""
        ...

    async def start_bulk(self, request: BulkRequest, actor: Actor) -> BulkStatus:
        """Begin to act on several tasks; returns when that is done, or after a second with the work going on.

        Raises:
            TaskRefused: As `tasks`; or as many bulk actions are running as may (status 429).
        """
        ...

    def bulk(self, bulk_id: str, *, limit: int = 500, cursor: str | None = None) -> BulkPage:
        """How far a bulk action is, with its results so far; known for an hour after its end.

        Raises:
            TaskRefused: There is none of that id (status 404), or `cursor` is not one of ours.
        """
        ...

    async def stop_bulk(self, bulk_id: str, actor: Actor) -> BulkStatus:
        """Do nothing more of a bulk action. Raises as `bulk` does."""
        ...

    # Watching

    async def stats(self) -> Mapping[str, object]:
        """Counts, rates and times of the last hour, as a JSON document; see `trispool.stats`. As fresh as `metrics`."""
        ...

    async def metrics(self) -> bytes:
        """The metrics in Prometheus' text format 0.0.4, at most a second old; made in a thread."""
        ...

    def events(self, after: str | None = None) -> AsyncGenerator[Event | None, None]:
        """What happens from now on, or after the event of that id. Endless; None now and then, if nothing happens.

        Nothing is queued for a reader: one that is slow is told `reset` and goes on with what happens then.
        """
        ...

    async def audit(
        self,
        *,
        actor: str | None = None,
        action: str | None = None,
        target: str | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> AuditPage:
        """What operators have changed, the newest first.

        Raises:
            TaskRefused: `cursor` is not one of ours.
        """
        ...

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
        """Put a change that somebody else made (a login, say) into the audit log."""
        ...

    def health(self) -> Health:
        """Whether every part of the service does its work."""
        ...

    def readiness(self) -> Health:
        """Whether tasks that come now are kept and run: the first scan is over, there are workers, no stop is near."""
        ...
