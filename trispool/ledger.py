"""The history of a spool: one row per attempt, in the spool's own `.trispool/spool.db`.

The same file has the tasks that are kept and have no spool file yet (`trispool.incomingfile`): one writer, one commit
for both.

Rules it keeps:

1. It never stops a task. A row that cannot be written is dropped, counted and said; what happens to a damaged file is
   told in `trispool.ledgerfile`.
2. One connection writes, from one thread at a time; whatever was recorded meanwhile goes into the next transaction.
3. It also remembers, for tasks that wait for another attempt, how many they had and when the next one is: the only part
   that running depends on, read once at start.
4. A task that is recorded as finished leaves the table `incoming` in the same transaction, so it is not run again.

The durability of a task that has a file does not rest on it.
"""

from __future__ import annotations

import math
import sqlite3
import time
from typing import TYPE_CHECKING, Any, Final, TypeVar

import structlog
import trio

from trispool import spoolfile
from trispool.errors import SpoolUnavailable
from trispool.incomingfile import IncomingChange
from trispool.ledgerfile import LedgerFile, Replaced, Taken
from trispool.ledgersearch import HISTORY, history, last_runs, search
from trispool.sqlitefile import Damaged
from trispool.tally import LedgerStatistics
from trispool.task import AttemptRow
from trispool.writethread import Begun, Job, WriteThread

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from trispool.control import TaskSummary
    from trispool.incomingfile import IncomingRow
    from trispool.ledgersearch import History, Stretch
    from trispool.operating import TaskFilter
    from trispool.task import Retrying

__all__ = ["Ledger"]

MAX_PENDING: Final = 200_000
"""Rows that may wait for a disk that has stopped (some 100 MB); further ones are dropped."""

GATHER_SECONDS: Final = 0.05
"""How long rows are gathered for one transaction, which costs as much as writing fifty of them. A crash of the service
loses the history of so long; whoever asks for history sees all of it, since a question writes first."""

GATHER_FINISHED_SECONDS: Final = 0.01
"""The same while tasks without a file have been run: those would be run again after a crash."""

CARRIED_ROWS: Final = 64
"""So many rows at least go with a commit of new tasks. With fewer it is quicker to let them gather: what a transaction
costs beyond its rows is as much as 20 of them."""

PRUNE_SECONDS: Final = 600.0
"""How often old rows are looked for."""

FLUSH_SECONDS: Final = 5.0
"""How long, at the end, to wait for a disk that does not answer."""

SEARCH_ROWS: Final = 30_000
"""Rows that one question looks at, some 4 ms, or 12 ms if their vars are searched. So long others wait for the reading
connection."""

RETRY_SECONDS: Final = 1.0
"""How long to wait after a failed commit: a full disk does not mend faster."""

_FINISHED: Final = frozenset({"done", "cancelled"})

_log = structlog.get_logger()

T = TypeVar("T")


