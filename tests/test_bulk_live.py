"""Bulk actions on a real spool whose tasks wait and run, and the restart of its workers."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
import trio

from tests.test_livespool import HANDLERS, Fifo, Notes, add, running, settings
from tests.worker_support import PATIENCE, write_handlers
from trispool.bulk import BulkRuns
from trispool.errors import TaskNotFound
from trispool.listing import select_tasks
from trispool.operating import Action, Actor, BulkRequest, BulkStatus, SpoolChange, TaskFilter
from trispool.packet import new_task
from trispool.task import Entry, TaskState

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Collection, Iterator, Sequence
    from pathlib import Path

    from tests.worker_support import Gate
    from trispool.control import TaskSummary
    from trispool.livespool import LiveSpool
    from trispool.settings import SpoolSettings

ANNA = Actor("anna")


class Tasks:
    """Those of one spool."""

    def __init__(self, spool: LiveSpool) -> None:
        self.spool = spool

    def select(
        self, wanted: TaskFilter, states: Collection[TaskState], /
    ) -> AsyncGenerator[Sequence[TaskSummary], None]:
        return select_tasks([self.spool], wanted, states)

    async def summary(self, task_id: str, /) -> TaskSummary:
        found = await self.spool.find_task(task_id)
        if found is None:
            raise TaskNotFound
        return found.summary

    async def act(self, task_id: str, action: Action, actor: Actor, /, *, at: float | None) -> TaskSummary:
        summary = await self.spool.act(task_id, action, actor.name, at)
        if summary is None:
            raise TaskNotFound
        return summary


@pytest.fixture
def fifo(tmp_path: Path) -> Iterator[Fifo]:
    made = Fifo(tmp_path / "begun")
    yield made
    made.close()


@pytest.fixture
def two_workers(tmp_path: Path) -> SpoolSettings:
    return settings(tmp_path, imports=(write_handlers(tmp_path, HANDLERS),), processes=2)


async def finished(spool: LiveSpool, request: BulkRequest) -> BulkStatus:
    """Carry out a bulk action."""
    runs = BulkRuns(Tasks(spool))
    async with trio.open_nursery() as nursery:
        await nursery.start(runs.run_bulk)
        status = await runs.start_bulk(request, ANNA)
        while status.state == "running":
            await trio.sleep(0.01)
            status = runs.bulk(status.id).status
        nursery.cancel_scope.cancel()
    return status


async def test_all_that_a_filter_means_are_cancelled_whatever_they_do(
    two_workers: SpoolSettings, fifo: Fifo, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = {"handler": "waits", "fifo": fifo.path, "gate": str(gate.path)}
    async with running(two_workers) as spool:
        notes = Notes(spool, monkeypatch)
        ids = await add(spool, *[waits] * 5)
        await fifo.wait()
        await fifo.wait()
        later = await spool.enqueue([new_task(waits, at=time.time() + 1000) for _ in range(3)])
        ids += [entry.id for entry in later if isinstance(entry, Entry)]
        await spool.act(ids[-1], Action.HOLD, "anna")
        status = await finished(spool, BulkRequest(Action.CANCEL, filter=TaskFilter(spool="default")))
        assert (status.state, status.total, status.done, status.refused) == ("finished", 8, 8, 0)
        for task_id in ids:
            found = await spool.find_task(task_id)
            assert found is not None
            assert (found.summary.state, found.entry) == (TaskState.CANCELLED, None)
        assert [entry async for chunk in spool.store.scan() for entry in chunk] == []
        assert spool.status().held == 0
        (quick,) = await add(spool, {"handler": "quick"})
        await notes.until(quick, "ok", TaskState.DONE)
        assert {end for task_id, end, _ in notes.ends if task_id in ids} <= {"cancelled"}


async def test_tasks_run_when_those_that_were_held_together_are_released_together(
    two_workers: SpoolSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(two_workers) as spool:
        notes = Notes(spool, monkeypatch)
        spool.change(SpoolChange(paused=True))
        ids = await add(spool, *[{"handler": "quick"}] * 300)
        held = await finished(spool, BulkRequest(Action.HOLD, filter=TaskFilter(state=TaskState.READY)))
        assert (held.total, held.done) == (300, 300)
        spool.change(SpoolChange(paused=False))
        assert (spool.status().ready, spool.status().held) == (0, 300)
        released = await finished(spool, BulkRequest(Action.RELEASE, ids=ids))
        assert (released.total, released.done) == (300, 300)
        for task_id in ids:
            await notes.until(task_id, "ok", TaskState.DONE)
        assert spool.status().held == 0


# Restarting workers


async def test_task_runs_again_when_its_worker_is_restarted_by_force(
    two_workers: SpoolSettings, fifo: Fifo, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(two_workers) as spool:
        notes = Notes(spool, monkeypatch)
        (task_id,) = await add(spool, {"handler": "waits", "fifo": fifo.path, "gate": str(gate.path)})
        await fifo.wait()
        (busy,) = [worker for worker in spool.status().workers if worker.task_id == task_id]
        assert spool.restart_worker(busy.pid, kill=True)
        await fifo.wait()
        assert busy.pid not in [worker.pid for worker in spool.status().workers]
        found = await spool.find_task(task_id)
        assert found is not None
        assert (found.summary.state, found.summary.attempts) == (TaskState.RUNNING, 1)
        assert notes.ends == []
        gate.open()
        await notes.until(task_id, "ok", TaskState.DONE)


async def test_task_is_finished_first_when_its_worker_is_restarted(
    two_workers: SpoolSettings, fifo: Fifo, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(two_workers) as spool:
        notes = Notes(spool, monkeypatch)
        (task_id,) = await add(spool, {"handler": "waits", "fifo": fifo.path, "gate": str(gate.path)})
        await fifo.wait()
        (busy,) = [worker for worker in spool.status().workers if worker.task_id == task_id]
        assert spool.restart_worker(busy.pid)
        (quitting,) = [worker for worker in spool.status().workers if worker.pid == busy.pid]
        assert (quitting.state, quitting.task_id) == ("quitting", task_id)
        gate.open()
        await notes.until(task_id, "ok", TaskState.DONE)

        def is_replaced() -> bool:
            pids = [worker.pid for worker in spool.status().workers]
            return busy.pid not in pids and len(pids) == 2

        with trio.fail_after(PATIENCE):
            while not is_replaced():  # noqa: ASYNC110 # the pool has no event for it
                await trio.sleep(0.01)
        assert not spool.restart_worker(busy.pid)
