"""The HTTP server on real sockets, before a fake service: its start, its stop, and clients that behave badly.

Limits are fractions of a second here; every wait is for an event (an answer, a closed connection), `fail_after` is the
net under it.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import json
import os
import socket
import ssl
import stat
import struct
import weakref
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from ipaddress import ip_network
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import structlog.testing
import trio

from tests.fake_control import FakeControl
from trispool.admin import Accounts, AdminSettings, Role, ServerLimits, create_app, serve_admin
from trispool.admin.connection import HEAD_CHUNK
from trispool.admin.http1 import Http1
from trispool.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from quart import Quart

TOKEN = "operator-token-0123456789"
TLS = Path(__file__).parent / "data" / "tls.pem"
TASKS = "/api/v1/spools/default/tasks"
LARGE = 32 * 1024 * 1024
"""More than a socket's buffers hold."""

NET = 10.0
"""Seconds until a test that waits is a failed one."""


@dataclass
class Server:
    """A server under test."""

    control: FakeControl
    app: Quart
    url: str
    urls: list[str]
    stop: trio.Event
    ended: trio.Event
    scope: trio.CancelScope
    streams: list[trio.SocketStream] = field(default_factory=list)

    async def connect(self) -> trio.SocketStream:
        """A client's end."""
        if self.url.startswith("unix:"):
            stream = await trio.open_unix_socket(self.url.removeprefix("unix:"))
        else:
            host, _, port = self.url.partition("//")[2].rpartition(":")
            stream = await trio.open_tcp_stream(host.strip("[]"), int(port))
        self.streams.append(stream)
        return stream

    async def ask(self, *parts: bytes) -> tuple[int, dict[str, str], bytes]:
        """One answer on one connection."""
        stream = await self.connect()
        for part in parts:
            await stream.send_all(part)
        answer = split(await read_to_end(stream))
        await stream.aclose()
        return answer


@asynccontextmanager
async def serving(
    bind: str = "127.0.0.1:0",
    *,
    control: FakeControl | None = None,
    grace: float = 10.0,
    settings: AdminSettings | None = None,
    certfile: Path | None = None,
    **limits: Any,
) -> AsyncIterator[Server]:
    """A server, which must have ended some seconds after the block at the latest."""
    control = control or FakeControl()
    app = create_app(control, accounts=Accounts.of({TOKEN: Role.OPERATE}), settings=settings)
    stop, ended = trio.Event(), trio.Event()

    async def serve(task_status: trio.TaskStatus[list[str]]) -> None:
        try:
            await serve_admin(
                app,
                bind,
                certfile=str(certfile) if certfile else None,
                stop=stop,
                grace=grace,
                limits=ServerLimits(**limits),
                task_status=task_status,
            )
        finally:
            ended.set()

    with trio.fail_after(NET):
        async with trio.open_nursery() as nursery:
            urls = await nursery.start(serve)
            server = Server(control, app, urls[0], urls, stop, ended, nursery.cancel_scope)
            try:
                yield server
                stop.set()
                await ended.wait()
            finally:
                for stream in server.streams:
                    await trio.aclose_forcefully(stream)


def request(method: str, path: str, body: bytes = b"", *headers: str, length: int | None = None) -> bytes:
    """A request as bytes."""
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", f"Authorization: Bearer {TOKEN}", *headers]
    if body or length is not None:
        lines.append(f"Content-Length: {len(body) if length is None else length}")
    return "\r\n".join([*lines, "", ""]).encode() + body


def silent(tmp_path: Path) -> str:
    """Where clients are seen before they say anything: of TCP, the kernel does not show us these for some seconds."""
    return f"unix:{tmp_path}/http.sock"


async def read_to_end(stream: trio.SocketStream) -> bytes:
    """Everything until the server closes."""
    data = bytearray()
    async for chunk in stream:
        data += chunk
    return bytes(data)


