"""The shelves of a spool directory: files that are held or dead, under the hands of others."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import random
import subprocess
import sys
import threading
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
import trio

from trispool import spoolfile, spoolshelves
from trispool.claimed import Settling
from trispool.errors import SpoolUnavailable, TaskRefused
from trispool.packet import encode_vars, new_task
from trispool.store import Shelf
from trispool.store import shelves as shelves_module
from trispool.store.directory import DirectoryStore, open_directory_store
from trispool.task import Entry, TaskState

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from trispool.spooldir import SpoolDirectory
    from trispool.task import NewTask

PATIENCE = 10.0
LATER = 4_000_000_000.5


@asynccontextmanager
async def opened(path: Path) -> AsyncIterator[DirectoryStore]:
    with trio.fail_after(PATIENCE):
        async with open_directory_store(str(path / "spool"), fsync=False) as store:
            yield store


async def add(store: DirectoryStore, task: NewTask | None = None) -> Entry:
    (entry,) = await store.add([task or new_task({"n": "1"})])
    assert isinstance(entry, Entry)
    return entry


async def hold(store: DirectoryStore, task: NewTask | None = None) -> Entry:
    held = await store.hold(await add(store, task))
    assert held is not None
    return held


async def seen(store: DirectoryStore) -> list[str]:
    return sorted([entry.ref async for chunk in store.scan() for entry in chunk])


def ids(entries: Any) -> list[str]:
    return [entry.id for entry in entries]


def name(number: int) -> str:
    return f"{spoolfile.PREFIX}h_1_{number}_1_1700000000_{number}"


CONTENT = spoolfile.encode(encode_vars({"n": "1"}), b"body")

LOCKS = {
    # As a uWSGI does (`core/lock.c`, `uwsgi_fcntl_is_locked`), and as a worker of another trispool.
    "uwsgi": "fcntl.lockf(fd, fcntl.LOCK_EX)",
    "trispool": "fcntl.fcntl(fd, fcntl.F_OFD_SETLK, struct.pack('hhqqi4x', fcntl.F_WRLCK, 0, 0, 0, 0))",
}


@contextlib.contextmanager
def locked_by_other_process(path: Path, kind: str) -> Iterator[None]:
    code = f"import fcntl, os, struct, sys; fd = os.open(sys.argv[1], os.O_RDWR); {LOCKS[kind]}; print(); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"\n"
        try:
            yield
        finally:
            process.communicate(b"\n")


@pytest.mark.parametrize("kind", LOCKS)
async def test_nothing_is_done_to_a_file_that_another_process_has_locked(kind: str, tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        entry = await add(store, new_task({"n": "1"}, at=LATER))
        held = await hold(store, new_task({"n": "2"}))
        with locked_by_other_process(tmp_path / "spool" / entry.ref, kind):
            assert await store.hold(entry) is None
            assert await store.reschedule(entry, 1.0) is None
            assert await store.remove(entry) is None
            assert await store.set_aside(entry) is False
        with locked_by_other_process(tmp_path / "spool" / held.ref, kind):
            assert await store.restore(held, 1.0) is None
            assert await store.remove(held) is None
        assert await seen(store) == [entry.ref]
        assert (tmp_path / "spool" / entry.ref).stat().st_mtime == LATER
        assert ids(await store.held()) == [held.id]
        assert await store.reschedule(entry, 1.0) == entry._replace(at=1.0)
        assert await store.remove(held) is not None


# Where things lie


async def test_a_held_file_lies_below_the_name_of_its_priority_directory(tmp_path: Path) -> None:
    path = tmp_path / "spool"
    async with opened(tmp_path) as store:
        (path / "007").mkdir()
        (path / "007" / name(1)).write_bytes(CONTENT)
        (entry,) = [entry async for chunk in store.scan() for entry in chunk]
        held = await store.hold(entry)
        assert held is not None
        assert (held.ref, held.priority) == (f".trispool/held/007/{name(1)}", 7)
        (path / "007").rmdir()
        restored = await store.restore(held)
        assert restored is not None
        assert (restored.ref, restored.priority) == (f"007/{name(1)}", 7)
        assert (path / "007" / name(1)).read_bytes() == CONTENT


async def test_holds_outlive_the_service(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        held = await hold(store, new_task({"n": "1"}, at=LATER, priority=5))
    async with opened(tmp_path) as store:
        assert store.held_count == 0  # not looked at yet
        assert [*await store.held()] == [held]
        assert store.held_count == 1
        assert await store.lying(held.id) == (TaskState.HELD, held)


async def test_no_file_is_put_over_another_one(tmp_path: Path) -> None:
    path = tmp_path / "spool"
    async with opened(tmp_path) as store:
        refs = []
        for number in range(3):
            (path / name(1)).write_bytes(CONTENT + b"%d" % number)
            (entry,) = [entry async for chunk in store.scan() for entry in chunk]
            held = await store.hold(entry)
            assert held is not None
            refs.append(held.ref)
        assert refs == [f".trispool/held/{name(1)}{end}" for end in ("", ".1", ".2")]
        assert ids(await store.held()) == [name(1), f"{name(1)}.1", f"{name(1)}.2"]
        back = [await store.restore(entry) for entry in await store.held()]
        assert [entry and entry.id for entry in back] == [name(1), f"{name(1)}.1", f"{name(1)}.2"]
        assert {(path / entry.id).read_bytes() for entry in back if entry} == {CONTENT + b"%d" % n for n in range(3)}
        again = await store.hold(back[0]) if back[0] else None
        (path / name(1)).write_bytes(CONTENT)
        assert again is not None
        restored = await store.restore(again)
        assert restored is not None
        assert restored.id == f"{name(1)}.3"


async def test_a_dead_file_with_a_number_behind_its_name_is_restored_and_removed_like_others(tmp_path: Path) -> None:
    path = tmp_path / "spool" / ".trispool" / "dead"
    async with opened(tmp_path) as store:
        for end in ("", ".1", ".2"):
            (path / (name(1) + end)).write_bytes(CONTENT)
        first, second, third = sorted(await store.dead())
        assert await store.restore(second)
        assert await seen(store) == [f"{name(1)}.1"]
        assert await store.remove(third)
        assert ids(await store.dead()) == [first.id] == [name(1)]


@pytest.mark.parametrize("content", [b"", b"garbage", CONTENT[:9], b"\x11\x00\x00\x00"])
async def test_a_dead_file_that_is_no_task_can_be_restored_and_removed(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "spool" / ".trispool" / "dead"
    async with opened(tmp_path) as store:
        (path / name(1)).write_bytes(content)
        (path / name(2)).write_bytes(content)
        first, second = await store.dead()
        assert await store.restore(first)
        assert (tmp_path / "spool" / name(1)).read_bytes() == content
        removed = await store.remove(second)
        assert removed is not None
        assert (removed.id, removed.vars) == (name(2), {})
        assert [*await store.dead()] == []


async def test_a_dead_file_with_an_odd_priority_goes_where_files_without_go(tmp_path: Path) -> None:
    path = tmp_path / "spool" / ".trispool" / "dead"
    async with opened(tmp_path) as store:
        for number, priority in enumerate([b"../x", b"-1", b"", b"\xb2", "²".encode(), b"08"]):
            payload = encode_vars({b"priority": priority})
            (path / name(number)).write_bytes(spoolfile.encode(payload, b""))
        for entry in await store.dead():
            assert await store.restore(entry)
        assert await seen(store) == [f"8/{name(5)}", *(name(number) for number in range(5))]


async def test_links_and_other_things_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "spool"
    outside = tmp_path / "outside"
    outside.write_bytes(CONTENT)
    async with opened(tmp_path) as store:
        for number, place in enumerate([path, path / ".trispool" / "held", path / ".trispool" / "dead"]):
            (place / name(number)).symlink_to(outside)
            entry = Entry(name(number), str((place / name(number)).relative_to(path)), 0.0, None, (0, 0))
            for operation in (store.hold, store.restore, store.remove, store.set_aside):
                assert not await operation(entry)
            assert await store.reschedule(entry, 1.0) is None
            assert (place / name(number)).is_symlink()
        os.mkfifo(path / name(9))
        assert await store.hold(Entry(name(9), name(9), 0.0, None, (0, 0))) is None
    assert outside.read_bytes() == CONTENT


async def test_what_does_not_work_is_said_and_the_task_is_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "spool"
    async with opened(tmp_path) as store:
        entry = await add(store, new_task({"n": "1"}, at=LATER, priority=5))
        (path / ".trispool" / "held" / "5").write_text("in the way")
        with pytest.raises(SpoolUnavailable, match="could not be held: File exists"):
            await store.hold(entry)
        assert await seen(store) == [entry.ref]
        (path / ".trispool" / "held" / "5").unlink()
        held = await store.hold(entry)
        assert held is not None
        (path / "5").rmdir()
        (path / "5").symlink_to(tmp_path)
        with pytest.raises(SpoolUnavailable, match="could not be put back: File exists"):
            await store.restore(held, 1.0)
        assert [*await store.held()] == [held]
        assert (path / held.ref).stat().st_mtime == LATER
        (path / "5").unlink()
        assert await store.restore(held) == entry


async def test_a_time_that_the_file_system_cannot_hold_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.utime

    def clamps(fd: int, *, ns: tuple[int, int]) -> None:
        real(fd, ns=(min(ns[0], 2**31 * 10**9), min(ns[1], 2**31 * 10**9)))

    async with opened(tmp_path) as store:
        entry = await add(store, new_task({"n": "1"}, at=2_000_000_000.25))
        monkeypatch.setattr(spoolshelves.os, "utime", clamps)
        with pytest.raises(TaskRefused, match="cannot hold a time that late"):
            await store.reschedule(entry, LATER)
        assert (tmp_path / "spool" / entry.ref).stat().st_mtime == entry.at
        held = await store.hold(entry)
        assert held is not None
        with pytest.raises(TaskRefused, match="cannot hold a time that late"):
            await store.restore(held, LATER)
        assert await store.restore(held) == entry


async def test_a_file_that_is_moved_before_its_lock_is_had_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "spool"
    real = spoolshelves.open_locked

    def moved_just_then(spool: int, ref: str) -> int:
        fd = real(spool, ref)
        (path / ref).rename(tmp_path / "elsewhere")
        (path / ref).write_bytes(b"another one")
        return fd

    async with opened(tmp_path) as store:
        entry = await add(store, new_task({"n": "1"}, at=LATER))
        monkeypatch.setattr(spoolshelves, "open_locked", moved_just_then)
        assert await store.remove(entry) is None
        assert (path / entry.ref).read_bytes() == b"another one"
        assert await store.reschedule(entry, 1.0) is None
        assert await store.hold(entry) is None
        assert await seen(store) == [entry.ref]


async def test_a_file_that_cannot_be_taken_from_its_place_is_not_put_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.unlink

    def refuses(path: str, *, dir_fd: int) -> None:
        if path == entry.ref:
            raise PermissionError(errno.EPERM, "Operation not permitted")
        real(path, dir_fd=dir_fd)

    async with opened(tmp_path) as store:
        entry = await add(store)
        with monkeypatch.context() as patch:
            patch.setattr(spoolshelves.os, "unlink", refuses)
            for operation in (store.hold, store.set_aside, store.remove):
                with pytest.raises(SpoolUnavailable, match="Operation not permitted"):
                    await operation(entry)
        assert await seen(store) == [entry.ref]
        assert ([*await store.held()], [*await store.dead()]) == ([], [])
        assert await store.hold(entry) is not None


async def test_a_file_that_a_person_takes_away_at_that_moment_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "spool"
    real = os.link

    def too_late(source: str, target: str, **options: Any) -> None:
        (path / source).unlink()
        real(source, target, **options)

    async with opened(tmp_path) as store:
        entry = await add(store)
        monkeypatch.setattr(spoolshelves.os, "link", too_late)
        assert await store.hold(entry) is None
        assert (await seen(store), [*await store.held()]) == ([], [])


async def test_a_file_that_we_may_not_open_is_unavailable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(tmp_path) as store:
        entry = await add(store)

        def refuses(spool: int, ref: str) -> int:
            raise Settling(f"{ref} cannot be opened: Permission denied")

        monkeypatch.setattr(spoolshelves, "open_locked", refuses)
        with pytest.raises(SpoolUnavailable, match=r"could not be removed: .* cannot be opened: Permission denied"):
            await store.remove(entry)


# A crash in the middle of a move


@pytest.mark.parametrize("folder", ["held", "dead"])
@pytest.mark.parametrize("priority", ["", "5/"])
async def test_a_move_that_a_crash_has_cut_short_has_not_been_made(folder: str, priority: str, tmp_path: Path) -> None:
    path = tmp_path / "spool"
    async with opened(tmp_path) as store:
        aside = path / ".trispool" / folder
        (path / "5").mkdir()
        for number in range(4):
            (path / priority / name(number)).write_bytes(CONTENT)
        (aside / name(0)).hardlink_to(path / priority / name(0))
        (aside / f"{name(1)}.2").hardlink_to(path / priority / name(1))
        (aside / name(2)).write_bytes(CONTENT)  # another task of that name
        (aside / name(4)).write_bytes(CONTENT)
        (tmp_path / "backup").hardlink_to(aside / name(4))
        (aside / name(3)).hardlink_to(path / priority / name(3))
        with locked_by_other_process(path / priority / name(3), "trispool"):  # it is moving it just now
            async with opened(tmp_path):
                pass
        assert {file.name for file in aside.iterdir()} == {name(2), name(3), name(4)}
        assert await seen(store) == [f"{priority}{name(number)}" for number in range(4)]


# What is known by heart


async def test_what_others_move_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shelves_module, "REST", 0)
    path = tmp_path / "spool"
    async with opened(tmp_path) as store:
        held = [await hold(store, new_task({"n": str(n)}, priority=n % 2 or None)) for n in range(4)]
        assert [*await store.held()] == held
        (path / held[0].ref).rename(path / held[0].id)
        (path / held[1].ref).unlink()
        assert [*await store.held()] == held[2:]
        assert store.held_count == 2
        (path / held[0].id).rename(path / held[0].ref)
        (path / ".trispool" / "held" / "8").mkdir()
        (path / ".trispool" / "held" / "8" / name(1)).write_bytes(CONTENT)
        assert set(ids(await store.held())) == {held[0].id, held[2].id, held[3].id, name(1)}
        aside = await store.lying(name(1))
        assert aside is not None
        assert (aside.entry.priority, aside.entry.ref) == (8, f".trispool/held/8/{name(1)}")
        (path / ".trispool" / "held" / "8" / name(1)).unlink()
        assert await store.restore(aside.entry) is None


async def test_a_task_that_has_been_put_aside_just_now_by_hand_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shelves_module, "REST", 0)
    path = tmp_path / "spool"
    async with opened(tmp_path) as store:
        assert await store.lying(name(1)) is None
        entry = await add(store)
        (path / entry.ref).rename(path / ".trispool" / "dead" / entry.id)
        aside = await store.lying(entry.id)
        assert aside is not None
        assert aside.state is TaskState.DEAD


class Reading:
    """Counts, and holds up, how often a shelf is read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        self.entered = threading.Event()
        self.go_on = threading.Event()
        self.go_on.set()
        real = shelves_module.lying_in

        def lying_in(*args: Any) -> Any:
            self.count += 1
            found = real(*args)
            self.entered.set()
            assert self.go_on.wait(PATIENCE)
            return found

        monkeypatch.setattr(shelves_module, "lying_in", lying_in)


