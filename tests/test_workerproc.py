"""The handle of a worker process without a process: the test writes the board, as a worker would, and the clock."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any, cast

import pytest

from tests.pool_support import Recorder, claim, recorder
from trispool import workerproc
from trispool.pace import Pace
from trispool.worker.board import BEGUN, HELD, MARKS, TOLD, Board
from trispool.worker.frames import Done, Ready, Setup
from trispool.workerlink import Report
from trispool.workerproc import GIVE_WAY_SECONDS, WorkerProcess

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["recorder"]


class Link:
    """What a `WorkerLink` is to its worker: remembers what is sent, and why it was killed."""

    def __init__(self, board: Board) -> None:
        self.board = board
        self.pid = 4711
        self.alive = True
        self.is_quitting = False
        self.cause: str | None = None
        self.sent: list[tuple[Any, ...]] = []

    def send(self, message: tuple[Any, ...]) -> None:
        self.sent.append(message)

    def kill(self, cause: str) -> None:
        self.cause = self.cause or cause


class Keeper:
    def worker_is_busy(self) -> None: ...
    def worker_has_started(self) -> None: ...
    def worker_is_ready(self) -> None: ...


class Driven:
    """A worker that is ready, with its board."""

    def __init__(self, recorder: Recorder, board: Board, *, is_async: bool) -> None:
        self.recorder = recorder
        self.board = board
        self.link = Link(board)
        self.pace = Pace()
        self.pace.measured(0.001, 1000)
        self.worker = WorkerProcess(Setup(), recorder, self.pace, Keeper())
        self.worker._link = cast("Any", self.link)
        self.worker._hand.board = board
        self.worker._take(Ready(is_async, {}))
        self.now = time.monotonic()

    def give(self, *ids: str) -> None:
        self.recorder.give(self.worker, *(claim(task_id) for task_id in ids))

    def run(self, number: int, since: float = 0.0) -> None:
        """The worker's interpreter is with this task."""
        self.board.begin(number, self.now - since, 0.0)

    def look(self, seconds: float = 0.0) -> None:
        """So much time goes by, and the pool has it look at the board."""
        self.now += seconds
        self.worker.watch(self.now)

    def report(self, *reports: Report) -> None:
        self.worker._take(Done(list(reports)))

    def die(self) -> None:
        self.link.alive = False
        self.worker._settle()


@pytest.fixture
def board() -> Iterator[Board]:
    fd = Board.create_memory(256)
    made = Board(fd, 256)
    os.close(fd)
    yield made
    made.close()


@pytest.fixture
def sync_(recorder: Recorder, board: Board) -> Driven:
    return Driven(recorder, board, is_async=False)


@pytest.fixture
def async_(recorder: Recorder, board: Board) -> Driven:
    return Driven(recorder, board, is_async=True)


# Sync workers


async def test_what_would_take_long_is_taken_back_when_tasks_are_slower_than_was_thought(sync_: Driven) -> None:
    def end(number: int) -> None:
        sync_.board.mark(number, MARKS["ok"])
        sync_.report(Report(number, "ok", 1.0, 0.0015))
        sync_.now += 0.5
        sync_.run(number + 1)  # only just
        sync_.look()

    sync_.give(*(f"t{number}" for number in range(1, 101)))
    end(1)
    assert sync_.recorder.back() == [], "the other 99 will take 19 ms, it seems"
    end(2)
    assert sync_.recorder.back() == [], "34 ms; but it may have been the machine"
    end(3)
    assert sync_.recorder.back() == sorted(f"t{number}" for number in range(5, 101))
    assert sync_.worker.in_hand == 1, "what runs goes on"


async def test_worker_is_killed_only_when_the_recall_has_settled(sync_: Driven) -> None:
    sync_.give("a", "b")
    sync_.run(1)
    assert sync_.worker.cancel("a")
    assert sync_.board.is_recalled(2)
    sync_.look()
    assert sync_.link.cause is None
    sync_.look(0.5)
    assert sync_.recorder.codes() == {"b": "returned"}
    assert sync_.link.cause == workerproc.CANCELLED
    sync_.die()
    assert (sync_.recorder.suspects, sync_.recorder.returned) == (["a"], [])
    assert sync_.worker.was_ended


async def test_worker_is_not_killed_when_the_task_has_ended_and_is_not_yet_reported(sync_: Driven) -> None:
    sync_.give("a")
    sync_.run(1)
    sync_.board.mark(1, MARKS["failed"])
    assert sync_.worker.cancel("a")
    assert sync_.worker.room == 0
    sync_.look(1)
    sync_.look(1)
    assert sync_.link.cause is None
    sync_.report(Report(1, "failed"))
    assert sync_.recorder.codes() == {"a": "failed"}
    assert sync_.worker.room > 0


