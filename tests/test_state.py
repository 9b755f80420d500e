"""The file of a service's state, and the audit log in it."""

from __future__ import annotations

import os
import sqlite3
import stat
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

import pytest
import structlog.testing
import trio

from tests.test_once import full_disk
from trispool import state as state_module
from trispool import staterows
from trispool.errors import ConfigError, SpoolUnavailable, TaskRefused
from trispool.operating import Actor, AuditRow, OnceKey
from trispool.state import KEEP_AUDIT_SECONDS, KEEP_KEYS_SECONDS, open_state, writer
from trispool.state.writer import StateWriter
from trispool.statefile import StateFile
from trispool.staterows import Reservation, add_audit, audit_values, prune_audit, reserve

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from trispool.state import State
    from trispool.statefile import Change

NET = 120.0
"""Seconds after which a test hangs: a busy disk takes its time for a sync."""

ALICE = Actor("alice", "operate", "10.0.0.1")
BOB = Actor("bob", "enqueue", "unix")


@asynccontextmanager
async def opened(path: Path, now: float = 1_700_000_000.0) -> AsyncIterator[State]:
    with trio.fail_after(NET):
        async with open_state(path, clock=lambda: now) as state:
            yield state


def content_of(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def added(target: str) -> Change:
    return partial(add_audit, values=audit_values(1.0, ALICE, "scan", target))


async def targets(state: State, **wanted: str) -> list[str]:
    return [row.target for row in (await state.audit.page(**wanted)).rows]


def test_a_new_folder_and_those_above_it_reach_the_disk(
    tmp_path: Path, synced: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = StateFile("a/state/state.db")
    file.open()
    file.close()
    assert [path for path in synced if os.path.isdir(path)] == [str(tmp_path / "a"), str(tmp_path)]
    assert stat.S_IMODE(os.stat("a/state").st_mode) == 0o700


# The audit log


async def test_a_change_is_in_the_audit_log_when_it_has_been_noted(tmp_path: Path) -> None:
    async with opened(tmp_path, now=1234.5) as state:
        await state.audit.note(ALICE, "spool.change", "mail", before={"paused": False}, after={"paused": True})
        await state.audit.note(BOB, "task.cancel", "task-\udcff", outcome="it is done already")
    async with opened(tmp_path) as state:
        page = await state.audit.page()
        assert page.cursor is None
        assert page.rows == [
            AuditRow(
                2, 1234.5, "bob", "enqueue", "unix", "task.cancel", "task-\\udcff", None, None, "it is done already"
            ),
            AuditRow(
                1,
                1234.5,
                "alice",
                "operate",
                "10.0.0.1",
                "spool.change",
                "mail",
                {"paused": False},
                {"paused": True},
                "ok",
            ),
        ]


async def test_pages_leave_nothing_out_and_repeat_nothing_while_more_comes(tmp_path: Path) -> None:
    async with opened(tmp_path) as state:
        for number in range(7):
            await state.audit.note(ALICE, "scan", str(number))
        seen: list[str] = []
        cursor = None
        for _ in range(4):
            page = await state.audit.page(limit=2, cursor=cursor)
            seen += [row.target for row in page.rows]
            await state.audit.note(BOB, "scan", "later")
            cursor = page.cursor
        assert cursor is None
        assert seen == ["6", "5", "4", "3", "2", "1", "0"]


async def test_the_log_can_be_searched(tmp_path: Path) -> None:
    async with opened(tmp_path) as state:
        await state.audit.note(ALICE, "task.hold", "1")
        await state.audit.note(ALICE, "task.run", "2")
        await state.audit.note(BOB, "task.run", "1")
        assert await targets(state, actor="alice") == ["2", "1"]
        assert await targets(state, action="task.run") == ["1", "2"]
        assert await targets(state, target="1") == ["1", "1"]
        assert await targets(state, target="1", actor="alice") == ["1"]
        assert await targets(state, action="task.run", actor="bob") == ["1"]
        assert await targets(state, actor="carol") == []


async def test_a_page_looks_at_a_bounded_number_of_rows_and_leads_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staterows, "LOOKED_AT", 3)
    async with opened(tmp_path) as state:
        await state.audit.note(ALICE, "task.hold", "wanted")
        for _ in range(6):
            await state.audit.note(ALICE, "task.run", "other")
        page = await state.audit.page(actor="alice", action="task.hold")
        assert (page.rows, page.cursor is None) == ([], False)
        page = await state.audit.page(actor="alice", action="task.hold", cursor=page.cursor)
        assert (page.rows, page.cursor is None) == ([], False)
        page = await state.audit.page(actor="alice", action="task.hold", cursor=page.cursor)
        assert [row.target for row in page.rows] == ["wanted"]
        assert page.cursor is None


@pytest.mark.parametrize("cursor", ["", "x", "-1", "1.5", "9" * 30, "\u0661"])
async def test_a_cursor_of_somebody_else_is_refused(tmp_path: Path, cursor: str) -> None:
    async with opened(tmp_path) as state:
        with pytest.raises(TaskRefused):
            await state.audit.page(cursor=cursor)


async def test_what_a_full_disk_does_not_take_is_said_and_written_later(tmp_path: Path) -> None:
    async with opened(tmp_path) as state:
        await state.audit.note(ALICE, "scan", "before")
        with full_disk(), structlog.testing.capture_logs() as logs:
            await state.audit.note(ALICE, "task.cancel", "1", before="ready", after="cancelled")
            assert state.problem is not None
        assert [log for log in logs if log["event"] == "audit_not_written"] == [
            {
                "event": "audit_not_written",
                "log_level": "error",
                "actor": "alice",
                "address": "10.0.0.1",
                "action": "task.cancel",
                "target": "1",
                "before": "ready",
                "after": "cancelled",
                "outcome": "ok",
            }
        ]
        await state.audit.note(ALICE, "scan", "after")
        assert state.problem is None
        assert await targets(state) == ["after", "1", "before"]


async def test_what_waits_at_the_end_is_written_still(tmp_path: Path) -> None:
    async with opened(tmp_path) as state:
        state._writer.tell(added("late"))
    async with opened(tmp_path) as state:
        assert await targets(state) == ["late"]


async def test_old_rows_and_keys_are_deleted(tmp_path: Path) -> None:
    now = [1e9]
    with trio.fail_after(NET):
        async with open_state(tmp_path, clock=lambda: now[0]) as state:
            await state.audit.note(ALICE, "scan", "old")
            now[0] += 100
            await state.audit.note(ALICE, "scan", "young")
            for key in ("old", "young"):
                new = Reservation(b"f", now[0], "x_1_1_1_1", 1, "default")
                await state._writer.write(partial(reserve, owner="o", key=key, new=new, oldest=0.0))
                now[0] += KEEP_KEYS_SECONDS - 50
            await state.prune()
            keys = await state._writer.read(lambda c: c.execute("SELECT key FROM once").fetchall())
            assert keys == [("young",)]
            assert await targets(state) == ["young", "old"]
            now[0] = 1e9 + 50 + KEEP_AUDIT_SECONDS
            await state.prune()
            assert await targets(state) == ["young"]


async def test_that_it_cannot_be_done_now_is_said(tmp_path: Path) -> None:
    async with opened(tmp_path) as state:
        with full_disk(), structlog.testing.capture_logs() as logs:
            await state.audit.note(ALICE, "scan", "waits")
            await state.prune()
        assert "state_not_pruned" in [log["event"] for log in logs]


def test_more_rows_than_may_be_are_deleted_the_oldest_first(tmp_path: Path) -> None:
    file = StateFile(str(tmp_path / "state.db"))
    file.open()
    add = [added(str(n)) for n in range(10)]
    file.write(add)
    assert file.write([partial(prune_audit, before=0.0, max_rows=4)]) == [False]
    rows = file.read(lambda c: c.execute("SELECT target FROM audit ORDER BY seq").fetchall())
    assert [target for (target,) in rows] == ["6", "7", "8", "9"]
    file.close()


async def test_logins_do_not_crowd_out_what_operators_did(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_module, "KEEP_LOGINS", 2)
    monkeypatch.setattr(state_module, "KEEP_AUDIT_ROWS", 5)
    async with opened(tmp_path) as state:
        await state.audit.note(ALICE, "scan", "kept")
        for number in range(9):
            await state.audit.note(BOB, "login", f"in {number}")
            await state.audit.note(BOB, "logout", f"out {number}")
        await state.prune()
        assert await targets(state) == ["out 8", "in 8", "out 7", "in 7", "kept"]


# The file


async def test_the_file_is_for_its_owner_only(tmp_path: Path) -> None:
    async with opened(tmp_path / "var" / "lib") as state:
        await state.audit.note(ALICE, "scan", "1")
        for path in (tmp_path / "var" / "lib").iterdir():
            assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    assert stat.S_IMODE((tmp_path / "var" / "lib").stat().st_mode) == 0o700


async def test_a_damaged_file_is_set_aside_and_said(tmp_path: Path) -> None:
    (tmp_path / "state.db").write_bytes(b"no database, but longer than a header of SQLite, so it is looked at" * 100)
    with structlog.testing.capture_logs() as logs:
        async with opened(tmp_path) as state:
            await state.audit.note(ALICE, "scan", "1")
            assert await targets(state) == ["1"]
    (log,) = [log for log in logs if log["event"] == "state_damaged"]
    assert content_of(log["set_aside"]).startswith(b"no database")


async def test_a_file_that_is_damaged_while_it_is_in_use_is_set_aside_and_said(tmp_path: Path) -> None:
    with structlog.testing.capture_logs() as logs:
        async with opened(tmp_path) as state:
            await state.audit.note(ALICE, "scan", "1")
            (tmp_path / "other").write_bytes(
                b"no database, but longer than a header of SQLite, so it is looked at" * 100
            )
            (tmp_path / "other").rename(tmp_path / "state.db")
            await state.audit.note(ALICE, "scan", "2")
            await state.audit.note(ALICE, "scan", "3")
            assert (await targets(state))[0] == "3"
    (log,) = [log for log in logs if log["event"] == "state_not_written"]
    _, said, aside = log["error"].partition("it has been set aside as ")
    assert said
    assert content_of(aside).startswith(b"no database")


async def test_a_file_that_was_deleted_is_begun_anew(tmp_path: Path) -> None:
    async with opened(tmp_path) as state:
        await state.audit.note(ALICE, "scan", "1")
        for name in ("state.db", "state.db-wal", "state.db-shm"):
            os.unlink(tmp_path / name)
        with pytest.raises(SpoolUnavailable):
            await state.audit.page()
        await state.audit.note(ALICE, "scan", "2")
        assert await targets(state) == ["2"]
    async with opened(tmp_path) as state:
        assert await targets(state) == ["2"]


async def test_a_file_of_a_later_version_is_left_alone(tmp_path: Path) -> None:
    async with opened(tmp_path) as state:
        await state._writer.write(lambda connection: connection.execute("PRAGMA user_version = 99"))
    content = (tmp_path / "state.db").read_bytes()
    with pytest.raises(ConfigError, match="later version"):
        async with opened(tmp_path):
            raise AssertionError
    assert (tmp_path / "state.db").read_bytes() == content


async def test_a_state_directory_that_is_none_is_a_fault_of_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="state_dir"):
        async with opened(tmp_path / "file"):
            raise AssertionError


