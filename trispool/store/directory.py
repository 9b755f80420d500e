"""The directory store: uWSGI's spool files, through `trispool.spooldir` in threads.

Tasks are kept in one of two ways. With write-behind (`trispool.store.behind`) they are rows of a database first, and
get files only if they wait. Without it, and for those for which that is not meant, they are files at once: enqueues
that wait at the same time then share one trip to the writing thread and, with `fsync`, one fsync of the directory.
"""

from __future__ import annotations

import contextlib
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final, TypeVar

import structlog
import trio

from trispool.claimed import Unclaimable
from trispool.errors import SpoolUnavailable, TaskRefused, TrispoolError
from trispool.packet import decode_vars
from trispool.spooldir import SpoolDirectory
from trispool.spoolscan import Stamps, refs
from trispool.store import Aside, Change, Claim, Shelf
from trispool.store.behind import open_write_behind
from trispool.store.shelves import Shelves
from trispool.store.tenure import rescue_rows
from trispool.store.watch import DirectoryWatch
from trispool.task import Entry, NewTask, Task

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Generator, Mapping, Sequence

    from trispool.incomingfile import IncomingRow
    from trispool.store.behind import WriteBehind
    from trispool.store.tenure import Database

__all__ = ["DirectoryStore", "open_directory_store"]

MAX_BATCH: Final = 256
"""Tasks written in one go. With more, the first of them would wait longer for its answer than the batch saves."""

FILES_A_CALL: Final = 256
"""Files; on a slow disk, 10 ms for each, they take it 3 s."""

ROWS_A_CALL: Final = 10_000
"""Rows of the database, some 50 ms."""

ROWS_CHUNK: Final = 256
"""Tasks without a file, that a scan hands over in one go."""

NAMES_PAUSE: Final = 0.002
"""Seconds between two parts of a scan by names, which takes 0.5 ms for each: nobody is in a hurry for it."""

MAX_WAITING: Final = 4096
"""Calls of `add` that may wait; further ones wait to be let in."""

_tuple: Final = tuple.__new__
_log = structlog.get_logger()

T = TypeVar("T")


class _Batch:
    """The tasks of one call of `add`, and what became of them."""

    __slots__ = ("done", "is_left", "results", "tasks")

    def __init__(self, tasks: Sequence[NewTask]) -> None:
        self.tasks = tasks
        self.results: list[Entry | TrispoolError] = []
        self.done = trio.Event()
        self.is_left = False  # by its caller


@asynccontextmanager
async def open_directory_store(path: str, *, fsync: bool) -> AsyncIterator[DirectoryStore]:
    """The store of one spool directory, while it is open.

    Args:
        path: The spool directory; made if it is missing.
        fsync: Whether `add` returns only when the tasks are on disk.

    Raises:
        OSError: The directory cannot be made or opened.
    """
    opened = await trio.to_thread.run_sync(lambda: SpoolDirectory(path, fsync=fsync))
    try:
        await trio.to_thread.run_sync(opened.clean)
        async with trio.open_nursery() as nursery:
            store = DirectoryStore(opened, fsync=fsync)
            nursery.start_soon(store.run_writer)
            try:
                yield store
            finally:
                nursery.cancel_scope.cancel()
    finally:
        opened.close()


