"""What the directory store tells of a spool directory, by real inotify."""

from __future__ import annotations

import errno
import itertools
import math
import os
import shutil
import subprocess
import sys
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING, Final

import inotify_simple
import pytest
import trio

from tests.test_scanner import Notes
from trispool import spoolfile
from trispool.errors import SpoolUnavailable
from trispool.packet import encode_vars, new_task
from trispool.scanner import Scanner
from trispool.spooldir import SpoolDirectory
from trispool.store import watch as watch_module
from trispool.store.directory import DirectoryStore, open_directory_store
from trispool.store.watch import DirectoryWatch
from trispool.task import Entry

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from pathlib import Path

    from trispool.store import Change

PATIENCE: Final = 10.0
CONTENT: Final = spoolfile.encode(encode_vars({"n": "1"}), b"body")

_counter = itertools.count(1)


def new_name() -> str:
    """The name of a file that another machine's uWSGI wrote a while ago."""
    return spoolfile.new_name("elsewhere", 4711, next(_counter), 1, 1_700_000_000, 1)


class Watched:
    """A spool directory and what is told of it."""

    def __init__(self, store: DirectoryStore, path: Path, outside: Path) -> None:
        self.store = store
        self.path = path
        self.outside = outside
        self._send, self._told = trio.open_memory_channel["Sequence[Change] | None"](math.inf)

    async def run(self) -> None:
        async with aclosing(self.store.watch()) as watch:
            async for changes in watch:
                self._send.send_nowait(changes)

    async def next(self) -> Sequence[Change] | None:
        with trio.fail_after(PATIENCE):
            return await self._told.receive()

    async def changes(self) -> Sequence[Change]:
        changes = await self.next()
        assert changes is not None
        return changes

    async def one(self) -> Change:
        (change,) = await self.changes()
        return change

    async def told_of(self, ref: str) -> Entry | None:
        change = await self.one()
        assert change.ref == ref
        return change.entry

    async def told_after_all(self, ref: str) -> Entry | None:
        """The same, though a scan may be asked for before: the end of a directory is told while we still have it open,
        or not."""
        while (changes := await self.next()) is None:
            pass
        (change,) = changes
        assert change.ref == ref
        return change.entry

    async def nothing_but(self, *refs: str) -> None:
        """All that has happened so far has been told, and it was this."""
        end = f"{spoolfile.PREFIX}end{next(_counter)}"
        (self.outside / end).write_bytes(CONTENT)
        os.rename(self.outside / end, self.path / end)
        seen: list[str] = []
        while end not in seen:
            seen += [change.ref for change in await self.changes()]
        assert seen == [*refs, end]

    def prepare(self, name: str) -> Path:
        """A whole file beside the spool."""
        path = self.outside / name
        path.write_bytes(CONTENT)
        return path


@asynccontextmanager
async def watching(tmp_path: Path, prepare: Callable[[Path], object] = lambda path: None) -> AsyncIterator[Watched]:
    path, outside = tmp_path / "spool", tmp_path / "outside"
    path.mkdir()
    outside.mkdir()
    prepare(path)
    async with open_directory_store(str(path), fsync=False) as store, trio.open_nursery() as nursery:
        watched = Watched(store, path, outside)
        nursery.start_soon(watched.run)
        assert await watched.next() is None
        yield watched
        nursery.cancel_scope.cancel()


_WRITER: Final = """
import os, sys
with open(sys.argv[1], "wb", buffering=0) as file:
    file.write(bytes.fromhex(sys.argv[2])[:9])
    os.write(1, b"!")
    input()
    file.write(bytes.fromhex(sys.argv[2])[9:])
"""


