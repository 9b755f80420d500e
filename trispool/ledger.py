"""The history of a spool: one row per attempt, in the spool's own `.trispool/spool.db`.

Rules it keeps:

1. It never stops a task. A row that cannot be written is dropped, counted and said; what happens to a damaged file is
   told in `trispool.ledgerfile`.
2. One connection writes, from one thread at a time; whatever was recorded meanwhile goes into the next transaction.
3. It also remembers, for tasks that wait for another attempt, how many they had and when the next one is: the only part
   that running depends on, read once at start.

A task's durability does not rest on it.
"""

from __future__ import annotations

import sqlite3
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeVar

import structlog
import trio

from trispool import spoolfile
from trispool.control import Attempt, TaskSummary
from trispool.errors import SpoolUnavailable
from trispool.histogram import Histogram
from trispool.ledgerfile import Damaged, LedgerFile, Replaced
from trispool.packet import decode_vars
from trispool.task import TaskState

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from trispool.task import AttemptRow, Retrying

__all__ = ["Ledger"]

MAX_PENDING: Final = 200_000
"""Rows that may wait for a disk that has stopped (some 100 MB); further ones are dropped."""

GATHER_SECONDS: Final = 0.05
"""How long rows are gathered for one transaction, which costs as much as writing fifty of them. A crash of the service
loses the history of so long; whoever asks for history sees all of it, since a question writes first."""

PRUNE_SECONDS: Final = 600.0
"""How often old rows are looked for."""

FLUSH_SECONDS: Final = 5.0
"""How long, at the end, to wait for a disk that does not answer."""

RETRY_SECONDS: Final = 1.0
"""How long to wait after a failed commit: a full disk does not mend faster."""

_log = structlog.get_logger()

T = TypeVar("T")


