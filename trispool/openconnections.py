"""The open connections of a listener, in the order of their last progress: who is silent, slow, or holds memory."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from trispool.connection import Connection, Phase
from trispool.errors import SpoolUnavailable, TaskRefused

if TYPE_CHECKING:
    from trispool.intake import Intake
    from trispool.room import Room
    from trispool.settings import ListenSettings

__all__ = ["OpenConnections"]

PATIENCE: Final = 4
"""A whole request may take so many times `timeout`, however steadily it trickles, …"""

MIN_BYTES_PER_SECOND: Final = 64 * 1024
"""… and in addition as long as its bytes take at this pace. A guess, meant for machines of one network."""


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
    """

    def __init__(self, settings: ListenSettings, intake: Intake, room: Room) -> None:
        super().__init__()
        self._settings = settings
        self._intake = intake
        self._room = room
        self.now = 0.0
        self.timeouts = 0
        self.held = 0

    def has_progressed(self, connection: Connection) -> None:
        """It has sent something, or taken something."""
        connection.progress_at = self.now
        self.move_to_end(connection.fd)

    def close(self, connection: Connection) -> None:
        """It is over."""
        del self[connection.fd]
        connection.close()
        if not connection.is_fresh:
            self.forget(connection)

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
        while self:
            connection = next(iter(self.values()))
            if connection.progress_at + timeout > self.now:
                return connection.progress_at + timeout
            # What has come and was not read yet, for too much waits for its commit, is progress, too.
            if connection.waits_for_us():
                self.has_progressed(connection)
            else:
                self.time_out(connection)
        return self.now + timeout

    def end_one(self) -> bool:
        """Close the one that has been silent for longest, if that is long."""
        connection = next(iter(self.values()), None)
        if connection is None or connection.waits_for_us():
            return False
        if self.now - connection.progress_at <= self._settings.timeout / 5:
            return False
        self.time_out(connection)
        return True

    def time_out(self, connection: Connection) -> None:
        """Close one that was silent or too slow. One that only kept quiet after an answer has done nothing wrong."""
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
        self.close(connection)

    # Memory

    def refuse_oldest(self) -> bool:
        """Refuse the incomplete request that has waited for its bytes for longest; False if there is none."""
        waiting = (one for one in self.values() if one.held and one.phase is Phase.READING)
        connection = next(waiting, None)
        if connection is None:
            return False
        error = SpoolUnavailable("too many incomplete requests are held in memory")
        connection.send(self._intake.refuse(connection, error, reason="memory"))
        self.close(connection)
        return True
