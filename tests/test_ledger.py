"""Ledger: real SQLite files, real threads."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from contextlib import asynccontextmanager, closing
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from trispool import ledger as ledger_module
from trispool import ledgerfile, spoolfile, sqlitefile
from trispool.control import Attempt
from trispool.errors import SpoolUnavailable
from trispool.incomingfile import IncomingRow
from trispool.ledger import Ledger
from trispool.ledgerfile import LedgerFile
from trispool.operating import TaskFilter
from trispool.packet import encode_vars
from trispool.task import AttemptRow, Retrying, TaskState

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from pathlib import Path

    from trispool.ledgersearch import History

PATIENCE = 20.0
NOW = 1_700_000_000.0
VARS = encode_vars({"handler": "encode", "path": b"\xff.mov"})


def task_id(number: int = 1) -> str:
    return spoolfile.new_name("my_host", 4711, number, 1, int(NOW), number)


def row(which: int = 1, /, **changes: Any) -> AttemptRow:
    name = changes.get("task", task_id(which))
    return AttemptRow(
        task=name,
        number=1,
        outcome="ok",
        state="done",
        started_at=NOW + which,
        queue_seconds=0.25,
        run_seconds=1.5,
        worker=77,
        handler="encode",
        error=None,
        traceback=None,
        at=NOW,
        priority=None,
        enqueued_at=spoolfile.order_of(name, 0.0)[0] / 1e6,
    )._replace(**changes)


@asynccontextmanager
async def opened(path: Path, keep_seconds: float = 0) -> AsyncIterator[Ledger]:
    """A ledger that is open but not running: a question writes what was recorded."""
    with trio.fail_after(PATIENCE):
        ledger = Ledger(str(path), keep_seconds)
        await ledger.open()
        try:
            yield ledger
        finally:
            await ledger.aclose()


@asynccontextmanager
async def running(path: Path, keep_seconds: float = 0) -> AsyncIterator[Ledger]:
    async with opened(path, keep_seconds) as ledger, trio.open_nursery() as nursery:
        await nursery.start(ledger.run_ledger)
        yield ledger
        nursery.cancel_scope.cancel()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "spool.db"


def stored(path: Path, columns: str = "task") -> list[Any]:
    """What another process finds in the file."""
    with closing(sqlite3.connect(path)) as connection:
        found = connection.execute(f"SELECT {columns} FROM attempts ORDER BY seq").fetchall()
    return [item[0] if len(item) == 1 else item for item in found]


def remembered(path: Path) -> list[Any]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute("SELECT * FROM retrying ORDER BY task").fetchall()


async def names(ledger: Ledger, limit: int = 100) -> list[str]:
    found = await ledger.search(TaskFilter(), descending=False, limit=limit)
    return [task.id for _, task in found.found]


class Writes:
    """Stands in for `LedgerFile.write` and notes the calls."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, fail: Callable[[int], Exception | None] = lambda _: None
    ) -> None:
        self.sizes: list[int] = []
        self.written = trio.Event()
        self.failed = trio.Event()
        self._fail = fail
        self._token = trio.lowlevel.current_trio_token()
        real = LedgerFile.write
        writes = self

        def write(self: LedgerFile, rows: Sequence[AttemptRow], retrying: Any, incoming: Any) -> int:
            writes.sizes.append(len(rows))
            if error := writes._fail(len(writes.sizes)):
                writes._token.run_sync_soon(writes.failed.set)
                raise error
            unfit = real(self, rows, retrying, incoming)
            writes._token.run_sync_soon(writes.written.set)
            return unfit

        monkeypatch.setattr(LedgerFile, "write", write)


# Writing