def test_what_was_written_outlives_a_power_cut(tmp_path: Path) -> None:
    file = StateFile(str(tmp_path / "state.db"))
    assert file.write([lambda c: c.execute("PRAGMA synchronous").fetchone()]) == [(2,)]  # FULL
    assert file.write([lambda c: c.execute("PRAGMA journal_mode").fetchone()]) == [("wal",)]
    file.close()


def test_after_an_error_of_the_disk_the_log_is_emptied_before_anything_is_appended(tmp_path: Path) -> None:
    file, other = StateFile(str(tmp_path / "state.db")), StateFile(str(tmp_path / "state.db"))
    file.write([added(str(n)) for n in range(100)])
    other.read(lambda c: c.execute("SELECT target FROM audit").fetchall())  # has it open: closing empties nothing
    log = tmp_path / "state.db-wal"
    before = log.stat().st_size

    def fail(connection: sqlite3.Connection) -> None:
        error = sqlite3.OperationalError("disk I/O error")
        error.sqlite_errorcode = sqlite3.SQLITE_IOERR_FSYNC
        raise error

    with pytest.raises(OSError, match="disk I/O"):
        file.write([fail])
    assert log.stat().st_size >= before
    file.write([added("100")])
    assert 0 < log.stat().st_size < before
    other.close()
    file.close()


