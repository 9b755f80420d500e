"""Questions to the history: blocking, on a connection, a bounded number of rows at a time.

Rows have the order in which they were written, nearly that in which the attempts ended. A search goes through them in
stretches of so many row numbers, found tasks or not, and so takes no longer than that, whatever is looked for. Where an
index tells that there are few rows to look at, it looks at these.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from trispool.control import Attempt, TaskSummary
from trispool.errors import MalformedPacket
from trispool.packet import decode_vars
from trispool.task import TaskState

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Mapping, Sequence

    from trispool.operating import TaskFilter

__all__ = ["OPERATED", "History", "Stretch", "TaskRow", "history", "last_runs", "mentions", "search"]

OPERATED: Final = ("held", "released", "hurried", "retried", "rescheduled")
"""What an operator did, as outcomes: these rows are no attempts, and end nothing."""

FEW: Final = 2_000
"""Rows from an index that are looked at whatever their number, some 10 ms: each lies somewhere else in the file."""

_SUMMARY: Final = "seq, task, state, at, priority, enqueued_at, number, error, started_at, run_seconds, handler"
_ATTEMPT: Final = "number, outcome, started_at, queue_seconds, run_seconds, worker, handler, error, traceback"
_SUMMARY_FIELDS: Final = _SUMMARY.count(",") + 1

_RUN: Final = f"outcome NOT IN {OPERATED}"


APART: Final = 4
"""How much longer it takes to look at a row that an index tells of than at the next one in the file."""


class TaskRow(NamedTuple):
    """A task that is done or cancelled, and the number of its row."""

    row: int
    task: TaskSummary


class Stretch(NamedTuple):
    """What a search found in one stretch of the history.

    Attributes:
        found: The tasks, in order.
        behind: The last row that was looked at, or told of.
        ended_at: When its attempt ended, Unix seconds.
        is_last: Whether there are no more rows behind it.
    """

    found: list[TaskRow]
    behind: int
    ended_at: float
    is_last: bool


class History(NamedTuple):
    """What is known of one task.

    Attributes:
        last: The task as its last attempt, or end, left it.
        attempts: Its newest rows, oldest first.
        vars: Its vars, if it is done or cancelled and they were kept.
    """

    last: TaskSummary
    attempts: list[Attempt]
    vars: Mapping[bytes, bytes] | None


# Finished tasks


def search(
    connection: sqlite3.Connection, wanted: TaskFilter, *, descending: bool, limit: int, after: int | None, rows: int
) -> Stretch:
    """The next tasks that are done or cancelled, by the time they ended.

    Args:
        connection: To the file.
        wanted: Which tasks; its `spool` is not looked at, and any state but these two means both.
        descending: The newest first.
        limit: How many at most.
        after: Go on behind this row number; None: begin.
        rows: How many rows to look at.
    """
    seqs = _Seqs(connection, descending)
    first = seqs.next(after)
    if first is None:
        return Stretch([], 0 if after is None else after, 0.0, is_last=True)
    conditions, values = _conditions(wanted)
    index = ""
    if _are_few(connection, wanted):
        index = "INDEXED BY attempts_enqueued_at"
        last = seqs.end()
    elif wanted.state is TaskState.CANCELLED:
        index = "INDEXED BY attempts_not_ok"
        conditions.append("outcome != 'ok'")
        last = seqs.not_ok_from(first, max(1, rows // APART))
    else:
        last = seqs.within(first, rows)
    low, high = (last, first) if descending else (first, last)
    columns = f"{_SUMMARY}, vars" if wanted.q else _SUMMARY
    found = connection.execute(
        f"SELECT {columns} FROM attempts {index} WHERE seq BETWEEN ? AND ? AND {' AND '.join(conditions)}"
        f" ORDER BY seq {'DESC' if descending else 'ASC'} LIMIT ?",
        (low, high, *values, limit),
    ).fetchall()
    if len(found) == limit:
        last = found[-1][0]
    tasks = [
        TaskRow(row[0], _summary(row))
        for row in found
        if not wanted.q or mentions(wanted.q, row[1], row[7], _decoded(row[_SUMMARY_FIELDS]))
    ]
    return Stretch(tasks, last, seqs.ended_at(last), is_last=seqs.next(last) is None)


class _Seqs:
    """Row numbers, in one direction."""

    def __init__(self, connection: sqlite3.Connection, descending: bool) -> None:
        self._connection = connection
        self._descending = descending
        self._end, self._beyond = ("min", "<") if descending else ("max", ">")
        self._begin = "max" if descending else "min"

    def next(self, after: int | None) -> int | None:
        """The first row, or the first behind another."""
        if after is None:
            return self._number(f"SELECT {self._begin}(seq) FROM attempts")
        return self._number(f"SELECT {self._begin}(seq) FROM attempts WHERE seq {self._beyond} ?", after)

    def end(self) -> int:
        """The last row."""
        return self._number(f"SELECT {self._end}(seq) FROM attempts") or 0

    def within(self, first: int, count: int) -> int:
        """The last of so many row numbers. Some may have no row: no more than `count` are then looked at."""
        end = self.end()
        return max(end, first - count + 1) if self._descending else min(end, first + count - 1)

    def not_ok_from(self, first: int, count: int) -> int:
        """The last row that has to be looked at to see so many that did not end well."""
        last = self._number(
            f"SELECT {self._end}(seq) FROM (SELECT seq FROM attempts INDEXED BY attempts_not_ok"
            f" WHERE outcome != 'ok' AND seq {self._beyond}= ? ORDER BY seq {'DESC' if self._descending else 'ASC'}"
            " LIMIT ?) HAVING count(*) = ?",
            first,
            count,
            count,
        )
        return self.end() if last is None else last

    def ended_at(self, seq: int) -> float:
        """When the attempt of a row ended; if that is no row, of the last before it."""
        order = "seq >= ? ORDER BY seq ASC" if self._descending else "seq <= ? ORDER BY seq DESC"
        row = self._connection.execute(
            f"SELECT started_at + run_seconds FROM attempts WHERE {order} LIMIT 1", (seq,)
        ).fetchone()
        return row[0] if row else 0.0

    def _number(self, sql: str, *values: int) -> int | None:
        row: tuple[int | None] | None = self._connection.execute(sql, values).fetchone()
        return row[0] if row else None


def _conditions(wanted: TaskFilter) -> tuple[list[str], list[object]]:
    states = [wanted.state] if wanted.state in (TaskState.DONE, TaskState.CANCELLED) else ["done", "cancelled"]
    conditions = [f"state IN ({', '.join('?' * len(states))})"]
    values: list[object] = [str(state) for state in states]
    for condition, value in (
        ("handler = ?", wanted.handler),
        ("enqueued_at >= ?", wanted.enqueued_after),
        ("enqueued_at < ?", wanted.enqueued_before),
        ("at >= ?", wanted.due_after),
        ("at < ?", wanted.due_before),
    ):
        if value is not None:
            conditions.append(condition)
            values.append(value)
    if wanted.q:
        raw = wanted.q.encode(errors="replace")
        # Of the vars this is a first glance, as between two of them lie the bytes of their lengths.
        conditions.append("(instr(task, ?) OR instr(error, ?) OR instr(vars, ?))")
        values += [raw.decode(), raw.decode(), raw]
    return conditions, values


def _are_few(connection: sqlite3.Connection, wanted: TaskFilter) -> bool:
    """Whether few rows are of tasks that were enqueued when those that are wanted were."""
    if wanted.enqueued_after is None and wanted.enqueued_before is None:
        return False
    low = float("-inf") if wanted.enqueued_after is None else wanted.enqueued_after
    high = float("inf") if wanted.enqueued_before is None else wanted.enqueued_before
    (count,) = connection.execute(
        "SELECT count(*) FROM (SELECT 1 FROM attempts INDEXED BY attempts_enqueued_at"
        " WHERE enqueued_at >= ? AND enqueued_at < ? LIMIT ?)",
        (low, high, FEW + 1),
    ).fetchone()
    return bool(count <= FEW)


def mentions(q: str, task_id: str, error: str | None, vars: Mapping[bytes, bytes] | None) -> bool:
    """Whether a text is in the id, the last error, or a key or value of the vars of a task."""
    if q in task_id or (error is not None and q in error):
        return True
    raw = q.encode(errors="replace")
    return vars is not None and any(raw in key or raw in value for key, value in vars.items())


# Single tasks


def last_runs(connection: sqlite3.Connection, tasks: Sequence[tuple[str, float]]) -> dict[str, TaskSummary]:
    """Tasks as their last attempt left them, by id; those that had none are left out.

    Args:
        connection: To the file.
        tasks: For each its id and when it was enqueued, Unix seconds.
    """
    found = {}
    sql = f"SELECT {_SUMMARY} FROM attempts WHERE enqueued_at = ? AND task = ? AND {_RUN} ORDER BY seq DESC LIMIT 1"
    for task_id, enqueued_at in tasks:
        row = connection.execute(sql, (enqueued_at, task_id)).fetchone()
        if row is not None:
            found[task_id] = _summary(row)
    return found


def history(rows: Sequence[Sequence[Any]]) -> History | None:
    """What the rows of one task, as `HISTORY` has them, tell of it; None: there are none.

    Args:
        rows: The newest first.
    """
    if not rows:
        return None
    last = next((row for row in rows if row[_SUMMARY_FIELDS + 1] not in OPERATED), rows[0])
    attempts = [Attempt(*row[_SUMMARY_FIELDS : _SUMMARY_FIELDS + 9]) for row in reversed(rows)]
    kept = next((row[-1] for row in rows if row[-1] is not None), None)
    return History(_summary(last), attempts, _decoded(kept))


HISTORY: Final = f"{_SUMMARY}, {_ATTEMPT}, vars"
"""The columns of a row for `history`."""


def _summary(row: Sequence[Any]) -> TaskSummary:
    _, task, state, at, priority, enqueued_at, number, error, started_at, run_seconds, handler = row[:_SUMMARY_FIELDS]
    return TaskSummary(
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
        handler=handler,
    )


def _decoded(payload: bytes | None) -> dict[bytes, bytes] | None:
    try:
        return None if payload is None else decode_vars(payload)
    except MalformedPacket:  # somebody else has written it
        return None
