"""Lists of tasks, page by page, over a backlog, a store in memory and a real ledger."""

from __future__ import annotations

import base64
import json
import random
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING, Any, Literal

import pytest
import trio
import trio.testing

from tests.fakes import MemoryStore
from trispool import ledger as ledger_module
from trispool import listing, spoolfile, unfinished
from trispool.backlog import Backlog
from trispool.errors import TaskRefused
from trispool.ledger import Ledger
from trispool.listing import list_tasks, select_tasks
from trispool.operating import TaskFilter, TaskQuery
from trispool.packet import encode_vars, new_task
from trispool.retry import RunAgain
from trispool.store import Shelf
from trispool.task import AttemptRow, Entry, NewTask, TaskState
from trispool.unfinished import UNFINISHED

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
    from pathlib import Path

    from trispool.control import Page, TaskSummary

NOW = 1_700_000_000.0
Order = Literal["asc", "desc"]


class CountingStore(MemoryStore):
    """Counts the files that are read, and calls back."""

    def __init__(self) -> None:
        super().__init__()
        self.looked_at = 0
        self.on_held: Callable[[], None] = lambda: None

    async def vars_of(self, refs: Sequence[str]) -> Sequence[Mapping[bytes, bytes] | None]:
        self.looked_at += len(refs)
        return await super().vars_of(refs)

    async def held(self) -> Shelf:
        shelf = await super().held()
        self.on_held()
        return shelf


class FakeSpool:
    """A spool, as far as lists are concerned. Tasks are numbered in the order of enqueuing."""

    def __init__(self, name: str, ledger: Ledger) -> None:
        self.name = name
        self.backlog = Backlog(30.0)
        self.store = CountingStore()
        self.ledger = ledger

    def entry(self, number: int, at: float = NOW, priority: int | None = None) -> Entry:
        name = spoolfile.new_name(self.name, 1, number, 0, int(NOW), number)
        return Entry(name, name, at, priority, spoolfile.order_of(name, 0.0))

    def waits(self, *numbers: int, at: float = NOW - 1, priority: int | None = None, **vars: str) -> None:
        for number in numbers:
            entry = self.entry(number, at, priority)
            self.store.tasks[entry.id] = (entry, new_task({"n": str(number), **vars}))
            self.backlog.added(entry, NOW)

    def runs(self, *numbers: int, **vars: str) -> None:
        self.waits(*numbers, at=NOW - 100, priority=0, **vars)
        assert len(self.backlog.take(len(numbers), NOW, 7)) == len(numbers)

    def failed(self, number: int, error: str, **vars: str) -> None:
        self.runs(number, **vars)
        running = self.backlog.ended(self.entry(number).ref)
        assert running is not None
        self.backlog.wait_again(running, RunAgain(NOW + 30, 1, by_frequency=True), NOW, error)

    def recorded(self, *numbers: int, ended_at: float = NOW, **changes: Any) -> None:
        for number in numbers:
            entry = self.entry(number)
            row = AttemptRow(
                task=entry.id,
                number=1,
                outcome="ok",
                state="done",
                started_at=ended_at + number,
                queue_seconds=0.0,
                run_seconds=0.5,
                worker=7,
                handler="encode",
                error=None,
                traceback=None,
                at=NOW,
                priority=None,
                enqueued_at=entry.order[0] / 1e6,
            )
            self.ledger.record(row._replace(**changes))

    def cancelled(self, *numbers: int, **changes: Any) -> None:
        self.recorded(*numbers, outcome="cancelled", state="cancelled", handler=None, error="by alice", **changes)

    def _lie(
        self, shelf: dict[str, tuple[Entry, NewTask]], place: str, numbers: Iterable[int], at: float, vars: Any
    ) -> None:
        for number in numbers:
            entry = self.entry(number, at)
            shelf[entry.id] = (entry._replace(ref=f"{place}/{entry.id}"), new_task({"n": str(number), **vars}))

    def holds(self, *numbers: int, at: float = NOW, **vars: str) -> None:
        self._lie(self.store.on_hold, "held", numbers, at, vars)

    def dead(self, *numbers: int, at: float = NOW, **vars: str) -> None:
        self._lie(self.store.aside, "dead", numbers, at, vars)


