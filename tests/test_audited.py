"""What the audit log knows of each change: `Controller` with a real log, and a spool that does as it is told."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
import trio

from trispool.actions import Found
from trispool.control import TaskSummary, WorkerStatus
from trispool.controller import Controller
from trispool.errors import SpoolUnavailable, TaskNotFound, TaskRefused
from trispool.events import EventHub
from trispool.operating import Action, Actor, AuditRow, BulkRequest, SpoolChange
from trispool.state import open_state
from trispool.task import TaskState

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

ANNA = Actor("anna", "operate", "10.0.0.1")
ORDER = BulkRequest(Action.CANCEL, ids=["t1", "t2"])


class PlainSpool:
    """Has one task and one worker. Frequencies of 0 are refused, and scans after `is_broken`."""

    name = "default"
    store = SimpleNamespace(directory=None)

    def __init__(self) -> None:
        self.frequency = 30.0
        self.is_broken = False
        self.task = TaskSummary("t", "default", TaskState.READY, 1.0, None, 1.0)

    def status(self) -> Any:
        worker = WorkerStatus(7, "idle")
        return SimpleNamespace(frequency=self.frequency, workers=[worker], configured={"frequency": 30.0})

    def change(self, change: SpoolChange) -> None:
        if not change.frequency:
            raise TaskRefused("frequency=0")
        self.frequency = change.frequency

    async def scan_now(self) -> None:
        if self.is_broken:
            raise SpoolUnavailable("no disk")

    def restart_worker(self, pid: int, *, kill: bool = False) -> bool:
        return True

    async def find_task(self, task_id: str) -> Found | None:
        return Found(self.task, None) if task_id == "t" else None

    async def act(self, task_id: str, action: Action, by: str, at: float | None = None) -> TaskSummary:
        if action is Action.RETRY:
            raise TaskRefused("it is held", status=409)
        return replace(self.task, state=TaskState.HELD)


class SlowSpool:
    """Knows no task, and takes until `found` to say so."""

    name = "default"
    store = SimpleNamespace(directory=None)

    def __init__(self) -> None:
        self.found = trio.Event()
        self.asked = trio.Event()

    async def act(self, task_id: str, action: Action, by: str, at: float | None = None) -> None:
        self.asked.set()
        await self.found.wait()


@asynccontextmanager
async def controlled(path: Path, spool: PlainSpool | SlowSpool) -> AsyncIterator[Controller]:
    with trio.fail_after(20):
        async with open_state(path) as state, trio.open_nursery() as nursery:
            control = Controller([cast("Any", spool)], state, EventHub({}, lambda _: {}), cast("Any", None))
            await nursery.start(control.bulk_runs.run_bulk)
            yield control
            nursery.cancel_scope.cancel()


async def rows_of(control: Controller) -> list[AuditRow]:
    return list(reversed((await control.audit()).rows))


async def test_changes_and_refused_ones_are_there_with_who_what_before_and_after(tmp_path: Path) -> None:
    spool = PlainSpool()
    async with controlled(tmp_path, spool) as control:
        await control.change_spool("default", SpoolChange(frequency=5.0), ANNA)
        await control.scan("default", ANNA)
        await control.restart_worker(7, ANNA, kill=True)
        await control.act("t", Action.HOLD, ANNA)
        await control.act("t", Action.RUN, ANNA)
        rows = await rows_of(control)
        assert {(row.actor, row.role, row.address, row.outcome) for row in rows} == {
            ("anna", "operate", "10.0.0.1", "ok")
        }
        assert [(row.action, row.target) for row in rows] == [
            ("spool.change", "default"),
            ("spool.scan", "default"),
            ("worker.restart", "7"),
            ("task.hold", "t"),
            ("task.run", "t"),
        ]
        assert [(row.before, row.after) for row in (rows[0], *rows[3:])] == [
            ({"frequency": 30.0}, {"frequency": 5.0}),
            ({"state": "ready"}, {"state": "held"}),
            ({"state": "ready", "at": 1.0}, {"state": "held", "at": 1.0}),
        ]
        assert (cast("Any", rows[2].before)["state"], rows[2].after) == ("idle", {"kill": True})

        spool.is_broken = True
        with pytest.raises(TaskRefused):
            await control.change_spool("default", SpoolChange(frequency=0.0), ANNA)
        with pytest.raises(SpoolUnavailable):
            await control.scan("default", ANNA)
        with pytest.raises(TaskRefused):
            await control.restart_worker(8, ANNA)
        with pytest.raises(TaskRefused):
            await control.act("t", Action.RETRY, ANNA)
        with pytest.raises(TaskNotFound):
            await control.act("u", Action.HOLD, ANNA)
        with pytest.raises(TaskRefused):
            await control.stop_bulk("none", ANNA)
        assert [(row.action, row.target, row.outcome) for row in (await rows_of(control))[5:]] == [
            ("spool.change", "default", "frequency=0"),
            ("spool.scan", "default", "no disk"),
            ("worker.restart", "8", "there is no such worker"),
            ("task.retry", "t", "it is held"),
            ("task.hold", "u", "there is no task 'u'"),
            ("bulk.stop", "none", "there is no bulk action 'none'"),
        ]


async def test_the_end_of_a_bulk_action_is_there_also_if_its_caller_has_gone(tmp_path: Path) -> None:
    spool = SlowSpool()
    async with controlled(tmp_path, spool) as control:
        async with trio.open_nursery() as caller:
            caller.start_soon(control.start_bulk, ORDER, ANNA)
            await spool.asked.wait()
            caller.cancel_scope.cancel()
        [begun] = await rows_of(control)
        assert (begun.action, begun.before) == ("tasks.cancel", {"ids": 2, "filter": None, "at": None})
        spool.found.set()
        while len(rows := await rows_of(control)) < 2:
            await trio.lowlevel.checkpoint()
        ended = cast("Any", rows[1])
        assert (ended.actor, ended.action, ended.target) == ("anna", "bulk.end", ended.after["id"])
        assert (ended.after["state"], ended.after["done"], ended.after["refused"]) == ("finished", 0, 2)


async def test_a_bulk_action_that_ends_at_once_is_one_row(tmp_path: Path) -> None:
    spool = SlowSpool()
    spool.found.set()
    async with controlled(tmp_path, spool) as control:
        await control.start_bulk(ORDER, ANNA)
        [row] = await rows_of(control)
        assert (row.action, cast("Any", row.after)["state"]) == ("tasks.cancel", "finished")
