"""Dispatcher: what starts when, and what becomes of it, on Trio's virtual clock, among fakes."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from tests.fakes import MemoryHistory, MemoryStore
from trispool import dispatcher as dispatcher_module
from trispool.backlog import SETTLE_SECONDS, Running
from trispool.dispatcher import ENQUEUE_SECONDS, LONGEST_SLEEP, Dispatcher, DispatcherSettings
from trispool.errors import SpoolUnavailable, TrispoolError
from trispool.figures import Figures
from trispool.packet import new_task
from trispool.retry import RetryPolicy
from trispool.store import Change, Claim
from trispool.task import Entry, NewTask, Retrying, Task, TaskState

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence

    from trio.testing import MockClock


BASE = 1_700_000_000.0
FREQUENCY = 30.0


def now() -> float:
    return BASE + trio.current_time()


@dataclass
class Said:
    """A worker's report."""

    claim: Claim
    code: str
    started_at: float = 0.0
    run_seconds: float = 0.0
    handler: str | None = None
    error: str | None = None
    traceback: str | None = None
    retry_at: float | None = None
    detail: object = None
    vars: bytes | None = None


def says(*, retries: int | None = None, backoff: float | None = None, default: bool = False) -> dict[str, object]:
    """What a worker says of a handler."""
    return {"retries": retries, "backoff": backoff, "default": default}


class FakeWorker:
    """Takes tasks and says of them what the test wants.

    Args:
        rig: Where it works.
        pid: Its number.
        capacity: How many tasks it takes at once.
        answer: Called with each claim: a code, which it reports at once, or None to keep the task.
        handlers: What it says of its handlers.
        fewest: Fewer are not worth being given to it behind others, nor to be shared with it.
    """

    def __init__(
        self,
        rig: Rig,
        pid: int,
        capacity: int = 1,
        answer: Callable[[Claim], str | None] = lambda claim: None,
        handlers: Mapping[str, Mapping[str, Any]] | None = None,
        fewest: int = 1,
    ) -> None:
        self.pid = pid
        self.capacity = capacity
        self.fewest = fewest
        self.handlers = handlers or {}
        self.hand: dict[str, Claim] = {}
        self.alive = True
        self._rig = rig
        self._answer = answer

    @property
    def room(self) -> int:
        return self.capacity - len(self.hand) if self.alive else 0

    @property
    def in_hand(self) -> int:
        return len(self.hand)

    def give(self, claims: Sequence[Claim], attempts: Sequence[int]) -> None:
        assert 0 < len(claims) <= self.room
        assert len(claims) == len(attempts)
        for claim, attempt in zip(claims, attempts, strict=True):
            self.hand[claim.ref] = claim
            self._rig.starts.append(Start(trio.current_time(), claim.id, attempt, self.pid))
        for claim in claims:
            code = self._answer(claim)
            if code is not None:
                self.report(claim, code)

    def report(self, claim: Claim | None = None, code: str = "ok", **more: Any) -> None:
        """The end of a task; of the one it has had longest if none is named."""
        if claim is None:
            claim = next(iter(self.hand.values()))
        del self.hand[claim.ref]
        self._rig.dispatcher.worker_reported(self, [Said(claim, code, **({"started_at": now()} | more))])

    def die(self, cause: str, *, suspects: int = 1) -> None:
        """It was running the first of its tasks, and had not begun the others."""
        self.alive = False
        claims = list(self.hand.values())
        self._rig.dispatcher.worker_lost(self, claims[suspects:], claims[:suspects], cause)


@dataclass(frozen=True)
class Start:
    at: float
    id: str
    attempt: int
    pid: int


class Rig:
    """A dispatcher with all that is around it."""

    def __init__(self, store: MemoryStore, policy: RetryPolicy, remembered: Mapping[str, Retrying]) -> None:
        self.store = store
        self.history = MemoryHistory()
        self.history.retrying.update(remembered)
        self.starts: list[Start] = []
        self.wanted: list[float] = []
        self.clock_is_off_by = 0.0
        self.figures = Figures(now)
        self.dispatcher = Dispatcher(
            store,
            self.history,
            DispatcherSettings("default", FREQUENCY, policy),
            remembered=remembered,
            frequency_wanted=self.wanted.append,
            clock=lambda: now() + self.clock_is_off_by,
            watcher=self.figures,
        )

    def worker(self, pid: int = 1, capacity: int = 1, **options: Any) -> FakeWorker:
        worker = FakeWorker(self, pid, capacity, **options)
        self.dispatcher.worker_ready(worker)
        return worker

    async def add(self, *tasks: NewTask) -> list[str]:
        results = await self.dispatcher.enqueue(tasks)
        return [result.id for result in results if isinstance(result, Entry)]

    async def scan(self) -> None:
        self.dispatcher.scan_begins()
        async for entries in self.store.scan():
            self.dispatcher.scan_saw(entries)
        await self.dispatcher.scan_ended()

    def started(self) -> list[str]:
        return [start.id for start in self.starts]

    def times(self) -> list[float]:
        return [round(start.at, 6) for start in self.starts]


@asynccontextmanager
async def dispatching(
    *,
    store: MemoryStore | None = None,
    policy: RetryPolicy = RetryPolicy(),  # noqa: B008 (it is frozen)
    remembered: Mapping[str, Retrying] | None = None,
    scanned: bool = True,
) -> AsyncIterator[Rig]:
    rig = Rig(store or MemoryStore(), policy, remembered or {})
    async with trio.open_nursery() as nursery:
        await nursery.start(rig.dispatcher.run_dispatcher)
        if scanned:
            await rig.scan()
        yield rig
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()


def task(**options: Any) -> NewTask:
    return new_task({"n": "1"}, **options)


settled = trio.testing.wait_all_tasks_blocked


# What starts when


