"""Stand-ins for the parts next door: they keep the same promises in memory."""

from __future__ import annotations

import itertools
import math
from collections.abc import AsyncGenerator, Sequence

import trio

from trispool import spoolfile
from trispool.errors import SpoolUnavailable, TaskRefused, TrispoolError
from trispool.packet import decode_vars
from trispool.store import Change, Claim
from trispool.task import AttemptRow, Entry, NewTask, Retrying, Task


class MemoryStore:
    """A store whose claims carry the task, as a database's do."""

    directory = None
    problem = None

    def __init__(self) -> None:
        self.tasks: dict[str, tuple[Entry, NewTask]] = {}
        self.claimed: set[str] = set()
        self.aside: dict[str, tuple[Entry, NewTask]] = {}
        self.unavailable: str | None = None
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

    async def scan(self) -> AsyncGenerator[Sequence[Entry], None]:
        await trio.lowlevel.checkpoint()
        if self.unavailable is not None:
            raise SpoolUnavailable(self.unavailable)
        entries = [entry for entry, _ in self.tasks.values()]
        for start in range(0, len(entries), 3):
            yield entries[start : start + 3]
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
        await trio.lowlevel.checkpoint()
        if entry.ref not in self.tasks:
            return False
        self.claimed.discard(entry.ref)
        self.aside[entry.id] = self.tasks.pop(entry.ref)
        return True

    async def dead(self) -> Sequence[Entry]:
        await trio.lowlevel.checkpoint()
        return [entry for entry, _ in self.aside.values()]

    async def get(self, ref: str, *, body_limit: int | None = None) -> Task | None:
        await trio.lowlevel.checkpoint()
        if ref not in self.tasks:
            return None
        entry, task = self.tasks[ref]
        return Task(
            entry.id,
            decode_vars(task.payload),
            task.body[:body_limit],
            task.at,
            task.priority,
            enqueued_at=entry.order[0] / 1e6,
        )


class MemoryHistory:
    """Keeps what the ledger would write."""

    def __init__(self) -> None:
        self.rows: list[AttemptRow] = []
        self.retrying: dict[str, Retrying] = {}

    def record(self, row: AttemptRow) -> None:
        self.rows.append(row)

    def remember(self, retrying: Retrying) -> None:
        self.retrying[retrying.task] = retrying

    def forget(self, task_id: str) -> None:
        self.retrying.pop(task_id, None)
