"""Bulk actions on tasks that the test keeps in a dict."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import trio
import trio.lowlevel
import trio.testing

from trispool import bulk, bulkrun
from trispool.actions import permits
from trispool.bulk import BulkRuns
from trispool.control import TaskSummary
from trispool.errors import SpoolUnavailable, TaskNotFound, TaskRefused
from trispool.operating import Action, ActionResult, Actor, BulkRequest, BulkStatus, TaskFilter
from trispool.task import TaskState

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Collection, Iterable, Sequence

ANNA = Actor("anna")


def ids_of(count: int) -> list[str]:
    return [f"uwsgi_spoolfile_on_host_1_{number}_123_1700000000_{number:06}" for number in range(count)]


class Tasks:
    """Tasks that know no spool: `act` looks whether the action is permitted, and makes the task `cancelled` or `held`.

    Attributes:
        acted: What was acted on, in order, by whom, with which `at`.
        before_act: Awaited with the id.
        before_chunk: Awaited with the number of the chunk.
    """

    def __init__(self) -> None:
        self.tasks: dict[str, TaskSummary] = {}
        self.acted: list[tuple[str, Action, Actor, float | None]] = []
        self.before_act: Callable[[str], Awaitable[object]] | None = None
        self.before_chunk: Callable[[int], Awaitable[object]] | None = None

    def add(self, ids: Iterable[str], state: TaskState = TaskState.READY, **more: object) -> None:
        for task_id in ids:
            summary = TaskSummary(task_id, "default", state, 1.0, None, 1.0)
            self.tasks[task_id] = replace(summary, **more)  # type: ignore[arg-type] # as the test says

    async def select(
        self, wanted: TaskFilter, states: Collection[TaskState], /
    ) -> AsyncGenerator[Sequence[TaskSummary], None]:
        if wanted.spool is not None:
            raise TaskRefused(f"there is no spool {wanted.spool!r}", status=404)
        matching = [task for task in self.tasks.values() if task.state in states and (wanted.q or "") in task.id]
        for number, start in enumerate(range(0, len(matching), 300)):
            if self.before_chunk is not None:
                await self.before_chunk(number)
            yield matching[start : start + 300]

    async def summary(self, task_id: str, /) -> TaskSummary:
        if task_id not in self.tasks:
            raise TaskNotFound(f"there is no task {task_id!r}")
        return self.tasks[task_id]

    async def act(self, task_id: str, action: Action, actor: Actor, /, *, at: float | None) -> TaskSummary:
        if self.before_act is not None:
            await self.before_act(task_id)
        task = await self.summary(task_id)
        if not permits(action, task.state, task.attempts):
            raise TaskRefused(f"it is {task.state}", status=409)
        self.acted.append((task_id, action, actor, at))
        state = TaskState.HELD if action is Action.HOLD else TaskState.CANCELLED
        self.tasks[task_id] = replace(task, state=state)
        return self.tasks[task_id]


@pytest.fixture
def tasks() -> Tasks:
    return Tasks()


@pytest.fixture
def told() -> list[BulkStatus]:
    return []


@pytest.fixture
async def runs(tasks: Tasks, told: list[BulkStatus], nursery: trio.Nursery) -> AsyncIterator[BulkRuns]:
    made = BulkRuns(tasks, on_progress=told.append, clock=lambda: 1700.0)
    await nursery.start(made.run_bulk)
    yield made
    nursery.cancel_scope.cancel()


def all_results(runs: BulkRuns, bulk_id: str, limit: int = 500) -> list[ActionResult]:
    results: list[ActionResult] = []
    cursor = None
    while True:
        page = runs.bulk(bulk_id, limit=limit, cursor=cursor)
        results += page.results
        cursor = page.cursor
        if cursor is None:
            return results


async def until_ended(runs: BulkRuns, bulk_id: str) -> BulkStatus:
    with trio.fail_after(60):
        await runs._runs[bulk_id].ended.wait()
    return runs.bulk(bulk_id).status


# What it would do


async def test_preview_counts_by_state_when_a_filter_is_given(runs: BulkRuns, tasks: Tasks) -> None:
    tasks.add(["a", "b"])
    tasks.add(["c"], TaskState.SCHEDULED)
    tasks.add(["d"], TaskState.HELD)
    tasks.add(["e"], TaskState.RUNNING)
    tasks.add(["f"], TaskState.DONE)
    preview = await runs.preview(BulkRequest(Action.HOLD, filter=TaskFilter()))
    assert (preview.matched, preview.refused, preview.sample) == (3, 2, ["a", "b", "c"])
    assert preview.by_state == {"ready": 2, "scheduled": 1}
    assert tasks.acted == []


async def test_preview_counts_finished_tasks_when_the_filter_means_them(runs: BulkRuns, tasks: Tasks) -> None:
    tasks.add(["a", "b"], TaskState.DONE)
    preview = await runs.preview(BulkRequest(Action.CANCEL, filter=TaskFilter(state=TaskState.DONE)))
    assert (preview.matched, preview.refused, preview.by_state, preview.sample) == (0, 2, {}, [])


async def test_preview_counts_each_id_once_when_ids_are_given(runs: BulkRuns, tasks: Tasks) -> None:
    tasks.add(["a", "b"])
    tasks.add(["c"], TaskState.DEAD)
    preview = await runs.preview(BulkRequest(Action.HOLD, ids=["a", "c", "unknown", "a", "b"]))
    assert (preview.matched, preview.refused, preview.by_state) == (2, 2, {"ready": 2})


async def test_a_scheduled_task_is_retried_only_when_it_waits_for_another_attempt(runs: BulkRuns, tasks: Tasks) -> None:
    tasks.add(["first"], TaskState.SCHEDULED)
    tasks.add(["again"], TaskState.SCHEDULED, attempts=2)
    tasks.add(["dead"], TaskState.DEAD, attempts=3)
    preview = await runs.preview(BulkRequest(Action.RETRY, filter=TaskFilter()))
    assert (preview.matched, preview.refused, list(preview.sample)) == (2, 1, ["again", "dead"])


async def test_sample_of_a_preview_is_short_when_very_many_match(runs: BulkRuns, tasks: Tasks) -> None:
    tasks.add(ids_of(5000))
    preview = await runs.preview(BulkRequest(Action.CANCEL, filter=TaskFilter()))
    assert (preview.matched, list(preview.sample)) == (5000, ids_of(10))


# What it does


async def test_status_is_final_when_there_is_little_to_do(runs: BulkRuns, tasks: Tasks, told: list[BulkStatus]) -> None:
    tasks.add(["a", "b"])
    status = await runs.start_bulk(BulkRequest(Action.CANCEL, filter=TaskFilter()), ANNA)
    assert status == BulkStatus(
        status.id, Action.CANCEL, "finished", 2, 2, 0, "anna", started_at=1700.0, finished_at=1700.0
    )
    assert tasks.acted == [("a", Action.CANCEL, ANNA, None), ("b", Action.CANCEL, ANNA, None)]
    assert told == [status]
    page = runs.bulk(status.id)
    assert page.status == status
    assert page.results == [ActionResult("a", TaskState.CANCELLED), ActionResult("b", TaskState.CANCELLED)]
    assert page.cursor is None


async def test_every_id_has_its_result_when_ids_are_given(runs: BulkRuns, tasks: Tasks) -> None:
    tasks.add(["a"])
    tasks.add(["b"], TaskState.DONE)
    tasks.add(["full"])

    async def fail(task_id: str) -> None:
        if task_id == "full":
            raise SpoolUnavailable("no space left")

    tasks.before_act = fail
    request = BulkRequest(Action.RESCHEDULE, ids=["a", "b", "a", "unknown", "full"], at=99.5)
    status = await runs.start_bulk(request, ANNA)
    assert (status.state, status.total, status.done, status.refused) == ("finished", 4, 1, 3)
    assert runs.bulk(status.id).results == [
        ActionResult("a", TaskState.CANCELLED),
        ActionResult("b", None, 409, "it is done"),
        ActionResult("unknown", None, 404, "there is no task 'unknown'"),
        ActionResult("full", None, 503, "no space left"),
    ]
    assert tasks.acted == [("a", Action.RESCHEDULE, ANNA, 99.5)]


async def test_tasks_are_not_touched_when_they_come_after_the_selection(runs: BulkRuns, tasks: Tasks) -> None:
    tasks.add(ids_of(1000))

    async def one_more(task_id: str) -> None:
        tasks.add(["late"])

    tasks.before_act = one_more
    status = await runs.start_bulk(BulkRequest(Action.HOLD, filter=TaskFilter()), ANNA)
    status = await until_ended(runs, status.id)
    assert (status.total, status.done) == (1000, 1000)
    assert tasks.tasks["late"].state is TaskState.READY


async def test_tasks_whose_state_does_not_permit_it_are_left_alone_when_a_filter_is_given(
    runs: BulkRuns, tasks: Tasks
) -> None:
    tasks.add(["a", "b"], TaskState.DONE)
    tasks.add(["c"])
    status = await runs.start_bulk(BulkRequest(Action.CANCEL, filter=TaskFilter()), ANNA)
    assert (status.total, status.done, status.refused) == (1, 1, 0)


async def test_results_are_in_order_when_some_tasks_take_longer(
    runs: BulkRuns, tasks: Tasks, autojump_clock: trio.testing.MockClock
) -> None:
    tasks.add(ids_of(20))
    slow = trio.Event()

    async def wait(task_id: str) -> None:
        if task_id == ids_of(20)[3]:
            await slow.wait()

    tasks.before_act = wait
    status = await runs.start_bulk(BulkRequest(Action.CANCEL, filter=TaskFilter()), ANNA)
    assert (status.state, status.total, status.done) == ("running", 20, 19)
    assert [result.id for result in runs.bulk(status.id).results] == ids_of(3)
    slow.set()
    status = await until_ended(runs, status.id)
    assert [result.id for result in runs.bulk(status.id).results] == ids_of(20)
    assert status.done == 20


async def test_pages_leave_no_result_out_when_there_are_many(runs: BulkRuns, tasks: Tasks) -> None:
    tasks.add(ids_of(2500))
    status = await runs.start_bulk(BulkRequest(Action.CANCEL, filter=TaskFilter()), ANNA)
    await until_ended(runs, status.id)
    for limit in (100, 333, 5000):
        assert [result.id for result in all_results(runs, status.id, limit)] == ids_of(2500)
    assert len(runs.bulk(status.id, limit=5000).results) == bulkrun.MAX_PAGE
    for cursor in ("x", "-1", "2501", "1" * 5000, "٣", ""):
        with pytest.raises(TaskRefused, match="cursor"):
            runs.bulk(status.id, cursor=cursor)


async def test_work_goes_on_when_it_takes_longer_than_a_second(
    runs: BulkRuns, tasks: Tasks, told: list[BulkStatus], autojump_clock: trio.testing.MockClock
) -> None:
    tasks.add(ids_of(800))

    async def take(task_id: str) -> None:
        await trio.sleep(0.1)

    tasks.before_act = take
    before = trio.current_time()
    status = await runs.start_bulk(BulkRequest(Action.CANCEL, filter=TaskFilter()), ANNA)
    assert trio.current_time() - before == pytest.approx(bulk.ANSWER_SECONDS)
    assert (status.state, status.total) == ("running", 800)
    assert 64 <= status.done <= 80
    final = await until_ended(runs, status.id)
    assert (final.state, final.done) == ("finished", 800)
    # 8 hands need 10 s for 800; that is told four times a second at most, and at the end.
    assert 25 <= len(told) <= 41
    assert told[-1] == final
    assert [status.done for status in told] == sorted({status.done for status in told})


async def test_run_is_carried_out_when_its_caller_goes_away(
    runs: BulkRuns, tasks: Tasks, autojump_clock: trio.testing.MockClock, told: list[BulkStatus]
) -> None:
    tasks.add(["a"])

    async def take(task_id: str) -> None:
        await trio.sleep(0.5)

    tasks.before_act = take
    with trio.move_on_after(0.1):
        await runs.start_bulk(BulkRequest(Action.CANCEL, filter=TaskFilter()), ANNA)
    await trio.sleep(1)
    assert (told[-1].state, told[-1].done) == ("finished", 1)


async def test_results_are_bounded_when_there_are_more(
    runs: BulkRuns, tasks: Tasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulkrun, "MAX_RESULTS", 100)
    tasks.add(ids_of(150))
    status = await runs.start_bulk(BulkRequest(Action.CANCEL, filter=TaskFilter()), ANNA)
    status = await until_ended(runs, status.id)
    assert (status.state, status.done) == ("finished", 150)
    assert status.problem == "only the first 100 results are kept"
    assert [result.id for result in all_results(runs, status.id)] == ids_of(100)


# Its end


async def test_nothing_more_is_begun_when_it_is_stopped(
    runs: BulkRuns, tasks: Tasks, autojump_clock: trio.testing.MockClock
) -> None:
    tasks.add(ids_of(100))

    async def take(task_id: str) -> None:
        await trio.sleep(0.3)

    tasks.before_act = take
    status = await runs.start_bulk(BulkRequest(Action.CANCEL, filter=TaskFilter()), ANNA)
    status = await runs.stop_bulk(status.id)
    # What is under way is finished and told: 8 tasks each that began at 0, 0.3, 0.6 and 0.9 s.
    assert (status.state, status.done, status.total) == ("stopped", 32, 100)
    assert [result.id for result in all_results(runs, status.id)] == ids_of(32)
    assert len(tasks.acted) == 32
    assert (await runs.stop_bulk(status.id)) == status


async def test_nothing_is_begun_when_it_is_stopped_while_it_selects(
    runs: BulkRuns, tasks: Tasks, autojump_clock: trio.testing.MockClock
) -> None:
    tasks.add(ids_of(1000))

    async def hang(number: int) -> None:
        if number == 2:
            await trio.sleep_forever()

    tasks.before_chunk = hang
    status = await runs.start_bulk(BulkRequest(Action.CANCEL, filter=TaskFilter()), ANNA)
    assert (status.state, status.total, status.done) == ("running", None, 0)
    status = await runs.stop_bulk(status.id)
    assert (status.state, status.total, status.done) == ("stopped", None, 0)
    assert tasks.acted == []


async def test_finished_run_stays_finished_when_it_is_stopped(runs: BulkRuns, tasks: Tasks) -> None:
    tasks.add(["a"])
    status = await runs.start_bulk(BulkRequest(Action.CANCEL, filter=TaskFilter()), ANNA)
    assert await runs.stop_bulk(status.id) == status


async def test_run_is_stopped_when_the_service_ends(
    tasks: Tasks, told: list[BulkStatus], autojump_clock: trio.testing.MockClock
) -> None:
    tasks.add(ids_of(100))

    async def hang(task_id: str) -> None:
        if task_id in ids_of(100)[20:]:
            await trio.sleep_forever()

    tasks.before_act = hang
    runs = BulkRuns(tasks, on_progress=told.append)
    request = BulkRequest(Action.CANCEL, filter=TaskFilter())
    with pytest.raises(SpoolUnavailable):
        await runs.start_bulk(request, ANNA)
    async with trio.open_nursery() as nursery:
        await nursery.start(runs.run_bulk)
        status = await runs.start_bulk(request, ANNA)
        assert status.state == "running"
        nursery.cancel_scope.cancel()
    status = runs.bulk(status.id).status
    assert (status.state, status.done, status.total) == ("stopped", 20, 100)
    assert told[-1] == status
    with pytest.raises(SpoolUnavailable):
        await runs.start_bulk(request, ANNA)


async def test_run_is_known_for_an_hour_when_it_has_ended(
    runs: BulkRuns, tasks: Tasks, autojump_clock: trio.testing.MockClock
) -> None:
    tasks.add(["a"])
    status = await runs.start_bulk(BulkRequest(Action.CANCEL, filter=TaskFilter()), ANNA)
    await trio.sleep(bulk.REMEMBER_SECONDS - 1)
    assert runs.bulk(status.id).status == status
    await trio.sleep(2)
    with pytest.raises(TaskRefused, match="no bulk action") as caught:
        runs.bulk(status.id)
    assert caught.value.status == 404


async def test_memory_is_given_back_when_nobody_asks_any_more(
    runs: BulkRuns, tasks: Tasks, autojump_clock: trio.testing.MockClock
) -> None:
    tasks.add(["a"])
    await runs.start_bulk(BulkRequest(Action.CANCEL, filter=TaskFilter()), ANNA)
    await trio.sleep(bulk.REMEMBER_SECONDS + 100)
    assert runs._runs == {}


async def test_the_oldest_is_forgotten_when_all_results_are_too_many(
    runs: BulkRuns, tasks: Tasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk, "MAX_KEPT", 3500)
    tasks.add(ids_of(10))
    ids = [(await runs.start_bulk(BulkRequest(Action.HOLD, ids=ids_of(10)), ANNA)).id for _ in range(4)]
    with pytest.raises(TaskRefused):
        runs.bulk(ids[0])
    for known in ids[1:]:
        assert len(runs.bulk(known).results) == 10


# What is refused


async def test_as_many_as_may_be_are_under_way_when_more_are_asked_for(
    runs: BulkRuns, tasks: Tasks, autojump_clock: trio.testing.MockClock
) -> None:
    tasks.add(["a"])
    go_on = trio.Event()

    async def wait(task_id: str) -> None:
        await go_on.wait()

    tasks.before_act = wait
    request = BulkRequest(Action.CANCEL, ids=["a"])
    ids = [(await runs.start_bulk(request, ANNA)).id for _ in range(bulk.MAX_RUNNING)]
    with pytest.raises(TaskRefused, match="under way") as caught:
        await runs.start_bulk(request, ANNA)
    assert caught.value.status == 429
    go_on.set()
    for bulk_id in ids:
        await until_ended(runs, bulk_id)
    assert (await runs.start_bulk(request, ANNA)).state == "finished"


async def test_caller_is_told_when_the_filter_makes_no_sense(
    runs: BulkRuns, tasks: Tasks, told: list[BulkStatus]
) -> None:
    request = BulkRequest(Action.CANCEL, filter=TaskFilter(spool="nowhere"))
    with pytest.raises(TaskRefused, match="nowhere") as caught:
        await runs.start_bulk(request, ANNA)
    assert caught.value.status == 404
    with pytest.raises(TaskRefused, match="nowhere"):
        await runs.preview(request)
    assert (runs._runs, told) == ({}, [])


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (BulkRequest(Action.CANCEL), "ids, filter"),
        (BulkRequest(Action.CANCEL, ids=[], filter=TaskFilter()), "ids, filter"),
        (BulkRequest(Action.CANCEL, ids=["a"], at=5.0), "at=5.0"),
        (BulkRequest(Action.RESCHEDULE, ids=["a"]), "at=None"),
        (BulkRequest(Action.RESCHEDULE, ids=["a"], at=float("nan")), "at=nan"),
        (BulkRequest(Action.RESCHEDULE, ids=["a"], at=1e12), "at="),
        (BulkRequest(Action.CANCEL, ids=["a"] * (bulk.MAX_IDS + 1)), "ids: 100001"),
    ],
)
async def test_request_is_refused_when_it_makes_no_sense(runs: BulkRuns, request_: BulkRequest, said: str) -> None:
    with pytest.raises(TaskRefused, match=said):
        await runs.start_bulk(request_, ANNA)
    with pytest.raises(TaskRefused, match=said):
        await runs.preview(request_)


async def test_problem_is_told_when_a_spool_cannot_be_read(runs: BulkRuns, tasks: Tasks) -> None:
    tasks.add(["a"])

    async def fail(number: int) -> None:
        raise SpoolUnavailable("the disk is gone")

    tasks.before_chunk = fail
    status = await runs.start_bulk(BulkRequest(Action.CANCEL, filter=TaskFilter()), ANNA)
    assert (status.state, status.total, status.problem) == ("finished", None, "the disk is gone")


async def test_others_go_on_when_a_run_fails_for_a_fault_of_ours(runs: BulkRuns, tasks: Tasks) -> None:
    tasks.add(["a", "b"])

    async def fail(task_id: str) -> None:
        raise KeyError(task_id)

    tasks.before_act = fail
    status = await runs.start_bulk(BulkRequest(Action.CANCEL, ids=["a"]), ANNA)
    assert (status.state, status.problem) == ("finished", "it failed: KeyError('a')")
    tasks.before_act = None
    assert (await runs.start_bulk(BulkRequest(Action.CANCEL, ids=["a"]), ANNA)).done == 1


# Very many


class _LongestTurn(trio.abc.Instrument):
    """How long other Trio tasks had to wait for one step of any task, seconds of processor time."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._began = 0.0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._began = time.thread_time()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        self.seconds.append(time.thread_time() - self._began)


async def test_others_have_their_turn_when_there_are_very_many_tasks(runs: BulkRuns, tasks: Tasks) -> None:
    count = 30_000
    tasks.add(ids_of(count))
    request = BulkRequest(Action.HOLD, filter=TaskFilter())
    turns = _LongestTurn()
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(tick)
        trio.lowlevel.add_instrument(turns)
        try:
            preview = await runs.preview(request)
            status = await runs.start_bulk(request, ANNA)
            status = await until_ended(runs, status.id)
        finally:
            trio.lowlevel.remove_instrument(turns)
        nursery.cancel_scope.cancel()
    assert (preview.matched, status.done) == (count, count)
    assert ticks > count / bulk.HANDS
    # The fake's own look at all its tasks is among the longest turns.
    longest = sorted(turns.seconds)[-10:]
    assert longest[0] < 0.01, longest