async def test_a_file_written_by_another_process_is_told_as_whole_when_it_is_closed(tmp_path: Path) -> None:
    async with watching(tmp_path) as spool:
        name = new_name()
        writer = await trio.lowlevel.open_process(
            [sys.executable, "-c", _WRITER, str(spool.path / name), CONTENT.hex()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert writer.stdin is not None
        assert writer.stdout is not None
        with trio.fail_after(PATIENCE):
            assert (await writer.stdout.receive_some(1)) == b"!"
            entry = await spool.told_of(name)
            assert entry is not None
            assert (entry.id, entry.ref, entry.fresh) == (name, name, True)
            await writer.stdin.send_all(b"\n")
            entry = await spool.told_of(name)
            assert entry is not None
            assert entry == Entry(name, name, (spool.path / name).stat().st_mtime_ns / 10**9, None, entry.order)
            assert entry.order == spoolfile.order_of(name, 0)
            await writer.wait()
        await spool.nothing_but()


async def test_a_file_that_is_renamed_into_the_spool_is_whole(tmp_path: Path) -> None:
    async with watching(tmp_path) as spool:
        name = new_name()
        os.rename(spool.prepare(name), spool.path / name)
        entry = await spool.told_of(name)
        assert entry is not None
        assert not entry.fresh


async def test_a_file_that_is_linked_into_the_spool_is_fresh(tmp_path: Path) -> None:
    async with watching(tmp_path) as spool:
        name = new_name()
        os.link(spool.prepare(name), spool.path / name)
        entry = await spool.told_of(name)
        assert entry is not None
        assert entry.fresh


async def test_a_file_whose_attributes_are_set_while_it_is_written_is_not_whole(tmp_path: Path) -> None:
    async with watching(tmp_path) as spool:
        name = new_name()
        fd = os.open(spool.path / name, os.O_CREAT | os.O_WRONLY)
        await spool.told_of(name)
        os.fchmod(fd, 0o600)
        entry = await spool.told_of(name)
        assert entry is not None
        assert entry.fresh
        os.close(fd)


async def test_a_file_that_was_written_closed_and_touched_at_once_is_told_once_and_whole(tmp_path: Path) -> None:
    async with watching(tmp_path) as spool:
        name = new_name()
        (spool.path / name).write_bytes(CONTENT)
        os.utime(spool.path / name, (5.0, 5.0))
        entry = await spool.told_of(name)
        assert entry is not None
        assert (entry.at, entry.fresh) == (5.0, False)
        await spool.nothing_but()


async def test_a_file_that_is_deleted_or_moved_out_is_gone(tmp_path: Path) -> None:
    async with watching(tmp_path) as spool:
        first, second = new_name(), new_name()
        for name in (first, second):
            os.rename(spool.prepare(name), spool.path / name)
        await spool.changes()
        os.unlink(spool.path / first)
        assert await spool.one() == (first, None)
        os.rename(spool.path / second, spool.outside / second)
        assert await spool.one() == (second, None)


async def test_a_file_that_came_and_went_at_once_is_gone_and_one_that_went_and_came_is_there(tmp_path: Path) -> None:
    async with watching(tmp_path) as spool:
        first, second = new_name(), new_name()
        os.rename(spool.prepare(second), spool.path / second)
        await spool.changes()
        (spool.path / first).write_bytes(CONTENT)
        os.unlink(spool.path / first)
        os.unlink(spool.path / second)
        os.rename(spool.prepare(second), spool.path / second)
        changes = dict(await spool.changes())
        assert changes[first] is None
        assert changes[second] is not None


async def test_a_touch_is_told_with_its_time(tmp_path: Path) -> None:
    async with watching(tmp_path) as spool:
        name = new_name()
        os.rename(spool.prepare(name), spool.path / name)
        await spool.changes()
        os.utime(spool.path / name, (2_000_000_000.25, 2_000_000_000.25))
        entry = await spool.told_of(name)
        assert entry is not None
        assert entry.at == 2_000_000_000.25


async def test_files_in_priority_directories_are_told(tmp_path: Path) -> None:
    async with watching(tmp_path, lambda path: (path / "7").mkdir()) as spool:
        name = new_name()
        os.rename(spool.prepare(name), spool.path / "7" / name)
        entry = await spool.told_of(f"7/{name}")
        assert entry is not None
        assert (entry.id, entry.priority) == (name, 7)


@pytest.mark.parametrize("how", ["made", "moved-in", "renamed"])
async def test_a_new_priority_directory_is_scanned_and_then_watched(how: str, tmp_path: Path) -> None:
    async with watching(tmp_path, lambda path: (path / "other").mkdir()) as spool:
        if how == "made":
            (spool.path / "12").mkdir()
        elif how == "renamed":
            os.rename(spool.path / "other", spool.path / "12")
        else:
            (spool.outside / "dir").mkdir()
            os.rename(spool.outside / "dir", spool.path / "12")
        assert await spool.next() is None
        name = new_name()
        os.rename(spool.prepare(name), spool.path / "12" / name)
        entry = await spool.told_of(f"12/{name}")
        assert entry is not None
        assert entry.priority == 12


async def test_what_happened_beside_a_new_priority_directory_is_told_too(tmp_path: Path) -> None:
    async with watching(tmp_path) as spool:
        name = new_name()
        (spool.path / "12").mkdir()
        (spool.path / name).write_bytes(CONTENT)
        entry = await spool.told_of(name)
        assert entry is not None
        assert not entry.fresh
        assert await spool.next() is None


async def test_a_priority_directory_that_goes_and_comes_again_is_watched_again(tmp_path: Path) -> None:
    async with watching(tmp_path, lambda path: (path / "7").mkdir()) as spool:
        (spool.path / "7").rmdir()
        (spool.path / "7").mkdir()
        assert await spool.next() is None
        name = new_name()
        os.rename(spool.prepare(name), spool.path / "7" / name)
        assert await spool.told_of(f"7/{name}") is not None


async def test_a_priority_directory_that_is_renamed_asks_for_a_scan(tmp_path: Path) -> None:
    async with watching(tmp_path, lambda path: (path / "5").mkdir()) as spool:
        os.utime(spool.path / "5")
        await spool.nothing_but()
        os.rename(spool.path / "5", spool.path / "old")
        assert await spool.next() is None


async def test_what_the_watch_tells_of_leaves_a_spool_unchanged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch_module, "is_local", lambda fd: True)
    async with watching(tmp_path) as spool:
        assert await spool.store.is_unchanged()
        name = new_name()
        (spool.path / name).write_bytes(CONTENT)
        assert await spool.told_of(name)
        os.mkdir(spool.path / "5")
        assert await spool.next() is None
        assert await spool.store.is_unchanged()


@pytest.mark.parametrize("how", ["moved", "replaced"])
async def test_another_directory_is_a_change_until_a_scan_has_gone_over_to_it(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch_module, "is_local", lambda fd: True)
    async with watching(tmp_path) as spool:
        os.rename(spool.path, spool.outside / "old")
        if how == "replaced":
            spool.path.mkdir()
        assert not await spool.store.is_unchanged()
        assert not await spool.store.is_unchanged()
        spool.path.mkdir(exist_ok=True)
        assert [entry async for chunk in spool.store.scan() for entry in chunk] == []
        assert await spool.store.is_unchanged()


@pytest.mark.parametrize("why", ["remote", "a folder is not watched", "it has ended"])
async def test_a_watch_that_may_miss_something_is_not_relied_on(
    why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch_module, "is_local", lambda fd: why != "remote")
    add_watch = inotify_simple.INotify.add_watch

    def fail(inotify: inotify_simple.INotify, path: str, mask: int) -> int:
        if path.endswith("/5"):
            raise OSError(28, "no more watches")
        return add_watch(inotify, path, mask)

    monkeypatch.setattr(inotify_simple.INotify, "add_watch", fail)
    opened = SpoolDirectory(tmp_path / "spool")
    watch = DirectoryWatch(opened, trio.CapacityLimiter(1))
    assert not watch.sees_all
    async with aclosing(watch.changes()) as changes:
        assert await anext(changes) is None
        assert watch.sees_all is (why != "remote")
        if why == "a folder is not watched":
            os.mkdir(opened.absolute("5"))
            assert await anext(changes) is None
            assert not watch.sees_all
    assert not watch.sees_all
    opened.close()


@pytest.mark.parametrize("comes", ["first", "later"])
async def test_a_priority_directory_on_another_file_system_is_judged_by_that(
    comes: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def is_remote(fd: int) -> bool:
        return os.readlink(f"/proc/self/fd/{fd}").endswith("/5")

    monkeypatch.setattr(watch_module, "mount_of", lambda fd: "2" if is_remote(fd) else "1")
    monkeypatch.setattr(watch_module, "is_local", lambda fd: not is_remote(fd))
    opened = SpoolDirectory(tmp_path / "spool")
    watch = DirectoryWatch(opened, trio.CapacityLimiter(1))
    os.mkdir(opened.absolute("4"))
    if comes == "first":
        os.mkdir(opened.absolute("5"))
    async with aclosing(watch.changes()) as changes:
        assert await anext(changes) is None
        if comes == "later":
            assert watch.sees_all
            os.mkdir(opened.absolute("5"))
            assert await anext(changes) is None
        assert not watch.sees_all
        os.rmdir(opened.absolute("5"))
        (tmp_path / "spool" / new_name()).write_bytes(CONTENT)  # told after that
        assert await anext(changes)
        assert watch.sees_all
    opened.close()


def mount(place: Path) -> bool:
    """Put a file system over a directory, if that is allowed."""
    command = ["mount", "-t", "tmpfs", "trispool", str(place)]
    try:
        return not subprocess.run(command, capture_output=True, check=False).returncode
    except FileNotFoundError:
        return False


def unmount(place: Path) -> None:
    subprocess.run(["umount", str(place)], check=True)


async def test_a_priority_directory_that_is_a_mount_is_watched_and_what_it_lay_over_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "try").mkdir()
    if not mount(tmp_path / "try"):
        pytest.skip("nothing can be mounted here")
    unmount(tmp_path / "try")
    monkeypatch.setattr(watch_module, "is_local", lambda fd: True)
    async with watching(tmp_path, lambda path: (path / "7").mkdir()) as spool:
        assert await spool.store.is_unchanged()
        assert mount(spool.path / "7")
        try:
            assert not await spool.store.is_unchanged()  # nobody tells that it has come
            assert await spool.store.is_unchanged()
            name = new_name()
            (spool.path / "7" / name).write_bytes(CONTENT)
            assert await spool.told_of(f"7/{name}") is not None
        finally:
            unmount(spool.path / "7")
        assert await spool.next() is None
        assert await spool.store.is_unchanged()
        name = new_name()
        (spool.path / "7" / name).write_bytes(CONTENT)
        assert await spool.told_of(f"7/{name}") is not None


@pytest.mark.parametrize("how", ["removed", "moved"])
async def test_a_spool_in_the_place_of_another_is_watched(how: str, tmp_path: Path) -> None:
    async with watching(tmp_path) as spool:
        if how == "removed":
            shutil.rmtree(spool.path)  # inotify does not tell, as we have it open
        else:
            spool.path.rename(tmp_path / "elsewhere")
            assert await spool.next() is None
        with pytest.raises(SpoolUnavailable):
            await anext(spool.store.scan())
        (spool.path / "7").mkdir(parents=True)
        assert [chunk async for chunk in spool.store.scan()] == []
        for folder in ("", "7/"):
            name = new_name()
            os.rename(spool.prepare(name), spool.path / f"{folder}{name}")
            assert await spool.told_after_all(f"{folder}{name}") is not None


async def test_what_is_no_task_is_not_told(tmp_path: Path) -> None:
    async with watching(tmp_path) as spool:
        (spool.path / "notes.txt").write_bytes(b"")
        (spool.path / ".trispool" / "tmp" / new_name()).write_bytes(CONTENT)
        os.mkfifo(spool.path / "fifo")
        (spool.path / "sub").mkdir()
        (spool.path / f"{spoolfile.PREFIX}\udcff").write_bytes(CONTENT)
        await spool.nothing_but()


async def test_a_link_by_the_name_of_a_task_is_none(tmp_path: Path) -> None:
    async with watching(tmp_path) as spool:
        name = new_name()
        (spool.path / name).symlink_to(spool.prepare(new_name()))
        assert await spool.told_of(name) is None


async def test_own_adds_are_not_told(tmp_path: Path) -> None:
    async with watching(tmp_path, lambda path: (path / "3").mkdir()) as spool:
        named = new_task({"n": "3"})._replace(id=new_name())
        results = await spool.store.add([new_task({"n": "1"}), new_task({"n": "2"}, priority=3), named])
        assert all(isinstance(result, Entry) for result in results)
        await spool.nothing_but()


async def test_own_adds_that_somebody_moves_or_touches_are_told(tmp_path: Path) -> None:
    async with watching(tmp_path, lambda path: (path / "3").mkdir()) as spool:
        (entry,) = await spool.store.add([new_task({"n": "1"})])
        assert isinstance(entry, Entry)
        os.rename(spool.path / entry.ref, spool.path / "3" / entry.id)
        gone, there = await spool.changes()
        assert gone == (entry.ref, None)
        assert there.ref == f"3/{entry.id}"
        assert there.entry is not None
        os.utime(spool.path / there.ref, (5.0, 5.0))
        touched = await spool.told_of(there.ref)
        assert touched is not None
        assert touched.at == 5.0


async def test_adds_of_a_worker_process_are_told(tmp_path: Path) -> None:
    code = "import sys; from trispool.spooldir import SpoolDirectory; from trispool.packet import new_task;"
    code += "print(SpoolDirectory(sys.argv[1]).add([new_task({'n': '1'})])[0].id)"
    async with watching(tmp_path) as spool:
        with trio.fail_after(PATIENCE):
            done = await trio.run_process([sys.executable, "-c", code, str(spool.path)], capture_stdout=True)
        entry = await spool.told_of(done.stdout.decode().strip())
        assert entry is not None
        assert not entry.fresh


async def test_a_file_that_is_moved_back_from_dead_is_told(tmp_path: Path) -> None:
    async with watching(tmp_path) as spool:
        name = new_name()
        os.rename(spool.prepare(name), spool.path / name)
        entry = await spool.told_of(name)
        assert entry is not None
        assert await spool.store.set_aside(entry)
        assert await spool.told_of(name) is None
        os.rename(spool.path / ".trispool" / "dead" / name, spool.path / name)
        entry = await spool.told_of(name)
        assert entry is not None
        assert not entry.fresh


async def test_what_a_worker_removes_is_gone_and_its_close_is_not_told(tmp_path: Path) -> None:
    async with watching(tmp_path) as spool:
        name = new_name()
        os.rename(spool.prepare(name), spool.path / name)
        await spool.changes()
        worker = SpoolDirectory(spool.path)
        held = worker.claim(name)
        os.unlink(spool.path / name)
        assert await spool.told_of(name) is None
        held.close()
        worker.close()
        await spool.nothing_but()


async def test_many_events_are_told_in_parts_and_none_is_missing(tmp_path: Path) -> None:
    async with watching(tmp_path) as spool:
        names = [new_name() for _ in range(2000)]
        for name in names:
            spool.prepare(name)
        for name in names:
            os.rename(spool.outside / name, spool.path / name)
        seen: list[str] = []
        parts = 0
        while len(seen) < len(names):
            seen += [change.ref for change in await spool.changes() if change.entry is not None]
            parts += 1
        assert seen == names
        assert parts > 3


async def test_many_events_that_tell_nothing_new_do_not_hold_up_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch_module, "GATHER_SECONDS", 1000)
    async with watching(tmp_path) as spool:
        names = [new_name() for _ in range(2000)]
        for name in names:
            os.rename(spool.prepare(name), spool.path / name)
        while names[-1] not in [change.ref for change in await spool.changes()]:
            pass
        for name in names:
            os.unlink(spool.path / name)
        name = new_name()
        os.rename(spool.prepare(name), spool.path / name)
        while name not in [change.ref for change in await spool.changes()]:
            pass


