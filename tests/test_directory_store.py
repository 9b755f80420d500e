"""The directory store's own concerns: sharing trips to the disk, closing, trouble with the directory."""

from __future__ import annotations

import os
import threading
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
import structlog.testing
import trio
import trio.testing

from trispool import spoolfile, spoolscan
from trispool.errors import SpoolUnavailable, TrispoolError
from trispool.packet import encode_vars, new_task
from trispool.spooldir import SpoolDirectory
from trispool.store import directory as directory_module
from trispool.store import shelves as shelves_module
from trispool.store.directory import DirectoryStore, open_directory_store
from trispool.task import Entry, NewTask

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

PATIENCE = 10.0


class Gate:
    """Stands in for a blocking method of `SpoolDirectory`: notes its calls, and lets them go on when it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str, of: Any = SpoolDirectory) -> None:
        self.calls: list[Any] = []
        self.entered = threading.Event()
        self.open = threading.Event()
        real = getattr(of, name)
        gate = self

        def method(self: Any, *args: Any) -> Any:
            gate.calls.append(args)
            gate.entered.set()
            assert gate.open.wait(PATIENCE)
            return real(self, *args)

        monkeypatch.setattr(of, name, method)

    async def wait(self) -> None:
        """Until somebody is held up."""
        await trio.to_thread.run_sync(self.entered.wait, PATIENCE)


@asynccontextmanager
async def opened(path: Path) -> AsyncIterator[DirectoryStore]:
    with trio.fail_after(PATIENCE):
        async with open_directory_store(str(path / "spool"), fsync=False) as store:
            yield store


async def seen(store: DirectoryStore) -> list[Entry]:
    return [entry async for chunk in store.scan() for entry in chunk]


def task(number: int = 1) -> NewTask:
    return new_task({"n": str(number)})


async def test_it_is_unchanged_until_something_comes_or_it_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spoolscan, "_TICK", 0)
    async with opened(tmp_path) as store:
        await store.add([task()])
        os.utime(store.directory, (1e9, 1e9))
        assert not await store.is_unchanged()
        await seen(store)
        await seen(store)
        assert await store.is_unchanged()
        assert await store.is_unchanged()
        await store.add([task()])
        assert not await store.is_unchanged()
        await seen(store)
        await seen(store)
        os.rename(store.directory, tmp_path / "elsewhere")
        assert not await store.is_unchanged()


async def test_a_scan_by_names_pauses_between_its_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spoolscan, "NAMES_CHUNK", 2)
    pauses = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    async with opened(tmp_path) as store:
        await store.add([task(number) for number in range(6)])
        with monkeypatch.context() as patched:
            patched.setattr(trio, "sleep", sleep)
            assert [entry async for chunk in store.scan(lambda refs: []) for entry in chunk] == []
        assert pauses == [directory_module.NAMES_PAUSE] * 3


async def test_a_scan_by_names_says_nothing_of_what_is_foreign(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        os.mkfifo(f"{store.directory}/uwsgi_spoolfile_on_fifo")
        with structlog.testing.capture_logs() as logs:
            await seen(store)
            assert [entry async for chunk in store.scan(lambda refs: refs) for entry in chunk] == []
            await seen(store)
        assert [log["event"] for log in logs] == ["foreign_file"]


async def test_what_waits_at_the_same_time_is_written_in_one_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch, "add")
    async with opened(tmp_path) as store, trio.open_nursery() as nursery:
        nursery.start_soon(store.add, [task()])
        await gate.wait()
        for _ in range(50):
            nursery.start_soon(store.add, [task(), task()])
        await trio.testing.wait_all_tasks_blocked()
        gate.open.set()
    assert [len(tasks) for (tasks,) in gate.calls] == [1, 100]


async def test_a_batch_is_not_larger_than_it_may_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directory_module, "MAX_BATCH", 4)
    gate = Gate(monkeypatch, "add")
    async with opened(tmp_path) as store, trio.open_nursery() as nursery:
        nursery.start_soon(store.add, [task()])
        await gate.wait()
        for _ in range(5):
            nursery.start_soon(store.add, [task()] * 3)
        await trio.testing.wait_all_tasks_blocked()
        gate.open.set()
    assert [len(tasks) for (tasks,) in gate.calls] == [1, 6, 6, 3]


async def test_no_more_calls_wait_than_may_and_the_others_are_let_in_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directory_module, "MAX_WAITING", 3)
    gate = Gate(monkeypatch, "add")
    async with opened(tmp_path) as store:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.add, [task()])
            await gate.wait()
            for number in range(10):
                nursery.start_soon(store.add, [task(number)])
            await trio.testing.wait_all_tasks_blocked()
            assert len(store._waiting) == 3
            gate.open.set()
        assert len(await seen(store)) == 11


async def test_what_a_cancelled_caller_wanted_to_add_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch, "add")
    async with opened(tmp_path) as store:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.add, [task()])
            await gate.wait()
            nursery.start_soon(store.add, [task()])
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
            gate.open.set()
        await store.add([task()])
        assert len(await seen(store)) == 3


async def test_what_waits_when_it_closes_is_refused_and_what_is_being_written_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directory_module, "MAX_WAITING", 2)
    gate = Gate(monkeypatch, "add")
    results: dict[str, Sequence[Entry | TrispoolError]] = {}

    async def add(store: DirectoryStore, name: str) -> None:
        results[name] = await store.add([task()])

    async with trio.open_nursery() as nursery:
        async with opened(tmp_path) as store:
            nursery.start_soon(add, store, "being written")
            await gate.wait()
            for name in ("waits", "waits to be let in"):
                nursery.start_soon(add, store, name)
                await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(trio.to_thread.run_sync, gate.open.set)
        await add(store, "too late")
    kept = results.pop("being written")
    assert isinstance(kept[0], Entry)
    assert [str(*refused) for refused in results.values()] == ["the spool is closing"] * 3
    with SpoolDirectoryOf(tmp_path / "spool") as left:
        assert len(left.names()) == 1


class SpoolDirectoryOf:
    def __init__(self, path: Path) -> None:
        self._opened = SpoolDirectory(path)

    def __enter__(self) -> SpoolDirectory:
        return self._opened

    def __exit__(self, *args: object) -> None:
        self._opened.close()


async def test_a_slow_look_through_the_directory_holds_up_no_enqueue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch, "lying_in", of=shelves_module)
    async with opened(tmp_path) as store, trio.open_nursery() as nursery:
        nursery.start_soon(store.dead)
        await gate.wait()
        assert isinstance((await store.add([task()]))[0], Entry)
        assert len(await seen(store)) == 1
        gate.open.set()


async def test_a_directory_that_is_taken_away_is_unavailable_until_it_is_back(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        (entry,) = await store.add([task()])
        assert isinstance(entry, Entry)
        (tmp_path / "spool").rename(tmp_path / "away")
        with pytest.raises(SpoolUnavailable, match="cannot be read"):
            await seen(store)
        with pytest.raises(SpoolUnavailable, match="could not be set aside"):
            await store.set_aside(entry)
        (refused,) = await store.add([task()])
        assert isinstance(refused, SpoolUnavailable)
        (tmp_path / "away").rename(tmp_path / "spool")
        assert [found.id for found in await seen(store)] == [entry.id]
        assert isinstance((await store.add([task()]))[0], Entry)


async def test_what_is_none_of_ours_is_said_once_until_it_has_gone(tmp_path: Path) -> None:
    path = tmp_path / "spool"
    async with opened(tmp_path) as store:
        for name in ("notes.txt", f"{spoolfile.PREFIX}link"):
            (path / name).symlink_to("nowhere")
        with structlog.testing.capture_logs() as logs:
            for _ in range(3):
                assert await seen(store) == []
            (path / "notes.txt").unlink()
            await seen(store)
            (path / "notes.txt").mkdir()
            await seen(store)
        names = [line["name"] for line in logs if line["event"] == "foreign_file"]
        assert sorted(names[:2]) == ["notes.txt", f"{spoolfile.PREFIX}link"]
        assert names[2:] == ["notes.txt"]


async def test_a_task_that_was_set_aside_can_still_be_read(tmp_path: Path) -> None:
    path = tmp_path / "spool"
    async with opened(tmp_path) as store:
        (entry,) = await store.add([task(7)])
        assert isinstance(entry, Entry)
        (path / f"{spoolfile.PREFIX}garbage").write_bytes(b"garbage")
        (path / f"{spoolfile.PREFIX}garbage2").write_bytes(spoolfile.encode(encode_vars({"a": "b"}), b"")[:6])
        for found in await seen(store):
            assert await store.set_aside(found)
        dead = {found.id: await store.get(found.ref) for found in await store.dead()}
        kept = dead.pop(entry.id)
        assert kept is not None
        assert (kept.id, kept.vars) == (entry.id, {b"n": b"7"})
        assert list(dead.values()) == [None, None]
