"""A spool that is wired together: without its workers, and with them where operators act on what runs."""

from __future__ import annotations

import contextlib
import math
import os
import random
import time
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import structlog.testing
import trio

from tests.worker_support import PATIENCE, write_handlers
from trispool.controller import Controller
from trispool.dispatcher import Dispatcher
from trispool.errors import TaskRefused
from trispool.livespool import LiveSpool, open_spool
from trispool.operating import Action, SpoolChange
from trispool.packet import new_task
from trispool.settings import SpoolSettings
from trispool.store import directory
from trispool.task import AttemptRow, Entry, TaskState

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from trio.testing import MockClock

    from tests.worker_support import Gate


def settings(path: Path, **options: Any) -> SpoolSettings:
    return SpoolSettings(name="default", directory=str(path / "spool"), durability="os", **options)


async def test_very_many_tasks_are_enqueued_in_parts_and_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directory, "ROWS_A_CALL", 7)
    sizes: list[int] = []
    real = Dispatcher.enqueue

    async def enqueue(self: Dispatcher, tasks: Any) -> Any:
        sizes.append(len(tasks))
        return await real(self, tasks)

    monkeypatch.setattr(Dispatcher, "enqueue", enqueue)
    with trio.fail_after(10):
        async with open_spool(settings(tmp_path), []) as spool:
            results = await spool.enqueue([new_task({"n": str(number)}) for number in range(20)])
            assert sizes == [7, 7, 6]
            for number, entry in enumerate(results):
                assert isinstance(entry, Entry)
                task = await spool.store.get(entry.ref)
                assert task is not None
                assert task.vars[b"n"] == b"%d" % number
            assert spool.status().ready == 20
            assert await spool.enqueue([]) == []


async def test_of_very_many_tasks_those_before_a_cancellation_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directory, "ROWS_A_CALL", 5)
    with trio.fail_after(10):
        async with open_spool(settings(tmp_path), []) as spool:
            real = spool.store.add
            with trio.CancelScope() as scope:

                async def add(tasks: Any) -> Any:
                    scope.cancel()
                    return await real(tasks)

                monkeypatch.setattr(spool.store, "add", add)
                await spool.enqueue([new_task({"n": "1"}) for _ in range(20)])
            assert scope.cancelled_caught
            assert spool.status().ready == 5
            assert len([entry async for chunk in spool.store.scan() for entry in chunk]) == spool.status().ready


# Settings


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (SpoolChange(frequency=0.001), "frequency=0.001: 0.01 seconds or more are expected"),
        (SpoolChange(frequency=math.nan), "frequency=nan"),
        (SpoolChange(frequency=math.inf), "frequency=inf"),
        (SpoolChange(frequency=-1.0), "frequency=-1.0"),
        (SpoolChange(processes=0), "processes=0: a number from 1 to 1000 is expected"),
        (SpoolChange(processes=1001), "processes=1001"),
        (SpoolChange(frequency=5.0, paused=True, processes=-1), "processes=-1"),
        (SpoolChange(frequency=0.0, paused=True, processes=3), "frequency=0.0"),
    ],
)
async def test_settings_are_changed_all_or_none(change: SpoolChange, problem: str, tmp_path: Path) -> None:
    async with open_spool(settings(tmp_path), []) as spool:
        before = spool.status()
        with pytest.raises(TaskRefused, match=problem) as refusal:
            spool.change(change)
        assert refusal.value.status == 400
        assert spool.status() == before


async def test_settings_that_are_not_given_stay_and_the_configuration_is_told_beside_them(tmp_path: Path) -> None:
    async with open_spool(settings(tmp_path, frequency=30.0, processes=2), []) as spool:
        for change, expected in [
            (SpoolChange(), (30.0, False, 2)),
            (SpoolChange(frequency=0.01), (0.01, False, 2)),
            (SpoolChange(paused=True), (0.01, True, 2)),
            (SpoolChange(processes=5), (0.01, True, 5)),
            (SpoolChange(frequency=7.0, paused=False, processes=1), (7.0, False, 1)),
        ]:
            spool.change(change)
            status = spool.status()
            assert (status.frequency, status.paused, status.processes) == expected
            assert status.configured == {"frequency": 30.0, "processes": 2, "paused": False}