def make_old(folder: Path) -> None:
    """As if the last change had been long ago."""
    for path in [folder, *(path for path in folder.iterdir() if path.is_dir())]:
        os.utime(path, (1_000_000_000, 1_000_000_000))


async def test_a_shelf_is_read_again_only_when_it_has_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reading = Reading(monkeypatch)
    monkeypatch.setattr(shelves_module, "REST", 0)
    async with opened(tmp_path) as store:
        await hold(store, new_task({"n": "1"}, priority=5))
        make_old(tmp_path / "spool" / ".trispool" / "held")
        shelf = await store.held()
        for _ in range(9):
            assert await store.held() is shelf
        assert reading.count == 1
        (tmp_path / "spool" / ".trispool" / "held" / "5" / name(1)).write_bytes(CONTENT)
        assert len(await store.held()) == 2
        assert reading.count == 2


async def test_a_shelf_that_takes_long_to_read_is_left_alone_for_longer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading = Reading(monkeypatch)
    now = 1000.0
    monkeypatch.setattr(shelves_module.time, "monotonic", lambda: now)
    async with opened(tmp_path) as store, trio.open_nursery() as nursery:
        reading.go_on.clear()
        nursery.start_soon(store.held)
        await trio.to_thread.run_sync(reading.entered.wait, PATIENCE)
        now += 2.0
        reading.go_on.set()
        assert [*await store.held()] == []
        (tmp_path / "spool" / ".trispool" / "held" / name(1)).write_bytes(CONTENT)
        now += shelves_module.REST * 2.0 - 0.1
        own = await hold(store)
        assert [*await store.held()] == [own]
        now += 0.2
        assert ids(await store.held()) == [name(1), own.id]
        assert reading.count == 2


