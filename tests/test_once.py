"""Idempotency keys: the same key gives the same tasks, whatever is killed when."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio
import trio.lowlevel

from tests.fakes import MemoryStore
from trispool.errors import SpoolUnavailable, TaskRefused, TrispoolError
from trispool.operating import OnceKey
from trispool.packet import new_task
from trispool.state import KEEP_KEYS_SECONDS, open_state
from trispool.task import Accepted, Entry, NewTask

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection, Iterator, Sequence

    from trispool.state import State

KEY = OnceKey("order-17", "web", b"fingerprint")
ONE = [new_task({"n": "1"})]
THREE = [new_task({"n": str(number)}) for number in range(3)]


class Spool:
    """Where tasks go: a memory store and what the service around it would do."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self.history: set[str] = set()
        self.failures: dict[int, TrispoolError] = {}
        self.calls = 0
        self.looks: list[tuple[str, list[str]]] = []
        self.gate: trio.Event | None = None

    @property
    def ids(self) -> list[str]:
        return list(self.store.tasks)

    def spool_of(self, task: NewTask) -> str:
        if task.spool == "nowhere":
            raise TaskRefused("there is no such spool", status=404)
        return task.spool or "default"

    async def enqueue(self, tasks: Sequence[NewTask]) -> Sequence[Accepted | TrispoolError]:
        self.calls += 1
        if self.gate is not None:
            await self.gate.wait()
        assert all(task.id and task.spool for task in tasks)
        wanted = [task for number, task in enumerate(tasks) if number not in self.failures]
        kept = iter(await self.store.add(wanted))
        results: list[Accepted | TrispoolError] = []
        for number, task in enumerate(tasks):
            result = self.failures.get(number) or next(kept)
            results.append(Accepted(result.id, task.spool or "", task.at) if isinstance(result, Entry) else result)
        return results

    async def exists(self, spool: str, ids: Sequence[str]) -> Collection[str]:
        await trio.lowlevel.checkpoint()
        self.looks.append((spool, list(ids)))
        return [task_id for task_id in ids if task_id in self.store.tasks or task_id in self.history]

    async def send(
        self, state: State, tasks: Sequence[NewTask], key: OnceKey = KEY
    ) -> tuple[Sequence[Accepted | TrispoolError], bool]:
        return await state.once.enqueue(key, tasks, spool_of=self.spool_of, enqueue=self.enqueue, exists=self.exists)


@asynccontextmanager
async def opened(path: Path, now: float = 1_700_000_000.0) -> AsyncIterator[State]:
    with trio.fail_after(120):  # a busy disk takes its time for a sync
        async with open_state(path, clock=lambda: now) as state:
            yield state


def ids_of(results: Sequence[Accepted | TrispoolError]) -> list[str]:
    assert all(isinstance(result, Accepted) for result in results), results
    return [result.id for result in results if isinstance(result, Accepted)]


async def test_the_same_key_gives_the_same_tasks_also_after_a_restart(tmp_path: Path) -> None:
    spool = Spool()
    tasks = [new_task({"n": "1"}, at=1_900_000_000.5), new_task({"n": "2"})._replace(spool="mail")]
    async with opened(tmp_path) as state:
        first, replayed = await spool.send(state, tasks)
        assert not replayed
        assert ids_of(first) == sorted(spool.ids)
        assert [(result.spool, result.at) for result in first if isinstance(result, Accepted)] == [
            ("default", 1_900_000_000.5),
            ("mail", None),
        ]
        assert await spool.send(state, tasks) == (first, True)
    async with opened(tmp_path) as state:
        assert await spool.send(state, tasks) == (first, True)
    assert spool.calls == 1
    assert spool.looks == []  # what is confirmed need not be looked for


async def test_keys_of_others_are_other_keys(tmp_path: Path) -> None:
    spool = Spool()
    async with opened(tmp_path) as state:
        for key in (KEY, replace(KEY, owner="worker"), replace(KEY, key="order-18")):
            assert (await spool.send(state, ONE, key))[1] is False
    assert len(spool.ids) == 3


