"""All connections of a listener and the epoll set they wait in: what happens between two awaits. Knows no Trio.

The rules it keeps:

1. A connection that has sent its whole request at once is never put into the set before its answer.
2. A connection has one turn at a time: nothing is read from it until its requests so far are answered. So answers keep
   their order, and a client that floods waits for itself.
3. A connection is in the set for one event only (`EPOLLONESHOT`), and is armed again when it must wait again. Its phase
   says what that event is for. One that has just been answered is armed by the look after the next: most clients have
   closed it by then.
4. What was received whole is kept, whether or not the client is still there to hear of it.
5. What is in memory, and what is being kept, is told to the `Room`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import time
from collections import deque
from socket import SocketType
from typing import TYPE_CHECKING, Final

from trispool.bind import allowed
from trispool.connection import Connection, Phase, Turn
from trispool.errors import MalformedPacket, SpoolUnavailable, TaskRefused, TrispoolError
from trispool.openconnections import OpenConnections

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator, Sequence

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

FEW_BYTES: Final = 4096
"""A request that has no more is small. So many are read of each connection, however much is under way."""

ALONE_BYTES: Final = 1024 * 1024
"""A request of more is a burst of its own: nobody waits for it, and the store can write it to its file at once."""

_READING: Final = Phase.READING
_READABLE: Final = select.EPOLLIN | select.EPOLLONESHOT
_WRITABLE: Final = select.EPOLLOUT | select.EPOLLONESHOT

_SHORT_OF_RESOURCES: Final = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}

_ERRORS_OF_ONE_CONNECTION: Final = {
    *(errno.ECONNABORTED, errno.EPERM, errno.EPROTO, errno.ENOPROTOOPT, errno.ENETDOWN, errno.ENETUNREACH),
    *(errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENONET, errno.EOPNOTSUPP, errno.EINTR),
}
"""accept(2): Linux passes on errors that the new connection has met already; they say nothing about the socket."""


class PollSet:
    """The connections of one listener.

    Args:
        settings: The listener's.
        intake: Where requests go.
        room: What it shares with other listeners.
        sockets: Those that listen; not closed here.

    Attributes:
        accepted: How many connections were accepted.
        rests: To be set while no look follows until something is ready.
        is_short: Set when accepting failed for lack of descriptors or memory, for whoever can let it rest.
    """

    def __init__(self, settings: ListenSettings, intake: Intake, room: Room, sockets: Sequence[socket.socket]) -> None:
        self._settings = settings
        self._intake = intake
        self._room = room
        self._sockets = {listening.fileno(): listening for listening in sockets}
        self._poll = select.epoll()
        self._open = OpenConnections(settings, intake, room)
        # Seen to be ready, and not yet served. A queue of our own: what is armed anew goes behind what came meanwhile.
        self._ready: deque[Connection] = deque()
        self._greedy: deque[Connection] = deque()  # more than a turn takes; last: one task shall not wait for 50,000
        self._postponed: deque[Connection] = deque()  # large requests, while too much is under way
        # Answered to the end, the later ones since the last look.
        self._answered: list[Connection] = []
        self._just_answered: list[Connection] = []
        self._is_allowed = allowed(settings.allow_networks)
        self._ends_at = 0.0  # when the look does, on the clock of `perf_counter`; 0: at once
        self.accepted = 0
        self.is_short = False
        self.rests = False
        for descriptor in self._sockets:
            self._poll.register(descriptor, select.EPOLLIN)
        # To be woken by: written to and never read, for each write is an event.
        self._waker = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._poll.register(self._waker, select.EPOLLIN | select.EPOLLET)
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
        self._ends_at = time.perf_counter() + LOOK_SECONDS
        acceptable: list[socket.socket] = []
        ready = self._ready
        for descriptor, _ in self._poll.poll(0, MAX_EVENTS):
            connection = self._open.get(descriptor)
            if connection is not None:
                (self._greedy if connection.phase is Phase.BUFFERED else ready).append(connection)
            elif descriptor in self._sockets:
                acceptable.append(self._sockets[descriptor])
        # Before anything is read: the clients of a Unix socket, which are shown before they have sent anything, then
        # mostly have, once it is their turn.
        for listening in acceptable:
            self._accept(listening)
        burst: list[Turn] = []
        ready.extend(self._answered)
        self._answered, self._just_answered = self._just_answered, []
        while self._postponed and not self._room.is_busy:
            self._serve_ready(self._postponed.popleft(), burst)
            if time.perf_counter() >= self._ends_at:
                break
        while ready and self._ends_at:
            self._serve_ready(ready.popleft(), burst)
            if time.perf_counter() >= self._ends_at:
                break
        # One at least, however many others there are.
        while self._greedy and self._ends_at:
            self._serve_ready(self._greedy.popleft(), burst)
            if time.perf_counter() >= self._ends_at or self._room.is_busy:
                break
        return burst

    def has_more(self) -> bool:
        """Whether the last look left something for the next one."""
        if self._postponed and not self._room.is_busy:
            return True
        return bool(self._ready or self._greedy or self._answered or self._just_answered)

    def answer(self, burst: Sequence[Turn], results: Sequence[Accepted | TrispoolError], now: float) -> None:
        """Answer turns whose tasks are kept, or not.

        Args:
            burst: The turns.
            results: What became of each of their tasks, in order.
            now: As for `look`.
        """
        self._open.now = now
        self._room.give_back(sum(turn.size for turn in burst))
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

    def _accept(self, listening: socket.socket) -> None:
        family, kind = listening.family, listening.type
        for _ in range(MAX_EVENTS):
            try:
                # Not accept(): the Python object that it makes of a socket costs a tenth of all that a request costs.
                descriptor, address = listening._accept()  # type: ignore[attr-defined] # not in typeshed
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno in _SHORT_OF_RESOURCES:
                    self._intake.count("resources", "", f"accepting pauses: {error}")
                    self.is_short = True
                    break
                if error.errno in _ERRORS_OF_ONE_CONNECTION:
                    continue
                raise
            self.accepted += 1
            sock = SocketType(family, kind, 0, descriptor)
            connection = Connection(sock, address, self._intake.new_reader, self._open.now)
            if self._is_allowed and isinstance(address, tuple) and not self._is_allowed(address[0]):
                self._intake.count("network", connection.peer, "its network is not among allow_networks")
                sock.close()
            elif len(self._open) >= self._settings.max_connections and not self._open.end_one():
                self._turn_away(connection)
            else:
                self._open[connection.fd] = connection
                self._ready.append(connection)

    def _turn_away(self, connection: Connection) -> None:
        """Refuse a connection without having room for it."""
        error = SpoolUnavailable(
            f"{self._settings.max_connections} connections are open, max_connections allows no more"
        )
        connection.reader.receive_data(connection.receive(RECEIVE_BYTES) or b"")
        with contextlib.suppress(TaskRefused):
            connection.reader.next_event()  # so that its vars are known
        connection.send(self._intake.refuse(connection, error, reason="connections"))
        connection.close()

    def _serve_ready(self, connection: Connection, burst: list[Turn]) -> None:
        phase = connection.phase
        if phase is _READING:
            self._receive(connection, burst)
        elif phase is Phase.BUFFERED:
            self._advance(connection, burst)
        elif phase is Phase.WRITING:
            if self._open.is_too_slow(connection, 0):
                self._open.time_out(connection)
            else:
                self._send(connection, connection.unsent)
        elif phase is Phase.LINGERING:
            self._discard(connection)

    def _receive(self, connection: Connection, burst: list[Turn]) -> None:
        size = RECEIVE_BYTES
        if not connection.is_fresh and (missing := connection.reader.missing) > FEW_BYTES:
            if self._room.is_busy:
                self._postpone(connection)
                return
            if missing > RECEIVE_BYTES:
                size = RECEIVE_BODY_BYTES
            if burst and missing <= size and connection.asks_for > ALONE_BYTES:
                self._ready.appendleft(connection)
                self._ends_at = 0.0
                return
        elif self._room.is_busy:
            size = FEW_BYTES
        data = connection.receive(size)
        if data:
            self._open.has_progressed(connection)
            if connection.is_fresh and (turn := self._intake.plain_turn(connection, data)):
                connection.has_asked = True
                self._keep(turn, burst)
                return
            connection.reader.receive_data(data)
            self._advance(connection, burst)
        elif data is None:
            self._arm(connection, Phase.READING)
        else:
            if not connection.is_fresh and connection.reader.buffered:
                error = MalformedPacket(f"the connection ended, {connection.reader.missing} bytes too early")
                connection.send(self._intake.refuse(connection, error, reason="incomplete"))
            self._open.close(connection)

    def _advance(self, connection: Connection, burst: list[Turn]) -> None:
        """Go on with what a connection has sent."""
        turn = self._intake.next_turn(connection)
        if turn is None:
            self._wait_for_more(connection)
            return
        connection.has_asked = True
        connection.has_waited = False
        self._open.hold(connection, connection.reader.buffered)
        if turn.tasks:
            self._keep(turn, burst)
        else:
            self._send(connection, self._intake.answer(turn, iter(())))

    def _keep(self, turn: Turn, burst: list[Turn]) -> None:
        turn.connection.phase = Phase.ENQUEUED
        self._room.take(turn.size)
        burst.append(turn)
        if turn.size > ALONE_BYTES:
            self._ends_at = 0.0

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

    def _postpone(self, connection: Connection) -> None:
        """Read a large request no further while too much is under way."""
        if connection.has_waited:  # others have come before it already, and it holds memory
            self._postponed.appendleft(connection)
        else:
            connection.has_waited = True
            self._postponed.append(connection)
        connection.since = None  # it is not slow
        self._open.has_progressed(connection)

    def refuse_oldest(self) -> bool:
        """See `OpenConnections.refuse_oldest`."""
        return self._open.refuse_oldest()

    def wake(self) -> None:
        """Go on with large requests."""
        if self._postponed:
            os.eventfd_write(self._waker, 1)

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
        event = _WRITABLE if phase is Phase.WRITING or phase is Phase.BUFFERED else _READABLE
        if connection.watched:
            self._poll.modify(connection.fd, event)
        else:
            self._poll.register(connection.fd, event)
            connection.watched = True
