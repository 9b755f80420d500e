"""`GET /events` on real sockets: what is sent, and readers that are slow, gone, too many, or in the way of a stop."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import h11
import httpx
import pytest
import trio

from tests.api_support import API, AUTHORIZED, TOKEN, VIEWER, client_of, get, problem
from tests.fake_control import FakeControl
from trispool.admin import Accounts, AdminSettings, Role, ServerLimits, create_app, serve_admin
from trispool.admin.streams import STREAMS, Streams

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

NET = 10.0
"""Seconds until a test that waits is a failed one."""

BIG = {"text": "x" * 1_000_000}
"""An event that no socket's buffers hold."""


@dataclass
class Served:
    """A server under test."""

    control: FakeControl
    accounts: Accounts
    streams: Streams
    url: str
    stop: trio.Event
    ended: trio.Event

    @asynccontextmanager
    async def reading(self, query: str = "", **headers: str) -> AsyncIterator[Reader]:
        """A reader, once its answer has begun."""
        sent = AUTHORIZED | {name.replace("_", "-"): value for name, value in headers.items()}
        async with await self.connect() as stream:
            reader = Reader(stream)
            await reader.ask(f"{API}/events{query}", sent)
            if reader.status == 200:
                assert await reader.next() == {"retry": "2000"}
            yield reader

    async def connect(self) -> trio.SocketStream:
        """A client's end."""
        host, _, port = self.url.partition("//")[2].rpartition(":")
        return await trio.open_tcp_stream(host, int(port))


