"""The access log: who, by which route, how it went; and that it holds nothing secret. On real sockets."""

from __future__ import annotations

import io
import json
import logging
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import structlog
import trio

from tests.fake_control import FakeControl
from trispool import logs
from trispool.admin import Accounts, Role, create_app, serve_admin
from trispool.httpcounts import HttpCounts

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

TOKEN = "swordfish-operator-token"
VIEWER = "swordfish-viewer-token"
NET = 10.0
"""Seconds until a test that waits is a failed one."""


def configure(stream: io.StringIO, format: logs.LogFormat = "json") -> None:
    logs.configure(stream, level="debug", format=format)
    structlog.configure(cache_logger_on_first_use=False)  # the modules' own loggers are those of later tests, too


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    """What is logged, as JSON."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    stream = io.StringIO()
    configure(stream)
    yield stream
    structlog.reset_defaults()
    logging.captureWarnings(False)
    root.handlers[:] = handlers
    root.setLevel(level)


def requests_in(stream: io.StringIO) -> list[dict[str, Any]]:
    documents = [json.loads(line) for line in stream.getvalue().splitlines()]
    return [document for document in documents if document["event"] == "http_request"]


@asynccontextmanager
async def serving(counts: HttpCounts) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a server that has ended, and so has answered and logged everything, after the block."""
    accounts = Accounts.of({TOKEN: Role.OPERATE, VIEWER: Role.VIEW})
    app = create_app(FakeControl(), accounts=accounts)
    stop = trio.Event()
    with trio.fail_after(NET):
        async with trio.open_nursery() as nursery:
            serve = partial(serve_admin, app, "127.0.0.1:0", stop=stop, grace=5.0, counts=counts)
            [url] = await nursery.start(serve)
            async with httpx.AsyncClient(base_url=url, trust_env=False) as client:
                yield client
            stop.set()


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


async def test_a_line_tells_who_asked_for_what_by_which_route_and_how_it_went(lines: io.StringIO) -> None:
    async with serving(HttpCounts()) as client:
        answer = await client.get("/api/v1/spools/default", headers=bearer(TOKEN))
        assert answer.status_code == 200
    [line] = requests_in(lines)
    assert line["level"] == "info"
    assert (line["method"], line["path"]) == ("GET", "/api/v1/spools/default")
    assert line["route"] == "/api/v1/spools/<name>"
    assert (line["status"], line["bytes"]) == (200, len(answer.content))
    assert (line["actor"], line["client"]) == ("operator", "127.0.0.1")
    assert 0 < line["seconds"] < NET


async def test_a_line_of_who_was_not_let_in_names_nobody(lines: io.StringIO) -> None:
    async with serving(HttpCounts()) as client:
        assert (await client.get("/api/v1/spools", headers=bearer("no-token-of-ours-1234"))).status_code == 401
        assert (await client.get("/nothing/here")).status_code == 401
    first, second = requests_in(lines)
    assert (first["actor"], first["status"], first["route"]) == (None, 401, "/api/v1/spools")
    assert (second["actor"], second["status"], second["route"]) == (None, 401, None)


async def test_what_machines_ask_every_few_seconds_is_of_no_interest_when_it_went_well(lines: io.StringIO) -> None:
    async with serving(HttpCounts()) as client:
        for path in ("/healthz", "/readyz"):
            assert (await client.get(path)).status_code == 200
        assert (await client.get("/metrics", headers=bearer(VIEWER))).status_code == 200
        assert (await client.get("/metrics")).status_code == 401
    assert [(line["route"], line["level"]) for line in requests_in(lines)] == [
        ("/healthz", "debug"),
        ("/readyz", "debug"),
        ("/metrics", "debug"),
        ("/metrics", "info"),
    ]