@pytest.mark.parametrize("tasks", [ONE, [*ONE, *ONE]])
async def test_a_key_is_for_one_request(tmp_path: Path, tasks: list[NewTask]) -> None:
    spool = Spool()
    async with opened(tmp_path) as state:
        await spool.send(state, ONE)
        key = replace(KEY, fingerprint=b"other") if len(tasks) == 1 else KEY
        with pytest.raises(TaskRefused) as caught:
            await spool.send(state, tasks, key)
        assert caught.value.status == 422
    assert len(spool.ids) == 1


@pytest.mark.parametrize("key", ["", "a b", "ä", "a\n", "x" * 256])
async def test_a_key_is_1_to_255_visible_characters(tmp_path: Path, key: str) -> None:
    spool = Spool()
    async with opened(tmp_path) as state:
        with pytest.raises(TaskRefused) as caught:
            await spool.send(state, ONE, replace(KEY, key=key))
        assert caught.value.status == 400
        assert (await spool.send(state, ONE, replace(KEY, key="~!" + "x" * 253)))[1] is False


async def test_calls_with_the_same_key_wait_for_each_other(tmp_path: Path) -> None:
    spool = Spool()
    spool.gate = trio.Event()
    results: list[tuple[Sequence[Accepted | TrispoolError], bool]] = []

    async def send() -> None:
        results.append(await spool.send(state, THREE))

    async with opened(tmp_path) as state, trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(send)
        while spool.calls == 0:
            await trio.lowlevel.checkpoint()
        assert results == []
        spool.gate.set()
    assert spool.calls == 1
    assert sorted(replayed for _, replayed in results) == [False, True, True, True, True]
    assert len({tuple(ids_of(result)) for result, _ in results}) == 1


async def test_what_was_not_kept_may_be_tried_again_and_what_was_is_not_repeated(tmp_path: Path) -> None:
    spool = Spool()
    spool.failures = {1: SpoolUnavailable("the disk is full")}
    async with opened(tmp_path) as state:
        first, replayed = await spool.send(state, THREE)
        assert not replayed
        assert isinstance(first[1], SpoolUnavailable)
        kept = [result.id for result in first if isinstance(result, Accepted)]
        assert spool.ids == kept
    async with opened(tmp_path) as state:
        spool.failures = {}
        second, replayed = await spool.send(state, THREE)
        assert not replayed
        assert [ids_of(second)[number] for number in (0, 2)] == kept
        assert sorted(spool.ids) == ids_of(second)
        assert await spool.send(state, THREE) == (second, True)
    assert spool.calls == 2


async def test_a_task_that_was_kept_though_it_seemed_not_is_found(tmp_path: Path) -> None:
    spool = Spool()
    spool.failures = {0: SpoolUnavailable("the disk does not answer")}
    async with opened(tmp_path) as state:
        await spool.send(state, ONE)
        # The disk had taken it after all, and it has been run since.
        spool.failures = {}
        spool.history = set()
        before = spool.exists

        async def exists(name: str, ids: Sequence[str]) -> Collection[str]:
            spool.history.update(ids)
            return await before(name, ids)

        spool.exists = exists  # type: ignore[method-assign]
        results, replayed = await spool.send(state, ONE)
        assert replayed
        assert set(ids_of(results)) == spool.history
        assert spool.ids == []


async def test_a_task_that_appears_while_it_is_looked_for_counts_as_kept(tmp_path: Path) -> None:
    spool = Spool()
    spool.failures = {0: SpoolUnavailable("the disk does not answer")}
    async with opened(tmp_path) as state:
        await spool.send(state, ONE)
        spool.failures = {0: TaskRefused("there is a task of that id", status=409)}
        results, _ = await spool.send(state, ONE)
        assert len(ids_of(results)) == 1
        assert await spool.send(state, ONE) == (results, True)


