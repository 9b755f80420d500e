"""A client of the HTTP API, on one connection that stays open."""

from __future__ import annotations

import json
import os
import socket
import time
from typing import TYPE_CHECKING, Any, Final

from benchmarks.servers import ServerFailed, token

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["Asker"]

POLL: Final = 0.05


class Asker:
    """One connection.

    Args:
        folder: Of a trispool that runs, as `benchmarks.servers` starts it.
    """

    def __init__(self, folder: Path) -> None:
        self._token = token(folder)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.connect(os.fspath(folder / "http"))

    def ask(self, path: str, change: dict[str, Any] | None = None) -> Any:  # noqa: ANN401 # what JSON may be
        """The answer to a GET, or to a PATCH with these changes.

        Raises:
            ServerFailed: It is another one than 200.
        """
        status, answer = self._exchange(path, change)
        if status != 200:
            raise ServerFailed(f"{path}: {status} {answer}")
        return answer

    def wait(self, path: str, fits: Callable[[Any], bool], seconds: float, check: Callable[[], None]) -> None:
        """Ask until the answer fits, whatever its status.

        Args:
            path: What to ask for.
            fits: Whether that is the answer.
            seconds: How long.
            check: Raises an error if the server has ended.

        Raises:
            ServerFailed: There was no such answer.
        """
        deadline = time.monotonic() + seconds
        while True:
            check()
            _, answer = self._exchange(path, None)
            if fits(answer):
                return
            if time.monotonic() > deadline:
                raise ServerFailed(f"{path}: after {seconds} s it still says {answer}")
            time.sleep(POLL)

    def _exchange(self, path: str, change: dict[str, Any] | None) -> tuple[int, Any]:
        method, body = ("GET", b"") if change is None else ("PATCH", json.dumps(change).encode())
        head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {self._token}\r\n"
        if body:
            head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        self._socket.sendall(head.encode() + b"\r\n" + body)
        received = b""
        while not (parts := received.partition(b"\r\n\r\n"))[1] or len(parts[2]) < _length(parts[0]):
            more = self._socket.recv(0x40000)
            if not more:
                raise ServerFailed(f"{path}: the server closed the connection")
            received += more
        return int(parts[0].split(b" ", 2)[1]), json.loads(parts[2])


def _length(head: bytes) -> int:
    return int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