async def test_what_is_recorded_is_written(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writes = Writes(monkeypatch)
    async with running(path) as ledger:
        full = row(
            3,
            state=None,
            outcome="failed",
            error="é\x00",
            traceback="Traceback",
            handler=None,
            priority=2**63 - 1,
            vars=b"\xff",
        )
        ledger.record(full)
        await writes.written.wait()
        assert stored(path, ", ".join(AttemptRow._fields)) == [tuple(full)]


async def test_what_is_recorded_together_goes_into_one_transaction(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writes = Writes(monkeypatch)
    async with running(path) as ledger:
        for number in range(300):
            ledger.record(row(number))
            if number % 100 == 0:
                await trio.lowlevel.checkpoint()
        await writes.written.wait()
        assert writes.sizes == [300]
        assert stored(path) == [task_id(number) for number in range(300)]


async def test_rows_of_all_kinds_are_written_as_they_are_and_in_order(path: Path) -> None:
    kinds = [
        row()._replace(vars=b"\1\0k\0\0"),
        row()._replace(vars=b"v", handler=None),
        row()._replace(vars=None),
        row()._replace(vars=b"", priority=0),
        row()._replace(outcome="failed", state=None, error="e", traceback="t"),
        row()._replace(outcome="retry", state=None, vars=b"r"),
        row()._replace(state=None, vars=b"s"),
        row()._replace(error="e", vars=b"s"),
    ]
    rows = [kinds[number * number % 7 if number % 50 else 7]._replace(task=task_id(number)) for number in range(301)]
    rows += [kinds[0]._replace(task=task_id(number)) for number in range(301, 440)]
    async with running(path) as ledger:
        ledger.record(*rows)
    with closing(sqlite3.connect(path)) as connection:
        columns = ", ".join(AttemptRow._fields)
        assert [
            AttemptRow(*found) for found in connection.execute(f"SELECT {columns} FROM attempts ORDER BY seq")
        ] == rows


@pytest.mark.parametrize(("recorded", "carried"), [(63, 0), (64, 64)])
async def test_much_that_was_recorded_goes_with_a_commit_of_tasks_and_little_is_gathered_on(
    path: Path, monkeypatch: pytest.MonkeyPatch, recorded: int, carried: int
) -> None:
    monkeypatch.setattr(ledger_module, "GATHER_SECONDS", 1000)
    writes = Writes(monkeypatch)
    async with running(path) as ledger:
        _, generation = await ledger.incoming()
        for number in range(recorded):
            ledger.record(row(number))
        for number in (1, 2):
            task = IncomingRow(number, task_id(1000 + number), None, NOW, b"", b"")
            await ledger.commit([task], generation=generation, durable=False)
        assert writes.sizes == [carried, 0]
        # What nobody adds to is written to its end.
        await ledger.commit([], generation=generation, durable=False)
        assert stored(path) == [task_id(number) for number in range(recorded)]


async def test_a_task_whose_commit_failed_and_is_tried_again_stays(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_module, "GATHER_SECONDS", 0)
    monkeypatch.setattr(ledger_module, "GATHER_FINISHED_SECONDS", 0)
    failing = {1, 2}
    writes = Writes(
        monkeypatch, lambda number: sqlite3.OperationalError("disk I/O error") if number in failing else None
    )
    async with opened(path) as ledger:
        _, _generation = await ledger.incoming()
        task = IncomingRow(1, task_id(), None, NOW, b"", b"")
        for _ in failing:
            with pytest.raises(SpoolUnavailable):
                await ledger.commit([task], generation=ledger._file.generation, durable=False)
        await ledger.commit([task], generation=ledger._file.generation, durable=False)
        await ledger.commit([], generation=ledger._file.generation, durable=False)
        assert (await ledger.incoming())[0] == [task]
    assert len(writes.sizes) == 3


async def test_what_was_recorded_last_is_written_when_it_ends(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_module, "GATHER_SECONDS", 1000)
    known = Retrying(task_id(), 2, NOW + 5, False, NOW, None)
    async with running(path) as ledger:
        ledger.record(row())
        ledger.remember(known)
        await trio.lowlevel.checkpoint()
    assert stored(path) == [task_id()]
    assert remembered(path) == [tuple(known)]


async def test_what_was_waiting_for_the_disk_when_it_ends_is_written(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_module, "GATHER_SECONDS", 0)
    pruning, answer = threading.Event(), threading.Event()

    def prune(*args: object) -> bool:
        pruning.set()
        assert answer.wait(PATIENCE)
        return False

    monkeypatch.setattr(LedgerFile, "prune", prune)
    async with opened(path, 50) as ledger:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ledger.run_ledger)
            await trio.to_thread.run_sync(pruning.wait)
            ledger.record(row())
            ledger.remember(Retrying("a", 1, NOW, True, NOW, None))
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
            answer.set()
        assert stored(path) == [task_id()]
        assert len(remembered(path)) == 1


async def test_it_sleeps_while_nothing_is_recorded(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_module, "GATHER_SECONDS", 0)
    writes = Writes(monkeypatch)
    async with running(path) as ledger:
        ledger.record(row())
        await writes.written.wait()
        await trio.testing.wait_all_tasks_blocked()


async def test_what_is_recorded_after_a_question_is_written(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writes = Writes(monkeypatch)
    async with running(path) as ledger:
        assert await names(ledger) == []
        ledger.record(row())
        await writes.written.wait()
        assert stored(path) == [task_id()]


async def test_a_disk_that_does_not_answer_does_not_keep_it_from_ending(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_module, "FLUSH_SECONDS", 0.02)
    answer = threading.Event()
    monkeypatch.setattr(LedgerFile, "write", lambda *args: answer.wait(PATIENCE) and 0)
    async with running(path) as ledger:
        ledger.record(row())
    answer.set()


@pytest.mark.parametrize("count", [0, 1, 63, 64, 65, 200])
async def test_every_row_is_written_however_many_there_are(count: int, path: Path) -> None:
    async with opened(path) as ledger:
        for number in range(count):
            ledger.record(row(number))
        assert await names(ledger, limit=1000) == [task_id(number) for number in range(count)]


async def test_rows_that_sqlite_will_not_take_cost_no_others(path: Path) -> None:
    async with opened(path) as ledger:
        for number in range(70):
            ledger.record(row(number))
        ledger.record(row(70, error="\udcff"))
        ledger.record(row(71, at=None))
        ledger.record(row(72, priority=2**64))
        ledger.record(row(73, worker=object()))
        ledger.record(row(74))
        assert await names(ledger) == [task_id(number) for number in (*range(70), 74)]
        assert (ledger.statistics.written, ledger.statistics.dropped) == (71, 4)
        assert ledger.statistics.failed_commits == 0


async def test_a_disk_error_keeps_rows_and_tries_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_module, "RETRY_SECONDS", 0.001)
    monkeypatch.setattr(ledger_module, "GATHER_SECONDS", 0.001)
    full = sqlite3.OperationalError("database or disk is full")
    writes = Writes(monkeypatch, lambda number: full if number < 4 else None)
    async with running(path) as ledger:
        ledger.record(row(1))
        await writes.failed.wait()
        ledger.record(row(2))
        await writes.written.wait()
        assert await names(ledger) == [task_id(1), task_id(2)]
        assert (ledger.statistics.failed_commits, ledger.statistics.dropped) == (3, 0)


async def test_a_file_that_another_process_locks_is_written_when_it_lets_go(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlitefile, "LOCKED_SECONDS", 0.01)
    monkeypatch.setattr(ledger_module, "RETRY_SECONDS", 0.001)
    async with running(path) as ledger:
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            ledger.record(row())
            assert await names(ledger) == []
            assert ledger.statistics.failed_commits == 1
            other.execute("ROLLBACK")
        assert await names(ledger) == [task_id()]


async def test_what_is_remembered_later_is_not_undone_by_what_is_written_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes = Writes(monkeypatch, lambda number: sqlite3.OperationalError("full") if number == 1 else None)
    async with opened(path) as ledger:
        ledger.remember(Retrying("a", 1, NOW, True, NOW, "no"))
        ledger.remember(Retrying("b", 1, NOW, True, NOW, "no"))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(names, ledger)
            await trio.lowlevel.checkpoint()
            await trio.lowlevel.checkpoint()
            ledger.forget("a")
            ledger.remember(Retrying("b", 2, NOW, True, NOW, "no"))
            nursery.start_soon(names, ledger)
        await names(ledger)
        assert len(writes.sizes) >= 2
        assert [(item[0], item[1]) for item in remembered(path)] == [("b", 2)]


async def test_what_is_remembered_while_a_write_fails_counts(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(path) as ledger:

        def fail(number: int) -> Exception | None:
            if number > 1:
                return None
            ledger.forget("a")
            ledger.remember(Retrying("b", 2, NOW, True, NOW, "no"))
            return OSError("the disk is gone")

        Writes(monkeypatch, fail)
        for name in "abc":
            ledger.remember(Retrying(name, 1, NOW, True, NOW, "no"))
        await names(ledger)
        await names(ledger)
        assert [(item[0], item[1]) for item in remembered(path)] == [("b", 2), ("c", 1)]


async def test_after_an_error_the_file_is_opened_afresh(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    connections: list[sqlite3.Connection] = []
    real = LedgerFile._connect

    def connect(self: LedgerFile) -> sqlite3.Connection:
        connections.append(real(self))
        return connections[-1]

    monkeypatch.setattr(LedgerFile, "_connect", connect)
    async with opened(path) as ledger:
        connections[0].execute("PRAGMA max_page_count = 1")  # the disk is full, for this connection
        for number in range(1000):
            ledger.record(row(number))
        assert await names(ledger) == []
        assert ledger.statistics.failed_commits == 1
        assert len(await names(ledger, limit=2000)) == 1000
        with pytest.raises(sqlite3.ProgrammingError, match="closed"):
            connections[0].execute("SELECT 1")


async def test_more_rows_than_may_wait_are_dropped_and_counted(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_module, "MAX_PENDING", 10)
    async with opened(path) as ledger:
        for number in range(15):
            ledger.record(row(number))
        assert ledger.statistics.dropped == 5
        assert await names(ledger) == [task_id(number) for number in range(10)]
        ledger.record(row(20))
        assert await names(ledger) == [task_id(number) for number in (*range(10), 20)]
        assert (ledger.statistics.written, ledger.statistics.dropped) == (11, 5)


async def test_rows_that_are_taken_back_count_among_those_that_may_wait(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_module, "MAX_PENDING", 10)
    async with opened(path) as ledger:

        def fail(number: int) -> Exception | None:
            if number == 1:
                for later in range(10, 18):
                    ledger.record(row(later))
                return OSError("the disk is gone")
            return None

        Writes(monkeypatch, fail)
        for number in range(6):
            ledger.record(row(number))
        assert await names(ledger) == []
        assert ledger.statistics.dropped == 4
        assert await names(ledger) == [task_id(number) for number in (0, 1, *range(10, 18))]


# The file


async def test_what_is_remembered_is_there_when_it_is_opened_again(path: Path) -> None:
    a = Retrying(task_id(1), 3, NOW + 5, True, NOW, "ValueError: no")
    b = Retrying(task_id(2), 1, NOW + 6, False, NOW, None)
    async with running(path) as ledger:
        ledger.remember(a._replace(attempts=2))
        ledger.remember(b)
        ledger.remember(Retrying(task_id(3), 1, NOW, True, NOW, None))
        ledger.forget(task_id(3))
        ledger.forget(task_id(4))
        await names(ledger)
        ledger.remember(a)
        ledger.record(row())
    again = Ledger(str(path))
    assert await again.open() == {a.task: a, b.task: b}
    assert await names(again) == [task_id()]
    again.forget(a.task)
    await names(again)
    await again.aclose()
    assert [item[0] for item in remembered(path)] == [b.task]


async def test_a_file_that_cannot_be_opened_is_an_error_at_start(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"nowhere/spool\.db"):
        await Ledger(str(tmp_path / "nowhere" / "spool.db")).open()


async def test_a_file_of_a_later_version_is_left_alone(path: Path) -> None:
    async with opened(path) as ledger:
        ledger.record(row())
        await names(ledger)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 3")
    with pytest.raises(OSError, match="later version"):
        await Ledger(str(path)).open()
    assert stored(path) == [task_id()]


async def test_a_file_of_the_version_before_is_gone_on_with(path: Path) -> None:
    async with opened(path) as ledger:
        ledger.record(row(1))
        await names(ledger)
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript("ALTER TABLE attempts DROP COLUMN vars; PRAGMA user_version = 1")
    async with opened(path) as ledger, opened(path):
        ledger.record(row(2, vars=VARS))
        assert await names(ledger) == [task_id(1), task_id(2)]
    assert stored(path, "task, vars") == [(task_id(1), None), (task_id(2), VARS)]


def damaged_beside(path: Path) -> list[Path]:
    return sorted(item for item in path.parent.glob("spool.db.damaged-*") if item.suffix.partition("-")[2].isdigit())


@pytest.mark.parametrize("content", [b"no database at all" * 1000, b"SQLite format 3\x00" + bytes(4080)])
async def test_a_file_that_is_damaged_at_start_is_set_aside_and_a_new_one_begun(content: bytes, path: Path) -> None:
    put(path, content)
    async with running(path) as ledger:
        ledger.record(row())
        assert await names(ledger) == [task_id()]
    (aside,) = damaged_beside(path)
    assert content_of(aside) == content


def damage(path: Path) -> None:
    """Overwrite all but the first pages, which are read when it is opened."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    size = path.stat().st_size
    with open(path, "r+b") as file:
        file.seek(5 * 4096)
        file.write(b"\xff" * (size - file.tell()))


def put(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def delete(path: Path) -> None:
    path.unlink()


def content_of(path: Path) -> bytes:
    return path.read_bytes()


async def test_a_file_that_is_damaged_while_it_is_written_is_set_aside_and_nothing_is_lost(path: Path) -> None:
    async with opened(path) as ledger:
        for number in range(500):
            ledger.record(row(number))
        await names(ledger)
    # Opening reads little of it.
    damage(path)
    async with running(path) as ledger:
        assert damaged_beside(path) == []
        for number in range(500, 600):
            ledger.record(row(number))
        ledger.remember(Retrying("a", 1, NOW, True, NOW, None))
        assert await names(ledger) == [task_id(number) for number in range(500, 600)]
        assert (ledger.statistics.failed_commits, ledger.statistics.dropped) == (0, 0)
    assert len(damaged_beside(path)) == 1
    assert [item[0] for item in remembered(path)] == ["a"]


async def test_a_file_that_is_damaged_while_it_is_read_is_set_aside(path: Path) -> None:
    async with opened(path) as ledger:
        for number in range(500):
            ledger.record(row(number))
        await names(ledger)
    damage(path)
    async with running(path) as ledger:
        assert await names(ledger) == []
        assert len(damaged_beside(path)) == 1
        ledger.record(row())
        assert await names(ledger) == [task_id()]


async def test_a_file_that_somebody_empties_is_set_aside(path: Path) -> None:
    async with running(path) as ledger:
        ledger.record(row(1))
        # Written, and not read: who opens it then finds a good file with nothing in it.
        await ledger.commit((), generation=await ledger.look(), durable=False)
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        os.truncate(path, 0)
        assert await names(ledger) == []
        ledger.record(row(2))
        assert await names(ledger) == [task_id(2)]
        assert len(damaged_beside(path)) == 1


async def test_a_file_that_somebody_deletes_is_begun_anew(path: Path) -> None:
    async with running(path) as ledger:
        ledger.record(row(1))
        await names(ledger)
        delete(path)
        assert await names(ledger) == []
        ledger.record(row(2))
        assert await names(ledger) == [task_id(2)]
        delete(path)
        ledger.record(row(2))
        assert await names(ledger) == [task_id(2)]
        assert stored(path) == [task_id(2)]
    assert stored(path) == [task_id(2)]


async def test_the_log_of_a_file_that_is_gone_does_not_become_that_of_a_new_one(path: Path) -> None:
    async with opened(path) as ledger:
        ledger.record(row(1))
        await names(ledger)
        # As after a kill: the rows are in the log only.
        log = content_of(path.with_name("spool.db-wal"))
        assert len(log) > 4096
    delete(path)
    put(path.with_name("spool.db-wal"), log)
    async with opened(path) as ledger:
        assert await names(ledger) == []


async def test_the_end_of_the_log_may_be_missing(path: Path) -> None:
    async with opened(path) as ledger:
        for number in range(10):
            ledger.record(row(number))
            await names(ledger)
        log = content_of(path.with_name("spool.db-wal"))
        content = content_of(path)
    put(path, content)
    put(path.with_name("spool.db-wal"), log[:-5000])
    async with opened(path) as ledger:
        found = await names(ledger)
    assert 0 < len(found) < 10
    assert found == [task_id(number) for number in range(len(found))]
    assert damaged_beside(path) == []


# Pruning


async def test_rows_that_are_old_are_deleted(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledgerfile, "PRUNE_ROWS", 10)
    now = time.time()
    pruned = trio.Event()
    token = trio.lowlevel.current_trio_token()
    real = LedgerFile.prune

    def prune(self: LedgerFile, before: float) -> bool:
        more = real(self, before)
        if not more:
            token.run_sync_soon(pruned.set)
        return more

    monkeypatch.setattr(LedgerFile, "prune", prune)
    async with opened(path) as ledger:
        # One with a clock that was wrong, in front: it must not keep the others.
        ledger.record(row(0, started_at=now + 9999))
        for number in range(1, 36):
            ledger.record(row(number, started_at=now - 100 + number))
        await names(ledger)
    async with running(path, keep_seconds=80.5) as ledger:
        await pruned.wait()
        assert await names(ledger) == [task_id(number) for number in (0, *range(20, 36))]


async def test_nothing_is_deleted_if_history_is_kept_for_ever(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LedgerFile, "prune", lambda *args: pytest.fail("pruned"))
    async with running(path, keep_seconds=0) as ledger:
        ledger.record(row(started_at=5.0))
        assert await names(ledger) == [task_id()]


@pytest.mark.parametrize(
    "error", [sqlite3.OperationalError("disk I/O error"), OSError("gone"), ledgerfile.Damaged("no")]
)
async def test_pruning_that_fails_is_tried_again(error: Exception, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_module, "PRUNE_SECONDS", 0.001)
    token = trio.lowlevel.current_trio_token()
    tried: list[float] = []
    again = trio.Event()

    def prune(self: LedgerFile, before: float) -> bool:
        tried.append(before)
        if len(tried) < 3:
            raise error
        token.run_sync_soon(again.set)
        return False

    monkeypatch.setattr(LedgerFile, "prune", prune)
    async with running(path, keep_seconds=50):
        await again.wait()
        assert time.time() - 70 < tried[0] < time.time() - 49


@pytest.mark.parametrize("work", ["prune", "write"])
def test_after_an_error_of_the_disk_the_log_is_emptied_before_anything_is_appended(
    work: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = LedgerFile(str(path))
    file.open()
    file.write([row(number) for number in range(100)], {})
    log = path.with_name(f"{path.name}-wal")
    before = log.stat().st_size
    error = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorcode = sqlite3.SQLITE_IOERR_FSYNC

    class Broken:
        def execute(self, *args: object) -> None:
            raise error

        def close(self) -> None:
            real.close()

    # Another process has it open, so that the log is not emptied by closing it.
    with closing(sqlite3.connect(path)) as other:
        other.execute("SELECT * FROM attempts").fetchall()
        real, file._writing = file._writing, Broken()
        with pytest.raises(sqlite3.OperationalError):
            file.prune(NOW) if work == "prune" else file.write([row(2)], {})
        assert log.stat().st_size == before
        file.write([row(3)], {})
        assert 0 < log.stat().st_size < before
        file.write([row(4)], {})
        assert log.stat().st_size < before
    file.close()


def test_a_log_that_a_process_has_left_that_died_is_emptied_before_anything_is_appended(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trispool.sqlitefile.LOCKED_SECONDS", 0.1)
    died, file = LedgerFile(str(path)), LedgerFile(str(path))
    died.open()
    died.write([row(number) for number in range(100)], {})
    log = path.with_name(f"{path.name}-wal")
    file.open()
    before = log.stat().st_size
    file.write([row(101)], {})
    assert 0 < log.stat().st_size < before
    # What somebody reads, who may take hours for it, holds up nothing if no error is known of.
    with closing(sqlite3.connect(path, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM attempts").fetchone()
        third = LedgerFile(str(path))
        third.open()
        third.write([row(102)], {})
        third.close()
    file.close()
    died.close()


# Questions


async def known(ledger: Ledger, task: str, limit: int = 100) -> History:
    found = await ledger.history(task, limit)
    assert found is not None
    return found


async def test_the_attempts_of_a_task_are_told_in_order(path: Path) -> None:
    async with opened(path) as ledger:
        for number in range(1, 6):
            ledger.record(row(1, number=number, started_at=NOW + number, outcome="retry", state=None))
            ledger.record(row(2, number=number))
            # Enqueued in the same microsecond by another process.
            other = spoolfile.new_name("my_host", 4712, 1, 1, int(NOW), 1)
            ledger.record(row(task=other, number=99))
        attempts = (await known(ledger, task_id(1))).attempts
        assert [attempt.number for attempt in attempts] == [1, 2, 3, 4, 5]
        assert [attempt.number for attempt in (await known(ledger, task_id(1), 2)).attempts] == [4, 5]
        assert attempts[0] == Attempt(1, "retry", NOW + 1, 0.25, 1.5, 77, "encode", None, None)
        assert await ledger.history(task_id(9)) is None


async def test_a_task_is_told_as_its_last_attempt_left_it(path: Path) -> None:
    async with opened(path) as ledger:
        ledger.record(row(1, number=1, outcome="failed", state=None, error="no"))
        ledger.record(row(1, number=2, outcome="failed", state="dead", error="no, again", priority=4))
        ledger.record(row(1, number=2, outcome="rescheduled", state=None, error="by alice"))
        ledger.record(row(2, outcome="retry", state=None))
        last = (await known(ledger, task_id(1))).last
        assert (last.id, last.state, last.attempts, last.last_error) == (task_id(1), TaskState.DEAD, 2, "no, again")
        assert (last.at, last.priority, last.enqueued_at) == (NOW, 4, NOW + 1e-6)
        assert (last.finished_at, last.run_seconds, last.handler) == (NOW + 1 + 1.5, 1.5, "encode")
        waiting = (await known(ledger, task_id(2))).last
        assert (waiting.state, waiting.finished_at) == (TaskState.READY, None)
        asked = [(task_id(number), NOW + number / 1e6) for number in (1, 2, 9)]
        assert await ledger.last_runs(asked) == {task_id(1): last, task_id(2): waiting}
        assert await ledger.last_runs([]) == {}


async def test_a_task_that_only_an_operator_has_touched_has_not_run(path: Path) -> None:
    async with opened(path) as ledger:
        ledger.record(row(1, number=0, outcome="held", state=None, error="by alice"))
        assert await ledger.last_runs([(task_id(1), NOW + 1e-6)]) == {}
        assert [attempt.outcome for attempt in (await known(ledger, task_id(1))).attempts] == ["held"]


async def test_the_vars_of_a_task_are_told_as_far_as_they_are_known(path: Path) -> None:
    async with opened(path) as ledger:
        ledger.record(row(1, number=1, outcome="retry", state=None))
        ledger.record(row(1, number=2, vars=VARS))
        ledger.record(row(1, number=2, outcome="held", state=None))
        ledger.record(row(2))
        ledger.record(row(3, vars=b"\xff"))
        assert (await known(ledger, task_id(1))).vars == {b"handler": b"encode", b"path": b"\xff.mov"}
        assert (await known(ledger, task_id(2))).vars is None
        assert (await known(ledger, task_id(3))).vars is None


@pytest.mark.parametrize("name", ["uwsgi_spoolfile_on_by_hand", spoolfile.PREFIX, "uwsgi_spoolfile_on_é_1_2_3_4_x"])
async def test_a_task_whose_id_does_not_tell_its_time_is_found_too(
    name: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_module, "SEARCH_ROWS", 3)
    async with opened(path) as ledger:
        for number in range(20):
            ledger.record(row(number))
            if number % 7 == 3:
                ledger.record(row(task=name, enqueued_at=NOW + 3, number=number))
        await names(ledger)
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            connection.execute("DELETE FROM attempts WHERE seq BETWEEN 8 AND 17 AND task != ?", (name,))
        assert [attempt.number for attempt in (await known(ledger, name)).attempts] == [3, 10, 17]
        assert [attempt.number for attempt in (await known(ledger, name, 2)).attempts] == [10, 17]
        assert (await known(ledger, name)).last.id == name
        assert await ledger.history(name + "!") is None


async def test_what_cannot_be_a_task_is_not_looked_for(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LedgerFile, "read", lambda *args: pytest.fail("looked for"))
    async with opened(path) as ledger:
        for name in ("", "x" * 200, "../x", "uwsgi_spoolfile_on_\udcff"):
            assert await ledger.history(name) is None


async def test_a_question_is_answered_with_what_was_recorded_just_before(path: Path) -> None:
    async with running(path) as ledger:
        ledger.record(row())
        assert await names(ledger) == [task_id()]


async def test_a_long_search_holds_up_no_writing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    searching, answer = threading.Event(), threading.Event()

    def read(*args: object) -> None:
        searching.set()
        assert answer.wait(PATIENCE)

    monkeypatch.setattr(LedgerFile, "read", read)
    writes = Writes(monkeypatch)
    async with running(path) as ledger, trio.open_nursery() as nursery:
        nursery.start_soon(ledger.history, task_id())
        await trio.to_thread.run_sync(searching.wait)
        ledger.record(row())
        await writes.written.wait()
        answer.set()


@pytest.mark.parametrize(
    "error", [sqlite3.OperationalError("disk I/O error"), ledgerfile.Damaged("still"), ledgerfile.Replaced()]
)
async def test_history_that_cannot_be_read_is_unavailable(
    error: Exception, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(*args: object) -> None:
        raise error

    async with running(path) as ledger:
        with monkeypatch.context() as patch:
            patch.setattr(LedgerFile, "read", read)
            with pytest.raises(SpoolUnavailable, match="cannot be read"):
                await ledger.history(task_id())
        ledger.record(row())
        assert await names(ledger) == [task_id()]
