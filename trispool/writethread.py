"""One thread that does what it is given, in order.

For the writer of a database, which every task waits for. With `trio.to_thread.run_sync` and a limiter it takes two
turns of the loop until the caller goes on; here the thread rings a bell, a socket, that the caller itself waits for.
"""

from __future__ import annotations

import queue
import socket
import threading
from typing import TYPE_CHECKING, Any, TypeVar

import outcome
import trio

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["WriteThread"]

T = TypeVar("T")


class _Job:
    """What is to be done, and the bell of who waits for it."""

    __slots__ = ("_bell", "_lock", "result", "work")

    def __init__(self, work: Callable[[], Any], bell: socket.socket) -> None:
        self.work = work
        self.result: outcome.Outcome[Any] | None = None
        self._bell: socket.socket | None = bell
        self._lock = threading.Lock()

    def run(self) -> None:
        """In the thread."""
        result = outcome.capture(self.work)
        with self._lock:
            self.result = result
            if self._bell is not None:
                self._bell.send(b"\0")

    def abandon(self) -> None:
        """Nobody waits any more; the bell is not rung from now on."""
        with self._lock:
            self._bell = None


class WriteThread:
    """See the module. The thread begins with the first job, and ends with `close`."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
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
        if self._thread is None:
            # A daemon, as Trio's own: a disk that never answers must not keep the process.
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._thread.start()
        ours, theirs = self._bells.pop() if self._bells else socket.socketpair()
        job = _Job(work, theirs)
        self._jobs.put(job)
        try:
            # No deadline: as with Trio's threads, what cannot be interrupted is waited for.
            with trio.CancelScope(shield=not abandon):
                await trio.lowlevel.wait_readable(ours)
            ours.recv(1)
        except BaseException:
            job.abandon()
            ours.close()
            theirs.close()
            raise
        self._bells.append((ours, theirs))
        assert job.result is not None
        result: T = job.result.unwrap()
        return result

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
