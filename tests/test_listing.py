"""Lists of tasks, page by page, over a backlog, a store in memory and a real ledger."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Literal

import pytest
import trio

from tests.fakes import MemoryStore
from trispool import spoolfile
from trispool.backlog import Backlog
from trispool.errors import TaskRefused
from trispool.ledger import Ledger
from trispool.listing import list_tasks
from trispool.packet import new_task
from trispool.retry import RunAgain
from trispool.task import AttemptRow, Entry, TaskState

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable
    from pathlib import Path

    from trispool.control import Page

NOW = 1_700_000_000.0


class FakeSpool:
    """A spool, as far as lists are concerned. Tasks are numbered in the order of enqueuing."""

    def __init__(self, name: str, ledger: Ledger) -> None:
        self.name = name
        self.backlog = Backlog(30.0)
        self.store = MemoryStore()
        self.ledger = ledger

    def entry(self, number: int, at: float = NOW, priority: int | None = None) -> Entry:
        name = spoolfile.new_name(self.name, 1, number, 0, int(NOW), number)
        return Entry(name, name, at, priority, spoolfile.order_of(name, 0.0))

    def waits(self, *numbers: int, at: float = NOW - 1, priority: int | None = None) -> None:
        for number in numbers:
            self.backlog.added(self.entry(number, at, priority), NOW)

    def runs(self, *numbers: int) -> None:
        self.waits(*numbers, at=NOW - 100, priority=0)
        assert len(self.backlog.take(len(numbers), NOW, 7)) == len(numbers)

    def failed(self, number: int, error: str) -> None:
        self.runs(number)
        running = self.backlog.ended(self.entry(number).ref)
        assert running is not None
        self.backlog.wait_again(running, RunAgain(NOW + 30, 1, by_frequency=True), NOW, error)

    def recorded(
        self, *numbers: int, state: str | None = "done", ended_at: float = NOW, error: str | None = None
    ) -> None:
        for number in numbers:
            entry = self.entry(number)
            self.ledger.record(
                AttemptRow(
                    task=entry.id,
                    number=1,
                    outcome="ok" if state == "done" else "failed",
                    state=state,
                    started_at=ended_at + number,
                    queue_seconds=0.0,
                    run_seconds=0.5,
                    worker=7,
                    handler="encode",
                    error=error,
                    traceback=None,
                    at=NOW,
                    priority=None,
                    enqueued_at=entry.order[0] / 1e6,
                )
            )

    def dead(self, *numbers: int) -> None:
        for number in numbers:
            entry = self.entry(number)
            self.store.aside[entry.id] = (entry, new_task({"n": "1"}))


@asynccontextmanager
async def spools(path: Path, *names: str) -> AsyncIterator[list[FakeSpool]]:
    with trio.fail_after(20):
        made = []
        for name in names:
            ledger = Ledger(str(path / f"{name}.db"))
            await ledger.open()
            made.append(FakeSpool(name, ledger))
        yield made
        for spool in made:
            await spool.ledger.aclose()


async def page(from_: Iterable[FakeSpool], **options: Any) -> Page:
    options = {"state": None, "q": None, "order": "asc", "limit": 50, "cursor": None} | options
    return await list_tasks(list(from_), **options)


def numbers(found: Page) -> list[int]:
    return [int(item.id.split("_")[5]) for item in found.items]


async def all_pages(from_: Iterable[FakeSpool], **options: Any) -> list[int]:
    seen: list[int] = []
    cursor = None
    while True:
        found = await page(from_, cursor=cursor, **options)
        assert len(found.items) <= options["limit"]
        seen += numbers(found)
        cursor = found.cursor
        if cursor is None:
            return seen


async def test_a_list_begins_with_what_is_unfinished_or_dead_and_goes_on_with_what_is_done(tmp_path: Path) -> None:
    async with spools(tmp_path, "a") as (spool,):
        spool.waits(4, 1)
        spool.waits(2, at=NOW + 9)
        spool.runs(3)
        spool.dead(5)
        spool.recorded(5, state="dead", error="no good")
        spool.recorded(9, 7, 8)
        found = await page([spool])
        assert numbers(found) == [1, 2, 3, 4, 5, 9, 7, 8]
        assert [item.state.value for item in found.items] == [
            *("ready", "scheduled", "running", "ready", "dead"),
            *("done", "done", "done"),
        ]
        assert {item.spool for item in found.items} == {"a"}
        assert found.cursor is None
        assert (found.items[4].last_error, found.items[4].attempts) == ("no good", 1)
        assert (found.items[1].at, found.items[2].attempts) == (NOW + 9, 1)


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 7, 100])
@pytest.mark.parametrize("order", ["asc", "desc"])
async def test_pages_leave_nothing_out_and_repeat_nothing(
    order: Literal["asc", "desc"], limit: int, tmp_path: Path
) -> None:
    async with spools(tmp_path, "a", "b") as both:
        both[0].waits(1, 3)
        both[1].waits(2, 3)
        both[0].runs(4)
        both[1].dead(5)
        both[0].recorded(10, 11, 12, ended_at=NOW)
        both[1].recorded(13, 14, ended_at=NOW - 2.5)
        expected = [1, 2, 3, 3, 4, 5], [10, 13, 11, 14, 12]
        if order == "desc":
            expected = expected[0][::-1], expected[1][::-1]
        assert await all_pages(both, order=order, limit=limit) == expected[0] + expected[1]


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        (TaskState.READY, [1, 4]),
        (TaskState.SCHEDULED, [2]),
        (TaskState.RUNNING, [3]),
        (TaskState.DEAD, [5]),
        (TaskState.DONE, [7, 8]),
        (TaskState.CANCELLED, []),
    ],
)
async def test_a_list_may_be_of_one_state(state: TaskState, expected: list[int], tmp_path: Path) -> None:
    async with spools(tmp_path, "a") as (spool,):
        spool.waits(1, 4)
        spool.waits(2, at=NOW + 9)
        spool.runs(3)
        spool.dead(5)
        spool.recorded(7, 8)
        assert await all_pages([spool], state=state, limit=1) == expected


async def test_a_search_looks_at_ids_and_errors(tmp_path: Path) -> None:
    async with spools(tmp_path, "a") as (spool,):
        spool.waits(1, 2)
        spool.failed(3, "OSError: broken pipe")
        spool.recorded(7)
        spool.recorded(8, error="broken pipe")
        assert await all_pages([spool], q="broken pipe", limit=1) == [3, 8]
        assert numbers(await page([spool], q="_1_2_")) == [2]
        found = await page([spool], state=TaskState.SCHEDULED)
        assert [(item.attempts, item.last_error) for item in found.items] == [(1, "OSError: broken pipe")]


@pytest.mark.parametrize("order", ["asc", "desc"])
@pytest.mark.parametrize("limit", [1, 2, 3])
async def test_what_was_recorded_late_is_not_left_out(
    order: Literal["asc", "desc"], limit: int, tmp_path: Path
) -> None:
    async with spools(tmp_path, "a", "b") as both:
        # Two workers report in batches, so that what ended first may be recorded last.
        both[0].recorded(9, 7, 8, 3, 5)
        both[1].recorded(4, 6, 1)
        assert sorted(await all_pages(both, order=order, limit=limit)) == [1, 3, 4, 5, 6, 7, 8, 9]


async def test_what_is_added_between_two_pages_disturbs_neither(tmp_path: Path) -> None:
    async with spools(tmp_path, "a") as (spool,):
        spool.waits(2, 4, 6)
        first = await page([spool], limit=2)
        spool.waits(1, 5, 7)
        assert numbers(first) == [2, 4]
        assert numbers(await page([spool], cursor=first.cursor)) == [5, 6, 7]


@pytest.mark.parametrize("cursor", ["", "x", "bnVsbA", "W251bGwsIDFd", "e30", "\udcff"])
async def test_a_cursor_that_was_not_given_is_refused(cursor: str, tmp_path: Path) -> None:
    async with spools(tmp_path, "a") as (spool,):
        with pytest.raises(TaskRefused, match="cursor"):
            await page([spool], cursor=cursor)


async def test_a_list_describes_only_what_is_on_the_page(tmp_path: Path) -> None:
    async with spools(tmp_path, "a") as (spool,):
        spool.waits(*range(5000))
        made = 0
        real = spool.backlog.attempts

        def attempts(task_id: str) -> int:
            nonlocal made
            made += 1
            return real(task_id)

        spool.backlog.attempts = attempts  # type: ignore[method-assign] # to be counted
        found = await page([spool], limit=3)
        assert numbers(found) == [0, 1, 2]
        assert made <= 4
