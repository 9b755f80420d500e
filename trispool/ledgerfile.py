"""The SQLite file of a spool, its history and its table `incoming`: blocking, standard library only.

Rules it keeps:

1. A damaged file is set aside under another name and a new one begun; see `trispool.sqlitefile`.
2. A row that SQLite will not take is left out and counted, and costs no other row.
3. After an error other than those the connections are opened afresh: what they know of the file may be wrong.

WAL mode with `synchronous=NORMAL`: a power cut may lose the newest transactions, never the file. From the first
transaction on that has to be on disk (`IncomingChange.durable`) it is `FULL` for all. With both in one log a checkpoint
would have to sync what was written with `NORMAL`, and SQLite tells nobody if that fails (`sqlite3WalDefaultHook`): what
came later would be acknowledged, and stand behind a hole.
"""

from __future__ import annotations

import contextlib
import sqlite3
from itertools import chain, groupby
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

from trispool import incomingfile, ledgerschema
from trispool.manyrows import in_parts, statement
from trispool.sqlitefile import NO_FILE, Damaged, SqliteFile, file_at, judged
from trispool.task import AttemptRow, Retrying

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from trispool.incomingfile import IncomingChange, IncomingRow

__all__ = ["LedgerFile", "Replaced", "Taken"]

PRUNE_ROWS: Final = 5_000
"""Rows deleted in one transaction, some 20 ms: the next batch of new rows waits no longer."""

_COLUMNS: Final = ", ".join(AttemptRow._fields)
_ROW: Final = f"({', '.join('?' * len(AttemptRow._fields))})"
_INSERT: Final = f"INSERT INTO attempts ({_COLUMNS}) VALUES"
_INSERT_ONE: Final = f"{_INSERT} {_ROW}"
_OK_ROW: Final = "(?, ?, 'ok', 'done', ?, ?, ?, ?, ?, NULL, NULL, ?, NULL, ?, ?)"
"""Of a task that ran well and has no priority, as most are."""

_UNFIT: Final = (
    sqlite3.DataError,
    sqlite3.IntegrityError,
    sqlite3.InterfaceError,
    sqlite3.ProgrammingError,
    ValueError,
)
"""What SQLite, or its module, says of a value that it will not store; `OverflowError` apart."""

T = TypeVar("T")


class Replaced(Exception):
    """There is another file by that name now, or none."""


class Taken(NamedTuple):
    """What had been recorded and is being written, since `began` (on Trio's clock)."""

    rows: list[AttemptRow]
    retrying: dict[str, Retrying | None]
    removed: list[int]
    began: float