class DirectoryStore:
    """See the module and `trispool.store.SpoolStore`. Made by `open_directory_store`."""

    def __init__(self, opened: SpoolDirectory, *, fsync: bool) -> None:
        self._opened = opened
        self._fsync = fsync
        self._behind: WriteBehind | None = None
        self._waiting: list[_Batch] = []
        self._work = trio.Event()
        self._room = trio.lowlevel.ParkingLot()
        self._closing = False
        # Writing has a thread of its own, so that a scan of a million files does not hold up an enqueue.
        self._write_limiter = trio.CapacityLimiter(1)
        self._read_limiter = trio.CapacityLimiter(2)
        self._watch = DirectoryWatch(opened, self._read_limiter)
        self._shelves = Shelves(opened, self._read_limiter)
        self._foreign: dict[str, str] = {}
        self._replaced = 0
        self._stamps = Stamps(opened.path)

    @property
    def directory(self) -> str:
        """The absolute spool directory."""
        return self._opened.path

    @property
    def replaced(self) -> int:
        """How often the directory was found to be another one."""
        return self._opened.replaced

    @property
    def problem(self) -> str | None:
        """Why it takes no more tasks, or None."""
        return self._opened.broken or (self._behind.problem if self._behind is not None else None)

    @asynccontextmanager
    async def writing_behind(self, database: Database, *, accepts: bool = True) -> AsyncIterator[None]:
        """Keep new tasks in a database while this is open, and what waits there as files at its end.

        Args:
            database: That of the directory; open until this has ended.
            accepts: Whether to keep new tasks there, or only to write out what a crash has left.

        Raises:
            OSError: What a crash has left cannot be read.
        """
        try:
            async with open_write_behind(
                self._opened, database, accepts=accepts, fsync=self._fsync, recovered=self._watch.miss
            ) as behind:
                self._behind = behind
                yield
        finally:
            self._behind = None

    def rescue(self, rows: Sequence[IncomingRow]) -> None:
        """Write the tasks of a database that is damaged to files, unless another service has them. Blocking.

        Raises:
            OSError: They could not be written.
        """
        rescue_rows(self._opened, rows)

    @property
    def at_once(self) -> int:
        """How many tasks to `add` in one call at most."""
        return FILES_A_CALL if self._behind is None or not self._behind.accepts else ROWS_A_CALL

    async def add(self, tasks: Sequence[NewTask]) -> Sequence[Entry | TrispoolError]:
        """See `SpoolStore.add`. The tasks of a caller that is cancelled while it waits are kept all the same."""
        behind = self._behind
        if behind is None or not tasks:
            return await self._write_through(tasks)
        if behind.takes(tasks):
            return await behind.add(tasks)
        taken = {task.id for task in tasks if task.id is not None and task.id in behind.rows}
        written = iter(await self._write_through([task for task in tasks if task.id not in taken]))
        return [
            TaskRefused(f"there is a task {task.id!r} already", status=409) if task.id in taken else next(written)
            for task in tasks
        ]

    async def _write_through(self, tasks: Sequence[NewTask]) -> Sequence[Entry | TrispoolError]:
        while len(self._waiting) >= MAX_WAITING and not self._closing:
            await self._room.park()
        if self._closing:
            return [SpoolUnavailable("the spool is closing")] * len(tasks)
        batch = _Batch(tasks)
        self._waiting.append(batch)
        self._work.set()
        try:
            await batch.done.wait()
        except trio.Cancelled:
            batch.is_left = True
            if batch.done.is_set():
                self._watch.miss()
            raise
        return batch.results

    async def run_writer(self) -> None:
        """Write what `add` was given, until cancelled."""
        try:
            while True:
                await self._work.wait()
                self._work = trio.Event()
                while self._waiting:
                    await self._write_some()
        finally:
            self._closing = True
            self._room.unpark_all()
            for batch in self._waiting:
                batch.results = [SpoolUnavailable("the spool is closing")] * len(batch.tasks)
                batch.done.set()
            self._waiting.clear()

    async def _write_some(self) -> None:
        count, size = 0, 0
        while count < len(self._waiting) and size < MAX_BATCH:
            size += len(self._waiting[count].tasks)
            count += 1
        batches = self._waiting[:count]
        tasks = [task for batch in batches for task in batch.tasks]
        # Once begun the thread cannot be cancelled; before that the batches still wait and get their refusal.
        results = iter(await trio.to_thread.run_sync(self._opened.add, tasks, limiter=self._write_limiter))
        del self._waiting[:count]
        self._room.unpark_all()
        for batch in batches:
            batch.results = [next(results) for _ in batch.tasks]
            batch.done.set()
            if batch.is_left:
                self._watch.miss()  # nobody else knows of them

    async def scan(
        self, unknown: Callable[[Sequence[str]], Sequence[str]] | None = None
    ) -> AsyncGenerator[Sequence[Entry], None]:
        """See `SpoolStore.scan`. What lies there that is none of ours is left alone and said once."""
        try:
            await trio.to_thread.run_sync(self._opened.follow, limiter=self._read_limiter)
        except OSError as error:
            raise SpoolUnavailable(f"{self.directory} cannot be read: {error.strerror or error}") from error
        if self._opened.replaced != self._replaced:
            self._replaced = self._opened.replaced
            _log.warning("directory_replaced", directory=self.directory)
            await self._watch.renew()
        if self._behind is not None:
            # First: one that gets its file now is then found below, or has been found here.
            for entries in self._behind.rows.entries(ROWS_CHUNK):
                yield entries
                await trio.lowlevel.checkpoint()
        if unknown is not None:
            with contextlib.closing(refs(self.directory, self._stamps)) as parts:
                while (part := await self._next_chunk(parts)) is not None:
                    if new := unknown(part):
                        yield await self._look(new)
                    # Who starts a task meanwhile has to wait for one part at most, and mostly for none.
                    await trio.sleep(NAMES_PAUSE)
            return
        foreign: dict[str, str] = {}
        with contextlib.closing(self._opened.scan(foreign, self._stamps)) as chunks:
            while (chunk := await self._next_chunk(chunks)) is not None:
                yield chunk
        for name, what in foreign.items():
            if name not in self._foreign:
                _log.warning("foreign_file", directory=self.directory, name=name, reason=what)
        self._foreign = foreign

    async def _look(self, refs: Sequence[str]) -> Sequence[Entry]:
        found = await trio.to_thread.run_sync(lambda: [*map(self._opened.look, refs)], limiter=self._read_limiter)
        return [entry for entry in found if entry is not None]

    async def is_unchanged(self) -> bool:
        """See `SpoolStore.is_unchanged`."""
        with contextlib.suppress(OSError):
            if not self._watch.sees_all:
                return await trio.to_thread.run_sync(self._stamps.are_unchanged, limiter=self._read_limiter)
            if await self._watch.is_in_place():
                return self._opened.replaced == self._replaced
            await self._watch.renew()
        return False

    async def _next_chunk(self, chunks: Generator[T, None, None]) -> T | None:
        try:
            return await trio.to_thread.run_sync(next, chunks, None, limiter=self._read_limiter)
        except OSError as error:
            raise SpoolUnavailable(f"{self.directory} cannot be read: {error.strerror or error}") from error

    def watch(self) -> AsyncGenerator[Sequence[Change] | None, None]:
        """See `SpoolStore.watch`."""
        return self._watch.changes()

    async def claim(self, entries: Sequence[Entry]) -> Sequence[Claim]:
        """See `SpoolStore.claim`: the workers claim files, so that of one is only a path and costs nothing here."""
        if self._behind is not None and self._behind.rows:
            return await self._behind.claim(entries)
        return [_tuple(Claim, (entry.id, entry.ref, None)) for entry in entries]

    async def finish(self, done: Sequence[Claim]) -> None:
        """See `SpoolStore.finish`: if it had a file, the worker has removed that before it reported."""
        if self._behind is not None:
            self._behind.finish(done)

    async def release(self, claims: Sequence[Claim]) -> None:
        """See `SpoolStore.release`: the lock on a file went with the worker's descriptor."""
        if self._behind is not None:
            self._behind.release(claims)

    async def _as_file(self, ref: str, *, ended: bool = False) -> bool:
        """See `trispool.store.outgoing.Outgoing.as_file`."""
        return self._behind is None or await self._behind.as_file(ref, ended=ended)

    # What lies aside, and what an operator does

    @property
    def held_count(self) -> int:
        """See `SpoolStore.held_count`."""
        return self._shelves.held_count

    @property
    def dead_count(self) -> int:
        """See `SpoolStore.dead_count`."""
        return self._shelves.dead_count

    async def held(self) -> Shelf:
        """See `SpoolStore.held`."""
        return await self._shelves.held()

    async def dead(self) -> Shelf:
        """See `SpoolStore.dead`."""
        return await self._shelves.dead()

    async def lying(self, task_id: str) -> Aside | None:
        """See `SpoolStore.lying`."""
        return await self._shelves.lying(task_id)

    async def held_among(self, task_ids: Collection[str]) -> Collection[str]:
        """See `SpoolStore.held_among`."""
        return await self._shelves.held_among(task_ids)

    async def set_aside(self, entry: Entry) -> bool:
        """See `SpoolStore.set_aside`."""
        return await self._as_file(entry.ref, ended=True) and await self._shelves.set_aside(entry)

    async def hold(self, entry: Entry) -> Entry | None:
        """See `SpoolStore.hold`."""
        return await self._shelves.hold(entry) if await self._as_file(entry.ref) else None

    async def restore(self, entry: Entry, at: float | None = None) -> Entry | None:
        """See `SpoolStore.restore`."""
        return await self._shelves.restore(entry, at)

    async def reschedule(self, entry: Entry, at: float) -> Entry | None:
        """See `SpoolStore.reschedule`."""
        return await self._shelves.reschedule(entry, at) if await self._as_file(entry.ref) else None

    async def remove(self, entry: Entry) -> Task | None:
        """See `SpoolStore.remove`."""
        return await self._shelves.remove(entry) if await self._as_file(entry.ref) else None

    async def get(self, ref: str, *, body_limit: int | None = None) -> Task | None:
        """See `SpoolStore.get`."""
        if self._behind is not None and (kept := self._behind.rows.at(ref)) is not None:
            return kept.task(body_limit)

        def read() -> Task | None:
            entry = self._opened.look(ref)
            try:
                vars_, body = self._opened.read(ref, body_limit)
            except Unclaimable:
                return None
            if entry is None:
                return Task(ref.rpartition("/")[2], vars_, body)
            return Task(entry.id, vars_, body, entry.at, entry.priority, enqueued_at=entry.order[0] / 1e6)

        return await trio.to_thread.run_sync(read, limiter=self._read_limiter)

    async def vars_of(self, refs: Sequence[str]) -> Sequence[Mapping[bytes, bytes] | None]:
        """See `SpoolStore.vars_of`."""
        payloads = {} if self._behind is None else self._behind.rows.payloads(refs)

        def read(ref: str) -> Mapping[bytes, bytes] | None:
            if ref in payloads:
                return decode_vars(payloads[ref])
            try:
                return self._opened.read(ref, 0)[0]
            except Unclaimable:
                return None

        return await trio.to_thread.run_sync(lambda: [read(ref) for ref in refs], limiter=self._read_limiter)
