"""Being the one service that uses the table `incoming` of a spool directory, as long as that is the same directory.

Who has the lock on `.trispool/incoming.lock` uses the table; others look from time to time whether it is free. With it
come the tasks that a crash has left there. Directory and database may be replaced by others while this goes on, and the
database may be found damaged and be begun anew: what is in memory is then put into the one that is there now.
"""

from __future__ import annotations

import itertools
import math
import os
import time
from typing import TYPE_CHECKING, Final, Protocol

import structlog
import trio

from trispool import incomingfile, spoolfile, writeout
from trispool.errors import SpoolUnavailable
from trispool.ledgerfile import Replaced
from trispool.store.incoming import Kept, entry_of_row
from trispool.writeout import Leaving

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from trispool.incomingfile import IncomingRow
    from trispool.spooldir import SpoolDirectory
    from trispool.store.incoming import Incoming

__all__ = ["Begun", "Database", "Tenure", "rescue_rows"]

RESCUE_AT_ONCE: Final = 256
"""Files that are open at the same time."""

LOOK_SECONDS: Final = 1.0
"""How often to look whether another service has let go of the table, or what was wrong with it has been mended."""

_IN_USE: Final = "another service uses the database, so tasks are written to files"

_log = structlog.get_logger()


class Begun(Protocol):
    """A commit that the database has begun. It goes on whatever becomes of who waits.

    Somebody has to call `end`, or, where the service itself ends, `abandon`.
    """

    @property
    def has_failed(self) -> bool: ...
    async def wait(self) -> None: ...
    def abandon(self) -> None: ...

    # Raises as `Database.commit`. Once `wait` has returned it does not wait, unless `has_failed`.
    @property
    def end(self) -> Callable[[], Awaitable[None]]: ...


class Database(Protocol):
    """Where rows are kept; see `trispool.ledger.Ledger`, which is one."""

    @property
    def to_remove(self) -> Sequence[int]: ...
    async def begin(self, added: Sequence[IncomingRow], *, generation: int, durable: bool) -> Begun: ...
    async def commit(self, added: Sequence[IncomingRow], *, generation: int, durable: bool) -> None: ...
    async def incoming(self) -> tuple[list[IncomingRow], int]: ...
    async def look(self) -> int: ...
    def remove(self, task_id: str) -> None: ...


