"""All connections of a listener and the epoll set they wait in: what happens between two awaits. Knows no Trio.

The rules it keeps:

1. A connection that has sent its whole request at once is never put into the set before its answer.
2. A connection has one turn at a time: nothing is read from it until its requests so far are answered. So answers keep
   their order, and a client that floods waits for itself.
3. A connection is in the set for one event only (`EPOLLONESHOT`), and is armed again when it must wait again. Its phase
   says what that event is for. One that has just been answered is armed by the look after the next: most clients have
   closed it by then.
4. What was received whole is kept, whether or not the client is still there to hear of it. Only a large request that
   waits to be read is given up then, if others need its place or its memory.
5. What is in memory, and what is being kept, is told to the `Room`.
"""

from __future__ import annotations

import os
import select
import time
from collections import deque
from typing import TYPE_CHECKING, Final

from trispool.acceptor import Acceptor
from trispool.connection import FEW_BYTES, Connection, Phase, Turn
from trispool.openconnections import OpenConnections

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator, Sequence

    from trispool.errors import TrispoolError
    from trispool.intake import Intake
    from trispool.room import Room
    from trispool.settings import ListenSettings
    from trispool.task import Accepted

__all__ = ["PollSet"]

MAX_EVENTS: Final = 64
"""Connections served, and accepted, between two turns of the Trio loop: about 2 ms, so that the others have theirs."""

LOOK_SECONDS: Final = 0.003
"""After so long the others have their turn, ready or not: 64 packets full of tiny vars would take 200 ms."""

RECEIVE_BYTES: Final = 0xFFFF + 4
"""One read: a packet of the largest size."""

RECEIVE_BODY_BYTES: Final = 128 * 1024
"""One read of a body."""

ALONE_BYTES: Final = 1024 * 1024
"""A request of more is a burst of its own: nobody waits for it, and the store can write it to its file at once."""

_READING: Final = Phase.READING
_CLIENT_GONE: Final = select.EPOLLHUP | select.EPOLLERR  # what epoll tells of unasked
_CLIENT_ENDED: Final = _CLIENT_GONE | select.EPOLLRDHUP

_READABLE: Final = select.EPOLLONESHOT | select.EPOLLIN | select.EPOLLRDHUP
_EVENTS: Final = {
    Phase.POSTPONED: select.EPOLLONESHOT | select.EPOLLRDHUP,
    Phase.WRITING: select.EPOLLONESHOT | select.EPOLLOUT,
    Phase.BUFFERED: select.EPOLLONESHOT | select.EPOLLOUT,
    Phase.LINGERING: select.EPOLLONESHOT | select.EPOLLIN,
}
"""What the other phases wait for."""


class Look:
    """One look at the connections: what it yields, and when it is over.

    Attributes:
        burst: The turns that are to be kept.
        is_closed: Whether nothing more may come into this burst.
    """

    def __init__(self) -> None:
        self.burst: list[Turn] = []
        self.is_closed = False
        self._ends_at = time.perf_counter() + LOOK_SECONDS

    @property
    def is_over(self) -> bool:
        """Whether it is the others' turn."""
        return self.is_closed or time.perf_counter() >= self._ends_at


