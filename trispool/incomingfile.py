"""The table `incoming` of a spool's `.trispool/spool.db`: tasks that are kept, and have no spool file (yet).

Blocking, standard library only; `trispool.ledgerfile` has the connection and the transaction. One service at a time
puts tasks there, and only it knows which of them still wait: whoever has the lock (`lock`).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
from typing import TYPE_CHECKING, Final, NamedTuple

from trispool.manyrows import in_parts, statement

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["SCHEMA", "IncomingChange", "IncomingRow", "apply", "is_locked_here", "lock", "rows", "salvage"]

SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS incoming (
    seq INTEGER PRIMARY KEY,
    task TEXT NOT NULL,
    priority INTEGER,
    at REAL NOT NULL,
    payload BLOB NOT NULL,       -- the encoded vars
    body BLOB NOT NULL
);
"""

_LOCK: Final = "incoming.lock"

_INSERT: Final = "INSERT OR REPLACE INTO incoming VALUES"
_ROW: Final = "(?, ?, ?, ?, ?, ?)"
_PLAIN_ROW: Final = "(?, ?, NULL, ?, ?, x'')"
"""Of a task without priority and body."""
_DELETE: Final = "DELETE FROM incoming WHERE seq IN ("
_DELETE_RANGE: Final = "DELETE FROM incoming WHERE seq BETWEEN ? AND ?"


class IncomingRow(NamedTuple):
    """A task as it stands in the table.

    Attributes:
        seq: The row's number, of which there is no other one in any database.
        task: The task's id.
        priority: Its priority, or None.
        at: Unix seconds from which on it may run.
        payload: The encoded vars.
        body: The body.
    """

    seq: int
    task: str
    priority: int | None
    at: float
    payload: bytes
    body: bytes


class IncomingChange(NamedTuple):
    """What a transaction does to the table.

    Attributes:
        added: New rows.
        removed: The numbers of rows that go. One that is not there is no error.
        durable: Whether the transaction has to be on disk when it has been committed.
        generation: Of the database to which rows were to be added (`LedgerFile.generation`).
    """

    added: Sequence[IncomingRow]
    removed: Sequence[int]
    durable: bool
    generation: int


def apply(connection: sqlite3.Connection, change: IncomingChange) -> None:
    """Make a change, within a transaction.

    Raises:
        sqlite3.Error: It is not made.
    """
    try:
        _remove(connection, change.removed)
        _add(connection, change.added)
    except (ValueError, OverflowError) as error:  # a value that Python's module does not even give to SQLite
        raise sqlite3.DataError(str(error)) from error


def _add(connection: sqlite3.Connection, added: Sequence[IncomingRow]) -> None:
    others: list[IncomingRow] = []
    plain: list[IncomingRow] = []
    for row in added:
        (others if row.body or row.priority is not None else plain).append(row)
    values: list[object]
    for part in in_parts(plain):
        values = []
        for seq, task, _, at, payload, _ in part:
            values += (seq, task, at, bytearray(payload))
        connection.execute(statement(_INSERT, _PLAIN_ROW, len(part)), values)
    for part in in_parts(others):
        values = []
        for seq, task, priority, at, payload, body in part:
            values += (seq, task, priority, at, bytearray(payload), bytearray(body))
        connection.execute(statement(_INSERT, _ROW, len(part)), values)


def _remove(connection: sqlite3.Connection, removed: Sequence[int]) -> None:
    ordered = sorted(removed)
    ranges: list[list[int]] = []
    for seq in ordered:
        if ranges and ranges[-1][1] == seq - 1:
            ranges[-1][1] = seq
        else:
            ranges.append([seq, seq])
    if len(ranges) <= 1 + len(ordered) // 8:  # what came together mostly goes together
        for both in ranges:
            connection.execute(_DELETE_RANGE, both)
        return
    for some in in_parts(ordered):
        connection.execute(statement(_DELETE, "?", len(some), ")"), some)


def rows(connection: sqlite3.Connection) -> list[IncomingRow]:
    """All rows, in the order in which they came.

    Raises:
        sqlite3.Error: They cannot be read.
    """
    return [IncomingRow(*row) for row in connection.execute("SELECT * FROM incoming ORDER BY seq")]


def salvage(path: str) -> list[IncomingRow]:
    """What can still be read of the table in a damaged file: from its beginning and from its end up to the damage."""
    found: dict[int, IncomingRow] = {}
    with contextlib.suppress(sqlite3.Error), contextlib.closing(sqlite3.connect(path)) as connection:
        for order in ("ASC", "DESC"):
            with contextlib.suppress(sqlite3.Error):
                for row in connection.execute(f"SELECT * FROM incoming ORDER BY seq {order}"):
                    if row[0] in found:
                        break
                    found[row[0]] = IncomingRow(*row)
    return [found[seq] for seq in sorted(found)]


def lock(folder: str) -> int | None:
    """Become the one who uses the table.

    Args:
        folder: The directory of the database.

    Returns:
        A descriptor; closing it, or the end of the process, lets go. None: somebody else uses the table.

    Raises:
        OSError: That cannot be found out.
    """
    fd = os.open(os.path.join(folder, _LOCK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    except BaseException:
        os.close(fd)
        raise
    return fd


def is_locked_here(fd: int, folder: str) -> bool:
    """Whether a lock is still that of the directory: it may have been replaced by another one."""
    try:
        return os.path.samestat(os.fstat(fd), os.stat(os.path.join(folder, _LOCK)))
    except OSError:
        return False
