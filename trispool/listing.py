"""Lists of tasks, page by page: first what is unfinished or dead, then what is done or cancelled, from the history.

The first part is sorted by time of enqueuing, or by due time; the second by the time of ending. A task that is there,
and stays, while the pages are asked for is on one of them, whatever comes and goes meanwhile: a cursor says behind
which task, or behind which row of each history, the next page begins.

A page costs a bounded amount of work, whatever is looked for, so it may have few tasks or none though more follow:

- `LOOKS` tasks at most are looked into for a handler or a text, which is in their files and history (some 30 µs each),
  and none any more after `LOOK_SECONDS`;
- `ROWS` rows of the history at most are looked at, over all spools;
- of what waits every task is glanced at, but in memory (0.1 µs each; see `trispool.unfinished`).
"""

from __future__ import annotations

import heapq
from dataclasses import replace
from typing import TYPE_CHECKING, Final, NamedTuple

import trio

from trispool.control import Page, TaskSummary
from trispool.cursors import Cursor
from trispool.errors import TaskRefused
from trispool.ledger import SEARCH_ROWS
from trispool.ledgersearch import mentions
from trispool.operating import TaskQuery
from trispool.task import TaskState
from trispool.unfinished import UNFINISHED, Listable, first_of, state_of, summary_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Collection, Iterator, Mapping, Sequence

    from trispool.cursors import Key
    from trispool.operating import TaskFilter
    from trispool.unfinished import Found

__all__ = ["Listable", "list_tasks", "select_tasks", "summary_of"]

LOOKS: Final = 300
"""Tasks that a page looks into, some 10 ms."""

LOOK_SECONDS: Final = 0.02
"""Where the disk is slow, a page looks into fewer."""

ROWS: Final = SEARCH_ROWS

SELECT_AT_ONCE: Final = 1_000
"""Tasks of a selection that are found by one glance at all that wait; to sort so many keeps the loop for 2 ms."""

_FINISHED: Final = frozenset({TaskState.DONE, TaskState.CANCELLED})
_SORTED_BY_DUE: Final = frozenset({TaskState.SCHEDULED, TaskState.READY, TaskState.HELD})
_MANY: Final = 500
_AT_ONCE: Final = 100
"""Tasks looked into in one go; summaries made before others have their turn."""


async def list_tasks(spools: Sequence[Listable], query: TaskQuery) -> Page:
    """One page of the tasks of some spools; see `trispool.control.Control.tasks`.

    Args:
        spools: All spools of the service.
        query: What is looked for.

    Raises:
        TaskRefused: There is no such spool (status 404), `sort` does not fit the state, or `cursor` is not one of ours.
        SpoolUnavailable: A spool or its history cannot be read now.
    """
    wanted = query.filter
    chosen = _chosen(spools, wanted.spool)
    if query.sort == "due" and wanted.state not in _SORTED_BY_DUE:
        raise TaskRefused("sort: by `due` only what is scheduled, ready or held can be sorted; say which state")
    start = Cursor(query.sort, None, {}) if query.cursor is None else Cursor.decode(query.cursor, query.sort)
    states = UNFINISHED if wanted.state is None else UNFINISHED & {wanted.state}
    items: list[TaskSummary] = []
    if states and (query.cursor is None or start.key is not None):
        found, behind = await _unfinished(chosen, query, states, start.key, query.limit)
        items = await _described(found)
        if behind is not None:
            return Page(items, Cursor(query.sort, behind, {}).encode())
    if wanted.state in UNFINISHED:
        return Page(items, None)
    done, rows = await _finished(chosen, query, query.limit - len(items), start.rows)
    return Page([*items, *done], None if rows is None else Cursor(query.sort, None, rows).encode())


async def select_tasks(
    spools: Sequence[Listable], wanted: TaskFilter, states: Collection[TaskState]
) -> AsyncGenerator[Sequence[TaskSummary], None]:
    """All tasks that a filter means and that are in one of some states, each once, in chunks of a few hundred at most.

    Unfinished ones that come while it goes on, and are behind the last of those that there were, are not among them.

    Args:
        spools: All spools of the service.
        wanted: Which tasks; its `state` is not looked at.
        states: Which states.

    Raises:
        TaskRefused, SpoolUnavailable: As `list_tasks`.
    """
    chosen = _chosen(spools, wanted.spool)
    unfinished = UNFINISHED & frozenset(states)
    latest = await first_of(chosen, wanted, unfinished, by_due=False, descending=True, after=None, count=1)
    after: Key | None = None
    for task in latest.found:  # one, or none
        while True:
            found, after = await _unfinished(chosen, TaskQuery(wanted), unfinished, after, SELECT_AT_ONCE)
            for start in range(0, len(found), _AT_ONCE):
                yield [
                    summary_of(item.spool, item.item)
                    for item in found[start : start + _AT_ONCE]
                    if item.key <= task.key
                ]
                await trio.lowlevel.checkpoint()
            if after is None or after >= task.key:
                break
    for state in _FINISHED & frozenset(states):
        rows: dict[str, int] | None = {}
        while rows is not None:
            done, rows = await _finished(chosen, TaskQuery(replace(wanted, state=state), order="desc"), _MANY, rows)
            yield done