@asynccontextmanager
async def spools(path: Path, *names: str) -> AsyncIterator[list[FakeSpool]]:
    with trio.fail_after(30):
        made = []
        for name in names:
            ledger = Ledger(str(path / f"{name}.db"))
            await ledger.open()
            made.append(FakeSpool(name, ledger))
        yield made
        for spool in made:
            await spool.ledger.aclose()


def query(
    *,
    sort: Literal["enqueued", "due"] = "enqueued",
    order: Order = "asc",
    limit: int = 50,
    cursor: str | None = None,
    **wanted: Any,
) -> TaskQuery:
    return TaskQuery(TaskFilter(**wanted), sort, order, limit, cursor)


def number_of(task: TaskSummary) -> int:
    return int(task.id.split("_")[5])


def numbers(found: Page) -> list[int]:
    return [number_of(item) for item in found.items]


async def page(from_: Iterable[FakeSpool], **options: Any) -> Page:
    return await list_tasks(list(from_), query(**options))


async def all_pages(from_: Iterable[FakeSpool], *, limit: int = 50, **options: Any) -> list[int]:
    seen: list[int] = []
    cursor = None
    while True:
        found = await page(from_, limit=limit, cursor=cursor, **options)
        assert len(found.items) <= limit
        seen += numbers(found)
        if found.cursor is None:
            return seen
        assert found.cursor != cursor, "the next page would be the same one"
        cursor = found.cursor


async def selected(
    from_: Iterable[FakeSpool], states: Collection[TaskState] = UNFINISHED, **wanted: Any
) -> list[TaskSummary]:
    found: list[TaskSummary] = []
    async with aclosing(select_tasks(list(from_), TaskFilter(**wanted), states)) as chunks:
        async for chunk in chunks:
            found += chunk
    return found


# What is on a page


async def test_a_list_begins_with_what_is_unfinished_or_dead_and_goes_on_with_what_is_finished(tmp_path: Path) -> None:
    async with spools(tmp_path, "a") as (spool,):
        spool.waits(4, 1)
        spool.waits(2, at=NOW + 9)
        spool.runs(3)
        spool.dead(5)
        spool.recorded(5, outcome="failed", state="dead", error="no good")
        spool.holds(6)
        spool.recorded(9, 7, 8)
        spool.cancelled(10)
        found = await page([spool])
        assert numbers(found) == [1, 2, 3, 4, 5, 6, 9, 7, 8, 10]
        assert [item.state.value for item in found.items] == [
            *("ready", "scheduled", "running", "ready", "dead", "held"),
            *("done", "done", "done", "cancelled"),
        ]
        assert {item.spool for item in found.items} == {"a"}
        assert found.cursor is None
        dead, cancelled = found.items[4], found.items[9]
        assert (dead.last_error, dead.attempts, dead.handler, dead.finished_at) == ("no good", 1, "encode", NOW + 5.5)
        assert (cancelled.last_error, cancelled.finished_at) == ("by alice", NOW + 10.5)
        assert (found.items[1].at, found.items[2].attempts, found.items[6].handler) == (NOW + 9, 1, "encode")


