"""The tables of a spool's `.trispool/spool.db`, and the steps from one version of them to the next."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from trispool import incomingfile

if TYPE_CHECKING:
    import sqlite3

__all__ = ["prepare"]

_VERSION: Final = 2

_TABLES: Final = f"""
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
{incomingfile.SCHEMA}
"""


def prepare(connection: sqlite3.Connection) -> bool:
    """Make what is not there yet.

    Returns:
        False if a later version has made it; nothing has then been done.

    Raises:
        sqlite3.Error: It is not possible.
    """
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > _VERSION:
        return False
    if version == 1:
        _add_vars(connection)
    connection.executescript(_TABLES)
    return True


def _add_vars(connection: sqlite3.Connection) -> None:
    """From version 1 to 2."""
    connection.execute("BEGIN IMMEDIATE")
    # Another service may have been quicker.
    if connection.execute("PRAGMA user_version").fetchone() == (1,):
        connection.execute("ALTER TABLE attempts ADD COLUMN vars BLOB")
        connection.execute("PRAGMA user_version = 2")
    connection.execute("COMMIT")