@dataclass(slots=True)
class LedgerStatistics:
    """Counts since the start.

    Attributes:
        written: Rows.
        dropped: Rows that were lost, because the disk did not take them or SQLite would not.
        failed_commits: How often the disk did not take them.
        commits: How long the others took.
    """

    written: int = 0
    dropped: int = 0
    failed_commits: int = 0
    commits: Histogram = field(default_factory=Histogram)


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
        self._work = trio.Event()
        # One flush at a time: what was recorded later must not be written before what is written again after an error.
        self._flushing = trio.Lock()
        self._write_limiter = trio.CapacityLimiter(1)
        self._read_limiter = trio.CapacityLimiter(1)
        self._complaint = ""
        self._is_dropping = False
        self.statistics = LedgerStatistics()

    def record(self, row: AttemptRow) -> None:
        """Write this row soon. One that finds `MAX_PENDING` waiting is dropped."""
        if len(self._rows) >= MAX_PENDING:
            self._drop(1, "the disk takes no more")
            return
        self._rows.append(row)
        self._work.set()

    def remember(self, retrying: Retrying) -> None:
        """Keep what is known of a task that waits for another attempt."""
        self._retrying[retrying.task] = retrying
        self._work.set()

    def forget(self, task_id: str) -> None:
        """The task no longer waits for another attempt."""
        self._retrying[task_id] = None
        self._work.set()

    async def open(self) -> dict[str, Retrying]:
        """Open the database, or begin a new one.

        Returns:
            What is remembered of tasks that wait for another attempt, by task id.

        Raises:
            OSError: Neither is possible (permissions, no space).
        """
        remembered, aside = await self._in_write_thread(self._file.open)
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
                    await trio.sleep(GATHER_SECONDS)
                    if not await self._flush():
                        await trio.sleep(RETRY_SECONDS)
        finally:
            with trio.move_on_after(FLUSH_SECONDS, shield=True):
                await self._flush(abandon=True)

    async def aclose(self) -> None:
        """Close the database."""
        with trio.move_on_after(FLUSH_SECONDS, shield=True):
            async with self._read_limiter:
                await self._in_write_thread(self._file.close, abandon=True)

    async def attempts(self, task_id: str, limit: int = 100) -> list[Attempt]:
        """The newest attempts of a task, oldest first."""
        where, values = _of_task(task_id)
        rows = await self._query(
            "SELECT number, outcome, started_at, queue_seconds, run_seconds, worker, handler, error, traceback"
            f" FROM attempts WHERE {where} ORDER BY seq DESC LIMIT ?",
            (*values, limit),
        )
        return [Attempt(*row) for row in reversed(rows)]

    async def last(self, task_id: str) -> TaskSummary | None:
        """A task as its last attempt left it, or None if it is not in the history."""
        where, values = _of_task(task_id)
        rows = await self._query(f"SELECT {_SUMMARY} FROM attempts WHERE {where} ORDER BY seq DESC LIMIT 1", values)
        return _summary(rows[0])[1] if rows else None

    async def vars_of(self, task_id: str) -> dict[bytes, bytes] | None:
        """The vars of a task that is done or cancelled, or None if the history does not have them."""
        where, values = _of_task(task_id)
        rows = await self._query(
            f"SELECT vars FROM attempts WHERE {where} AND vars IS NOT NULL ORDER BY seq DESC LIMIT 1", values
        )
        return decode_vars(rows[0][0]) if rows else None

    async def finished(
        self, *, q: str | None, ascending: bool, limit: int, after: int | None
    ) -> list[tuple[int, TaskSummary]]:
        """Tasks that are done, by the time they ended.

        Args:
            q: Only those whose id, handler or error has this text in it.
            ascending: The oldest first.
            limit: How many at most.
            after: Continue behind this row number.

        Returns:
            Row number and task.
        """
        where, values = ["state = 'done'"], list[object]()
        if q:
            where.append("(instr(task, ?) OR instr(coalesce(handler, ''), ?) OR instr(coalesce(error, ''), ?))")
            values += [q, q, q]
        if after is not None:
            where.append("seq > ?" if ascending else "seq < ?")
            values.append(after)
        rows = await self._query(
            f"SELECT {_SUMMARY} FROM attempts WHERE {' AND '.join(where)}"
            f" ORDER BY seq {'ASC' if ascending else 'DESC'} LIMIT ?",
            (*values, limit),
        )
        return [_summary(row) for row in rows]

    async def _query(self, sql: str, values: Sequence[object]) -> list[Any]:
        await self._flush()
        try:
            try:
                return await self._in_read_thread(sql, values)
            except Replaced:
                await self._in_write_thread(self._file.reopen)
            except Damaged as error:
                await self._begin_anew(error)
            return await self._in_read_thread(sql, values)
        except (sqlite3.Error, OSError, Damaged, Replaced) as error:
            raise SpoolUnavailable(f"the history cannot be read: {error}") from error

    async def _in_read_thread(self, sql: str, values: Sequence[object]) -> list[Any]:
        return await trio.to_thread.run_sync(self._file.query, sql, values, limiter=self._read_limiter)

    async def _in_write_thread(self, work: Callable[[], T], *, abandon: bool = False) -> T:
        return await trio.to_thread.run_sync(work, limiter=self._write_limiter, abandon_on_cancel=abandon)

    async def _begin_anew(self, error: Damaged) -> None:
        aside = await self._in_write_thread(self._file.set_aside)
        _log.error("history_damaged", path=self._path, set_aside=aside, error=str(error))
        await self._in_write_thread(self._file.open)

    async def _flush(self, *, abandon: bool = False) -> bool:
        """Write all that has been recorded; False if it has to be tried again."""
        async with self._flushing:
            rows, self._rows = self._rows, []
            retrying, self._retrying = self._retrying, {}
            if not rows and not retrying:
                return True

            def write() -> int:
                return self._file.write(rows, retrying)

            began = trio.current_time()
            try:
                try:
                    unfit = await self._in_write_thread(write, abandon=abandon)
                except Damaged as error:
                    await self._begin_anew(error)
                    unfit = await self._in_write_thread(write, abandon=abandon)
            except (sqlite3.Error, OSError, Damaged) as error:
                self.statistics.failed_commits += 1
                if str(error) != self._complaint:
                    self._complaint = str(error)
                    _log.error("history_not_written", path=self._path, rows=len(rows), error=self._complaint)
                self._take_back(rows, retrying)
                return False
            except trio.Cancelled:
                # Before the thread had begun: nothing is lost, the last flush takes it.
                self._take_back(rows, retrying)
                raise
        if self._complaint:
            self._complaint = ""
            _log.info("history_is_written_again", path=self._path)
        self._is_dropping = False
        self.statistics.commits.observe(trio.current_time() - began)
        self.statistics.written += len(rows) - unfit
        if unfit:
            self._drop(unfit, "SQLite would not take them")
        return True

    def _take_back(self, rows: list[AttemptRow], retrying: dict[str, Retrying | None]) -> None:
        room = max(0, MAX_PENDING - len(self._rows))
        if len(rows) > room:
            self._drop(len(rows) - room, "the disk takes no more")
        self._rows = rows[:room] + self._rows
        self._retrying = retrying | self._retrying
        self._work.set()

    def _drop(self, count: int, why: str) -> None:
        self.statistics.dropped += count
        if not self._is_dropping:
            self._is_dropping = True
            _log.error("history_lost", path=self._path, reason=why, dropped=self.statistics.dropped)

    async def _prune_now_and_then(self) -> None:
        while self._keep_seconds:
            try:
                while await self._in_write_thread(lambda: self._file.prune(time.time() - self._keep_seconds)):
                    await trio.lowlevel.checkpoint()
            except (sqlite3.Error, OSError, Damaged) as error:
                _log.error("history_not_pruned", path=self._path, error=str(error))
            await trio.sleep(PRUNE_SECONDS)


def _of_task(task_id: str) -> tuple[str, tuple[object, ...]]:
    """The condition, and its values, for the rows of a task."""
    microseconds, _ = spoolfile.order_of(task_id, 0.0)
    if microseconds:
        return "enqueued_at = ? AND task = ?", (microseconds / 1e6, task_id)
    # It does not tell when it was enqueued, so it has to be looked for in all rows.
    return "task = ?", (task_id,)


_SUMMARY: Final = "seq, task, state, at, priority, enqueued_at, number, error, started_at, run_seconds"


def _summary(row: Sequence[Any]) -> tuple[int, TaskSummary]:
    seq, task, state, at, priority, enqueued_at, number, error, started_at, run_seconds = row
    summary = TaskSummary(
        id=task,
        spool="",
        state=TaskState(state or "ready"),
        at=at,
        priority=priority,
        enqueued_at=enqueued_at,
        attempts=number,
        last_error=error,
        finished_at=started_at + run_seconds if state else None,
        run_seconds=run_seconds,
    )
    return seq, summary
