"""Keeps a spool's worker processes alive.

    serve_pool's nursery ─┬─ watch: looks at the boards every 20 ms while any worker is busy
                          └─ slots, one per process ─┬─ the slot's worker
                                                     └─ its predecessor, while that one exits

A slot starts a worker, waits until it is leaving, and starts the next; after a worker that died young it pauses first,
so that handlers that do not import or crash at once cannot eat the machine.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec
import structlog
import trio

from trispool.employer import Employer
from trispool.pace import MAX_AHEAD, Pace
from trispool.workerlink import Report
from trispool.workerproc import WorkerProcess

if TYPE_CHECKING:
    from trispool.control import WorkerStatus
    from trispool.worker.frames import Setup

__all__ = ["Employer", "Pool", "PoolStatistics", "Report", "WorkerProcess"]

WATCH_SECONDS: Final = 0.02
"""Between two looks at the boards."""

RECALL_SECONDS: Final = 0.002
"""The same while tasks are being recalled; more than `trispool.worker.board.RECALL_SETTLES`."""

YOUNG_SECONDS: Final = 1.0
"""A worker that dies by itself so soon after it was ready may do so again at once."""

FIRST_PAUSE: Final = 0.1
LONGEST_PAUSE: Final = 30.0
"""Seconds before the successor of one that died young; the pause doubles from the first to the longest."""

LONGEST_PAUSE_AT_WORK: Final = 1.0
"""The longest if it was a task that killed it: others wait behind that one, and they may be harmless."""

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class PoolStatistics:
    """A pool at this moment.

    Attributes:
        processes: How many workers there shall be.
        workers: Those there are.
        problem: Why no worker becomes ready (the traceback of a handler that does not import), or None.
        started: How many have been started.
        lost: How many have ended that were not told to.
    """

    processes: int
    workers: tuple[WorkerStatus, ...]
    problem: str | None
    started: int
    lost: int


class Pool:
    """The worker processes of one spool.

    Args:
        setup: What the workers are told; `pids`, `processes`, `service_pid` and `slots` are filled in.
        employer: Whose tasks they run.
        processes: How many workers.
        max_tasks: A worker is replaced after so many tasks; 0: never.
    """

    def __init__(self, setup: Setup, employer: Employer, *, processes: int, max_tasks: int = 0) -> None:
        slots = 2 * MAX_AHEAD
        while slots < 2 * setup.concurrency + 2:
            slots *= 2
        self._setup = msgspec.structs.replace(setup, service_pid=os.getpid(), slots=slots)
        self._employer = employer
        self._max_tasks = max_tasks
        self._processes = processes
        self._pace = Pace()
        self._log = _log.bind(spool=setup.spool)
        self._slots: list[_Slot] = []
        self._workers: list[WorkerProcess] = []
        self._nursery: trio.Nursery | None = None
        self._busy = trio.Event()
        self._closing = trio.Event()
        self._problem: str | None = None
        self._started = 0
        self._lost = 0

    async def serve_pool(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the workers alive until cancelled, or until `drain` or `kill` has ended them.

        Cancelled, it kills them at once; what they had is given back before it returns.
        """
        async with trio.open_nursery() as outer:
            outer.start_soon(self._run_watch)
            try:
                async with trio.open_nursery() as nursery:
                    self._nursery = nursery
                    self.resize(self._processes)
                    task_status.started()
                    await self._closing.wait()
            finally:
                self._nursery = None
                self._closing.set()
            outer.cancel_scope.cancel()

    @property
    def pids(self) -> tuple[int, ...]:
        """The worker processes."""
        return tuple(worker.pid for worker in self._workers if worker.pid)

    def statistics(self) -> PoolStatistics:
        """The pool at this moment."""
        workers = tuple(worker.status() for worker in self._workers)
        return PoolStatistics(self._processes, workers, self._problem, self._started, self._lost)

    def resize(self, processes: int) -> None:
        """Have so many workers. Those that are too many finish what they have begun."""
        self._processes = processes
        if self._nursery is None or self._closing.is_set():
            return
        while len(self._slots) < processes:
            slot = _Slot()
            self._slots.append(slot)
            self._nursery.start_soon(self._run_slot, slot)
        idlest = sorted(self._slots, key=lambda slot: slot.in_hand)
        for slot in idlest[: len(self._slots) - processes]:
            self._slots.remove(slot)
            slot.retire()

    def cancel(self, task_id: str) -> bool:
        """See to it that a task which a worker has ends, and is not run to its end.

        What becomes of it the employer hears as ever, once:

        - It was not begun: it is reported as `returned`, within milliseconds.
        - A sync worker runs it: the worker is killed, at once; the task is the only suspect.
        - An async handler runs it: it is cancelled, and reported as `cancelled`. After `GIVE_WAY_SECONDS` (see
          `trispool.workerproc`) the worker is killed; the task is the only suspect, and the others come back. So it is
          with a sync handler in an async worker.
        - It ends by itself meanwhile: it is reported as it ended.

        Returns:
            False if no worker has it.
        """
        return any(worker.cancel(task_id) for worker in self._workers)

    def restart(self, pid: int, *, kill: bool = False) -> bool:
        """Replace one worker: its successor starts when it has finished what it has begun.

        One that still imports its handlers has nothing to finish and is killed.

        Args:
            pid: Which.
            kill: Do not let it finish what it runs; the task is given back.

        Returns:
            False if there is no such worker.
        """
        for worker in self._workers:
            if worker.pid == pid and worker.is_alive:
                if kill or worker.ready_at is None:
                    worker.kill("killed: an operator restarted it")
                else:
                    worker.retire()
                return True
        return False

    def reload(self) -> None:
        """Replace all workers, so that the handlers are imported afresh.

        Each goes when its successor is ready, having finished what it has begun. If the handlers no longer import, the
        workers stay as they are, and `statistics` tells the problem.
        """
        for slot in self._slots:
            slot.pause.cancel()
            if slot.candidate is not None:
                # It may hang in what has been mended since.
                slot.candidate.kill("killed: it is to import other handlers")
            if slot.worker is None or slot.nursery is None or slot.worker.leaving.is_set():
                continue  # the next one imports afresh anyway
            if slot.worker.ready_at is None:
                slot.worker.kill("killed: it is to import other handlers")
                continue
            slot.is_outdated = True
            if not slot.is_replacing:
                slot.is_replacing = True
                slot.nursery.start_soon(self._replace, slot, slot.nursery)

    def set_frequency(self, seconds: float) -> None:
        """Tell all workers, now and later, the spool's frequency."""
        self._setup = msgspec.structs.replace(self._setup, frequency=seconds)
        for worker in self._workers:
            worker.tell_frequency(seconds)

    async def drain(self, deadline: float) -> None:
        """End all workers: what is not begun is given back at once, what runs may finish until the deadline.

        Args:
            deadline: On Trio's clock. What then still runs is killed and given back.
        """
        self._close()
        for worker in self._workers:
            worker.retire()
            if worker.ready_at is None:
                worker.kill("killed: the service ends")
        with trio.move_on_at(deadline):
            await self._wait_until_empty()
        self.kill()
        with trio.CancelScope(shield=True):  # no deadline: SIGKILL has been sent
            await self._wait_until_empty()

    def kill(self) -> None:
        """End all workers at once, for good. `serve_pool` returns when they are gone."""
        self._close()
        for worker in self._workers:
            worker.kill("killed: the service ends")

    # What the workers tell

    def worker_is_busy(self) -> None:
        """See `trispool.employer.Keeper`."""
        self._busy.set()

    def worker_has_started(self) -> None:
        """See `trispool.employer.Keeper`."""
        self._tell_pids()

    def worker_is_ready(self) -> None:
        """See `trispool.employer.Keeper`."""
        if self._problem is not None:
            self._problem = None
            self._log.info("handlers_import_again")

    # Inside

    def _tell_pids(self) -> None:
        pids = self.pids
        for worker in self._workers:
            worker.tell_pids(pids)

    def _close(self) -> None:
        for slot in self._slots:
            slot.retire()
        self._slots.clear()
        self._closing.set()

    async def _wait_until_empty(self) -> None:
        while self._workers:
            await self._workers[0].gone.wait()

    async def _run_slot(self, slot: _Slot) -> None:
        pauses = 0
        async with trio.open_nursery() as nursery:
            slot.nursery = nursery
            while not slot.retired:
                worker = slot.worker = slot.successor or self._start_worker(nursery)
                slot.successor = None
                await worker.leaving.wait()
                self._note_problem(worker)
                if not _died_young(worker):
                    pauses = 0
                    continue
                if worker.tasks_done:
                    pauses = 0
                longest = LONGEST_PAUSE_AT_WORK if worker.died_at_work else LONGEST_PAUSE
                with slot.pause:
                    await trio.sleep(min(longest, FIRST_PAUSE * 2**pauses))
                slot.pause = trio.CancelScope()
                pauses = min(pauses + 1, 16)

    def _start_worker(self, nursery: trio.Nursery) -> WorkerProcess:
        setup = msgspec.structs.replace(self._setup, pids=self.pids, processes=self._processes)
        worker = WorkerProcess(setup, self._employer, self._pace, self, max_tasks=self._max_tasks)
        self._workers.append(worker)
        self._started += 1
        nursery.start_soon(self._run_worker, worker)
        return worker

    async def _replace(self, slot: _Slot, nursery: trio.Nursery) -> None:
        """Let a slot's worker go when a new one is ready, and not before."""
        while slot.is_outdated and not slot.retired:
            slot.is_outdated = False
            successor = slot.candidate = self._start_worker(nursery)
            await successor.decided.wait()
            slot.candidate = None
            if slot.is_outdated or slot.retired or slot.worker is None:
                successor.retire()
            elif successor.ready_at is None and successor.was_ended:
                slot.is_outdated = True  # an operator restarted it
            elif successor.ready_at is None:
                self._note_problem(successor)
                self._log.error("reload_failed", kept=slot.worker.pid)
            else:
                slot.successor = successor
                slot.worker.retire()
        slot.is_replacing = False

    def _note_problem(self, worker: WorkerProcess) -> None:
        if worker.problem is not None and worker.problem != self._problem:
            self._problem = worker.problem
            event = "handlers_do_not_import" if worker.pid else "worker_not_started"
            self._log.error(event, problem=worker.problem)

    async def _run_worker(self, worker: WorkerProcess) -> None:
        try:
            await worker.run()
        finally:
            self._workers.remove(worker)
            self._tell_pids()
        if worker.was_ended:
            self._log.info("worker_ended", worker=worker.pid, cause=worker.cause, tasks=worker.tasks_done)
        else:
            self._lost += 1
            self._log.warning("worker_lost", worker=worker.pid, cause=worker.cause, tasks=worker.tasks_done)

    async def _run_watch(self) -> None:
        while True:
            await self._busy.wait()
            self._busy = trio.Event()
            while any(worker.in_hand for worker in self._workers):
                recalling = any(worker.is_recalling for worker in self._workers)
                await trio.sleep(RECALL_SECONDS if recalling else WATCH_SECONDS)
                now = time.monotonic()
                for worker in tuple(self._workers):
                    worker.watch(now)


