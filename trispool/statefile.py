"""The SQLite file of a service, `state.db`; what its rows mean is told in `staterows`. Blocking.

Rules it keeps:

1. A change is on disk when `write` returns: WAL mode with `synchronous=FULL`, one transaction for all that is given.
2. Several processes may use the file at once; they wait for each other.
3. A damaged file is set aside under another name and a new one begun; see `trispool.sqlitefile`.
4. After an error the connection is opened afresh: what it knows of the file may be wrong.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from trispool.privatefiles import PrivateFolder
from trispool.sqlitefile import NO_FILE, Damaged, SqliteFile, file_at, judged
from trispool.staterows import SCHEMA

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["Change", "StateFile"]

Change: TypeAlias = "Callable[[sqlite3.Connection], Any]"
"""A part of a transaction; what it returns is its result."""

_VERSION: Final = 1

_SETUP: Final = f"""
PRAGMA journal_mode = WAL;
PRAGMA synchronous = FULL;
PRAGMA user_version = {_VERSION};
{SCHEMA}"""


class StateFile(SqliteFile):
    """See the module.

    Args:
        path: The file.
    """

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
                aside = self.set_aside()
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
            self._empty_log(connection)
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
            if isinstance(error, sqlite3.Error):
                self._disk_failed(error)
            aside = ""
            if isinstance(error, Damaged) or isinstance(judged(error), Damaged):
                aside = f"; it has been set aside as {self.set_aside()}"
            raise OSError(f"{self.path}: {error}{aside}") from error
        return results

    def read(self, question: Change) -> Any:  # noqa: ANN401 # whatever it returns
        """What a question finds.

        Raises:
            OSError: That cannot be read now.
        """
        try:
            which = file_at(self.path)
            if which == NO_FILE:
                raise FileNotFoundError(f"{self.path} is gone; the next change makes a new one")
            return question(self._connect_reading(which))
        except sqlite3.Error as error:
            self._close_reading()
            raise OSError(f"{self.path}: {error}") from error

    def _connected(self) -> sqlite3.Connection:
        """The connection that writes, to the file that is there now."""
        if self._writing is not None and self._which == file_at(self.path):
            return self._writing
        self._close_writing()
        if self._which != file_at(self.path):
            self._is_holed = None
        folder, name = os.path.split(self.path)
        PrivateFolder(folder).create(name, b"")
        self._which = file_at(self.path)
        connection = self._writing = self._connect()
        try:
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if version > _VERSION:
                raise OSError(f"{self.path} was written by a later version of trispool")
            connection.executescript(_SETUP)
        except sqlite3.Error as error:
            self._close_writing()
            raise judged(error) from error
        except BaseException:
            self._close_writing()
            raise
        return connection