async def test_what_has_been_run_is_told_with_what_the_history_knows(tmp_path: Path) -> None:
    async with spools(tmp_path, "a") as (spool,):
        spool.failed(1, "OSError: broken pipe")
        spool.holds(2, 3)
        for number in (1, 2):
            spool.recorded(number, outcome="failed", state=None, error="OSError: no", number=4)
        found = (await page([spool])).items
        assert [(item.attempts, item.last_error, item.handler) for item in found] == [
            (1, "OSError: broken pipe", "encode"),
            (4, "OSError: no", "encode"),
            (0, None, None),
        ]
        assert [item.finished_at for item in found] == [None] * 3


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 7, 100])
@pytest.mark.parametrize("order", ["asc", "desc"])
async def test_pages_leave_nothing_out_and_repeat_nothing(order: Order, limit: int, tmp_path: Path) -> None:
    async with spools(tmp_path, "a", "b") as both:
        both[0].waits(1, 3)
        both[1].waits(2, 3)
        both[0].runs(4)
        both[1].dead(5)
        both[0].holds(6, 8)
        both[1].holds(7)
        both[0].recorded(10, 11, 12, ended_at=NOW)
        both[1].recorded(13, ended_at=NOW - 2.5)
        both[1].cancelled(14, ended_at=NOW - 2.5)
        expected = [1, 2, 3, 3, 4, 5, 6, 7, 8], [10, 13, 11, 14, 12]
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
        (TaskState.HELD, [6]),
        (TaskState.DONE, [7, 8]),
        (TaskState.CANCELLED, [9]),
    ],
)
async def test_a_list_may_be_of_one_state(state: TaskState, expected: list[int], tmp_path: Path) -> None:
    async with spools(tmp_path, "a") as (spool,):
        spool.waits(1, 4)
        spool.waits(2, at=NOW + 9)
        spool.runs(3)
        spool.dead(5)
        spool.holds(6)
        spool.recorded(7, 8)
        spool.cancelled(9)
        assert await all_pages([spool], state=state, limit=1) == expected
        assert [number_of(task) for task in await selected([spool], {state})] == expected[
            :: -1 if expected[0] > 6 else 1
        ]


async def test_a_list_may_be_of_one_spool(tmp_path: Path) -> None:
    async with spools(tmp_path, "a", "b") as both:
        both[0].waits(1)
        both[1].waits(2)
        both[0].recorded(3)
        both[1].recorded(4)
        assert await all_pages(both, spool="b", limit=1) == [2, 4]
        with pytest.raises(TaskRefused, match="'c'") as refused:
            await page(both, spool="c")
        assert refused.value.status == 404
        with pytest.raises(TaskRefused, match="'c'"):
            await selected(both, spool="c")


@pytest.mark.parametrize("limit", [1, 2, 100])
@pytest.mark.parametrize("order", ["asc", "desc"])
async def test_a_list_may_be_sorted_by_due_time(order: Order, limit: int, tmp_path: Path) -> None:
    async with spools(tmp_path, "a", "b") as both:
        for number, after in ((1, 30), (2, 10), (3, 20), (4, 10)):
            both[number % 2].waits(number, at=NOW + after)
            both[number % 2].holds(number + 10, at=NOW - after)
        both[0].waits(5, at=NOW - 5)
        both[0].runs(6)
        both[0].waits(7, at=NOW - 50)
        way = 1 if order == "asc" else -1
        for state, expected in (
            (TaskState.SCHEDULED, [2, 4, 3, 1]),
            (TaskState.HELD, [11, 13, 12, 14]),
            (TaskState.READY, [7, 5]),
        ):
            found = await all_pages(both, state=state, sort="due", order=order, limit=limit)
            assert found == expected[::way]


