"""Lists of tasks: what waits (in memory), what is dead (in the store) and what is done (in the ledger), page by page.

A list without a state begins with what is unfinished or dead, by time of enqueuing, and goes on with what is done, by
time of ending. A cursor says where the next page begins: behind which task, or behind which row of each ledger.
"""

from __future__ import annotations

import base64
import binascii
import heapq
import json
from dataclasses import replace
from itertools import chain, islice
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

import trio

from trispool.backlog import Backlog, Running
from trispool.control import Page, TaskSummary
from trispool.errors import TaskRefused
from trispool.task import Entry, TaskState

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from trispool.ledger import Ledger
    from trispool.schedule import Waiting
    from trispool.store import SpoolStore

__all__ = ["Listable", "list_tasks", "summary_of"]

_DONE = frozenset({TaskState.DONE})


class Listable(Protocol):
    """A spool, as far as lists are concerned."""

    @property
    def name(self) -> str: ...
    @property
    def backlog(self) -> Backlog: ...
    @property
    def store(self) -> SpoolStore: ...
    @property
    def ledger(self) -> Ledger: ...


class _Key(NamedTuple):
    """What the first part of a list is sorted by."""

    enqueued: tuple[int, int]
    spool: str
    id: str


class _Found(NamedTuple):
    """A task of the first part; an `Entry` is of one that is dead. A summary is made of those on the page only."""

    key: _Key
    spool: Listable
    item: Waiting | Running | Entry


class _Cursor(NamedTuple):
    """Where a page begins: behind the task of `key`, or, in the second part, behind these rows, by spool."""

    key: _Key | None
    rows: dict[str, int] | None

    def encode(self) -> str:
        return base64.urlsafe_b64encode(json.dumps(self, separators=(",", ":")).encode()).decode().rstrip("=")

    @classmethod
    def decode(cls, text: str | None) -> _Cursor:
        if text is None:
            return cls(None, None)
        try:
            key, rows = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
            if key is not None:
                (microseconds, counter), spool, task_id = key
                return cls(_Key((int(microseconds), int(counter)), str(spool), str(task_id)), None)
            return cls(None, {str(spool): int(row) for spool, row in rows.items()})
        except (binascii.Error, ValueError, TypeError, AttributeError):
            raise TaskRefused("cursor: not one that this service has given") from None


async def list_tasks(
    spools: Sequence[Listable],
    *,
    state: TaskState | None,
    q: str | None,
    order: Literal["asc", "desc"],
    limit: int,
    cursor: str | None,
) -> Page:
    """One page of the tasks of some spools; see `trispool.control.Control.tasks`."""
    start = _Cursor.decode(cursor)
    items: list[TaskSummary] = []
    if start.rows is None and state not in _DONE:
        present = [_unfinished(spool, spool.backlog.unfinished(), state) for spool in spools]
        if state in (None, TaskState.DEAD):
            present += [_dead(spool, await spool.store.dead()) for spool in spools]
        # Looking through a million tasks takes seconds: not in the loop's thread, and without keeping them all.
        keyed = await trio.to_thread.run_sync(_select, chain.from_iterable(present), start.key, q, order, limit)
        items = [await _with_history(spools, item) for _, item in keyed[:limit]]
        if len(keyed) > limit:
            return Page(items, _Cursor(keyed[limit - 1][0], None).encode())
    if state is not None and state not in _DONE:
        return Page(items, None)
    done, rows = await _done(spools, q, order, limit - len(items), start.rows or {})
    return Page([*items, *done], None if rows is None else _Cursor(None, rows).encode())


def _unfinished(spool: Listable, items: Iterable[Waiting | Running], state: TaskState | None) -> Iterator[_Found]:
    for item in items:
        if state is None or state is _state_of(item):
            yield _Found(_Key(item.entry.order, spool.name, item.entry.id), spool, item)


def _dead(spool: Listable, entries: Sequence[Entry]) -> Iterator[_Found]:
    for entry in entries:
        yield _Found(_Key(entry.order, spool.name, entry.id), spool, entry)


def _state_of(item: Waiting | Running) -> TaskState:
    if isinstance(item, Running):
        return TaskState.RUNNING
    return TaskState.READY if item.is_ready else TaskState.SCHEDULED


def summary_of(spool: Listable, item: Waiting | Running) -> TaskSummary:
    """An unfinished task as a row of a list."""
    entry = item.entry
    if isinstance(item, Running):
        attempts, progress = item.attempt, item.progress
    else:
        attempts, progress = spool.backlog.attempts(entry.id), None
    return TaskSummary(
        entry.id,
        spool.name,
        _state_of(item),
        item.due_at,
        entry.priority,
        entry.order[0] / 1e6,
        attempts,
        spool.backlog.last_error(entry.id),
        progress=progress,
    )


def _select(
    found: Iterable[_Found], after: _Key | None, q: str | None, order: Literal["asc", "desc"], limit: int
) -> list[tuple[_Key, TaskSummary]]:
    """The first `limit` and one more."""
    wanted = (
        item
        for item in found
        if (q is None or q in item.key.id or q in (item.spool.backlog.last_error(item.key.id) or ""))
        and (after is None or (item.key > after if order == "asc" else item.key < after))
    )
    choose = heapq.nsmallest if order == "asc" else heapq.nlargest
    return [(key, _summarised(spool, item)) for key, spool, item in choose(limit + 1, wanted, key=_key_of)]


def _key_of(found: _Found) -> _Key:
    return found.key


def _summarised(spool: Listable, item: Waiting | Running | Entry) -> TaskSummary:
    if isinstance(item, Entry):
        return TaskSummary(item.id, spool.name, TaskState.DEAD, item.at, None, item.order[0] / 1e6)
    return summary_of(spool, item)


async def _with_history(spools: Sequence[Listable], summary: TaskSummary) -> TaskSummary:
    if summary.state is not TaskState.DEAD:
        return summary
    spool = next(spool for spool in spools if spool.name == summary.spool)
    last = await spool.ledger.last(summary.id)
    if last is None:
        return summary
    return replace(last, spool=spool.name, state=TaskState.DEAD)


async def _done(
    spools: Sequence[Listable], q: str | None, order: Literal["asc", "desc"], limit: int, rows: dict[str, int]
) -> tuple[list[TaskSummary], dict[str, int] | None]:
    """The next `limit` tasks that are done, and where to go on; None: nowhere."""
    ascending = order == "asc"
    lists: list[list[tuple[int, TaskSummary]]] = []
    for spool in spools:
        after = rows.get(spool.name)
        some = await spool.ledger.finished(q=q, ascending=ascending, limit=limit + 1, after=after)
        lists.append([(row, replace(summary, spool=spool.name)) for row, summary in some])
    # Merged, not sorted: each ledger's rows stay in their order, which is not quite that of the times in them. Else the
    # next page, which goes on behind the last row of this one, would leave some out.
    merged = heapq.merge(*lists, key=lambda item: item[1].finished_at or 0.0, reverse=not ascending)
    found = list(islice(merged, limit + 1))
    rows = rows | {summary.spool: row for row, summary in found[:limit]}
    return [summary for _, summary in found[:limit]], rows if len(found) > limit else None
