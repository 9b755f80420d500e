"""Opens what `http.bind` of the configuration names.

Apart from `trispool.admin`, whose imports take a third of the time of a start: an address that is in use is found
before anything else is begun, and clients that come meanwhile wait for their answer.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import ssl
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import trio

from trispool.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence

__all__ = ["HttpListeners", "http_listeners"]

UNIX_MODE: Final = 0o660
"""A Unix socket is for the service's user and group; then a token is needed on top."""

BACKLOG: Final = 4096
"""Connections that wait to be accepted on a Unix socket. The kernel takes what `somaxconn` allows."""

DEFER_SECONDS: Final = 5
"""The kernel shows us a TCP connection only with its first data, or after about so long without: a silent client costs
nothing."""


@dataclass(frozen=True, slots=True)
class HttpListeners:
    """What listens.

    Attributes:
        sockets: At least one, which do not block; a host name may stand for several addresses.
        tls: For their connections, or None.
        urls: Of each, such as `http://127.0.0.1:8080` or `unix:/run/admin.sock`.
    """

    sockets: Sequence[socket.socket]
    tls: ssl.SSLContext | None
    urls: Sequence[str]


@contextlib.asynccontextmanager
async def http_listeners(
    bind: str, certfile: str | None = None, keyfile: str | None = None
) -> AsyncIterator[HttpListeners]:
    """Listen within the block; leaving it closes the sockets, and removes the file of a Unix socket.

    Args:
        bind: `127.0.0.1:8080` (port 0: any free one), `[::1]:8080`, `localhost:8080`, `:8080` (all addresses) or
            `unix:path`.
        certfile: PEM file of the server's certificate, which makes it HTTPS.
        keyfile: PEM file of its key; None: it is in `certfile` too.

    Raises:
        ConfigError: The address cannot be bound or the certificate not used.
    """
    tls = _tls_context(certfile, keyfile) if certfile is not None else None
    with contextlib.ExitStack() as stack:
        if bind.startswith("unix:"):
            sockets = [stack.enter_context(_unix_listener(bind))]
        else:
            sockets = await _tcp_listeners(bind)
            for listening in sockets:
                stack.callback(listening.close)
        yield HttpListeners(sockets, tls, [_url(listening, bind, is_tls=tls is not None) for listening in sockets])


async def _tcp_listeners(bind: str) -> list[socket.socket]:
    host, colon, port = bind.rpartition(":")
    # getaddrinfo would take a port modulo 65,536.
    if not (colon and port.isascii() and port.isdigit() and len(port) <= 5 and int(port) <= 0xFFFF):
        raise ConfigError([f"http.bind = {bind!r}: expected host:port or unix:path"])
    try:
        listeners = await trio.open_tcp_listeners(int(port), host=host.strip("[]") or None)
    except (OSError, UnicodeError) as error:
        raise _cannot_bind(bind, error) from error
    sockets = [socket.socket(fileno=listener.socket.detach()) for listener in listeners]
    for listening in sockets:
        listening.setblocking(False)
        # Accepted sockets inherit it.
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, DEFER_SECONDS)
    return sockets


@contextlib.contextmanager
def _unix_listener(bind: str) -> Iterator[socket.socket]:
    """A listener whose socket file goes when it goes, unless another server has put its own there meanwhile."""
    path = bind.removeprefix("unix:")
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_stale(path)
        sock.bind(path)
        # Nobody can connect before `listen`, so there is no moment at which the umask decides who may.
        os.chmod(path, UNIX_MODE)
        sock.listen(BACKLOG)
        sock.setblocking(False)
        made = os.stat(path)
    except OSError as error:
        sock.close()
        raise _cannot_bind(bind, error) from error
    try:
        with sock:
            yield sock
    finally:
        with contextlib.suppress(OSError):
            if os.path.samestat(os.stat(path), made):
                os.unlink(path)


def _remove_stale(path: str) -> None:
    """Remove a socket that nobody listens on any more.

    Raises:
        OSError: Somebody listens, or it is something else.
    """
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise OSError(errno.EEXIST, "there is something that is not a socket")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        error = probe.connect_ex(path)
    if error == errno.ECONNREFUSED:
        os.unlink(path)
    elif error != errno.ENOENT:
        raise OSError(errno.EADDRINUSE, "another server listens there")


def _tls_context(certfile: str, keyfile: str | None) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        # Without a password, OpenSSL would ask for one on the terminal.
        context.load_cert_chain(certfile, keyfile, password="")
    except (OSError, ValueError) as error:
        raise ConfigError(
            [f"http.certfile = {certfile!r}, keyfile = {keyfile!r}: expected a certificate and its key, PEM: {error}"]
        ) from error
    return context


def _url(listening: socket.socket, bind: str, *, is_tls: bool) -> str:
    name: Any = listening.getsockname()
    if not isinstance(name, tuple):
        return bind
    host = f"[{name[0]}]" if ":" in name[0] else name[0]
    return f"{'https' if is_tls else 'http'}://{host}:{name[1]}"


def _cannot_bind(bind: str, error: Exception) -> ConfigError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return ConfigError([f"http.bind = {bind!r}: cannot listen there: {reason}"])