async def test_what_we_do_while_a_shelf_is_read_is_not_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path) as store:
        old = await hold(store)
        waiting = await add(store)
        reading = Reading(monkeypatch)
        async with trio.open_nursery() as nursery:
            reading.go_on.clear()
            nursery.start_soon(store.held)
            await trio.to_thread.run_sync(reading.entered.wait, PATIENCE)
            # It has been read, but is not known yet.
            assert await store.restore(old) is not None
            new = await store.hold(waiting)
            reading.go_on.set()
        assert ids(await store.held()) == [waiting.id]
        assert await store.lying(old.id) is None
        assert await store.lying(waiting.id) == (TaskState.HELD, new)


def entry_number(number: int) -> Entry:
    return Entry(name(number), f".trispool/held/{name(number)}", 0.0, None, (1_700_000_000_000_000 + number, number))


def test_a_shelf_that_has_changed_is_as_one_that_was_made_afresh() -> None:
    rng = random.Random(1)
    there = {number: entry_number(number) for number in rng.sample(range(10_000), 5_000)}
    shelf = Shelf(rng.sample([*there.values()], len(there)))
    changes: list[tuple[Entry, bool]] = []
    for number in rng.sample(range(10_000), 500):
        if number in there:
            changes.append((there.pop(number), False))
        else:
            there[number] = entry_number(number)
            changes.append((there[number], True))
    again = entry_number(next(iter(there)))._replace(at=5.0)
    there[again.order[1]] = again
    changes += [(again, True), (entry_number(20_000), False)]
    changed = shelf.changed(changes)
    assert [*changed] == [*Shelf(there.values())] == sorted(there.values(), key=lambda entry: entry.order)
    assert len(shelf) == 5_000


