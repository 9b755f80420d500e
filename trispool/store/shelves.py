"""What lies aside in a spool directory, held or dead: known by heart, and looked at again when it may have changed.

Rules it keeps:

1. What we do ourselves is known at once.
2. What others do (a person may move files) shows in the time stamps of the folders, which are looked at whenever
   somebody asks; only if they have changed is everything read again.
3. Reading a hundred thousand files takes half a second. After that nothing is read for ten times as long.
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

import trio

from trispool.errors import SpoolUnavailable
from trispool.spoolscan import DEAD, HELD, has_changed, lying_in
from trispool.spoolshelves import priority_of
from trispool.store import Aside, Shelf
from trispool.task import Task, TaskState

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from trispool.spooldir import SpoolDirectory
    from trispool.task import Entry

__all__ = ["Shelves"]

REST: Final = 10
"""How much longer to leave a shelf alone than it took to read it."""

MANY: Final = 1000
"""So many changes make it quicker to sort everything than to put each in its place."""

T = TypeVar("T")


class Shelves:
    """Both shelves of a spool directory, and what is done to tasks there and in the spool.

    Args:
        opened: The spool directory.
        limiter: For the threads that work on files.
    """

    def __init__(self, opened: SpoolDirectory, limiter: trio.CapacityLimiter) -> None:
        self._opened = opened
        self._limiter = limiter
        self._held = _Shelf(opened, HELD, limiter)
        self._dead = _Shelf(opened, DEAD, limiter)

    @property
    def held_count(self) -> int:
        """How many tasks are held, as far as is known."""
        return len(self._held.tasks)

    @property
    def dead_count(self) -> int:
        """How many tasks were set aside, as far as is known."""
        return len(self._dead.tasks)

    async def held(self) -> Shelf:
        """See `SpoolStore.held`."""
        return await self._held.all()

    async def dead(self) -> Shelf:
        """See `SpoolStore.dead`."""
        return await self._dead.all()

    async def lying(self, task_id: str) -> Aside | None:
        """See `SpoolStore.lying`."""
        for look in (False, True):
            for state, shelf in ((TaskState.HELD, self._held), (TaskState.DEAD, self._dead)):
                if look:
                    await shelf.look()
                if entry := shelf.tasks.get(task_id):
                    return Aside(state, entry)
        return None

    async def held_among(self, task_ids: Collection[str]) -> Collection[str]:
        """See `SpoolStore.held_among`."""
        await self._held.look()
        return [task_id for task_id in task_ids if task_id in self._held.tasks]

    async def set_aside(self, entry: Entry) -> bool:
        """See `SpoolStore.set_aside`."""
        moved = await self._do(entry, "set aside", lambda: self._opened.set_aside(entry.ref))
        if moved is not None:
            self._dead.add(moved)
        return moved is not None

    async def hold(self, entry: Entry) -> Entry | None:
        """See `SpoolStore.hold`."""
        moved = await self._do(entry, "held", lambda: self._opened.hold(entry.ref))
        if moved is not None:
            self._held.add(moved)
        return moved

    async def restore(self, entry: Entry, at: float | None = None) -> Entry | None:
        """See `SpoolStore.restore`."""
        moved = await self._do(entry, "put back", lambda: self._opened.restore(entry.ref, at))
        await self._taken(entry, is_done=moved is not None)
        return moved

    async def reschedule(self, entry: Entry, at: float) -> Entry | None:
        """See `SpoolStore.reschedule`."""
        return await self._do(entry, "rescheduled", lambda: self._opened.reschedule(entry.ref, at))

    async def remove(self, entry: Entry) -> Task | None:
        """See `SpoolStore.remove`."""
        vars = await self._do(entry, "removed", lambda: self._opened.remove(entry.ref))
        await self._taken(entry, is_done=vars is not None)
        if vars is None:
            return None
        # Where a dead one lies does not tell its priority.
        priority = priority_of(vars) if entry.ref.startswith(f"{DEAD}/") else entry.priority
        return Task(entry.id, vars, b"", entry.at, priority, enqueued_at=entry.order[0] / 1e6)

    async def _taken(self, entry: Entry, *, is_done: bool) -> None:
        for shelf in (self._held, self._dead):
            if shelf.has(entry):
                if is_done:
                    shelf.discard(entry)
                else:
                    # Somebody may have taken it away.
                    await shelf.look()

    async def _do(self, entry: Entry, what: str, work: Callable[[], T]) -> T:
        try:
            return await trio.to_thread.run_sync(work, limiter=self._limiter)
        except OSError as error:
            raise SpoolUnavailable(f"{entry.ref} could not be {what}: {error.strerror or error}") from error


class _Shelf:
    """One of them.

    Attributes:
        tasks: What lies there, by id.
    """

    def __init__(self, opened: SpoolDirectory, place: str, limiter: trio.CapacityLimiter) -> None:
        self.tasks: dict[str, Entry] = {}
        self._opened = opened
        self._place = place
        self._limiter = limiter
        self._looking = trio.Lock()
        self._stamps: Mapping[str, int] | None = None
        self._rested_at = 0.0  # time.monotonic()
        # In order, as of a moment; and what was done since: a task that has come (True) or gone (False).
        self._in_order: Shelf | None = None
        self._since: list[tuple[Entry, bool]] = []
        # What was done while it was being read, which may have come too early or too late for that.
        self._meanwhile: list[tuple[Entry, bool]] = []

    def has(self, entry: Entry) -> bool:
        """Whether this task is known to lie there."""
        known = self.tasks.get(entry.id)
        return known is not None and known.ref == entry.ref

    def add(self, entry: Entry) -> None:
        """We have put this task there."""
        if entry.id in self.tasks:
            self.discard(entry)
        self.tasks[entry.id] = entry
        self._note(entry, has_come=True)

    def discard(self, entry: Entry) -> None:
        """We have taken this task from there."""
        self._note(self.tasks.pop(entry.id), has_come=False)

    def _note(self, entry: Entry, *, has_come: bool) -> None:
        self._since.append((entry, has_come))
        if self._looking.locked():
            self._meanwhile.append((entry, has_come))

    async def look(self) -> None:
        """Find out what others have done.

        Raises:
            SpoolUnavailable: It cannot be read.
        """
        async with self._looking:
            await self._look()

    async def all(self) -> Shelf:
        """What lies there. Raises as `look`."""
        async with self._looking:
            await self._look()
            if self._in_order is None or self._since:
                before, since = self._in_order, self._since
                if before is None or len(since) >= MANY:
                    work = partial(Shelf, tuple(self.tasks.values()))
                else:
                    work = partial(before.changed, since)
                # What is done from now on is put in its place the next time. If this is cancelled, all is sorted then.
                self._in_order, self._since = None, []
                self._in_order = await trio.to_thread.run_sync(work, limiter=self._limiter)
            return self._in_order

    async def _look(self) -> None:
        if time.monotonic() < self._rested_at:
            return
        self._meanwhile = []
        try:
            found = await trio.to_thread.run_sync(self._read, limiter=self._limiter)
        except OSError as error:
            raise SpoolUnavailable(
                f"{self._opened.path}/{self._place} cannot be read: {error.strerror or error}"
            ) from error
        if found is None:
            return
        tasks, self._stamps, seconds = found
        for entry, has_come in self._meanwhile:
            if has_come:
                tasks[entry.id] = entry
            else:
                tasks.pop(entry.id, None)
        self.tasks = tasks
        self._in_order = None
        self._since.clear()
        self._rested_at = time.monotonic() + REST * seconds

    def _read(self) -> tuple[dict[str, Entry], Mapping[str, int], float] | None:
        path = self._opened.path
        if self._stamps is not None and not has_changed(path, self._place, self._stamps):
            return None
        began = time.monotonic()
        entries, stamps = lying_in(path, self._place)
        known, tasks = self.tasks, {}
        for entry in entries:
            # Those that are as they were stay: to free very many of them takes long, and is done in the loop's thread.
            old = known.get(entry.id)
            tasks[entry.id] = old if old == entry and old is not None else entry
        return tasks, stamps, time.monotonic() - began
