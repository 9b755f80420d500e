"""A spool that is wired together, without its workers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import trio

from trispool import livespool
from trispool.dispatcher import Dispatcher
from trispool.livespool import open_spool
from trispool.packet import new_task
from trispool.settings import SpoolSettings
from trispool.task import Entry

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def settings(path: Path) -> SpoolSettings:
    return SpoolSettings(name="default", directory=str(path / "spool"), durability="os")


async def test_very_many_tasks_are_enqueued_in_parts_and_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(livespool, "ENQUEUE_AT_ONCE", 7)
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
    monkeypatch.setattr(livespool, "ENQUEUE_AT_ONCE", 5)
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
