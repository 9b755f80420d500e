"""Opens the sockets that a `bind` of the configuration names, and clears them away again.

A Unix socket never has more permissions than it should, not for an instant: its file gets them from the socket's own
mode (`fchmod` before `bind`), less the umask, and `chmod` then gives what the umask took. A file that is in its way is
removed only if it is a socket on which nobody listens.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import os
import socket
import stat
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address, ip_network
from typing import TYPE_CHECKING, Final

import trio

from trispool.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable

__all__ = ["ERRORS_OF_ONE_CONNECTION", "SHORT_OF_RESOURCES", "BoundSockets", "allowed", "bound_sockets"]

BACKLOG: Final = 4096
"""Connections that wait to be accepted, while a commit holds us up. The kernel takes what `somaxconn` allows."""

DEFER_SECONDS: Final = 5
"""The kernel shows us a TCP connection only with its first data, or after about so long without: a silent client costs
nothing, and the first read finds what it wants."""


SHORT_OF_RESOURCES: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
"""accept(2): to go on at once would not help."""

ERRORS_OF_ONE_CONNECTION: Final = frozenset(
    {
        *(errno.ECONNABORTED, errno.EPERM, errno.EPROTO, errno.ENOPROTOOPT, errno.ENETDOWN, errno.ENETUNREACH),
        *(errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENONET, errno.EOPNOTSUPP, errno.EINTR),
    }
)
"""accept(2): Linux passes on errors that the new connection has met already; they say nothing about the socket."""


@dataclass(frozen=True, slots=True)
class BoundSockets:
    """Sockets that listen, and do not block.

    Attributes:
        sockets: At least one; a host name may stand for several addresses.
        addresses: Of each, in the form of a `bind`.
    """

    sockets: list[socket.socket]
    addresses: list[str]


@contextlib.asynccontextmanager
async def bound_sockets(bind: str, mode: int) -> AsyncIterator[BoundSockets]:
    """Listen on `bind` within the block; leaving it closes the sockets and removes the file of a Unix socket.

    Args:
        bind: `host:port`, `[::1]:port`, `:port` (all addresses) or `unix:path`. Port 0: a free one.
        mode: The permissions of a Unix socket.

    Raises:
        ConfigError: `bind` has another form, or cannot be bound.
    """
    try:
        if bind.startswith("unix:"):
            path = bind.removeprefix("unix:")
            listening = await trio.to_thread.run_sync(_open_unix, path, mode)
            bound = BoundSockets([listening], [bind])
        else:
            bound = await _open_tcp(bind)
    except (OSError, ValueError) as error:
        raise ConfigError([f"bind = {bind!r}: {error}"]) from error
    try:
        identity = _identity(path) if bind.startswith("unix:") else None
        yield bound
    finally:
        for listening in bound.sockets:
            listening.close()
        if identity is not None and _identity(path) == identity:
            with contextlib.suppress(OSError):
                os.unlink(path)


async def _open_tcp(bind: str) -> BoundSockets:
    host, colon, port = bind.rpartition(":")
    if not colon or not (port.isascii() and port.isdecimal() and int(port) <= 0xFFFF):  # getaddrinfo wraps it
        raise ValueError("expected host:port, [ipv6]:port or unix:path")
    bracketed = host.startswith("[") and host.endswith("]")
    if ":" in host and not bracketed:
        raise ValueError("an IPv6 address stands in brackets, as [::1]:3031")
    found = await trio.socket.getaddrinfo(
        (host[1:-1] if bracketed else host) or None, int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    sockets: list[socket.socket] = []
    try:
        for family, *_, address in dict.fromkeys(found):
            listening = socket.socket(family, socket.SOCK_STREAM)
            sockets.append(listening)
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if (
                family == socket.AF_INET6
            ):  # else "all addresses" of IPv6 are those of IPv4, too, and both cannot be bound
                listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            # Accepted sockets inherit it: an answer to a second packet must not wait for the client's ACK of the first.
            listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, DEFER_SECONDS)
            listening.setblocking(False)
            listening.bind(address)
            listening.listen(BACKLOG)
    except BaseException:
        for listening in sockets:
            listening.close()
        raise
    names = [listening.getsockname()[:2] for listening in sockets]
    return BoundSockets(sockets, [f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in names])


def _open_unix(path: str, mode: int) -> socket.socket:
    # Of two services that find the same stale file, one must not remove what the other has just bound.
    folder = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        _remove_stale(path)
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            os.fchmod(listening.fileno(), mode)
            listening.setblocking(False)
            listening.bind(path)
            os.chmod(path, mode)
            listening.listen(BACKLOG)
        except BaseException:
            listening.close()
            raise
        return listening
    finally:
        os.close(folder)


def _remove_stale(path: str) -> None:
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(status.st_mode):
        raise FileExistsError(errno.EEXIST, "something that is not a socket is in the way")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except BlockingIOError:  # its queue is full: somebody is there, if slow
            pass
    raise OSError(errno.EADDRINUSE, "somebody listens on it already")


def _identity(path: str) -> tuple[int, int] | None:
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def allowed(networks: Iterable[object]) -> Callable[[str], bool] | None:
    """Tells whether an address is in one of these networks; None if any is allowed, since none is given."""
    ranges = [ip_network(str(network)) for network in networks]

    @functools.lru_cache(1024)
    def is_allowed(host: str) -> bool:
        address = ip_address(host.partition("%")[0])
        if isinstance(address, IPv6Address):
            address = address.ipv4_mapped or address
        return any(address in one for one in ranges)

    return is_allowed if ranges else None