async def read_answer(stream: trio.SocketStream) -> tuple[int, dict[str, str], bytes]:
    """One answer of a connection that may go on."""
    data = b""
    while b"\r\n\r\n" not in data or len(split(data)[2]) < int(split(data)[1].get("content-length", "0")):
        chunk = await stream.receive_some()
        assert chunk, data
        data += chunk
    return split(data)


def split(answer: bytes) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and content of an answer."""
    head, _, content = answer.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    return int(status.split(" ")[1]), headers, content


# Start


async def start_error(bind: str = "127.0.0.1:0", certfile: str | None = None) -> str:
    """Why a server does not start: one error with one line, not a group of groups around it."""
    app = create_app(FakeControl(), accounts=Accounts.of({}))
    serve = partial(serve_admin, app, bind, certfile=certfile, stop=trio.Event(), grace=1)
    with trio.fail_after(NET):
        async with trio.open_nursery() as nursery:
            with pytest.raises(ConfigError) as caught:
                await nursery.start(serve)
    [line] = caught.value.problems
    return line


@pytest.mark.parametrize("bind", ["127.0.0.1:0", "localhost:0", "[::1]:0", ":0"])
async def test_bound_addresses_are_reported_and_answer(bind: str) -> None:
    async with serving(bind) as server, httpx.AsyncClient() as client:
        for url in server.urls:
            assert url.startswith("http://")
            assert not url.endswith(":0")
            response = await client.get(f"{url}/healthz")
            assert response.json() == {"ok": True, "problems": []}
            assert "server" not in response.headers


async def test_unix_socket_is_for_user_and_group_and_goes_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    old_mask = os.umask(0)
    try:
        async with serving(f"unix:{path}") as server:
            assert server.url == f"unix:{path}"
            assert stat.S_IMODE(path.stat().st_mode) == 0o660
            status, _, _ = await server.ask(request("POST", f"{TASKS}?a=1", b"x", "Connection: close"))
            assert status == 201
        assert not path.exists()
    finally:
        os.umask(old_mask)


async def test_socket_left_by_a_dead_server_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    async with serving(f"unix:{path}") as server:
        assert (await server.ask(request("GET", "/healthz", b"", "Connection: close")))[0] == 200


async def test_socket_of_a_living_server_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    async with serving(f"unix:{path}") as server:
        assert "another server" in await start_error(f"unix:{path}")
        assert (await server.ask(request("GET", "/healthz", b"", "Connection: close")))[0] == 200


async def test_socket_of_a_successor_is_left_in_place(tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    async with serving(f"unix:{path}"):
        path.unlink()
        successor = socket.socket(socket.AF_UNIX)
        successor.bind(str(path))
    assert path.exists()
    successor.close()


async def test_file_in_place_of_the_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("data")
    assert "not a socket" in await start_error(f"unix:{path}")
    assert path.read_text() == "data"


@pytest.mark.parametrize(
    "bind",
    [
        "127.0.0.1",
        "127.0.0.1:http",
        "127.0.0.1:99999",
        "192.0.2.1:0",
        "no-such-host.invalid:0",
        "unix:/nonexistent/admin.sock",
        f"unix:/tmp/{'x' * 120}",
    ],
)
async def test_address_that_cannot_be_bound_is_one_clear_error(bind: str) -> None:
    assert (await start_error(bind)).startswith(f"http.bind = {bind!r}: ")


async def test_port_in_use_is_one_clear_error() -> None:
    async with serving() as server:
        bind = server.url.removeprefix("http://")
        assert "in use" in await start_error(bind)


async def test_https_is_served_with_a_certificate() -> None:
    async with serving(certfile=TLS) as server:
        assert server.url.startswith("https://127.0.0.1:")
        context = ssl.create_default_context(cafile=str(TLS))
        context.set_alpn_protocols(["h2", "http/1.1"])
        headers = {"Authorization": f"Bearer {TOKEN}"}
        async with httpx.AsyncClient(base_url=server.url, verify=context, headers=headers) as client:
            assert (await client.get("/healthz")).status_code == 200
            body = os.urandom(1_000_000)
            assert (await client.post(TASKS, content=body)).status_code == 201
            server.control.add_detail("t", {}, body)
            assert (await client.get("/api/v1/tasks/t/body")).content == body
        assert server.control.kept[0].body == body


async def test_certificate_that_cannot_be_used_is_one_clear_error(tmp_path: Path) -> None:
    for text in ("", "not PEM", TLS.read_text().partition("-----BEGIN PRIVATE")[0]):
        (tmp_path / "bad.pem").write_text(text)
        assert "certfile" in await start_error(certfile=str(tmp_path / "bad.pem"))
    assert "No such file" in await start_error(certfile=str(tmp_path / "missing.pem"))


async def test_tls_client_that_does_not_shake_hands_is_closed(tmp_path: Path) -> None:
    async with serving(silent(tmp_path), certfile=TLS, handshake_seconds=0.1) as server:
        assert await read_to_end(await server.connect()) == b""


# Ordinary clients


async def test_connection_is_kept_for_further_requests() -> None:
    async with serving() as server:
        stream = await server.connect()
        for number in range(3):
            await stream.send_all(request("POST", TASKS, b"x"))
            status, headers, content = await read_answer(stream)
            assert (status, json.loads(content)["id"]) == (201, f"task-{number}")
            assert "connection" not in headers


async def test_pipelined_requests_are_answered_in_turn() -> None:
    async with serving() as server:
        last = request("POST", TASKS, b"x", "Connection: close")
        stream = await server.connect()
        await stream.send_all(request("POST", TASKS, b"x") * 9 + last)
        answers = await read_to_end(stream)
        ids = [f'"id":"task-{number}"'.encode() for number in range(10)]
        positions = [answers.index(id) for id in ids]
        assert positions == sorted(positions)


async def test_chunked_body_is_taken() -> None:
    async with serving() as server:
        chunks = b"3\r\nabc\r\n4\r\ndefg\r\n0\r\n\r\n"
        head = request("POST", TASKS, b"", "Transfer-Encoding: chunked", "Connection: close")
        assert (await server.ask(head, chunks))[0] == 201
        assert server.control.kept[0].body == b"abcdefg"


async def test_requests_are_logged_without_their_query() -> None:
    async with serving() as server:
        with structlog.testing.capture_logs() as logs:
            await server.ask(request("GET", "/healthz?secret=1", b"", "Connection: close"))
            await server.ask(request("POST", f"{TASKS}?secret=1", b"x", "Connection: close"))
            await server.ask(request("GET", "/api/v1/tasks/nope", b"", "Connection: close"))
    seen = [(line["log_level"], line["method"], line["path"], line["status"], line["client"]) for line in logs]
    assert seen == [
        ("debug", "GET", "/healthz", 200, "127.0.0.1"),
        ("info", "POST", TASKS, 201, "127.0.0.1"),
        ("info", "GET", "/api/v1/tasks/nope", 404, "127.0.0.1"),
    ]
    assert "secret" not in repr(logs)


# Clients that leave


@pytest.mark.parametrize("leave", ["close", "half-close", "reset"])
async def test_request_that_came_whole_is_carried_out_though_its_sender_left(leave: str) -> None:
    gone = trio.Event()
    begun = trio.Event()
    kept = trio.Event()
    control = FakeControl()

    async def wait_until_gone() -> None:
        begun.set()
        await gone.wait()
        # The server has read the end of the connection by now, or never will before this goes on.
        await trio.testing.wait_all_tasks_blocked()
        kept.set()

    control.before_enqueue = wait_until_gone
    async with serving(control=control) as server:
        stream = await server.connect()
        await stream.send_all(request("POST", TASKS, b"precious"))
        await begun.wait()
        if leave == "half-close":
            await stream.send_eof()
        elif leave == "close":
            await stream.aclose()
        else:
            stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
            await stream.aclose()
        await trio.testing.wait_all_tasks_blocked()
        gone.set()
        await kept.wait()
        if leave == "half-close":
            assert (await read_answer(stream))[0] == 201
    assert [task.body for task in control.kept] == [b"precious"]


async def test_request_that_was_cut_off_is_not_carried_out() -> None:
    async with serving() as server:
        stream = await server.connect()
        await stream.send_all(request("POST", TASKS, b"half", length=8))
        await stream.send_eof()
        status, _, content = split(await read_to_end(stream))
        assert (status, json.loads(content)["status"]) == (400, 400)
    assert server.control.batches == []


async def test_connection_left_by_its_client_makes_room_at_once() -> None:
    async with serving(max_connections=1, idle_seconds=3600) as server:
        for _ in range(3):
            stream = await server.connect()
            await stream.send_all(request("GET", "/healthz"))
            assert (await read_answer(stream))[0] == 200
            await stream.aclose()
            await trio.testing.wait_all_tasks_blocked()


# Clients that are slow, or worse


@pytest.mark.parametrize("start", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: localhost\r\nX-A: b\r\n"])
async def test_client_that_sends_no_request_is_closed(start: bytes, tmp_path: Path) -> None:
    async with serving(silent(tmp_path), idle_seconds=0.1) as server:
        stream = await server.connect()
        await stream.send_all(start)
        with contextlib.suppress(trio.BrokenResourceError):
            assert await read_to_end(stream) == b""


async def test_client_that_asks_no_more_is_closed() -> None:
    async with serving(idle_seconds=0.1) as server:
        stream = await server.connect()
        await stream.send_all(request("GET", "/healthz"))
        status, _, _ = split(await read_to_end(stream))
        assert status == 200


async def test_slow_body_is_given_up_and_its_sender_told() -> None:
    async with serving(settings=AdminSettings(body_timeout=0.1), linger_seconds=3600) as server:
        status, headers, content = await server.ask(request("POST", TASKS, b"slow", length=1000))
        assert status == 408
        assert headers["connection"] == "close"
        assert json.loads(content)["title"] == "Request Timeout"
    assert server.control.batches == []


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (request("POST", TASKS, length=LARGE), 413),
        (request("POST", "/api/v1/spools/nope/tasks", length=LARGE), 404),
        (request("POST", TASKS, length=LARGE).replace(TOKEN.encode(), b"wrong"), 401),
    ],
)
async def test_sender_of_a_large_body_reads_why_it_is_refused(head: bytes, status: int) -> None:
    """It sends all before it reads, as many clients do."""
    async with serving(settings=AdminSettings(max_body=1000)) as server:
        with trio.fail_after(NET):
            answer = await server.ask(head, bytes(LARGE))
        assert answer[0] == status
        assert answer[1]["connection"] == "close"
        assert json.loads(answer[2])["status"] == status
    assert server.control.batches == []


async def test_sender_that_was_refused_and_dribbles_on_does_not_keep_the_connection() -> None:
    async def dribble(stream: trio.SocketStream) -> None:
        while True:
            await stream.send_all(b"x")
            await trio.sleep(0.02)

    async with serving(linger_seconds=0.1) as server:
        stream = await server.connect()
        await stream.send_all(request("POST", "/api/v1/spools/nope/tasks", b"begun", length=LARGE))
        assert (await read_answer(stream))[0] == 404
        with trio.fail_after(NET), pytest.raises(trio.BrokenResourceError):
            await dribble(stream)


async def test_client_that_never_reads_is_cut_off_and_others_are_served() -> None:
    async with serving(stall_seconds=0.2, max_connections=2) as server:
        server.control.add_detail("t", {}, bytes(LARGE))
        for _ in range(2):
            stalled = await server.connect()
            await stalled.send_all(request("GET", "/api/v1/tasks/t/body"))
            await trio.testing.wait_all_tasks_blocked(0.01)
        assert (await server.ask(request("GET", "/healthz", b"", "Connection: close")))[0] == 200


async def test_client_that_never_reads_does_not_hold_up_the_stop() -> None:
    async with serving(grace=3600, stall_seconds=3600, stop_stall_seconds=0.1) as server:
        server.control.add_detail("t", {}, bytes(LARGE))
        for _ in range(3):
            stream = await server.connect()
            await stream.send_all(request("GET", "/api/v1/tasks/t/body") * 2)
        await trio.testing.wait_all_tasks_blocked(0.01)
        with trio.fail_after(NET / 2):
            server.stop.set()
            await server.ended.wait()


async def test_client_that_reads_gets_its_large_answer_though_the_server_stops() -> None:
    async with serving(grace=3600, stop_stall_seconds=5) as server:
        server.control.add_detail("t", {}, bytes(LARGE))
        stream = await server.connect()
        await stream.send_all(request("GET", "/api/v1/tasks/t/body"))
        await trio.testing.wait_all_tasks_blocked(0.01)
        server.stop.set()
        status, _, content = split(await read_to_end(stream))
        assert (status, len(content)) == (200, LARGE)
        await server.ended.wait()


@asynccontextmanager
async def busy(server: Server, number: int) -> AsyncIterator[list[trio.SocketStream]]:
    """Clients that send their bodies: these cannot be ended for others."""
    members = [await server.connect() for _ in range(number)]
    for stream in members:
        await stream.send_all(request("POST", TASKS, b"half", length=8))
    await trio.testing.wait_all_tasks_blocked(0.01)
    yield members
    for stream in members:
        await stream.aclose()


async def test_connection_over_the_limit_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trispool.admin.crowd.FULL_SECONDS", 0.0)
    async with serving(max_connections=2) as server, busy(server, 2) as members:
        status, headers, content = await server.ask(request("POST", TASKS, length=LARGE), bytes(LARGE))
        assert (status, headers["retry-after"], headers["connection"]) == (503, "1", "close")
        assert headers["content-type"] == "application/problem+json"
        assert json.loads(content)["status"] == 503
        assert server.control.batches == []
        await members[0].aclose()
        await trio.testing.wait_all_tasks_blocked()
        assert (await server.ask(request("GET", "/healthz", b"", "Connection: close")))[0] == 200


async def test_one_too_many_is_served_when_another_has_left() -> None:
    async with serving(max_connections=2) as server, busy(server, 2) as members:
        last = await server.connect()
        await last.send_all(request("GET", "/healthz"))
        await trio.testing.wait_all_tasks_blocked(0.01)
        await members[0].aclose()
        assert (await read_answer(last))[0] == 200


async def test_what_a_connection_has_read_goes_with_it_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the garbage collector, which may come hours later."""
    made: list[weakref.ref[Http1]] = []

    def make(*args: Any) -> Http1:
        protocol = Http1(*args)
        made.append(weakref.ref(protocol))
        return protocol

    monkeypatch.setattr("trispool.admin.connection.Http1", make)
    monkeypatch.setattr("trispool.admin.crowd.SPARE_SECONDS", 0.0)
    gc.disable()
    try:
        async with serving(max_connections=1) as server:
            server.control.add_detail("t", {}, bytes(LARGE))
            deaf = await server.connect()
            await deaf.send_all(request("GET", "/api/v1/tasks/t/body") * 1000)
            await trio.testing.wait_all_tasks_blocked(0.01)
            stalled = made[0]()
            assert stalled is not None
            assert len(stalled.connection.trailing_data[0]) < HEAD_CHUNK
            del stalled
            for path, status in (("/healthz", 200), ("/api/v1/spools/nope", 404)):
                assert (await server.ask(request("GET", path, b"", "Connection: close")))[0] == status
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert [protocol() for protocol in made] == [None, None, None]
    finally:
        gc.enable()


