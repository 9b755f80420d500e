"""The SQLite file of a service, `state.db`; what its rows mean is told in `staterows`. Blocking.

Rules it keeps:

1. A change is on disk when `write` returns: WAL mode with `synchronous=FULL`, one transaction for all that is given.
2. Several processes may use the file at once; they wait for each other.
3. A damaged file is set aside under another name and a new one begun. One that somebody has deleted or replaced is
   written no more: nobody would see it.
4. After an error the connection is opened afresh: what it knows of the file may be wrong.

One thread writes at a time, and one reads.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from trispool.privatefiles import PrivateFolder
from trispool.staterows import SCHEMA

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["Change", "StateFile"]

Change: TypeAlias = "Callable[[sqlite3.Connection], Any]"
"""A part of a transaction; what it returns is its result."""

_LOCKED_SECONDS: Final = 5.0
"""How long to wait for another process that writes to the file."""

_VERSION: Final = 1

_SETUP: Final = f"""
PRAGMA journal_mode = WAL;
PRAGMA synchronous = FULL;
PRAGMA user_version = {_VERSION};
{SCHEMA}"""

_NO_FILE: Final = (0, 0)


class Damaged(Exception):
    """What is in the file is not what SQLite wrote."""


class StateFile:
    """See the module.

    Args:
        path: The file.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._writing: sqlite3.Connection | None = None
        self._reading: sqlite3.Connection | None = None
        self._which_written = _NO_FILE
        self._which_read = _NO_FILE

    def open(self) -> str | None:
        """Open the file, or begin a new one.

        Returns:
            Where a damaged file was put, or None.

        Raises:
            OSError: Neither is possible (permissions, no space, written by a later version).
        """
        try:
            try:
                self._connected()
                return None
            except Damaged:
                aside = self._set_aside()
                self._connected()
                return aside
        except (sqlite3.Error, Damaged) as error:
            raise OSError(f"{self.path}: {error}") from error

    def write(self, changes: Sequence[Change]) -> list[Any]:
        """Make changes, all of them or none.

        Returns:
            The result of each.

        Raises:
            OSError: None has been made; the same call may work later.
        """
        try:
            connection = self._connected()
            connection.execute("BEGIN IMMEDIATE")
            try:
                results = [change(connection) for change in changes]
                connection.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    connection.execute("ROLLBACK")
                raise
        except (sqlite3.Error, Damaged) as error:
            self._close_writing()
            if _is_damage(error):
                self._set_aside()
            raise OSError(f"{self.path}: {error}") from error
        return results

    def read(self, question: Change) -> Any:  # noqa: ANN401 # whatever it returns
        """What a question finds.

        Raises:
            OSError: That cannot be read now.
        """
        try:
            which = _file_at(self.path)
            if which == _NO_FILE:
                raise FileNotFoundError(f"{self.path} is gone; the next change makes a new one")
            if self._reading is None or self._which_read != which:
                self._close_reading()
                self._which_read, self._reading = which, self._connect()
            return question(self._reading)
        except sqlite3.Error as error:
            self._close_reading()
            raise OSError(f"{self.path}: {error}") from error

    def close(self) -> None:
        """Close the file. No other thread may be at work on it."""
        self._close_writing()
        self._close_reading()

    def _connected(self) -> sqlite3.Connection:
        """The connection that writes, to the file that is there now."""
        if self._writing is not None and self._which_written == _file_at(self.path):
            return self._writing
        self._close_writing()
        folder, name = os.path.split(self.path)
        PrivateFolder(folder).create(name, b"")
        self._which_written = _file_at(self.path)
        connection = self._writing = self._connect()
        try:
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if version > _VERSION:
                raise OSError(f"{self.path} was written by a later version of trispool")
            connection.executescript(_SETUP)
        except sqlite3.Error as error:
            self._close_writing()
            raise (Damaged(str(error)) if _is_damage(error) else error) from error
        except BaseException:
            self._close_writing()
            raise
        return connection

    def _connect(self) -> sqlite3.Connection:
        # Autocommit, so that transactions are ours; used from changing threads, one at a time.
        return sqlite3.connect(self.path, timeout=_LOCKED_SECONDS, isolation_level=None, check_same_thread=False)

    def _set_aside(self) -> str:
        """Put the file, and what belongs to it, out of the way."""
        self._close_writing()
        aside = f"{self.path}.damaged-{time.time_ns()}"
        for ending in ("", "-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                os.rename(self.path + ending, aside + ending)
        return aside

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


def _is_damage(error: Exception) -> bool:
    if isinstance(error, Damaged):
        return True
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # errors of the Python module have none
    return code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def _file_at(path: str) -> tuple[int, int]:
    """Device and inode, which tell one file from another."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return _NO_FILE
    return status.st_dev, status.st_ino
