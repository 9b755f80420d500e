"""What our SQLite files have in common: which file is open, and what becomes of one that is damaged. Blocking.

Rules it keeps:

1. One connection writes, one reads, so that a long search holds up no writing. Each is used by one thread at a time.
2. A file that somebody has deleted or replaced is written no more: nobody would see it.
3. A damaged file is set aside under another name; nothing of it is deleted.
4. After an error of the disk the write-ahead log is emptied before anything is appended: after a power cut nothing
   would be read behind a hole in it. So it is with a file that is met for the first time: who used it before may have
   died after an error.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from typing import Final

__all__ = ["NO_FILE", "Damaged", "SqliteFile", "error_code", "file_at", "judged"]

LOCKED_SECONDS: Final = 5.0
"""How long to wait for another process that writes to the file."""

NO_FILE: Final = (0, 0)

_DAMAGED: Final = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


class Damaged(Exception):
    """What is in the file is not what SQLite wrote."""


class SqliteFile:
    """See the module.

    Args:
        path: The file.

    Attributes:
        path: The file.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._writing: sqlite3.Connection | None = None
        self._reading: sqlite3.Connection | None = None
        self._which = NO_FILE  # is open for writing
        self._which_read = NO_FILE
        self._is_holed: bool | None = None  # the log; None: that is not known

    def set_aside(self) -> str | None:
        """Put the file, and what belongs to it, out of the way.

        Returns:
            Its new name, or None if there was no file.
        """
        self._close_writing()
        self._is_holed = None
        aside = f"{self.path}.damaged-{time.time_ns()}"
        moved = None
        for ending in ("", "-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                os.rename(self.path + ending, aside + ending)
                moved = aside
        return moved

    def close(self) -> None:
        """Close the file. No other thread may be at work on it."""
        self._close_writing()
        self._close_reading()

    def _connect(self) -> sqlite3.Connection:
        # Autocommit, so that transactions are ours; used from changing threads, one at a time.
        return sqlite3.connect(self.path, timeout=LOCKED_SECONDS, isolation_level=None, check_same_thread=False)

    def _connect_reading(self, which: tuple[int, int]) -> sqlite3.Connection:
        """The connection that reads; `which` is the file that is there now."""
        if self._reading is None or self._which_read != which:
            self._close_reading()
            self._which_read = which
            self._reading = self._connect()
        return self._reading

    def _empty_log(self, connection: sqlite3.Connection) -> None:
        """To be called before anything is written; see rule 4.

        Raises:
            sqlite3.Error, OSError: It cannot be emptied now.
        """
        if self._is_holed is False:
            return
        (busy, _, _) = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        # Whoever has it open may go on for hours. We wait for that if there is a hole, and not if there might be one.
        if busy and self._is_holed:
            raise OSError(f"{self.path}: its log cannot be emptied after an error of the disk: it is in use")
        self._is_holed = False

    def _disk_failed(self, error: sqlite3.Error) -> None:
        """Take note of an error, if it is one of the disk."""
        if error_code(error) == sqlite3.SQLITE_IOERR:
            self._is_holed = True

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


def file_at(path: str) -> tuple[int, int]:
    """Device and inode, which tell one file from another; `NO_FILE` if there is none."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return NO_FILE
    return status.st_dev, status.st_ino


def judged(error: sqlite3.Error) -> Exception:
    """The error, or that the file is damaged if it says so."""
    # Emptied under SQLite's hands it is a good file, which has nothing in it.
    is_damaged = error_code(error) in _DAMAGED or str(error).startswith("no such table")
    return Damaged(str(error)) if is_damaged else error


def error_code(error: sqlite3.Error) -> int:
    """SQLite's primary result code; 0 for errors of the Python module, which have none."""
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF
