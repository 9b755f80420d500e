"""All connections of a server: how many there may be, which of them is ended for another one, what their answers hold.

Of as many connections as there may be, one that waits for nothing makes room: first those whose clients take nothing of
an answer, then those that were refused, that have not asked for anything yet, and that may ask again. Who has sent what
we have not read yet, because we are busy, waits for us and stays.
"""

from __future__ import annotations

import contextlib
import math
from typing import TYPE_CHECKING

import trio

from trispool import memory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from trispool.admin.settings import ServerLimits

__all__ = ["SPARE_NEW_SECONDS", "SPARE_SECONDS", "Crowd"]

SPARE_SECONDS = 1.0
"""For so long an idle connection is left alone though there is no room for another one: a client needs a moment between
an answer and its next request. Also one whose client takes nothing of an answer."""

SPARE_NEW_SECONDS = 0.1
"""The same before its first request, which mostly is under way when the connection is there, and after a refusal. The
shorter, the more clients that only connect are needed to keep others out: ten times `max_connections` a second."""

FULL_SECONDS = 2.0
"""For so long one too many waits until one of the others has left, or can be ended, before it is refused."""

LOOK_SECONDS = 0.05
"""How often to look whether one can be ended meanwhile."""

HELD_BYTES = 128 * 1024 * 1024
"""Of answers that are being sent. While there are more, one whose client takes nothing is broken off after
`SPARE_SECONDS`: 1,024 pages of the largest size are 250 MB, and a task's body may have 64 MiB. A guess."""

TRIM_FROM = 100
"""When half of so many connections, or of more, have gone, memory that is not used is given back: 1,000 clients that
had not read the pages they had asked for left 350 MB behind."""


class Crowd:
    """See the module. The one owner of what connections share; changes only between two awaits.

    Of a connection that waits here the socket is open: before it is closed, `forget` is called.

    Args:
        limits: What each may do.

    Attributes:
        held: Bytes of the answers that are being sent.
    """

    def __init__(self, limits: ServerLimits) -> None:
        self.limits = limits
        self.held = 0
        self._stall_seconds = limits.stall_seconds
        self._is_stopping = False
        self._size = 0
        self._most = 0  # since memory was given back
        self._full_since: float | None = None  # and nobody could be ended
        self._left = trio.Event()
        # Those that could be ended, and since when, on Trio's clock; the longest first. New are those that have not
        # asked for anything yet, refused those whose last answer is out.
        self._sending: dict[trio.CancelScope, float] = {}
        self._refused: dict[trio.CancelScope, float] = {}
        self._new: dict[trio.CancelScope, float] = {}
        self._idle: dict[trio.CancelScope, float] = {}
        self._sizes: dict[trio.CancelScope, int] = {}  # of what is being sent
        self._has_sent: dict[trio.CancelScope, Callable[[], bool]] = {}

    @property
    def is_full(self) -> bool:
        """Whether one more would be too many."""
        return self._size >= self.limits.max_connections

    async def wait_for_room(self) -> bool:
        """Until there may be one more, for `FULL_SECONDS` at the most since there last was room for one.

        Returns:
            Whether there may be.
        """
        while self.is_full and not self.make_room():
            if self._full_since is None:
                self._full_since = trio.current_time()
            if trio.current_time() - self._full_since >= FULL_SECONDS:
                return False
            with trio.move_on_after(LOOK_SECONDS):
                await self._left.wait()
        self._full_since = None
        return True

    def make_room(self) -> bool:
        """End the connection that is the least loss: one that has waited the longest, of those that wait for nothing.

        Returns:
            False if there is none.
        """
        return any(
            self._end_first(waiting, spared) is not None
            for waiting, spared in (
                (self._sending, SPARE_SECONDS),
                (self._refused, SPARE_NEW_SECONDS),
                (self._new, SPARE_NEW_SECONDS),
                (self._idle, SPARE_SECONDS),
            )
        )

    def _end_first(self, waiting: dict[trio.CancelScope, float], spared: float) -> trio.CancelScope | None:
        """End the one that has waited the longest, if that is long."""
        now = trio.current_time()
        while waiting:
            scope, since = next(iter(waiting.items()))
            if now - since < spared:
                break
            del waiting[scope]
            has_sent = self._has_sent.get(scope)
            if has_sent is None or not has_sent():
                scope.cancel()
                return scope
            waiting[scope] = now  # to the end of the line
        return None

    def enter(self) -> None:
        """One connection more."""
        self._size += 1
        self._most = max(self._most, self._size)

    def leave(self) -> None:
        """It is closed."""
        self._size -= 1
        self._left.set()
        self._left = trio.Event()
        if self._most >= TRIM_FROM and self._size <= self._most // 2:
            self._most = self._size
            memory.trim()

    @contextlib.contextmanager
    def sending(self, size: int) -> Iterator[trio.CancelScope]:
        """Shield the sending of so many bytes, as half an answer helps nobody; until the client stalls."""
        with trio.CancelScope(shield=True) as scope:
            self.extend(scope)
            self._sizes[scope] = size
            self.held += size
            self._break_off()
            try:
                yield scope
            finally:
                self.held -= self._sizes.pop(scope, 0)
                self._sending.pop(scope, None)

    def _break_off(self) -> None:
        while self.held > HELD_BYTES and (scope := self._end_first(self._sending, SPARE_SECONDS)) is not None:
            self.held -= self._sizes.pop(scope)

    def extend(self, scope: trio.CancelScope) -> None:
        """Give the next chunk its time."""
        self._sending.pop(scope, None)  # to the end of the line
        self._sending[scope] = trio.current_time()
        scope.deadline = trio.current_time() + self._stall_seconds

    def set_new(self, scope: trio.CancelScope, seconds: float, has_sent: Callable[[], bool]) -> None:
        """Give a connection so long to shake hands, or to send its first request.

        Args:
            scope: Of the wait for it.
            seconds: How long.
            has_sent: Tells whether something has come that was not read yet.
        """
        self._wait(self._new, scope, seconds)
        self._has_sent[scope] = has_sent

    def set_idle(self, reading: trio.CancelScope, is_idle: bool, has_sent: Callable[[], bool]) -> None:
        """Give a connection `idle_seconds` to send a request, or end it if we are stopping; or let it read on."""
        if is_idle:
            self._wait(self._idle, reading, self.limits.idle_seconds)
            self._has_sent[reading] = has_sent
        else:
            self.forget(reading)
            reading.deadline = math.inf

    def set_refused(self, reading: trio.CancelScope) -> None:
        """Give a connection `linger_seconds` to send what nobody wants."""
        self._wait(self._refused, reading, self.limits.linger_seconds)

    def forget(self, scope: trio.CancelScope) -> None:
        """It waits no more."""
        self._has_sent.pop(scope, None)
        for waiting in (self._new, self._idle, self._refused):
            waiting.pop(scope, None)

    def _wait(self, waiting: dict[trio.CancelScope, float], scope: trio.CancelScope, seconds: float) -> None:
        self.forget(scope)
        waiting[scope] = trio.current_time()
        scope.deadline = trio.current_time() + seconds
        if self._is_stopping and waiting is not self._refused:
            scope.cancel()

    def stop(self) -> None:
        """End what is idle, and wait less for clients that do not read."""
        self._is_stopping = True
        for reading in (*self._new, *self._idle):
            reading.cancel()
        self._stall_seconds = min(self._stall_seconds, self.limits.stop_stall_seconds)
        latest = trio.current_time() + self._stall_seconds
        for scope in self._sending:
            scope.deadline = min(scope.deadline, latest)
