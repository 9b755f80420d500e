"""Contract: what an operator does to tasks, in every store."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import pytest

from tests.contract.test_stores import Runner, closing, entries, kind, opened, seen
from trispool.packet import new_task
from trispool.task import LATEST_AT, TaskState

if TYPE_CHECKING:
    from pathlib import Path

    from trispool.store import SpoolStore
    from trispool.task import Entry, NewTask

__all__ = ["closing", "kind"]  # fixtures

LATER = round(time.time()) + 5000.25


async def add_one(store: SpoolStore, task: NewTask) -> Entry:
    (entry,) = entries(await store.add([task]))
    return entry


async def waiting(store: SpoolStore) -> list[Entry]:
    return [entry._replace(fresh=False) for entry in await seen(store)]


@pytest.mark.parametrize("priority", [None, 0, 7])
async def test_what_is_held_does_not_wait_and_is_as_it_was_when_it_is_restored(
    priority: int | None, kind: str, tmp_path: Path
) -> None:
    async with opened(kind, tmp_path) as store:
        entry = await add_one(store, new_task({"n": "1"}, b"body", at=LATER, priority=priority))
        other = await add_one(store, new_task({"n": "2"}))
        held = await store.hold(entry)
        assert held is not None
        assert held._replace(ref=entry.ref) == entry
        assert await waiting(store) == [other]
        assert [*await store.held()] == [held]
        assert store.held_count == 1
        assert await store.lying(entry.id) == (TaskState.HELD, held)
        assert [*await store.held_among([other.id, entry.id, "unknown"])] == [entry.id]
        task = await store.get(held.ref)
        assert task is not None
        assert (task.id, task.vars[b"n"], task.body) == (entry.id, b"1", b"body")
        assert await store.restore(held) == entry
        assert sorted(await waiting(store)) == sorted([entry, other])
        assert [*await store.held()] == []
        assert (store.held_count, await store.lying(entry.id)) == (0, None)


async def test_a_dead_one_is_restored_with_its_priority(kind: str, tmp_path: Path) -> None:
    async with opened(kind, tmp_path) as store:
        added = entries(await store.add([new_task({"n": "1"}, priority=3), new_task({"n": "2"})]))
        for entry in added:
            assert await store.set_aside(entry)
        assert store.dead_count == 2
        for entry in added:
            aside = await store.lying(entry.id)
            assert aside is not None
            assert aside.state is TaskState.DEAD
            assert await store.restore(aside.entry) == entry
        assert sorted(await waiting(store)) == sorted(added)
        assert (store.dead_count, len(await store.dead())) == (0, 0)


@pytest.mark.parametrize("at", [LATER + 0.125, 0.0, 1_000_000_000.75, LATEST_AT])
async def test_a_time_is_given_with_its_fraction_to_what_waits_and_to_what_is_restored(
    at: float, kind: str, tmp_path: Path
) -> None:
    async with opened(kind, tmp_path) as store:
        for priority in (None, 4):
            entry = await add_one(store, new_task({"n": "1"}, priority=priority))
            moved = await store.reschedule(entry, at)
            assert moved == entry._replace(at=at)
            held = await store.hold(moved)
            assert held is not None
            assert held.at == at
            assert await store.restore(held, LATER) == entry._replace(at=LATER)
        assert [entry.at for entry in await waiting(store)] == [LATER, LATER]


async def test_what_is_removed_is_gone_wherever_it_was_and_tells_its_vars(kind: str, tmp_path: Path) -> None:
    async with opened(kind, tmp_path) as store:
        added = entries(await store.add([new_task({"n": str(n)}, b"body", priority=n, at=LATER) for n in range(3)]))
        held = await store.hold(added[1])
        assert held is not None
        assert await store.set_aside(added[2])
        for number, entry in enumerate([added[0], held, *await store.dead()]):
            removed = await store.remove(entry)
            assert removed is not None
            assert (removed.id, removed.vars[b"n"], removed.at) == (entry.id, b"%d" % number, LATER)
            assert removed.enqueued_at == entry.order[0] / 1e6
            assert await store.get(entry.ref) is None
            assert await store.remove(entry) is None
        assert (await seen(store), [*await store.held()], [*await store.dead()]) == ([], [], [])
        assert (store.held_count, store.dead_count) == (0, 0)


Operation = Callable[["SpoolStore", "Entry"], Awaitable[object]] if TYPE_CHECKING else object

OPERATIONS: dict[str, Operation] = {
    "hold": lambda store, entry: store.hold(entry),
    "reschedule": lambda store, entry: store.reschedule(entry, LATER),
    "remove": lambda store, entry: store.remove(entry),
}


@pytest.mark.parametrize("operation", OPERATIONS)
async def test_nothing_is_done_to_what_is_claimed_until_it_is_released(
    operation: str, kind: str, tmp_path: Path, closing: list[Runner]
) -> None:
    async with opened(kind, tmp_path) as store:
        closing.append(runner := Runner(store))
        entry = await add_one(store, new_task({"n": "1"}))
        (claim,) = await store.claim([entry])
        _, _, taken = runner.take(claim)
        assert await OPERATIONS[operation](store, entry) is None
        assert await waiting(store) == [entry]
        assert [*await store.held()] == []
        if taken:
            taken.close()
        await store.release([claim])
        assert await OPERATIONS[operation](store, entry) is not None


@pytest.mark.parametrize("operation", OPERATIONS)
async def test_nothing_is_done_to_what_is_gone(operation: str, kind: str, tmp_path: Path) -> None:
    async with opened(kind, tmp_path) as store:
        entry = await add_one(store, new_task({"n": "1"}))
        held = await store.hold(entry)
        assert held is not None
        assert await OPERATIONS[operation](store, entry) is None
        assert await store.remove(held) is not None
        assert await store.restore(held) is None
        assert (await seen(store), [*await store.held()]) == ([], [])


async def test_what_lies_aside_is_told_by_time_of_enqueuing(kind: str, tmp_path: Path) -> None:
    async with opened(kind, tmp_path) as store:
        added = entries(await store.add([new_task({"n": str(n)}, priority=9 - n) for n in range(4)]))
        for entry in reversed(added):
            assert await store.hold(entry)
        shelf = await store.held()
        assert [entry.id for entry in shelf] == [entry.id for entry in added]
        assert shelf[0].id == added[0].id
        assert [entry.id for entry in shelf[1:3]] == [entry.id for entry in added[1:3]]
