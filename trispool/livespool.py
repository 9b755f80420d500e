"""One spool at work: its store, ledger, schedule, scanner, dispatcher and workers, wired together."""

from __future__ import annotations

import contextlib
import math
import os
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import structlog
import trio

from trispool.actions import Actions
from trispool.control import SpoolStatus
from trispool.dispatcher import Dispatcher, DispatcherSettings
from trispool.errors import SpoolUnavailable, TaskRefused
from trispool.figures import Figures
from trispool.health import Refusals
from trispool.ledger import Ledger
from trispool.pool import Pool
from trispool.scanner import Scanner
from trispool.settings import SHORTEST_FREQUENCY
from trispool.store.directory import DirectoryStore, open_directory_store
from trispool.worker.frames import Setup

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from trispool.actions import Found
    from trispool.backlog import Backlog
    from trispool.control import TaskSummary
    from trispool.errors import TrispoolError
    from trispool.operating import Action, SpoolChange
    from trispool.settings import SpoolSettings
    from trispool.task import Entry, NewTask, Retrying

__all__ = ["LiveSpool", "open_spool"]

COUNT_SECONDS: Final = 10.0
"""How often the files that lie aside, held or dead, are counted: a person may move them."""

MAX_PROCESSES: Final = 1000
"""More workers than any machine can use were mistyped; each takes 20 MB."""

_SETTLE_SECONDS: Final = 5.0
"""For telling the store what ended last; it is then a matter of milliseconds, or of a disk that hangs."""

_log = structlog.get_logger()


@asynccontextmanager
async def open_spool(settings: SpoolSettings, all_directories: Sequence[str]) -> AsyncIterator[LiveSpool]:
    """One spool, open but not yet running.

    Args:
        settings: What the configuration says of it.
        all_directories: Those of all spools of the service, for `uwsgi.spoolers`.

    Raises:
        OSError: Its directory or its history cannot be opened.
    """
    async with open_directory_store(settings.directory, fsync=settings.durability == "fsync") as store:
        ledger = Ledger(os.path.join(store.directory, ".trispool", "spool.db"), settings.keep_history)
        try:
            remembered = await ledger.open(store.rescue)
            async with store.writing_behind(ledger, accepts=not settings.external):
                yield LiveSpool(settings, store, ledger, remembered, all_directories)
        finally:
            await ledger.aclose()


