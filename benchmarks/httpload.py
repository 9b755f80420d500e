"""A client that keeps an HTTP server busy over connections that stay open, one request after the other on each."""

from __future__ import annotations

import select
import socket
import time
from typing import TYPE_CHECKING, Final

from benchmarks.client import STALLED_SECONDS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from benchmarks.client import Address

__all__ = ["post", "post_all"]

CREATED: Final = b"HTTP/1.1 201 "


def post(path: str, token: str, content_type: str, body: bytes) -> bytes:
    """A request, as it goes over the wire."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n"
        f"Content-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def post_all(
    address: Address, _: Sequence[str], requests: Sequence[bytes], connections: int
) -> tuple[list[float], int]:
    """Send all requests; see `benchmarks.client.Drive`. What is not answered with 201 counts as refused."""
    assert isinstance(address, str)
    unsent = iter(requests)
    latencies: list[float] = []
    refused = 0
    with select.epoll() as epoll:
        talks = [_Talk(address) for _ in range(min(connections, len(requests)))]
        by_fd = {talk.fileno(): talk for talk in talks}
        for talk in talks:
            epoll.register(talk.fileno(), select.EPOLLIN)
            talk.send(next(unsent))
        busy = len(talks)
        while busy:
            ready = epoll.poll(STALLED_SECONDS)
            if not ready:
                raise RuntimeError(f"no answer for {STALLED_SECONDS} s")
            for fd, _mask in ready:
                talk = by_fd[fd]
                for answer in talk.receive():
                    latencies.append(time.monotonic() - talk.began)
                    refused += not answer.startswith(CREATED)
                    if (following := next(unsent, None)) is None:
                        busy -= 1
                    else:
                        talk.send(following)
        for talk in talks:
            talk.close()
    return latencies, refused


class _Talk:
    """One connection; `began` is when its last request was sent."""

    def __init__(self, path: str) -> None:
        self.began = 0.0
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.connect(path)
        self._received = b""

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, request: bytes) -> None:
        self.began = time.monotonic()
        self._socket.sendall(request)

    def receive(self) -> Iterator[bytes]:
        """The head of each answer that is here whole."""
        more = self._socket.recv(0x40000)
        if not more:
            raise RuntimeError("the server closed the connection")
        self._received += more
        while (head := self._received.partition(b"\r\n\r\n"))[1]:
            length = int(head[0].lower().partition(b"content-length:")[2].split(b"\r\n")[0])
            if len(head[2]) < length:
                return
            self._received = head[2][length:]
            yield head[0]

    def close(self) -> None:
        self._socket.close()
