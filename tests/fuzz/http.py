"""The whole HTTP face on a socket: raw bytes in, and an answer that is none of ours to be ashamed of."""

from __future__ import annotations

import contextlib
import functools
import re
import socket
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Final

import structlog.testing
import trio

from tests.api_support import TOKEN
from tests.test_openapi import furnished
from trispool.admin import Accounts, Role, create_app, serve_admin

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PATIENCE: Final = 10.0
"""Seconds. The longest that a right answer takes is some milliseconds."""

_HEAD: Final = f"Host: localhost\r\nAuthorization: Bearer {TOKEN}\r\nConnection: close\r\n".encode()
_STATUS: Final = re.compile(rb"HTTP/1\.1 ([0-9]{3}) ")
_EXPECTED: Final = {b"501", b"503", b"505"}
"""Of the 5xx, those that say what a client may not, or not now."""


@contextlib.contextmanager
def http_server() -> Iterator[Callable[[bytes], None]]:
    """A server; gives a target. Its bytes are a request as it is, or, after a NUL, the parts of one with a token:
    the request's line without its version, headers, and the body, between NULs."""
    ready = threading.Event()
    ends: list[tuple[trio.lowlevel.TrioToken, trio.Event]] = []

    async def serve(path: str) -> None:
        stop = trio.Event()
        app = create_app(furnished(), accounts=Accounts.of({TOKEN: Role.OPERATE}))
        async with trio.open_nursery() as nursery:
            await nursery.start(functools.partial(serve_admin, stop=stop, grace=1), app, f"unix:{path}")
            ends.append((trio.lowlevel.current_trio_token(), stop))
            ready.set()

    with tempfile.TemporaryDirectory() as folder, structlog.testing.capture_logs() as logs:
        path = str(Path(folder, "http.sock"))
        thread = threading.Thread(target=trio.run, args=(serve, path), daemon=True)
        thread.start()
        assert ready.wait(PATIENCE)

        def run(data: bytes) -> None:
            answer = _ask(path, _request(data))
            for status in _STATUS.findall(answer[:200]):
                assert status < b"500" or status in _EXPECTED, (data, answer)
            errors = [line for line in logs if line["log_level"] in ("error", "critical")]
            logs.clear()
            assert not errors, (data, errors)

        try:
            yield run
        finally:
            [(token, stop)] = ends
            token.run_sync_soon(stop.set)
            thread.join(PATIENCE)


def _request(data: bytes) -> bytes:
    if data[:1] != b"\0":
        return data
    line, headers, body = ([*data[1:].split(b"\x00", 2), b"", b""])[:3]
    length = b"Content-Length: %d\r\n" % len(body) if body else b""
    return line + b" HTTP/1.1\r\n" + _HEAD + headers + length + b"\r\n" + body


def _ask(path: str, request: bytes) -> bytes:
    answer = b""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(PATIENCE)
        sock.connect(path)
        # It may refuse before it has read all.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            sock.sendall(request)
            sock.shutdown(socket.SHUT_WR)
            while piece := sock.recv(65536):
                answer += piece
                if b"text/event-stream" in answer:  # it has no end
                    break
    return answer


_TASKS: Final = b"/api/v1/spools/default/tasks"
_JSON: Final = b"Content-Type: application/json\r\n"

HTTP_SEEDS: Final = [
    b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    b"\0POST " + _TASKS + b"\0Idempotency-Key: k\r\n" + _JSON + b'\0{"vars": {"a": "b"}}',
    b"\0POST " + _TASKS + b'\0Content-Type: application/x-ndjson\r\nAccept: application/x-ndjson\r\n\0{"at": 5}\n{}',
    b"\0POST " + _TASKS + b"?a=b\0Content-Type: text/plain; charset=x\r\nContent-Encoding: gzip\r\n\0body",
    b"\0POST " + _TASKS + b"\0Content-Type: multipart/form-data; boundary=b\r\n\0--b\r\n\r\n--b--\r\n",
    b"\0GET /api/v1/tasks?state=ready&limit=5&cursor=x\0Range: bytes=0-4\r\nIf-None-Match: *\r\n",
    b"\0GET /api/v1/tasks/done/body\0Range: bytes=1-,-2\r\n",
    b"\0GET /api/v1/events?after=x\0Last-Event-ID: 5\r\nAccept: text/event-stream\r\n",
    b"\0PATCH /api/v1/spools/default\0" + _JSON + b'\0{"frequency": 5}',
    b"\0POST /api/v1/tasks/bulk\0" + _JSON + b'\0{"action": "cancel", "ids": ["a"]}',
    b"\0POST /api/v1/tasks/done/reschedule\0" + _JSON + b'\0{"at": 5}',
    b"\0POST /api/v1/session\0Cookie: session=x\r\nOrigin: http://localhost\r\n" + _JSON + b'\0{"token": "x"}',
    b"\0GET /api/v1/audit?limit=1\0Cookie: trispool=1.2.3\r\nAuthorization: Basic eA==\r\n",
    b"\0GET /metrics\0Accept: application/openmetrics-text; q=0.5\r\nUpgrade: h2c\r\n",
]
