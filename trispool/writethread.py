"""One thread that does what it is given, in order.

For the writer of a database, which every task waits for. With `trio.to_thread.run_sync` and a limiter it takes two
turns of the loop until the caller goes on; here the thread rings a bell, a socket, that the caller itself waits for.
"""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import outcome
import trio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

__all__ = ["Begun", "Job", "WriteThread"]

T = TypeVar("T")


class Job(Generic[T]):
    """What is to be done, and the bell of who waits for it. Made by `WriteThread.begin`.

    Args:
        work: What is to be done.
        bell: Its two ends, ours first; None: it will not be done.
        result: What came of it, if that is known.
    """

    __slots__ = ("_bell", "_lock", "result", "work")

    def __init__(
        self,
        work: Callable[[], T],
        bell: tuple[socket.socket, socket.socket] | None,
        result: outcome.Outcome[T] | None = None,
    ) -> None:
        self.work = work
        self.result = result
        self._bell = bell
        self._lock = threading.Lock()

    @property
    def has_failed(self) -> bool:
        """Whether it has been done and has raised something."""
        return isinstance(self.result, outcome.Error)

    async def wait(self) -> None:
        """Return when it has been done. Who is cancelled meanwhile may leave that to another, one at a time."""
        if self._bell is None:
            await trio.lowlevel.checkpoint()
        else:
            with contextlib.suppress(trio.ClosedResourceError):  # it has been abandoned meanwhile
                await trio.lowlevel.wait_readable(self._bell[0])

    def run(self) -> None:
        """In the thread."""
        result = outcome.capture(self.work)
        with self._lock:
            if self._bell is not None:  # else it has been abandoned, and counts as failed
                self.result = result
                self._bell[1].send(b"\0")

    def heard(self) -> list[tuple[socket.socket, socket.socket]]:
        """It has been waited for; gives the bell back, if there is one."""
        if self._bell is None:
            return []
        self._bell[0].recv(1)
        return [self._bell]

    def abandon(self) -> None:
        """Who waits shall wait no more. Whether it is done is not known; for who asks it has failed."""
        with self._lock:
            bell, self._bell = self._bell, None
            self.result = self.result or outcome.Error(TimeoutError("the disk does not answer"))
        if bell is not None:
            trio.lowlevel.notify_closing(bell[0])
            for end in bell:
                end.close()


class Begun:
    """See `trispool.store.tenure.Begun`.

    Args:
        job: What the thread was given.
        end: Does what is left to do.
        give_up: Called instead, when it is abandoned.
    """

    __slots__ = ("_give_up", "_job", "end")

    def __init__(self, job: Job[Any] | None, end: Callable[[], Awaitable[None]], give_up: Callable[[], object]) -> None:
        self._job = job
        self._give_up = give_up
        self.end = end

    @property
    def has_failed(self) -> bool:
        """Whether it is known that it has not gone well so far."""
        return self._job is not None and self._job.has_failed

    async def wait(self) -> None:
        """Return when the thread has done it."""
        if self._job is not None:
            await self._job.wait()

    def abandon(self) -> None:
        """Nobody will see to the end of it."""
        if self._job is not None:
            self._job.abandon()
        self._give_up()


class WriteThread:
    """See the module. The thread begins with the first job, and ends with `close`."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._jobs: queue.SimpleQueue[Job[Any] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._bells: list[tuple[socket.socket, socket.socket]] = []  # that nobody waits for

    async def run_sync(self, work: Callable[[], T], *, abandon: bool = False) -> T:
        """Do something there; once it has been given it is done, whatever becomes of the caller.

        Args:
            work: What.
            abandon: Let a cancelled caller go at once, and not when it has been done.

        Returns:
            What it returns; what it raises is raised.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        return await self.result(self.begin(work), abandon=abandon)

    def begin(self, work: Callable[[], T]) -> Job[T]:
        """The same in two steps: give it to the thread. Somebody then has to ask for the `result`.

        Without a descriptor for a bell it is not done, and that is its result.
        """
        try:
            bell = self._bells.pop() if self._bells else socket.socketpair()
        except OSError as error:
            return Job(work, None, outcome.Error(error))
        if self._thread is None:
            # A daemon, as Trio's own: a disk that never answers must not keep the process.
            thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            thread.start()
            self._thread = thread
        job = Job(work, bell)
        self._jobs.put(job)
        return job

    async def result(self, job: Job[T], *, abandon: bool = False) -> T:
        """What came of a job; see `run_sync`."""
        try:
            if job.result is None:
                # No deadline: as with Trio's threads, what cannot be interrupted is waited for.
                with trio.CancelScope(shield=not abandon):
                    await job.wait()
            self._bells += job.heard()
        except BaseException:
            job.abandon()
            raise
        assert job.result is not None
        return job.result.unwrap()

    def close(self) -> None:
        """Let the thread end when it has done what it has been given. Another job begins another thread."""
        if self._thread is not None:
            self._jobs.put(None)
            self._thread = None
            self._jobs = queue.SimpleQueue()
        for bell in self._bells:
            for end in bell:
                end.close()
        self._bells.clear()

    def _run(self) -> None:
        jobs = self._jobs
        while (job := jobs.get()) is not None:
            job.run()
            del job  # what it holds is not kept until the next one
