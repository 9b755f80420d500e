"""Serving the application inside a nursery of the service, with Hypercorn's protocol and our own connections.

Hypercorn's `serve` cannot be given another connection class, so this is its `trio/run.py` in short, without lifespan
events: the application has no start or end of its own, the service around it has.

The stop, from inside out: accepting ends; idle connections are closed, and streams of events end; requests under way
are answered; a client that does not take its answer gets `stop_stall_seconds`; after `grace` the rest is cut off.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final, cast

import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.trio.worker_context import WorkerContext

from trispool.admin.accepting import accept_all
from trispool.admin.accesslog import note_requests
from trispool.admin.connection import CHUNK, Connection
from trispool.admin.crowd import Crowd
from trispool.admin.guard import GATE
from trispool.admin.http1 import HttpConfig, problem_bytes
from trispool.admin.settings import ServerLimits
from trispool.admin.streams import STREAMS
from trispool.admin.turns import InTurn
from trispool.bind import allowed
from trispool.httpbind import HttpListeners, http_listeners

if TYPE_CHECKING:
    import socket
    import ssl

    from hypercorn.typing import ASGIFramework
    from quart import Quart

    from trispool.admin.streams import Streams
    from trispool.httpcounts import HttpCounts

__all__ = ["serve_admin"]

MAX_REFUSING: Final = 64
"""How many connections beyond the limit are told so at once; the others are closed without a word."""


async def serve_admin(
    app: Quart,
    bind: str | HttpListeners,
    *,
    certfile: str | None = None,
    keyfile: str | None = None,
    stop: trio.Event,
    grace: float,
    limits: ServerLimits | None = None,
    counts: HttpCounts | None = None,
    task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve `app` until `stop` is set; to be started with `nursery.start`.

    Args:
        app: The application; its before- and after-serving functions are not called.
        bind: Where; see `trispool.httpbind.http_listeners`. Or what listens already.
        certfile: The same.
        keyfile: The same.
        stop: Ends the server.
        grace: Seconds that requests under way get then.
        limits: What clients may do; None: the defaults.
        counts: Counts what is answered.
        task_status: Reports the bound URLs, such as `http://127.0.0.1:8080` or `unix:/run/admin.sock`.

    Raises:
        ConfigError: The address cannot be bound or the certificate not used.
    """
    async with contextlib.AsyncExitStack() as stack:
        if isinstance(bind, str):
            bind = await stack.enter_async_context(http_listeners(bind, certfile, keyfile))
        server = _Server(app, limits or ServerLimits(), counts)
        async with trio.open_nursery() as connections:
            grace_left = 0.0  # unless stopped politely
            try:
                async with trio.open_nursery() as accepting:
                    for listening in bind.sockets:
                        accepting.start_soon(server.accept, listening, bind.tls, connections)
                    task_status.started([*bind.urls])
                    await stop.wait()
                    grace_left = grace
                    accepting.cancel_scope.cancel()
            finally:
                await server.terminate()
                connections.cancel_scope.deadline = trio.current_time() + grace_left


class _Server:
    """Takes connections, or refuses them."""

    def __init__(self, app: Quart, limits: ServerLimits, counts: HttpCounts | None) -> None:
        note_requests(app)
        self._app = ASGIWrapper(InTurn(cast("ASGIFramework", app)))
        self._streams: Streams | None = app.extensions.get(STREAMS)
        self._config = HttpConfig(counts, app.extensions.get(GATE))
        self._context = WorkerContext(None)
        self._crowd = Crowd(limits)
        self._limits = limits
        self._may_connect = allowed(limits.networks or ())
        self._refusing = 0

    async def accept(self, listening: socket.socket, tls: ssl.SSLContext | None, connections: trio.Nursery) -> None:
        """Take what comes on a socket that listens, until cancelled."""

        def serve(sock: socket.socket) -> None:
            self._crowd.enter()
            connections.start_soon(self._serve, sock, tls)

        def refuse(sock: socket.socket) -> None:
            # Not over TLS: the handshake is what would cost.
            if tls is not None or self._refusing >= MAX_REFUSING:
                sock.close()
            else:
                self._refusing += 1
                connections.start_soon(self._refuse, sock)

        await accept_all(listening, self._crowd, self._may_connect, serve, refuse)

    async def terminate(self) -> None:
        """Let connections end."""
        await self._context.terminated.set()
        if self._streams is not None:
            self._streams.stop()
        self._crowd.stop()

    async def _serve(self, sock: socket.socket, tls: ssl.SSLContext | None) -> None:
        """Serve one client to its end."""
        try:
            with sock, contextlib.suppress(OSError):  # of one that has left
                stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
                transport = trio.SSLStream(stream, tls, server_side=True, https_compatible=True) if tls else stream
                await Connection(self._app, self._config, self._context, self._crowd, transport).run()
        finally:
            self._crowd.leave()

    async def _refuse(self, sock: socket.socket) -> None:
        """Answer 503 without looking at the request."""
        try:
            with (
                contextlib.suppress(OSError, trio.BrokenResourceError),
                trio.move_on_after(self._limits.linger_seconds),
            ):
                async with trio.SocketStream(trio.socket.from_stdlib_socket(sock)) as stream:
                    await stream.send_all(_BUSY)
                    await stream.send_eof()
                    while await stream.receive_some(CHUNK):
                        pass  # see Connection._finish
        finally:
            sock.close()
            self._refusing -= 1


def _busy_answer() -> bytes:
    content = problem_bytes(503, "The server has as many connections as it may.")
    return (
        b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/problem+json\r\nContent-Length: %d\r\n"
        b"Retry-After: 1\r\nConnection: close\r\n\r\n" % len(content)
    ) + content


_BUSY: Final = _busy_answer()
