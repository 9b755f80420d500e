"""One bulk action: what it is about, how far it is, and what became of each task."""

from __future__ import annotations

import secrets
from itertools import islice
from typing import TYPE_CHECKING, Final, Literal

import trio

from trispool.errors import TaskRefused
from trispool.operating import ActionResult, BulkPage, BulkStatus
from trispool.packed import Packed
from trispool.task import TaskState

if TYPE_CHECKING:
    from trispool.operating import Action, Actor

__all__ = ["MAX_PAGE", "MAX_RESULTS", "Run"]

MAX_RESULTS: Final = 100_000
"""Results that are kept, 2 to 4 MB."""

MAX_PAGE: Final = 1000
"""Results in one page: to unpack them takes half a millisecond."""

_Row = tuple[str, str | None, int, str]
"""An `ActionResult` as it is packed."""


class Run:
    """One bulk action.

    Args:
        action: What is done.
        at: For `reschedule`, Unix seconds.
        actor: Who wants it.
        now: When it begins, Unix seconds.

    Attributes:
        id: Its id; not one of before a restart.
        selection: In which the tasks are selected.
        ids: Those that are to be acted on.
        is_alone: Whether whoever began it waits for its end no more.
        is_stopping: Whether nothing more is to be begun.
        refusal: Why it never began.
        ended: Set at its end.
        ended_at: When that was, on Trio's clock.
        told_at: When its progress was last told, on Trio's clock.
    """

    def __init__(self, action: Action, at: float | None, actor: Actor, now: float) -> None:
        self.id = secrets.token_hex(8)
        self.action = action
        self.at = at
        self.actor = actor
        self.selection = trio.CancelScope()
        self.ids: Packed[str] = Packed()
        self.is_alone = False
        self.is_stopping = False
        self.refusal: TaskRefused | None = None
        self.ended = trio.Event()
        self.ended_at = 0.0
        self.told_at = trio.current_time()
        self._results: Packed[_Row] = Packed()
        self._early: dict[int, ActionResult] = {}  # those that came before the result in front of them
        self._total: int | None = None
        self._done = 0
        self._refused = 0
        self._state: Literal["running", "finished", "stopped"] = "running"
        self._started_at = now
        self._finished_at: float | None = None
        self._problem: str | None = None
        self._has_failed = False

    @property
    def weight(self) -> int:
        """What it costs to remember it, in results."""
        return len(self._results) + 1000

    def status(self) -> BulkStatus:
        """How far it is."""
        return BulkStatus(
            self.id,
            self.action,
            self._state,
            self._total,
            self._done,
            self._refused,
            self.actor.name,
            self._started_at,
            self._finished_at,
            self._problem,
        )

    def page(self, limit: int, cursor: str | None) -> BulkPage:
        """Some results, in order, as far as there are.

        Raises:
            TaskRefused: The cursor is not one of ours.
        """
        there = len(self._results)
        start = 0 if cursor is None else _position(cursor, there)
        rows = islice(self._results.rows(start), max(1, min(limit, MAX_PAGE)))
        results = [
            ActionResult(task_id, None if state is None else TaskState(state), status, detail)
            for task_id, state, status, detail in rows
        ]
        end = start + len(results)
        return BulkPage(self.status(), results, str(end) if end < there else None)

    def stop(self) -> None:
        """Begin nothing more."""
        self.is_stopping = True
        self.selection.cancel()

    def selected(self) -> None:
        """All ids are there."""
        self._total = len(self.ids)
        if self._total > MAX_RESULTS:
            self._problem = f"only the first {MAX_RESULTS} results are kept"

    def ended_one(self, number: int, result: ActionResult) -> None:
        """Take the result of one task."""
        if result.status == 200:
            self._done += 1
        else:
            self._refused += 1
        if number < MAX_RESULTS:
            self._early[number] = result
            while (ready := self._early.pop(len(self._results), None)) is not None:
                self._results.append((ready.id, ready.state, ready.status, ready.detail))

    def fail(self, problem: str) -> None:
        """It goes wrong as a whole."""
        self._has_failed, self._problem = True, problem

    def end(self, now: float) -> None:
        """Nothing more will be done."""
        is_complete = self._total == self._done + self._refused
        self._state = "finished" if is_complete or self._has_failed else "stopped"
        self._finished_at = now
        self.ended_at = trio.current_time()
        self.ids = Packed()
        self._early.clear()
        self.ended.set()


def _position(cursor: str, end: int) -> int:
    if cursor.isascii() and cursor.isdecimal() and len(cursor) <= len(str(end)) and int(cursor) <= end:
        return int(cursor)
    raise TaskRefused("cursor: not one that this service has given")