class LiveSpool:
    """See the module. Made by `open_spool`.

    Attributes:
        name: Its name.
        store: Where its tasks are kept.
        ledger: Its history.
        figures: What happens in it, counted.
    """

    def __init__(
        self,
        settings: SpoolSettings,
        store: DirectoryStore,
        ledger: Ledger,
        remembered: Mapping[str, Retrying],
        all_directories: Sequence[str],
    ) -> None:
        self.name = settings.name
        self.store = store
        self.ledger = ledger
        self.figures = Figures(time.time)
        self._settings = settings
        self._dispatcher = Dispatcher(
            store,
            ledger,
            DispatcherSettings(settings.name, settings.frequency, settings.policy),
            remembered=remembered,
            frequency_wanted=self.set_frequency,
            watcher=self.figures,
        )
        self._scanner = Scanner(store, self._dispatcher, settings.frequency, self.figures.scans)
        others = [directory for directory in all_directories if directory != store.directory]
        setup = Setup(
            spool=settings.name,
            directory=store.directory,
            imports=settings.imports,
            chdir=settings.chdir,
            concurrency=settings.concurrency,
            timeout=settings.timeout,
            frequency=settings.frequency,
            spoolers=(store.directory, *others),
            options=_uwsgi_options(settings),
            fsync=settings.durability == "fsync",
        )
        self._pool = Pool(setup, self._dispatcher, processes=settings.processes, max_tasks=settings.max_tasks)
        self._actions = Actions(self, self._dispatcher, self._pool)
        self._refusals = Refusals()

    @property
    def backlog(self) -> Backlog:
        """What waits and what runs."""
        return self._dispatcher.backlog

    # Lifetimes, from the outermost to the innermost

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Let workers run what is found and enqueued, until cancelled or until `drain` has ended.

        Started when the workers have been started; they may still be importing their handlers.
        """
        async with trio.open_nursery() as recording:
            await recording.start(self.ledger.run_ledger)
            async with trio.open_nursery() as dispatching:
                await dispatching.start(self._dispatcher.run_dispatcher)
                dispatching.start_soon(self._count_aside)
                async with trio.open_nursery() as working:
                    await working.start(self._pool.serve_pool)
                    task_status.started()
                dispatching.cancel_scope.cancel()
            # What the last workers reported has still to be told to the store.
            with trio.move_on_after(_SETTLE_SECONDS, shield=True):
                await self._dispatcher.settle()
            recording.cancel_scope.cancel()

    async def find(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Look for tasks that others bring, until cancelled. Started when the first scan has been made."""
        await self._scanner.run_scanner(task_status=task_status)

    async def wait_caught_up(self) -> None:
        """See `Dispatcher.wait_caught_up`; without workers there is nothing to wait for."""
        if self._pool.statistics().processes:
            await self._dispatcher.wait_caught_up()

    async def drain(self, deadline: float) -> None:
        """Start nothing more, let what runs finish until the deadline (on Trio's clock), and end the workers."""
        self._dispatcher.drain()
        await self._pool.drain(deadline)

    def reload(self) -> None:
        """Import the handlers afresh, worker by worker."""
        self._pool.reload()

    # What `trispool.control.Control` needs

    async def enqueue(self, tasks: Sequence[NewTask]) -> Sequence[Entry | TrispoolError]:
        """Keep tasks and let them run.

        Of very many those that come first are kept also if the caller is cancelled while the others wait.
        """
        # In parts, so that other callers have their turn, and the time that the disk has is that for one part.
        at_once = self.store.at_once
        results: list[Entry | TrispoolError] = []
        while len(results) < len(tasks):
            if results:
                await trio.lowlevel.checkpoint()
            results += await self._keep(tasks[len(results) : len(results) + at_once])
        if results and isinstance(results[-1], SpoolUnavailable):
            if self._refusals.refused(str(results[-1]), time.time(), self.store.replaced):
                _log.error("tasks_not_kept", spool=self.name, error=str(results[-1]))
        elif results and self._refusals.kept():
            _log.info("tasks_kept_again", spool=self.name)
        return results

    async def _keep(self, tasks: Sequence[NewTask]) -> Sequence[Entry | TrispoolError]:
        began = trio.current_time()
        results = await self._dispatcher.enqueue(tasks)
        self.figures.commits.observe(trio.current_time() - began)
        return results

    async def known(self, ids: Sequence[str]) -> set[str]:
        """Those of these ids of which there is or was a task. Raises as `find_task`."""
        return {task_id for task_id in ids if await self.find_task(task_id) is not None}

    async def find_task(self, task_id: str) -> Found | None:
        """A task, wherever it is, or None if this spool does not know it. Raises as `Actions.find`."""
        return await self._actions.find(task_id)

    async def act(self, task_id: str, action: Action, by: str, at: float | None = None) -> TaskSummary | None:
        """Do something to a task; see `Actions.act`."""
        return await self._actions.act(task_id, action, by, at)

    async def scan_now(self) -> None:
        """Look through the spool, and return when that is done."""
        await self._scanner.scan_now()

    def change(self, change: SpoolChange) -> None:
        """Change settings, all that are given or none.

        Raises:
            TaskRefused: A value is out of its range.
        """
        frequency, processes = change.frequency, change.processes
        if frequency is not None and not (math.isfinite(frequency) and frequency >= SHORTEST_FREQUENCY):
            raise TaskRefused(f"frequency={frequency!r}: {SHORTEST_FREQUENCY} seconds or more are expected")
        if processes is not None and self._settings.external:
            raise TaskRefused(f"processes={processes!r}: the spool is external, others run its tasks")
        if processes is not None and not 1 <= processes <= MAX_PROCESSES:
            raise TaskRefused(f"processes={processes!r}: a number from 1 to {MAX_PROCESSES} is expected")
        if frequency is not None:
            self.set_frequency(frequency)
        if processes is not None:
            _log.info("processes_changed", spool=self.name, before=self._pool.statistics().processes, after=processes)
            self._pool.resize(processes)
        if change.paused is not None:
            (self.pause if change.paused else self.resume)()

    def restart_worker(self, pid: int, *, kill: bool = False) -> bool:
        """Replace a worker process; see `Pool.restart`."""
        return self._pool.restart(pid, kill=kill)

    def set_frequency(self, seconds: float) -> None:
        """Scan and retry every `seconds` from now on."""
        _log.info("frequency_changed", spool=self.name, before=self._scanner.frequency, after=seconds)
        self._scanner.set_frequency(seconds)
        self._dispatcher.set_frequency(seconds)
        self._pool.set_frequency(seconds)

    def pause(self) -> None:
        """Start no more tasks."""
        _log.info("paused", spool=self.name)
        self._dispatcher.pause()

    def resume(self) -> None:
        """Start tasks again."""
        _log.info("resumed", spool=self.name)
        self._dispatcher.resume()

    def status(self) -> SpoolStatus:
        """The spool at this moment."""
        backlog, pool = self.backlog, self._pool.statistics()
        return SpoolStatus(
            name=self.name,
            directory=self.store.directory,
            frequency=self._scanner.frequency,
            processes=pool.processes,
            paused=self._dispatcher.paused,
            durability=self._settings.durability,
            ready=backlog.ready,
            scheduled=backlog.scheduled,
            running=len(backlog.running),
            retrying=backlog.retrying,
            dead=self.store.dead_count,
            oldest_ready_at=backlog.schedule.oldest_ready_at(),
            finished={code: count for code, count in self._dispatcher.counts.items() if code != "dead"},
            workers=pool.workers,
            problem=self._problem(pool.problem),
            held=self.store.held_count,
            configured={
                "frequency": self._settings.frequency,
                "processes": self._settings.processes,
                "paused": False,
            },
            scanned=self._dispatcher.scanned,
            refusing=self._refusals.reason(time.time(), self.store.replaced),
        )

    def _problem(self, workers: str | None) -> str | None:
        problems = [self.store.problem, self._scanner.problem, workers and f"handlers do not import: {workers}"]
        return "; ".join(problem for problem in problems if problem) or None

    async def _count_aside(self) -> None:
        while True:
            # While they cannot be counted, as many as before are told; the scan says what is the matter.
            with contextlib.suppress(SpoolUnavailable):
                await self.store.dead()
                await self.store.held()
            await trio.sleep(COUNT_SECONDS)


def _uwsgi_options(settings: SpoolSettings) -> dict[str, bytes | bool]:
    """`uwsgi.opt`: our settings by the names of uWSGI's options, those that are set (`core/uwsgi.c`)."""
    options: dict[str, object] = {
        "spooler": settings.directory,
        "spooler-processes": settings.processes,
        "spooler-frequency": f"{settings.frequency:g}",
        "spooler-max-tasks": settings.max_tasks,
        "spooler-harakiri": settings.timeout and f"{settings.timeout:g}",
        "spooler-chdir": settings.chdir,
    }
    return {name: str(value).encode() for name, value in options.items() if value}
