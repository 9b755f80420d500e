"""The seam between the spooler and where tasks are kept.

A store keeps tasks; it knows nothing of workers, retries or time. What waits in it is described by `Entry`, small
enough that a million of them fit in memory; the schedule holds those. Every store passes `tests/contract/`.

A claim is a promise that one owner at most runs a task. `claim` gives a `Claim` that can be sent to a worker process,
which resolves it with `trispool.worker.claims`. For a file it is only the path, and the *worker* opens and locks it:
the kernel then frees the lock when the worker dies, and the file work of a task (19 µs) is spread over the workers
instead of being the service's bottleneck. For a task that is no file, or not yet, it carries the task.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, overload

from trispool.task import Entry

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Collection, Iterable, Iterator, Mapping

    from trispool.errors import TrispoolError
    from trispool.task import NewTask, Task, TaskState

__all__ = ["Aside", "Change", "Claim", "Shelf", "SpoolStore"]


class Change(NamedTuple):
    """What a watch saw of one task.

    Attributes:
        ref: The entry's `ref`.
        entry: The task as it is now, or None if it is gone.
    """

    ref: str
    entry: Entry | None


class Claim(NamedTuple):
    """One task for one worker, as it goes over the wire.

    Attributes:
        id: The task's id.
        ref: The entry's `ref`.
        content: (encoded vars, body), or None if the worker claims the file at `ref` itself.
    """

    id: str
    ref: str
    content: tuple[bytes, bytes] | None = None


_RUN: Final = 1000
"""Tasks that are sorted in one go, some 0.5 ms."""


class Shelf(Sequence[Entry]):
    """Tasks that lie aside, by time of enqueuing. It does not change.

    Args:
        entries: The tasks, in any order.
    """

    def __init__(self, entries: Iterable[Entry] = ()) -> None:
        every = tuple(entries)
        # In parts: sorting a hundred thousand in one go would keep Python's lock for a tenth of a second.
        runs = (sorted(every[start : start + _RUN], key=_by_order) for start in range(0, len(every), _RUN))
        self._entries = [*heapq.merge(*runs, key=_by_order)]

    def changed(self, changes: Iterable[tuple[Entry, bool]]) -> Shelf:
        """A shelf as this one, but that some tasks have come to it (True), or have gone (False)."""
        shelf = Shelf()
        entries = shelf._entries = self._entries.copy()
        for entry, has_come in changes:
            index = bisect_left(entries, _by_order(entry), key=_by_order)
            is_there = index < len(entries) and entries[index].id == entry.id
            entries[index : index + is_there] = [entry] if has_come else []
        return shelf

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries)

    @overload
    def __getitem__(self, index: int) -> Entry: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Entry]: ...
    def __getitem__(self, index: int | slice) -> Entry | Sequence[Entry]:
        return self._entries[index]


def _by_order(entry: Entry) -> tuple[tuple[int, int], str]:
    return entry.order, entry.id


class Aside(NamedTuple):
    """A task that lies aside.

    Attributes:
        state: `TaskState.HELD` or `TaskState.DEAD`.
        entry: The task.
    """

    state: TaskState
    entry: Entry


class SpoolStore(Protocol):
    """Where the tasks of one spool are kept."""

    @property
    def problem(self) -> str | None:
        """Why the store takes no more tasks, or None."""
        ...

    @property
    def directory(self) -> str | None:
        """The absolute spool directory in which workers resolve claims, or None where claims carry their task."""
        ...

    async def add(self, tasks: Sequence[NewTask]) -> Sequence[Entry | TrispoolError]:
        """Keep new tasks, as durably as the spool is configured, and only then return.

        Calls that wait at the same time share one commit. One task's failure is its own result, not the batch's.

        Returns:
            For each task, in order, its entry, or why it was not kept (`TaskRefused` or `SpoolUnavailable`). One whose
            `id` was chosen beforehand and waits there already is refused with status 409.
        """
        ...

    def scan(
        self, unknown: Callable[[Sequence[str]], Sequence[str]] | None = None
    ) -> AsyncGenerator[Sequence[Entry], None]:
        """Look at everything that waits, in chunks of a few hundred entries.

        Args:
            unknown: If given: says which of some tasks, by `ref`, are not known as they are. Only these are looked at.

        Raises:
            SpoolUnavailable: The store cannot be read now.
        """
        ...

    async def is_unchanged(self) -> bool:
        """Whether certainly nothing has come or gone since the last scan but what the watch tells of. Cheap.

        False if the store cannot be read now: the scan will say why.
        """
        ...

    def watch(self) -> AsyncGenerator[Sequence[Change] | None, None]:
        """Changes by others (and by us) as they happen. None: some were lost, a scan is needed. Endless.

        It begins with None: from then on it sees what happens, or knows that it cannot. A watch is a hint that makes
        things quick. What it misses, the next scan finds.
        """
        ...

    async def claim(self, entries: Sequence[Entry]) -> Sequence[Claim]:
        """Claims for those of `entries` that still wait, in order."""
        ...

    async def finish(self, done: Sequence[Claim]) -> None:
        """These ran well: forget them, whatever the worker has already done about them."""
        ...

    async def release(self, claims: Sequence[Claim]) -> None:
        """These wait again."""
        ...

    async def set_aside(self, entry: Entry) -> bool:
        """Keep a task that cannot or must not run where a person finds it.

        Returns:
            False if it is gone, or somebody else is at work on it.

        Raises:
            SpoolUnavailable: It could not be kept there, and waits still.
        """
        ...

    async def dead(self) -> Shelf:
        """What has been set aside. Cheap: looked through only if it has changed, though others change it too.

        Raises:
            SpoolUnavailable: That cannot be read now.
        """
        ...

    async def held(self) -> Shelf:
        """What an operator has told to wait. Cheap, and raises, as `dead`."""
        ...

    async def lying(self, task_id: str) -> Aside | None:
        """One task that is held or was set aside; cheaper than to look for it in all of them. Raises as `dead`."""
        ...

    async def held_among(self, task_ids: Collection[str]) -> Collection[str]:
        """Those of these tasks that are held. Raises as `dead`."""
        ...

    @property
    def dead_count(self) -> int:
        """How many were set aside, as of the last look."""
        ...

    @property
    def held_count(self) -> int:
        """How many are held, as of the last look."""
        ...

    # What an operator does. None: the task is gone, or somebody is at work on it. `SpoolUnavailable`: it could not be
    # done, and is as it was.

    async def hold(self, entry: Entry) -> Entry | None:
        """Take a waiting task out of the way, and keep it.

        Returns:
            It, as it is held.
        """
        ...

    async def restore(self, entry: Entry, at: float | None = None) -> Entry | None:
        """Let a task wait again that is held or was set aside: with its priority, and with its `at` if none is given.

        Args:
            entry: The task, of `held` or `dead`.
            at: Unix seconds from which on it may run.

        Returns:
            It, as it waits.

        Raises:
            TaskRefused: The store cannot hold a time that late.
        """
        ...

    async def reschedule(self, entry: Entry, at: float) -> Entry | None:
        """Give a waiting task another `at`. Arguments, result and errors as of `restore`."""
        ...

    async def remove(self, entry: Entry) -> Task | None:
        """Delete a task that waits, is held or was set aside.

        Returns:
            It, without its body; of one that could not be read without vars.
        """
        ...

    async def get(self, ref: str, *, body_limit: int | None = None) -> Task | None:
        """The waiting task at `ref`, or None if it is gone or unreadable.

        Args:
            ref: The task.
            body_limit: Give so many bytes of its body at most.
        """
        ...

    async def vars_of(self, refs: Sequence[str]) -> Sequence[Mapping[bytes, bytes] | None]:
        """The vars of tasks, wherever they wait, run or lie, in order; None of those that are gone or unreadable.

        It is cheap for a few hundred, some 25 µs each.
        """
        ...
