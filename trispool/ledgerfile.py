"""The SQLite file of a ledger: blocking, standard library only.

Rules it keeps:

1. A damaged file is set aside under another name and a new one begun. One that somebody has deleted, or with its
   directory replaced, is written no more: nobody would see it.
2. A row that SQLite will not take is left out and counted, and costs no other row.
3. One connection writes, one reads, so that a long search holds up no writing. Each is used by one thread at a time.
4. After an error other than those the connections are opened afresh: what they know of the file may be wrong.

WAL mode with `synchronous=NORMAL`: a power cut may lose the newest rows, never the file.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from itertools import chain
from typing import TYPE_CHECKING, Final, TypeVar

from trispool.task import AttemptRow, Retrying

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

__all__ = ["Damaged", "LedgerFile", "Replaced"]

PRUNE_ROWS: Final = 5_000
"""Rows deleted in one transaction, some 20 ms: the next batch of new rows waits no longer."""

_ROWS_AT_ONCE: Final = 64
"""Rows in one statement. Python's lock is let go of and taken again once a statement: with a row each that took 1.5
times as long, and a busy event loop gives the lock back only once a switch interval."""

_LOCKED_SECONDS: Final = 5.0
"""How long to wait for another process that writes to the file."""

_VERSION: Final = 2

_SCHEMA: Final = f"""
PRAGMA journal_mode = WAL;
PRAGMA synchronous = NORMAL;
PRAGMA wal_autocheckpoint = 4000;
PRAGMA user_version = {_VERSION};
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
    enqueued_at REAL NOT NULL,
    vars BLOB                    -- encoded; see `AttemptRow`
);
-- A task's id tells when it was enqueued. An index of that is a tenth of one of ids, and half the time to keep.
CREATE INDEX IF NOT EXISTS attempts_enqueued_at ON attempts (enqueued_at);
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

_COLUMNS: Final = ", ".join(AttemptRow._fields)
_ROW: Final = f"({', '.join('?' * len(AttemptRow._fields))})"
_INSERT_ONE: Final = f"INSERT INTO attempts ({_COLUMNS}) VALUES {_ROW}"
_INSERT_MANY: Final = f"INSERT INTO attempts ({_COLUMNS}) VALUES {', '.join([_ROW] * _ROWS_AT_ONCE)}"

_UNFIT: Final = (
    sqlite3.DataError,
    sqlite3.IntegrityError,
    sqlite3.InterfaceError,
    sqlite3.ProgrammingError,
    ValueError,
)
"""What SQLite, or its module, says of a value that it will not store; `OverflowError` apart."""

_NO_FILE: Final = (0, 0)

T = TypeVar("T")


class Damaged(Exception):
    """What is in the file is not what SQLite wrote."""


class Replaced(Exception):
    """There is another file by that name now, or none."""


