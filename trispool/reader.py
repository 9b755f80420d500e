"""Finds the requests in the bytes of one connection. Sans-IO: the reader knows no socket.

Behind a packet may follow a body, as long as the packet's CONTENT_LENGTH says, and then the next packet. A
`PacketReader` that has raised is dead: where the next packet begins is then unknown.
"""

from __future__ import annotations

import io
from enum import Enum
from typing import TYPE_CHECKING, Final, NamedTuple

from trispool.errors import MalformedPacket, TaskRefused
from trispool.packet import HEADER, PING_MODIFIER, SPOOLER_MODIFIER, decode_vars, wants_http
from trispool.task import MAX_VARS

if TYPE_CHECKING:
    from collections.abc import Container, Mapping

__all__ = ["NEED_DATA", "PacketReader", "Request", "UnacceptedModifier", "names_length"]

DEFAULT_MAX_BODY: Final = 64 * 1024 * 1024
"""Bytes; as in the configuration."""


class Request(NamedTuple):
    """A whole packet with its body.

    Attributes:
        modifier1: What is asked for.
        modifier2: The rest of the header.
        payload: The encoded vars.
        vars: The vars; empty for a ping, whose payload means nothing.
        body: The bytes that came behind the packet.
    """

    modifier1: int
    modifier2: int
    payload: bytes
    vars: dict[bytes, bytes]
    body: bytes


class UnacceptedModifier(MalformedPacket):
    """This `modifier1` is not accepted here."""


class _NeedData(Enum):
    NEED_DATA = "NEED_DATA"


NEED_DATA: Final = _NeedData.NEED_DATA
"""What `PacketReader.next_event` gives when it has no whole request."""


def names_length(vars: Mapping[bytes, bytes]) -> bool:
    """Whether a packet says how long its body is. (nginx does for a GET, with nothing, when it is told to.)"""
    return bool(vars.get(b"CONTENT_LENGTH") or vars.get(b"HTTP_CONTENT_LENGTH"))


