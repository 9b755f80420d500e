"""What an operator may ask for and is told, as values: actions on tasks, searches, bulk runs, events, the audit log.

Times are Unix seconds, lengths of time seconds.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from trispool.task import TaskState

__all__ = [
    "Action",
    "ActionResult",
    "Actor",
    "AuditPage",
    "AuditRow",
    "BulkPage",
    "BulkPreview",
    "BulkRequest",
    "BulkStatus",
    "Event",
    "OnceKey",
    "SpoolChange",
    "TaskFilter",
    "TaskQuery",
]


class Action(enum.StrEnum):
    """What an operator may do to a task; which states it fits is told in `trispool.actions`."""

    CANCEL = "cancel"
    HOLD = "hold"
    RELEASE = "release"
    RUN = "run"
    RETRY = "retry"
    RESCHEDULE = "reschedule"


@dataclass(frozen=True, slots=True)
class Actor:
    """Who wants something.

    Attributes:
        name: The token's name, such as `operator`.
        role: The token's role.
        address: Where the request came from; `unix` for a Unix socket.
    """

    name: str
    role: str = "operate"
    address: str = ""


@dataclass(frozen=True, slots=True)
class TaskFilter:
    """Which tasks are meant; None: whatever they are.

    Attributes:
        spool: The name of their spool.
        state: Their state.
        handler: The whole name of the handler that they ask for, or that ran them.
        q: Text in their id, last error, or the keys and values of their vars; case counts.
        enqueued_after: Enqueued at this time or later.
        enqueued_before: Enqueued before this time.
        due_after: Due at this time or later; of tasks that are finished their `at`.
        due_before: Due before this time.
    """

    spool: str | None = None
    state: TaskState | None = None
    handler: str | None = None
    q: str | None = None
    enqueued_after: float | None = None
    enqueued_before: float | None = None
    due_after: float | None = None
    due_before: float | None = None


@dataclass(frozen=True, slots=True)
class TaskQuery:
    """One page of the tasks that a filter means.

    Attributes:
        sort: `enqueued`: by time of enqueuing (finished tasks: by time of ending); `due`: by the time they are due,
            which is for one of the states `scheduled`, `ready` and `held` only.
        limit: How many at most. A page may be shorter than that though more follows: `cursor` tells.
        cursor: Where the page begins, as the page before it said.
    """

    filter: TaskFilter = field(default_factory=TaskFilter)
    sort: Literal["enqueued", "due"] = "enqueued"
    order: Literal["asc", "desc"] = "asc"
    limit: int = 50
    cursor: str | None = None


@dataclass(frozen=True, slots=True)
class SpoolChange:
    """New settings of a spool; None: as it is."""

    frequency: float | None = None
    paused: bool | None = None
    processes: int | None = None


@dataclass(frozen=True, slots=True)
class ActionResult:
    """What became of one task of several.

    Attributes:
        state: What it is now, or None if the action was refused.
        status: 200, or as an HTTP status why it was refused: 404 (no such task), 409 (not in that state), …
        detail: That reason in words, or empty.
    """

    id: str
    state: TaskState | None
    status: int = 200
    detail: str = ""


@dataclass(frozen=True, slots=True)
class BulkRequest:
    """One action on several tasks: on those of `ids`, or on all that `filter` means at the moment of the request.

    Attributes:
        at: For `reschedule`: when they shall run, Unix seconds.
    """

    action: Action
    ids: Sequence[str] | None = None
    filter: TaskFilter | None = None
    at: float | None = None


@dataclass(frozen=True, slots=True)
class BulkPreview:
    """What a bulk action would do: nothing has been done yet.

    Attributes:
        matched: How many tasks it would act on.
        refused: How many of those meant are in a state that does not permit it, or are unknown.
        by_state: How many of `matched` are in which state.
        sample: The ids of the first few of `matched`.
    """

    matched: int
    refused: int
    by_state: Mapping[str, int]
    sample: Sequence[str]


@dataclass(frozen=True, slots=True)
class BulkStatus:
    """How far a bulk action is.

    Attributes:
        total: How many tasks it is about; None while they are still being looked for.
        done: How many were acted on.
        refused: How many could not be.
        state: `running`, `finished`, or `stopped` by an operator or the end of the service.
        actor: Who asked for it.
        problem: Why it went wrong as a whole, or None.
    """

    id: str
    action: Action
    state: Literal["running", "finished", "stopped"]
    total: int | None
    done: int
    refused: int
    actor: str
    started_at: float
    finished_at: float | None = None
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class BulkPage:
    """Some results of a bulk action, in order; `cursor` asks for the next ones, None: these are all so far."""

    status: BulkStatus
    results: Sequence[ActionResult]
    cursor: str | None


@dataclass(frozen=True, slots=True)
class OnceKey:
    """An `Idempotency-Key`: the same one gives the same tasks, never further ones.

    Attributes:
        key: As the client sent it.
        owner: The name of the token it came with; keys of others are other keys.
        fingerprint: Of the request; the same key with another one is an error.
    """

    key: str
    owner: str
    fingerprint: bytes


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened, for those who watch.

    Attributes:
        id: Where in the stream it stands; opaque.
        name: `spools`, `tasks`, `workers`, `settings`, `bulk`, or `reset` (some events are lost: look afresh).
        data: A JSON document.
    """

    id: str
    name: str
    data: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class AuditRow:
    """One change by an operator.

    Attributes:
        seq: Its number; newer ones are larger.
        at: When.
        actor: Who: the token's name.
        role: The token's role then.
        address: From where.
        action: What: `task.cancel`, `spool.change`, `worker.restart`, `token.create`, `login`, …
        target: On what: a task's id, a spool's name, …
        before: What it was, a JSON value, or None.
        after: What it is now, a JSON value, or None.
        outcome: `ok`, or why it was refused or failed.
    """

    seq: int
    at: float
    actor: str
    role: str
    address: str
    action: str
    target: str
    before: object
    after: object
    outcome: str


@dataclass(frozen=True, slots=True)
class AuditPage:
    """A part of the audit log; `cursor` asks for the next part, None says this was the last."""

    rows: Sequence[AuditRow]
    cursor: str | None