class LedgerFile:
    """See the module.

    Args:
        path: The file.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._writing: sqlite3.Connection | None = None
        self._reading: sqlite3.Connection | None = None
        self._which = _NO_FILE  # is open for writing
        self._which_read = _NO_FILE

    # For the thread that writes

    def open(self) -> tuple[dict[str, Retrying], str | None]:
        """Open the file, or begin a new one.

        Returns:
            What is remembered of tasks that wait for another attempt, by id; and where a damaged file was put, or None.

        Raises:
            OSError: Neither is possible (permissions, no space, written by a later version).
        """
        try:
            aside = None
            try:
                return self._open(), aside
            except Damaged:
                aside = self.set_aside()
                return self._open(), aside
        except sqlite3.Error as error:
            raise OSError(f"{self._path}: {error}") from error

    def write(self, rows: Sequence[AttemptRow], retrying: Mapping[str, Retrying | None]) -> int:
        """Add rows, and change what is remembered of tasks (None: nothing any more), in one transaction.

        Returns:
            How many rows SQLite would not take.

        Raises:
            Damaged: Then nothing has been written. Call `set_aside` and try again.
            sqlite3.Error, OSError: Nothing has been written; the same call may work later.
        """
        connection = self._connected()
        try:
            try:
                return self._transaction(connection, rows, retrying, one_by_one=False)
            except (*_UNFIT, OverflowError):
                return self._transaction(connection, rows, retrying, one_by_one=True)
        except sqlite3.Error as error:
            self._close_writing()
            raise _judged(error) from error

    def prune(self, before: float) -> bool:
        """Delete some rows of attempts that began before a time, Unix seconds.

        Returns:
            Whether there may be more.

        Raises:
            Damaged, sqlite3.Error, OSError: As `write`.
        """
        try:
            # Rows lie in the order of their ends, so those in front that are young enough end the search.
            cursor = self._connected().execute(
                "DELETE FROM attempts WHERE seq IN"
                " (SELECT seq FROM (SELECT seq, started_at FROM attempts ORDER BY seq LIMIT ?) WHERE started_at < ?)",
                (PRUNE_ROWS, before),
            )
        except sqlite3.Error as error:
            self._close_writing()
            raise _judged(error) from error
        return cursor.rowcount > 0

    def reopen(self) -> None:
        """Go over to the file that is there now, or begin a new one.

        Raises:
            Damaged, sqlite3.Error, OSError: As `write`.
        """
        self._connected()

    def set_aside(self) -> str | None:
        """Put the file, and what belongs to it, out of the way.

        Returns:
            Its new name, or None if there was no file.
        """
        self._close_writing()
        aside = f"{self._path}.damaged-{time.time_ns()}"
        moved = None
        for ending in ("", "-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                os.rename(self._path + ending, aside + ending)
                moved = aside
        return moved

    def close(self) -> None:
        """Close the file. No other thread may be at work on it."""
        self._close_writing()
        self._close_reading()

    # For the thread that reads

    def read(self, question: Callable[[sqlite3.Connection], T]) -> T:
        """What a question finds in the file.

        Raises:
            Replaced: Call `reopen` and try again.
            Damaged: As `write`.
            sqlite3.Error: They cannot be read now.
        """
        which = self._which
        if which == _NO_FILE or which != _file_at(self._path):
            raise Replaced
        if self._reading is None or self._which_read != which:
            self._close_reading()
            self._which_read = which
            self._reading = self._connect()
        try:
            return question(self._reading)
        except sqlite3.Error as error:
            self._close_reading()
            raise _judged(error) from error

    # Inside

    def _connected(self) -> sqlite3.Connection:
        if self._writing is not None and _file_at(self._path) == self._which:
            return self._writing
        self._close_writing()
        self._open()
        assert self._writing is not None
        return self._writing

    def _open(self) -> dict[str, Retrying]:
        connection = self._connect()
        try:
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if version > _VERSION:
                raise OSError(f"{self._path} was written by a later version of trispool")
            if version == 1:
                _add_vars(connection)
            connection.executescript(_SCHEMA)
            rows = connection.execute("SELECT * FROM retrying").fetchall()
        except sqlite3.Error as error:
            connection.close()
            raise _judged(error) from error
        except BaseException:
            connection.close()
            raise
        self._writing = connection
        self._which = _file_at(self._path)
        return {row[0]: Retrying(row[0], row[1], row[2], bool(row[3]), row[4], row[5]) for row in rows}

    def _connect(self) -> sqlite3.Connection:
        # Autocommit, so that transactions are ours; used from changing threads, one at a time.
        return sqlite3.connect(self._path, timeout=_LOCKED_SECONDS, isolation_level=None, check_same_thread=False)

    def _transaction(
        self,
        connection: sqlite3.Connection,
        rows: Sequence[AttemptRow],
        retrying: Mapping[str, Retrying | None],
        *,
        one_by_one: bool,
    ) -> int:
        unfit = 0
        connection.execute("BEGIN IMMEDIATE")
        try:
            if one_by_one:
                for row in rows:
                    try:
                        connection.execute(_INSERT_ONE, row)
                    except (*_UNFIT, OverflowError):
                        unfit += 1
            else:
                whole = len(rows) - len(rows) % _ROWS_AT_ONCE
                for start in range(0, whole, _ROWS_AT_ONCE):
                    connection.execute(_INSERT_MANY, [*chain.from_iterable(rows[start : start + _ROWS_AT_ONCE])])
                connection.executemany(_INSERT_ONE, rows[whole:])
            if retrying:
                known = [item for item in retrying.values() if item is not None]
                connection.executemany("INSERT OR REPLACE INTO retrying VALUES (?, ?, ?, ?, ?, ?)", known)
                forgotten = [(task,) for task, item in retrying.items() if item is None]
                connection.executemany("DELETE FROM retrying WHERE task = ?", forgotten)
            connection.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
            raise
        return unfit

    def _close_writing(self) -> None:
        if self._writing is not None:
            with contextlib.suppress(sqlite3.Error):
                self._writing.close()
            self._writing = None

    def _close_reading(self) -> None:
        if self._reading is not None:
            with contextlib.suppress(sqlite3.Error):
                self._reading.close()
            self._reading = None


def _file_at(path: str) -> tuple[int, int]:
    """Device and inode, which tell one file from another."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return _NO_FILE
    return status.st_dev, status.st_ino


def _add_vars(connection: sqlite3.Connection) -> None:
    """From version 1 to 2."""
    connection.execute("BEGIN IMMEDIATE")
    # Another service may have been quicker.
    if connection.execute("PRAGMA user_version").fetchone() == (1,):
        connection.execute("ALTER TABLE attempts ADD COLUMN vars BLOB")
        connection.execute("PRAGMA user_version = 2")
    connection.execute("COMMIT")


def _judged(error: sqlite3.Error) -> Exception:
    """The error, or that the file is damaged if it says so."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # errors of the Python module have none
    return Damaged(str(error)) if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB) else error