@pytest.mark.parametrize("how", ["handed out", "none is due", "paused"])
async def test_it_has_caught_up_when_nothing_that_the_first_scan_found_due_can_be_handed_out(
    how: str, autojump_clock: MockClock
) -> None:
    store = MemoryStore()
    if how != "none is due":
        store.put(task())
    async with dispatching(store=store, scanned=False) as rig:
        with trio.move_on_after(1) as early:
            await rig.dispatcher.wait_caught_up()
        assert early.cancelled_caught, "nothing is known yet"
        if how == "paused":
            rig.dispatcher.pause()
        await rig.scan()
        if how == "handed out":
            with trio.move_on_after(1) as early:
                await rig.dispatcher.wait_caught_up()
            assert early.cancelled_caught, "there is no worker"
            rig.worker()
        with trio.fail_after(1):
            await rig.dispatcher.wait_caught_up()


async def test_due_tasks_start_by_priority_then_by_time_of_enqueuing(autojump_clock: MockClock) -> None:
    async with dispatching() as rig:
        ids = await rig.add(task(), task(priority=10), task(priority=2), task(), task(priority=10))
        rig.worker(answer=lambda claim: "ok")
        await settled()
        assert rig.started() == [ids[number] for number in (2, 1, 4, 0, 3)]
        assert rig.times() == [0] * 5


async def test_a_new_task_of_a_higher_priority_is_next_in_line(autojump_clock: MockClock) -> None:
    async with dispatching() as rig:
        worker = rig.worker()
        ids = await rig.add(task(), task())
        await settled()
        ids += await rig.add(task(priority=0))
        worker.report()
        await settled()
        assert rig.started() == [ids[0], ids[2]]


@pytest.mark.parametrize("seconds", [0.001, 0.25, 1.0, LONGEST_SLEEP, 12.345678, 4000 + 1 / 3])
async def test_a_task_starts_at_its_moment_and_never_before(seconds: float, autojump_clock: MockClock) -> None:
    async with dispatching() as rig:
        at = now() + seconds
        rig.worker()
        (task_id,) = await rig.add(task(at=at))
        await trio.sleep(seconds + 1)
        (start,) = rig.starts
        assert start.id == task_id
        assert at <= BASE + start.at < at + 0.001


async def test_a_task_for_sooner_is_not_held_up_by_one_for_later(autojump_clock: MockClock) -> None:
    async with dispatching() as rig:
        rig.worker(answer=lambda claim: "ok")
        await rig.add(task(at=now() + 9))
        await trio.sleep(1)
        await rig.add(task(at=now() + 2), task(at=now() + 4))
        await trio.sleep(20)
        assert rig.times() == pytest.approx([3, 5, 9])


async def test_a_task_that_is_moved_starts_at_its_new_time(autojump_clock: MockClock) -> None:
    async with dispatching() as rig:
        rig.worker()
        await rig.add(task(at=now() + 90))
        (entry,) = [entry for entry, _ in rig.store.tasks.values()]
        await trio.sleep(1)
        rig.dispatcher.changed([Change(entry.ref, entry._replace(at=now() + 5))])
        await trio.sleep(20)
        assert rig.times() == [6]


async def test_a_task_that_is_taken_away_does_not_start(autojump_clock: MockClock) -> None:
    async with dispatching() as rig:
        (task_id,) = await rig.add(task(at=now() + 5))
        rig.worker()
        rig.dispatcher.changed([Change(task_id, None)])
        await trio.sleep(20)
        assert rig.starts == []


async def test_what_others_put_there_starts_when_it_is_told(autojump_clock: MockClock) -> None:
    async with dispatching() as rig:
        rig.worker()
        await trio.sleep(1)
        entry = rig.store.put(task())
        rig.dispatcher.changed([Change(entry.ref, entry)])
        await trio.sleep(1)
        assert (rig.started(), rig.times()) == ([entry.id], [1])


async def test_what_only_a_scan_finds_starts_then(autojump_clock: MockClock) -> None:
    async with dispatching() as rig:
        rig.worker()
        await trio.sleep(1)
        entry = rig.store.put(task())
        await trio.sleep(1)
        await rig.scan()
        await trio.sleep(1)
        assert (rig.started(), rig.times()) == ([entry.id], [2])


async def test_what_a_scan_finds_does_not_wait_for_its_end(autojump_clock: MockClock) -> None:
    async with dispatching() as rig:
        rig.worker()
        await trio.sleep(1)
        entry = rig.store.put(task())
        rig.dispatcher.scan_begins()
        rig.dispatcher.scan_saw([entry])
        await trio.sleep(1)
        assert rig.times() == [1]


async def test_what_a_scan_does_not_find_does_not_start(autojump_clock: MockClock) -> None:
    async with dispatching() as rig:
        (task_id,) = await rig.add(task())
        del rig.store.tasks[task_id]
        await rig.scan()
        rig.worker()
        await settled()
        assert rig.starts == []


async def test_nothing_starts_before_the_first_scan_has_ended(autojump_clock: MockClock) -> None:
    async with dispatching(scanned=False) as rig:
        late = rig.store.put(task(priority=1))
        rig.worker(answer=lambda claim: "ok")
        (early,) = await rig.add(task())
        await trio.sleep(2 * LONGEST_SLEEP)
        rig.dispatcher.scan_begins()
        rig.dispatcher.scan_saw([entry for entry, _ in rig.store.tasks.values()])
        await settled()
        assert rig.starts == []
        await rig.dispatcher.scan_ended()
        await settled()
        assert rig.started() == [late.id, early]


async def test_a_first_scan_that_fails_lets_nothing_start(autojump_clock: MockClock) -> None:
    async with dispatching(scanned=False) as rig:
        rig.worker()
        await rig.add(task())
        rig.dispatcher.scan_begins()
        rig.dispatcher.scan_begins()
        await trio.sleep(2 * LONGEST_SLEEP)
        assert rig.starts == []