async def test_events_that_were_lost_ask_for_a_scan_and_then_all_is_told_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch_module, "is_local", lambda fd: True)
    limit = int((await trio.Path("/proc/sys/fs/inotify/max_queued_events").read_text()).strip())
    async with watching(tmp_path) as spool:
        first, second = new_name(), new_name()
        for name in (first, second):
            os.rename(spool.prepare(name), spool.path / name)
        await spool.changes()
        # Nobody reads while this goes on. The same event twice in a row would count once, so they alternate.
        for number in range(limit // 2 + 10):
            os.utime(spool.path / first, (number, number))
            os.utime(spool.path / second, (number, number))
        os.mkdir(spool.path / "7")  # of which nothing is told
        while (changes := await spool.next()) is not None:
            assert {change.ref for change in changes} <= {first, second}
        assert await spool.store.is_unchanged()
        for folder in ("", "7/"):
            name = new_name()
            os.rename(spool.prepare(name), spool.path / f"{folder}{name}")
            assert await spool.told_of(f"{folder}{name}") is not None


def _no_more_watches(*args: object) -> int:
    raise OSError(28, "No space left on device")


def _no_more_instances(*args: object, **kwargs: object) -> None:
    raise OSError(24, "Too many open files")


@pytest.mark.parametrize("what", ["instance", "watch", "priorities"])
async def test_a_watch_that_cannot_be_set_leaves_the_scan_working(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if what == "instance":
        monkeypatch.setattr(inotify_simple, "INotify", _no_more_instances)
    elif what == "watch":
        monkeypatch.setattr(inotify_simple.INotify, "add_watch", _no_more_watches)
    else:
        monkeypatch.setattr(SpoolDirectory, "priorities", _no_more_watches)
    name = new_name()
    notes = Notes()
    with trio.fail_after(PATIENCE):
        async with open_directory_store(str(tmp_path / "spool"), fsync=False) as store, trio.open_nursery() as nursery:
            scanner = Scanner(store, notes, 1000)
            await nursery.start(scanner.run_scanner)
            (tmp_path / "spool" / name).write_bytes(CONTENT)
            await scanner.scan_now()
            assert notes.seen == [name]
            nursery.cancel_scope.cancel()


async def test_it_is_said_at_once_that_there_is_no_watch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inotify_simple, "INotify", _no_more_instances)
    async with watching(tmp_path) as spool:  # it waits for that
        spool.store._watch.miss()
        assert await spool.next() is None


async def test_a_watch_can_be_set_again_after_it_has_ended(tmp_path: Path) -> None:
    opened = SpoolDirectory(tmp_path / "spool")
    watch = DirectoryWatch(opened, trio.CapacityLimiter(1))
    with trio.fail_after(PATIENCE):
        for number in range(2):
            async with aclosing(watch.changes()) as changes:
                assert await anext(changes) is None
                (tmp_path / "spool" / new_name()).write_bytes(CONTENT + bytes(number))
                told = await anext(changes)
                assert told is not None
                assert len(told) == 1
    opened.close()


async def test_events_that_cannot_be_read_are_looked_for_by_a_scan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, errors = os.read, [OSError(errno.EIO, "Input/output error")]

    def failing_once(fd: int, size: int) -> bytes:
        if size == watch_module.READ_BYTES and errors:
            raise errors.pop()
        return read(fd, size)

    async with watching(tmp_path) as spool:
        monkeypatch.setattr(os, "read", failing_once)
        monkeypatch.setattr(watch_module, "FAILED_SECONDS", 0.0)
        name = new_name()
        os.rename(spool.prepare(name), spool.path / name)
        assert await spool.next() is None
        assert not errors
        assert (await spool.told_of(name)) is not None


async def test_a_priority_directory_that_was_moved_away_says_nothing_of_the_one_in_its_place(tmp_path: Path) -> None:
    async with watching(tmp_path) as spool:
        name = new_name()
        (spool.path / "5").mkdir()
        assert await spool.next() is None
        os.rename(spool.prepare(name), spool.path / "5" / name)
        await spool.told_after_all(f"5/{name}")
        os.rename(spool.path / "5", spool.outside / "5")
        shutil.copytree(spool.outside / "5", spool.path / "5")
        while await spool.next() is not None:
            pass
        shutil.rmtree(spool.outside / "5")
        end = new_name()
        os.rename(spool.prepare(end), spool.path / end)
        told: dict[str, Entry | None] = {}
        while end not in told:
            told |= dict(await spool.next() or ())
        assert told.get(f"5/{name}", "nothing") is not None
