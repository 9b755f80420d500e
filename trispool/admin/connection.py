"""One HTTP connection: what Hypercorn's `trio/tcp_server.py` does, with an end to every wait.

Every wait on a client has a limit (`ServerLimits`): the handshake, idling, the headers (both `idle_seconds`), taking an
answer (`stall_seconds` for each chunk), sending the rest of a refused request (`linger_seconds`); that for the body is
the application's. Hypercorn shields the sending of an answer from cancellation without a limit, so that one client that
does not read keeps the whole server from stopping.

Idleness is a deadline of the reading scope, changed without a checkpoint. (Hypercorn restarts a timer with an `await`
in the request's Trio task, which Quart-Trio has cancelled by then: after its first request a connection has none.)

A request that was received whole is answered, and a task in it kept, even if its sender has closed since: many clients
"fire and forget". (Hypercorn cancels it.) Whoever adds an answer without end must therefore write to it now and then,
to learn that nobody listens.
"""

from __future__ import annotations

import contextlib
import math
from typing import TYPE_CHECKING, TypeAlias

import structlog
import trio
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.trio.task_group import TaskGroup
from hypercorn.typing import AppWrapper, ConnectionState

from trispool import memory
from trispool.admin.http1 import Http1

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hypercorn.config import Config
    from hypercorn.trio.worker_context import WorkerContext

    from trispool.admin.settings import ServerLimits

__all__ = ["CHUNK", "SPARE_SECONDS", "Connection", "Crowd", "Stream"]

CHUNK = 64 * 1024
"""Bytes read or sent at once."""

SPARE_SECONDS = 1.0
"""For so long an idle connection is left alone though there is no room for another one: a client needs a moment between
an answer and its next request. Also one whose client takes nothing of an answer."""

SPARE_NEW_SECONDS = 0.1
"""The same before its first request, which mostly is under way when the connection is there, and after a refusal. The
shorter, the more clients that only connect are needed to keep others out: ten times `max_connections` a second."""

TRIM_FROM = 100
"""When half of so many connections, or of more, have gone, memory that is not used is given back: 1,000 clients that
had not read the pages they had asked for left 350 MB behind."""

Stream: TypeAlias = "trio.SocketStream | trio.SSLStream[trio.SocketStream]"

_log = structlog.get_logger()


class Crowd:
    """All connections of a server; the one owner of what they share. Changes only between two awaits.

    Args:
        limits: What each may do.
    """

    def __init__(self, limits: ServerLimits) -> None:
        self.limits = limits
        self._stall_seconds = limits.stall_seconds
        self._is_stopping = False
        self._size = 0
        self._most = 0  # since memory was given back
        # Those that could be ended, and since when, on Trio's clock; the longest first. New are those that have not
        # asked for anything yet, refused those whose last answer is out.
        self._new: dict[trio.CancelScope, float] = {}
        self._refused: dict[trio.CancelScope, float] = {}
        self._idle: dict[trio.CancelScope, float] = {}
        self._sending: dict[trio.CancelScope, float] = {}

    @property
    def is_full(self) -> bool:
        """Whether one more would be too many."""
        return self._size >= self.limits.max_connections

    def make_room(self) -> bool:
        """End the connection that is the least loss: one that has waited the longest, of those that wait for nothing.

        Returns:
            False if there is none.
        """
        for waiting, spared in (
            (self._refused, SPARE_NEW_SECONDS),
            (self._new, SPARE_NEW_SECONDS),
            (self._idle, SPARE_SECONDS),
            (self._sending, SPARE_SECONDS),
        ):
            scope, since = next(iter(waiting.items()), (None, 0.0))
            if scope is not None and trio.current_time() - since >= spared:
                del waiting[scope]
                scope.cancel()
                return True
        return False

    @contextlib.contextmanager
    def member(self) -> Iterator[None]:
        """Count a connection."""
        self._size += 1
        self._most = max(self._most, self._size)
        try:
            yield
        finally:
            self._size -= 1
            if self._most >= TRIM_FROM and self._size <= self._most // 2:
                self._most = self._size
                memory.trim()

    @contextlib.contextmanager
    def sending(self) -> Iterator[trio.CancelScope]:
        """Shield the sending of an answer, as half an answer helps nobody; until the client stalls."""
        with trio.CancelScope(shield=True) as scope:
            self.extend(scope)
            try:
                yield scope
            finally:
                self._sending.pop(scope, None)

    def extend(self, scope: trio.CancelScope) -> None:
        """Give the next chunk its time."""
        self._sending.pop(scope, None)  # to the end of the line
        self._sending[scope] = trio.current_time()
        scope.deadline = trio.current_time() + self._stall_seconds

    def set_new(self, scope: trio.CancelScope, seconds: float) -> None:
        """Give a connection so long to shake hands, or to send its first request."""
        self._wait(self._new, scope, seconds)

    def set_idle(self, reading: trio.CancelScope, is_idle: bool) -> None:
        """Give a connection `idle_seconds` to send a request, or end it if we are stopping; or let it read on."""
        if is_idle:
            self._wait(self._idle, reading, self.limits.idle_seconds)
        else:
            self.forget(reading)
            reading.deadline = math.inf

    def set_refused(self, reading: trio.CancelScope) -> None:
        """Give a connection `linger_seconds` to send what nobody wants."""
        self._wait(self._refused, reading, self.limits.linger_seconds)

    def forget(self, scope: trio.CancelScope) -> None:
        """It waits no more."""
        for waiting in (self._new, self._idle, self._refused):
            waiting.pop(scope, None)

    def _wait(self, waiting: dict[trio.CancelScope, float], scope: trio.CancelScope, seconds: float) -> None:
        self.forget(scope)
        waiting[scope] = trio.current_time()
        scope.deadline = trio.current_time() + seconds
        if self._is_stopping and waiting is not self._refused:
            scope.cancel()

    def stop(self) -> None:
        """End what is idle, and wait less for clients that do not read."""
        self._is_stopping = True
        for reading in (*self._new, *self._idle):
            reading.cancel()
        self._stall_seconds = min(self._stall_seconds, self.limits.stop_stall_seconds)
        latest = trio.current_time() + self._stall_seconds
        for scope in self._sending:
            scope.deadline = min(scope.deadline, latest)