class PacketReader:
    """Finds the requests in the bytes of one connection.

    Args:
        max_packet: The vars of one packet, bytes.
        max_body: The body of one request, bytes.
        modifiers: Which modifier1 are worth reading on for, besides the ping and 0. 0 is what web servers send when
            nobody told them better, and they shall get an answer that they understand.

    Attributes:
        from_web: Whether a web server sent the packet that is being read or was read last, as far as known: who answers
            an error learns here whom.
        missing: How many bytes the request under way still needs, as far as known.
    """

    __slots__ = ("_body", "_buffer", "_head", "_max_body", "_max_packet", "_modifiers", "_start", "from_web", "missing")

    def __init__(
        self,
        *,
        max_packet: int = MAX_VARS,
        max_body: int = DEFAULT_MAX_BODY,
        modifiers: Container[int] = (SPOOLER_MODIFIER,),
    ) -> None:
        self._max_packet = max_packet
        self._max_body = max_body
        self._modifiers = modifiers
        self._buffer: bytes | bytearray = b""
        self._start = 0
        # Of a request that waits for its body, without its vars: 64 KiB of tiny ones would take 1.5 MB.
        self._head: Request | None = None
        # BytesIO gives its bytes away without copying them, a bytearray would need as much memory again.
        self._body: io.BytesIO | None = None
        self.missing = 0
        self.from_web = False

    @property
    def buffered(self) -> int:
        """How many bytes of requests that are not whole yet, or not asked for yet, are held."""
        held = len(self._buffer) - self._start
        if self._head is not None and self._body is not None:
            held += 4 + len(self._head.payload) + self._body.tell()
        return held

    def receive_data(self, data: bytes) -> None:
        """Add what came from the connection."""
        if self._start == len(self._buffer):
            if self._body is not None and len(data) <= self.missing:
                self._body.write(data)
                self.missing -= len(data)
                return
            self._buffer = data
            self._start = 0
        else:
            if isinstance(self._buffer, bytes):
                self._buffer = bytearray(memoryview(self._buffer)[self._start :])
            else:
                del self._buffer[: self._start]
            self._start = 0
            self._buffer += data

    def next_event(self) -> Request | _NeedData:
        """The next whole request, or `NEED_DATA`.

        Raises:
            MalformedPacket: These are not uwsgi packets; `offset` counts from the begin of this one.
            UnacceptedModifier: They are, but not for us.
            TaskRefused: The packet is too large, its body has no length or a bad one, or is too large.
        """
        head = self._head
        vars: dict[bytes, bytes] | None = None
        if head is None:
            read = self._read_packet()
            if not isinstance(read, Request):
                return NEED_DATA
            vars = read.vars
            self.from_web = wants_http(vars)
            # Most packets name neither, and a search through the bytes, if they are few, is the quickest way to know.
            payload = read.payload
            if len(payload) < 1000 and b"CONTENT_LENGTH" not in payload and b"TRANSFER_ENCODING" not in payload:
                return read
            size = self._body_size(vars)
            if not size:
                return read
            head = self._head = read._replace(vars={})
            self._body = io.BytesIO()
            self.missing = size
        assert self._body is not None
        if self.missing and self._start < len(self._buffer):
            with memoryview(self._buffer)[self._start : self._start + self.missing] as piece:
                self._body.write(piece)
                self._start += len(piece)
                self.missing -= len(piece)
            if self._start == len(self._buffer):  # a slow body shall not hold what came before it once more
                self._buffer = b""
                self._start = 0
        if self.missing:
            return NEED_DATA
        self._head = None
        body, self._body = self._body, None
        return head._replace(vars=decode_vars(head.payload) if vars is None else vars, body=body.getvalue())

    def _read_packet(self) -> Request | None:
        buffer, start = self._buffer, self._start
        have = len(buffer) - start
        if have < 4:
            self.missing = 4 - have
            if have and buffer[start] not in self._modifiers:
                self._refuse_modifier(buffer[start])
            return None
        modifier1, size, modifier2 = HEADER.unpack_from(buffer, start)
        if modifier1 not in self._modifiers:
            self._refuse_modifier(modifier1)
        if have < 4 + size:
            self.missing = 4 + size - have
            return None
        self.missing = 0
        payload = bytes(buffer[start + 4 : start + 4 + size])
        self._start = start + 4 + size
        if self._start == len(buffer):  # an idle connection shall not hold what it sent last
            self._buffer = b""
            self._start = 0
        if modifier1 == PING_MODIFIER and modifier1 not in self._modifiers:
            return Request(modifier1, modifier2, payload, {}, b"")
        try:
            vars = decode_vars(payload)
        except MalformedPacket as error:
            raise MalformedPacket(f"byte {4 + error.offset}: {error}", offset=4 + error.offset) from None
        if size > self._max_packet:
            # Only now: whoever answers has to see whether a web server asked. The size field bounds what that costs.
            self.from_web = wants_http(vars)
            raise TaskRefused(f"the vars have {size} bytes, at most {self._max_packet} are allowed here", status=413)
        return Request(modifier1, modifier2, payload, vars, b"")

    def _refuse_modifier(self, modifier1: int) -> None:
        if modifier1 not in (0, PING_MODIFIER):
            raise UnacceptedModifier(f"byte 0: modifier1 is {modifier1}, which is not accepted here")

    def _body_size(self, vars: Mapping[bytes, bytes]) -> int:
        """How long a body follows. nginx says it in HTTP_CONTENT_LENGTH, with `uwsgi_params` in CONTENT_LENGTH."""
        if not names_length(vars):
            if vars.get(b"HTTP_TRANSFER_ENCODING"):
                raise TaskRefused(
                    "the request has a body of unknown length; pass CONTENT_LENGTH, for example with nginx"
                    " uwsgi_param CONTENT_LENGTH $content_length",
                    status=411,
                )
            return 0
        stated = {vars.get(b"CONTENT_LENGTH", b""), vars.get(b"HTTP_CONTENT_LENGTH", b"")} - {b""}
        text = stated.pop()
        if stated:
            raise MalformedPacket(
                f"CONTENT_LENGTH and HTTP_CONTENT_LENGTH disagree: {text!r:.40}, {stated.pop()!r:.40}"
            )
        if not text.isdigit():
            raise MalformedPacket(f"CONTENT_LENGTH={text!r:.40}: expected digits")
        digits = text.lstrip(b"0")
        if len(digits) > 18 or int(digits or b"0") > self._max_body:
            raise TaskRefused(
                f"the body has {text[:40].decode()} bytes, at most {self._max_body} are allowed", status=413
            )
        return int(digits or b"0")