async def test_tasks_for_no_spool_are_refused_each_time_until_there_is_one(tmp_path: Path) -> None:
    spool = Spool()
    tasks = [*ONE, ONE[0]._replace(spool="nowhere")]
    async with opened(tmp_path) as state:
        for replayed in (False, True):
            results, was = await spool.send(state, tasks)
            assert was is replayed
            assert isinstance(results[0], Accepted)
            assert isinstance(results[1], TaskRefused)
            assert results[1].status == 404
        spool.spool_of = lambda task: task.spool or "default"  # type: ignore[method-assign]
        results, was = await spool.send(state, tasks)
        assert not was
        assert sorted(ids_of(results)) == sorted(spool.ids)
        assert len(spool.ids) == 2


async def test_a_caller_that_is_cancelled_leaves_no_second_task(tmp_path: Path) -> None:
    spool = Spool()
    spool.gate = trio.Event()
    async with opened(tmp_path) as state:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(spool.send, state, THREE)
            while spool.calls == 0:
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
        # A part of it had been kept.
        known = await state.once._reserve(KEY, ["default"] * 3)
        spool.gate = None
        await spool.store.add([THREE[0]._replace(id=known[0].first)])
        results, replayed = await spool.send(state, THREE)
        assert not replayed
        assert sorted(spool.ids) == ids_of(results)
        assert len(spool.ids) == 3


async def test_an_enqueue_that_raises_can_be_tried_again(tmp_path: Path) -> None:
    spool = Spool()

    async def broken(tasks: Sequence[NewTask]) -> Sequence[Accepted | TrispoolError]:
        await spool.store.add(tasks)
        raise OSError("after all was kept")

    async with opened(tmp_path) as state:
        with pytest.raises(OSError, match="after all"):
            await state.once.enqueue(KEY, THREE, spool_of=spool.spool_of, enqueue=broken, exists=spool.exists)
        results, replayed = await spool.send(state, THREE)
        assert replayed
        assert sorted(spool.ids) == ids_of(results)
        assert spool.calls == 0


async def test_a_key_is_forgotten_after_a_day(tmp_path: Path) -> None:
    spool = Spool()
    async with opened(tmp_path, now=1e9) as state:
        first, _ = await spool.send(state, ONE)
    async with opened(tmp_path, now=1e9 + KEEP_KEYS_SECONDS - 1) as state:
        assert await spool.send(state, ONE) == (first, True)
    async with opened(tmp_path, now=1e9 + KEEP_KEYS_SECONDS + 1) as state:
        second, replayed = await spool.send(state, ONE)
        assert not replayed
        assert ids_of(second) != ids_of(first)


async def test_a_large_batch_takes_a_small_row(tmp_path: Path) -> None:
    spool = Spool()
    tasks = ONE * 10_000
    async with opened(tmp_path) as state:
        first, _ = await spool.send(state, tasks)
        assert len(set(ids_of(first))) == 10_000
        (row,) = await state.once._writer.read(lambda connection: connection.execute("SELECT * FROM once").fetchall())
        assert sum(len(str(value)) for value in row) < 300