async def test_a_clock_that_is_set_forward_is_noticed(autojump_clock: MockClock) -> None:
    async with dispatching() as rig:
        rig.worker()
        await rig.add(task(at=now() + 10_000))
        await trio.sleep(1)
        rig.clock_is_off_by = 10_000
        await trio.sleep(LONGEST_SLEEP)
        assert len(rig.starts) == 1


async def test_a_clock_that_is_set_back_keeps_nobody_from_another_attempt(autojump_clock: MockClock) -> None:
    async with dispatching() as rig:
        rig.worker(answer=lambda claim: "retry" if len(rig.starts) < 3 else "ok")
        await rig.add(task())
        await trio.sleep(5)
        rig.clock_is_off_by = -10_000
        await trio.sleep(2 * FREQUENCY)
        first, second, *_ = rig.times()
        assert first + FREQUENCY <= second <= first + FREQUENCY + LONGEST_SLEEP


async def test_a_clock_that_was_set_back_during_a_restart_keeps_nobody_from_another_attempt(
    autojump_clock: MockClock,
) -> None:
    store = MemoryStore()
    (entry,) = await store.add([task()])
    assert isinstance(entry, Entry)
    later = now() + 10_000
    known = Retrying(entry.id, 1, later + FREQUENCY, True, later, "no")
    async with dispatching(store=store, remembered={entry.id: known}) as rig:
        rig.worker()
        await trio.sleep(FREQUENCY + 1)
        assert rig.times() == [FREQUENCY]


@pytest.mark.parametrize("what", ["at", "back-off"])
async def test_a_time_stays_what_it_is_when_the_clock_is_set_back(what: str, autojump_clock: MockClock) -> None:
    async with dispatching(policy=RetryPolicy(0, 100.0)) as rig:
        rig.worker(answer=lambda claim: "failed")
        await rig.add(task(at=now() + 100) if what == "at" else task())
        await trio.sleep(5)
        began = len(rig.starts)
        rig.clock_is_off_by = -50
        await trio.sleep(140)
        assert len(rig.starts) == began
        await trio.sleep(10)
        assert rig.times()[began:] == [150]


async def test_very_many_tasks_for_one_moment_do_not_keep_the_loop_from_running(autojump_clock: MockClock) -> None:
    async with dispatching() as rig:
        await rig.add(*[task(at=BASE + 60, priority=9 - number % 10) for number in range(3000)])
        rig.worker(capacity=3000)
        rounds = 0
        async with trio.open_nursery() as nursery:

            async def count() -> None:
                nonlocal rounds
                await trio.sleep(60)
                while not rig.starts:
                    rounds += 1
                    await trio.lowlevel.checkpoint()

            nursery.start_soon(count)
        assert rounds >= 3000 / dispatcher_module.LOOK_AT_ONCE
        orders = [(entry.priority, entry.order) for entry, _ in rig.store.tasks.values()]
        given = [(rig.store.tasks[task_id][0].priority, rig.store.tasks[task_id][0].order) for task_id in rig.started()]
        assert given == sorted(orders)
        assert rig.times() == [60] * 3000


# Who runs it


async def test_an_idle_worker_is_given_a_task_before_a_busy_one(autojump_clock: MockClock) -> None:
    async with dispatching() as rig:
        busy = rig.worker(1, capacity=9)
        await rig.add(task())
        await settled()
        rig.worker(2, capacity=9)
        await rig.add(task())
        await settled()
        assert [start.pid for start in rig.starts] == [1, 2]
        busy.report()
        await rig.add(task())
        await settled()
        assert [start.pid for start in rig.starts] == [1, 2, 1]


@pytest.mark.parametrize(
    ("rooms", "tasks", "shares"),
    [
        ([64, 64], 10, [5, 5]),
        ([64, 64, 64], 10, [4, 3, 3]),
        ([64, 1], 10, [9, 1]),
        ([1, 64, 3], 30, [1, 26, 3]),
        ([2, 2], 10, [2, 2]),
        ([64, 64], 1, [1, 0]),
        ([0, 5], 3, [0, 3]),
    ],
)
async def test_what_is_due_is_shared_out_and_no_room_is_left_empty(
    rooms: list[int], tasks: int, shares: list[int], autojump_clock: MockClock
) -> None:
    async with dispatching() as rig:
        rig.dispatcher.pause()
        await rig.add(*[task() for _ in range(tasks)])
        workers = [rig.worker(number, room) for number, room in enumerate(rooms)]
        rig.dispatcher.resume()
        await settled()
        assert [worker.in_hand for worker in workers] == shares
        assert rig.dispatcher.backlog.ready == tasks - sum(shares)


async def test_few_quick_tasks_wait_for_the_end_of_others_and_are_given_together(autojump_clock: MockClock) -> None:
    async with dispatching() as rig:
        worker = rig.worker(capacity=9, fewest=3)
        for given in (1, 1, 1, 4):
            await rig.add(task())
            await settled()
            assert worker.in_hand == given
        await rig.add(task(), task())
        await settled()
        for left in (3, 2, 1):
            worker.report()
            await settled()
            assert worker.in_hand == left
        worker.report()
        await settled()
        assert worker.in_hand == 2


async def test_few_quick_tasks_are_not_shared_out(autojump_clock: MockClock) -> None:
    async with dispatching() as rig:
        rig.dispatcher.pause()
        await rig.add(*[task() for _ in range(10)])
        workers = [rig.worker(number, 64, fewest=7) for number in range(3)]
        rig.dispatcher.resume()
        await settled()
        assert [worker.in_hand for worker in workers] == [7, 3, 0]


