"""Contract: every store passes, whatever it keeps tasks in."""

from __future__ import annotations

import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio

from tests.behind_support import opened_behind
from tests.fakes import MemoryStore
from trispool.claimed import ClaimedFile, Unclaimable
from trispool.errors import TaskRefused
from trispool.packet import decode_vars, new_task
from trispool.spooldir import SpoolDirectory
from trispool.spoolwriter import new_name
from trispool.store.directory import open_directory_store
from trispool.task import Entry

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence
    from pathlib import Path

    from trispool.errors import TrispoolError
    from trispool.store import Claim, SpoolStore

KINDS = ["memory", "directory-os", "directory-fsync", "behind-os", "behind-fsync"]


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@asynccontextmanager
async def opened(kind: str, path: Path) -> AsyncIterator[SpoolStore]:
    with trio.fail_after(20):
        if kind == "memory":
            yield MemoryStore()
        elif kind.startswith("behind"):
            async with opened_behind(path / "spool", fsync=kind.endswith("fsync")) as (store, _):
                yield store
        else:
            async with open_directory_store(str(path / "spool"), fsync=kind.endswith("fsync")) as store:
                yield store


class Runner:
    """Runs claims as a worker does: those without content by taking the file."""

    def __init__(self, store: SpoolStore) -> None:
        self.directory = SpoolDirectory(store.directory) if store.directory else None

    def take(self, claim: Claim) -> tuple[dict[bytes, bytes], bytes, ClaimedFile | None]:
        if claim.content is not None:
            payload, body = claim.content
            return decode_vars(payload), body, None
        assert self.directory is not None
        held = self.directory.claim(claim.ref)
        return dict(held.vars), held.body, held


@pytest.fixture
def closing() -> Iterator[list[Runner]]:
    runners: list[Runner] = []
    yield runners
    for runner in runners:
        if runner.directory:
            runner.directory.close()


async def seen(store: SpoolStore) -> list[Entry]:
    return [entry async for chunk in store.scan() for entry in chunk]


def entries(results: Sequence[Entry | TrispoolError]) -> list[Entry]:
    assert all(isinstance(result, Entry) for result in results), results
    return [result for result in results if isinstance(result, Entry)]


async def test_what_was_added_is_seen_by_a_scan(kind: str, tmp_path: Path) -> None:
    async with opened(kind, tmp_path) as store:
        assert await seen(store) == []
        later = round(time.time()) + 1000.25
        added = entries(
            await store.add([new_task({"n": "1"}), new_task({"n": "2"}, at=later), new_task({"n": "3"}, priority=5)])
        )
        assert [entry.priority for entry in added] == [None, None, 5]
        assert added[1].at == later
        assert added[0].at <= time.time()
        assert added[0].order < added[1].order < added[2].order
        assert len({entry.id for entry in added}) == 3
        found = {entry.id: entry for entry in await seen(store)}
        assert {task_id: entry._replace(fresh=False) for task_id, entry in found.items()} == {
            entry.id: entry for entry in added
        }


async def test_a_scan_leaves_out_what_is_known(kind: str, tmp_path: Path) -> None:
    async with opened(kind, tmp_path) as store:
        later = time.time() + 1000
        new_tasks = [new_task({"n": str(number)}, at=later, priority=number or None) for number in range(3)]
        known, *others = entries(await store.add(new_tasks))
        asked: list[str] = []

        def unknown(refs: Sequence[str]) -> list[str]:
            asked.extend(refs)
            return [ref for ref in refs if ref != known.ref]

        assert await store.hold(known) is not None  # and so it has a file
        restored = [entry for entry in (await store.held()) if entry.id == known.id]
        assert await store.restore(restored[0]) is not None
        found = {entry.id: entry.at for entry in [entry async for chunk in store.scan(unknown) for entry in chunk]}
        assert found == {entry.id: entry.at for entry in others}
        assert known.ref in asked