@contextmanager
def full_disk() -> Iterator[None]:
    """No file can grow: to SQLite that is a disk that takes no more."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


async def test_nothing_is_enqueued_while_keys_cannot_be_remembered(tmp_path: Path) -> None:
    spool = Spool()
    async with opened(tmp_path) as state:
        await spool.send(state, ONE, replace(KEY, key="before"))
        with full_disk():
            with pytest.raises(SpoolUnavailable):
                await spool.send(state, ONE)
            assert state.problem is not None
        assert spool.calls == 1
        assert (await spool.send(state, ONE))[1] is False
        assert (await spool.send(state, ONE))[1] is True
        assert state.problem is None


async def test_a_key_whose_confirmation_could_not_be_written_is_looked_up(tmp_path: Path) -> None:
    spool = Spool()

    async def enqueue(tasks: Sequence[NewTask]) -> Sequence[Accepted | TrispoolError]:
        stack.enter_context(full_disk())
        return await spool.enqueue(tasks)

    with ExitStack() as stack:
        async with opened(tmp_path) as state:
            first, _ = await state.once.enqueue(KEY, ONE, spool_of=spool.spool_of, enqueue=enqueue, exists=spool.exists)
            assert len(ids_of(first)) == 1
    async with opened(tmp_path) as state:
        assert await spool.send(state, ONE) == (first, True)
    assert len(spool.looks) == 1
    assert spool.calls == 1


async def test_two_services_on_one_state_directory_share_their_keys(tmp_path: Path) -> None:
    spool = Spool()
    spool.gate = trio.Event()
    results: list[tuple[Sequence[Accepted | TrispoolError], bool]] = []

    async def send(state: State) -> None:
        results.append(await spool.send(state, THREE))

    async with opened(tmp_path) as one, opened(tmp_path) as other, trio.open_nursery() as nursery:
        nursery.start_soon(send, one)
        nursery.start_soon(send, other)
        while spool.calls == 0:
            await trio.lowlevel.checkpoint()
        # The other one has had its chance many times over.
        await trio.sleep(0.1)
        assert spool.calls == 1
        spool.gate.set()
    assert sorted(replayed for _, replayed in results) == [False, True]
    assert spool.calls == 1


# Processes that are killed

SERVICE = """
import os, signal, sys
from pathlib import Path

import trio

from trispool.operating import OnceKey
from trispool.packet import new_task
from trispool.state import open_state
from trispool.store.directory import open_directory_store
from trispool.task import Accepted, Entry

folder, die_at = Path(sys.argv[1]), sys.argv[2]

def step(name):
    if name == die_at:
        os.kill(os.getpid(), signal.SIGKILL)

async def main():
    async with open_state(folder / "state") as state, open_directory_store(str(folder / "spool"), fsync=True) as store:

        def spool_of(task):
            step("before reserve")
            return "default"

        async def enqueue(tasks):
            step("reserved")
            results = [*await store.add(tasks[:1])]
            step("half enqueued")
            results += await store.add(tasks[1:])
            step("enqueued")
            await run()
            step("run")
            return [Accepted(r.id, "default") if isinstance(r, Entry) else r for r in results]

        async def run():
            # As a worker and the service together: it runs, is recorded, and is gone.
            async for entries in store.scan():
                for entry in entries:
                    with open(folder / "ran", "a") as ran:
                        ran.write(entry.id + "\\n")
                    step("recorded")
                    os.unlink(folder / "spool" / entry.ref)

        async def exists(spool, ids):
            waiting = {entry.id async for entries in store.scan() for entry in entries}
            ran = set((folder / "ran").read_text().split()) if (folder / "ran").exists() else set()
            return [task_id for task_id in ids if task_id in waiting | ran]

        results, replayed = await state.once.enqueue(
            OnceKey("key", "web", b"f"), [new_task({"n": str(n)}) for n in range(3)],
            spool_of=spool_of, enqueue=enqueue, exists=exists,
        )
        step("told")
        await run()
        print(replayed, *(result.id for result in results))

trio.run(main)
"""

STEPS = ["before reserve", "reserved", "half enqueued", "enqueued", "recorded", "run", "told", "never"]


@pytest.mark.parametrize("die_at", STEPS)
def test_a_service_that_is_killed_at_any_step_leaves_each_task_once(tmp_path: Path, die_at: str) -> None:
    def serve(step: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", SERVICE, str(tmp_path), step]
        return subprocess.run(
            command, capture_output=True, text=True, timeout=60, cwd=Path(__file__).parents[1], env={**os.environ}
        )

    (tmp_path / "spool").mkdir()
    first = serve(die_at)
    assert first.returncode == (0 if die_at == "never" else -signal.SIGKILL), first.stderr
    for replayed in (None, "True"):
        again = serve("no step")
        assert again.returncode == 0, again.stderr
        was, *ids = again.stdout.split()
        assert replayed in (None, was)
        assert len(set(ids)) == 3
        ran = (tmp_path / "ran").read_text().split()
        # Never a fourth one; and what was recorded as run does not run again, though its file was there still.
        assert sorted(set(ran)) == sorted(ids)
        assert len(ran) == 3 or die_at == "recorded"