# The writer


async def test_changes_that_wait_at_the_same_time_share_one_transaction(tmp_path: Path) -> None:
    file = StateFile(str(tmp_path / "state.db"))
    file.open()
    transactions: list[int] = []
    write = file.write

    def counted(changes: object) -> object:
        transactions.append(len(changes))  # type: ignore[arg-type]
        return write(changes)  # type: ignore[arg-type]

    file.write = counted  # type: ignore[method-assign,assignment]
    ours = StateWriter(file)
    results: list[int] = []

    async def ask(number: int) -> None:
        results.append(await ours.write(lambda connection: number))

    with trio.fail_after(NET):
        async with trio.open_nursery() as outer:
            await outer.start(ours.run_writer)
            async with trio.open_nursery() as nursery:
                for number in range(50):
                    nursery.start_soon(ask, number)
            outer.cancel_scope.cancel()
    assert sorted(results) == list(range(50))
    assert len(transactions) <= 2
    file.close()


async def test_one_change_that_fails_undoes_those_beside_it(tmp_path: Path) -> None:
    file = StateFile(str(tmp_path / "state.db"))
    file.open()

    def fail(connection: sqlite3.Connection) -> None:
        connection.execute("SELECT * FROM nothing")

    add = added("1")
    with pytest.raises(OSError, match="nothing"):
        file.write([add, fail])
    file.write([add])
    assert file.read(lambda c: c.execute("SELECT count(*) FROM audit").fetchone()) == (1,)
    file.close()