async def test_worker_is_not_killed_when_the_task_was_taken_back(sync_: Driven) -> None:
    sync_.give("a", "b")
    sync_.run(1)
    assert sync_.worker.cancel("b")
    sync_.look(0.5)
    assert sync_.recorder.codes() == {"b": "returned"}
    assert not sync_.worker.cancel("b")
    sync_.look(0.5)
    sync_.look(10 * GIVE_WAY_SECONDS)
    assert sync_.link.cause is None


async def test_task_that_ended_at_the_last_moment_is_told_as_it_ended(sync_: Driven) -> None:
    sync_.give("a")
    sync_.run(1)
    assert sync_.worker.cancel("a")
    sync_.look(0.5)
    sync_.board.mark(1, MARKS["ok"])
    sync_.die()
    assert (sync_.recorder.codes(), sync_.recorder.suspects) == ({"a": "ok"}, [])


async def test_cause_of_death_stays_when_it_was_already_being_killed(sync_: Driven) -> None:
    sync_.give("a")
    sync_.run(1)
    assert sync_.worker.cancel("a")
    sync_.worker.kill("killed: the service ends")
    sync_.look(0.5)
    sync_.die()
    assert sync_.link.cause == "killed: the service ends"
    assert (sync_.recorder.suspects, sync_.recorder.returned) == ([], ["a"])


async def test_employer_is_told_of_new_room_when_only_recalled_tasks_are_answered(sync_: Driven) -> None:
    sync_.pace.measured(100.0, 100)
    sync_.give("a")
    sync_.worker.recall()
    sync_.look(0.5)
    assert sync_.recorder.codes() == {"a": "returned"}
    assert sync_.worker.room == 0
    told: list[int] = []
    sync_.recorder.on_report = lambda worker: told.append(worker.room)
    sync_.report(Report(1, "returned"))
    assert told == [1]


# Async workers


async def test_worker_is_told_once_when_a_task_is_cancelled_twice(async_: Driven) -> None:
    async_.give("a")
    async_.board.mark(1, BEGUN)
    async_.link.sent.clear()
    assert async_.worker.cancel("a")
    assert async_.worker.cancel("a")
    assert async_.link.sent == [("cancel", 1)]


async def test_worker_is_killed_when_a_cancelled_handler_has_not_given_way_in_time(async_: Driven) -> None:
    async_.give("a", "b")
    async_.board.mark(1, BEGUN)
    async_.board.mark(2, BEGUN)
    assert async_.worker.cancel("a")
    async_.board.mark(1, TOLD)
    async_.look(GIVE_WAY_SECONDS - 0.1)
    assert async_.link.cause is None
    async_.look(0.2)
    assert async_.link.cause == workerproc.CANCELLED
    async_.die()
    assert (async_.recorder.suspects, async_.recorder.returned) == (["a"], ["b"])


async def test_worker_is_killed_when_a_cancelled_handler_was_told_though_another_holds_the_loop(async_: Driven) -> None:
    async_.give("a", "b")
    async_.board.mark(1, BEGUN)
    assert async_.worker.cancel("a")
    async_.board.mark(1, TOLD)
    async_.board.mark(2, BEGUN)
    async_.run(2)
    async_.look(GIVE_WAY_SECONDS + 0.1)
    assert async_.link.cause == workerproc.CANCELLED


async def test_time_to_give_way_begins_when_the_one_that_holds_the_loop_lets_go(async_: Driven) -> None:
    async_.give("a", "b")
    async_.board.mark(1, BEGUN)
    async_.board.mark(2, BEGUN)
    async_.run(2)
    assert async_.worker.cancel("a")
    async_.look(10 * GIVE_WAY_SECONDS)
    async_.board.end()
    async_.look(GIVE_WAY_SECONDS - 0.1)
    assert async_.link.cause is None
    async_.look(0.2)
    assert async_.link.cause == workerproc.CANCELLED


async def test_worker_is_not_killed_for_a_task_that_only_waits(async_: Driven) -> None:
    async_.give("a")
    async_.board.mark(1, HELD)
    assert async_.worker.cancel("a")
    async_.look(10 * GIVE_WAY_SECONDS)
    assert async_.link.cause is None


async def test_worker_is_not_killed_later_when_the_cancelled_task_has_ended(async_: Driven) -> None:
    async_.give("a")
    async_.board.mark(1, BEGUN)
    assert async_.worker.cancel("a")
    async_.board.mark(1, MARKS["cancelled"])
    async_.report(Report(1, "cancelled"))
    async_.give(*(f"t{number}" for number in range(60)))
    for number in range(2, 62):
        async_.board.mark(number, BEGUN)
    async_.board.mark(1, BEGUN)  # of a later task that has the same place on the board
    async_.look(10 * GIVE_WAY_SECONDS)
    assert async_.link.cause is None