class PollSet:
    """The connections of one listener.

    Args:
        settings: The listener's.
        intake: Where requests go.
        room: What it shares with other listeners.
        sockets: Those that listen; not closed here.

    Attributes:
        acceptor: Takes new connections.
        rests: To be set while no look follows until something is ready.
    """

    def __init__(self, settings: ListenSettings, intake: Intake, room: Room, sockets: Sequence[socket.socket]) -> None:
        self._intake = intake
        self._room = room
        self._sockets = {listening.fileno(): listening for listening in sockets}
        self._poll = select.epoll()
        self._open = OpenConnections(settings, intake, room)
        self.acceptor = Acceptor(settings, intake, self._open)
        # Seen to be ready, and not yet served. Queues of our own: what is armed anew goes behind what came meanwhile.
        self._new: deque[Connection] = deque()
        self._ready: deque[Connection] = deque()
        self._greedy: deque[Connection] = deque()  # more than a turn takes; last: one task shall not wait for 50,000
        # Answered to the end, the later ones since the last look.
        self._answered: list[Connection] = []
        self._just_answered: list[Connection] = []
        self._large_first = False
        self.rests = False
        for descriptor in self._sockets:
            self._poll.register(descriptor, select.EPOLLIN)
        # To be woken by: always readable, which is told once each time that it is armed.
        self._waker = os.eventfd(1, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._poll.register(self._waker, 0)
        room.enter(self)

    def __len__(self) -> int:
        """How many connections are open."""
        return len(self._open)

    @property
    def timeouts(self) -> int:
        """How many connections were closed because they were silent or too slow."""
        return self._open.timeouts

    @property
    def held(self) -> int:
        """How many bytes of incomplete requests are in memory."""
        return self._open.held

    def fileno(self) -> int:
        """A descriptor that is readable when a look is worth it."""
        return self._poll.fileno()

    def accept(self, willing: bool) -> None:
        """Whether to look at the sockets that listen."""
        for descriptor in self._sockets:
            self._poll.modify(descriptor, select.EPOLLIN if willing else 0)

    def close(self) -> None:
        """Close all connections."""
        for connection in list(self._open.values()):
            self._open.close(connection)
        self._room.leave(self)
        os.close(self._waker)
        self._poll.close()

    def look(self, now: float) -> list[Turn]:
        """Serve what is ready; gives the turns that are to be kept.

        Args:
            now: Seconds, of any clock that does not go back.
        """
        self._open.now = now
        look = Look()
        new, ready, idle = self._new, self._ready, self._open.idle
        acceptable: list[socket.socket] = []
        for descriptor, events in self._poll.poll(0, MAX_EVENTS):
            connection = self._open.get(descriptor)
            if connection is not None:
                idle.pop(descriptor, None)
                if connection.is_fresh:  # as those that send small requests are
                    ready.append(connection)
                else:
                    self._line_up(connection, events)
            elif descriptor in self._sockets:
                acceptable.append(self._sockets[descriptor])
        # Before anything is read: the clients of a Unix socket, which are shown before they have sent anything, then
        # mostly have, once it is their turn. Not more than are served soon: in the kernel they take nobody's place.
        for listening in acceptable:
            new.extend(self.acceptor.accept(listening, MAX_EVENTS - len(new)))
        ready.extend(self._answered)
        self._answered, self._just_answered = self._just_answered, []
        # Small ones first, for they are soon done; but every other time a large one, which may need a burst of its own.
        self._large_first = not self._large_first
        if self._large_first:
            self._serve_postponed(look)
        while (new or ready) and not look.is_closed:
            for queue in (new, ready):
                if queue and not look.is_closed:
                    self._serve(queue.popleft(), look)
            if look.is_over:
                break
        while not look.is_over and self._serve_postponed(look):
            pass
        while self._greedy and not look.is_closed:  # one at least, too
            self._serve(self._greedy.popleft(), look)
            if look.is_over or self._room.is_busy:
                break
        return look.burst

    def has_more(self) -> bool:
        """Whether the last look left something for the next one."""
        if self._open.postponed and not self._room.lets_large_wait:
            return True
        return bool(self._new or self._ready or self._greedy or self._answered or self._just_answered)

    def answer(self, burst: Sequence[Turn], results: Sequence[Accepted | TrispoolError], now: float) -> None:
        """Answer turns whose tasks are kept, or not.

        Args:
            burst: The turns.
            results: What became of each of their tasks, in order.
            now: As for `look`.
        """
        self._open.now = now
        self._room.give_back(sum(turn.size for turn in burst), sum(turn.is_large for turn in burst))
        remaining: Iterator[Accepted | TrispoolError] = iter(results)
        for turn in burst:
            self._send(turn.connection, self._intake.answer(turn, remaining))

    def end_silent(self, now: float) -> float:
        """Close the connections that have made no progress for too long.

        Returns:
            When to look again.
        """
        self._open.now = now
        return self._open.end_silent()

    def _line_up(self, connection: Connection, events: int) -> None:
        """Put a connection that is ready behind the others of its kind."""
        phase = connection.phase
        if phase is Phase.POSTPONED:
            self._has_ended(connection, events)
        elif phase is Phase.BUFFERED:
            self._greedy.append(connection)
        elif phase is _READING and connection.wants_much:
            self._postpone(connection, events)
        else:
            self._ready.append(connection)

    def _postpone(self, connection: Connection, events: int) -> None:
        """Read a large request further when it is its turn: small ones go before it, and much may be under way."""
        self._open.postpone(connection)
        if events & _CLIENT_ENDED:
            connection.phase = Phase.POSTPONED
            self._has_ended(connection, events)
        else:
            self._arm(connection, Phase.POSTPONED)

    def _has_ended(self, connection: Connection, events: int) -> None:
        """Nothing more comes of a large request, whose turn has not come yet."""
        if connection.receivable() < connection.reader.missing:
            self._open.refuse_incomplete(connection)
        elif events & _CLIENT_GONE:
            self._open.gone[connection.fd] = connection

    def _serve_postponed(self, look: Look) -> bool:
        """Read on the large request whose turn it is; False if it cannot be done now."""
        if not self._open.postponed or self._room.lets_large_wait:
            return False
        connection = next(iter(self._open.postponed.values()))
        missing = connection.reader.missing
        size = RECEIVE_BYTES if missing <= RECEIVE_BYTES else RECEIVE_BODY_BYTES
        if look.burst and missing <= size and connection.asks_for > ALONE_BYTES:
            look.is_closed = True
            return False
        self._open.resume(connection)
        data = connection.receive(size)
        connection.is_large = True
        connection.is_quick = data is not None and len(data) > FEW_BYTES
        self._take(connection, data, look)
        return True

    def _serve(self, connection: Connection, look: Look) -> None:
        phase = connection.phase
        if phase is _READING:
            # The beginning tells which new ones are large, too, and of these one after another is to be read.
            is_enough = self._room.is_busy or (self._open.postponed and not connection.has_asked)
            self._take(connection, connection.receive(FEW_BYTES if is_enough else RECEIVE_BYTES), look)
        elif phase is Phase.BUFFERED:
            self._advance(connection, look)
        elif phase is Phase.WRITING:
            if self._open.is_too_slow(connection, 0):
                self._open.time_out(connection)
            else:
                self._send(connection, connection.unsent)
        elif phase is Phase.LINGERING:
            self._discard(connection)

    def _take(self, connection: Connection, data: bytes | None, look: Look) -> None:
        """Go on with what was received."""
        if data:
            self._open.has_progressed(connection)
            if connection.is_fresh and (turn := self._intake.plain_turn(connection, data)):
                connection.has_asked = True
                self._keep(turn, look)
                return
            connection.reader.receive_data(data)
            self._advance(connection, look)
        elif data is None:
            self._arm(connection, Phase.READING)
        elif connection.is_fresh or not connection.reader.buffered:
            self._open.close(connection)
        else:
            self._open.refuse_incomplete(connection)

    def _advance(self, connection: Connection, look: Look) -> None:
        """Go on with what a connection has sent."""
        turn = self._intake.next_turn(connection)
        if turn is None:
            self._wait_for_more(connection)
            return
        connection.has_asked = True
        connection.is_large = connection.is_quick = False
        self._open.hold(connection, connection.reader.buffered)
        if turn.tasks:
            self._keep(turn, look)
        else:
            self._send(connection, self._intake.answer(turn, iter(())))

    def _keep(self, turn: Turn, look: Look) -> None:
        turn.connection.phase = Phase.ENQUEUED
        self._room.take(turn.size, turn.is_large)
        look.burst.append(turn)
        if turn.size > ALONE_BYTES:
            look.is_closed = True

    def _send(self, connection: Connection, data: bytes) -> None:
        if not connection.send(data):
            if len(connection.unsent) < len(data):
                self._open.has_progressed(connection)
            if connection.since is None:
                connection.since = self._open.now
            self._arm(connection, Phase.WRITING)
            return
        self._open.has_progressed(connection)
        connection.since = None
        if connection.is_fresh and not self.rests:  # nothing is left of what it has sent, and a look follows
            connection.phase = _READING
            self._just_answered.append(connection)
        elif connection.broken:
            self._linger(connection)
        elif connection.last:
            self._open.close(connection)
        elif connection.reader.buffered:
            self._arm(connection, Phase.BUFFERED)
        else:
            self._wait_for_more(connection)

    def _wait_for_more(self, connection: Connection) -> None:
        held = connection.reader.buffered
        self._open.hold(connection, held)
        if not held:
            connection.since = None
        elif connection.since is None:
            connection.since = self._open.now
        elif self._open.is_too_slow(connection, held + connection.reader.missing):
            self._open.time_out(connection)
            return
        self._arm(connection, Phase.READING)
        self._room.free()

    def refuse_oldest(self) -> bool:
        """See `OpenConnections.refuse_oldest`."""
        return self._open.refuse_oldest()

    def wake(self) -> None:
        """Go on with large requests."""
        if self._open.postponed:
            self._poll.modify(self._waker, select.EPOLLIN | select.EPOLLONESHOT)

    def _linger(self, connection: Connection) -> None:
        connection.end()
        self._open.forget(connection)
        connection.since = self._open.now
        self._discard(connection)

    def _discard(self, connection: Connection) -> None:
        data = connection.receive(RECEIVE_BODY_BYTES)
        if data is None:
            self._arm(connection, Phase.LINGERING)
        elif not data or self._open.is_too_slow(connection, 0):
            self._open.close(connection)
        else:
            self._open.has_progressed(connection)
            self._arm(connection, Phase.LINGERING)

    def _arm(self, connection: Connection, phase: Phase) -> None:
        """Wait for the one event that the phase is about."""
        connection.phase = phase
        if phase is _READING and not connection.held:
            self._open.idle[connection.fd] = connection
        event = _READABLE if phase is _READING else _EVENTS[phase]
        if connection.watched:
            self._poll.modify(connection.fd, event)
        else:
            self._poll.register(connection.fd, event)
            connection.watched = True