class LedgerFile(SqliteFile):
    """See the module.

    Args:
        path: The file.

    Attributes:
        generation: Changes when the file is found to be another one, with another table `incoming`.
    """

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.generation = 0
        self._is_durable = False  # was asked for
        self._is_full = False  # as of `PRAGMA synchronous`
        self._which_log = NO_FILE

    # For the thread that writes

    def open(
        self, rescue: Callable[[Sequence[IncomingRow]], None] | None = None
    ) -> tuple[dict[str, Retrying], str | None]:
        """Open the file, or begin a new one.

        Args:
            rescue: Keeps in another place what can still be read of the table `incoming` of a damaged file, before that
                is set aside; may raise OSError.

        Returns:
            What is remembered of tasks that wait for another attempt, by id; and where a damaged file was put, or None.

        Raises:
            OSError: Neither is possible (permissions, no space, written by a later version).
        """
        try:
            aside = None
            try:
                remembered = self._open()
                if rescue is not None:
                    self.incoming()  # can be read
                return remembered, aside
            except Damaged:
                if rescue is not None:
                    rescue(incomingfile.salvage(self.path))
                aside = self.set_aside()
                return self._open(), aside
        except sqlite3.Error as error:
            raise OSError(f"{self.path}: {error}") from error

    def write(
        self,
        rows: Sequence[AttemptRow],
        retrying: Mapping[str, Retrying | None],
        incoming: IncomingChange | None = None,
    ) -> int:
        """Add rows, and change what is remembered of tasks (None: nothing any more), in one transaction.

        Args:
            rows: Of the history.
            retrying: By task id.
            incoming: What to do to the table `incoming` in the same transaction.

        Returns:
            How many rows of the history SQLite would not take.

        Raises:
            Damaged: Then nothing has been written. Call `set_aside` and try again.
            Replaced: The same; tasks were to be added to another file than this one.
            sqlite3.Error, OSError: Nothing has been written; the same call may work later.
        """
        connection = self._connected()
        if incoming is not None and incoming.added and incoming.generation != self.generation:
            raise Replaced
        try:
            self._empty_log(connection)
            self._is_durable |= incoming is not None and incoming.durable
            if self._is_durable and not self._is_full:
                connection.execute("PRAGMA synchronous = FULL")
                self._is_full = True
            try:
                return self._transaction(connection, rows, retrying, incoming, one_by_one=False)
            except (*_UNFIT, OverflowError):
                return self._transaction(connection, rows, retrying, incoming, one_by_one=True)
        except sqlite3.Error as error:
            raise self._failed(error) from error

    def incoming(self) -> list[IncomingRow]:
        """What is in the table `incoming`.

        Raises:
            Damaged, sqlite3.Error, OSError: As `write`.
        """
        try:
            return incomingfile.rows(self._connected())
        except sqlite3.Error as error:
            raise self._failed(error) from error

    def prune(self, before: float) -> bool:
        """Delete some rows of attempts that began before a time, Unix seconds.

        Returns:
            Whether there may be more.

        Raises:
            Damaged, sqlite3.Error, OSError: As `write`.
        """
        connection = self._connected()
        try:
            self._empty_log(connection)
            # Rows lie in the order of their ends, so those in front that are young enough end the search.
            cursor = connection.execute(
                "DELETE FROM attempts WHERE seq IN"
                " (SELECT seq FROM (SELECT seq, started_at FROM attempts ORDER BY seq LIMIT ?) WHERE started_at < ?)",
                (PRUNE_ROWS, before),
            )
        except sqlite3.Error as error:
            raise self._failed(error) from error
        return cursor.rowcount > 0

    def reopen(self) -> None:
        """Go over to the file that is there now, or begin a new one.

        Raises:
            Damaged, sqlite3.Error, OSError: As `write`.
        """
        self._connected()

    def set_aside(self) -> str | None:
        """See `SqliteFile.set_aside`."""
        self.generation += 1
        return super().set_aside()

    # For the thread that reads

    def read(self, question: Callable[[sqlite3.Connection], T]) -> T:
        """What a question finds in the file.

        Raises:
            Replaced: Call `reopen` and try again.
            Damaged: As `write`.
            sqlite3.Error: They cannot be read now.
        """
        which = self._which
        if which == NO_FILE or which != file_at(self.path):
            raise Replaced
        try:
            return question(self._connect_reading(which))
        except sqlite3.Error as error:
            self._close_reading()
            raise judged(error) from error

    # Inside

    def _connected(self) -> sqlite3.Connection:
        is_the_same = file_at(self.path) == self._which
        if self._writing is not None and is_the_same:
            if self._which_log not in (NO_FILE, file_at(f"{self.path}-wal")):
                # SQLite would go on writing where nobody finds it again.
                raise Damaged("its log has been removed or replaced")
            return self._writing
        self._close_writing()
        if not is_the_same:
            self.generation += 1
            self._is_holed = None
        self._open()
        assert self._writing is not None
        return self._writing

    def _open(self) -> dict[str, Retrying]:
        connection = self._connect()
        try:
            if not ledgerschema.prepare(connection):
                raise OSError(f"{self.path} was written by a later version of trispool")
            rows = connection.execute("SELECT * FROM retrying").fetchall()
        except sqlite3.Error as error:
            connection.close()
            raise judged(error) from error
        except BaseException:
            connection.close()
            raise
        self._writing = connection
        self._is_full = False
        self._which = file_at(self.path)
        self._which_log = file_at(f"{self.path}-wal")
        return {row[0]: Retrying(row[0], row[1], row[2], bool(row[3]), row[4], row[5]) for row in rows}

    def _transaction(
        self,
        connection: sqlite3.Connection,
        rows: Sequence[AttemptRow],
        retrying: Mapping[str, Retrying | None],
        incoming: IncomingChange | None,
        *,
        one_by_one: bool,
    ) -> int:
        unfit = 0
        connection.execute("BEGIN IMMEDIATE")
        try:
            if incoming is not None:
                incomingfile.apply(connection, incoming)
            if one_by_one:
                for row in rows:
                    try:
                        connection.execute(_INSERT_ONE, row)
                    except (*_UNFIT, OverflowError):
                        unfit += 1
            else:
                # Runs of rows that are alike, and not all such rows first: their order tells that of attempts.
                for is_ok, run in groupby(rows, _is_ok):
                    for part in in_parts(list(run)):
                        shape, values = (_OK_ROW, _ok_values(part)) if is_ok else (_ROW, [*chain.from_iterable(part)])
                        connection.execute(statement(_INSERT, shape, len(part)), values)
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

    def _failed(self, error: sqlite3.Error) -> Exception:
        """Close what an error came from; see `judged`."""
        self._close_writing()
        self._disk_failed(error)
        return judged(error)


def _is_ok(row: AttemptRow) -> bool:
    """Whether `_OK_ROW` is its shape."""
    return (
        row.outcome == "ok"
        and row.state == "done"
        and row.error is None
        and row.traceback is None
        and row.priority is None
        and type(row.vars) is bytes
    )


def _ok_values(rows: Sequence[AttemptRow]) -> list[object]:
    values: list[object] = []
    for task, number, _, _, started, queued, ran, worker, handler, _, _, at, _, enqueued, vars in rows:
        values += (task, number, started, queued, ran, worker, handler, at, enqueued, bytearray(vars or b""))
    return values