async def test_more_changes_than_may_wait_are_lost_and_those_who_wait_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "MAX_TOLD", 2)
    async with opened(tmp_path) as state:
        with full_disk(), structlog.testing.capture_logs() as logs:
            for number in range(4):
                await state.audit.note(ALICE, "scan", str(number))
        assert [log["target"] for log in logs if log["event"] == "audit_not_written"] == ["0", "1", "2", "3"]
        await state.once._reserve(OnceKey("k", "o", b"f"), ["default"])  # when this is written, they are
        assert await targets(state) == ["1", "0"]


async def test_nobody_waits_for_a_writer_that_has_ended(tmp_path: Path) -> None:
    async with opened(tmp_path) as state:
        pass
    with trio.fail_after(NET), structlog.testing.capture_logs() as logs:
        await state.audit.note(ALICE, "scan", "late")
        with pytest.raises(SpoolUnavailable):
            await state.once._reserve(OnceKey("k", "o", b"f"), ["default"])
    assert [log["event"] for log in logs] == ["audit_not_written"]


async def test_what_is_no_json_is_a_fault_of_the_caller_alone(tmp_path: Path) -> None:
    async with opened(tmp_path) as state:
        with pytest.raises(TypeError):
            await state.audit.note(ALICE, "scan", "1", before=object())
        await state.audit.note(ALICE, "scan", "2")
        assert await targets(state) == ["2"]


async def test_nothing_is_said_of_pruning_when_the_state_is_closed_in_the_middle_of_it(tmp_path: Path) -> None:
    with structlog.testing.capture_logs() as logs:
        for _ in range(30):
            async with open_state(tmp_path):
                pass  # it begins to prune at once
    assert logs == []