@pytest.mark.parametrize("order", ["asc", "desc"])
async def test_many_tasks_may_be_sorted_by_due_time(
    order: Order, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unfinished, "_PART", 7)
    async with spools(tmp_path, "a") as (spool,):
        after = {number: number * 37 % 50 // 2 for number in range(100)}
        for number in after:
            spool.waits(number, at=NOW + 1 + after[number])
            spool.holds(number + 100, at=NOW + 1 + after[number])
        expected = sorted(after, key=lambda number: (after[number], number), reverse=order == "desc")
        scheduled = await all_pages([spool], state=TaskState.SCHEDULED, sort="due", order=order, limit=3)
        held = await all_pages([spool], state=TaskState.HELD, sort="due", order=order, limit=3)
        assert (scheduled, [number - 100 for number in held]) == (expected, expected)


async def test_a_task_that_fits_no_record_of_the_schedule_is_listed(tmp_path: Path) -> None:
    async with spools(tmp_path, "a") as (spool,):
        spool.waits(1, 3)
        odd = spool.entry(2)._replace(ref="elsewhere")
        spool.backlog.added(odd, NOW)
        assert await all_pages([spool], limit=1) == [1, 2, 3]


@pytest.mark.parametrize("state", [None, TaskState.RUNNING, TaskState.DEAD, TaskState.DONE, TaskState.CANCELLED])
async def test_what_has_no_due_time_is_not_sorted_by_it(state: TaskState | None, tmp_path: Path) -> None:
    async with spools(tmp_path, "a") as (spool,):
        with pytest.raises(TaskRefused, match="sort"):
            await page([spool], state=state, sort="due")


# Filters


async def test_a_search_looks_at_ids_and_errors_and_vars(tmp_path: Path) -> None:
    async with spools(tmp_path, "a") as (spool,):
        spool.waits(1, 2, path="clip.mov")
        spool.failed(3, "OSError: broken pipe")
        spool.dead(4)
        spool.recorded(4, outcome="failed", state="dead", error="a broken pipe")
        spool.holds(5, **{"clip.mov": "x"})
        spool.runs(6, path="clip.mov")
        spool.recorded(7, vars=encode_vars({"path": "clip.mov"}))
        spool.recorded(8, error="broken pipe")
        spool.cancelled(9, vars=encode_vars({"clip.mov": ""}))
        assert await all_pages([spool], q="broken pipe", limit=1) == [3, 4, 8]
        assert await all_pages([spool], q="clip.mov", limit=1) == [1, 2, 5, 6, 7, 9]
        assert numbers(await page([spool], q="_1_2_")) == [2]
        assert await all_pages([spool], q="", limit=3) == [1, 2, 3, 4, 5, 6, 7, 8, 9]
        assert [number_of(task) for task in await selected([spool], q="clip.mov")] == [1, 2, 5, 6]


async def test_a_search_is_not_taken_in_by_how_vars_are_encoded(tmp_path: Path) -> None:
    async with spools(tmp_path, "a") as (spool,):
        # A value of 112 bytes is encoded with a "p", its length, before it, and the key is before that.
        spool.recorded(1, vars=encode_vars({"foo": "x" * 112}))
        spool.recorded(2, vars=encode_vars({"foop": "y"}))
        assert await all_pages([spool], q="foop", limit=1) == [2]


@pytest.mark.parametrize("limit", [1, 50])
async def test_a_list_may_be_of_one_handler(limit: int, tmp_path: Path) -> None:
    async with spools(tmp_path, "a", "b") as (spool, other):
        spool.waits(1, handler="encode")
        spool.waits(2, handler="encoder")
        spool.waits(3)
        other.waits(4, ud_spool_func="encode")
        spool.holds(5, handler="encode")
        spool.dead(6)
        spool.recorded(6, outcome="failed", state="dead")
        spool.dead(7, handler="notify")
        spool.runs(8, handler="encode")
        spool.recorded(10)
        spool.recorded(11, handler="notify")
        spool.cancelled(12)
        assert await all_pages([spool, other], handler="encode", limit=limit) == [1, 4, 5, 6, 8, 10]
        assert await all_pages([spool, other], handler="nobody", limit=limit) == []
        assert [number_of(task) for task in await selected([spool], handler="encode")] == [1, 5, 6, 8]


@pytest.mark.parametrize("order", ["asc", "desc"])
@pytest.mark.parametrize("limit", [1, 50])
async def test_a_list_may_be_of_a_time_of_enqueuing(limit: int, order: Order, tmp_path: Path) -> None:
    async with spools(tmp_path, "a") as (spool,):
        spool.waits(1, 2)
        spool.holds(3, 4)
        spool.dead(5, 6)
        spool.runs(7, 8)
        spool.recorded(9, 10, 11)
        way = 1 if order == "asc" else -1

        async def found(**wanted: Any) -> list[int]:
            return (await all_pages([spool], limit=limit, order=order, **wanted))[::way]

        for low, high in ((2, 11), (4, 5), (6, 9), (9, 10), (5, 5)):
            times = {"enqueued_after": NOW + low / 1e6, "enqueued_before": NOW + high / 1e6}
            expected = [number for number in range(1, 12) if low <= number < high]
            assert sorted(await found(**times)) == expected
        assert sorted(await found(enqueued_after=NOW + 10 / 1e6)) == [10, 11]
        assert await found(enqueued_before=NOW + 3 / 1e6) == [1, 2]


async def test_a_list_may_be_of_a_due_time(tmp_path: Path) -> None:
    async with spools(tmp_path, "a") as (spool,):
        for number in range(1, 5):
            spool.waits(number, at=NOW + number)
            spool.holds(number + 10, at=NOW + number)
            spool.dead(number + 20, at=NOW + number)
            spool.recorded(number + 30, at=NOW + number)
        found = await all_pages([spool], limit=2, due_after=NOW + 2, due_before=NOW + 4)
        assert found == [2, 3, 12, 13, 22, 23, 32, 33]
        found = await all_pages([spool], state=TaskState.SCHEDULED, sort="due", due_after=NOW + 2, limit=1)
        assert found == [2, 3, 4]


# While tasks come and go


async def test_what_is_added_between_two_pages_disturbs_neither(tmp_path: Path) -> None:
    async with spools(tmp_path, "a") as (spool,):
        spool.waits(2, 4, 6)
        first = await page([spool], limit=2)
        spool.waits(1, 5, 7)
        assert numbers(first) == [2, 4]
        assert numbers(await page([spool], cursor=first.cursor)) == [5, 6, 7]


@pytest.mark.parametrize("order", ["asc", "desc"])
@pytest.mark.parametrize("limit", [1, 2, 3])
async def test_what_was_recorded_late_is_not_left_out(order: Order, limit: int, tmp_path: Path) -> None:
    async with spools(tmp_path, "a", "b") as both:
        # Two workers report in batches, so that what ended first may be recorded last.
        both[0].recorded(9, 7, 8, 3, 5)
        both[1].recorded(4, 6, 1)
        assert sorted(await all_pages(both, order=order, limit=limit)) == [1, 3, 4, 5, 6, 7, 8, 9]


@pytest.mark.parametrize("order", ["asc", "desc"])
@pytest.mark.parametrize("limit", [5, 40])
async def test_what_stays_is_neither_missed_nor_doubled_while_others_come_and_go(
    order: Order, limit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unfinished, "_PART", 7)
    choose = random.Random(limit)
    async with spools(tmp_path, "a") as (spool,):
        stay = set(range(0, 300, 3))
        shuffled = sorted(stay, key=lambda _: choose.random())
        spool.waits(*shuffled[:60])
        spool.holds(*shuffled[60:80])
        spool.dead(*shuffled[80:])
        come_and_go = [number for number in range(300) if number not in stay]
        there: set[int] = set()

        async def disturb(*, task_status: trio.TaskStatus[None]) -> None:
            task_status.started()
            while True:
                for number in choose.sample(come_and_go, 10):
                    if number in there:
                        there.discard(number)
                        spool.backlog.gone(spool.entry(number).ref)
                    else:
                        there.add(number)
                        spool.waits(number)
                # Some of those that stay are run, and wait again, in other slots.
                taken = spool.backlog.take(5, NOW, 7)
                if choose.random() < 0.2:
                    # The thread that reads the history would else get the interpreter only now and then.
                    await trio.to_thread.run_sync(int)
                else:
                    await trio.lowlevel.checkpoint()
                for running in taken:
                    if spool.backlog.ended(running.entry.ref):
                        spool.backlog.put_back(running, NOW)

        async with trio.open_nursery() as nursery:
            await nursery.start(disturb)
            seen = await all_pages([spool], order=order, limit=limit)
            nursery.cancel_scope.cancel()
        assert [number for number in seen if number in stay] == sorted(stay, reverse=order == "desc")
        assert len(seen) == len(set(seen))


async def test_a_task_that_is_held_meanwhile_is_listed_once(tmp_path: Path) -> None:
    async with spools(tmp_path, "a") as (spool,):
        spool.waits(1, 2, 3)
        spool.holds(4)

        def release() -> None:
            del spool.store.on_hold[spool.entry(4).id]
            spool.waits(4)

        async def held() -> Shelf:
            # When they have been looked at that wait, one of them is held, and then another is released.
            spool.backlog.gone(spool.entry(2).ref)
            spool.holds(2)
            shelf = await MemoryStore.held(spool.store)
            release()
            return shelf

        spool.store.held = held  # type: ignore[method-assign] # to step in between
        found = await page([spool])
        assert numbers(found) == [1, 2, 3, 4]
        assert [item.state.value for item in found.items] == ["ready", "held", "ready", "ready"]


async def test_a_task_that_is_released_and_begun_meanwhile_is_listed(tmp_path: Path) -> None:
    async with spools(tmp_path, "a") as (spool,):
        spool.holds(1)

        async def held() -> Shelf:
            spool.store.on_hold.clear()
            spool.runs(1)
            return await MemoryStore.held(spool.store)

        spool.store.held = held  # type: ignore[method-assign] # to step in between
        found = await page([spool])
        assert [(number_of(item), item.state.value) for item in found.items] == [(1, "running")]


async def test_a_task_that_dies_meanwhile_is_listed(tmp_path: Path) -> None:
    async with spools(tmp_path, "a") as (spool,):
        spool.runs(1)

        async def dead() -> Shelf:
            shelf = await MemoryStore.dead(spool.store)
            assert spool.backlog.ended(spool.entry(1).ref)
            spool.dead(1)
            return shelf

        spool.store.dead = dead  # type: ignore[method-assign] # to step in between
        assert numbers(await page([spool])) == [1]


async def test_when_those_chosen_vanish_the_others_are_on_the_next_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unfinished, "_PART", 10)
    async with spools(tmp_path, "a") as (spool,):
        spool.waits(*range(100))

        async def held() -> Shelf:
            # The first of them are handed over and come back for later: they are no longer what is asked for.
            for running in spool.backlog.take(60, NOW, 7):
                spool.backlog.ended(running.entry.ref)
                spool.backlog.put_back(running, NOW, at=NOW + 5)
            return Shelf()

        spool.store.held = held  # type: ignore[method-assign] # to step in between
        batch = await unfinished.first_of(
            [spool],
            TaskFilter(),
            {TaskState.READY, TaskState.HELD},
            by_due=False,
            descending=False,
            after=None,
            count=5,
        )
        assert batch.found == []
        assert batch.behind is not None
        assert await all_pages([spool], state=TaskState.READY) == list(range(60, 100))


