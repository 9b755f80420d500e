"""Answers without end, as server-sent events: how many there may be, and that they end when the server does."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

import msgspec
import trio

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterator

    from trispool.operating import Event

__all__ = ["STREAMS", "EventStream", "Streams"]

STREAMS: Final = "trispool.streams"
"""Where among an application's extensions the server finds the streams that it has to stop."""

RETRY_MS: Final = 2000
"""What a browser is told to wait before it comes back after a broken connection."""

HEARTBEAT: Final = b":\n\n"
"""A comment: nothing for the reader, but writing it tells that there is one."""

KEPT_FRAMES: Final = 64
"""Events whose bytes are kept for the other readers: a second of them."""


class Streams:
    """All streams of a server. Changes only between two awaits.

    Args:
        limit: How many at most.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._size = 0
        self._is_stopping = False
        self._waiting: set[trio.CancelScope] = set()
        self._frames: OrderedDict[tuple[str, str], bytes] = OrderedDict()

    @property
    def is_full(self) -> bool:
        """Whether one more would be too many."""
        return self._size >= self.limit

    @property
    def is_stopping(self) -> bool:
        """Whether `stop` was called."""
        return self._is_stopping

    def enter(self) -> None:
        """Count a stream."""
        self._size += 1

    def leave(self) -> None:
        """Count it no longer."""
        self._size -= 1

    @contextlib.contextmanager
    def waiting(self) -> Iterator[trio.CancelScope]:
        """A wait that `stop` ends."""
        with trio.CancelScope() as scope:
            self._waiting.add(scope)
            if self._is_stopping:
                scope.cancel()
            try:
                yield scope
            finally:
                self._waiting.discard(scope)

    def stop(self) -> None:
        """End all of them."""
        self._is_stopping = True
        for scope in self._waiting:
            scope.cancel()

    def frame(self, event: Event) -> bytes:
        """An event on the wire (HTML, section 9.2.6), encoded once for all readers."""
        key = (event.id, event.name)
        frame = self._frames.get(key)
        if frame is None:
            data = msgspec.json.encode(event.data)  # never has a line break outside of `\n` in a string
            frame = f"id: {event.id}\nevent: {event.name}\ndata: ".encode() + data + b"\n\n"
            self._frames[key] = frame
            if len(self._frames) > KEPT_FRAMES:
                self._frames.popitem(last=False)
        return frame


class EventStream:
    """What one reader is sent; an async iterator, to be closed by whoever has begun to iterate.

    Args:
        streams: Those of the server.
        events: What happens; closed with this.
        may_go_on: Whether the reader is still let in.
    """

    def __init__(
        self, streams: Streams, events: AsyncGenerator[Event | None, None], may_go_on: Callable[[], bool]
    ) -> None:
        self._streams = streams
        self._events = events
        self._may_go_on = may_go_on
        self._entered = False

    def __aiter__(self) -> EventStream:
        return self

    async def __anext__(self) -> bytes:
        if not self._entered:
            if self._streams.is_full:  # others were faster since the view looked
                raise StopAsyncIteration
            self._entered = True
            self._streams.enter()
            return f"retry: {RETRY_MS}\n\n".encode()
        with self._streams.waiting():
            event = await anext(self._events)
            if not self._may_go_on():
                raise StopAsyncIteration
            return HEARTBEAT if event is None else self._streams.frame(event)
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Stop reading."""
        if self._entered:
            self._entered = False
            self._streams.leave()
        await self._events.aclose()
