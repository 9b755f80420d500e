"""One connection of a listener: its socket, what it has sent, and what it still has to hear. Knows no Trio.

Every operation is non-blocking by flag, not by mode, which saves two system calls a connection.
"""

from __future__ import annotations

import enum
import fcntl
import socket
import sys
import termios
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from trispool.reader import PacketReader
    from trispool.task import NewTask

__all__ = ["FEW_BYTES", "Connection", "Pending", "Phase", "Turn"]

FEW_BYTES: Final = 4096
"""A request that has no more is small."""

_SEND_FLAGS: Final = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL


class Phase(enum.Enum):
    """What is to be done with a connection when its socket is ready."""

    READING = enum.auto()
    """Read."""
    POSTPONED = enum.auto()
    """Read on when it is its turn: its request is a large one. Its socket is ready when its client has ended."""
    ENQUEUED = enum.auto()
    """Nothing: its requests are being kept, and no more are read until they are answered."""
    WRITING = enum.auto()
    """Send the rest of an answer."""
    BUFFERED = enum.auto()
    """Go on with requests that it has sent already. It waits until it can be written to, which it can: in this way the
    others have their turn first."""
    LINGERING = enum.auto()
    """Throw away what it sends. The last answer is out, but closing a socket with unread data would destroy it."""
    CLOSED = enum.auto()


class Pending(enum.Enum):
    """The place of a task's answer among the answers of a turn, by its form."""

    UWSGI = enum.auto()
    HTTP = enum.auto()


class Turn:
    """Requests of one connection that are kept, and then answered, together.

    Attributes:
        connection: Whose.
        replies: One for each request, in order: the answer, or where that of the next task stands. None: all are tasks
            whose client expects uwsgi's answer.
        tasks: For each `Pending`, in order.
        size: Bytes of the tasks, more or less.
        is_large: Whether one of them is a large task, which has had its turn as such.
    """

    __slots__ = ("connection", "is_large", "replies", "size", "tasks")

    def __init__(
        self, connection: Connection, replies: Sequence[bytes | Pending] | None, tasks: Sequence[NewTask], size: int
    ) -> None:
        self.connection = connection
        self.replies = replies
        self.tasks = tasks
        self.size = size
        self.is_large = connection.is_large


class Connection:
    """One client.

    Args:
        sock: Its socket; closed by `close`.
        address: Where it is, as `accept` gave it.
        new_reader: Makes the reader, when there is something that needs one.
        now: Seconds, on the clock of all other times here.

    Attributes:
        is_fresh: Whether it has no reader: none was needed so far, or none is needed any more.
        fd: The socket's descriptor.
        phase: What is to be done next.
        watched: Whether the poll set knows it already.
        last: Whether the answer under way is the last one.
        broken: Whether what follows the last request is not worth reading.
        has_asked: Whether it has ever sent a whole request.
        unsent: What is left of an answer.
        held: How many bytes of incomplete requests it was last found to hold.
        is_large: Whether the request under way has had a turn as a large one.
        is_quick: Whether much of it came at that turn.
        progress_at: When it last sent something, or took something from us.
        since: When it began what it is slow at (sending a request, reading an answer), or None.
    """

    __slots__ = (
        "_new_reader",
        "_reader",
        "address",
        "broken",
        "fd",
        "has_asked",
        "held",
        "is_fresh",
        "is_large",
        "is_quick",
        "last",
        "phase",
        "progress_at",
        "since",
        "sock",
        "unsent",
        "watched",
    )

    def __init__(
        self, sock: socket.SocketType, address: object, new_reader: Callable[[], PacketReader], now: float
    ) -> None:
        self.sock = sock
        self.fd = sock.fileno()
        self.address = address
        self.is_fresh = True
        self._new_reader = new_reader
        self.phase = Phase.READING
        self.watched = False
        self.last = False
        self.broken = False
        self.has_asked = False
        self.unsent = b""
        self.held = 0
        self.is_large = False
        self.is_quick = False
        self.progress_at = now
        self.since: float | None = None

    @property
    def reader(self) -> PacketReader:
        """What it has sent goes there."""
        if self.is_fresh:
            self._reader = self._new_reader()
            self.is_fresh = False
        return self._reader

    @property
    def wants_much(self) -> bool:
        """Whether a large request is under way, most of which has not been read."""
        return not self.is_fresh and self.reader.missing > FEW_BYTES

    @property
    def asks_for(self) -> int:
        """How many bytes the request under way has, as far as known."""
        return self.reader.buffered + self.reader.missing

    def forget(self) -> None:
        """Let go of the reader, with what it holds."""
        del self._reader
        self.is_fresh = True

    @property
    def peer(self) -> str:
        """The client, for a log."""
        if isinstance(self.address, tuple):
            return f"{self.address[0]}:{self.address[1]}"
        return "unix"

    def receive(self, size: int) -> bytes | None:
        """What the client has sent, at most `size` bytes; nothing when it has ended or is gone. None: not yet any."""
        try:
            return self.sock.recv(size, socket.MSG_DONTWAIT)
        except (BlockingIOError, InterruptedError):
            return None
        except OSError:
            return b""

    def receivable(self) -> int:
        """How many bytes `receive` would give by now."""
        size = fcntl.ioctl(self.fd, termios.FIONREAD, bytes(4))
        return int.from_bytes(size, sys.byteorder)

    def waits_for_us(self) -> bool:
        """Whether it is our turn: its requests are being kept, or there is something to receive."""
        if self.phase is not Phase.READING:
            return self.phase is Phase.ENQUEUED or self.phase is Phase.POSTPONED
        try:
            self.sock.recv(1, socket.MSG_DONTWAIT | socket.MSG_PEEK)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError:
            return True
        return True

    def send(self, data: bytes) -> bool:
        """Send all of `data`, or keep the rest in `unsent`.

        Returns:
            Whether there is no rest. A client that is gone takes everything: its other requests are still good.
        """
        try:
            sent = self.sock.send(data, _SEND_FLAGS)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError:
            sent = len(data)
        self.unsent = data[sent:]
        return not self.unsent

    def end(self) -> None:
        """Tell the client that nothing more comes."""
        try:
            self.sock.shutdown(socket.SHUT_WR)
        except OSError:
            return  # it is gone

    def close(self) -> None:
        """Close the socket."""
        self.phase = Phase.CLOSED
        self.sock.close()