async def test_an_id_chosen_beforehand_is_kept_and_given_once(kind: str, tmp_path: Path) -> None:
    async with opened(kind, tmp_path) as store:
        (name, order), (other, _) = new_name(), new_name()
        chosen = new_task({"n": "1"}, b"first")._replace(id=name)
        (entry,) = entries(await store.add([chosen]))
        assert (entry.id, entry.order) == (name, order)
        again = [new_task({"n": "2"})._replace(id=name), new_task({"n": "3"}, priority=4)._replace(id=other)]
        refused, accepted = await store.add(again)
        assert isinstance(refused, TaskRefused)
        assert refused.status == 409
        assert isinstance(accepted, Entry)
        assert sorted(found.id for found in await seen(store)) == sorted([name, other])
        kept = await store.get(entry.ref)
        assert kept is not None
        assert kept.body == b"first"


async def test_get_gives_vars_and_body_of_what_waits(kind: str, tmp_path: Path) -> None:
    async with opened(kind, tmp_path) as store:
        (entry,) = entries(await store.add([new_task({b"k\xff": b"v\x00"}, b"\x00body" * 9999, priority=2)]))
        task = await store.get(entry.ref)
        assert task is not None
        assert (task.id, task.body, task.priority) == (entry.id, b"\x00body" * 9999, 2)
        assert task.vars == {b"k\xff": b"v\x00", b"priority": b"2"}
        assert await store.get(entry.ref + "x") is None


async def test_a_claim_runs_once_and_is_gone_when_it_is_finished(
    kind: str, tmp_path: Path, closing: list[Runner]
) -> None:
    async with opened(kind, tmp_path) as store:
        closing.append(runner := Runner(store))
        added = entries(await store.add([new_task({"n": str(n)}, b"b%d" % n) for n in range(3)]))
        claims = await store.claim(added)
        assert [claim.id for claim in claims] == [entry.id for entry in added]
        for number, claim in enumerate(claims):
            vars_, body, held = runner.take(claim)
            assert (vars_, body) == ({b"n": b"%d" % number}, b"b%d" % number)
            # Nobody else gets it meanwhile, whichever way a store keeps that.
            for other in await store.claim([added[number]]):
                with pytest.raises(Unclaimable):
                    runner.take(other)
            if held:
                held.remove()
        await store.finish(claims)
        assert await seen(store) == []
        for gone in await store.claim(added):
            with pytest.raises(Unclaimable):
                runner.take(gone)


async def test_a_released_claim_can_be_claimed_again(kind: str, tmp_path: Path, closing: list[Runner]) -> None:
    async with opened(kind, tmp_path) as store:
        closing.append(runner := Runner(store))
        added = entries(await store.add([new_task({"n": "1"})]))
        (claim,) = await store.claim(added)
        _, _, held = runner.take(claim)
        if held:
            held.close()
        await store.release([claim])
        (again,) = await store.claim(added)
        vars_, _, held = runner.take(again)
        assert vars_ == {b"n": b"1"}
        if held:
            held.close()


async def test_what_is_set_aside_no_longer_waits_and_is_kept(kind: str, tmp_path: Path) -> None:
    async with opened(kind, tmp_path) as store:
        bad, good = entries(await store.add([new_task({"n": "bad"}), new_task({"n": "good"})]))
        assert await store.set_aside(bad) is True
        assert [entry.id for entry in await seen(store)] == [good.id]
        assert [entry.id for entry in await store.dead()] == [bad.id]
        assert await store.set_aside(bad) is False


async def test_concurrent_adds_all_get_their_own_results(kind: str, tmp_path: Path) -> None:
    async with opened(kind, tmp_path) as store:
        got: dict[int, list[Entry]] = {}

        async def add(number: int) -> None:
            got[number] = entries(await store.add([new_task({"n": f"{number}.{k}"}) for k in range(number % 3 + 1)]))

        async with trio.open_nursery() as nursery:
            for number in range(40):
                nursery.start_soon(add, number)
        assert len(await seen(store)) == sum(number % 3 + 1 for number in range(40))
        for number, own in got.items():
            for k, entry in enumerate(own):
                task = await store.get(entry.ref)
                assert task is not None
                assert task.vars[b"n"] == b"%d.%d" % (number, k)
