"""`Control` over the spools of this service: what its faces may see and do."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from typing import TYPE_CHECKING, Final, Literal, Protocol

import trio

from trispool.control import Health, Page, SpoolStatus, TaskDetail, TaskSummary
from trispool.errors import TaskNotFound, TaskRefused, TrispoolError
from trispool.listing import Listable, list_tasks, summary_of
from trispool.settings import SHORTEST_FREQUENCY
from trispool.task import Accepted, Entry, NewTask, Task, TaskState

if TYPE_CHECKING:
    from collections.abc import Sequence


__all__ = ["Controller", "ManagedSpool"]


MAX_SHOWN: Final = 64 * 1024 * 1024
"""Bytes of a body that are read into memory to be looked at; files that others drop may be of any size."""


class ManagedSpool(Listable, Protocol):
    """One spool of the service; see `trispool.livespool.LiveSpool`."""

    async def enqueue(self, tasks: Sequence[NewTask]) -> Sequence[Entry | TrispoolError]: ...
    async def scan_now(self) -> None: ...
    def set_frequency(self, seconds: float) -> None: ...
    def pause(self) -> None: ...
    def resume(self) -> None: ...
    def status(self) -> SpoolStatus: ...


class Controller:
    """See `trispool.control.Control`.

    Args:
        spools: At least one; the first takes the tasks that name none.
    """

    def __init__(self, spools: Sequence[ManagedSpool]) -> None:
        self._spools = {spool.name: spool for spool in spools}
        self._by_directory = {spool.store.directory: spool for spool in spools if spool.store.directory}
        self._first = spools[0]

    async def enqueue(
        self, tasks: Sequence[NewTask], *, default_spool: str | None = None
    ) -> Sequence[Accepted | TrispoolError]:
        """See `Control.enqueue`."""
        results: list[Accepted | TrispoolError | None] = [None] * len(tasks)
        wanted: dict[str, list[int]] = {}
        for number, task in enumerate(tasks):
            try:
                spool = self._route(task.spool, default_spool)
            except TaskRefused as error:
                results[number] = error
            else:
                wanted.setdefault(spool.name, []).append(number)

        async def enqueue_to(name: str, numbers: list[int]) -> None:
            kept = await self._spools[name].enqueue([tasks[number] for number in numbers])
            for number, result in zip(numbers, kept, strict=True):
                if isinstance(result, Entry):
                    results[number] = Accepted(result.id, name, tasks[number].at)
                else:
                    results[number] = result

        if len(wanted) == 1:
            await enqueue_to(*next(iter(wanted.items())))
        else:
            async with trio.open_nursery() as nursery:
                for name, numbers in wanted.items():
                    nursery.start_soon(enqueue_to, name, numbers)
        return [result for result in results if result is not None]

    def _route(self, asked: str | None, default: str | None) -> ManagedSpool:
        if asked is None:
            return self._first if default is None else self._named(default)
        if asked in self._spools:
            return self._spools[asked]
        spool = self._by_directory.get(os.path.normpath(asked))
        if spool is None:
            raise TaskRefused(f"spooler={asked!r}: there is no spool of that name or directory", status=404)
        return spool

    def _named(self, name: str) -> ManagedSpool:
        try:
            return self._spools[name]
        except KeyError:
            raise TaskRefused(f"there is no spool {name!r}", status=404) from None

    def spools(self) -> Sequence[SpoolStatus]:
        """See `Control.spools`."""
        return [spool.status() for spool in self._spools.values()]

    def spool(self, name: str) -> SpoolStatus:
        """See `Control.spool`."""
        return self._named(name).status()

    def set_frequency(self, name: str, seconds: float) -> None:
        """See `Control.set_frequency`."""
        spool = self._named(name)
        if not (math.isfinite(seconds) and seconds >= SHORTEST_FREQUENCY):
            raise TaskRefused(f"frequency={seconds!r}: {SHORTEST_FREQUENCY} seconds or more are expected")
        spool.set_frequency(seconds)

    def pause(self, name: str) -> None:
        """See `Control.pause`."""
        self._named(name).pause()

    def resume(self, name: str) -> None:
        """See `Control.resume`."""
        self._named(name).resume()

    async def scan(self, name: str) -> None:
        """See `Control.scan`."""
        await self._named(name).scan_now()

    async def tasks(
        self,
        *,
        spool: str | None = None,
        state: TaskState | None = None,
        q: str | None = None,
        order: Literal["asc", "desc"] = "asc",
        limit: int = 50,
        cursor: str | None = None,
    ) -> Page:
        """See `Control.tasks`."""
        spools = list(self._spools.values()) if spool is None else [self._named(spool)]
        return await list_tasks(spools, state=state, q=q, order=order, limit=limit, cursor=cursor)

    async def task(self, task_id: str) -> TaskDetail:
        """See `Control.task`."""
        for spool in self._spools.values():
            found = await self._find(spool, task_id)
            if found is not None:
                summary, task = found
                attempts = await spool.ledger.attempts(task_id)
                if task is None:
                    return TaskDetail(summary, None, None, attempts)
                if len(task.body) > MAX_SHOWN:
                    raise TaskRefused("the body is too large to be shown; its file is in the spool", status=413)
                return TaskDetail(summary, task.vars, task.body, attempts)
        raise TaskNotFound(f"there is no task {task_id!r}")

    async def _find(self, spool: ManagedSpool, task_id: str) -> tuple[TaskSummary, Task | None] | None:
        item = spool.backlog.find(task_id)
        if item is not None:
            return summary_of(spool, item), await spool.store.get(item.entry.ref, body_limit=MAX_SHOWN + 1)
        last = await spool.ledger.last(task_id)
        for entry in await spool.store.dead():
            if entry.id == task_id:
                last = last or TaskSummary(task_id, "", TaskState.DEAD, entry.at, None, entry.order[0] / 1e6)
                dead = replace(last, spool=spool.name, state=TaskState.DEAD)
                return dead, await spool.store.get(entry.ref, body_limit=MAX_SHOWN + 1)
        if last is None:
            return None
        return replace(last, spool=spool.name), None

    def health(self) -> Health:
        """See `Control.health`."""
        problems = [f"{status.name}: {status.problem}" for status in self.spools() if status.problem]
        return Health(not problems, problems)
