"""A spool on which operators act, without worker processes: real store and history, a worker that does as told."""

from __future__ import annotations

import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import trio

from tests.fakes import MemoryStore
from tests.test_dispatcher import FakeWorker, Start
from trispool.actions import Actions
from trispool.dispatcher import Dispatcher, DispatcherSettings
from trispool.ledger import Ledger
from trispool.packet import new_task
from trispool.retry import RetryPolicy
from trispool.scanner import Scanner
from trispool.store.directory import open_directory_store
from trispool.task import Entry, TaskState

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence
    from pathlib import Path

    from trispool.backlog import Backlog, Running
    from trispool.control import Attempt, TaskSummary
    from trispool.operating import Action
    from trispool.store import SpoolStore
    from trispool.task import AttemptRow, Retrying
    from trispool.workforce import Watcher

PATIENCE = 20.0
FREQUENCY = 300.0
LATER = 4_000_000_000.5


class Rig:
    """A spool, its dispatcher's watcher, and the pool that cancels."""

    name = "default"

    def __init__(
        self,
        store: SpoolStore,
        ledger: Ledger,
        policy: RetryPolicy,
        remembered: Mapping[str, Retrying],
        watcher: Watcher | None = None,
    ) -> None:
        self.store: Any = store
        self.ledger = ledger
        self.dispatcher = Dispatcher(
            store,
            ledger,
            DispatcherSettings(self.name, FREQUENCY, policy),
            remembered=remembered,
            watcher=watcher or self,
        )
        self.actions = Actions(self, self.dispatcher, self)
        self.starts: list[Start] = []
        self.told: list[tuple[str, str]] = []
        self.asked_to_cancel: list[str] = []
        self.on_cancel: Callable[[str], bool] = lambda task_id: False
        self._changed = trio.Event()

    @property
    def backlog(self) -> Backlog:
        return self.dispatcher.backlog

    # As a pool

    def cancel(self, task_id: str) -> bool:
        self.asked_to_cancel.append(task_id)
        return self.on_cancel(task_id)

    # As a watcher

    def enqueued(self, entries: Sequence[Entry]) -> None:
        self._note(*(("enqueued", entry.id) for entry in entries))

    def started(self, taken: Sequence[Running]) -> None:
        self._note(*(("started", running.entry.id) for running in taken))

    def ended(self, rows: Sequence[AttemptRow], state: TaskState) -> None:
        self._note(*((f"{row.outcome}: {state}", row.task) for row in rows))

    def changed(self, task_id: str, state: TaskState) -> None:
        self._note((str(state), task_id))

    def _note(self, *notes: tuple[str, str]) -> None:
        self.told += notes
        self._changed.set()

    async def until(self, what: str, task_id: str) -> None:
        """Wait until the watcher has been told this."""
        while (what, task_id) not in self.told:
            self._changed = trio.Event()
            await self._changed.wait()

    # What tests do

    def worker(self, answer: Callable[[Any], str | None] = lambda claim: None, capacity: int = 1) -> FakeWorker:
        worker = FakeWorker(self, 1, capacity, answer)  # type: ignore[arg-type]
        self.dispatcher.worker_ready(worker)
        return worker

    async def add(self, **options: Any) -> Entry:
        (entry,) = await self.dispatcher.enqueue([new_task({"n": "1"}, **options)])
        assert isinstance(entry, Entry)
        return entry

    async def act(self, task_id: str, action: Action, at: float | None = None) -> TaskSummary:
        summary = await self.actions.act(task_id, action, "somebody", at)
        assert summary is not None
        return summary

    async def state(self, task_id: str) -> TaskState:
        found = await self.actions.find(task_id)
        assert found is not None
        return found.summary.state

    async def attempts(self, task_id: str) -> list[Attempt]:
        known = await self.ledger.history(task_id)
        return known.attempts if known else []

    async def outcomes(self, task_id: str) -> list[str]:
        return [attempt.outcome for attempt in await self.attempts(task_id)]

    async def scan(self) -> None:
        self.dispatcher.scan_begins()
        async for entries in self.store.scan():
            self.dispatcher.scan_saw(entries)
        await self.dispatcher.scan_ended()

    async def in_store(self) -> dict[str, tuple[str, float]]:
        """Where each task of the store is, and its `at`."""
        there = {entry.id: ("waits", entry.at) async for chunk in self.store.scan() for entry in chunk}
        for where, shelf in (("held", await self.store.held()), ("dead", await self.store.dead())):
            for entry in shelf:
                assert entry.id not in there
                there[entry.id] = (where, entry.at)
        return there

    async def check_one(self, task_id: str) -> None:
        """The backlog has a task as the store has it."""
        (entry,) = [entry async for chunk in self.store.scan() for entry in chunk if entry.id == task_id] or [None]
        item = self.backlog.find(task_id)
        assert (item and item.entry) == (entry and entry._replace(fresh=False))

    async def check(self) -> None:
        """The backlog has what the store has."""
        async for chunk in self.store.scan():
            for entry in chunk:
                await self.check_one(entry.id)
        count = sum(where == "waits" for where, _ in (await self.in_store()).values())
        assert self.backlog.ready + self.backlog.scheduled + len(self.backlog.running) == count


@asynccontextmanager
async def acting(
    kind: str,
    path: Path,
    *,
    policy: RetryPolicy = RetryPolicy(),  # noqa: B008 (it is frozen)
    watching: bool = False,
    paused: bool = False,
    watcher: Watcher | None = None,
) -> AsyncIterator[Rig]:
    """A spool at work.

    Args:
        kind: Of the store: `memory` or `directory`.
        path: Where its files are.
        policy: When tasks are tried again.
        watching: Whether a scanner with its watch is at work, too.
        paused: Whether it starts no tasks.
        watcher: In place of the rig itself.
    """
    ledger = Ledger(str(path / "history.db"))
    with trio.fail_after(PATIENCE):
        async with _store(kind, path) as store, trio.open_nursery() as nursery:
            rig = Rig(store, ledger, policy, await ledger.open(), watcher)
            if paused:
                rig.dispatcher.pause()
            await nursery.start(ledger.run_ledger)
            await nursery.start(rig.dispatcher.run_dispatcher)
            if watching:
                await nursery.start(Scanner(store, rig.dispatcher, FREQUENCY).run_scanner)
            else:
                await rig.scan()
            yield rig
            nursery.cancel_scope.cancel()
        await ledger.aclose()


@asynccontextmanager
async def _store(kind: str, path: Path) -> AsyncIterator[SpoolStore]:
    if kind == "memory":
        yield MemoryStore()
    else:
        async with open_directory_store(str(path / "spool"), fsync=False) as store:
            yield store


def is_now(at: float) -> bool:
    return abs(at - time.time()) < PATIENCE
