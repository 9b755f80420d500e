"""One thread that does what it is given, in order.

For the writer of a database, which every task waits for: `trio.to_thread.run_sync` with a limiter takes 55 µs and two
turns of the loop, this 35 µs and one.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from typing import TYPE_CHECKING, Any, TypeVar

import outcome
import trio

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["WriteThread"]

T = TypeVar("T")


class _Job:
    """What is to be done, and who waits for it; None: nobody any more."""

    __slots__ = ("result", "task", "token", "work")

    def __init__(self, work: Callable[[], Any], task: trio.lowlevel.Task, token: trio.lowlevel.TrioToken) -> None:
        self.work = work
        self.task: trio.lowlevel.Task | None = task
        self.token = token
        self.result: outcome.Outcome[Any]

    def deliver(self) -> None:
        if self.task is not None:
            trio.lowlevel.reschedule(self.task, self.result)


class WriteThread:
    """See the module. The thread begins with the first job, and ends with `close`."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    async def run_sync(self, work: Callable[[], T], *, abandon: bool = False) -> T:
        """Do something there; once it has been given it is done, whatever becomes of the caller.

        Args:
            work: What.
            abandon: Let a cancelled caller go at once, and not when it has been done.

        Returns:
            What it returns; what it raises is raised.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._thread is None:
            # A daemon, as Trio's own: a disk that never answers must not keep the process.
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._thread.start()
        job = _Job(work, trio.lowlevel.current_task(), trio.lowlevel.current_trio_token())
        self._jobs.put(job)

        def abort(_: object) -> trio.lowlevel.Abort:
            if not abandon:
                return trio.lowlevel.Abort.FAILED
            job.task = None
            return trio.lowlevel.Abort.SUCCEEDED

        result: T = await trio.lowlevel.wait_task_rescheduled(abort)
        return result

    def close(self) -> None:
        """Let the thread end when it has done what it has been given. Another job begins another thread."""
        if self._thread is not None:
            self._jobs.put(None)
            self._thread = None
            self._jobs = queue.SimpleQueue()

    def _run(self) -> None:
        jobs = self._jobs
        while (job := jobs.get()) is not None:
            job.result = outcome.capture(job.work)
            with contextlib.suppress(trio.RunFinishedError):  # then nobody waits
                job.token.run_sync_soon(job.deliver)
            del job  # what it holds is not kept until the next one