async def test_a_worker_that_becomes_ready_is_given_what_waits_at_once(autojump_clock: MockClock) -> None:
    async with dispatching() as rig:
        await rig.add(task())
        await trio.sleep(1)
        rig.worker()
        await trio.sleep(1)
        assert rig.times() == [1]


async def test_room_that_becomes_free_is_filled_at_once(autojump_clock: MockClock) -> None:
    async with dispatching() as rig:
        worker = rig.worker(capacity=2)
        await rig.add(*[task() for _ in range(5)])
        await settled()
        assert len(rig.starts) == 2
        for _ in range(3):
            worker.report()
            await settled()
        assert (len(rig.starts), worker.in_hand) == (5, 2)


async def test_what_cannot_be_claimed_is_not_given_and_found_again_if_it_is_there(autojump_clock: MockClock) -> None:
    async with dispatching() as rig:
        first, second = await rig.add(task(), task())
        rig.store.claimed.add(first)
        rig.worker(capacity=9)
        await settled()
        assert rig.started() == [second]
        assert list(rig.dispatcher.backlog.running) == [second]
        rig.store.claimed.discard(first)
        await rig.scan()
        await settled()
        assert rig.started() == [second, first]


async def test_paused_nothing_starts_and_what_runs_goes_on(autojump_clock: MockClock) -> None:
    async with dispatching() as rig:
        worker = rig.worker()
        ids = await rig.add(task(), task(), task(at=now() + 5))
        await settled()
        rig.dispatcher.pause()
        assert rig.dispatcher.paused
        worker.report()
        await trio.sleep(3 * LONGEST_SLEEP)
        assert rig.started() == ids[:1]
        assert [row.outcome for row in rig.history.rows] == ["ok"]
        assert list(rig.store.tasks) == ids[1:]
        rig.dispatcher.resume()
        await settled()
        assert not rig.dispatcher.paused
        assert (rig.started(), rig.times()[1]) == (ids[:2], 3 * LONGEST_SLEEP)


async def test_draining_nothing_starts_for_good(autojump_clock: MockClock) -> None:
    async with dispatching() as rig:
        worker = rig.worker()
        ids = await rig.add(task(), task())
        await settled()
        rig.dispatcher.drain()
        worker.report()
        rig.dispatcher.resume()
        await trio.sleep(3 * LONGEST_SLEEP)
        assert rig.started() == ids[:1]
        assert list(rig.store.tasks) == ids[1:]


# How attempts end


async def test_what_ran_well_is_done_and_recorded(autojump_clock: MockClock) -> None:
    async with dispatching() as rig:
        worker = rig.worker(7)
        (task_id,) = await rig.add(task(at=now() + 2, priority=4))
        await trio.sleep(5)
        started_at = BASE + 2.5
        worker.report(code="ok", started_at=started_at, run_seconds=1.5, handler="encode", vars=b"v")
        await settled()
        (row,) = rig.history.rows
        assert (row.task, row.number, row.outcome, row.state, row.worker, row.handler) == (
            (task_id, 1, "ok", "done", 7, "encode")
        )
        assert (row.started_at, row.queue_seconds, row.run_seconds) == (started_at, 0.5, 1.5)
        assert (row.at, row.priority, row.error, row.traceback, row.vars) == (BASE + 2, 4, None, None, b"v")
        assert row.enqueued_at == BASE + 1e-6
        assert (rig.store.tasks, rig.store.claimed, rig.history.retrying) == ({}, set(), {})
        assert rig.dispatcher.counts == {"ok": 1}
        assert rig.dispatcher.backlog.find(task_id) is None


async def test_a_retry_runs_again_every_frequency(autojump_clock: MockClock) -> None:
    async with dispatching() as rig:
        rig.worker(answer=lambda claim: "retry" if len(rig.starts) < 4 else "ok")
        (task_id,) = await rig.add(task())
        await trio.sleep(200)
        assert (rig.times(), [start.attempt for start in rig.starts]) == ([0, 30, 60, 90], [1, 2, 3, 4])
        assert [(row.number, row.outcome, row.state) for row in rig.history.rows] == [
            (1, "retry", None),
            (2, "retry", None),
            (3, "retry", None),
            (4, "ok", "done"),
        ]
        assert rig.history.retrying == {}
        assert rig.dispatcher.counts == {"retry": 3, "ok": 1}
        assert task_id not in rig.store.tasks


async def test_a_scan_or_a_new_task_does_not_run_failing_ones_again(autojump_clock: MockClock) -> None:
    async with dispatching() as rig:
        rig.worker(answer=lambda claim: "retry")
        (first,) = await rig.add(task())
        await trio.sleep(5)
        await rig.scan()
        (second,) = await rig.add(task())
        await trio.sleep(5)
        assert rig.started() == [first, second]


@pytest.mark.parametrize(("frequency", "times"), [(10.0, [0, 12, 22, 32]), (20.0, [0, 20, 40]), (50.0, [0, 50])])
async def test_a_new_frequency_counts_for_what_waits_already(
    frequency: float, times: list[float], autojump_clock: MockClock
) -> None:
    async with dispatching() as rig:
        rig.worker(answer=lambda claim: "retry")
        await rig.add(task())
        await trio.sleep(12)
        rig.dispatcher.set_frequency(frequency)
        await trio.sleep(30)
        if frequency == 50:
            await trio.sleep(10)
        assert rig.times() == times


async def test_what_is_remembered_of_a_retry_is_what_a_restart_needs(autojump_clock: MockClock) -> None:
    async with dispatching() as rig:
        worker = rig.worker()
        (task_id,) = await rig.add(task())
        await trio.sleep(5)
        worker.report(code="failed", error="ValueError: no")
        await settled()
        known = Retrying(task_id, 1, BASE + 35, True, BASE + 5, "ValueError: no")
        assert rig.history.retrying == {task_id: known}
        store, remembered = rig.store, dict(rig.history.retrying)
    remembered["vanished"] = known._replace(task="vanished")
    async with dispatching(store=store, remembered=remembered) as rig:
        assert list(rig.history.retrying) == [task_id]
        rig.worker(answer=lambda claim: "ok")
        await trio.sleep(100)
        assert rig.times() == [35]
        assert rig.starts[0].attempt == 2
        assert rig.history.retrying == {}


