"""The tasks that one worker process has in hand, and what its board tells of them.

Every task gets a number when it is handed over, and is in hand until the worker has reported it, or it has been taken
back, or the worker is dead. What has been taken back is still answered by the worker later on; it counts as unanswered
until then, so that the worker is not given more than it can hold.
"""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, Final

from trispool.workerlink import Report

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from trispool.store import Claim
    from trispool.worker.board import Board

__all__ = ["Hand"]

CONTENT_PER_FRAME: Final = 4 * 1024 * 1024
"""Bytes of bodies in one frame, or one body if it is larger: a frame is in memory several times."""

_UNRUN: Final = frozenset({"gone", "locked", "not_due", "unreadable", "settling", "returned"})

Items = list[tuple["Claim", int]]
"""Claims with the number of the attempt."""


class Hand:
    """See the module.

    Attributes:
        board: The worker's.
        is_async: Whether the worker runs several tasks at once.
        unanswered: How many tasks the worker has still to answer.
        tasks: The tasks in hand, by number.
    """

    board: Board

    def __init__(self) -> None:
        self.is_async = False
        self.unanswered = 0
        self.tasks: dict[int, Claim] = {}
        self._next = 1
        self._recalled = 0  # all below this
        self._batches: deque[int] = deque()  # of a sync worker: the number behind each batch on its way
        self._with_worker: set[int] = set()  # of an async worker: the numbers it has not answered

    @property
    def batches(self) -> int:
        """How many batches a sync worker has not answered to the end."""
        return len(self._batches)

    @property
    def running(self) -> Claim | None:
        """The task whose handler holds the worker's interpreter."""
        return self.tasks.get(self.board.running[0])

    def number_of(self, task_id: str) -> int | None:
        """The number of a task in hand, or None."""
        return next((number for number, claim in self.tasks.items() if claim.id == task_id), None)

    def put(self, claims: Sequence[Claim], attempts: Sequence[int]) -> Iterator[tuple[int, Items]]:
        """Number tasks, and make room for them on the board.

        Yields:
            What to send: the number of the first, and the tasks, which have the numbers from there on.
        """
        count = len(claims)
        self.unanswered += count
        items: Items = list(zip(claims, attempts, strict=True))
        if not self.is_async:
            yield from self._number(items)
            self._batches.append(self._next)
            return
        given = 0
        while given < count:
            free = self._skip_slots_in_use(count - given)
            yield from self._number(items[given : given + free])
            given += free

    def _number(self, items: Items) -> Iterator[tuple[int, Items]]:
        first = self._next
        self._next = first + len(items)
        self.board.clear(first, len(items))
        self.tasks.update(enumerate([claim for claim, _ in items], first))
        start = size = 0
        for end, (claim, _) in enumerate(items, 1):
            if claim.content is not None:
                size += len(claim.content[1])
                if size > CONTENT_PER_FRAME:
                    yield first + start, items[start:end]
                    start, size = end, 0
        if start < len(items):
            yield first + start, items[start:] if start else items

    def _skip_slots_in_use(self, wanted: int) -> int:
        """Go to the next number that may be used.

        The tasks of an async worker end in any order, so a long one may still have the mark that would be the next
        one's. There are more slots than tasks in hand, so some are free.

        Returns:
            How many numbers from there on may be used, at most `wanted`.
        """
        last_slot = self.board.slots - 1
        in_use = {number & last_slot for number in self._with_worker}
        while self._next & last_slot in in_use:
            self._next += 1
        end = self._next
        while end < self._next + wanted and end & last_slot not in in_use:
            end += 1
        self._with_worker.update(range(self._next, end))
        return end - self._next

    def answered(self, reports: list[Report]) -> list[Report]:
        """Take the worker's word.

        Returns:
            Those that were in hand, with their claims.
        """
        tasks = self.tasks
        known: list[Report] = []
        for report in reports:
            claim = tasks.pop(report.number, None)
            if claim is not None:
                report.claim = claim
                known.append(report)
        self.unanswered -= len(reports)
        if self.is_async:
            self._with_worker.difference_update(report.number for report in reports)
        else:
            batches, behind = self._batches, reports[-1].number + 1
            while batches and batches[0] <= behind:
                batches.popleft()
        return known

    def recall(self) -> None:
        """Have the worker begin none of these any more. `take_unbegun` may follow after `RECALL_SETTLES`."""
        self._recalled = self._next
        self.board.recall(self._next)

    def take_unbegun(self) -> list[Report]:
        """Take what was recalled and has not been begun."""
        running = self.board.running[0]  # read before the marks: see `trispool.worker.board`
        return [
            Report(number, "returned", claim=self.tasks.pop(number))
            for number in list(self.tasks)
            if number < self._recalled and number != running and not self.board.is_taken(number)
        ]

    def has_unbegun(self) -> bool:
        """Whether something waits behind what runs."""
        running = self.board.running[0]
        return any(number != running and not self.board.is_taken(number) for number in self.tasks)

    def take_finished(self, ended_at: float) -> list[Report]:
        """Take what went well though the worker has not said so yet; how long it took is then not known.

        Args:
            ended_at: About when they ended, Unix seconds.
        """
        return [
            Report(number, "ok", ended_at, claim=self.tasks.pop(number))
            for number in list(self.tasks)
            if self.board.code(number) == "ok"
        ]

    def take_all(
        self, *, blameless: bool, cancelled: int | None = None
    ) -> tuple[list[Report], list[Claim], list[Claim]]:
        """Take everything: the worker is dead.

        Args:
            blameless: Whether what was running is not to blame for that.
            cancelled: The task for whose sake it was killed; the others are then not to blame.

        Returns:
            The reports it could not make any more, the tasks that were not begun or are not to blame, and those that
            are suspect: of a sync worker the one it was running, of an async worker the one that held the interpreter,
            or else all that ran.
        """
        reports: list[Report] = []
        returned: list[Claim] = []
        suspects: list[Claim] = []
        if not self.tasks:
            return reports, returned, suspects
        board, running = self.board, self.board.running[0]
        any_may_be = self.is_async and (running not in self.tasks or board.code(running) is not None)
        for number, claim in self.tasks.items():
            code = board.code(number)
            if code is not None and code not in _UNRUN:
                error = None if code == "ok" else "its worker died before it could tell more"
                reports.append(Report(number, code, time.time(), error=error, claim=claim))
            elif number == cancelled and code is None:
                suspects.append(claim)
            elif blameless or cancelled is not None or code is not None:
                returned.append(claim)
            elif number == running or (any_may_be and board.is_begun(number)):
                suspects.append(claim)
            else:
                returned.append(claim)
        self.tasks.clear()
        return reports, returned, suspects
