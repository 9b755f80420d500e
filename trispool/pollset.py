"""All connections of a listener and the epoll set they wait in: what happens between two awaits. Knows no Trio.

The rules it keeps:

1. A connection that has sent its whole request at once is never put into the set before its answer.
2. A connection has one turn at a time: nothing is read from it until its requests so far are answered. So answers keep
   their order, and a client that floods waits for itself.
3. A connection is in the set for one event only (`EPOLLONESHOT`), and is armed again when it must wait again. Its phase
   says what that event is for. One that has just been answered is armed by the look after the next: most clients have
   closed it by then.
4. What was received whole is kept, whether or not the client is still there to hear of it.
"""

from __future__ import annotations

import contextlib
import errno
import select
import time
from collections import OrderedDict, deque
from socket import SocketType
from typing import TYPE_CHECKING, Final

from trispool.bind import allowed
from trispool.connection import Connection, Phase, Turn
from trispool.errors import MalformedPacket, SpoolUnavailable, TaskRefused, TrispoolError

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator, Sequence

    from trispool.intake import Intake
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

HELD_BYTES: Final = 256 * 1024 * 1024
"""Incomplete requests in memory, of all connections together, or four of the largest if that is more. A guess."""

PATIENCE: Final = 4
"""A whole request may take so many times `timeout`, however steadily it trickles, …"""