@pytest.mark.parametrize(
    "rude",
    [
        b"",
        b"GET / HTTP/1.1\r\n",
        request("POST", TASKS, b"begun", length=LARGE).replace(b"Authorization", b"X-Not"),
        request("GET", "/api/v1/tasks/t/body"),
    ],
)
async def test_clients_that_wait_for_nothing_do_not_keep_others_out(
    rude: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SPARE_SECONDS", "SPARE_NEW_SECONDS"):
        monkeypatch.setattr(f"trispool.admin.crowd.{name}", 0.0)
    patient = {"idle_seconds": 3600, "linger_seconds": 3600, "stall_seconds": 3600}
    async with serving(max_connections=2, **patient) as server:
        server.control.add_detail("t", {}, bytes(LARGE))
        for _ in range(2):
            await (await server.connect()).send_all(rude)
        await trio.testing.wait_all_tasks_blocked(0.01)
        for _ in range(3):
            assert (await server.ask(request("GET", "/healthz", b"", "Connection: close")))[0] == 200
        for stream in server.streams:
            await trio.aclose_forcefully(stream)  # the stop would wait for them


async def test_clients_that_do_not_shake_hands_do_not_keep_others_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trispool.admin.crowd.SPARE_NEW_SECONDS", 0.0)
    trusting = ssl.create_default_context(cafile=str(TLS))
    async with serving(silent(tmp_path), certfile=TLS, max_connections=2, handshake_seconds=3600) as server:
        for _ in range(2):
            await server.connect()
        await trio.testing.wait_all_tasks_blocked(0.01)
        for _ in range(3):
            stream = trio.SSLStream(await server.connect(), trusting, server_hostname="localhost")
            with trio.fail_after(NET):
                await stream.do_handshake()
            await trio.aclose_forcefully(stream)


async def test_idle_connections_do_not_keep_others_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trispool.admin.crowd.SPARE_NEW_SECONDS", 0.0)
    async with serving(silent(tmp_path), max_connections=2, idle_seconds=3600) as server:
        idle = []
        for _ in range(2):
            idle.append(await server.connect())
            await trio.testing.wait_all_tasks_blocked(0.01)
        for _ in range(3):
            assert (await server.ask(request("GET", "/healthz", b"", "Connection: close")))[0] == 200
        assert await read_to_end(idle[0]) == b""


async def test_address_outside_the_networks_gets_no_word() -> None:
    async with serving(networks=[ip_network("10.0.0.0/8"), ip_network("2001:db8::/32")]) as server:
        stream = await server.connect()
        await stream.send_all(request("GET", "/healthz"))
        with contextlib.suppress(trio.BrokenResourceError):
            assert await read_to_end(stream) == b""
    async with serving(":0", networks=[ip_network("10.0.0.0/8"), ip_network("127.0.0.0/8")]) as server:
        server.url = next(url for url in server.urls if "[" not in url)
        assert (await server.ask(request("GET", "/healthz", b"", "Connection: close")))[0] == 200


async def test_networks_do_not_matter_on_a_unix_socket(tmp_path: Path) -> None:
    async with serving(f"unix:{tmp_path}/a.sock", networks=[ip_network("10.0.0.0/8")]) as server:
        assert (await server.ask(request("GET", "/healthz", b"", "Connection: close")))[0] == 200


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"\x00\xff\x16\x03garbage\r\n\r\n", 400),
        (b"\x11\x05\x00\x00\x01\x00k\x01\x00v\r\n\r\n", 400),  # a uwsgi packet
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        (b"GET /\xff HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: " + b"x" * 64 + b"\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a..b\r\n\r\n", 400),
        (b"GET http://[x/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET ?x HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        (b"POST /api/v1/session HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n", 400),
        (b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 431),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
        (b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505),
        (b"OPTIONS * HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", 401),
        (b"GET http://a/healthz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", 200),
        (b"GET http://a HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", 200),
        (b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", 401),
        (b"GET /healthz HTTP/1.0\r\n\r\n", 200),
        (b"GET /healthz HTTP/1.1\r\nHost: \xff\x80\r\nConnection: close\r\n\r\n", 200),
        (b"GET /api/v1/spools/%ff%00%2f..%2f HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", 401),
        (b"GET / HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer \xff\r\nConnection: close\r\n\r\n", 200),
        (b"GET /x HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer \xff\r\nConnection: close\r\n\r\n", 401),
    ],
)
async def test_strange_request_gets_an_answer_and_harms_nobody(data: bytes, status: int) -> None:
    with structlog.testing.capture_logs() as logs:
        async with serving(linger_seconds=0.2) as server:
            answer = await server.ask(data)
            assert answer[0] == status, answer
            if status != 200:
                assert answer[1]["content-type"] == "application/problem+json"
                assert json.loads(answer[2])["status"] == status
            assert (await server.ask(request("GET", "/healthz", b"", "Connection: close")))[0] == 200
    assert [line for line in logs if line["log_level"] == "error"] == []