def _chosen(spools: Sequence[Listable], name: str | None) -> Sequence[Listable]:
    if name is None:
        return spools
    chosen = [spool for spool in spools if spool.name == name]
    if not chosen:
        raise TaskRefused(f"there is no spool {name!r}", status=404)
    return chosen


# Unfinished tasks


async def _unfinished(
    spools: Sequence[Listable], query: TaskQuery, states: Collection[TaskState], after: Key | None, limit: int
) -> tuple[list[Found], Key | None]:
    """The next tasks that a query means, `limit` at most, and behind which key to go on; None: there are no more."""
    wanted = query.filter
    looks = bool(wanted.q) or wanted.handler is not None
    found, behind = await first_of(
        spools,
        wanted,
        states,
        by_due=query.sort == "due",
        descending=query.order == "desc",
        after=after,
        count=LOOKS if looks else limit,
    )
    if not looks:
        return found, behind
    fits: list[Found] = []
    began = trio.current_time()
    for start in range(0, len(found), _AT_ONCE):
        for item in await _those_that_fit(found[start : start + _AT_ONCE], wanted):
            fits.append(item)
            if len(fits) == limit:
                return fits, None if behind is None and item is found[-1] else item.key
        if trio.current_time() > began + LOOK_SECONDS and start + _AT_ONCE < len(found):
            return fits, found[start + _AT_ONCE - 1].key
    return fits, behind


async def _those_that_fit(found: Sequence[Found], wanted: TaskFilter) -> list[Found]:
    """Those with the handler or the text that are wanted."""
    fits = set()
    for spool, items in _by_spool(found):
        vars = await spool.store.vars_of([item.item.entry.ref for item in items])
        runs = await _last_runs(spool, items)
        for item, own in zip(items, vars, strict=True):
            last = runs.get(item.item.entry.id)
            if wanted.handler is not None and wanted.handler not in (_handler_asked_for(own), last and last.handler):
                continue
            entry = item.item.entry
            error = spool.backlog.last_error(entry.id) or (last.last_error if last else None)
            if not wanted.q or mentions(wanted.q, entry.id, error, own):
                fits.add(item.key)
    return [item for item in found if item.key in fits]


def _handler_asked_for(vars: Mapping[bytes, bytes] | None) -> str | None:
    if vars is None:
        return None
    name = vars.get(b"handler", vars.get(b"ud_spool_func"))
    return None if name is None else name.decode(errors="backslashreplace")


def _by_spool(found: Sequence[Found]) -> Iterator[tuple[Listable, list[Found]]]:
    spools = {item.spool.name: item.spool for item in found}
    for name, spool in spools.items():
        yield spool, [item for item in found if item.spool.name == name]


async def _last_runs(spool: Listable, found: Sequence[Found]) -> Mapping[str, TaskSummary]:
    """What the history knows of those that have been run."""
    entries = [
        item.item.entry
        for item in found
        if state_of(item.item) in (TaskState.HELD, TaskState.DEAD) or spool.backlog.attempts(item.item.entry.id)
    ]
    return await spool.ledger.last_runs([(entry.id, entry.order[0] / 1e6) for entry in entries])


async def _described(found: Sequence[Found]) -> list[TaskSummary]:
    """These tasks as rows of a list, with what the history knows of them."""
    summaries = {}
    for spool, items in _by_spool(found):
        runs = await _last_runs(spool, items)
        for item in items:
            summaries[item.key] = summary_of(spool, item.item, runs.get(item.item.entry.id))
    return [summaries[item.key] for item in found]


# Finished tasks


class _Step(NamedTuple):
    """A task in the merged history of several spools, or how far the history of one of them was looked at."""

    ended_at: float
    spool: str
    row: int
    task: TaskSummary | None


async def _finished(
    spools: Sequence[Listable], query: TaskQuery, limit: int, rows: Mapping[str, int]
) -> tuple[list[TaskSummary], dict[str, int] | None]:
    """The next tasks that are done or cancelled, and behind which rows to go on; None: there are no more."""
    descending = query.order == "desc"
    ways: list[list[_Step]] = []
    for spool in spools:
        stretch = await spool.ledger.search(
            query.filter,
            descending=descending,
            limit=limit + 1,
            after=rows.get(spool.name),
            rows=max(1, ROWS // len(spools)),
        )
        way = [_Step(task.finished_at or 0.0, spool.name, row, task) for row, task in stretch.found]
        if not stretch.is_last:
            way.append(_Step(stretch.ended_at, spool.name, stretch.behind, None))
        ways.append(way)
    # Merged, not sorted: each history's rows stay in their order, which is not quite that of the times in them. Else
    # the next page, which goes on behind the last row of this one, would leave some out.
    behind = dict(rows)
    tasks: list[TaskSummary] = []
    for step in heapq.merge(*ways, key=_ended_at, reverse=descending):
        # Where the history of a spool was not looked at to its end, it is not known what comes next in all of them.
        if step.task is None or len(tasks) == limit:
            break
        tasks.append(replace(step.task, spool=step.spool))
        behind[step.spool] = step.row
    else:
        return tasks, None
    for way in ways:
        if way and way[-1].task is None and (len(way) == 1 or behind.get(way[-2].spool) == way[-2].row):
            behind[way[-1].spool] = way[-1].row
    return tasks, behind


def _ended_at(step: _Step) -> float:
    return step.ended_at