async def test_a_handler_says_when_it_wants_to_be_run_again(autojump_clock: MockClock) -> None:
    async with dispatching() as rig:
        worker = rig.worker()
        await rig.add(task())
        await settled()
        worker.report(code="retry", retry_at=now() + 3)
        await trio.sleep(1)
        rig.dispatcher.set_frequency(1)
        await trio.sleep(20)
        assert rig.times() == [0, 3]


@pytest.mark.parametrize("code", ["retry", "failed", "timeout"])
async def test_after_its_last_attempt_a_task_is_set_aside(code: str, autojump_clock: MockClock) -> None:
    async with dispatching(policy=RetryPolicy(max_attempts=3, backoff=5.0)) as rig:
        worker = rig.worker()
        (task_id,) = await rig.add(task())
        for _ in range(3):
            await trio.sleep(6)
            worker.report(code=code, error="no good")
        await trio.sleep(100)
        assert rig.times() == [0, 11, 17]
        assert (list(rig.store.aside), rig.store.tasks, rig.store.claimed) == ([task_id], {}, set())
        assert [(row.number, row.outcome, row.state, row.error) for row in rig.history.rows] == [
            (1, code, None, "no good"),
            (2, code, None, "no good"),
            (3, code, "dead", "no good"),
        ]
        assert rig.history.retrying == {}
        assert rig.dispatcher.counts == {code: 3, "dead": 1}
        assert rig.dispatcher.backlog.find(task_id) is None


async def test_one_that_gave_up_without_an_error_has_the_reason(autojump_clock: MockClock) -> None:
    async with dispatching(policy=RetryPolicy(max_attempts=1)) as rig:
        rig.worker(answer=lambda claim: "retry")
        await rig.add(task())
        await settled()
        (row,) = rig.history.rows
        assert row.error == "gave up after 1 attempt, the last one ended with: retry"


async def test_ignore_is_looked_at_again_and_not_counted(autojump_clock: MockClock) -> None:
    async with dispatching(policy=RetryPolicy(max_attempts=2)) as rig:
        rig.worker(answer=lambda claim: "ignore" if len(rig.starts) < 4 else "ok")
        await rig.add(task())
        await trio.sleep(100)
        assert [(start.at, start.attempt) for start in rig.starts] == [(0, 1), (30, 1), (60, 1), (90, 1)]
        assert rig.store.aside == {}


async def test_handlers_have_policies_of_their_own(autojump_clock: MockClock) -> None:
    handlers = {
        "brief": says(retries=1, backoff=2.0),
        "patient": says(backoff=7.0),
        "stubborn": says(retries=9),
    }
    times: dict[str, list[float]] = {}
    async with dispatching(policy=RetryPolicy(max_attempts=3, backoff=5.0)) as rig:
        worker = rig.worker(capacity=9, handlers=handlers)
        ids = await rig.add(*[task() for _ in range(4)])
        names = dict(zip(ids, ["brief", "patient", "stubborn", None], strict=True))
        for _ in range(30):
            await trio.sleep(1)
            for claim in list(worker.hand.values()):
                worker.report(claim, "failed", handler=names[claim.id])
        for start in rig.starts:
            times.setdefault(names[start.id] or "", []).append(start.at)
        assert times == {"brief": [0, 3], "patient": [0, 8, 16], "stubborn": [0, 6, 12, 18, 24], "": [0, 6, 12]}
        assert set(rig.store.aside) == {ids[0], ids[1], ids[3]}


async def test_the_policy_is_that_of_the_worker_that_ran_it(autojump_clock: MockClock) -> None:
    async with dispatching() as rig:
        old = rig.worker(1, handlers={"h": says(retries=0)})
        old.die("exited with code 0")
        new = rig.worker(2, handlers={"h": says()})
        await rig.add(task())
        await settled()
        new.report(code="failed", handler="h")
        await settled()
        assert rig.store.aside == {}


async def test_a_scan_while_a_task_is_set_aside_does_not_take_it_for_a_new_one(autojump_clock: MockClock) -> None:
    class Slow(MemoryStore):
        async def set_aside(self, entry: Entry) -> bool:
            await trio.sleep(5)
            return await super().set_aside(entry)

    async with dispatching(store=Slow(), policy=RetryPolicy(max_attempts=1)) as rig:
        rig.worker(answer=lambda claim: "failed")
        (task_id,) = await rig.add(task())
        await trio.sleep(1)
        await rig.scan()
        assert rig.dispatcher.backlog.ready == 0
        await trio.sleep(100)
        assert rig.started() == [task_id]
        assert list(rig.store.aside) == [task_id]


@pytest.mark.parametrize("why", ["unavailable", "somebody else has it"])
async def test_what_cannot_be_set_aside_is_recorded_and_tried_again(why: str, autojump_clock: MockClock) -> None:
    class Refusing(MemoryStore):
        refusing = True

        async def set_aside(self, entry: Entry) -> bool:
            if self.refusing and why == "unavailable":
                raise SpoolUnavailable("disk full")
            return not self.refusing and await super().set_aside(entry)

    store = Refusing()
    async with dispatching(store=store, policy=RetryPolicy(max_attempts=2, backoff=1.0)) as rig:
        rig.worker(answer=lambda claim: "failed")
        (task_id,) = await rig.add(task())
        await trio.sleep(10)
        assert rig.times() == [0, 1]
        assert [(row.number, row.state) for row in rig.history.rows] == [(1, None), (2, None)]
        assert rig.history.retrying[task_id].attempts == 2
        assert (rig.store.claimed, rig.dispatcher.counts["dead"]) == (set(), 0)
        store.refusing = False
        await trio.sleep(100)
        assert rig.times() == [0, 1, 31]
        assert [(row.number, row.state) for row in rig.history.rows[2:]] == [(3, "dead")]
        assert list(store.aside) == [task_id]