async def test_a_selection_has_each_task_once_and_none_that_comes_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "SELECT_AT_ONCE", 7)
    async with spools(tmp_path, "a", "b") as both:
        both[0].waits(*range(0, 50, 2))
        both[1].holds(*range(1, 50, 2))
        both[0].recorded(60)
        found: list[int] = []
        async with aclosing(select_tasks(both, TaskFilter(), UNFINISHED)) as chunks:
            async for chunk in chunks:
                found += [number_of(task) for task in chunk]
                both[0].waits(100 + len(found))
        assert found == list(range(50))
        assert await selected(both, {TaskState.DEAD}) == []


async def test_a_selection_of_what_is_finished_is_the_whole_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "_MANY", 4)
    async with spools(tmp_path, "a", "b") as both:
        both[0].recorded(*range(0, 30, 2))
        both[1].recorded(*range(1, 30, 2))
        both[1].cancelled(50, 51)
        found = await selected(both, {TaskState.DONE, TaskState.CANCELLED})
        assert sorted(number_of(task) for task in found) == [*range(30), 50, 51]


# Cursors


def forged(*parts: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(parts).encode()).decode().rstrip("=")


@pytest.mark.parametrize(
    "cursor",
    [
        *("", "x", "bnVsbA", "W251bGwsIDFd", "e30", "\udcff", "é", "A" * 200_000),
        forged(),
        forged("enqueued", None),
        forged("enqueued", None, []),
        forged("enqueued", None, {"a": "1"}),
        forged("enqueued", None, {"a": 2**63}),
        forged("enqueued", None, {"a": 1.5}),
        forged("enqueued", [0, 1, 1, "a"], {}),
        forged("enqueued", [0, 1, 1, "a", 7], {}),
        forged("enqueued", [0, 1.5, 1, "a", "b"], {}),
        forged("enqueued", [0, 10**21, 1, "a", "b"], {}),
        forged("enqueued", [10**400, 1, 1, "a", "b"], {}),
        forged("enqueued", [float("nan"), 1, 1, "a", "b"], {}),
        forged("enqueued", [[], 1, 1, "a", "b"], {}),
        forged("enqueued", {"a": 1}, {}),
        forged("due", None, {}),
        forged(7, None, {}),
        base64.urlsafe_b64encode(b"[" * 50_000).decode(),
        base64.urlsafe_b64encode(b"1" * 5_000).decode(),
    ],
)
async def test_a_cursor_that_was_not_given_is_refused(cursor: str, tmp_path: Path) -> None:
    async with spools(tmp_path, "a") as (spool,):
        with pytest.raises(TaskRefused, match="cursor"):
            await page([spool], cursor=cursor)


