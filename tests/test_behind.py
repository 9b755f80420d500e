"""Write-behind: tasks that are rows first and files only if they wait, on real directories and databases."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import sqlite3
import threading
import time
from contextlib import aclosing, closing
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from tests.behind_support import opened_behind
from tests.test_writethread import without_descriptors
from trispool import incomingfile, spoolfile, writeout
from trispool.claimed import Locked
from trispool.errors import SpoolUnavailable, TaskRefused
from trispool.ledger import Ledger
from trispool.ledgerfile import LedgerFile
from trispool.packet import new_task
from trispool.spooldir import SpoolDirectory
from trispool.spoolwriter import new_name
from trispool.store import behind as behind_module
from trispool.store import commits as commits_module
from trispool.store import incoming as incoming_module
from trispool.store import outgoing as outgoing_module
from trispool.store.directory import DirectoryStore, open_directory_store
from trispool.task import AttemptRow, Entry, NewTask

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from trispool.errors import TrispoolError

LATER = 2_000_000_000.25


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "spool"


@pytest.fixture
def never(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is written out because it waits."""
    monkeypatch.setattr(outgoing_module, "WAIT_SECONDS", 1e6)


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outgoing_module, "WAIT_SECONDS", 0.001)


def task(n: object = 1, body: bytes = b"body", **options: Any) -> NewTask:
    return new_task({"n": str(n)}, body, **options)


async def add(store: DirectoryStore, *tasks: NewTask) -> list[Entry]:
    results = await store.add(tasks)
    assert all(isinstance(result, Entry) for result in results), results
    return [result for result in results if isinstance(result, Entry)]


def rows(path: Path) -> list[tuple[str, bytes, bytes]]:
    """What another process finds in the table."""
    with closing(sqlite3.connect(f"file:{path}/.trispool/spool.db?mode=rw", uri=True)) as connection:
        return connection.execute("SELECT task, payload, body FROM incoming ORDER BY seq").fetchall()


def ids_of_rows(path: Path) -> list[str]:
    return [row[0] for row in rows(path)]


def files(path: Path) -> list[str]:
    with_priority = [
        f"{name}/{file}" for name in os.listdir(path) if name.isdecimal() for file in os.listdir(path / name)
    ]
    return sorted([name for name in os.listdir(path) if name.startswith(spoolfile.PREFIX)] + with_priority)


async def until(holds: Any) -> None:
    """Wait for what a thread does to the disk."""

    def now() -> Any:
        with contextlib.suppress(sqlite3.DatabaseError, FileNotFoundError):  # not there yet, or damaged still
            return holds()

    while not await trio.to_thread.run_sync(now):  # noqa: ASYNC110 # a disk tells nobody
        await trio.sleep(0.002)


def move(before: Path, after: Path) -> None:
    before.rename(after)


async def seen(store: DirectoryStore) -> list[str]:
    return sorted([entry.ref async for chunk in store.scan() for entry in chunk])


def done(entry: Entry) -> AttemptRow:
    return AttemptRow(
        entry.id,
        1,
        "ok",
        "done",
        1.0,
        0.0,
        0.0,
        1,
        "h",
        None,
        None,
        entry.at,
        entry.priority,
        entry.order[0] / 1e6,
        None,
    )


# Keeping


async def test_a_task_is_a_row_when_it_has_been_added_and_no_file(path: Path, never: None) -> None:
    async with opened_behind(path) as (store, _):
        (entry,) = await add(store, task(7, b"\x00body"))
        assert [(name, body) for name, _, body in rows(path)] == [(entry.id, b"\x00body")]
        assert files(path) == []
        assert await seen(store) == [entry.ref]
        read = await store.get(entry.ref, body_limit=3)
        assert read is not None
        assert (read.id, read.vars, read.body) == (entry.id, {b"n": b"7"}, b"\x00bo")