@pytest.mark.parametrize(
    ("start", "status"),
    [
        ("GET /api/v1/spools", 401),
        ("HEAD /api/v1/spools", 401),
        ("POST /api/v1/spools/default/tasks", 401),
        ("DELETE /api/v1/spools", 401),
        ("GET /nothing/here", 401),
        ("GET //healthz", 200),
        ("GET /healthz?x=y", 200),
        ("HEAD /healthz", 200),
        ("POST /api/v1/session", 415),
    ],
)
async def test_who_brings_no_token_is_told_the_same_with_and_without_the_application(start: str, status: int) -> None:
    """The server answers most strangers itself. With a cookie that says nothing the application does."""
    async with serving(settings=AdminSettings(hosts=["localhost"])) as server:
        head = f"{start} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        early = await server.ask(f"{head}\r\n".encode())
        late = await server.ask(f"{head}Cookie: other=1\r\n\r\n".encode())
        for answer in (early, late):
            answer[1].pop("date", None)
        assert early == late
        assert early[0] == status
        assert (await server.ask(f"{start} HTTP/1.1\r\nHost: evil\r\nConnection: close\r\n\r\n".encode()))[0] == 421


async def test_most_strangers_do_not_reach_the_application() -> None:
    async with serving() as server:
        seen: list[str] = []
        server.app.before_request(lambda: seen.append("asked"))
        status, headers, _ = await server.ask(request("POST", TASKS, length=LARGE).replace(b"Authorization", b"X-Not"))
        assert (status, headers["connection"]) == (401, "close")
        assert (await server.ask(request("GET", "/healthz", b"", "Connection: close")))[0] == 200
    assert seen == ["asked"]


