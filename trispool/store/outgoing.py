"""From memory to files: what waits for long, and what somebody wants to have as a file."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import structlog
import trio

from trispool import writeout
from trispool.errors import SpoolUnavailable
from trispool.store.incoming import State
from trispool.writeout import Leaving

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from trispool.spooldir import SpoolDirectory
    from trispool.store.incoming import Incoming, Kept
    from trispool.store.tenure import Database, Tenure

__all__ = ["Outgoing"]

WAIT_SECONDS: Final = 0.25
"""What waits longer gets a file."""

AT_ONCE: Final = 256
"""Tasks written out in one go: as many files are open then."""

AT_ONCE_BYTES: Final = 4 * 1024 * 1024
"""Their vars and bodies: who waits for room waits for one go. On a disk that writes 20 MB/s, 0.2 s; what each go costs
besides its bytes is as much as writing 1 MB."""

RETRY_SECONDS: Final = 1.0
"""After files could not be written."""

STEP_SECONDS: Final = 30.0
"""For so long what has been begun is seen to its end, also when the service ends: the disk may hang."""

_log = structlog.get_logger()


class Outgoing:
    """See the module.

    Args:
        opened: The spool directory.
        database: Where the tasks stand until they have files.
        rows: The tasks.
        tenure: Who commits.
        recovered: Called when those have left that somebody did not wait for.

    Attributes:
        problem: Why tasks cannot be written out, or None.
        left: Where to wait for a task that is leaving, or for room.
        were_wanted: Whether somebody has not waited for a task that is leaving.
    """

    def __init__(
        self,
        opened: SpoolDirectory,
        database: Database,
        rows: Incoming,
        tenure: Tenure,
        recovered: Callable[[], None],
    ) -> None:
        self.problem: str | None = None
        self.were_wanted = False
        self._recovered = recovered
        self.left = trio.lowlevel.ParkingLot()
        self._opened = opened
        self._database = database
        self._rows = rows
        self._tenure = tenure
        self._some = trio.Event()
        self._pressed = trio.Event()
        # One at a time: both would write the same temporary file.
        self._writing = trio.Lock()
        self._limiter = trio.CapacityLimiter(1)

    def expect(self) -> None:
        """There are tasks now."""
        self._some.set()

    def press(self) -> None:
        """Somebody waits for room: write out what waits, however short."""
        self._some.set()
        self._pressed.set()

    async def run_outgoing(self) -> None:
        """Write out what has waited, until cancelled."""
        while True:
            await self._some.wait()
            with trio.move_on_after(WAIT_SECONDS):
                await self._pressed.wait()
            if not self._rows:
                self._some = trio.Event()
                self.problem = None  # what could not be written out has run
                continue
            await self._tenure.check()
            pressed, self._pressed = self._pressed.is_set(), trio.Event()
            wait_seconds = 0.0 if pressed or not self._tenure.is_ours else WAIT_SECONDS
            while batch := self._rows.waiting(trio.current_time() - wait_seconds, AT_ONCE, AT_ONCE_BYTES):
                began = trio.current_time()
                await self._write(batch)
                if self.problem is not None:
                    await trio.sleep(RETRY_SECONDS)
                    break
                # Half of the time at most, unless somebody waits for it: what runs soon need not be written.
                with trio.move_on_after(trio.current_time() - began):
                    await self._pressed.wait()

    async def as_file(self, ref: str, *, ended: bool = False) -> bool:
        """Give a task its file now, if it has none.

        Args:
            ref: The task.
            ended: It was claimed, and its run has ended.

        Returns:
            False if it is being run.

        Raises:
            SpoolUnavailable: It could not be written, and waits still.
        """
        kept = self._rows.at(ref)
        if kept is None:
            return True
        if kept.state is State.CLAIMED:
            if not ended:
                return False
            self._rows.release(kept, trio.current_time())
        await self._write([kept])
        if self._rows.at(ref) is not kept:
            return True
        if kept.state is State.CLAIMED:
            return False
        raise SpoolUnavailable(f"{ref} could not be kept as a file: {self.problem}")

    async def write_all(self) -> None:
        """Write out all, whether claimed or not: no worker is left."""
        for kept in self._rows:
            self._rows.release(kept, -math.inf)
        while batch := self._rows.waiting(math.inf, AT_ONCE, AT_ONCE_BYTES):
            await self._write(batch)
            if self.problem is not None:
                break

    async def _write(self, batch: Sequence[Kept]) -> None:
        async with self._writing:
            with trio.move_on_after(STEP_SECONDS, shield=True):
                await self._write_now([kept for kept in batch if self._rows.at(kept.entry.ref) is kept])
        self.left.unpark_all()
        if self.were_wanted:
            self.were_wanted = False
            self._recovered()

    async def _write_now(self, batch: Sequence[Kept]) -> None:
        try:
            writer = await trio.to_thread.run_sync(self._opened.writer, limiter=self._limiter)
        except OSError as error:
            self._complain(error)
            return
        tasks = [(kept, Leaving(kept.entry, kept.row.payload, kept.row.body)) for kept in batch]
        leaving: list[tuple[Kept, Leaving]] = []
        is_published = False

        def publish() -> None:
            writeout.discard(writer, [task for kept, task in tasks if kept.state is not State.LEAVING])
            writeout.publish(writer, [task for _, task in leaving])

        try:
            await trio.to_thread.run_sync(writeout.prepare, writer, [task for _, task in tasks], limiter=self._limiter)
            # Those that a worker has got meanwhile stay as they are.
            leaving = [(kept, task) for kept, task in tasks if task.fd >= 0 and kept.state is State.WAITING]
            for kept, _ in leaving:
                kept.state = State.LEAVING
            await trio.to_thread.run_sync(publish, limiter=self._limiter)
            is_published = True
            for kept, task in leaving:
                if task.error is None:
                    self._database.remove(kept.row.task)
            # Should it fail: after a crash the task is found to have a file.
            await self._tenure.commit_removals()
            await trio.to_thread.run_sync(writeout.let_go, writer, [task for _, task in leaving], limiter=self._limiter)
        finally:
            for kept, task in leaving:
                if is_published and task.error is None:
                    self._rows.discard(kept.row.task)
                    writeout.let_go(writer, [task])
                else:
                    kept.state = State.WAITING
            writeout.discard(writer, [task for _, task in tasks])
            self._complain(next((task.error for _, task in tasks if task.error is not None), None))

    def _complain(self, error: Exception | None) -> None:
        if error is None:
            if self.problem is not None:
                _log.info("tasks_are_written_out_again", directory=self._opened.path)
            self.problem = None
            return
        reason = f"tasks cannot be written into the directory: {getattr(error, 'strerror', None) or error}"
        if reason != self.problem:
            _log.error("tasks_not_written_out", directory=self._opened.path, tasks=len(self._rows), error=str(error))
        self.problem = reason
