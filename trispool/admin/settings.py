"""Settings of the HTTP face. Pure values; the service makes them from `[http]` of the configuration."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

__all__ = ["AdminSettings", "ServerLimits", "allowed_hosts", "host_of"]


@dataclass(frozen=True, slots=True)
class AdminSettings:
    """What the application allows in one request.

    Attributes:
        max_body: The largest request body, bytes; a larger one is answered with 413. A base64 body in JSON takes a
            third more than its bytes.
        max_bodies: So many bytes of request bodies may be in memory at once; with more a request is answered with 503.
        body_timeout: A request body must be here so many seconds after its headers, or the answer is 408. 64 MiB take
            54 s at 10 Mbit/s.
        max_batch: The most tasks of one NDJSON request. Parsing that many takes the loop some tens of milliseconds,
            in slices; a batch ten times as large is not measurably faster per task.
        max_streams: How many may read events at once; more are answered with 503. Each has a connection of its own.
        hosts: Host names that a request may be for (see `allowed_hosts`), or None for any.
    """

    max_body: int = 64 * 1024 * 1024
    max_bodies: int = 256 * 1024 * 1024
    body_timeout: float = 60.0
    max_batch: int = 10_000
    max_streams: int = 64
    hosts: Collection[str] | None = None


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """What the server allows to a connection.

    Attributes:
        max_connections: One more ends one that has stalled or has been idle, the longest; if there is none it waits
            `crowd.FULL_SECONDS`, and is answered with 503. A connection costs about 50 KiB and a descriptor.
        idle_seconds: A connection without a request is closed after so long; also the time for a request's headers.
        stall_seconds: A client that takes none of `connection.CHUNK` bytes of an answer for so long is cut off.
        stop_stall_seconds: The same while the server stops.
        linger_seconds: How long the rest of a refused request is read and thrown away, so that its sender gets to
            read the refusal (closing a socket with unread data resets the connection).
        handshake_seconds: For TLS.
        networks: Who may connect by TCP; None: everybody who can.
    """

    max_connections: int = 1024
    idle_seconds: float = 30.0
    stall_seconds: float = 20.0
    stop_stall_seconds: float = 1.0
    linger_seconds: float = 2.0
    handshake_seconds: float = 10.0
    networks: Collection[IPv4Network | IPv6Network] | None = None


def host_of(authority: str) -> str:
    """The host of `host`, `host:port` or `[v6]:port`, in lower case and without brackets."""
    if authority.startswith("[") and "]" in authority:
        return authority[1:].partition("]")[0].lower()
    host, colon, _ = authority.rpartition(":")
    return (host if colon else authority).lower()


def allowed_hosts(bind: str, hosts: Collection[str] = ()) -> frozenset[str] | None:
    """The names by which a browser may reach `bind`, or None for any.

    They are known if only this machine can reach it, or if they are configured. The names of this machine itself are
    always among them: the command line uses them.

    A page of `evil.example` may point that name at 127.0.0.1 and so talk to us as "the same origin" (DNS rebinding);
    its requests still say `Host: evil.example`. The port is not compared: it adds nothing against this, and an SSH
    tunnel has another one.

    Args:
        bind: `127.0.0.1:8080`, `[::1]:8080`, `localhost:8080` or `unix:path` (no browser reaches that by itself).
        hosts: The names that are configured.
    """
    own = "" if bind.startswith("unix:") else host_of(bind)
    if not hosts and not _is_loopback(own):
        return None
    return frozenset({"localhost", "127.0.0.1", "::1", own, *hosts} - {""})


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
