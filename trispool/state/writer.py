"""Writes to `state.db`: whatever waits at the same time goes into one transaction, and so shares one sync of the disk.

There are two kinds of changes. Somebody waits for one that is *asked for* (`write`) and is told if it fails. One that
is *told* (`tell`) is tried again until it is written; those that are told come first in their transaction, so that what
is asked for later sees them.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Final

import structlog
import trio

if TYPE_CHECKING:
    from trispool.statefile import Change, StateFile

__all__ = ["StateWriter"]

MAX_TOLD: Final = 100_000
"""Changes that may wait for a disk that takes no more; further ones are lost, and whoever waits for them is told."""

MAX_TOGETHER: Final = 500
"""Changes of one transaction, some 10 ms."""

GATHER_SECONDS: Final = 0.01
"""How long a change for whom nobody waits may wait for company: a sync costs as much as writing fifty rows."""

RETRY_SECONDS: Final = 1.0
"""How long to wait after a failure: a full disk does not mend faster."""

FLUSH_SECONDS: Final = 5.0
"""How long, at the end, to wait for a disk that does not answer."""

_log = structlog.get_logger()


class _Waiting:
    """A change, and what became of it."""

    __slots__ = ("change", "done", "error", "result")

    def __init__(self, change: Change) -> None:
        self.change = change
        self.done = trio.Event()
        self.result: Any = None
        self.error: OSError | None = None

    def fail(self, error: OSError) -> None:
        self.error = error
        self.done.set()


class StateWriter:
    """See the module.

    Args:
        file: The file; opened.
    """

    def __init__(self, file: StateFile) -> None:
        self._file = file
        self._asked: deque[_Waiting] = deque()
        self._told: deque[_Waiting] = deque()
        self._work = trio.Event()
        self._urgent = trio.Event()
        self._closing = False
        self._write_limiter = trio.CapacityLimiter(1)
        self._read_limiter = trio.CapacityLimiter(1)
        self.problem: str | None = None

    async def write(self, change: Change) -> Any:  # noqa: ANN401 # whatever it returns
        """Make a change; it is on disk when this returns. That of a caller who is cancelled is made all the same.

        Returns:
            Its result.

        Raises:
            OSError: It has not been made.
        """
        if self._closing:
            raise OSError(f"{self._file.path} is closed")
        waiting = _Waiting(change)
        self._asked.append(waiting)
        self._work.set()
        self._urgent.set()
        await waiting.done.wait()
        if waiting.error is not None:
            raise waiting.error
        return waiting.result

    def tell(self, change: Change) -> None:
        """Make a change soon, and sooner than what is asked for from now on."""
        self._tell(change)

    async def tell_and_wait(self, change: Change) -> bool:
        """`tell`, and wait until it is on disk, or has to be tried again later: then False."""
        waiting = self._tell(change)
        self._urgent.set()
        await waiting.done.wait()
        return waiting.error is None

    def _tell(self, change: Change) -> _Waiting:
        waiting = _Waiting(change)
        if self._closing or len(self._told) >= MAX_TOLD:
            waiting.fail(OSError(f"{self._file.path} is closed, or too many changes wait for it"))
        else:
            self._told.append(waiting)
            self._work.set()
        return waiting

    async def read(self, question: Change) -> Any:  # noqa: ANN401 # whatever it returns
        """What a question finds.

        Raises:
            OSError: That cannot be read now.
        """
        return await trio.to_thread.run_sync(self._file.read, question, limiter=self._read_limiter)

    async def run_writer(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Write until cancelled; what waits then is written still."""
        try:
            task_status.started()
            while True:
                await self._work.wait()
                with trio.move_on_after(GATHER_SECONDS):
                    await self._urgent.wait()
                self._work, self._urgent = trio.Event(), trio.Event()
                while self._asked or self._told:
                    if not await self._write_some():
                        self._work.set()
                        with trio.move_on_after(RETRY_SECONDS):
                            await self._urgent.wait()
                        break
        finally:
            with trio.move_on_after(FLUSH_SECONDS, shield=True):
                while (self._asked or self._told) and await self._write_some(abandon=True):
                    pass
            self._closing = True
            for waiting in (*self._told, *self._asked):
                waiting.fail(OSError(f"{self._file.path} is closed"))
            self._told.clear()
            self._asked.clear()

    async def _write_some(self, *, abandon: bool = False) -> bool:
        """Write those that wait longest; False if that failed. With `abandon` a disk that hangs is not waited for."""
        told = [self._told[number] for number in range(min(len(self._told), MAX_TOGETHER))]
        # What is asked for must see all that was told before.
        asked = [] if len(told) < len(self._told) else [*self._asked][:MAX_TOGETHER]
        together = [*told, *asked]
        changes = [waiting.change for waiting in together]
        try:
            # Once begun the thread cannot be cancelled; before that they still wait.
            results = await trio.to_thread.run_sync(
                self._file.write, changes, limiter=self._write_limiter, abandon_on_cancel=abandon
            )
        except OSError as error:
            if self.problem != str(error):
                _log.error("state_not_written", error=str(error))
            self.problem = str(error)
            for waiting in together:
                waiting.fail(error)
            self._drop(len(asked), self._asked)
            return False
        if self.problem is not None:
            _log.info("state_is_written_again")
            self.problem = None
        for waiting, result in zip(together, results, strict=True):
            waiting.result = result
            waiting.done.set()
        self._drop(len(told), self._told)
        self._drop(len(asked), self._asked)
        return True

    def _drop(self, count: int, queue: deque[_Waiting]) -> None:
        for _ in range(count):
            queue.popleft()
