"""The open connections of a listener, in the order of their last progress: who is silent, slow, or holds memory."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from trispool.connection import Connection, Phase
from trispool.errors import MalformedPacket, SpoolUnavailable, TaskRefused

if TYPE_CHECKING:
    from trispool.intake import Intake
    from trispool.room import Room
    from trispool.settings import ListenSettings

__all__ = ["OpenConnections"]

PATIENCE: Final = 4
"""A whole request may take so many times `timeout`, however steadily it trickles, …"""

MIN_BYTES_PER_SECOND: Final = 64 * 1024
"""… and in addition as long as its bytes take at this pace. A guess, meant for machines of one network."""

_INCOMPLETE: Final = (Phase.READING, Phase.POSTPONED)


class OpenConnections(OrderedDict[int, Connection]):
    """By descriptor; the first is the next to time out. It owns what it closes.

    Args:
        settings: The listener's.
        intake: Makes the answers to those that are refused.
        room: Is told what is held.

    Attributes:
        now: The time, seconds, of any clock that does not go back; set by whoever looks at connections.
        timeouts: How many were closed because they were silent or too slow.
        held: How many bytes of incomplete requests are in memory.
        idle: Those that wait for a request of which nothing has come, the one that has waited for longest first.
        postponed: Those whose large requests wait for their turn, in this order.
        gone: Of these, those whose clients have gone. What has come of their requests is whole.
    """

    def __init__(self, settings: ListenSettings, intake: Intake, room: Room) -> None:
        super().__init__()
        self._settings = settings
        self._intake = intake
        self._room = room
        self.now = 0.0
        self.timeouts = 0
        self.held = 0
        self.idle: OrderedDict[int, Connection] = OrderedDict()
        self.postponed: OrderedDict[int, Connection] = OrderedDict()
        self.gone: OrderedDict[int, Connection] = OrderedDict()

    def has_progressed(self, connection: Connection) -> None:
        """It has sent something, or taken something."""
        connection.progress_at = self.now
        self.move_to_end(connection.fd)

    def close(self, connection: Connection) -> None:
        """It is over."""
        descriptor = connection.fd
        del self[descriptor]
        self.idle.pop(descriptor, None)
        connection.close()
        if not connection.is_fresh:
            self.postponed.pop(descriptor, None)
            self.gone.pop(descriptor, None)
            self.forget(connection)

    def refuse_incomplete(self, connection: Connection) -> None:
        """Nothing more comes, and its request is not whole."""
        error = MalformedPacket(f"the connection ended, {connection.reader.missing} bytes too early")
        connection.send(self._intake.refuse(connection, error, reason="incomplete"))
        self.close(connection)

    def hold(self, connection: Connection, size: int) -> None:
        """So many bytes of its incomplete requests are held now."""
        more = size - connection.held
        connection.held = size
        self.held += more
        self._room.hold(more)

    def forget(self, connection: Connection) -> None:
        """Nothing of what it has sent is held any more."""
        connection.forget()
        self.hold(connection, 0)

    # Turns

    def postpone(self, connection: Connection) -> None:
        """It has a large request. Who is quick and has begun goes before the others, for it holds memory."""
        connection.since = None  # it is not slow
        self.has_progressed(connection)
        self.postponed[connection.fd] = connection
        if connection.is_quick:
            self.postponed.move_to_end(connection.fd, last=False)

    def resume(self, connection: Connection) -> None:
        """It is its turn."""
        del self.postponed[connection.fd]
        self.gone.pop(connection.fd, None)

    # Time

    def is_too_slow(self, connection: Connection, size: int) -> bool:
        """Whether it has been at something of so many bytes for too long."""
        allowed = PATIENCE * self._settings.timeout + size / MIN_BYTES_PER_SECOND
        return connection.since is not None and self.now - connection.since > allowed

    def end_silent(self) -> float:
        """Close those that have made no progress for too long.

        Returns:
            When to look again.
        """
        timeout = self._settings.timeout
        while connection := self._longest_silent(timeout):
            self.time_out(connection)
        first = next(iter(self.values()), None)
        return (self.now if first is None else first.progress_at) + timeout

    def end_one(self) -> bool:
        """Close the one that is missed least, so that another has its place; False if all are needed.

        First a large request that nobody would hear the answer to, then who has been silent for long, then who is idle,
        for however short: one that behaves asks long before it has become the one that has been idle for longest.
        """
        if self._end_gone("connections"):
            return True
        connection = self._longest_silent(self._settings.timeout / 5) or self._longest_idle()
        if connection is None:
            return False
        self.time_out(connection)
        return True

    def _end_gone(self, reason: str) -> bool:
        connection = next(iter(self.gone.values()), None)
        if connection is None:
            return False
        self._intake.count(reason, connection.peer, "its client has gone, and others need its place")
        self.close(connection)
        return True

    def _longest_silent(self, seconds: float) -> Connection | None:
        """The one that has made no progress for longest, if it is for so long at least."""
        while self:
            connection = next(iter(self.values()))
            if connection.progress_at + seconds > self.now:
                return None
            # What has come and was not read yet, for too much waits for its commit, is progress, too.
            if not connection.waits_for_us():
                return connection
            self.has_progressed(connection)
        return None

    def _longest_idle(self) -> Connection | None:
        while self.idle:
            _, connection = self.idle.popitem(last=False)
            if not connection.waits_for_us():
                return connection
        return None

    def time_out(self, connection: Connection) -> None:
        """Close one that was silent or too slow. One that only kept quiet after an answer has done nothing wrong."""
        phase = connection.phase
        is_incomplete = phase in _INCOMPLETE and not connection.is_fresh and connection.reader.buffered > 0
        is_idle = phase is Phase.READING and connection.has_asked and not is_incomplete
        if not (is_idle or phase is Phase.LINGERING):
            self.timeouts += 1
        if is_incomplete:
            error = TaskRefused(
                f"the request took too long, {connection.reader.missing} bytes of it are missing", status=408
            )
            connection.send(self._intake.refuse(connection, error))
        self.close(connection)

    # Memory

    def refuse_oldest(self) -> bool:
        """Refuse the incomplete request that has waited for its bytes for longest; False if there is none."""
        if self._end_gone("memory"):
            return True
        waiting = (one for one in self.values() if one.held and one.phase in _INCOMPLETE)
        connection = next(waiting, None)
        if connection is None:
            return False
        error = SpoolUnavailable("too many incomplete requests are held in memory")
        connection.send(self._intake.refuse(connection, error, reason="memory"))
        self.close(connection)
        return True