async def test_what_waits_at_the_same_time_is_one_transaction(
    path: Path, never: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    real = LedgerFile.write

    def write(self: LedgerFile, attempts: Any, retrying: Any, incoming: Any) -> int:
        sizes.append(len(incoming.added))
        return real(self, attempts, retrying, incoming)

    monkeypatch.setattr(LedgerFile, "write", write)
    async with opened_behind(path) as (store, _):
        async with trio.open_nursery() as nursery:
            for number in range(50):
                nursery.start_soon(add, store, task(number), task(number))
        assert sum(sizes) == 100
        assert len(sizes) <= 3


@pytest.mark.parametrize(("fsync", "level"), [(True, 2), (False, 1)])
async def test_a_commit_is_as_durable_as_the_spool(
    fsync: bool, level: int, path: Path, never: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    levels: list[int] = []
    real = incomingfile.apply

    def apply(connection: sqlite3.Connection, change: Any) -> None:
        real(connection, change)
        levels.append(connection.execute("PRAGMA synchronous").fetchone()[0])

    monkeypatch.setattr(incomingfile, "apply", apply)
    async with opened_behind(path, fsync=fsync) as (store, _):
        await add(store, task())
        # Removals, too: a checkpoint that had to sync them would not tell if it failed.
        await store.finish(await store.claim(await add(store, task())))
    assert len(levels) > 2
    assert set(levels) == {level}


async def test_ten_thousand_tasks_of_one_call_are_kept_together(path: Path, never: None) -> None:
    async with opened_behind(path) as (store, _):
        added = await add(store, *(task(number, b"") for number in range(10_000)))
        assert ids_of_rows(path) == [entry.id for entry in added]
        assert [entry.order for entry in added] == sorted(entry.order for entry in added)


async def test_a_task_with_a_large_body_or_a_very_late_one_has_a_file_at_once(path: Path, never: None) -> None:
    async with opened_behind(path) as (store, _):
        (large,) = await add(store, task(1, bytes(65_537)))
        (late,) = await add(store, task(2, at=3_000_000_000.0))
        assert files(path) == sorted([large.ref, late.ref])
        (small,) = await add(store, task(3, bytes(65_536)))
        both = await add(store, task(4, bytes(65_537)), task(5))  # in one transaction all the same
        assert ids_of_rows(path) == [small.id, both[0].id, both[1].id]
        assert len(await seen(store)) == 5


async def test_others_run_what_is_put_into_an_external_spool_so_it_has_files_at_once(path: Path, never: None) -> None:
    async with opened_behind(path, accepts=False) as (store, _):
        (entry,) = await add(store, task())
        assert files(path) == [entry.ref]
        assert rows(path) == []


async def test_a_name_that_is_taken_is_refused_wherever_its_task_is(path: Path, never: None) -> None:
    async with opened_behind(path) as (store, _):
        names = [new_name()[0] for _ in range(4)]
        await add(store, named(names[0]))
        await add(store, named(names[1], bytes(70_000)))
        (entry,) = await add(store, named(names[2]))
        held = await store.hold(entry)
        assert held is not None
        for name in names[:3]:
            for body in (b"", bytes(70_000)):
                (refused,) = await store.add([named(name, body)])
                if name == names[2] and body:
                    continue  # without write-behind only what waits is looked at
                assert isinstance(refused, TaskRefused)
                assert refused.status == 409
        first, second, other = await store.add([named(names[3]), named(names[3]), task()])
        assert (isinstance(first, Entry), isinstance(second, TaskRefused), isinstance(other, Entry)) == (True,) * 3
        assert first.id == names[3]


def named(name: str, body: bytes = b"") -> NewTask:
    return NewTask(task().payload, body, id=name)


async def test_two_calls_with_one_name_at_the_same_time_keep_one_task(path: Path, never: None) -> None:
    name = new_name()[0]
    results: list[Entry | TrispoolError] = []
    async with opened_behind(path) as (store, _):

        async def add_one() -> None:
            results.extend(await store.add([named(name)]))

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(add_one)
        assert sorted(isinstance(result, Entry) for result in results) == [False] * 4 + [True]
        assert ids_of_rows(path) == [name]


async def test_who_is_refused_a_name_does_not_let_others_have_it(path: Path, never: None) -> None:
    name = new_name()[0]
    results: list[Entry | TrispoolError] = []

    async def enqueue(store: DirectoryStore) -> None:
        results.extend(await store.add([named(name)]))

    async with opened_behind(path) as (store, ledger):
        async with trio.open_nursery() as nursery, ledger._flushing:  # no commit ends meanwhile
            for _ in range(3):
                nursery.start_soon(enqueue, store)
                await trio.testing.wait_all_tasks_blocked(0.05)
        assert [isinstance(result, Entry) for result in results].count(True) == 1
        assert ids_of_rows(path) == [name]


async def test_where_there_is_no_room_a_call_waits_until_some_have_been_written_out(
    path: Path, never: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(incoming_module, "MAX_ROWS", 10)
    async with opened_behind(path) as (store, _):
        added = [await add(store, task(), task(), task()) for _ in range(10)]
        assert len(set(await seen(store))) == 30
        assert len(rows(path)) <= 10
        # What is larger than all the room there is comes in alone.
        added.append(await add(store, *[task()] * 11))
        assert set(await seen(store)) == {entry.ref for entries in added for entry in entries}
    assert len(files(path)) == 41


@pytest.mark.parametrize("limit", ["MAX_ROWS", "MAX_BYTES"])
@pytest.mark.parametrize("is_late", [False, True])
async def test_what_runs_for_long_takes_no_room_from_what_comes(
    is_late: bool, limit: str, path: Path, never: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(incoming_module, limit, 3 if limit == "MAX_ROWS" else 3 * len(task().payload + task().body))
    async with opened_behind(path) as (store, _):
        running = await add(store, task(1), task(2))
        if not is_late:
            await store.claim(running)
            await add(store, task(3), task(4), task(5))
            return
        # Nothing can be written out, as it is all claimed, when room is wanted.
        async with trio.open_nursery() as nursery:
            monkeypatch.setattr(outgoing_module.Outgoing, "press", lambda self: None)
            nursery.start_soon(add, store, task(3), task(4), task(5))
            await trio.testing.wait_all_tasks_blocked()
            await store.claim(running)


async def test_where_there_is_no_room_and_none_can_be_made_tasks_are_refused(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(incoming_module, "MAX_ROWS", 3)
    monkeypatch.setattr(outgoing_module, "RETRY_SECONDS", 0.01)
    real = writeout.prepare

    def fail(writer: Any, tasks: Sequence[writeout.Leaving]) -> None:
        for item in tasks:
            item.error = OSError(28, "No space left on device")

    monkeypatch.setattr(writeout, "prepare", fail)
    async with opened_behind(path) as (store, _):
        await add(store, task(), task(), task())
        (refused,) = await store.add([task()])
        assert isinstance(refused, SpoolUnavailable)
        assert "No space left" in str(refused)
        assert "No space left" in str(store.problem)
        monkeypatch.setattr(writeout, "prepare", real)
        await until(lambda: len(files(path)) == 3 and store.problem is None)
        await add(store, task())
        await until(lambda: len(files(path)) == 4)


async def test_what_could_not_be_written_out_is_no_problem_any_more_when_it_has_run(
    path: Path, soon: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outgoing_module, "RETRY_SECONDS", 0.01)

    def fail(writer: Any, tasks: Sequence[writeout.Leaving]) -> None:
        for item in tasks:
            item.error = OSError(28, "No space left on device")

    monkeypatch.setattr(writeout, "prepare", fail)
    async with opened_behind(path) as (store, _):
        entries = await add(store, task(), task())
        await until(lambda: store.problem is not None)
        await store.finish(await store.claim(entries))
        await until(lambda: store.problem is None)


async def test_a_commit_that_fails_is_not_acknowledged_and_the_next_one_may_succeed(
    path: Path, never: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = incomingfile.apply

    def fail(connection: sqlite3.Connection, change: Any) -> None:
        real(connection, change)
        if change.added:
            error = sqlite3.OperationalError("disk I/O error")
            error.sqlite_errorcode = sqlite3.SQLITE_IOERR_FSYNC
            raise error

    async with opened_behind(path, fsync=True) as (store, _):
        (before,) = await add(store, task(1))
        monkeypatch.setattr(incomingfile, "apply", fail)
        first, second = await store.add([task(2), task(3)])
        assert isinstance(first, SpoolUnavailable)
        assert isinstance(second, SpoolUnavailable)
        assert "disk I/O error" in str(store.problem)
        monkeypatch.setattr(incomingfile, "apply", real)
        (after,) = await add(store, task(4))
        assert store.problem is None
        assert ids_of_rows(path) == [before.id, after.id]
        assert await seen(store) == sorted([before.ref, after.ref])


async def test_what_is_acknowledged_after_the_log_was_removed_is_in_the_file_that_is_there(
    path: Path, never: None, tmp_path: Path
) -> None:
    async with opened_behind(path, fsync=True) as (store, _):
        (before,) = await add(store, task(1))
        os.unlink(path / ".trispool/spool.db-wal")
        (after,) = await add(store, task(2))
        # What a crash would leave is what the directory shows.
        for ending in ("", "-wal"):
            shutil.copyfile(path / f".trispool/spool.db{ending}", tmp_path / f"copy.db{ending}")
        with closing(sqlite3.connect(tmp_path / "copy.db")) as connection:
            found = connection.execute("SELECT task FROM incoming ORDER BY seq").fetchall()
        assert found == [(before.id,), (after.id,)]


async def test_trouble_that_is_over_is_noticed_though_nothing_is_enqueued(
    path: Path, never: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trispool.store.tenure.LOOK_SECONDS", 0.005)
    async with opened_behind(path) as (store, _):
        move(path, path.with_name("away"))
        (refused,) = await store.add([task()])
        assert isinstance(refused, SpoolUnavailable)
        assert store.problem is not None
        move(path.with_name("away"), path)
        await until(lambda: store.problem is None)
        await add(store, task())


# Running


async def test_a_claim_of_a_row_carries_the_task_and_when_it_is_done_nothing_is_left(path: Path, never: None) -> None:
    async with opened_behind(path) as (store, ledger):
        (entry,) = await add(store, task(5, b"body"))
        (claim,) = await store.claim([entry])
        assert claim.content == (task(5).payload, b"body")
        await store.finish([claim])
        ledger.record(done(entry))
        assert await seen(store) == []
        await until(lambda: rows(path) == [])
        assert files(path) == []
    assert files(path) == []


async def test_what_is_recorded_as_done_leaves_the_table_in_the_same_transaction(
    path: Path, never: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    together: list[tuple[int, int]] = []
    real = LedgerFile.write

    def write(self: LedgerFile, attempts: Any, retrying: Any, incoming: Any) -> int:
        together.append((len(attempts), 0 if incoming is None else len(incoming.removed)))
        return real(self, attempts, retrying, incoming)

    async with opened_behind(path) as (store, ledger):
        (entry,) = await add(store, task())
        (claim,) = await store.claim([entry])
        monkeypatch.setattr(LedgerFile, "write", write)
        ledger.record(done(entry))  # the store is told only later
        await until(lambda: rows(path) == [])
        await store.finish([claim])
    assert together[0] == (1, 1)


async def test_a_history_that_cannot_be_kept_stops_no_task(path: Path, never: None) -> None:
    async with opened_behind(path) as (store, ledger):
        (entry,) = await add(store, task())
        (claim,) = await store.claim([entry])
        await store.finish([claim])
        unfit: Any = done(entry)._replace(error=object())
        ledger.record(unfit)
        await until(lambda: rows(path) == [] and ledger.statistics.dropped == 1)
        await add(store, task())


async def test_a_claim_that_has_been_released_and_claimed_again_is_not_released_twice(path: Path, never: None) -> None:
    async with opened_behind(path) as (store, _):
        (entry,) = await add(store, task())
        (first,) = await store.claim([entry])
        await store.release([first])
        (second,) = await store.claim([entry])
        assert second.content is not None
        await store.release([first])
        assert await store.hold(entry) is None  # a worker has it
        await store.release([second])
        assert await store.hold(entry) is not None


async def test_the_vars_of_tasks_are_told_wherever_these_are(path: Path, never: None) -> None:
    async with opened_behind(path) as (store, _):
        as_row, as_file, claimed, gone = await add(store, *(task(n) for n in range(4)))
        await store._as_file(as_file.ref)
        await store.claim([claimed])
        await store.remove(gone)
        refs = [entry.ref for entry in (as_row, as_file, claimed, gone)]
        assert await store.vars_of(refs) == [{b"n": b"0"}, {b"n": b"1"}, {b"n": b"2"}, None]


# Writing out


async def test_what_waits_gets_a_file_and_leaves_the_table(path: Path, soon: None) -> None:
    async with opened_behind(path, fsync=True) as (store, _):
        entries = await add(store, task(1, b"one"), task(2, at=LATER), task(3, priority=5))
        await until(lambda: len(files(path)) == 3 and rows(path) == [])
        assert files(path) == sorted(entry.ref for entry in entries)
        found = {entry.ref: entry async for chunk in store.scan() for entry in chunk}
        for entry in entries:
            assert found[entry.ref]._replace(fresh=False) == entry
        assert (path / entries[0].ref).read_bytes() == spoolfile.encode(task(1).payload, b"one")
        assert (path / entries[0].ref).stat().st_mode & 0o777 == 0o600
        claims = await store.claim(entries)
        assert [claim.content for claim in claims] == [None] * 3
        assert os.listdir(path / ".trispool/tmp") == []


@pytest.mark.parametrize("count", [1, 2, 3, 4, 300])
async def test_files_are_on_disk_before_they_are_seen_and_rows_leave_after_that(
    count: int, path: Path, never: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []

    def note(target: Any, name: str, step: str) -> None:
        real = getattr(target, name)

        def noting(*args: Any, **options: Any) -> Any:
            if not steps or steps[-1] != step:
                steps.append(step)
            return real(*args, **options)

        monkeypatch.setattr(target, name, noting)

    note(os, "fsync", "sync")
    monkeypatch.setattr(writeout, "_syncfs", lambda: lambda fd: steps.append("sync"))
    note(os, "rename", "rename")
    note(Ledger, "remove", "remove")
    note(writeout, "let_go", "unlock")
    async with opened_behind(path, fsync=True) as (store, _):
        await add(store, *(task(n) for n in range(count)))
        steps.clear()
    assert steps[:6] == ["sync", "rename", "sync", "remove", "unlock", *steps[5:6]]
    assert len(files(path)) == count


class Gate:
    """Holds up a function of `writeout`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        self.entered = trio.Event()
        self._open = trio.Event()
        token = trio.lowlevel.current_trio_token()
        real = getattr(writeout, name)

        def gate(*args: Any) -> Any:
            if self._open.is_set():
                return real(*args)
            token.run_sync_soon(self.entered.set)
            trio.from_thread.run(self._open.wait)
            return real(*args)

        monkeypatch.setattr(writeout, name, gate)

    def open(self) -> None:
        self._open.set()


async def test_what_is_claimed_while_its_file_is_written_stays_a_row(
    path: Path, soon: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened_behind(path) as (store, _):
        gate = Gate(monkeypatch, "prepare")
        one, two = await add(store, task(1), task(2))
        await gate.entered.wait()
        (claim,) = await store.claim([one])
        assert claim.content is not None
        gate.open()
        await until(lambda: ids_of_rows(path) == [one.id])
        assert files(path) == [two.ref]
        await store.finish([claim])
        assert set(await seen(store)) == {two.ref}
    assert files(path) == [two.ref]
    assert os.listdir(path / ".trispool/tmp") == []


@pytest.mark.parametrize("step", ["publish", "let_go"])
async def test_a_claim_waits_for_what_is_on_its_way_into_a_file(
    step: str, path: Path, soon: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    claimed: list[Any] = []
    async with opened_behind(path) as (store, _), trio.open_nursery() as nursery:
        gate = Gate(monkeypatch, step)
        (entry,) = await add(store, task(1))
        await gate.entered.wait()
        assert await seen(store) in ([entry.ref], [entry.ref] * 2)

        async def claim() -> None:
            claimed.extend(await store.claim([entry]))

        nursery.start_soon(claim)
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert claimed == []
        if step == "let_go":
            # Whoever else looks at the directory sees it, and cannot run it yet.
            with closing(SpoolDirectory(path)) as other, pytest.raises(Locked):
                other.claim(entry.ref)
        gate.open()
        await until(lambda: claimed)
        assert claimed[0].content is None
        with closing(SpoolDirectory(path)) as worker:
            held = worker.claim(entry.ref)
            assert held.vars == {b"n": b"1"}
            held.remove()


async def test_while_the_disk_hangs_others_can_be_claimed_and_what_was_leaving_is_looked_for_after_that(
    path: Path, soon: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(behind_module, "LEAVING_SECONDS", 0.01)
    async with opened_behind(path) as (store, _), aclosing(store.watch()) as watch:
        assert await anext(watch) is None
        gate = Gate(monkeypatch, "publish")
        (leaving,) = await add(store, task(1))
        await gate.entered.wait()
        (other,) = await add(store, task(2))
        assert [claim.ref for claim in await store.claim([leaving, other])] == [other.ref]
        gate.open()
        assert await anext(watch) is None
        assert leaving.ref in await seen(store)
        (claim,) = await store.claim([leaving])
        assert claim.content is None


async def test_a_watch_tells_nothing_of_files_that_are_written_out(path: Path, never: None) -> None:
    told: list[Any] = []
    async with opened_behind(path) as (store, _), trio.open_nursery() as nursery:

        async def watch(*, task_status: trio.TaskStatus[None]) -> None:
            async for changes in store.watch():
                if changes is None:
                    task_status.started()
                else:
                    told.extend(changes)

        await nursery.start(watch)
        entries = await add(store, task(1), task(2))
        for entry in entries:
            assert await store._as_file(entry.ref)
        assert files(path) == sorted(entry.ref for entry in entries)
        foreign = f"{spoolfile.PREFIX}h_1_1_1_1700000000_1"
        (path / "made").write_bytes(spoolfile.encode(task().payload, b""))
        (path / "made").rename(path / foreign)
        await until(lambda: told)
        assert {change.ref for change in told} == {foreign}
        nursery.cancel_scope.cancel()


async def test_a_scan_misses_nothing_that_gets_its_file_meanwhile(path: Path, never: None) -> None:
    async with opened_behind(path) as (store, _):
        entries = await add(store, *(task(n) for n in range(600)))
        found: set[str] = set()
        async for chunk in store.scan():
            found |= {entry.ref for entry in chunk}
            for entry in entries[::50]:
                await store._as_file(entry.ref)
        assert found == {entry.ref for entry in entries}


@pytest.mark.parametrize("operation", ["hold", "reschedule", "remove", "set_aside"])
async def test_what_an_operator_does_to_a_row_is_done_to_its_file(operation: str, path: Path, never: None) -> None:
    async with opened_behind(path) as (store, _):
        (entry,) = await add(store, task(1, priority=3))
        match operation:
            case "hold":
                held = await store.hold(entry)
                assert held is not None
                assert (path / held.ref).exists()
                back = await store.restore(held)
                assert back is not None
                assert back.ref == entry.ref
            case "reschedule":
                moved = await store.reschedule(entry, LATER)
                assert moved is not None
                assert (path / entry.ref).stat().st_mtime == LATER
            case "remove":
                removed = await store.remove(entry)
                assert removed is not None
                assert removed.vars[b"n"] == b"1"
                assert files(path) == []
            case "set_aside":
                await store.claim([entry])  # its run has ended
                assert await store.set_aside(entry)
                assert [dead.id for dead in await store.dead()] == [entry.id]
        assert rows(path) == []
        assert len(await seen(store)) == (operation in ("hold", "reschedule"))


async def test_a_row_that_cannot_be_written_out_is_neither_held_nor_lost(
    path: Path, never: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened_behind(path) as (store, _):
        (entry,) = await add(store, task(1))
        with monkeypatch.context() as patched:
            patched.setattr(writeout, "write_all", _no_space)
            with pytest.raises(SpoolUnavailable, match="No space left"):
                await store.hold(entry)
        assert await seen(store) == [entry.ref]
        assert (await store.claim([entry]))[0].content is not None


def _no_space(fd: int, data: bytes) -> None:
    raise OSError(28, "No space left on device")


# The end, and the beginning


async def test_at_a_clean_stop_everything_has_a_file(path: Path, never: None) -> None:
    async with opened_behind(path) as (store, _):
        entries = await add(store, *(task(n) for n in range(700)))
        await store.claim(entries[:10])  # by workers that are gone by then
    assert files(path) == sorted(entry.ref for entry in entries)
    assert rows(path) == []
    assert os.listdir(path / ".trispool/tmp") == []


async def test_what_cannot_be_written_out_at_the_end_is_found_by_the_next_start(
    path: Path, never: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(writeout, "write_all", _no_space)
        async with opened_behind(path) as (store, _):
            entries = await add(store, task(1), task(2, at=LATER, priority=4))
    assert ids_of_rows(path) == [entry.id for entry in entries]
    async with opened_behind(path) as (store, _):
        assert await seen(store) == sorted(entry.ref for entry in entries)
        found = {entry.ref: entry async for chunk in store.scan() for entry in chunk}
        assert found[entries[1].ref].at == LATER
        (claim,) = await store.claim(entries[:1])
        assert claim.content == (task(1).payload, b"body")


async def test_what_has_ended_is_not_run_again_though_the_last_commit_fails_at_first(
    path: Path, never: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(behind_module, "CLOSE_RETRY_SECONDS", 0.01)
    real, failures = LedgerFile.write, 0

    def write(self: LedgerFile, *args: Any) -> int:
        nonlocal failures
        if failures < 3:
            failures += 1
            raise sqlite3.OperationalError("database or disk is full")
        return real(self, *args)

    async with opened_behind(path) as (store, _):
        (entry,) = await add(store, task())
        await store.finish(await store.claim([entry]))
        monkeypatch.setattr(LedgerFile, "write", write)
    assert rows(path) == []


async def test_a_stop_on_a_full_disk_does_not_wait_for_what_is_only_history(
    path: Path, never: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[int] = []

    def full(self: LedgerFile, attempts: Any, *args: Any) -> int:
        tried.append(len(attempts))
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(behind_module, "CLOSE_RETRY_SECONDS", 0.001)
    monkeypatch.setattr(behind_module, "CLOSE_SECONDS", 1.0)
    async with opened_behind(path) as (store, ledger):
        (entry,) = await add(store, task())
        assert await store._as_file(entry.ref)
        monkeypatch.setattr(LedgerFile, "write", full)
        ledger.record(done(entry))
    assert 0 < len(tried) < 5


async def crash(path: Path, *tasks: NewTask) -> list[Entry]:
    """Leave rows as a service that is killed does."""
    async with open_directory_store(str(path), fsync=False) as store:
        ledger = Ledger(f"{store.directory}/.trispool/spool.db")
        await ledger.open()
        made = []
        for number, item in enumerate(tasks):
            name, order = new_name()
            ref = name if item.priority is None else f"{item.priority}/{name}"
            made.append((Entry(name, ref, item.at or time.time(), item.priority, order), item, number))
        _, generation = await ledger.incoming()
        await ledger.commit(
            [
                incomingfile.IncomingRow(number, entry.id, entry.priority, entry.at, item.payload, item.body)
                for entry, item, number in made
            ],
            generation=generation,
            durable=False,
        )
        await ledger.aclose()
    return [entry for entry, _, _ in made]


@pytest.mark.parametrize("place", ["", "5/", ".trispool/held/", ".trispool/held/5/", ".trispool/dead/"])
async def test_of_rows_that_a_crash_has_left_those_with_a_file_are_dropped(place: str, path: Path, never: None) -> None:
    with_file, without = await crash(path, task(1), task(2))
    (path / place).mkdir(parents=True, exist_ok=True)
    (path / place / with_file.id).write_bytes(spoolfile.encode(task(1).payload, b""))
    async with opened_behind(path) as (store, _):
        assert await seen(store) == sorted(
            [without.ref, *([place + with_file.id] if not place.startswith(".") else [])]
        )
        await until(lambda: ids_of_rows(path) == [without.id])
        await add(store, task(3))
        assert len(rows(path)) == 2


async def test_what_a_crash_has_left_is_written_out_in_a_spool_that_is_now_external(path: Path, soon: None) -> None:
    left = await crash(path, task(1), task(2))
    async with opened_behind(path, accepts=False):
        await until(lambda: files(path) == sorted(entry.ref for entry in left) and rows(path) == [])


async def test_a_half_written_file_of_a_process_that_died_is_in_nobodys_way(path: Path, never: None) -> None:
    (left,) = await crash(path, task(1))
    (path / ".trispool/tmp" / left.id).write_bytes(b"half")
    async with opened_behind(path):
        pass
    assert (path / left.ref).read_bytes() == spoolfile.encode(task(1).payload, b"body")
    assert os.listdir(path / ".trispool/tmp") == []


async def test_of_two_services_one_writes_behind_and_the_other_takes_over_when_it_has_ended(
    path: Path, never: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trispool.store.tenure.LOOK_SECONDS", 0.005)
    async with trio.open_nursery() as nursery:
        stop = trio.Event()

        async def first(*, task_status: trio.TaskStatus[Entry]) -> None:
            async with opened_behind(path) as (store, _):
                task_status.started((await add(store, task("first")))[0])
                await stop.wait()

        theirs = await nursery.start(first)
        async with opened_behind(path) as (store, _):
            (ours,) = await add(store, task("second"))
            assert files(path) == [ours.ref]
            assert ids_of_rows(path) == [theirs.id]
            assert await seen(store) == [ours.ref]
            stop.set()
            await until(lambda: theirs.ref in files(path))
            while not rows(path):
                await add(store, task("third"))
                await trio.sleep(0.002)


async def test_what_another_service_has_left_when_it_was_killed_is_looked_for_at_once(
    path: Path, never: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trispool.store.tenure.LOOK_SECONDS", 0.005)
    left = await crash(path, task(1), task(2))
    theirs = incomingfile.lock(f"{path}/.trispool")
    assert theirs is not None
    async with opened_behind(path) as (store, _), aclosing(store.watch()) as watch:
        assert await anext(watch) is None
        assert await seen(store) == []
        os.close(theirs)
        assert await anext(watch) is None
        assert await seen(store) == sorted(entry.ref for entry in left)
        # It goes on.
        (path / new_name()[0]).write_bytes(b"")
        assert await anext(watch) is not None


async def test_what_another_service_has_left_gets_files_though_nothing_is_enqueued(
    path: Path, soon: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trispool.store.tenure.LOOK_SECONDS", 0.005)
    left = await crash(path, task(1))
    theirs = incomingfile.lock(f"{path}/.trispool")
    assert theirs is not None
    async with opened_behind(path):
        os.close(theirs)
        await until(lambda: files(path) == [left[0].ref])


async def test_a_directory_that_cannot_be_read_refuses_names_and_stops_nothing(
    path: Path, never: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def present(self: SpoolDirectory, names: Sequence[str]) -> set[str]:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("trispool.store.tenure.LOOK_SECONDS", 0.005)
    async with opened_behind(path) as (store, _):
        with monkeypatch.context() as patched:
            patched.setattr(SpoolDirectory, "present", present)
            (refused,) = await store.add([named(new_name()[0])])
            assert isinstance(refused, SpoolUnavailable)
            # It goes over to another one, and cannot see what is there.
            move(path, path.with_name("away"))
            await crash(path, task(1))
            await store.add([task(2)])
            assert "Permission denied" in str(store.problem)
        await until(lambda: store.problem is None)
        await add(store, named(new_name()[0]))


# Damage


def damage(path: Path, *, from_page: int = 1) -> None:
    """Overwrite the database, from some page on, and make sure that it is read from there."""
    with closing(sqlite3.connect(path / ".trispool/spool.db")) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    with (path / ".trispool/spool.db").open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(4096 * (from_page - 1))
        file.write(b"\xa5" * (size - file.tell()))


async def test_what_can_still_be_read_of_a_damaged_database_gets_files_before_that_is_set_aside(path: Path) -> None:
    left = await crash(path, *(task(n, bytes([n % 256]) * 900) for n in range(200)))
    with closing(sqlite3.connect(path / ".trispool/spool.db")) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
    with (path / ".trispool/spool.db").open("r+b") as file:
        # One page in the middle: some rows are lost with it.
        file.seek(4096 * (pages // 2))
        file.write(b"\xa5" * 4096)
    async with opened_behind(path) as (store, _):
        saved = await seen(store)
        assert 150 < len(saved) < 200
        assert set(saved) <= {entry.ref for entry in left}
        assert files(path) == saved
        assert any("damaged" in name for name in os.listdir(path / ".trispool"))
        await add(store, task())


async def test_a_database_that_is_damaged_while_it_is_used_loses_no_task(path: Path, never: None) -> None:
    async with opened_behind(path) as (store, _):
        before = await add(store, *(task(n) for n in range(50)))
        (claim, *_) = await store.claim(before[:1])
        damage(path)
        after = await add(store, task("after"))
        assert ids_of_rows(path) == [entry.id for entry in [*before, *after]]
        await store.finish([claim])
        assert len(await seen(store)) == 50
    assert files(path) == sorted(entry.ref for entry in [*before[1:], *after])


@pytest.mark.parametrize("what", ["spool.db", ".trispool", "all"])
async def test_when_the_directory_or_what_is_in_it_is_replaced_the_tasks_go_over(
    what: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outgoing_module, "WAIT_SECONDS", 0.02)
    async with opened_behind(path) as (store, _):
        entries = await add(store, *(task(n) for n in range(5)))
        (claim, *_) = await store.claim(entries[:1])
        away = path.with_name("away")
        match what:
            case "spool.db":
                for name in ("spool.db", "spool.db-wal", "spool.db-shm"):
                    (path / ".trispool" / name).rename(path.with_name(name))
            case ".trispool":
                (path / ".trispool").rename(away)
            case "all":
                move(path, away)
                os.mkdir(path)
        await until(lambda: len(files(path)) == 4 and ids_of_rows(path) == [entries[0].id])
        (later,) = await add(store, task("later"))
        assert len(await seen(store)) == 6
        await store.finish([claim])
    assert files(path) == sorted(entry.ref for entry in [*entries[1:], later])


async def test_what_ends_while_the_directory_is_away_is_not_run_again_when_it_is_back(
    path: Path, never: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trispool.store.tenure.LOOK_SECONDS", 0.01)
    async with opened_behind(path) as (store, ledger):
        first, second = await add(store, task(1), task(2))
        (claim, _) = await store.claim([first, second])
        move(path, path.with_name("away"))
        await store.finish([claim])
        ledger.record(done(first))
        (refused,) = await store.add([task(3)])
        assert isinstance(refused, SpoolUnavailable)
        move(path.with_name("away"), path)
        (third,) = await add(store, task(4))  # at once, and so as a file
        assert await seen(store) == sorted([second.ref, third.ref])
        await until(lambda: ids_of_rows(path) == [second.id] and store.problem is None)
        assert await seen(store) == sorted([second.ref, third.ref])


async def test_what_ends_while_the_tasks_go_over_is_not_run_again(
    path: Path, never: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened_behind(path) as (store, _):
        first, second = await add(store, task(1), task(2))
        (claim, _) = await store.claim([first, second])
        move(path, path.with_name("away"))
        os.mkdir(path)
        real = Ledger.commit

        async def commit(self: Ledger, added: Sequence[incomingfile.IncomingRow], **options: Any) -> None:
            await real(self, added, **options)
            await store.finish([claim])

        monkeypatch.setattr(Ledger, "commit", commit)
        (third,) = await add(store, task(3))
        monkeypatch.setattr(Ledger, "commit", real)
        await until(lambda: ids_of_rows(path) == [second.id, third.id])


async def test_what_was_looking_for_its_name_when_it_closes_is_refused(
    path: Path, never: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    looking, go_on = trio.Event(), threading.Event()
    real = SpoolDirectory.present

    def present(self: SpoolDirectory, names: Sequence[str]) -> set[str]:
        if names:
            trio.from_thread.run_sync(looking.set)
            assert go_on.wait(20)
        return real(self, names)

    monkeypatch.setattr(SpoolDirectory, "present", present)
    results: list[Entry | TrispoolError] = []

    async def enqueue(store: DirectoryStore) -> None:
        results.extend(await store.add([named(new_name()[0])]))

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            async with opened_behind(path) as (store, _):
                nursery.start_soon(enqueue, store)
                await looking.wait()
            go_on.set()
    assert [str(result) for result in results] == ["the spool is closing"]


async def test_what_is_being_committed_when_it_closes_is_kept_and_has_a_file(
    path: Path, never: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    committing, go_on = trio.Event(), threading.Event()
    real = LedgerFile.write

    def write(self: LedgerFile, attempts: Any, retrying: Any, incoming: Any) -> int:
        if incoming is not None and incoming.added:
            trio.from_thread.run_sync(committing.set, trio_token=token)
            assert go_on.wait(20)
        return real(self, attempts, retrying, incoming)

    token = trio.lowlevel.current_trio_token()
    monkeypatch.setattr(LedgerFile, "write", write)
    results: list[Entry | TrispoolError] = []

    async def enqueue(store: DirectoryStore) -> None:
        results.extend(await store.add([task(1)]))

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery, opened_behind(path) as (store, _):
            nursery.start_soon(enqueue, store)
            await committing.wait()
            threading.Timer(0.1, go_on.set).start()
    assert [result.ref for result in results if isinstance(result, Entry)] == files(path) != []


async def test_a_call_that_is_cancelled_before_its_commit_is_kept_all_the_same(path: Path, never: None) -> None:
    async with opened_behind(path) as (store, ledger):
        async with trio.open_nursery() as nursery, ledger._flushing:
            nursery.start_soon(store.add, [task(1)])
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        await until(lambda: len(ids_of_rows(path)) == 1)
        assert ids_of_rows(path) == await seen(store)


# A disk that hangs


class Hanging:
    """A step of the disk that does not end before it is let go on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, target: Any, name: str) -> None:
        self.begun = trio.Event()
        self.go_on = threading.Event()
        token = trio.lowlevel.current_trio_token()
        real = getattr(target, name)

        def hang(*args: Any, **options: Any) -> Any:
            token.run_sync_soon(self.begun.set)
            assert self.go_on.wait(20)
            return real(*args, **options)

        monkeypatch.setattr(target, name, hang)

    async def give_up(self, store: DirectoryStore, item: NewTask) -> None:
        """Enqueue while it hangs, and go."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.add, [item])
            await self.begun.wait()
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()


async def test_whose_commit_hangs_can_go_and_the_task_is_looked_for_when_it_has_been_kept(
    path: Path, never: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, other = new_name()[0], new_name()[0]
    async with opened_behind(path) as (store, _), aclosing(store.watch()) as watch, trio.open_nursery() as nursery:
        assert await anext(watch) is None
        disk = Hanging(monkeypatch, LedgerFile, "write")
        await disk.give_up(store, named(name))
        assert ids_of_rows(path) == await seen(store) == []
        (again,) = await store.add([named(name)])
        assert isinstance(again, TaskRefused)
        nursery.start_soon(add, store, named(other))  # waits its turn
        await trio.testing.wait_all_tasks_blocked()
        disk.go_on.set()
        assert await anext(watch) is None
        assert name in await seen(store)
        await until(lambda: ids_of_rows(path) == [name, other])
        assert await seen(store) == sorted([name, other])


async def test_a_commit_that_its_caller_has_left_and_that_fails_is_nobodys(
    path: Path, never: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = new_name()[0]

    def fail(connection: sqlite3.Connection, change: Any) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    async with opened_behind(path) as (store, _):
        with monkeypatch.context() as patched:
            patched.setattr(incomingfile, "apply", fail)
            disk = Hanging(patched, LedgerFile, "write")
            await disk.give_up(store, named(name))
            disk.go_on.set()
            await until(lambda: store.problem is not None)
        assert await seen(store) == []
        await add(store, named(name))
        assert ids_of_rows(path) == await seen(store) == [name]


async def test_without_descriptors_tasks_are_refused_and_then_kept_again(
    path: Path, never: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened_behind(path) as (store, ledger):
        (before,) = await add(store, task(1))
        with monkeypatch.context() as patched:
            patched.setattr(ledger._writer, "_bells", [])
            patched.setattr(socket, "socketpair", without_descriptors)
            (refused,) = await store.add([task(2)])
            assert isinstance(refused, SpoolUnavailable)
            assert "Too many open files" in str(refused)
        (after,) = await add(store, task(3))
        assert ids_of_rows(path) == await seen(store) == [before.id, after.id]


async def test_who_meets_a_damaged_database_on_a_disk_that_then_hangs_can_go(
    path: Path, never: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened_behind(path) as (store, _):
        (before,) = await add(store, task(1))
        damage(path)
        disk = Hanging(monkeypatch, LedgerFile, "set_aside")
        await disk.give_up(store, task(2))
        disk.go_on.set()
        await until(lambda: len(ids_of_rows(path)) == 2)
        assert before.id in ids_of_rows(path)
        assert ids_of_rows(path) == await seen(store)


async def test_who_asks_for_a_name_on_a_disk_that_hangs_can_go(
    path: Path, never: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = new_name()[0]
    async with opened_behind(path) as (store, _):
        with monkeypatch.context() as patched:
            disk = Hanging(patched, SpoolDirectory, "present")
            await disk.give_up(store, named(name))
            disk.go_on.set()
        await add(store, named(name))


async def test_who_goes_in_the_moment_of_the_answer_has_its_task_looked_for(
    path: Path, never: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    scope = trio.CancelScope()
    real = commits_module.Commits._answer

    def answer(self: Any, calls: Any, error: Any) -> None:
        scope.cancel()
        real(self, calls, error)

    monkeypatch.setattr(commits_module.Commits, "_answer", answer)
    async with opened_behind(path) as (store, ledger), aclosing(store.watch()) as watch:
        assert await anext(watch) is None

        async def enqueue() -> None:
            with scope:
                await store.add([task(2)])

        async with trio.open_nursery() as nursery, ledger._flushing:
            nursery.start_soon(add, store, task(1))
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(enqueue)
            await trio.testing.wait_all_tasks_blocked()
        assert scope.cancelled_caught
        assert await anext(watch) is None
        await until(lambda: len(ids_of_rows(path)) == 2)


async def test_a_commit_that_hangs_does_not_keep_the_service_from_ending(
    path: Path, never: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commits_module, "CLOSE_SECONDS", 0.01)
    monkeypatch.setattr("trispool.ledger.FLUSH_SECONDS", 0.01)
    async with opened_behind(path) as (store, _):
        disk = Hanging(monkeypatch, LedgerFile, "write")
        await disk.give_up(store, task(1))
    disk.go_on.set()


async def test_nor_if_others_wait_to_be_written_out(path: Path, soon: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commits_module, "CLOSE_SECONDS", 0.01)
    monkeypatch.setattr("trispool.ledger.FLUSH_SECONDS", 0.01)
    with trio.fail_after(15):
        async with opened_behind(path) as (store, _):
            with monkeypatch.context() as patched:
                patched.setattr(outgoing_module, "WAIT_SECONDS", 1e6)
                await add(store, task(1))
            disk = Hanging(monkeypatch, LedgerFile, "write")
            await disk.give_up(store, task(2))
            await trio.sleep(0.05)  # it looks whether the database is still there, before it writes out
    disk.go_on.set()


async def test_what_was_begun_before_the_end_does_not_wait_for_what_waits_for_it(
    path: Path, soon: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with trio.fail_after(15):
        async with opened_behind(path) as (store, _):
            publishing = Hanging(monkeypatch, writeout, "publish")
            await add(store, task(1))
            await publishing.begun.wait()
            disk = Hanging(monkeypatch, LedgerFile, "write")
            await disk.give_up(store, task(2))
            threading.Timer(0.2, disk.go_on.set).start()
            publishing.go_on.set()
    assert len(files(path)) == 2


async def test_a_file_that_is_written_when_its_caller_has_gone_is_looked_for(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with trio.fail_after(20):
        async with open_directory_store(str(path), fsync=False) as store, aclosing(store.watch()) as watch:
            assert await anext(watch) is None
            disk = Hanging(monkeypatch, SpoolDirectory, "add")
            await disk.give_up(store, task(1))
            disk.go_on.set()
            assert await anext(watch) is None
            assert await seen(store) == files(path) != []


async def test_what_waits_when_it_closes_is_refused(path: Path, never: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commits_module, "MAX_CALLS", 2)
    results: dict[int, Entry | TrispoolError] = {}
    async with trio.open_nursery() as nursery, opened_behind(path) as (store, ledger):

        async def add_one(number: int) -> None:
            (results[number],) = await store.add([task(number)])

        async with ledger._flushing:  # no commit ends meanwhile
            for number in range(4):
                nursery.start_soon(add_one, number)
                await trio.testing.wait_all_tasks_blocked()
            assert store._behind is not None
            assert len(store._behind._commits) == 2
            assert results == {}
    # Those that waited for a commit, and those that waited to be let in.
    assert sorted(results) == [0, 1, 2, 3]
    assert files(path) == sorted(result.ref for result in results.values() if isinstance(result, Entry))
    assert {str(result) for result in results.values() if not isinstance(result, Entry)} == {"the spool is closing"}


async def test_large_tasks_are_written_out_few_at_once(
    path: Path, never: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outgoing_module, "AT_ONCE_BYTES", 2500)
    batches: list[int] = []
    prepare = writeout.prepare

    def noted(writer: Any, tasks: Sequence[writeout.Leaving]) -> None:
        batches.append(sum(len(task.body) for task in tasks))
        prepare(writer, tasks)

    monkeypatch.setattr(writeout, "prepare", noted)
    async with opened_behind(path) as (store, _):
        await store.add([*(task(n, bytes(1000)) for n in range(5)), task(5, bytes(9000))])
    assert batches == [9000, 2000, 2000, 1000]
