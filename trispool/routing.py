"""Which spool a task goes to, and into it: what sockets, HTTP and the command line enqueue comes through here."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

import trio

from trispool.errors import TaskRefused, TrispoolError
from trispool.task import Accepted, Entry

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from trispool.operating import OnceKey
    from trispool.state import Once
    from trispool.store import SpoolStore
    from trispool.task import NewTask

__all__ = ["Receiver", "Router"]


class Receiver(Protocol):
    """A spool, as far as enqueuing is concerned; see `trispool.livespool.LiveSpool`."""

    @property
    def name(self) -> str: ...
    @property
    def store(self) -> SpoolStore: ...
    async def enqueue(self, tasks: Sequence[NewTask]) -> Sequence[Entry | TrispoolError]: ...
    async def known(self, ids: Sequence[str]) -> Collection[str]: ...


AnyReceiver = TypeVar("AnyReceiver", bound=Receiver)


class Router(Generic[AnyReceiver]):
    """See the module and `trispool.control.Control`.

    Args:
        spools: At least one; the first takes the tasks that name none.
        once: Remembers idempotency keys.
    """

    def __init__(self, spools: Sequence[AnyReceiver], once: Once) -> None:
        self._spools = {spool.name: spool for spool in spools}
        self._by_directory = {spool.store.directory: spool for spool in spools if spool.store.directory}
        self._first = spools[0]
        self._once = once

    async def enqueue(
        self, tasks: Sequence[NewTask], *, default_spool: str | None = None
    ) -> Sequence[Accepted | TrispoolError]:
        """See `Control.enqueue`."""
        if default_spool is None and not any(task.spool for task in tasks):  # most are so
            name = self._first.name
            return [
                Accepted(result.id, name, task.at) if isinstance(result, Entry) else result
                for task, result in zip(tasks, await self._first.enqueue(tasks), strict=True)
            ]
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

    async def enqueue_once(
        self, key: OnceKey, tasks: Sequence[NewTask], *, default_spool: str | None = None
    ) -> tuple[Sequence[Accepted | TrispoolError], bool]:
        """See `Control.enqueue_once`."""
        return await self._once.enqueue(
            key,
            tasks,
            spool_of=lambda task: self._route(task.spool, default_spool).name,
            enqueue=self.enqueue,
            exists=lambda name, ids: self.named(name).known(ids),
        )

    def named(self, name: str) -> AnyReceiver:
        """The spool of that name.

        Raises:
            TaskRefused: There is none (status 404).
        """
        try:
            return self._spools[name]
        except KeyError:
            raise TaskRefused(f"there is no spool {name!r}", status=404) from None

    def _route(self, asked: str | None, default: str | None) -> AnyReceiver:
        if asked is None:
            return self._first if default is None else self.named(default)
        if asked in self._spools:
            return self._spools[asked]
        spool = self._by_directory.get(os.path.normpath(asked))
        if spool is None:
            raise TaskRefused(f"spooler={asked!r}: there is no spool of that name or directory", status=404)
        return spool
