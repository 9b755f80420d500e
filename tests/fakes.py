"""Stand-ins for the parts next door: they keep the same promises in memory."""

from __future__ import annotations

import itertools
import math
from collections.abc import AsyncGenerator, Callable, Collection, Mapping, Sequence

import trio

from trispool import spoolfile
from trispool.errors import SpoolUnavailable, TaskRefused, TrispoolError
from trispool.packet import decode_vars
from trispool.store import Aside, Change, Claim, Shelf
from trispool.task import AttemptRow, Entry, NewTask, Retrying, Task, TaskState


class MemoryStore:
    """A store whose claims carry the task, as a database's do."""

    directory = None
    problem = None

    def __init__(self) -> None:
        self.tasks: dict[str, tuple[Entry, NewTask]] = {}
        self.claimed: set[str] = set()
        self.aside: dict[str, tuple[Entry, NewTask]] = {}
        self.on_hold: dict[str, tuple[Entry, NewTask]] = {}
        self.unavailable: str | None = None
        self.unchanged = False
        self._counter = itertools.count(1)
        self._send, self._receive = trio.open_memory_channel[Sequence[Change] | None](math.inf)

    async def add(self, tasks: Sequence[NewTask]) -> Sequence[Entry | TrispoolError]:
        await trio.lowlevel.checkpoint()
        if self.unavailable is not None:
            return [SpoolUnavailable(self.unavailable)] * len(tasks)
        taken = TaskRefused("there is a task of that id already", status=409)
        return [taken if task.id in self.tasks else self.put(task) for task in tasks]

    def put(self, task: NewTask) -> Entry:
        counter = next(self._counter)
        name = task.id or spoolfile.new_name("memory", 1, counter, 0, 1_700_000_000, counter)
        entry = Entry(name, name, task.at or 0.0, task.priority, spoolfile.order_of(name, 0.0))
        self.tasks[name] = (entry, task)
        return entry

    def put_by_other(self, task: NewTask) -> Entry:
        """Somebody else puts a task there, and the watch tells."""
        entry = self.put(task)
        self._send.send_nowait([Change(entry.ref, entry)])
        return entry

    def lose_events(self) -> None:
        self._send.send_nowait(None)

    async def is_unchanged(self) -> bool:
        await trio.lowlevel.checkpoint()
        return self.unchanged and self.unavailable is None

    async def scan(
        self, unknown: Callable[[Sequence[str]], Sequence[str]] | None = None
    ) -> AsyncGenerator[Sequence[Entry], None]:
        await trio.lowlevel.checkpoint()
        if self.unavailable is not None:
            raise SpoolUnavailable(self.unavailable)
        entries = [entry for entry, _ in self.tasks.values()]
        for start in range(0, len(entries), 3):
            part = entries[start : start + 3]
            new = None if unknown is None else unknown([entry.ref for entry in part])
            yield part if new is None else [entry for entry in part if entry.ref in new]
            await trio.lowlevel.checkpoint()

    async def watch(self) -> AsyncGenerator[Sequence[Change] | None, None]:
        yield None
        async for changes in self._receive:
            yield changes

    async def claim(self, entries: Sequence[Entry]) -> Sequence[Claim]:
        await trio.lowlevel.checkpoint()
        claims = []
        for entry in entries:
            if entry.ref in self.tasks and entry.ref not in self.claimed:
                self.claimed.add(entry.ref)
                task = self.tasks[entry.ref][1]
                claims.append(Claim(entry.id, entry.ref, (task.payload, task.body)))
        return claims

    async def finish(self, done: Sequence[Claim]) -> None:
        await trio.lowlevel.checkpoint()
        for claim in done:
            self.claimed.discard(claim.ref)
            self.tasks.pop(claim.ref, None)

    async def release(self, claims: Sequence[Claim]) -> None:
        await trio.lowlevel.checkpoint()
        self.claimed.difference_update(claim.ref for claim in claims)

    async def set_aside(self, entry: Entry) -> bool:
        return await self._move(entry, self.aside, f"dead/{entry.id}") is not None

    async def hold(self, entry: Entry) -> Entry | None:
        if entry.ref in self.claimed:
            return None
        return await self._move(entry, self.on_hold, f"held/{entry.id}")

    async def restore(self, entry: Entry, at: float | None = None) -> Entry | None:
        shelf = self.on_hold if entry.ref.startswith("held/") else self.aside
        return await self._move(entry, self.tasks, entry.id, at=at, source=shelf)

    async def reschedule(self, entry: Entry, at: float) -> Entry | None:
        if entry.ref in self.claimed:
            return None
        return await self._move(entry, self.tasks, entry.ref, at=at)

    async def remove(self, entry: Entry) -> Task | None:
        task = await self.get(entry.ref, body_limit=0)
        if task is None or entry.ref in self.claimed:
            return None
        del self._place_of(entry.ref)[entry.id]
        return task

    async def _move(
        self,
        entry: Entry,
        target: dict[str, tuple[Entry, NewTask]],
        ref: str,
        *,
        at: float | None = None,
        source: dict[str, tuple[Entry, NewTask]] | None = None,
    ) -> Entry | None:
        await trio.lowlevel.checkpoint()
        if self.unavailable is not None:
            raise SpoolUnavailable(self.unavailable)
        found = (self.tasks if source is None else source).pop(entry.id, None)
        if found is None:
            return None
        self.claimed.discard(entry.ref)
        moved = found[0]._replace(ref=ref, at=found[0].at if at is None else at)
        target[entry.id] = (moved, found[1])
        return moved

    @property
    def dead_count(self) -> int:
        return len(self.aside)

    @property
    def held_count(self) -> int:
        return len(self.on_hold)

    async def dead(self) -> Shelf:
        await trio.lowlevel.checkpoint()
        return Shelf(entry for entry, _ in self.aside.values())

    async def held(self) -> Shelf:
        await trio.lowlevel.checkpoint()
        return Shelf(entry for entry, _ in self.on_hold.values())

    async def held_among(self, task_ids: Collection[str]) -> Collection[str]:
        await trio.lowlevel.checkpoint()
        return [task_id for task_id in task_ids if task_id in self.on_hold]

    async def lying(self, task_id: str) -> Aside | None:
        await trio.lowlevel.checkpoint()
        for state, shelf in ((TaskState.HELD, self.on_hold), (TaskState.DEAD, self.aside)):
            if task_id in shelf:
                return Aside(state, shelf[task_id][0])
        return None

    async def get(self, ref: str, *, body_limit: int | None = None) -> Task | None:
        await trio.lowlevel.checkpoint()
        found = self._place_of(ref).get(ref.rpartition("/")[2])
        if found is None:
            return None
        entry, task = found
        return Task(
            entry.id,
            decode_vars(task.payload),
            task.body[:body_limit],
            entry.at,
            task.priority,
            enqueued_at=entry.order[0] / 1e6,
        )

    async def vars_of(self, refs: Sequence[str]) -> Sequence[Mapping[bytes, bytes] | None]:
        found = [await self.get(ref, body_limit=0) for ref in refs]
        return [task and task.vars for task in found]

    def _place_of(self, ref: str) -> dict[str, tuple[Entry, NewTask]]:
        return {"held": self.on_hold, "dead": self.aside}.get(ref.partition("/")[0], self.tasks)


class MemoryHistory:
    """Keeps what the ledger would write."""

    def __init__(self) -> None:
        self.rows: list[AttemptRow] = []
        self.retrying: dict[str, Retrying] = {}

    def record(self, *rows: AttemptRow) -> None:
        self.rows += rows

    def remember(self, retrying: Retrying) -> None:
        self.retrying[retrying.task] = retrying

    def forget(self, task_id: str) -> None:
        self.retrying.pop(task_id, None)