async def test_a_spool_whose_tasks_others_run_gets_no_workers(tmp_path: Path) -> None:
    async with open_spool(settings(tmp_path, external=True, processes=0), []) as spool:
        with pytest.raises(TaskRefused, match="the spool is external"):
            spool.change(SpoolChange(processes=1))
        spool.change(SpoolChange(frequency=5.0))


# What lies aside


async def test_nothing_is_waited_for_where_no_worker_could_begin(tmp_path: Path, autojump_clock: MockClock) -> None:
    async def has_caught_up(processes: int) -> bool:
        async with open_spool(settings(tmp_path, processes=processes), []) as spool:
            with trio.move_on_after(1) as waiting:
                await spool.wait_caught_up()
            return not waiting.cancelled_caught

    assert [await has_caught_up(processes) for processes in (1, 0)] == [False, True]


async def test_status_counts_what_is_held_and_dead_without_looking(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with trio.fail_after(PATIENCE):
        async with open_spool(settings(tmp_path), []) as spool:
            added = [entry for entry in await spool.enqueue([new_task({"n": "1"})] * 5) if isinstance(entry, Entry)]
            for entry in added[:2]:
                await spool.act(entry.id, Action.HOLD, "somebody")
            for entry in added[2:3]:
                assert await spool.store.set_aside(entry)
            with monkeypatch.context() as patched:
                patched.setattr(os, "scandir", None)
                patched.setattr(os, "stat", None)
                status = spool.status()
            assert (status.held, status.dead) == (2, 1)


async def test_what_lies_aside_is_shown_with_how_its_last_attempt_ended(tmp_path: Path) -> None:
    with trio.fail_after(PATIENCE):
        async with open_spool(settings(tmp_path), []) as spool:
            results = await spool.enqueue([new_task({"n": "1"}, b"body", priority=5), new_task({"n": "2"}, priority=6)])
            dead, held = [entry for entry in results if isinstance(entry, Entry)]
            for entry, state in ((dead, "dead"), (held, None)):
                row = AttemptRow(
                    entry.id, 3, "failed", state, 1.0, 0.0, 0.5, 1, "h", "it broke", None, *entry[2:4], 0.0
                )
                spool.ledger.record(row._replace(enqueued_at=entry.order[0] / 1e6))
            assert await spool.store.set_aside(dead)
            spool.backlog.gone(dead.ref)
            await spool.act(held.id, Action.HOLD, "somebody")
            control = Controller([spool], SimpleNamespace(once=None), None, None)  # type: ignore[arg-type]
            detail = await control.task(dead.id)
            assert (detail.summary.state, detail.summary.priority) == (TaskState.DEAD, 5)
            assert (detail.summary.attempts, detail.summary.last_error) == (3, "it broke")
            assert (detail.summary.handler, detail.summary.finished_at) == ("h", 1.5)
            assert (detail.vars, detail.body) == ({b"n": b"1", b"priority": b"5"}, b"body")
            detail = await control.task(held.id)
            assert (detail.summary.state, detail.summary.priority) == (TaskState.HELD, 6)
            assert (detail.summary.attempts, detail.summary.handler) == (3, "h")
            assert [attempt.outcome for attempt in detail.attempts] == ["failed", "held"]


async def test_holds_outlive_the_service_and_are_counted_when_it_runs(tmp_path: Path) -> None:
    with trio.fail_after(PATIENCE):
        async with open_spool(settings(tmp_path), []) as spool:
            (entry,) = await spool.enqueue([new_task({"n": "1"})])
            assert isinstance(entry, Entry)
            await spool.act(entry.id, Action.HOLD, "somebody")
        async with running(settings(tmp_path)) as spool:
            await spool.store.held()
            assert (spool.status().held, spool.status().ready) == (1, 0)
            found = await spool.find_task(entry.id)
            assert found is not None
            assert found.summary.state is TaskState.HELD
            assert await spool.find_task("unknown") is None
            assert await spool.act("unknown", Action.HOLD, "somebody") is None


async def test_why_nothing_was_kept_is_told_until_something_is(tmp_path: Path) -> None:
    with trio.fail_after(PATIENCE):
        async with open_spool(settings(tmp_path), []) as spool:
            (tmp_path / "spool").rename(tmp_path / "away")
            await spool.enqueue([new_task({"n": "1"})])
            assert "No such file" in (spool.status().refusing or "")
            (tmp_path / "away").rename(tmp_path / "spool")
            await spool.enqueue([new_task({"n": "1"})])
            assert spool.status().refusing is None


async def test_that_nothing_is_kept_is_logged_once_and_so_is_its_end(tmp_path: Path) -> None:
    with trio.fail_after(PATIENCE), structlog.testing.capture_logs() as lines:
        async with open_spool(settings(tmp_path), []) as spool:
            (tmp_path / "spool").rename(tmp_path / "away")
            for _ in range(3):
                await spool.enqueue([new_task({"n": "1"})])
            (tmp_path / "away").rename(tmp_path / "spool")
            for _ in range(3):
                await spool.enqueue([new_task({"n": "1"})])
    told = [(line["log_level"], line["event"]) for line in lines if "kept" in line["event"]]
    assert told == [("error", "tasks_not_kept"), ("info", "tasks_kept_again")]


async def test_a_spool_counts_what_happens_in_it(tmp_path: Path) -> None:
    with trio.fail_after(PATIENCE):
        async with open_spool(settings(tmp_path), []) as spool, trio.open_nursery() as nursery:
            await spool.enqueue([new_task({"n": str(number)}) for number in range(3)])
            await nursery.start(spool.find)
            figures = spool.figures.snapshot()
            assert figures.all.total.enqueued == 3
            assert (figures.commits.count, figures.scans.count) == (1, 1)
            nursery.cancel_scope.cancel()


# What runs

HANDLERS = """
import trio
from trispool import handler

def begun(fifo):
    with open(fifo, "wb", 0) as told:
        told.write(b"x")

@handler
def waits(fifo: str, gate: str):
    begun(fifo)
    wait_for(gate)

@handler
def quick(): ...
"""

ASYNC_HANDLERS = """
@handler
async def sleeps(fifo: str):
    begun(fifo)
    await trio.sleep_forever()

@handler
async def is_stubborn(fifo: str):
    begun(fifo)
    with trio.CancelScope(shield=True):
        await trio.sleep_forever()
"""


class Notes:
    """How tasks ended, which can be waited for."""

    def __init__(self, spool: LiveSpool, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ends: list[tuple[str, str, TaskState]] = []
        self._changed = trio.Event()
        self._count = spool.figures.ended
        monkeypatch.setattr(spool.figures, "ended", self._ended)

    def _ended(self, rows: Sequence[AttemptRow], state: TaskState) -> None:
        self._count(rows, state)
        self.ends += [(row.task, row.outcome, state) for row in rows]
        self._changed.set()

    async def until(self, *end: object) -> None:
        while end not in self.ends:
            self._changed = trio.Event()
            await self._changed.wait()


@asynccontextmanager
async def running(settings: SpoolSettings) -> AsyncIterator[LiveSpool]:
    with trio.fail_after(PATIENCE):
        async with open_spool(settings, []) as spool, trio.open_nursery() as nursery:
            await nursery.start(spool.run)
            await nursery.start(spool.find)
            yield spool
            nursery.cancel_scope.cancel()


class Fifo:
    """By which a handler says that it has begun."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self.path = str(path)
        self._fd = os.open(path, os.O_RDWR | os.O_NONBLOCK)

    async def wait(self) -> None:
        await trio.lowlevel.wait_readable(self._fd)
        os.read(self._fd, 1)

    def close(self) -> None:
        os.close(self._fd)


async def add(spool: LiveSpool, *tasks: dict[str, str]) -> list[str]:
    results: Sequence[Any] = await spool.enqueue([new_task(vars) for vars in tasks])
    return [entry.id for entry in results]


async def test_a_running_sync_task_is_cancelled_and_what_waits_behind_it_runs(
    tmp_path: Path, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    fifo = Fifo(tmp_path / "begun")
    imports = (write_handlers(tmp_path, HANDLERS),)
    async with running(settings(tmp_path, imports=imports, processes=1)) as spool:
        notes = Notes(spool, monkeypatch)
        first, second = await add(
            spool, {"handler": "waits", "fifo": fifo.path, "gate": str(gate.path)}, {"handler": "quick"}
        )
        await fifo.wait()
        summary = await spool.act(first, Action.CANCEL, "somebody")
        assert summary is not None
        assert (summary.state, summary.last_error) == (TaskState.CANCELLED, "by somebody")
        await notes.until(second, "ok", TaskState.DONE)
        assert notes.ends[0] == (first, "cancelled", TaskState.CANCELLED)
        known = await spool.ledger.history(first)
        assert known is not None
        assert [attempt.outcome for attempt in known.attempts] == ["cancelled"]
        assert (known.vars or {})[b"handler"] == b"waits"
        await spool.scan_now()
        assert [entry async for chunk in spool.store.scan() for entry in chunk] == []
        assert spool.status().finished == {"cancelled": 1, "ok": 1}
    fifo.close()


@pytest.mark.parametrize("handler", ["sleeps", "is_stubborn"])
async def test_a_running_async_task_is_cancelled_alone(
    handler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trispool.workerproc.GIVE_WAY_SECONDS", 0.3)
    fifo = Fifo(tmp_path / "begun")
    imports = (write_handlers(tmp_path, HANDLERS + ASYNC_HANDLERS),)
    async with running(settings(tmp_path, imports=imports, processes=1)) as spool:
        notes = Notes(spool, monkeypatch)
        first, other = await add(
            spool, {"handler": handler, "fifo": fifo.path}, {"handler": "sleeps", "fifo": fifo.path}
        )
        await fifo.wait()
        await fifo.wait()
        before = spool.status().workers[0].pid
        summary = await spool.act(first, Action.CANCEL, "somebody")
        assert summary is not None
        assert summary.state is TaskState.CANCELLED
        if handler == "is_stubborn":
            await fifo.wait()  # the other one runs again, as its worker was killed
        else:
            assert [worker.pid for worker in spool.status().workers] == [before]
        found = await spool.find_task(other)
        assert found is not None
        assert (found.summary.state, found.summary.attempts) == (TaskState.RUNNING, 1)
        assert notes.ends == [(first, "cancelled", TaskState.CANCELLED)]
    fifo.close()


LOGGING = """
import os
from trispool import handler, Task

@handler
def tells(task: Task, log: str):
    fd = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, task.id.encode() + b"\\n")
    os.close(fd)
"""


async def test_whatever_operators_do_each_task_runs_once_or_is_cancelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log"
    log.touch()
    rng = random.Random(3)
    options = {"imports": (write_handlers(tmp_path, LOGGING),), "processes": 2, "frequency": 0.05}
    async with running(settings(tmp_path, **options)) as spool:
        notes = Notes(spool, monkeypatch)
        ids: list[str] = []
        cancelled: set[str] = set()

        async def produce() -> None:
            for _ in range(40):
                soon = time.time() + 0.1
                new = [new_task({"handler": "tells", "log": str(log)}, at=rng.choice([None, soon])) for _ in range(10)]
                ids.extend(entry.id for entry in await spool.enqueue(new) if isinstance(entry, Entry))

        async def operate() -> None:
            for _ in range(200):
                task_id, action = rng.choice(ids[-20:]), rng.choice([*Action])
                with contextlib.suppress(TaskRefused):
                    summary = await spool.act(task_id, action, "somebody", time.time() + rng.choice([-1, 0.1]))
                    assert summary is not None
                    if summary.state is TaskState.CANCELLED:
                        cancelled.add(task_id)

        ids += await add(spool, {"handler": "tells", "log": str(log)})
        async with trio.open_nursery() as nursery:
            nursery.start_soon(produce)
            for _ in range(3):
                nursery.start_soon(operate)
        for entry in await spool.store.held():
            await spool.act(entry.id, Action.RELEASE, "somebody")
        for task_id in set(ids) - cancelled:
            await notes.until(task_id, "ok", TaskState.DONE)
        ran = log.read_text().split()
        assert len(ran) == len(set(ran))
        assert set(ids) - cancelled <= set(ran)
        for task_id in cancelled & set(ran):
            # It had just told when its worker was killed.
            known = await spool.ledger.history(task_id)
            assert known is not None
            assert known.attempts[-1].number == 1
        assert len(ids) == 401
        assert [entry async for chunk in spool.store.scan() for entry in chunk] == []
