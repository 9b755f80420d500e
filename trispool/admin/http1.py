"""HTTP/1.1 as this server speaks it: Hypercorn's protocol, without what it must not do here.

Kept out: HTTP/2 (its flow control lets a client stall an answer for ever, outside our limits) and WebSockets (no use
for them, and Quart would route them past the guard). A client that offers to upgrade is answered in HTTP/1.1, as RFC
9110 section 7.8 lets us; one that speaks HTTP/2 at once gets 505.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, cast
from urllib.parse import unquote, urlsplit

import h11
import msgspec
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData
from hypercorn.protocol.events import Event as StreamEvent
from hypercorn.protocol.events import Response
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.protocol.http_stream import HTTPStream

from trispool.admin.accesslog import AccessLog, note_answer
from trispool.admin.problems import document
from trispool.httpcounts import HttpCounts

if TYPE_CHECKING:
    from hypercorn.typing import H11SendableEvent

    from trispool.admin.guard import Gate, Stranger

__all__ = ["Http1", "HttpConfig", "problem_bytes"]

_INCOMPLETE = (h11.IDLE, h11.SEND_BODY, h11.ERROR)
"""States of a client of whose request more should come, or would have."""

JOIN_BYTES = 16 * 1024
"""So much of an answer's content is sent together with its head. More is not copied, for all that wait may share it."""

_DETAILS = {431: "The headers of the request are too large.", 505: "Only HTTP/1.0 and HTTP/1.1 are spoken here."}


class HttpConfig(Config):
    """What of Hypercorn's configuration its protocol still looks at.

    Args:
        counts: Counts what was answered.
        gate: Knows whom to refuse without the application; None: the application does so.
    """

    logger_class = AccessLog
    include_server_header = False
    h11_max_incomplete_size = 32 * 1024
    """Bytes of a request's line and headers: filters in a query have room, as with nginx (4 * 8 KiB)."""

    keep_alive_max_requests = 100_000
    """Hypercorn's 1,000 would make a producer reconnect every half second."""

    def __init__(self, counts: HttpCounts | None = None, gate: Gate | None = None) -> None:
        super().__init__()
        self.counts = counts or HttpCounts()
        self.gate = gate


class _UnfitRequestError(Exception):
    """The request is one of HTTP, but none for the application.

    Args:
        request: It.
        status: What to answer.
        stranger: If that is all that is wrong with it.
    """

    def __init__(self, request: h11.Request, status: int, stranger: Stranger | None = None) -> None:
        super().__init__(status)
        self.request = request
        self.status = status
        self.stranger = stranger


class Http1(H11Protocol):
    """One HTTP/1.1 connection, as events."""

    _head: bytes = b""
    """Of an answer, kept until its content is here: to send it alone costs as much again, and the client a packet."""

    @property
    def has_asked(self) -> bool:
        """Whether a request has ever come, to the end of its headers."""
        return self.keep_alive_requests > 0

    @property
    def has_whole_request(self) -> bool:
        """Whether a request was received to its end and is not answered yet."""
        return self.stream is not None and self.connection.their_state not in _INCOMPLETE

    @property
    def has_read_all(self) -> bool:
        """Whether the client, as far as we know, has nothing more on the way."""
        return self.connection.their_state not in _INCOMPLETE and not self.connection.trailing_data[0]

    async def handle(self, event: Event) -> None:
        """Take what came from the socket."""
        try:
            await super().handle(event)
        except _UnfitRequestError as error:
            await self._refuse(error.status, error.request, error.stranger)
            await self.send(Closed())

    async def stream_send(self, event: StreamEvent) -> None:
        """Take what comes from the application."""
        if isinstance(event, Response) and (
            self.connection.their_state in _INCOMPLETE or self.context.terminated.is_set()
        ):
            # Refused before its body was here, or we are stopping: this connection will be closed, so say it.
            event = replace(event, headers=[*event.headers, (b"connection", b"close")])
        if isinstance(self.stream, HTTPStream):
            note_answer(self.stream.scope, event)
        await super().stream_send(event)

    async def _check_protocol(self, event: h11.Request) -> None:
        if event.http_version not in (b"1.0", b"1.1"):
            raise _UnfitRequestError(event, 505)
        if not (_is_readable_target(event.target) and all(map(_is_readable_field, event.headers))):
            raise _UnfitRequestError(event, 400)
        gate = cast("HttpConfig", self.config).gate
        if gate is not None and event.target.startswith(b"/"):
            path = unquote(event.target.partition(b"?")[0].decode("ascii"))
            stranger = gate.stranger(event.method.decode("ascii").upper(), path, dict(event.headers))
            if stranger is not None:
                raise _UnfitRequestError(event, stranger.status, stranger)

    async def _create_stream(self, request: h11.Request) -> None:
        if any(name == b"upgrade" for name, _ in request.headers):
            headers = [(name, value) for name, value in request.headers if name != b"upgrade"]
            request = h11.Request(
                method=request.method, target=request.target, headers=headers, http_version=request.http_version
            )
        await super()._create_stream(request)

    async def _send_h11_event(self, event: H11SendableEvent) -> None:
        try:
            data = self.connection.send(event) or b""
        except h11.LocalProtocolError:
            if self.connection.their_state != h11.ERROR:
                raise
            return
        if isinstance(event, h11.Response):
            self._head = data
            return
        if self._head:
            head, self._head = self._head, b""
            if len(data) <= JOIN_BYTES:
                data = head + data
            else:
                await self.send(RawData(head))
        await self.send(RawData(data))

    async def _send_error_response(self, status_code: int) -> None:
        """Answer what is not a request; Hypercorn's own answer has no content."""
        await self._refuse(status_code)

    async def _refuse(self, status: int, request: h11.Request | None = None, stranger: Stranger | None = None) -> None:
        """Answer what the application does not see.

        In one piece: while it is sent, the application may answer the part that looked like a request.
        """
        if self.stream is None:  # else it logs what became of its request
            log = self.config.log
            assert isinstance(log, AccessLog)  # see HttpConfig
            log.refused(status, self.client, request, stranger.route if stranger else None)
        detail = stranger.detail if stranger else _DETAILS.get(status, "This is not a valid HTTP/1.1 request.")
        content = problem_bytes(status, detail)
        headers = [
            (b"content-type", b"application/problem+json"),
            (b"content-length", b"%d" % len(content)),
            (b"connection", b"close"),
            *((name.encode(), value.encode()) for name, value in (stranger.headers if stranger else {}).items()),
            *self.config.response_headers("h11"),
        ]
        events: list[H11SendableEvent] = [
            h11.Response(status_code=status, headers=headers),
            h11.Data(data=content),
            h11.EndOfMessage(),
        ]
        if request is not None and request.method == b"HEAD":
            del events[1]
        await self.send(RawData(b"".join(self.connection.send(event) or b"" for event in events)))


def _is_readable_target(target: bytes) -> bool:
    """Whether Quart can read it; it does not expect that it cannot."""
    path = unquote(target.partition(b"?")[0].decode("ascii"))
    try:
        return path.startswith("/") or bool(path and urlsplit(path))
    except ValueError:  # of `http://[x`
        return False


def _is_readable_field(field: tuple[bytes, bytes]) -> bool:
    """The same of a header: Werkzeug takes a host in ASCII for a name of the DNS."""
    name, value = field
    if name == b"host" and value.isascii():
        try:
            value.decode("ascii").partition(":")[0].encode("idna")
        except UnicodeError:
            return False
    return True


def problem_bytes(status: int, detail: str) -> bytes:
    """A problem document."""
    return msgspec.json.encode(document(status, detail))
