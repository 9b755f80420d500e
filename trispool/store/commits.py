"""Commits of new tasks: whatever waits at the same time goes into the next one.

Rules it keeps:

1. All tasks of one call are in one transaction.
2. Who waits for a commit can always be cancelled: a disk may hang. What has been begun goes on, and `run_commits` sees
   to its end, also when it is cancelled itself. A scan then finds the tasks, which nobody else knows of.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import trio

from trispool.errors import SpoolUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from trispool.incomingfile import IncomingRow
    from trispool.store.incoming import Incoming, Kept
    from trispool.store.outgoing import Outgoing
    from trispool.store.tenure import Begun, Tenure

__all__ = ["Call", "Commits", "closing"]

MAX_COMMIT: Final = 10_000
"""Tasks in one transaction, or those of one call. With more, the first would wait longer than it saves."""

CLOSE_SECONDS: Final = 10.0
"""How long, at the end, to wait for a commit that has been begun."""

MAX_CALLS: Final = 4096
"""Calls that may wait; further ones wait to be let in."""


class Call:
    """The tasks of one call of `add`, and what became of them.

    Args:
        kept: The tasks.
        names: Those that others must not use until it has been answered.
    """

    __slots__ = ("done", "error", "is_left", "kept", "names", "size")

    def __init__(self, kept: list[Kept], names: set[str]) -> None:
        self.kept = kept
        self.names = names
        self.size = sum(item.size for item in kept)
        self.error: SpoolUnavailable | None = None
        self.done = trio.Event()
        self.is_left = False  # by its caller


class _Commit(NamedTuple):
    """A transaction that has been begun."""

    calls: list[Call]
    kept: list[Kept]
    rows: list[IncomingRow]
    begun: Begun


class Commits:
    """See the module.

    Args:
        rows: Where tasks are when they have been committed.
        tenure: Who commits.
        outgoing: Makes room.
        recovered: Called when tasks have been kept whose caller has gone.
        accepts: Whether there will be any.

    Attributes:
        is_open: Whether calls are answered.
        hangs: Whether the last commit has been given up, since the disk hangs.
        named: The names of tasks on their way into the database that were given by whoever enqueues them.
    """

    def __init__(
        self, rows: Incoming, tenure: Tenure, outgoing: Outgoing, recovered: Callable[[], None], *, accepts: bool
    ) -> None:
        self.is_open = accepts
        self.hangs = False
        self.named: set[str] = set()
        self._rows = rows
        self._tenure = tenure
        self._outgoing = outgoing
        self._recovered = recovered
        self._calls: list[Call] = []
        self._left: _Commit | None = None  # by whoever has begun it
        self._work = trio.Event()
        self._is_committing = False
        self._committed = trio.lowlevel.ParkingLot()

    def __len__(self) -> int:
        return len(self._calls)

    async def let_in(self) -> None:
        """Return when a call may wait. Where there is no room it is waited for: to write files would not be quicker."""
        while len(self._calls) >= MAX_CALLS and self.is_open:
            await self._outgoing.left.park()

    async def commit(self, call: Call) -> SpoolUnavailable | None:
        """Keep the tasks of a call; those of a caller that is cancelled are kept all the same.

        Returns:
            Why they have not been kept, or None.
        """
        is_next = not self._calls and not self._is_committing and self._left is None
        self._calls.append(call)
        try:
            if is_next and self._rows.has_room(len(call.kept), call.size):
                # Nobody is before it: to have it done by `run_commits` would take two more turns of the loop.
                await self._commit_some(is_caller=True)
            else:
                self._work.set()
            if not call.done.is_set():
                await call.done.wait()
        except trio.Cancelled:
            call.is_left = True
            if call.done.is_set() and call.error is None:
                self._recovered()
            raise
        return call.error

    async def run_commits(self) -> None:
        """Commit what callers do not commit themselves, until cancelled."""
        try:
            while True:
                await self._work.wait()
                self._work = trio.Event()
                while self._calls or self._left:
                    await self._go_on()
        finally:
            self.is_open = False
            calls, self._calls = self._calls, []
            self._answer(calls, closing())
            # Now, as others that end at the same time may wait for what has been begun.
            with trio.move_on_after(CLOSE_SECONDS, shield=True):
                await self._end_last()

    async def _end_last(self) -> None:
        """See to the end of what has been begun; who is cancelled here gives up a commit that hangs."""
        try:
            while self._is_committing or self._left:
                await self._go_on()
        finally:
            if self._left:
                left, self._left = self._left, None
                self.hangs = True
                left.begun.abandon()
                self._answer(left.calls, closing())

    async def _go_on(self) -> None:
        """Wait for the commit that is under way, or make the next one."""
        if self._is_committing:
            await self._committed.park()
        else:
            await self._commit_some()

    async def _commit_some(self, *, is_caller: bool = False) -> None:
        """Commit what waits longest, or see to the end of a commit that has been left.

        Args:
            is_caller: Leave it to `run_commits` if it fails: what has to be done then may take long.
        """
        commit, self._left = self._left, None
        calls = self._first() if commit is None else commit.calls
        if not calls:
            await self._make_room()
            return
        error: SpoolUnavailable | None = None
        self._is_committing = True
        try:
            if commit is None:
                kept = calls[0].kept if len(calls) == 1 else [item for call in calls for item in call.kept]
                rows = [item.row for item in kept]
                commit = _Commit(calls, kept, rows, await self._tenure.begin(rows))
            self._left = commit
            await commit.begun.wait()
            if is_caller and commit.begun.has_failed:
                return
            self._left = None
            await self._tenure.commit(commit.rows, commit.begun)
        except SpoolUnavailable as failed:
            error = failed
        except trio.Cancelled:
            if self._left is None:  # it has not been begun, or has to be begun again
                self._wait_again(calls)
            raise
        else:
            self._rows.put(commit.kept, trio.current_time())
            self._outgoing.expect()
        finally:
            self._is_committing = False
            self._committed.unpark_all()
            if self._calls or self._left:
                self._work.set()
        self._answer(calls, error)

    def _first(self) -> list[Call]:
        """Take those that go into the next commit."""
        count, size, number = 0, 0, 0
        for call in self._calls:
            if number and count + len(call.kept) > MAX_COMMIT:
                break
            if not self._rows.has_room(count + len(call.kept), size + call.size):
                break
            count, size, number = count + len(call.kept), size + call.size, number + 1
        first = self._calls[:number]
        del self._calls[:number]
        return first

    def _wait_again(self, calls: list[Call]) -> None:
        if self.is_open:
            self._calls[:0] = calls
        else:
            self._answer(calls, closing())

    async def _make_room(self) -> None:
        if self._outgoing.problem is None:
            self._outgoing.press()
            await self._outgoing.left.park()
        else:
            error = SpoolUnavailable(f"there is no room for more tasks: {self._outgoing.problem}")
            self._answer([self._calls.pop(0)], error)

    def made_room(self) -> None:
        """There may be room now."""
        if self._calls:
            self._outgoing.left.unpark_all()

    def _answer(self, calls: Sequence[Call], error: SpoolUnavailable | None) -> None:
        for call in calls:
            self.named -= call.names
            call.error = error
            call.done.set()
            if call.is_left and error is None:
                self._recovered()
        self._outgoing.left.unpark_all()


def closing() -> SpoolUnavailable:
    """Why a call that comes too late is refused."""
    return SpoolUnavailable("the spool is closing")
