"""A client whose connections stay open, with several packets under way on each. uWSGI takes only the first of them."""

from __future__ import annotations

import itertools
import select
import time
from collections import deque
from typing import TYPE_CHECKING, Final

from benchmarks.client import ANSWER, STALLED_SECONDS, connect

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator, Sequence

    from benchmarks.client import Address

__all__ = ["UNDER_WAY", "send_over_open"]

UNDER_WAY: Final = 8
"""Packets of one connection that wait for their answers."""


class _Open:
    """A connection, and when what is under way on it was sent."""

    def __init__(self, sock: socket.socket, unsent: Iterator[bytes]) -> None:
        self.sock = sock
        self.sent: deque[float] = deque()
        self._unsent = unsent

    def send(self, count: int) -> None:
        packets = [*itertools.islice(self._unsent, count)]
        if packets:
            self.sent.extend([time.monotonic()] * len(packets))
            self.sock.sendall(b"".join(packets))

    def receive(self) -> tuple[list[float], int]:
        """The latencies of what has been answered, and how much of it was refused."""
        data = self.sock.recv(len(ANSWER) * UNDER_WAY)
        if not data or len(data) % len(ANSWER):
            raise RuntimeError(f"{data!r} is no answer")
        now, count = time.monotonic(), len(data) // len(ANSWER)
        return [now - self.sent.popleft() for _ in range(count)], count - data.count(ANSWER)


def send_over_open(
    address: Address, sources: Sequence[str], packets: Sequence[bytes], connections: int
) -> tuple[list[float], int]:
    """A `benchmarks.client.Drive`."""
    latencies: list[float] = []
    refused = 0
    unsent = iter(packets)
    source_of = itertools.cycle(sources or [None])
    serving: dict[int, _Open] = {}
    with select.epoll() as epoll:
        for _ in range(connections):
            one = _Open(connect(address, next(source_of)), unsent)
            serving[one.sock.fileno()] = one
            epoll.register(one.sock.fileno(), select.EPOLLIN)
            one.send(UNDER_WAY)
        while any(one.sent for one in serving.values()):
            ready = epoll.poll(STALLED_SECONDS)
            if not ready:
                raise RuntimeError(f"no answer for {STALLED_SECONDS} s")
            for fd, _ in ready:
                one = serving[fd]
                answered, not_kept = one.receive()
                latencies += answered
                refused += not_kept
                one.send(len(answered))
    for one in serving.values():
        one.sock.close()
    return latencies, refused
