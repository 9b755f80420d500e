"""The table `incoming` of a spool's `.trispool/spool.db`: tasks that are kept, and have no spool file (yet).

Blocking, standard library only; `trispool.ledgerfile` has the connection and the transaction. One service at a time
puts tasks there, and only it knows which of them still wait: whoever has the lock (`lock`).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
from itertools import chain
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

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

# Python's lock is let go of and taken again once a statement, and a busy event loop gives it back only once a switch
# interval: so as few statements as possible, which are mostly prepared already (the module keeps the last 128).
_AT_ONCE: Final = 64
_ROW: Final = "(?, ?, ?, ?, ?, ?)"
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
        for added in _parts(change.added):
            values = ", ".join([_ROW] * len(added))
            connection.execute(f"INSERT OR REPLACE INTO incoming VALUES {values}", [*chain.from_iterable(added)])
    except (ValueError, OverflowError) as error:  # a value that Python's module does not even give to SQLite
        raise sqlite3.DataError(str(error)) from error


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
    for some in _parts(ordered):
        connection.execute(f"DELETE FROM incoming WHERE seq IN ({', '.join('?' * len(some))})", some)


def _parts(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), _AT_ONCE):
        yield items[start : start + _AT_ONCE]


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