MIN_BYTES_PER_SECOND: Final = 64 * 1024
"""… and in addition as long as its bytes take at this pace. A guess, meant for machines of one network."""

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
        sockets: Those that listen; not closed here.

    Attributes:
        accepted: How many connections were accepted.
        timeouts: How many were closed because they were silent or too slow.
        held: How many bytes of incomplete requests are in memory.
        rests: To be set while no look follows until something is ready.
        is_short: Set when accepting failed for lack of descriptors or memory, for whoever can let it rest.
    """

    def __init__(self, settings: ListenSettings, intake: Intake, sockets: Sequence[socket.socket]) -> None:
        self._settings = settings
        self._intake = intake
        self._sockets = {listening.fileno(): listening for listening in sockets}
        self._poll = select.epoll()
        # In the order of their last progress, so that the first is the next to time out.
        self._connections: OrderedDict[int, Connection] = OrderedDict()
        # Seen to be ready, and not yet served. A queue of our own: what is armed anew goes behind what came meanwhile.
        self._ready: deque[Connection] = deque()
        self._greedy: deque[Connection] = deque()  # more than a turn takes; last: one task shall not wait for 50,000
        # Answered to the end, the later ones since the last look.
        self._answered: list[Connection] = []
        self._just_answered: list[Connection] = []
        self._is_allowed = allowed(settings.allow_networks)
        self._max_held = max(HELD_BYTES, 4 * settings.max_body)
        self._now = 0.0
        self.accepted = 0
        self.timeouts = 0
        self.held = 0
        self.is_short = False
        self.rests = False
        for descriptor in self._sockets:
            self._poll.register(descriptor, select.EPOLLIN)

    def __len__(self) -> int:
        """How many connections are open."""
        return len(self._connections)

    def fileno(self) -> int:
        """A descriptor that is readable when a look is worth it."""
        return self._poll.fileno()

    def accept(self, willing: bool) -> None:
        """Whether to look at the sockets that listen."""
        for descriptor in self._sockets:
            self._poll.modify(descriptor, select.EPOLLIN if willing else 0)

    def close(self) -> None:
        """Close all connections."""
        for connection in list(self._connections.values()):
            self._close(connection)
        self._poll.close()

    def look(self, now: float) -> list[Turn]:
        """Serve what is ready; gives the turns that are to be kept.

        Args:
            now: Seconds, of any clock that does not go back.
        """
        self._now = now
        give_way_at = time.perf_counter() + LOOK_SECONDS
        acceptable: list[socket.socket] = []
        ready = self._ready
        for descriptor, _ in self._poll.poll(0, MAX_EVENTS):
            connection = self._connections.get(descriptor)
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
        while ready:
            connection = ready.popleft()
            if connection.phase is _READING:
                self._receive(connection, burst)
            else:
                self._serve_ready(connection, burst)
            if time.perf_counter() >= give_way_at:
                break
        while self._greedy:  # one at least, however many others there are
            self._serve_ready(self._greedy.popleft(), burst)
            if time.perf_counter() >= give_way_at:
                break
        return burst

    def has_more(self) -> bool:
        """Whether the last look left something for the next one."""
        return bool(self._ready or self._greedy or self._answered or self._just_answered)

    def answer(self, burst: Sequence[Turn], results: Sequence[Accepted | TrispoolError], now: float) -> None:
        """Answer turns whose tasks are kept, or not.

        Args:
            burst: The turns.
            results: What became of each of their tasks, in order.
            now: As for `look`.
        """
        self._now = now
        remaining: Iterator[Accepted | TrispoolError] = iter(results)
        for turn in burst:
            self._send(turn.connection, self._intake.answer(turn, remaining))

    def end_silent(self, now: float) -> float:
        """Close the connections that have made no progress for too long.

        Returns:
            When to look again.
        """
        self._now = now
        timeout = self._settings.timeout
        while self._connections:
            connection = next(iter(self._connections.values()))
            if connection.progress_at + timeout > now:
                return connection.progress_at + timeout
            # What has come and was not read yet, for too many bursts wait for their commit, is progress, too.
            if connection.waits_for_us():
                self._has_progressed(connection)
            else:
                self._time_out(connection)
        return now + timeout

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
            connection = Connection(sock, address, self._intake.new_reader, self._now)
            if self._is_allowed and isinstance(address, tuple) and not self._is_allowed(address[0]):
                self._intake.count("network", connection.peer, "its network is not among allow_networks")
                sock.close()
            elif len(self._connections) >= self._settings.max_connections and not self._make_room():
                self._turn_away(connection)
            else:
                self._connections[connection.fd] = connection
                self._ready.append(connection)

    def _make_room(self) -> bool:
        """Close the connection that has been silent for longest, if that is long."""
        connection = next(iter(self._connections.values()), None)
        if connection is None or connection.waits_for_us():
            return False
        if self._now - connection.progress_at <= self._settings.timeout / 5:
            return False
        self._time_out(connection)
        return True

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
        if phase is Phase.BUFFERED:
            self._advance(connection, burst)
        elif phase is Phase.WRITING:
            if self._is_too_slow(connection, 0):
                self._time_out(connection)
            else:
                self._send(connection, connection.unsent)
        elif phase is Phase.LINGERING:
            self._discard(connection)

    def _receive(self, connection: Connection, burst: list[Turn]) -> None:
        is_large = not connection.is_fresh and connection.reader.missing > RECEIVE_BYTES
        data = connection.receive(RECEIVE_BODY_BYTES if is_large else RECEIVE_BYTES)
        if data:
            self._has_progressed(connection)
            if connection.is_fresh and (turn := self._intake.plain_turn(connection, data)):
                connection.has_asked = True
                connection.phase = Phase.ENQUEUED
                burst.append(turn)
                return
            connection.reader.receive_data(data)
            self._advance(connection, burst)
        elif data is None:
            self._arm(connection, Phase.READING)
        else:
            if not connection.is_fresh and connection.reader.buffered:
                error = MalformedPacket(f"the connection ended, {connection.reader.missing} bytes too early")
                connection.send(self._intake.refuse(connection, error, reason="incomplete"))
            self._close(connection)

    def _advance(self, connection: Connection, burst: list[Turn]) -> None:
        """Go on with what a connection has sent."""
        turn = self._intake.next_turn(connection)
        if turn is None:
            self._wait_for_more(connection)
            return
        connection.has_asked = True
        if turn.tasks:
            connection.phase = Phase.ENQUEUED
            burst.append(turn)
        else:
            self._send(connection, self._intake.answer(turn, iter(())))

    def _send(self, connection: Connection, data: bytes) -> None:
        if not connection.send(data):
            if len(connection.unsent) < len(data):
                self._has_progressed(connection)
            if connection.since is None:
                connection.since = self._now
            self._arm(connection, Phase.WRITING)
            return
        self._has_progressed(connection)
        connection.since = None
        if connection.is_fresh and not self.rests:  # nothing is left of what it has sent, and a look follows
            connection.phase = _READING
            self._just_answered.append(connection)
        elif connection.broken:
            self._linger(connection)
        elif connection.last:
            self._close(connection)
        elif connection.reader.buffered:
            self._arm(connection, Phase.BUFFERED)
        else:
            self._wait_for_more(connection)

    def _wait_for_more(self, connection: Connection) -> None:
        held = connection.reader.buffered
        self.held += held - connection.held
        connection.held = held
        if not held:
            connection.since = None
        elif connection.since is None:
            connection.since = self._now
        elif self._is_too_slow(connection, held + connection.reader.missing):
            self._time_out(connection)
            return
        self._arm(connection, Phase.READING)
        if self.held > self._max_held:
            self._free_memory()

    def _is_too_slow(self, connection: Connection, size: int) -> bool:
        allowed = PATIENCE * self._settings.timeout + size / MIN_BYTES_PER_SECOND
        return connection.since is not None and self._now - connection.since > allowed

    def _free_memory(self) -> None:
        """Refuse those incomplete requests that have waited for their bytes for longest, until few enough are held."""
        error = SpoolUnavailable("too many incomplete requests are held in memory")
        waiting = (one for one in list(self._connections.values()) if one.held and one.phase is Phase.READING)
        for connection in waiting:
            if self.held <= self._max_held:
                return
            connection.send(self._intake.refuse(connection, error, reason="memory"))
            self._close(connection)

    def _linger(self, connection: Connection) -> None:
        connection.end()
        connection.since = self._now
        self._discard(connection)

    def _discard(self, connection: Connection) -> None:
        data = connection.receive(RECEIVE_BODY_BYTES)
        if data is None:
            self._arm(connection, Phase.LINGERING)
        elif not data or self._is_too_slow(connection, 0):
            self._close(connection)
        else:
            self._has_progressed(connection)
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

    def _has_progressed(self, connection: Connection) -> None:
        connection.progress_at = self._now
        self._connections.move_to_end(connection.fd)

    def _time_out(self, connection: Connection) -> None:
        """Close a connection. One that only kept quiet after an answer has done nothing wrong."""
        phase = connection.phase
        is_incomplete = phase is Phase.READING and not connection.is_fresh and connection.reader.buffered > 0
        is_idle = phase is Phase.READING and connection.has_asked and not is_incomplete
        if not (is_idle or phase is Phase.LINGERING):
            self.timeouts += 1
        if is_incomplete:
            error = TaskRefused(
                f"the request took too long, {connection.reader.missing} bytes of it are missing", status=408
            )
            connection.send(self._intake.refuse(connection, error))
        self._close(connection)

    def _close(self, connection: Connection) -> None:
        self.held -= connection.held
        del self._connections[connection.fd]
        connection.close()
