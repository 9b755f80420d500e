"""The dispatcher's settings, workers and history as it sees them, and what it writes of the one into the other."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol

from trispool.packet import decode_vars
from trispool.retry import RetryPolicy
from trispool.task import AttemptRow, TaskState

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from trispool.backlog import Running
    from trispool.store import Claim, SpoolStore
    from trispool.task import Entry, Retrying

__all__ = [
    "RAN",
    "RAN_BADLY",
    "UNREADABLE",
    "DispatcherSettings",
    "History",
    "Loss",
    "Report",
    "Unwatched",
    "Watcher",
    "Worker",
    "handler_asked_for",
    "policies_of",
    "row_of_action",
    "row_of_attempt",
    "row_of_unreadable",
]

RAN: Final = frozenset({"ok", "retry", "ignore", "failed", "timeout"})
"""The codes of reports of tasks that were run; others could not be."""

RAN_BADLY: Final = frozenset({"retry", "failed", "timeout"})
"""Those of them for which it matters whose handler it was."""

UNREADABLE: Final = "set_aside"
"""The outcome in the history of what was no task."""

_tuple: Final = tuple.__new__


@dataclass(frozen=True, slots=True)
class DispatcherSettings:
    """What the configuration says of a spool's running.

    Attributes:
        name: The spool's name.
        frequency: Seconds from a failed attempt to the next, where nothing else is said.
        policy: For handlers that have no retry policy of their own.
    """

    name: str
    frequency: float
    policy: RetryPolicy = field(default_factory=RetryPolicy)


class Report(Protocol):
    """What a worker says of one task; see `trispool.pool.Report`."""

    @property
    def claim(self) -> Claim: ...
    @property
    def code(self) -> str: ...
    @property
    def started_at(self) -> float: ...
    @property
    def run_seconds(self) -> float: ...
    @property
    def handler(self) -> str | None: ...
    @property
    def error(self) -> str | None: ...
    @property
    def traceback(self) -> str | None: ...
    @property
    def retry_at(self) -> float | None: ...
    @property
    def detail(self) -> object: ...
    @property
    def vars(self) -> bytes | None: ...


class Worker(Protocol):
    """A worker process as the dispatcher sees it; see `trispool.pool`."""

    @property
    def pid(self) -> int: ...
    @property
    def room(self) -> int:
        """How many more tasks it takes now."""
        ...

    @property
    def in_hand(self) -> int:
        """How many it has."""
        ...

    @property
    def fewest(self) -> int:
        """Fewer are not worth being given to it behind others, nor to be shared with it."""
        ...

    @property
    def handlers(self) -> Mapping[str, Mapping[str, Any]]:
        """What the handlers say of themselves, by name; see `trispool.worker.frames.HandlerInfo`."""
        ...

    def give(self, claims: Sequence[Claim], attempts: Sequence[int]) -> None:
        """Hand over; never more than `room`."""
        ...


class History(Protocol):
    """Where attempts are recorded; see `trispool.ledger`."""

    def record(self, *rows: AttemptRow) -> None: ...
    def remember(self, retrying: Retrying) -> None: ...
    def forget(self, task_id: str) -> None: ...


class Watcher(Protocol):
    """Who is told what happens to tasks: in plain calls, which must be quick and not raise."""

    def enqueued(self, entries: Sequence[Entry], /) -> None:
        """These are new: kept by us, or found after the first scan."""

    def started(self, taken: Sequence[Running], /) -> None:
        """A worker has been given these."""

    def ended(self, rows: Sequence[AttemptRow], state: TaskState, /) -> None:
        """Attempts have ended, and their tasks are now in this state."""

    def changed(self, task_id: str, state: TaskState, /) -> None:
        """An operator has done something to a task, or a worker has given it back; it is now in this state."""


class Unwatched:
    """The watcher where nobody watches."""

    def enqueued(self, entries: Sequence[Entry]) -> None:
        """See `Watcher.enqueued`."""

    def started(self, taken: Sequence[Running]) -> None:
        """See `Watcher.started`."""

    def ended(self, rows: Sequence[AttemptRow], state: TaskState) -> None:
        """See `Watcher.ended`."""

    def changed(self, task_id: str, state: TaskState) -> None:
        """See `Watcher.changed`."""


class Loss:
    """The report of a task whose worker did not live to make one.

    Args:
        claim: The task.
        code: `lost`, or `timeout` if we killed the worker because of it.
        started_at: When it was handed over, Unix seconds.
        now: Unix seconds.
        error: What became of the worker.
    """

    retry_at: float | None = None
    traceback: str | None = None
    handler = None
    detail: object = None
    vars: bytes | None = None

    def __init__(self, claim: Claim, code: str, started_at: float, now: float, error: str) -> None:
        self.claim = claim
        self.code = code
        self.started_at = started_at
        self.run_seconds = now - started_at
        self.error = error


def policies_of(worker: Worker, default: RetryPolicy) -> dict[str, RetryPolicy]:
    """When the tasks of each handler of a worker are tried again; those that name none are under the empty name.

    Args:
        worker: The worker.
        default: Of the spool, for what a handler does not say.
    """
    policies = {"": default}
    for name, handler in worker.handlers.items():
        policies[name] = RetryPolicy(
            default.max_attempts if handler["retries"] is None else handler["retries"] + 1,
            default.backoff if handler["backoff"] is None else handler["backoff"],
        )
        if handler["default"]:
            policies[""] = policies[name]
    return policies


async def handler_asked_for(claim: Claim, store: SpoolStore, handlers: Collection[str]) -> str | None:
    """The handler that a task names, if it is one of these."""
    if claim.content is not None:
        name = decode_vars(claim.content[0]).get(b"handler", b"")
    else:
        task = await store.get(claim.ref, body_limit=0)
        name = task.vars.get(b"handler", b"") if task else b""
    handler = name.decode(errors="replace")
    return handler if handler and handler in handlers else None


def row_of_attempt(running: Running, report: Report, handler: str | None) -> AttemptRow:
    """What the history says of an attempt."""
    task_id, _, at, priority, (enqueued, _), _ = running.entry
    code, began = report.code, report.started_at
    waited = began - running.due_at
    # As AttemptRow(...) does, in half the time: every task makes one.
    return _tuple(
        AttemptRow,
        (
            task_id,
            running.attempt,
            code,
            "done" if code == "ok" else None,
            began,
            waited if waited > 0 else 0.0,
            report.run_seconds,
            running.worker_pid,
            handler,
            report.error,
            report.traceback,
            at,
            priority,
            enqueued / 1e6,
            report.vars,
        ),
    )


def row_of_unreadable(running: Running, now: float, reason: str) -> AttemptRow:
    """What the history says of a file that is no task."""
    entry = running.entry
    return AttemptRow(
        task=entry.id,
        number=running.attempt,
        outcome=UNREADABLE,
        state=None,
        started_at=now,
        queue_seconds=max(0.0, now - running.due_at),
        run_seconds=0.0,
        worker=running.worker_pid,
        handler=None,
        error=reason,
        traceback=None,
        at=entry.at,
        priority=entry.priority,
        enqueued_at=entry.order[0] / 1e6,
    )


def row_of_action(
    entry: Entry, attempts: int, outcome: str, state: TaskState, now: float, by: str, vars: bytes | None = None
) -> AttemptRow:
    """What the history says of something that an operator did to a task.

    Args:
        entry: The task, as it was.
        attempts: How many it has had.
        outcome: What was done; see `trispool.control.Attempt`.
        state: What the task is now.
        now: Unix seconds.
        by: Who did it.
        vars: See `AttemptRow`.
    """
    return AttemptRow(
        task=entry.id,
        number=attempts,
        outcome=outcome,
        state=state.value if state is TaskState.CANCELLED else None,
        started_at=now,
        queue_seconds=0.0,
        run_seconds=0.0,
        worker=0,
        handler=None,
        error=f"by {by}",
        traceback=None,
        at=entry.at,
        priority=entry.priority,
        enqueued_at=entry.order[0] / 1e6,
        vars=vars,
    )