class Ledger:
    """See the module. `record`, `remember` and `forget` return at once; `run_ledger` writes what they left.

    Args:
        path: The database file.
        keep_seconds: How long rows are kept; 0: for ever.
    """

    def __init__(self, path: str, keep_seconds: float = 0) -> None:
        self._path = path
        self._keep_seconds = keep_seconds
        self._file = LedgerFile(path)
        self._rows: list[AttemptRow] = []
        self._retrying: dict[str, Retrying | None] = {}
        self._incoming: dict[str, int] = {}  # the rows of the table, by task id
        self.to_remove: list[int] = []  # rows of that table
        self._work = trio.Event()
        # One flush at a time: what was recorded later must not be written before what is written again after an error.
        # It is no lock, as who ends a transaction need not be who has begun it.
        self._flushing = trio.Semaphore(1)
        self._writer = WriteThread("trispool writes")
        self._read_limiter = trio.CapacityLimiter(1)
        self._has_failed = False  # what was to be written is given back
        self._taken_at = -math.inf  # the last time that all that was recorded went into a transaction
        self._complaint = ""
        self._is_dropping = False
        self.statistics = LedgerStatistics()

    def record(self, *rows: AttemptRow) -> None:
        """Write these rows soon. What finds `MAX_PENDING` waiting is dropped."""
        if incoming := self._incoming:
            for row in rows:
                if row.task in incoming and row.state in _FINISHED:
                    self.to_remove.append(incoming.pop(row.task))
        room = MAX_PENDING - len(self._rows)
        if room < len(rows):
            self._drop(len(rows) - room, "the disk takes no more")
            rows = rows[:room]
        self._rows += rows
        self._work.set()

    def remember(self, retrying: Retrying) -> None:
        """Keep what is known of a task that waits for another attempt."""
        self._retrying[retrying.task] = retrying
        self._work.set()

    def forget(self, task_id: str) -> None:
        """The task no longer waits for another attempt."""
        self._retrying[task_id] = None
        self._work.set()

    # For the store: tasks that are kept and have no file yet

    async def look(self) -> int:
        """The generation of the database that is there now: another one has none of the rows of this one.

        Raises:
            SpoolUnavailable: It cannot be opened.
        """
        try:
            await self._writer.run_sync(self._file.reopen, abandon=True)
        except (sqlite3.Error, OSError, Damaged) as error:
            raise SpoolUnavailable(f"{self._path} cannot be opened: {error}") from error
        return self._file.generation

    async def begin(self, added: Sequence[IncomingRow], *, generation: int, durable: bool) -> Begun:
        """Begin to `commit` rows: somebody has to see to the end of it."""
        await trio.lowlevel.checkpoint_if_cancelled()
        try:
            self._flushing.acquire_nowait()
        except trio.WouldBlock:
            await self._flushing.acquire()
        job, taken = self._begin(added, generation, durable=durable)

        async def end() -> None:
            error = await self._end(job, taken)
            if error is None:
                self._incoming.update((row.task, row.seq) for row in added)
                return
            if not isinstance(error, Replaced):
                # What has failed may be found to have been written all the same. Before it is tried again, with the
                # same numbers, and not after that: see `_has_failed`.
                self.to_remove.extend(row.seq for row in added)
                raise SpoolUnavailable(f"the task could not be written: {error}") from error
            raise error

        return Begun(job, end, self._flushing.release)

    async def commit(self, added: Sequence[IncomingRow], *, generation: int, durable: bool) -> None:
        """Add rows to the table `incoming`, all or none, together with what else has to be written.

        Args:
            added: The rows; none: write what else has to be written, however little.
            generation: Of the database that is meant.
            durable: Return only when they are on disk.

        Raises:
            Replaced: They have not been added, since it is another database now.
            SpoolUnavailable: They have not been added.
        """
        await (await self.begin(added, generation=generation, durable=durable)).end()

    def remove(self, task_id: str) -> None:
        """The task is finished, or has a file: its row, if it has one, leaves the table soon."""
        seq = self._incoming.pop(task_id, None)
        if seq is not None:
            self.to_remove.append(seq)
            self._work.set()

    async def incoming(self) -> tuple[list[IncomingRow], int]:
        """What is in the table `incoming`, and the generation of the database.

        Raises:
            SpoolUnavailable: It cannot be read now.
        """
        async with self._flushing:
            try:
                rows = await self._writer.run_sync(self._file.incoming)
            except (sqlite3.Error, OSError, Damaged) as error:
                raise SpoolUnavailable(f"the tasks in {self._path} cannot be read: {error}") from error
            removed = set(self.to_remove)
            rows = [row for row in rows if row.seq not in removed]
            self._incoming = {row.task: row.seq for row in rows}
            return rows, self._file.generation

    # Lifetime

    async def open(self, rescue: Callable[[Sequence[IncomingRow]], None] | None = None) -> dict[str, Retrying]:
        """Open the database, or begin a new one.

        Args:
            rescue: Called in a thread with the tasks that can still be read in a damaged one; see `LedgerFile.open`.

        Returns:
            What is remembered of tasks that wait for another attempt, by task id.

        Raises:
            OSError: Neither is possible (permissions, no space).
        """
        remembered, aside = await self._writer.run_sync(lambda: self._file.open(rescue))
        if aside is not None:
            _log.error("history_damaged", path=self._path, set_aside=aside)
        return remembered

    async def run_ledger(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Write what is recorded, and delete what is old, until cancelled; what is left is then written still."""
        task_status.started()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._prune_now_and_then)
                while True:
                    await self._work.wait()
                    self._work = trio.Event()
                    gather = GATHER_FINISHED_SECONDS if self.to_remove else GATHER_SECONDS
                    await trio.sleep(gather)
                    await trio.sleep_until(self._taken_at + gather)  # the rest has gone with a commit
                    if not await self._flush():
                        await trio.sleep(RETRY_SECONDS)
        finally:
            with trio.move_on_after(FLUSH_SECONDS, shield=True):
                await self._flush(abandon=True)

    async def aclose(self) -> None:
        """Close the database."""
        with trio.move_on_after(FLUSH_SECONDS, shield=True):
            async with self._read_limiter:
                await self._writer.run_sync(self._file.close, abandon=True)
        self._writer.close()

    async def history(self, task_id: str, limit: int = 100) -> History | None:
        """All that is known of one task, or None.

        Args:
            task_id: The task.
            limit: So many of its attempts at most, the newest.

        Raises:
            SpoolUnavailable: The history cannot be read; all that ask it raise this.
        """
        if not spoolfile.is_spool_name(task_id):
            return None
        microseconds, _ = spoolfile.order_of(task_id, 0.0)
        sql = f"SELECT {HISTORY} FROM attempts WHERE task = ?"
        if microseconds:
            rows = await self._query(
                f"{sql} AND enqueued_at = ? ORDER BY seq DESC LIMIT ?", (task_id, microseconds / 1e6, limit)
            )
            return history(rows)
        # It does not tell when it was enqueued, so all rows have to be looked at, but not so that nobody else may ask.
        found: list[Any] = []
        newest = await self._query("SELECT max(seq) FROM attempts", ())
        top = newest[0][0] or 0
        while top > 0 and len(found) < limit:
            values = (task_id, top - SEARCH_ROWS, top, limit - len(found))
            found += await self._query(f"{sql} AND seq > ? AND seq <= ? ORDER BY seq DESC LIMIT ?", values)
            below = await self._query("SELECT max(seq) FROM attempts WHERE seq <= ?", (top - SEARCH_ROWS,))
            top = below[0][0] or 0
        return history(found)

    async def last_runs(self, tasks: Sequence[tuple[str, float]]) -> dict[str, TaskSummary]:
        """Tasks as their last attempt left them, by id; see `trispool.ledgersearch.last_runs`."""
        return await self._ask(lambda connection: last_runs(connection, tasks)) if tasks else {}

    async def search(
        self, wanted: TaskFilter, *, descending: bool, limit: int, after: int | None = None, rows: int = SEARCH_ROWS
    ) -> Stretch:
        """Tasks that are done or cancelled, a part of the history at a time; see `trispool.ledgersearch.search`."""
        return await self._ask(
            lambda connection: search(
                connection, wanted, descending=descending, limit=limit, after=after, rows=min(rows, SEARCH_ROWS)
            )
        )

    async def _query(self, sql: str, values: Sequence[object]) -> list[Any]:
        return await self._ask(lambda connection: connection.execute(sql, values).fetchall())

    async def _ask(self, question: Callable[[sqlite3.Connection], T]) -> T:
        await self._flush()
        try:
            try:
                return await self._in_read_thread(question)
            except Replaced:
                await self._writer.run_sync(self._file.reopen)
            except Damaged as error:
                await self._begin_anew(error)
            return await self._in_read_thread(question)
        except (sqlite3.Error, OSError, Damaged, Replaced) as error:
            raise SpoolUnavailable(f"the history cannot be read: {error}") from error

    async def _in_read_thread(self, question: Callable[[sqlite3.Connection], T]) -> T:
        return await trio.to_thread.run_sync(self._file.read, question, limiter=self._read_limiter)

    async def _begin_anew(self, error: Damaged) -> None:
        aside = await self._writer.run_sync(self._file.set_aside)
        _log.error("history_damaged", path=self._path, set_aside=aside, error=str(error))
        await self._writer.run_sync(self._file.open)

    async def _flush(self, *, abandon: bool = False) -> bool:
        """Write all that has been recorded; False if it has to be tried again."""
        await self._flushing.acquire()
        return await self._end(*self._begin((), self._file.generation, durable=False), abandon=abandon) is None

    def _begin(self, added: Sequence[IncomingRow], generation: int, *, durable: bool) -> tuple[Job[int] | None, Taken]:
        """Have these rows written and, unless it is little, all that has been recorded; None: there is nothing."""
        rows, retrying, removed = list[AttemptRow](), dict[str, "Retrying | None"](), list[int]()
        much = len(self._rows) >= CARRIED_ROWS or len(self.to_remove) >= CARRIED_ROWS
        if not added or much or self._has_failed:
            rows, self._rows = self._rows, rows
            retrying, self._retrying = self._retrying, retrying
            removed, self.to_remove = self.to_remove, removed
            self._taken_at, self._has_failed = trio.current_time(), False
        taken = Taken(rows, retrying, removed, trio.current_time())
        if not rows and not retrying and not removed and not added:
            return None, taken
        incoming = IncomingChange(added, removed, durable, generation) if added or removed else None
        return self._writer.begin(lambda: self._file.write(rows, retrying, incoming)), taken

    async def _end(self, job: Job[int] | None, taken: Taken, *, abandon: bool = False) -> Exception | None:
        """Wait for what has been begun; gives why nothing of it has been written and it has to be tried again."""
        try:
            if job is None:
                return None
            try:
                unfit = await self._writer.result(job, abandon=abandon)
            except Damaged as error:
                await self._begin_anew(error)
                unfit = await self._writer.run_sync(job.work, abandon=abandon)
        except Replaced as error:
            self._take_back(taken)
            return error
        except (sqlite3.Error, OSError, Damaged) as error:
            self.statistics.failed_commits += 1
            if str(error) != self._complaint:
                self._complaint = str(error)
                _log.error("history_not_written", path=self._path, rows=len(taken.rows), error=self._complaint)
            self._take_back(taken)
            return error
        except trio.Cancelled:
            # Nothing is lost, the last flush takes it.
            self._take_back(taken)
            raise
        finally:
            self._flushing.release()
        if self._complaint:
            self._complaint = ""
            _log.info("history_is_written_again", path=self._path)
        self._is_dropping = False
        self.statistics.commits.observe(trio.current_time() - taken.began)
        self.statistics.written += len(taken.rows) - unfit
        if unfit:
            self._drop(unfit, "SQLite would not take them")
        return None

    def _take_back(self, taken: Taken) -> None:
        room = max(0, MAX_PENDING - len(self._rows))
        if len(taken.rows) > room:
            self._drop(len(taken.rows) - room, "the disk takes no more")
        self._rows = taken.rows[:room] + self._rows
        self._retrying = taken.retrying | self._retrying
        self.to_remove += taken.removed
        self._has_failed = True
        self._work.set()

    def _drop(self, count: int, why: str) -> None:
        self.statistics.dropped += count
        if not self._is_dropping:
            self._is_dropping = True
            _log.error("history_lost", path=self._path, reason=why, dropped=self.statistics.dropped)

    async def _prune_now_and_then(self) -> None:
        while self._keep_seconds:
            try:
                while await self._writer.run_sync(lambda: self._file.prune(time.time() - self._keep_seconds)):
                    await trio.lowlevel.checkpoint()
            except (sqlite3.Error, OSError, Damaged) as error:
                _log.error("history_not_pruned", path=self._path, error=str(error))
            await trio.sleep(PRUNE_SECONDS)