# What could not be run


@pytest.mark.parametrize(
    ("code", "detail", "waits"),
    [
        ("not_due", BASE + 12, 12.0),
        ("locked", None, FREQUENCY),
        ("settling", None, SETTLE_SECONDS),
        ("settling", "Permission denied", FREQUENCY),
        ("returned", None, 0.0),
    ],
)
async def test_what_was_not_run_waits_and_has_had_no_attempt(
    code: str, detail: object, waits: float, autojump_clock: MockClock
) -> None:
    async with dispatching(policy=RetryPolicy(max_attempts=1)) as rig:
        worker = rig.worker()
        (task_id,) = await rig.add(task())
        await settled()
        worker.report(code=code, detail=detail)
        await settled()
        assert rig.store.claimed == ({task_id} if waits == 0 else set())
        await trio.sleep(50)
        assert [(start.at, start.attempt) for start in rig.starts] == [(0, 1), (waits, 1)]
        assert (rig.history.rows, rig.history.retrying, rig.dispatcher.counts) == ([], {}, {})


async def test_what_somebody_had_locked_starts_when_they_close_it(autojump_clock: MockClock) -> None:
    async with dispatching() as rig:
        worker = rig.worker()
        await rig.add(task())
        await settled()
        worker.report(code="locked")
        await trio.sleep(4)
        (entry,) = [entry for entry, _ in rig.store.tasks.values()]
        rig.dispatcher.changed([Change(entry.ref, entry)])
        await settled()
        assert rig.times() == [0, 4]


async def test_what_is_gone_is_forgotten_by_the_next_scan(autojump_clock: MockClock) -> None:
    async with dispatching() as rig:
        worker = rig.worker()
        (task_id,) = await rig.add(task())
        await settled()
        worker.report(code="failed")
        await trio.sleep(31)
        rig.store.tasks.clear()
        worker.report(code="gone")
        await settled()
        assert rig.dispatcher.backlog.find(task_id) is None
        assert list(rig.history.retrying) == [task_id]
        await rig.scan()
        assert rig.history.retrying == {}
        assert [row.outcome for row in rig.history.rows] == ["failed"]


async def test_what_is_no_task_is_set_aside_with_its_reason(autojump_clock: MockClock) -> None:
    async with dispatching() as rig:
        worker = rig.worker(3)
        (task_id,) = await rig.add(task())
        await trio.sleep(1)
        worker.report(code="unreadable", detail="byte 0: modifier1 is 0")
        await trio.sleep(100)
        (row,) = rig.history.rows
        assert (row.task, row.number, row.outcome, row.state, row.error, row.worker) == (
            (task_id, 1, "set_aside", "dead", "byte 0: modifier1 is 0", 3)
        )
        assert list(rig.store.aside) == [task_id]
        assert len(rig.starts) == 1


async def test_what_is_no_task_and_cannot_be_set_aside_is_looked_at_again(autojump_clock: MockClock) -> None:
    class Refusing(MemoryStore):
        async def set_aside(self, entry: Entry) -> bool:
            return False

    async with dispatching(store=Refusing()) as rig:
        rig.worker(answer=lambda claim: "unreadable")
        await rig.add(task())
        await trio.sleep(40)
        assert rig.times() == [0, 30]
        assert (rig.history.rows, rig.history.retrying) == ([], {})


async def test_a_report_of_a_task_that_is_not_running_is_dropped(autojump_clock: MockClock) -> None:
    async with dispatching() as rig:
        worker = rig.worker()
        rig.dispatcher.worker_reported(worker, [Said(Claim("x", "x"), "ok"), Said(Claim("x", "x"), "gone")])
        await settled()
        assert (rig.history.rows, rig.dispatcher.counts) == ([], {})


# Workers that die


async def test_of_a_lost_worker_suspects_have_had_an_attempt_and_the_others_not(autojump_clock: MockClock) -> None:
    async with dispatching() as rig:
        worker = rig.worker(1, capacity=3)
        ids = await rig.add(*[task() for _ in range(3)])
        await trio.sleep(2)
        worker.die("killed by signal 11 (SIGSEGV)")
        rig.worker(2, capacity=9)
        await settled()
        assert [(start.id, start.attempt) for start in rig.starts[3:]] == [(ids[1], 1), (ids[2], 1)]
        assert list(rig.dispatcher.backlog.running) == ids[1:]
        assert rig.dispatcher.backlog.scheduled == 1
        (row,) = rig.history.rows
        assert (row.task, row.number, row.outcome, row.state, row.worker) == (ids[0], 1, "lost", None, 1)
        assert (row.error, row.run_seconds) == ("killed by signal 11 (SIGSEGV)", 2)
        assert rig.dispatcher.counts == {"lost": 1}
        await trio.sleep(40)
        (again,) = rig.starts[5:]
        assert (again.id, again.attempt, again.at) == (ids[0], 2, 32)


async def test_a_task_that_took_too_long_is_a_timeout(autojump_clock: MockClock) -> None:
    async with dispatching(policy=RetryPolicy(max_attempts=1)) as rig:
        worker = rig.worker()
        (task_id,) = await rig.add(task())
        await settled()
        worker.die("harakiri: ran longer than 60 s")
        await settled()
        (row,) = rig.history.rows
        assert (row.outcome, row.state, row.error) == ("timeout", "dead", "harakiri: ran longer than 60 s")
        assert list(rig.store.aside) == [task_id]