@pytest.mark.parametrize(
    "upgrade",
    [
        ["Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__"],
        ["Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: AAAA"],
    ],
)
async def test_offer_to_upgrade_is_answered_as_if_it_was_not_there(upgrade: list[str]) -> None:
    async with serving() as server:
        stream = await server.connect()
        for path, status in (("/healthz", 200), ("/api/v1/nope", 404)):
            await stream.send_all(request("GET", path, b"", *upgrade))
            assert (await read_answer(stream))[0] == status


# Stop


async def test_request_under_way_is_answered_and_idle_connections_are_closed_when_stopping(tmp_path: Path) -> None:
    begun, go_on = trio.Event(), trio.Event()
    control = FakeControl()

    async def wait() -> None:
        begun.set()
        await go_on.wait()

    control.before_enqueue = wait
    async with serving(silent(tmp_path), control=control, grace=3600, idle_seconds=3600) as server:
        new = await server.connect()
        idle = await server.connect()
        await idle.send_all(request("GET", "/healthz"))
        await read_answer(idle)
        busy = await server.connect()
        await busy.send_all(request("POST", TASKS, b"x"))
        await begun.wait()
        server.stop.set()
        assert await read_to_end(new) == b""
        assert await read_to_end(idle) == b""
        with pytest.raises(OSError, match=r"refused|No such file"):
            await server.connect()
        assert not server.ended.is_set()
        go_on.set()
        status, headers, _ = split(await read_to_end(busy))
        assert (status, headers["connection"]) == (201, "close")
        await server.ended.wait()


