"""Serving the application inside a nursery of the service, with Hypercorn's protocol and our own connections.

Hypercorn's `serve` cannot be given another connection class, so this is its `trio/run.py` in short, without lifespan
events: the application has no start or end of its own, the service around it has.

The stop, from inside out: accepting ends; idle connections are closed, and streams of events end; requests under way
are answered; a client that does not take its answer gets `stop_stall_seconds`; after `grace` the rest is cut off.
"""

from __future__ import annotations

import contextlib
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final, cast

import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.trio.worker_context import WorkerContext

from trispool.admin.accesslog import note_requests
from trispool.admin.connection import CHUNK, Connection, Crowd, Stream
from trispool.admin.http1 import HttpConfig, problem_bytes
from trispool.admin.settings import ServerLimits
from trispool.admin.streams import STREAMS
from trispool.httpbind import HttpListeners, http_listeners

if TYPE_CHECKING:
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
                    accepting.start_soon(_accept, server, bind, connections)
                    task_status.started([*bind.urls])
                    await stop.wait()
                    grace_left = grace
                    accepting.cancel_scope.cancel()
            finally:
                await server.terminate()
                connections.cancel_scope.deadline = trio.current_time() + grace_left


async def _accept(server: _Server, bound: HttpListeners, connections: trio.Nursery) -> None:
    """`serve_listeners` waits and goes on when descriptors run out, and closes the listeners."""
    # trio.Listener is invariant in its stream, so no type says "either kind of listener".
    await trio.serve_listeners(
        server.serve, cast("list[trio.SocketListener]", bound.listeners), handler_nursery=connections
    )


class _Server:
    """Takes connections, or refuses them."""

    def __init__(self, app: Quart, limits: ServerLimits, counts: HttpCounts | None) -> None:
        note_requests(app)
        self._app = ASGIWrapper(cast("ASGIFramework", app))
        self._streams: Streams | None = app.extensions.get(STREAMS)
        self._config = HttpConfig(counts)
        self._context = WorkerContext(None)
        self._crowd = Crowd(limits)
        self._limits = limits
        self._refusing = 0

    async def serve(self, stream: Stream) -> None:
        """Serve one client to its end."""
        if not self._may_connect(stream):
            await trio.aclose_forcefully(stream)
        elif self._crowd.is_full and not self._crowd.make_room():
            await self._refuse(stream)
        else:
            with self._crowd.member():
                await Connection(self._app, self._config, self._context, self._crowd, stream).run()

    async def terminate(self) -> None:
        """Let connections end."""
        await self._context.terminated.set()
        if self._streams is not None:
            self._streams.stop()
        self._crowd.stop()

    def _may_connect(self, stream: Stream) -> bool:
        if self._limits.networks is None:
            return True
        transport = stream.transport_stream if isinstance(stream, trio.SSLStream) else stream
        try:
            peer = transport.socket.getpeername()
        except OSError:
            return False  # gone
        if not isinstance(peer, tuple):
            return True  # a Unix socket has its permissions
        # Never an IPv4 address in IPv6 clothes: trio.open_tcp_listeners keeps the two apart.
        return any(ip_address(peer[0]) in network for network in self._limits.networks)

    async def _refuse(self, stream: Stream) -> None:
        """Answer 503 without looking at the request. Not over TLS: the handshake is what would cost."""
        with contextlib.suppress(trio.BrokenResourceError):
            if isinstance(stream, trio.SocketStream) and self._refusing < MAX_REFUSING:
                self._refusing += 1
                try:
                    with trio.move_on_after(self._limits.linger_seconds):
                        await stream.send_all(_BUSY)
                        await stream.send_eof()
                        while await stream.receive_some(CHUNK):
                            pass  # see Connection._finish
                finally:
                    self._refusing -= 1
        await trio.aclose_forcefully(stream)


def _busy_answer() -> bytes:
    content = problem_bytes(503, "The server has as many connections as it may.")
    return (
        b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/problem+json\r\nContent-Length: %d\r\n"
        b"Retry-After: 1\r\nConnection: close\r\n\r\n" % len(content)
    ) + content


_BUSY: Final = _busy_answer()
