"""The history of a spool: one row per attempt, in the spool's own `.trispool/spool.db`.

Rules it keeps:

1. It never stops a task. A row that cannot be written is dropped, counted and said; a damaged file is set aside under
   another name and a new one begun.
2. One connection writes, from one thread at a time; whatever was recorded meanwhile goes into the next transaction.
3. It also remembers, for tasks that wait for another attempt, how many they had and when the next one is: the only part
   that running depends on, read once at start.

SQLite in WAL mode with `synchronous=NORMAL`: a power cut may lose the newest rows, never the file. A task's durability
does not rest on them.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

import structlog
import trio

from trispool.control import Attempt, TaskSummary
from trispool.errors import SpoolUnavailable
from trispool.task import AttemptRow, Retrying, TaskState

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

__all__ = ["Ledger"]

MAX_PENDING: Final = 200_000
"""Rows that may wait for a disk that has stopped (some 100 MB); further ones are dropped."""

GATHER_SECONDS: Final = 0.05
"""How long rows are gathered for one transaction, which costs as much as writing fifty of them. A crash of the service
loses the history of so long; whoever asks for history sees all of it, since a question writes first."""

PRUNE_SECONDS: Final = 600.0
"""How often old rows are looked for."""

PRUNE_ROWS: Final = 5_000
"""Rows deleted in one transaction, some 20 ms: the next batch of new rows waits no longer."""

_RETRY_SECONDS: Final = 1.0
"""How long to wait after a failed commit: a full disk does not mend faster."""

_SCHEMA: Final = """
PRAGMA journal_mode = WAL;
PRAGMA synchronous = NORMAL;
PRAGMA wal_autocheckpoint = 4000;
CREATE TABLE IF NOT EXISTS attempts (
    seq INTEGER PRIMARY KEY,
    task TEXT NOT NULL,
    number INTEGER NOT NULL,
    outcome TEXT NOT NULL,
    state TEXT,                  -- what the task became, if it did not go on waiting
    started_at REAL NOT NULL,
    queue_seconds REAL NOT NULL,
    run_seconds REAL NOT NULL,
    worker INTEGER NOT NULL,
    handler TEXT,
    error TEXT,
    traceback TEXT,
    at REAL NOT NULL,
    priority INTEGER,
    enqueued_at REAL NOT NULL
);
CREATE INDEX IF NOT EXISTS attempts_task ON attempts (task);
CREATE INDEX IF NOT EXISTS attempts_not_ok ON attempts (seq) WHERE outcome != 'ok';
CREATE TABLE IF NOT EXISTS retrying (
    task TEXT PRIMARY KEY,
    attempts INTEGER NOT NULL,
    due_at REAL NOT NULL,
    by_frequency INTEGER NOT NULL,
    ended_at REAL NOT NULL,
    error TEXT
) WITHOUT ROWID;
"""

_log = structlog.get_logger()

T = TypeVar("T")


@dataclass(slots=True)
class LedgerStatistics:
    """Counts since the start."""

    written: int = 0
    dropped: int = 0
    failed_commits: int = 0


class Ledger:
    """See the module. `record`, `remember` and `forget` return at once; `run_ledger` writes what they left.

    Args:
        path: The database file.
        keep_seconds: How long rows are kept; 0: for ever.
    """

    def __init__(self, path: str, keep_seconds: float = 0) -> None:
        self._path = path
        self._keep_seconds = keep_seconds
        self._rows: list[AttemptRow] = []
        self._retrying: dict[str, Retrying | None] = {}
        self._work = trio.Event()
        # One thread at a time touches the connection.
        self._limiter = trio.CapacityLimiter(1)
        self._connection: sqlite3.Connection | None = None
        self._opened: os.stat_result
        self._complaint = ""
        self.statistics = LedgerStatistics()

    def record(self, row: AttemptRow) -> None:
        """Write this row soon. One that finds `MAX_PENDING` waiting is dropped."""
        if len(self._rows) >= MAX_PENDING:
            self.statistics.dropped += 1
            return
        self._rows.append(row)
        self._work.set()

    def remember(self, retrying: Retrying) -> None:
        """Keep what is known of a task that waits for another attempt."""
        self._retrying[retrying.task] = retrying
        self._work.set()

    def forget(self, task_id: str) -> None:
        """The task no longer waits for another attempt."""
        self._retrying[task_id] = None
        self._work.set()

    async def open(self) -> dict[str, Retrying]:
        """Open the database, or begin a new one.

        Returns:
            What is remembered of tasks that wait for another attempt, by task id.

        Raises:
            OSError: Neither is possible (permissions, no space).
        """
        return await self._in_thread(self._open)

    async def run_ledger(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Write what is recorded, and delete what is old, until cancelled; what is left is then written still."""
        task_status.started()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._prune_now_and_then)
                while True:
                    await self._work.wait()
                    await trio.sleep(GATHER_SECONDS)
                    if not await self._flush():
                        await trio.sleep(_RETRY_SECONDS)
        finally:
            with trio.move_on_after(5, shield=True):
                await self._flush()

    async def aclose(self) -> None:
        """Close the database."""
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 5):
            await self._in_thread(self._close)

    async def attempts(self, task_id: str, limit: int = 100) -> list[Attempt]:
        """The newest attempts of a task, oldest first."""
        rows = await self._query(
            "SELECT number, outcome, started_at, queue_seconds, run_seconds, worker, handler, error, traceback"
            " FROM attempts WHERE task = ? ORDER BY seq DESC LIMIT ?",
            (task_id, limit),
        )
        return [Attempt(*row) for row in reversed(rows)]

    async def last(self, task_id: str) -> TaskSummary | None:
        """A task as its last attempt left it, or None if it is not in the history."""
        rows = await self._query(
            f"SELECT {_SUMMARY} FROM attempts WHERE task = ? ORDER BY seq DESC LIMIT 1", (task_id,)
        )
        return _summary(rows[0])[1] if rows else None

    async def finished(
        self, *, q: str | None, ascending: bool, limit: int, after: int | None
    ) -> list[tuple[int, TaskSummary]]:
        """Tasks that are done, by the time they ended.

        Args:
            q: Only those whose id, handler or error has this text in it.
            ascending: The oldest first.
            limit: How many at most.
            after: Continue behind this row number.

        Returns:
            Row number and task.
        """
        where, values = ["state = 'done'"], list[object]()
        if q:
            where.append("(instr(task, ?) OR instr(coalesce(handler, ''), ?) OR instr(coalesce(error, ''), ?))")
            values += [q, q, q]
        if after is not None:
            where.append("seq > ?" if ascending else "seq < ?")
            values.append(after)
        rows = await self._query(
            f"SELECT {_SUMMARY} FROM attempts WHERE {' AND '.join(where)}"
            f" ORDER BY seq {'ASC' if ascending else 'DESC'} LIMIT ?",
            (*values, limit),
        )
        return [_summary(row) for row in rows]

    async def _query(self, sql: str, values: Sequence[object]) -> list[Any]:
        await self._flush()
        try:
            return await self._in_thread(lambda: self._connected().execute(sql, values).fetchall())
        except (sqlite3.Error, OSError) as error:
            raise SpoolUnavailable(f"the history cannot be read: {error}") from error

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await trio.to_thread.run_sync(work, limiter=self._limiter)

    async def _flush(self) -> bool:
        """Write all that has been recorded; False if it has to be tried again."""
        rows, self._rows = self._rows, []
        retrying, self._retrying = self._retrying, {}
        self._work = trio.Event()
        if not rows and not retrying:
            return True
        try:
            await self._in_thread(lambda: self._write(rows, retrying))
        except (sqlite3.Error, OSError) as error:
            self.statistics.failed_commits += 1
            room = MAX_PENDING - len(self._rows)
            self.statistics.dropped += max(0, len(rows) - room)
            self._rows = rows[:room] + self._rows
            self._retrying = retrying | self._retrying
            self._work.set()
            if str(error) != self._complaint:
                self._complaint = str(error)
                _log.error("history_not_written", path=self._path, rows=len(rows), error=self._complaint)
            return False
        except trio.Cancelled:
            # Cancelled before the thread had begun: nothing is lost, the last flush takes it.
            self._rows = rows + self._rows
            self._retrying = retrying | self._retrying
            self._work.set()
            raise
        if self._complaint:
            self._complaint = ""
            _log.info("history_is_written_again", path=self._path)
        self.statistics.written += len(rows)
        return True

    async def _prune_now_and_then(self) -> None:
        while self._keep_seconds:
            try:
                while await self._in_thread(lambda: self._prune(time.time() - self._keep_seconds)):
                    await trio.lowlevel.checkpoint()
            except (sqlite3.Error, OSError) as error:
                _log.error("history_not_pruned", path=self._path, error=str(error))
            await trio.sleep(PRUNE_SECONDS)

    # In the thread

    def _connected(self) -> sqlite3.Connection:
        if self._connection is not None and not self._is_in_place():
            # Somebody has put another directory in the place of the spool's, and its history goes with it.
            self._close()
        if self._connection is None:
            self._open()
        assert self._connection is not None
        return self._connection

    def _is_in_place(self) -> bool:
        try:
            return os.path.samestat(os.stat(self._path), self._opened)
        except FileNotFoundError:
            return False

    def _open(self) -> dict[str, Retrying]:
        try:
            return self._connect()
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError) and "malformed" not in str(error):
                raise OSError(f"{self._path}: {error}") from error
            self._set_aside(error)
            return self._connect()

    def _connect(self) -> dict[str, Retrying]:
        # Autocommit, so that transactions are ours; used from changing threads, one at a time.
        connection = sqlite3.connect(self._path, timeout=10, isolation_level=None, check_same_thread=False)
        try:
            connection.executescript(_SCHEMA)
            rows = connection.execute("SELECT * FROM retrying").fetchall()
        except BaseException:
            connection.close()
            raise
        self._connection = connection
        self._opened = os.stat(self._path)
        return {row[0]: Retrying(row[0], row[1], row[2], bool(row[3]), row[4], row[5]) for row in rows}

    def _set_aside(self, error: Exception) -> None:
        aside = f"{self._path}.damaged-{time.time_ns()}"
        for ending in ("", "-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                os.rename(self._path + ending, aside + ending)
        _log.error("history_damaged", path=self._path, set_aside=aside, error=str(error))

    def _write(self, rows: Sequence[AttemptRow], retrying: Mapping[str, Retrying | None]) -> None:
        connection = self._connected()
        try:
            self._transaction(connection, rows, retrying)
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError) and "malformed" not in str(error):
                raise
            self._close()
            self._set_aside(error)
            self._transaction(self._connected(), rows, retrying)

    def _transaction(
        self, connection: sqlite3.Connection, rows: Sequence[AttemptRow], retrying: Mapping[str, Retrying | None]
    ) -> None:
        connection.execute("BEGIN IMMEDIATE")
        try:
            connection.executemany(_INSERT, rows)
            for task, known in retrying.items():
                if known is None:
                    connection.execute("DELETE FROM retrying WHERE task = ?", (task,))
                else:
                    connection.execute("INSERT OR REPLACE INTO retrying VALUES (?, ?, ?, ?, ?, ?)", known)
            connection.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
            raise

    def _prune(self, before: float) -> bool:
        """Delete some old rows; True if there may be more."""
        # Rows lie in the order of their ends, so the first that is young enough ends the search.
        cursor = self._connected().execute(
            "DELETE FROM attempts WHERE seq IN"
            " (SELECT seq FROM (SELECT seq, started_at FROM attempts ORDER BY seq LIMIT ?) WHERE started_at < ?)",
            (PRUNE_ROWS, before),
        )
        return cursor.rowcount == PRUNE_ROWS

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


_INSERT: Final = (
    f"INSERT INTO attempts ({', '.join(AttemptRow._fields)}) VALUES ({', '.join('?' * len(AttemptRow._fields))})"
)

_SUMMARY: Final = "seq, task, state, at, priority, enqueued_at, number, error, started_at, run_seconds"


def _summary(row: Sequence[Any]) -> tuple[int, TaskSummary]:
    seq, task, state, at, priority, enqueued_at, number, error, started_at, run_seconds = row
    summary = TaskSummary(
        id=task,
        spool="",
        state=TaskState(state or "ready"),
        at=at,
        priority=priority,
        enqueued_at=enqueued_at,
        attempts=number,
        last_error=error,
        finished_at=started_at + run_seconds if state else None,
        run_seconds=run_seconds,
    )
    return seq, summary