@pytest.mark.parametrize("many", [1, 3, 1000])
async def test_what_we_do_is_in_order_at_once(many: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shelves_module, "MANY", many)
    monkeypatch.setattr(shelves_module, "REST", math.inf)
    async with opened(tmp_path) as store:
        waiting = [await add(store) for _ in range(8)]
        await store.held()
        held: dict[str, Entry] = {}
        for number in (5, 2, 7, 0, -2, 3, 1, -7, 6, 4, -0, -5, 5):
            entry = waiting[abs(number)]
            if entry.id in held:
                assert await store.restore(held.pop(entry.id))
            else:
                moved = await store.hold(entry)
                assert moved is not None
                held[entry.id] = moved
            if number % 2:
                assert [*await store.held()] == sorted(held.values(), key=lambda entry: entry.order)
        assert [*await store.held()] == sorted(held.values(), key=lambda entry: entry.order)


async def test_a_look_that_is_cancelled_does_no_harm(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await store.held()
        held = await hold(store)
        with trio.CancelScope() as scope:
            scope.cancel()
            await store.held()
        assert [*await store.held()] == [held]


async def test_a_shelf_that_cannot_be_read_is_unavailable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shelves_module, "REST", 0)
    async with opened(tmp_path) as store:
        held = await hold(store)
        folder = tmp_path / "spool" / ".trispool" / "held"
        folder.rename(tmp_path / "away")
        assert [*await store.held()] == []
        folder.write_text("in the way")
        with pytest.raises(SpoolUnavailable, match="held cannot be read"):
            await store.held()
        folder.unlink()
        (tmp_path / "away").rename(folder)
        assert [*await store.held()] == [held]


def test_a_spool_directory_tells_what_is_held(spool: SpoolDirectory) -> None:
    (entry,) = spool.add([new_task({"n": "1"})])
    assert isinstance(entry, Entry)
    assert spool.held() == []
    held = spool.hold(entry.ref)
    assert spool.held() == [held]
    assert spool.names() == []
