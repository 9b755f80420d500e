"""What a task is: the values that every other module passes around.

A task waits in a spool (`SCHEDULED` until it is due, then `READY`, or `HELD` while an operator said wait), is `RUNNING`
while a worker process has it, and ends `DONE`, `DEAD` (trispool gave up and keeps it for a person) or `CANCELLED`.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "LATEST_AT",
    "MAX_KEPT_VARS",
    "MAX_PRIORITY",
    "MAX_VALUE",
    "MAX_VARS",
    "Accepted",
    "AttemptRow",
    "Entry",
    "NewTask",
    "Outcome",
    "Retrying",
    "Task",
    "TaskState",
]

MAX_VARS: Final = 0xFFFF
"""The encoded vars of one task, in bytes: the packet's size field has 16 bits."""

MAX_VALUE: Final = 0xFFFF
"""One key or value, in bytes: its length field has 16 bits. uWSGI lets a longer one wrap around silently."""

MAX_PRIORITY: Final = 999_999_999
"""A priority is the name of a directory of digits; nine of them are plenty and stay a small integer everywhere."""

MAX_KEPT_VARS: Final = 1024
"""The encoded vars that the history keeps of a task, in bytes: a row without is 150 bytes, and there are millions."""

LATEST_AT: Final = 15_000_000_000.0
"""The latest `at`, in Unix seconds (year 2445): what an ext4 mtime, where `at` is kept, can hold."""


class TaskState(enum.StrEnum):
    """Where in its life a task is."""

    SCHEDULED = "scheduled"
    READY = "ready"
    RUNNING = "running"
    HELD = "held"
    DONE = "done"
    DEAD = "dead"
    CANCELLED = "cancelled"


class Outcome(enum.IntEnum):
    """What a handler gave back, with uWSGI's numbers (`plugins/python/uwsgi_pymodule.c`, SPOOL_OK and its siblings)."""

    OK = -2
    RETRY = -1
    IGNORE = 0


class NewTask(NamedTuple):
    """A validated task on its way into a spool; a plain tuple, as every task is one first.

    Made by `trispool.packet.new_task` or from a received packet; nothing downstream looks for errors in it again.

    Attributes:
        payload: The encoded vars, at most `MAX_VARS` bytes, as they will stand in the spool file.
        body: Any bytes.
        at: Unix seconds; the task is not run before. None: at once.
        priority: 0 to `MAX_PRIORITY`, smaller runs first. None: after all that have one.
        spool: What the task asks for: a spool's name or its absolute directory. None: the receiver's default.
        id: The name of its spool file, chosen beforehand (`trispool.spoolwriter.new_name`), so that it is known whether
            the task was kept though nobody heard it. None: the store chooses.
    """

    payload: bytes
    body: bytes = b""
    at: float | None = None
    priority: int | None = None
    spool: str | None = None
    id: str | None = None


class Entry(NamedTuple):
    """A waiting task, as much of it as scheduling needs: small, since a million of them may be in memory.

    Attributes:
        id: The task's id.
        ref: Where its store finds it (a directory: the path below the spool directory). Opaque to everyone else.
        at: Unix seconds from which on it may run.
        priority: Its priority, or None.
        order: Sorts by time of enqueuing: microseconds since 1970, then the writer's counter.
        fresh: It was found while its writer may still be at work: leave it alone for a second.
    """

    id: str
    ref: str
    at: float
    priority: int | None
    order: tuple[int, int]
    fresh: bool = False


class AttemptRow(NamedTuple):
    """One row of the history; a plain tuple, since every task makes one. Times are Unix seconds.

    Attributes:
        state: `done`, `dead` or `cancelled`, or None if the task goes on waiting.
        vars: The encoded vars of a task that is done or cancelled, so that it can be searched and shown still; None if
            they are longer than `MAX_KEPT_VARS`, or not known.
    """

    task: str
    number: int
    outcome: str
    state: str | None
    started_at: float
    queue_seconds: float
    run_seconds: float
    worker: int
    handler: str | None
    error: str | None
    traceback: str | None
    at: float
    priority: int | None
    enqueued_at: float
    vars: bytes | None = None


class Retrying(NamedTuple):
    """What is remembered of a task that waits for another attempt.

    Attributes:
        attempts: How many it has had.
        due_at: When the next one is, Unix seconds.
        by_frequency: Whether a change of the spool's frequency moves it.
        ended_at: When the last attempt ended, Unix seconds.
        error: How it ended.
    """

    task: str
    attempts: int
    due_at: float
    by_frequency: bool
    ended_at: float
    error: str | None


class Accepted(NamedTuple):
    """The answer to a `NewTask` that is now kept, as durably as its spool is configured.

    Attributes:
        id: The task's id.
        spool: The name of the spool that has it.
        at: Unix seconds from which on it may run, or None.
    """

    id: str
    spool: str
    at: float | None = None


@dataclass(frozen=True, slots=True)
class Task:
    """A task as a handler, or a person, sees it.

    Attributes:
        id: Unique over all spools; the name of its spool file.
        vars: Keys and values as they came, byte strings.
        body: The bytes behind the vars.
        at: When it was asked to start, Unix seconds, or None.
        priority: Its priority, or None.
        attempt: 1 for the first run of it.
        spool: The name of its spool.
        enqueued_at: Unix seconds.
    """

    id: str
    vars: Mapping[bytes, bytes] = field(default_factory=dict)
    body: bytes = b""
    at: float | None = None
    priority: int | None = None
    attempt: int = 1
    spool: str = "default"
    enqueued_at: float = 0.0

    async def progress(self, fraction: float, text: str = "") -> None:
        """Tell whoever watches how far the task is.

        Args:
            fraction: 0 to 1.
            text: A few words.

        Raises:
            ValueError: `fraction` is not between 0 and 1.
        """
        self.report_progress(fraction, text)

    def report_progress(self, fraction: float, text: str = "") -> None:
        """`progress` for handlers that are not async; the same arguments and errors."""
        if not 0 <= fraction <= 1:
            raise ValueError(f"fraction must be between 0 and 1, not {fraction!r}")
        _report(self.id, fraction, text)


def _report(task_id: str, fraction: float, text: str) -> None:
    """Where progress goes; a worker process puts its own function here. Elsewhere nobody watches."""