@pytest.mark.parametrize(
    "cursor",
    [
        forged("enqueued", None, {"a": 2**63 - 1, "nobody": -5}),
        forged("enqueued", None, {"a": -(2**63) + 1}),
        forged("enqueued", [0, 10**20, -1, "\ud800", ""], {}),
        forged("enqueued", [1e300, True, False, "", ""], {"a": 0}),
    ],
)
@pytest.mark.parametrize("order", ["asc", "desc"])
async def test_a_cursor_that_somebody_made_does_no_harm(cursor: str, order: Order, tmp_path: Path) -> None:
    async with spools(tmp_path, "a") as (spool,):
        spool.waits(1)
        spool.recorded(2)
        assert set(numbers(await page([spool], cursor=cursor, order=order))) <= {1, 2}


async def test_a_cursor_is_for_lists_that_are_sorted_as_its_own(tmp_path: Path) -> None:
    async with spools(tmp_path, "a") as (spool,):
        spool.waits(1, 2, at=NOW + 5)
        found = await page([spool], state=TaskState.SCHEDULED, sort="due", limit=1)
        with pytest.raises(TaskRefused, match="cursor"):
            await page([spool], state=TaskState.SCHEDULED, cursor=found.cursor)


# What a page costs


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
        assert made <= 6
        assert spool.store.looked_at == 0