class ByFile(MemoryStore):
    """Its claims do not carry the task, as a directory's do not."""

    async def claim(self, entries: Sequence[Entry]) -> Sequence[Claim]:
        return [claim._replace(content=None) for claim in await super().claim(entries)]


@pytest.mark.parametrize("store", [MemoryStore, ByFile])
@pytest.mark.parametrize("cause", ["killed by signal 11 (SIGSEGV)", "harakiri: ran longer than 60 s"])
async def test_a_task_that_kills_its_workers_is_given_up_as_its_handler_says(
    store: type[MemoryStore], cause: str, autojump_clock: MockClock
) -> None:
    handlers = {"h": says(retries=1, backoff=3.0)}
    async with dispatching(store=store()) as rig:
        deadly, other = await rig.add(new_task({"handler": "h"}), new_task({"handler": "nobody"}))
        for pid in range(1, 3):
            worker = rig.worker(pid, capacity=2, handlers=handlers)
            await trio.sleep(2)
            worker.die(cause, suspects=2)
            await trio.sleep(2)
        await settled()
        assert [(start.id, start.at) for start in rig.starts] == [(deadly, 0), (other, 0), (deadly, 5)]
        assert list(rig.store.aside) == [deadly]
        assert [row.handler for row in rig.history.rows] == ["h", None, "h"]


@pytest.mark.parametrize("variables", [{"n": "1"}, {"handler": "nobody"}])
async def test_a_task_that_names_no_handler_is_given_up_as_the_default_one_says(
    variables: dict[str, str], autojump_clock: MockClock
) -> None:
    async with dispatching() as rig:
        worker = rig.worker(handlers={"h": says(), "d": says(retries=0, default=True)})
        (task_id,) = await rig.add(new_task(variables))
        await settled()
        worker.die("killed by signal 11 (SIGSEGV)")
        await settled()
        assert list(rig.store.aside) == [task_id]


@pytest.mark.parametrize("code", ["failed", "retry", "timeout"])
async def test_what_a_dead_worker_could_not_tell_the_handler_of_is_read_for_it(
    code: str, autojump_clock: MockClock
) -> None:
    async with dispatching(store=ByFile()) as rig:
        worker = rig.worker(handlers={"h": says(retries=0)})
        (task_id,) = await rig.add(new_task({"handler": "h"}))
        await settled()
        worker.report(code=code)
        await settled()
        assert list(rig.store.aside) == [task_id]
        assert [row.handler for row in rig.history.rows] == ["h"]


async def test_a_suspect_counts_as_running_until_it_is_judged(autojump_clock: MockClock) -> None:
    class Slow(ByFile):
        async def get(self, ref: str, *, body_limit: int | None = None) -> Any:
            await trio.sleep(5)
            return await super().get(ref, body_limit=body_limit)

    async with dispatching(store=Slow()) as rig:
        worker = rig.worker()
        (task_id,) = await rig.add(task())
        await trio.sleep(1)
        worker.die("exited with code 3")
        rig.worker(2)
        await trio.sleep(1)
        await rig.scan()
        assert list(rig.dispatcher.backlog.running) == [task_id]
        await trio.sleep(10)
        assert rig.dispatcher.backlog.attempts(task_id) == 1
        assert len(rig.starts) == 1


async def test_a_dead_worker_is_given_nothing(autojump_clock: MockClock) -> None:
    async with dispatching() as rig:
        dead = rig.worker(1)
        dead.die("exited with code 1")
        dead.alive = True
        await rig.add(task())
        await trio.sleep(20)
        assert rig.starts == []


# Enqueuing, and the rest


class SlowAdd(MemoryStore):
    seconds = 5.0

    async def add(self, tasks: Sequence[NewTask]) -> Sequence[Entry | TrispoolError]:
        results = await super().add(tasks)
        await trio.sleep(self.seconds)
        return results


async def test_an_enqueue_whose_caller_is_gone_is_still_scheduled(autojump_clock: MockClock) -> None:
    async with dispatching(store=SlowAdd()) as rig:
        rig.worker()
        with trio.move_on_after(1) as caller:
            await rig.dispatcher.enqueue([task()])
            await trio.lowlevel.checkpoint()
        assert caller.cancelled_caught
        await settled()
        assert rig.times() == [5]


async def test_an_enqueue_does_not_wait_for_ever(autojump_clock: MockClock) -> None:
    store = SlowAdd()
    store.seconds = 1e6
    async with dispatching(store=store) as rig:
        results = await rig.dispatcher.enqueue([task(), task()])
        assert trio.current_time() == ENQUEUE_SECONDS
        assert [str(result) for result in results] == ["the disk does not answer"] * 2
        assert all(isinstance(result, SpoolUnavailable) for result in results)


async def test_what_is_kept_at_the_last_moment_is_scheduled_all_of_it(autojump_clock: MockClock) -> None:
    class LateAdd(MemoryStore):
        async def add(self, tasks: Sequence[NewTask]) -> Sequence[Entry | TrispoolError]:
            results = await super().add(tasks)
            autojump_clock.jump(ENQUEUE_SECONDS)
            return results

    async with dispatching(store=LateAdd()) as rig:
        results = await rig.dispatcher.enqueue([task()] * 1200)
        assert all(isinstance(result, Entry) for result in results)
        assert len(rig.dispatcher.backlog.schedule) == 1200


async def test_what_the_store_refuses_is_told_and_not_scheduled(autojump_clock: MockClock) -> None:
    async with dispatching() as rig:
        rig.store.unavailable = "read-only"
        (result,) = await rig.dispatcher.enqueue([task()])
        assert isinstance(result, SpoolUnavailable)
        assert (rig.dispatcher.backlog.ready, rig.dispatcher.backlog.scheduled) == (0, 0)