class Connection:
    """One client.

    Args:
        app: The application.
        config: For Hypercorn's protocol.
        context: Tells the protocol that the server stops.
        crowd: All connections.
        stream: To the client; closed when `run` ends.
    """

    def __init__(self, app: AppWrapper, config: Config, context: WorkerContext, crowd: Crowd, stream: Stream) -> None:
        self._app = app
        self._config = config
        self._context = context
        self._crowd = crowd
        self._stream = stream
        self._protocol: Http1
        self._reading = trio.CancelScope()
        self._send_lock = trio.Lock()
        self._finished = False

    async def run(self) -> None:
        """Serve the client until it leaves, errs, or the server stops. Its errors end here, and ours that it causes."""
        try:
            await self._run()
        except* (OSError, trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError):
            pass  # it left, in one way or the other
        except* Exception as group:
            _log.error("http_connection_failed", exc_info=group)
        finally:
            await trio.aclose_forcefully(self._stream)

    async def _run(self) -> None:
        stream = self._stream
        is_tls = isinstance(stream, trio.SSLStream)
        if isinstance(stream, trio.SSLStream):
            with trio.fail_after(self._crowd.limits.handshake_seconds) as scope:
                self._crowd.set_new(scope, self._crowd.limits.handshake_seconds)
                try:
                    await stream.do_handshake()
                finally:
                    self._crowd.forget(scope)
            socket = stream.transport_stream.socket
        else:
            socket = stream.socket
        async with TaskGroup() as group:
            self._protocol = Http1(
                self._app,
                self._config,
                self._context,
                group,
                ConnectionState({}),
                is_tls,
                _address(socket.getpeername()),
                _address(socket.getsockname()),
                self._take,
            )
            await self._protocol.initiate()
            self._crowd.set_new(self._reading, self._crowd.limits.idle_seconds)
            try:
                await self._read()
            finally:
                self._crowd.forget(self._reading)

    async def _read(self) -> None:
        """Hand over what the client sends, until it ends or breaks off."""
        data: bytes | bytearray = b"-"
        with self._reading:
            while data:
                try:
                    data = await self._stream.receive_some(CHUNK)
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    data = b""
                if not self._finished:
                    await self._protocol.handle(RawData(bytes(data)))
        if not self._protocol.has_whole_request:
            await self._protocol.handle(Closed())

    async def _take(self, event: Event) -> None:
        """Do what the protocol says."""
        match event:
            case RawData():
                await self._send(event.data)
            case Closed():
                self._finish()
                await self._protocol.handle(event)
            case Updated():
                self._crowd.set_idle(self._reading, event.idle)

    async def _send(self, data: bytes) -> None:
        view = memoryview(data)
        async with self._send_lock:
            try:
                with self._crowd.sending() as scope:
                    for start in range(0, len(data), CHUNK):
                        self._crowd.extend(scope)
                        await self._stream.send_all(view[start : start + CHUNK])
                is_sent = not scope.cancelled_caught
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                is_sent = False
        if not is_sent:
            self._finished = True
            self._reading.cancel()  # it may be waiting for its turn to hand over the next request
            await trio.aclose_forcefully(self._stream)
            await self._protocol.handle(Closed())

    def _finish(self) -> None:
        """Send no more; if the request was not read to its end, throw away for a while what still comes of it.

        Closing a socket with unread data resets the connection, and the client might lose the answer that says why.
        No `send_eof` here: it has a checkpoint, and the request's Trio task that calls this is cancelled by now.
        """
        if self._finished:
            return
        self._finished = True
        if self._protocol.has_read_all:
            self._reading.cancel()
        else:
            self._crowd.set_refused(self._reading)
        if isinstance(self._stream, trio.SocketStream):
            with contextlib.suppress(OSError):
                self._stream.socket.shutdown(trio.socket.SHUT_WR)


def _address(address: tuple[str, int] | tuple[str, int, int, int] | str | bytes) -> tuple[str, int] | None:
    """A TCP address as ASGI has it; None for a Unix socket."""
    return (address[0], address[1]) if isinstance(address, tuple) else None
