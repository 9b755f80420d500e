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
from typing import TYPE_CHECKING, TypeAlias

import structlog
import trio
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.trio.task_group import TaskGroup
from hypercorn.typing import AppWrapper, ConnectionState

from trispool.admin.http1 import Http1

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hypercorn.config import Config
    from hypercorn.trio.worker_context import WorkerContext

    from trispool.admin.crowd import Crowd

__all__ = ["CHUNK", "Connection"]

CHUNK = 64 * 1024
"""Bytes of a body or an answer that are read or sent at once."""

HEAD_CHUNK = 16 * 1024
"""Bytes read at once where a request may begin. All that came with it is kept until it is answered: a client that asks
and asks and reads no answer is not to fill more."""

Stream: TypeAlias = "trio.SocketStream | trio.SSLStream[trio.SocketStream]"

_log = structlog.get_logger()


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
        self._socket = (stream.transport_stream if isinstance(stream, trio.SSLStream) else stream).socket
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
            self._socket.close()  # TLS could say goodbye first, to which nobody listens

    async def _run(self) -> None:
        limits = self._crowd.limits
        is_tls = isinstance(self._stream, trio.SSLStream)
        # Who says nothing costs little: the rest is made for those that have sent something.
        if not self._socket.is_readable():
            with self._new(limits.handshake_seconds if is_tls else limits.idle_seconds):
                await trio.lowlevel.wait_readable(self._socket)
        if isinstance(self._stream, trio.SSLStream):
            with self._new(limits.handshake_seconds):
                await self._stream.do_handshake()
        group = TaskGroup()
        self._protocol = Http1(
            self._app,
            self._config,
            self._context,
            group,
            ConnectionState({}),
            is_tls,
            _address(self._socket.getpeername()),
            _address(self._socket.getsockname()),
            self._take,
        )
        try:
            async with group:
                await self._read()
        finally:
            self._crowd.forget(self._reading)
            # They refer to each other. Only the garbage collector would find them, and 64 KiB of buffers with them, and
            # it comes late: 2,000 clients that read no answers left 125 MB behind.
            self._protocol.stream = None
            del self._protocol

    @contextlib.contextmanager
    def _new(self, seconds: float) -> Iterator[None]:
        """The client has not asked for anything yet."""
        with trio.fail_after(seconds) as scope:
            self._crowd.set_new(scope, seconds, self._socket.is_readable)
            try:
                yield
            finally:
                self._crowd.forget(scope)

    async def _read(self) -> None:
        """Hand over what the client sends, until it ends or breaks off."""
        protocol, crowd = self._protocol, self._crowd
        data: bytes | bytearray = b"-"
        is_first = True
        with self._reading as reading:
            # Its first bytes are here, if late read by us: until they are, it does not wait for nothing.
            reading.deadline = trio.current_time() + crowd.limits.idle_seconds
            while data:
                begins = protocol.stream is None and not self._finished
                try:
                    data = await self._stream.receive_some(HEAD_CHUNK if begins else CHUNK)
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    data = b""
                if not self._finished:
                    await protocol.handle(RawData(bytes(data)))
                if is_first and not self._finished and not protocol.has_asked:
                    crowd.set_new(reading, crowd.limits.idle_seconds, self._socket.is_readable)
                is_first = False
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
            case Updated() if not self._finished:
                self._crowd.set_idle(self._reading, event.idle, self._socket.is_readable)

    async def _send(self, data: bytes) -> None:
        if not data:
            return
        view = memoryview(data)
        async with self._send_lock:
            try:
                with self._crowd.sending(len(data)) as scope:
                    for start in range(0, len(data), CHUNK):
                        self._crowd.extend(scope)
                        await self._stream.send_all(view[start : start + CHUNK])
                is_sent = not scope.cancelled_caught
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                is_sent = False
        if not is_sent:
            self._finished = True
            self._crowd.forget(self._reading)  # a closed socket cannot be asked for what has come
            self._reading.cancel()  # it may be waiting for its turn to hand over the next request
            self._socket.close()
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
                self._socket.shutdown(trio.socket.SHUT_WR)


def _address(address: tuple[str, int] | tuple[str, int, int, int] | str | bytes) -> tuple[str, int] | None:
    """A TCP address as ASGI has it; None for a Unix socket."""
    return (address[0], address[1]) if isinstance(address, tuple) else None
