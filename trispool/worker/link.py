"""The worker's end of its connection to the service: blocking, and usable from any thread.

The service always reads, and never waits for a worker; so a send that blocks here waits for nothing but the service's
attention, and cannot end in both sides waiting for each other.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from typing import Final

import msgspec

from trispool.worker import frames

__all__ = ["ServiceGone", "WorkerEnd"]

PROGRESS_BURST: Final = 64
PROGRESS_PER_SECOND: Final = 200.0
"""A handler may report progress in a tight loop; what goes beyond this is dropped."""

_decoder: Final[msgspec.msgpack.Decoder[frames.ToWorker]] = msgspec.msgpack.Decoder(frames.ToWorker)


class ServiceGone(Exception):
    """The service has closed the connection."""


class WorkerEnd:
    """See the module.

    In a process forked from the worker it is closed: only the worker speaks for itself.

    Args:
        fd: The descriptor of the socket, owned from now on.

    Attributes:
        is_closed: Whether this process has been forked from the worker.
    """

    def __init__(self, fd: int) -> None:
        os.set_inheritable(fd, False)
        self.is_closed = False
        self._socket = socket.socket(fileno=fd)
        self._reader = frames.FrameReader()
        self._lock = threading.Lock()
        self._tokens = float(PROGRESS_BURST)
        self._tokens_at = time.monotonic()
        os.register_at_fork(after_in_child=self._close_in_child)

    def _close_in_child(self) -> None:
        self.is_closed = True
        self._socket.close()
        self._lock = threading.Lock()

    def fileno(self) -> int:
        """The socket's descriptor."""
        return self._socket.fileno()

    def receive(self) -> frames.ToWorker:
        """The next message; waits for it.

        Raises:
            ServiceGone: There will be none.
        """
        while (frame := self._reader.next_frame()) is None:
            self._receive(0)
        return _decoder.decode(frame)

    def receive_nowait(self) -> list[frames.ToWorker]:
        """The messages that have come.

        Raises:
            ServiceGone: There will be no more.
        """
        with contextlib.suppress(BlockingIOError):
            self._receive(socket.MSG_DONTWAIT)
        messages = []  # may have come earlier, together with another one
        while (frame := self._reader.next_frame()) is not None:
            messages.append(_decoder.decode(frame))
        return messages

    def _receive(self, flags: int) -> None:
        count = self._socket.recv_into(self._reader.space(), 0, flags)
        if not count:
            raise ServiceGone
        self._reader.received(count)

    def send(self, message: object) -> None:
        """Send one message.

        Raises:
            OSError: The service is gone, or this is not the worker but its child.
        """
        frame = frames.encode_frame(message)
        with self._lock:
            self._socket.sendall(frame)

    def send_progress(self, task_id: str, fraction: float, text: str) -> None:
        """Tell how far a task is."""
        now = time.monotonic()
        self._tokens = min(float(PROGRESS_BURST), self._tokens + (now - self._tokens_at) * PROGRESS_PER_SECOND)
        self._tokens_at = now
        if self._tokens >= 1 and not self.is_closed:
            self._tokens -= 1
            self.send(("progress", task_id, float(fraction), text))

    def send_frequency(self, seconds: float) -> None:
        """Ask for the spool to be scanned so often; 0: as configured."""
        self.send(("frequency", float(seconds)))