async def test_connection_that_begins_while_stopping_is_closed(tmp_path: Path) -> None:
    async with serving(silent(tmp_path), certfile=TLS, grace=3600, idle_seconds=3600) as server:
        transport = await server.connect()
        await trio.testing.wait_all_tasks_blocked(0.01)
        server.stop.set()
        context = ssl.create_default_context(cafile=str(TLS))
        stream = trio.SSLStream(transport, context, server_hostname="localhost", https_compatible=True)
        with contextlib.suppress(trio.BrokenResourceError):
            assert await stream.receive_some() == b""
        await server.ended.wait()


async def test_request_that_does_not_end_is_cut_off_after_the_grace() -> None:
    begun = trio.Event()
    control = FakeControl()

    async def hang() -> None:
        begun.set()
        await trio.sleep_forever()

    control.before_enqueue = hang
    async with serving(control=control, grace=0.1) as server:
        busy = await server.connect()
        await busy.send_all(request("POST", TASKS, b"x"))
        await begun.wait()
        server.stop.set()
        await server.ended.wait()
    assert control.batches == []


async def test_cancelled_server_waits_for_nobody() -> None:
    async with serving(grace=3600, stall_seconds=3600, stop_stall_seconds=0.1) as server:
        server.control.add_detail("t", {}, bytes(LARGE))
        stream = await server.connect()
        await stream.send_all(request("GET", "/api/v1/tasks/t/body"))
        await trio.testing.wait_all_tasks_blocked(0.01)
        server.scope.cancel()
        with trio.move_on_after(NET / 2, shield=True):
            await server.ended.wait()
        assert server.ended.is_set()