async def test_a_page_looks_into_no_more_files_than_it_may(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "LOOKS", 20)
    monkeypatch.setattr(listing, "LOOK_SECONDS", 1000)
    monkeypatch.setattr(listing, "_AT_ONCE", 8)
    async with spools(tmp_path, "a") as (spool,):
        spool.waits(*range(50))
        spool.holds(50, note="needle")
        spool.waits(51, note="needle")
        first = await page([spool], q="needle", limit=5)
        assert (numbers(first), spool.store.looked_at) == ([], 20)
        assert first.cursor is not None
        assert await all_pages([spool], q="needle", limit=5) == [50, 51]
        assert await all_pages([spool], q="needle", limit=1, order="desc") == [51, 50]


async def test_a_page_looks_into_fewer_files_where_they_are_slow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(listing, "_AT_ONCE", 8)
    async with spools(tmp_path, "a") as (spool,):
        spool.waits(*range(50), note="needle")
        assert numbers(await page([spool], q="needle")) == list(range(8))
        assert await all_pages([spool], q="needle") == list(range(50))


async def test_a_page_looks_at_no_more_history_than_it_may(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_module, "SEARCH_ROWS", 10)
    monkeypatch.setattr(listing, "ROWS", 10)
    async with spools(tmp_path, "a", "b") as (spool, other):
        spool.recorded(*range(100))
        other.recorded(*range(100, 120))
        spool.recorded(200, handler="rare")
        other.recorded(150, handler="rare")
        for order, expected in (("asc", [150, 200]), ("desc", [200, 150])):
            first = await page([spool, other], handler="rare", order=order, limit=1)
            assert len(first.items) <= 1
            assert first.cursor is not None
            assert await all_pages([spool, other], handler="rare", order=order, limit=5) == expected


async def test_others_have_their_turn_while_many_tasks_are_looked_at(tmp_path: Path) -> None:
    async with spools(tmp_path, "a") as (spool,):
        spool.waits(*range(20_000))
        spool.holds(*range(20_000, 30_000))
        turns = 0

        async def count() -> None:
            nonlocal turns
            while True:
                await trio.lowlevel.checkpoint()
                turns += 1

        async with trio.open_nursery() as nursery:
            nursery.start_soon(count)
            await page([spool], state=TaskState.SCHEDULED)
            nursery.cancel_scope.cancel()
        assert turns >= 15