class Reader:
    """Events as a browser reads them."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._connection = h11.Connection(h11.CLIENT)
        self._text = b""
        self.status = 0
        self.headers: dict[str, str] = {}

    async def ask(self, target: str, headers: dict[str, str]) -> None:
        """Send the request and read the headers of the answer."""
        request = h11.Request(method="GET", target=target, headers=[("Host", "localhost"), *headers.items()])
        sent = [self._connection.send(event) for event in (request, h11.EndOfMessage())]
        await self._stream.send_all(b"".join(data or b"" for data in sent))
        response = await self._event()
        assert isinstance(response, h11.Response)
        self.status = response.status_code
        self.headers = {name.decode(): value.decode() for name, value in response.headers}

    async def next(self) -> dict[str, str] | None:
        """The fields of the next block; a comment has the empty name. None: the answer has ended, and is whole."""
        while b"\n\n" not in self._text:
            event = await self._event()
            if isinstance(event, h11.EndOfMessage):
                return None
            assert isinstance(event, h11.Data)
            self._text += event.data
        block, _, self._text = self._text.partition(b"\n\n")
        lines = [line.partition(":") for line in block.decode().split("\n")]
        return {name: value.removeprefix(" ") for name, _, value in lines}

    async def _event(self) -> object:
        while (event := self._connection.next_event()) is h11.NEED_DATA:
            self._connection.receive_data(await self._stream.receive_some())
        return event


@asynccontextmanager
async def serving(max_streams: int = 64, **limits: Any) -> AsyncIterator[Served]:
    """A server, which must have ended some seconds after the block at the latest."""
    control = FakeControl()
    accounts = Accounts.of({TOKEN: Role.OPERATE, VIEWER: Role.VIEW})
    app = create_app(control, accounts=accounts, settings=AdminSettings(max_streams=max_streams))
    stop, ended = trio.Event(), trio.Event()

    async def serve(task_status: trio.TaskStatus[list[str]]) -> None:
        try:
            await serve_admin(
                app, "127.0.0.1:0", stop=stop, grace=60, limits=ServerLimits(**limits), task_status=task_status
            )
        finally:
            ended.set()

    with trio.fail_after(NET):
        async with trio.open_nursery() as nursery:
            [url] = await nursery.start(serve)
            yield Served(control, accounts, app.extensions[STREAMS], url, stop, ended)
            stop.set()
            await ended.wait()


async def until(holds: Any) -> None:
    """Wait for what nothing tells."""
    while not holds():  # noqa: ASYNC110 - it is the service that would have to tell
        await trio.sleep(0.005)


async def test_events_are_sent_as_they_happen() -> None:
    async with serving() as served, served.reading() as reader:
        assert reader.headers["content-type"] == "text/event-stream"
        assert reader.headers["cache-control"] == "no-store"
        assert reader.headers["x-accel-buffering"] == "no"
        await until(lambda: served.control.readers == 1)
        served.control.tell("tasks", {"changed": [{"id": "t", "text": "a\nb\r\nc"}]})
        served.control.tell("reset", {})
        first = await reader.next()
        assert first is not None
        assert (first["id"], first["event"]) == ("1-1", "tasks")
        assert json.loads(first["data"]) == {"changed": [{"id": "t", "text": "a\nb\r\nc"}]}
        assert await reader.next() == {"id": "1-2", "event": "reset", "data": "{}"}


async def test_reader_that_comes_back_is_told_what_it_has_missed() -> None:
    async with serving() as served:
        for number in range(3):
            served.control.tell("spools", {"n": number})
        for query, headers in (
            ("?after=1-1", {}),
            ("", {"Last_Event_ID": "1-1"}),
            ("?after=1-3", {"Last_Event_ID": "1-1"}),  # the header is what the browser has seen last
        ):
            async with served.reading(query, **headers) as reader:
                assert await reader.next() == {"id": "1-2", "event": "spools", "data": '{"n":1}'}
                assert await reader.next() == {"id": "1-3", "event": "spools", "data": '{"n":2}'}


async def test_silence_is_broken_by_comments() -> None:
    async with serving() as served:
        served.control.heartbeat = 0.01
        async with served.reading() as reader:
            assert await reader.next() == {"": ""}
            assert await reader.next() == {"": ""}


async def test_reader_that_has_gone_is_forgotten() -> None:
    async with serving() as served:
        served.control.heartbeat = 0.01
        async with served.reading() as reader:
            await reader.next()
            assert served.control.readers == 1
        await until(lambda: served.control.readers == 0)
        await until(lambda: not served.streams.is_full)


async def test_stop_ends_streams_at_once_and_whole() -> None:
    async with serving() as served, served.reading() as first, served.reading() as second:
        await until(lambda: served.control.readers == 2)
        served.stop.set()
        assert await first.next() is None
        assert await second.next() is None
        await served.ended.wait()
        assert served.control.readers == 0


async def test_stop_does_not_wait_for_a_reader_that_does_not_read() -> None:
    async with serving(stall_seconds=60, stop_stall_seconds=0.05) as served:
        stream = await silent_reader(served)
        served.control.tell("spools", BIG)
        served.control.tell("spools", BIG)
        await trio.testing.wait_all_tasks_blocked(0.05)
        served.stop.set()
        await served.ended.wait()
        await stream.aclose()


async def test_reader_that_does_not_read_is_cut_off_and_delays_nobody() -> None:
    async with serving(stall_seconds=0.2) as served:
        stream = await silent_reader(served)
        async with served.reading() as reader:
            await until(lambda: served.control.readers == 2)
            for _ in range(8):
                served.control.tell("spools", BIG)
                block = await reader.next()
                assert block is not None
                assert block["event"] == "spools"
            await until(lambda: served.control.readers == 1)
        await stream.aclose()


async def silent_reader(served: Served) -> trio.SocketStream:
    """A client that asks and then reads no more."""
    stream = await served.connect()
    request = f"GET {API}/events HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n\r\n"
    before = served.control.readers
    await stream.send_all(request.encode())
    await until(lambda: served.control.readers == before + 1)
    return stream


async def test_readers_beyond_the_limit_are_refused_until_one_goes() -> None:
    async with serving(max_streams=2) as served:
        served.control.heartbeat = 0.01
        async with served.reading(), served.reading() as second:
            await second.next()
            async with served.reading() as third:
                assert third.status == 503
                assert third.headers["retry-after"]
        await until(lambda: not served.streams.is_full)
        async with served.reading() as reader:
            assert reader.status == 200


async def test_reader_whose_token_is_revoked_is_told_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving() as served, served.reading() as reader:
        await until(lambda: served.control.readers == 1)
        monkeypatch.setattr(served.accounts, "is_accepted", lambda *_: False)
        served.control.tell("spools", {})
        assert await reader.next() is None


async def test_connection_goes_on_after_a_question_for_the_headers_only() -> None:
    async with serving() as served, httpx.AsyncClient(timeout=NET, trust_env=False, headers=AUTHORIZED) as client:
        response = await client.head(f"{served.url}{API}/events")
        assert response.status_code == 200
        assert response.headers["Content-Type"] == "text/event-stream"
        assert (await client.get(f"{served.url}{API}/spools")).status_code == 200
        assert served.control.readers == 0


@pytest.mark.parametrize("query", ["after=", "after=%00", "before=1"])
async def test_bad_query_of_events_is_refused(query: str) -> None:
    await problem(await get(client_of(FakeControl()), f"{API}/events?{query}"), 400)


async def test_no_stream_begins_after_the_stop() -> None:
    control = FakeControl()
    app = create_app(control, accounts=Accounts.of({TOKEN: Role.OPERATE}))
    app.extensions[STREAMS].stop()
    await problem(await app.test_client().get(f"{API}/events", headers=AUTHORIZED), 503)