async def test_running_out_of_descriptors_pauses_accepting(monkeypatch: pytest.MonkeyPatch) -> None:
    accept = socket.socket.accept
    failures = [
        OSError(errno.EMFILE, "too many"),
        OSError(errno.ECONNABORTED, "left"),
        OSError(errno.ENFILE, "too many"),
    ]

    def failing_accept(self: socket.socket) -> tuple[socket.socket, Any]:
        if failures:
            raise failures.pop()
        return accept(self)

    monkeypatch.setattr(socket.socket, "accept", failing_accept)
    async with serving() as server:
        assert (await server.ask(request("GET", "/healthz", b"", "Connection: close")))[0] == 200
    assert failures == []


async def test_a_body_that_does_not_come_is_waited_for_no_longer_than_any_other() -> None:
    """Without a token, at addresses that need none: they would keep everybody out."""
    asked = b"GET /healthz HTTP/1.1", b"POST /api/v1/session HTTP/1.1\r\nContent-Type: application/json"
    bodies = b"Content-Length: 5", b"Transfer-Encoding: chunked"
    async with serving(settings=AdminSettings(body_timeout=0.05), grace=0.1, max_connections=8) as server:
        for number in range(8):
            client = await server.connect()
            parts = asked[number % 2], b"Host: 127.0.0.1", bodies[number // 2 % 2]
            await client.send_all(b"\r\n".join(parts) + b"\r\n\r\n")
        assert (await server.ask(request("GET", "/api/v1/spools", b"", "Connection: close")))[0] == 200


async def test_clients_that_break_off_in_a_crowd_do_not_end_the_server() -> None:
    async with serving(grace=0.2, max_connections=20, linger_seconds=0.2) as server:
        host, port = server.url.rpartition("//")[2].split(":")

        async def be_rude() -> None:
            while True:
                with contextlib.suppress(OSError), trio.socket.socket() as sock:
                    await sock.connect((host, int(port)))
                    await sock.send(b"GET / HT")
                    await trio.sleep(0.1)
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    await sock.send(b"\0\r\n\r\n")

        with trio.move_on_after(3):
            async with trio.open_nursery() as nursery:
                for _ in range(60):
                    nursery.start_soon(be_rude)
        assert (await server.ask(request("GET", "/api/v1/spools", b"", "Connection: close")))[0] == 200
