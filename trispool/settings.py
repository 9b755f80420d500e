"""Settings of the parts that must not know the whole configuration. Pure values; `trispool.config` makes them."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ListenSettings"]


@dataclass(frozen=True, slots=True)
class ListenSettings:
    """One `[[listen]]` of the configuration: a uwsgi socket.

    Attributes:
        bind: `127.0.0.1:3031`, `[::1]:3031`, `:3031` (all addresses) or `unix:path`.
        mode: Permissions of a Unix socket, as `chmod` takes them.
        reply: `uwsgi`: the 4-byte answer; `http`: an HTTP answer for web servers; `auto`: by the packet.
        spool: The spool for tasks that name none; None: the service's first.
        accept_modifiers: The `modifier1` values that mean "spool this". 100 stays the ping unless it is among them.
        allow_networks: Who may connect by TCP, as `10.0.0.0/8`; empty: everybody who can reach the socket.
        max_packet: The vars of one packet, bytes; the protocol allows 65,535.
        max_body: The body of one task, bytes.
        timeout: A connection that makes no progress for so many seconds is closed.
        max_connections: How many may be open at once.
    """

    bind: str = "127.0.0.1:3031"
    mode: int = 0o660
    reply: str = "auto"
    spool: str | None = None
    accept_modifiers: tuple[int, ...] = (17,)
    allow_networks: tuple[str, ...] = ()
    max_packet: int = 0xFFFF
    max_body: int = 64 * 1024 * 1024
    timeout: float = 5.0
    max_connections: int = 4096