@pytest.mark.parametrize("code", ["ok", "retry", "failed"])
async def test_what_a_cancelled_settle_has_not_told_the_store_is_told_by_the_next(
    code: str, autojump_clock: MockClock
) -> None:
    class Slow(MemoryStore):
        seconds = 60.0

        async def finish(self, done: Sequence[Claim]) -> None:
            await trio.sleep(self.seconds)
            await super().finish(done)

        async def release(self, claims: Sequence[Claim]) -> None:
            await trio.sleep(self.seconds)
            await super().release(claims)

        async def set_aside(self, entry: Entry) -> bool:
            await trio.sleep(self.seconds)
            return await super().set_aside(entry)

    store = Slow()
    policy = RetryPolicy(max_attempts=1 if code == "failed" else 0)
    async with dispatching(store=store, policy=policy) as rig:
        worker = rig.worker()
        await rig.add(task())
        await settled()
        worker.report(code=code)
        await trio.sleep(1)
        # The service ends.
        rig.dispatcher.drain()
        assert len(store.claimed) == 1
    store.seconds = 0.0
    await rig.dispatcher.settle()
    assert store.claimed == set()
    assert len(store.tasks) == (1 if code == "retry" else 0)
    assert len(store.aside) == (1 if code == "failed" else 0)


async def test_what_comes_back_while_another_task_is_being_cancelled_is_released_before_it_is_claimed_again(
    autojump_clock: MockClock,
) -> None:
    class Slow(MemoryStore):
        seconds = 0.0

        async def claim(self, entries: Sequence[Entry]) -> Sequence[Claim]:
            await trio.sleep(self.seconds)
            return await super().claim(entries)

        async def remove(self, entry: Entry) -> Task | None:
            await trio.sleep(self.seconds)
            return await super().remove(entry)

    store = Slow()
    async with dispatching(store=store) as rig:
        one, other = rig.worker(1), rig.worker(2)
        cancelled, back = await rig.add(task(), task())
        await settled()
        running = rig.dispatcher.backlog.find(cancelled)
        assert isinstance(running, Running)
        rig.dispatcher.cancel(running, "ann")
        await settled()
        store.seconds = 2.0
        rig.worker(3)
        rig.worker(4)
        third, fourth = await rig.add(task(), task())
        await trio.sleep(1)  # the third is being claimed
        one.report(code="failed")
        await trio.sleep(2)  # the first is being removed
        other.report(code="returned")
        await trio.sleep(10)
        assert sorted(rig.started()) == sorted([cancelled, back, third, fourth, back])


async def test_progress_is_kept_while_a_task_runs(autojump_clock: MockClock) -> None:
    async with dispatching() as rig:
        worker = rig.worker()
        first, second = await rig.add(task(), task())
        await settled()
        for task_id in (first, second, "nobody"):
            rig.dispatcher.worker_progress(worker, task_id, 0.5, "half")
        running = rig.dispatcher.backlog.find(first)
        assert isinstance(running, Running)
        assert running.progress == (0.5, "half")


@pytest.mark.parametrize(("asked", "wanted"), [(5.0, 5.0), (0.0, FREQUENCY), (-1.0, FREQUENCY)])
async def test_a_handler_may_set_the_frequency(asked: float, wanted: float, autojump_clock: MockClock) -> None:
    async with dispatching() as rig:
        rig.dispatcher.worker_set_frequency(asked)
        assert rig.wanted == [wanted]


async def test_a_scan_of_very_many_tasks_that_are_gone_lets_others_run(autojump_clock: MockClock) -> None:
    class Nothing(MemoryStore):
        async def scan(self) -> AsyncGenerator[Sequence[Entry], None]:
            return
            yield []

    async with dispatching(store=Nothing()) as rig:
        await rig.add(*[task(at=BASE + 1000) for _ in range(5000)])
        rounds = 0
        ended = trio.Event()

        async def count() -> None:
            nonlocal rounds
            while not ended.is_set():
                rounds += 1
                await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(count)
            await rig.scan()
            ended.set()
        assert rounds >= 4
        assert rig.dispatcher.backlog.scheduled == 0


# Who watches


async def test_who_watches_is_told_what_becomes_of_each_task(autojump_clock: MockClock) -> None:
    async with dispatching() as rig:
        rig.figures.watch(10)
        worker = rig.worker(capacity=3)
        first, second, third = await rig.add(task(), task(), task())
        await settled()
        assert rig.figures.take_changes() == (dict.fromkeys((first, second, third), TaskState.RUNNING), 0)
        worker.report(code="ok")
        worker.report(code="failed")
        worker.report(code="not_due", detail=str(now() + 100))
        await settled()
        states = {first: TaskState.DONE, second: TaskState.SCHEDULED, third: TaskState.SCHEDULED}
        assert rig.figures.take_changes() == (states, 0)
        total = rig.figures.snapshot().all.total
        assert (total.enqueued, total.started, dict(total.outcomes)) == (3, 3, {"ok": 1, "failed": 1})


async def test_who_watches_is_told_that_a_task_waits_again_that_a_worker_did_not_begin(
    autojump_clock: MockClock,
) -> None:
    async with dispatching() as rig:
        rig.figures.watch(10)
        worker = rig.worker(capacity=2)
        _, unbegun = await rig.add(task(), task())
        await settled()
        worker.die("killed by signal 9")
        await settled()
        changes, _ = rig.figures.take_changes()
        assert changes[unbegun] is TaskState.READY


async def test_what_the_first_scan_finds_is_not_told_as_new(autojump_clock: MockClock) -> None:
    store = MemoryStore()
    await store.add([task()])
    async with dispatching(store=store) as rig:
        await rig.scan()
        assert rig.figures.snapshot().all.total.enqueued == 0
        await store.add([task()])
        await rig.scan()
        assert rig.figures.snapshot().all.total.enqueued == 1