class _Slot:
    """A place for one worker process after the other.

    Attributes:
        worker: The one that has it.
        successor: Who will have it next, and is ready.
        candidate: Who will be the successor, if the handlers import.
        retired: Whether nobody will.
        pause: Cancelled to have the next one started now.
        nursery: Where its workers live.
        is_outdated: Whether its worker is to be replaced.
        is_replacing: Whether somebody sees to that.
    """

    def __init__(self) -> None:
        self.worker: WorkerProcess | None = None
        self.successor: WorkerProcess | None = None
        self.candidate: WorkerProcess | None = None
        self.nursery: trio.Nursery | None = None
        self.is_outdated = False
        self.is_replacing = False
        self.retired = False
        self.pause = trio.CancelScope()

    @property
    def in_hand(self) -> int:
        """How many tasks its worker has."""
        return self.worker.in_hand if self.worker is not None else 0

    def retire(self) -> None:
        """Have no successor, and let the worker quit when it has finished what it has begun."""
        self.retired = True
        self.pause.cancel()
        for worker in (self.worker, self.successor):
            if worker is not None:
                worker.retire()
        if self.candidate is not None:
            self.candidate.kill("killed: nobody waits for it any more")


def _died_young(worker: WorkerProcess) -> bool:
    if worker.was_ended or worker.was_overdue:
        return False
    if worker.ready_at is None or worker.ended_at is None:
        return True
    return worker.ended_at - worker.ready_at < YOUNG_SECONDS