async def test_no_secret_is_logged(lines: io.StringIO) -> None:
    configure(lines, "console")  # which shows bytes as they are
    secrets = [TOKEN, "hunter2-cookie", "hunter2-query", "hunter2-body", "hunter2-wrong"]
    async with serving(HttpCounts()) as client:
        headers = bearer(TOKEN) | {"Cookie": "trispool_session=hunter2-cookie; other=hunter2-cookie"}
        await client.get("/api/v1/tasks?q=hunter2-query", headers=headers)
        await client.post("/api/v1/spools/default/tasks?key=hunter2-query", content=b"hunter2-body", headers=headers)
        await client.post("/api/v1/session", json={"token": "hunter2-wrong-token"})
        answer = await client.post("/api/v1/session", json={"token": TOKEN})
        secrets.append(answer.cookies["trispool_session"])
        await client.get("/api/v1/spools")
        await client.get("/api/v1/spools", headers=bearer("hunter2-wrong-token"))
        await client.get("/api/v1/tasks/x?token=hunter2-query", headers={"Cookie": "trispool_session=hunter2-cookie"})
    assert lines.getvalue().count("http_request") == 7
    assert [secret for secret in secrets if secret in lines.getvalue()] == []


async def test_requests_are_counted_by_method_route_and_status() -> None:
    counts = HttpCounts()
    async with serving(counts) as client:
        for name in ("default", "none", "neither"):
            await client.get(f"/api/v1/spools/{name}", headers=bearer(TOKEN))
        answer = await client.get("/healthz")
    assert counts.requests == {
        ("GET", "/api/v1/spools/<name>", "200"): 1,
        ("GET", "/api/v1/spools/<name>", "404"): 2,
        ("GET", "/healthz", "200"): 1,
    }
    assert counts.sent["/healthz"] == len(answer.content)
    assert 0 < counts.seconds["/healthz"] < NET


async def test_what_clients_make_up_becomes_no_label() -> None:
    counts = HttpCounts()
    async with serving(counts) as client:
        for number in range(5):
            await client.request(f"MADEUP{number}", f"/made/up/{number}", headers=bearer(TOKEN))
            await client.request(f"MADEUP{number}", "/api/v1/spools", headers=bearer(TOKEN))
    assert {(method, route) for method, route, _ in counts.requests} == {("", "unmatched")}
    assert sum(counts.requests.values()) == 10


async def test_a_client_that_leaves_before_its_answer_is_counted_as_such(lines: io.StringIO) -> None:
    counts = HttpCounts()
    async with serving(counts) as client:
        stream = await trio.open_tcp_stream(client.base_url.host, client.base_url.port or 0)
        await stream.send_all(
            f"POST /api/v1/spools/default/tasks HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n"
            "Content-Length: 10\r\n\r\nabc".encode()
        )
        await stream.aclose()
    # The server has ended, so it has noticed.
    assert [status for _, _, status in counts.requests] == ["none"]
    [line] = requests_in(lines)
    assert (line["status"], line["bytes"]) == (None, 0)


async def test_a_client_that_leaves_a_stream_was_answered(lines: io.StringIO) -> None:
    counts = HttpCounts()
    async with serving(counts) as client:
        stream = await trio.open_tcp_stream(client.base_url.host, client.base_url.port or 0)
        await stream.send_all(
            f"GET /api/v1/events HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n\r\n".encode()
        )
        received = b""
        while b"retry:" not in received:
            received += await stream.receive_some()
        await stream.aclose()
    assert [status for _, _, status in counts.requests] == ["200"]
    [line] = requests_in(lines)
    assert line["route"] == "/api/v1/events"
    assert (line["status"], line["bytes"] > 0) == (200, True)


async def test_what_is_no_request_is_told_without_what_it_was(lines: io.StringIO) -> None:
    counts = HttpCounts()
    async with serving(counts) as client:
        stream = await trio.open_tcp_stream(client.base_url.host, client.base_url.port or 0)
        await stream.send_all(b"hunter2 is no HTTP\r\n\r\n")
        assert (await stream.receive_some()).startswith(b"HTTP/1.1 400")
        await stream.aclose()
    assert counts.requests == {("", "unmatched", "400"): 1}
    [line] = requests_in(lines)
    assert (line["status"], line["client"]) == (400, "127.0.0.1")
    assert "hunter2" not in lines.getvalue()
