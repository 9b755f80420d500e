"""What the audit log knows of bulk actions: `Controller` with a real log, and a spool that takes its time."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
import trio

from trispool.controller import Controller
from trispool.errors import TaskRefused
from trispool.events import EventHub
from trispool.operating import Action, Actor, AuditRow, BulkRequest
from trispool.state import open_state

if TYPE_CHECKING:
    from pathlib import Path

ANNA = Actor("anna", "operate", "10.0.0.1")
ORDER = BulkRequest(Action.CANCEL, ids=["t1", "t2"])


class SlowSpool:
    """Knows no task, and takes until `found` to say so."""

    name = "default"
    store = SimpleNamespace(directory=None)

    def __init__(self) -> None:
        self.found = trio.Event()
        self.asked = trio.Event()

    async def find_task(self, task_id: str) -> None:
        self.asked.set()
        await self.found.wait()


async def rows_of(control: Controller) -> list[AuditRow]:
    return list(reversed((await control.audit()).rows))


async def test_the_end_of_a_bulk_action_is_in_the_audit_log_also_if_its_caller_has_gone(tmp_path: Path) -> None:
    spool = SlowSpool()
    with trio.fail_after(20):
        async with open_state(tmp_path) as state, trio.open_nursery() as nursery:
            control = Controller([cast("Any", spool)], state, EventHub({}, lambda _: {}), cast("Any", None))
            await nursery.start(control.bulk_runs.run_bulk)
            async with trio.open_nursery() as caller:
                caller.start_soon(control.start_bulk, ORDER, ANNA)
                await spool.asked.wait()
                caller.cancel_scope.cancel()
            [begun] = await rows_of(control)
            assert (begun.actor, begun.action, begun.before) == (
                "anna",
                "tasks.cancel",
                {"ids": 2, "filter": None, "at": None},
            )
            spool.found.set()
            while len(rows := await rows_of(control)) < 2:
                await trio.lowlevel.checkpoint()
            ended = cast("Any", rows[1])
            assert (ended.actor, ended.action, ended.target) == ("anna", "bulk.end", ended.after["id"])
            assert (ended.after["state"], ended.after["done"], ended.after["refused"]) == ("finished", 0, 2)
            nursery.cancel_scope.cancel()


async def test_a_bulk_action_that_ends_at_once_is_one_row(tmp_path: Path) -> None:
    spool = SlowSpool()
    spool.found.set()
    with trio.fail_after(20):
        async with open_state(tmp_path) as state, trio.open_nursery() as nursery:
            control = Controller([cast("Any", spool)], state, EventHub({}, lambda _: {}), cast("Any", None))
            await nursery.start(control.bulk_runs.run_bulk)
            await control.start_bulk(ORDER, ANNA)
            [row] = await rows_of(control)
            assert (row.action, cast("Any", row.after)["state"]) == ("tasks.cancel", "finished")
            nursery.cancel_scope.cancel()


async def test_what_cannot_be_stopped_is_in_the_audit_log_too(tmp_path: Path) -> None:
    async with open_state(tmp_path) as state:
        control = Controller([cast("Any", SlowSpool())], state, EventHub({}, lambda _: {}), cast("Any", None))
        with pytest.raises(TaskRefused):
            await control.stop_bulk("none", ANNA)
        [row] = await rows_of(control)
        assert (row.action, row.target, row.outcome) == ("bulk.stop", "none", "there is no bulk action 'none'")