class Tenure:
    """See the module.

    Args:
        opened: The spool directory.
        database: The one in it.
        rows: What is in memory.
        fsync: Whether what is committed has to be on disk.
        recovered: Called when there are more tasks in memory, that a crash has left.
    """

    def __init__(
        self,
        opened: SpoolDirectory,
        database: Database,
        rows: Incoming,
        *,
        fsync: bool,
        recovered: Callable[[], None],
    ) -> None:
        self._opened = opened
        self._database = database
        self._rows = rows
        self._fsync = fsync
        self._recovered = recovered
        self._lock: int | None = None
        self._generation = -1
        self._entering = trio.Lock()
        self._numbers = itertools.count(1)
        self._limiter = trio.CapacityLimiter(1)
        self.problem: str | None = None

    @property
    def is_ours(self) -> bool:
        """Whether rows may be added."""
        return self._lock is not None

    def numbers(self, count: int) -> list[int]:
        """For so many new rows."""
        return list(itertools.islice(self._numbers, count))

    async def open(self) -> None:
        """Take the table over if it is free, with what is in it.

        Raises:
            SpoolUnavailable: That cannot be read.
        """
        if not await self._try_lock():
            _log.warning("no_write_behind", directory=self._opened.path, reason="another service does it")
            return
        await self._enter()

    async def run_tenure(self) -> None:
        """Take the table over when it becomes free, and see when trouble with it is over, until cancelled."""
        while True:
            await trio.sleep(LOOK_SECONDS)
            if self._lock is None or self.problem is not None:
                await self.check()

    def close(self) -> None:
        """Leave the table to others."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    async def begin(self, added: Sequence[IncomingRow]) -> Begun:
        """Begin to add rows, all or none: `commit` has to be called with what this gives, when it can be waited for."""
        return await self._database.begin(added, generation=self._generation, durable=self._fsync)

    async def commit(self, added: Sequence[IncomingRow], begun: Begun) -> None:
        """Add rows for which `begin` has been called.

        Raises:
            SpoolUnavailable: They have not been added.
        """
        try:
            if not await self._is_kept(begun):
                await self._go_over()
                if self._lock is None:
                    raise SpoolUnavailable(_IN_USE)
                await self._commit_here(added, self._generation)
        except SpoolUnavailable as error:
            self.problem = str(error)
            raise
        self.problem = None

    async def _is_kept(self, begun: Begun) -> bool:
        try:
            await begun.end()
        except Replaced:
            return False
        except SpoolUnavailable:
            if self._is_here():
                raise
            return False
        return True

    def _is_here(self) -> bool:
        """Whether the lock that we have is that of the directory that is there now."""
        return self._lock is not None and incomingfile.is_locked_here(self._lock, self._folder)

    async def _commit_here(self, added: Sequence[IncomingRow], generation: int) -> None:
        try:
            await self._database.commit(added, generation=generation, durable=self._fsync)
        except Replaced:
            raise SpoolUnavailable("the spool's database is being replaced") from None

    async def commit_removals(self) -> bool:
        """Commit what the database was told to remove.

        Returns:
            False if some are left; that is made up for by a later commit.
        """
        try:
            await self._database.commit((), generation=self._generation, durable=False)
        except (SpoolUnavailable, Replaced) as error:
            _log.warning("removals_not_committed", directory=self._opened.path, error=str(error))
            return not self._database.to_remove  # but only history
        return True

    async def check(self) -> None:
        """See to it that what is in memory stands in the database that is there now."""
        try:
            if self._lock is None or await self._database.look() != self._generation:
                await self._go_over()
        except SpoolUnavailable as error:
            self.problem = str(error)
        else:
            self.problem = None

    async def with_files(self, names: Sequence[str]) -> set[str]:
        """Those of some tasks that have a file.

        Raises:
            SpoolUnavailable: That cannot be found out.
        """
        try:
            return await trio.to_thread.run_sync(
                self._opened.present, names, limiter=self._limiter, abandon_on_cancel=True
            )
        except OSError as error:
            raise SpoolUnavailable(f"{self._opened.path} cannot be read: {error.strerror or error}") from error

    @property
    def _folder(self) -> str:
        return os.path.join(self._opened.path, ".trispool")

    async def _try_lock(self) -> bool:
        def lock() -> int | None:
            self._opened.writer()  # makes the folder
            if self._fsync:
                os.fsync(self._opened.fd)  # else a power cut might take it, and all that is in it
            return incomingfile.lock(self._folder)

        try:
            self._lock = await trio.to_thread.run_sync(lock, limiter=self._limiter)
        except OSError as error:
            raise SpoolUnavailable(f"{self._opened.path} cannot be used: {error.strerror or error}") from error
        return self._lock is not None

    async def _go_over(self) -> None:
        async with self._entering:
            if not self._is_here():
                self.close()
            if self._lock is None and not await self._try_lock():
                if self._rows:
                    raise SpoolUnavailable(_IN_USE)
                return
            if await self._database.look() != self._generation:
                _log.warning("database_entered", directory=self._opened.path, tasks=len(self._rows))
                await self._enter()

    async def _enter(self) -> None:
        """Take in what is in the table, and put there what is in memory."""
        found, generation = await self._database.incoming()
        new = [row for row in found if row.task not in self._rows]
        with_files = await self.with_files([row.task for row in new])
        rows = [kept.row for kept in self._rows]
        if rows:
            await self._commit_here(rows, generation)
            for row in rows:
                if row.task not in self._rows:
                    self._database.remove(row.task)  # finished meanwhile
        self._generation = generation
        # Larger than any that is there, or was.
        self._numbers = itertools.count(max([time.time_ns(), *(row.seq + 1 for row in found)]))
        for row in new:
            if row.task in with_files:
                self._database.remove(row.task)
            else:
                order = spoolfile.order_of(row.task, row.at)
                self._rows.put([Kept(row, entry_of_row(row, order))], -math.inf)
        if len(new) > len(with_files):
            _log.warning("tasks_recovered", directory=self._opened.path, tasks=len(new) - len(with_files))
            self._recovered()


def rescue_rows(opened: SpoolDirectory, rows: Sequence[IncomingRow]) -> None:
    """Write what can still be read of a damaged database to files, unless another service has it in memory. Blocking.

    Raises:
        OSError: Something could not be written.
    """
    if not rows:
        return
    writer = opened.writer()
    lock = incomingfile.lock(os.path.join(opened.path, ".trispool"))
    if lock is None:
        return
    try:
        have_files = opened.present([row.task for row in rows])
        lost = [row for row in rows if row.task not in have_files]
        for start in range(0, len(lost), RESCUE_AT_ONCE):
            tasks = [
                Leaving(entry_of_row(row, spoolfile.order_of(row.task, row.at)), row.payload, row.body)
                for row in lost[start : start + RESCUE_AT_ONCE]
            ]
            writeout.prepare(writer, tasks)
            writeout.publish(writer, [task for task in tasks if task.error is None])
            writeout.let_go(writer, tasks)
            if error := next((task.error for task in tasks if task.error is not None), None):
                raise OSError(f"tasks of a damaged database could not be written to files: {error}")
        _log.error("tasks_rescued", directory=opened.path, tasks=len(lost))
    finally:
        os.close(lock)
