"""What the API answers, as pydantic models. They describe `documents` to OpenAPI, and are loaded for nothing else.

Times are Unix seconds, lengths of time seconds. New members may come at any time: clients ignore what they do not know.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

from trispool.operating import Action  # noqa: TC001 # pydantic looks it up
from trispool.task import TaskState  # noqa: TC001 # and this

__all__ = [
    "AcceptedBatch",
    "AcceptedTask",
    "AuditLog",
    "Bulk",
    "BulkPreview",
    "BulkResults",
    "Health",
    "Problem",
    "SessionInfo",
    "Spool",
    "Spools",
    "Stats",
    "Task",
    "TaskDetail",
    "TaskPage",
    "Unwell",
    "Worker",
    "Workers",
]


class Fault(BaseModel):
    """One thing that is wrong in a request; members that do not apply are absent."""

    detail: str = Field(description="All of it in words.")
    line: int = Field(0, description="Of a batch, from 1.")
    pointer: str = Field("", description="Where in the JSON body (RFC 6901).")
    parameter: str = Field("", description="In which field of the query or form, or in which header.")
    value: str = Field("", description="What stands there, cut to 60 characters.")
    expected: str = Field("", description="What should.")
    status: int = Field(0, description="Of a line of a batch that was not kept: why, as an HTTP status.")


class Problem(BaseModel):
    """Why a request was not answered as asked (RFC 9457)."""

    type: Literal["about:blank"]
    title: str
    status: int
    detail: str = Field(description="What is wrong, and what was expected.")
    errors: list[Fault] = Field([], description="Every fault of the request, where single ones can be named.")


class Unwell(Problem):
    """Why the service is not well."""

    ok: Literal[False]
    problems: list[str]


class Health(BaseModel):
    """The service is well."""

    ok: Literal[True]
    problems: list[str]


class AcceptedTask(BaseModel):
    """A task that is kept."""

    id: str
    spool: str
    at: float | None = Field(description="It does not run before; null: at once.")


class AcceptedBatch(BaseModel):
    """What became of a batch."""

    count: int = Field(description="How many were kept.")
    ids: list[str | None] = Field(description="An id for each task, in order; null: it was not kept.")
    errors: list[Fault] = Field([], description="What was not kept, and why.")


class Base64(BaseModel):
    """Bytes that are not UTF-8."""

    base64: str


class Progress(BaseModel):
    """How far a running task is, as its handler said."""

    fraction: float = Field(ge=0, le=1)
    text: str


class Task(BaseModel):
    """A task as a row of a list."""

    id: str
    spool: str
    state: TaskState
    at: float = Field(description="When it is, or was, due.")
    priority: int | None
    enqueued_at: float
    attempts: int = Field(description="How many runs it had.")
    last_error: str | None
    finished_at: float | None
    run_seconds: float | None
    progress: Progress | None
    handler: str | None = Field(description="What ran it, or what it asks for if that is known.")


class TaskPage(BaseModel):
    """A part of a list; it may be short though more follows."""

    tasks: list[Task]
    cursor: str | None = Field(description="Asks for the next part; null: this was the last.")


class Body(BaseModel):
    """The beginning of a task's body."""

    size: int = Field(description="Bytes of all of it.")
    preview: str | Base64
    truncated: bool


class Attempt(BaseModel):
    """One run of a task, or one thing that an operator did to it."""

    number: int
    outcome: str = Field(
        description="ok, retry, ignore, failed, lost, timeout, set_aside; cancelled, held, released, hurried, retried "
        "or rescheduled by an operator."
    )
    started_at: float
    queue_seconds: float
    run_seconds: float
    worker_pid: int
    handler: str | None
    error: str | None
    traceback: str | None


class TaskDetail(Task):
    """A task with all that is known of it."""

    vars: dict[str, str | Base64] | None = Field(description="Null: the history does not have them any more.")
    body: Body | None = Field(description="Null: it has left the spool.")
    history: list[Attempt]


class Worker(BaseModel):
    """A worker process."""

    pid: int = Field(description="0 while it is down.")
    state: Literal["starting", "idle", "busy", "quitting", "down"]
    task_id: str | None = Field(description="What it runs; of an async worker the task begun last.")
    task_since: float | None
    tasks_done: int
    started_at: float | None
    is_async: bool


class WorkerOfSpool(Worker):
    """A worker process and the name of its spool."""

    spool: str


class Workers(BaseModel):
    """The workers of all spools."""

    workers: list[WorkerOfSpool]


class Spool(BaseModel):
    """A spool: its settings and counts."""

    name: str
    directory: str | None
    frequency: float = Field(description="Seconds between two scans.")
    processes: int
    paused: bool
    durability: str
    ready: int
    scheduled: int
    running: int
    retrying: int = Field(description="How many of the scheduled tasks have failed before.")
    held: int
    dead: int
    oldest_ready_at: float | None = Field(description="When the longest-waiting due task became due.")
    finished: dict[str, int] = Field(description="How many attempts ended in which outcome since the service started.")
    workers: list[Worker]
    problem: str | None
    configured: dict[str, float | bool] = Field(description="What the configuration says of what can be changed.")
    scanned: bool = Field(description="Whether the first scan is over; nothing runs before.")
    refusing: str | None = Field(description="Why it keeps no tasks that come now.")


class Spools(BaseModel):
    """All spools, in the order of the configuration."""

    spools: list[Spool]


class BulkPreview(BaseModel):
    """What a bulk action would do; nothing has been done."""

    matched: int = Field(description="How many tasks it would act on.")
    refused: int = Field(description="How many are unknown, or in a state that does not permit it.")
    by_state: dict[str, int]
    sample: list[str] = Field(description="Some ids of those it would act on.")


class Bulk(BaseModel):
    """How far a bulk action is."""

    id: str
    action: Action
    state: Literal["running", "finished", "stopped"]
    total: int | None = Field(description="How many tasks it is about; null while they are being looked for.")
    done: int
    refused: int
    actor: str
    started_at: float
    finished_at: float | None
    problem: str | None


class Result(BaseModel):
    """What became of one task of a bulk action."""

    id: str
    state: TaskState | None
    status: int = Field(description="200, or why it was refused: 404, 409, …")
    detail: str


class BulkResults(Bulk):
    """How far a bulk action is, and some of its results."""

    results: list[Result]
    cursor: str | None = Field(description="Asks for the next ones; null: these are all so far.")


class AuditRow(BaseModel):
    """One change by an operator."""

    seq: int
    at: float
    actor: str
    role: str
    address: str
    action: str
    target: str
    before: Any
    after: Any
    outcome: str = Field(description="ok, or why it was refused.")


class AuditLog(BaseModel):
    """A part of the audit log, the newest first."""

    rows: list[AuditRow]
    cursor: str | None = Field(description="Asks for the next part; null: this was the last.")


class Stats(BaseModel, extra="allow"):
    """Counts, rates and times of the last hour."""


class SessionInfo(BaseModel):
    """Who asks."""

    name: str = Field(description="The name of the token.")
    role: Literal["view", "enqueue", "operate"]
    expires_at: float | None
