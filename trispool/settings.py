"""Settings, as values: of each part, which need not know the whole, and of all. `trispool.config` makes them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from trispool.retry import RetryPolicy

__all__ = ["SHORTEST_FREQUENCY", "Config", "HttpSettings", "ListenSettings", "SpoolSettings"]


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


@dataclass(frozen=True, slots=True)
class HttpSettings:
    """`[http]` of the configuration: the API.

    Attributes:
        bind: `127.0.0.1:8080` or `unix:path`.
        certfile: PEM file of the server's certificate, which makes it HTTPS; None: plain HTTP.
        keyfile: PEM file of its key; None: it is in `certfile` too.
        allow_networks: Who may connect by TCP, as `10.0.0.0/8`; empty: everybody who can reach the socket.
        hosts: Further names by which it is reached, such as that of a proxy; in lower case, without port.
        max_body: The largest request body, bytes.
    """

    bind: str = "127.0.0.1:8080"
    certfile: str | None = None
    keyfile: str | None = None
    allow_networks: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    max_body: int = 64 * 1024 * 1024


SHORTEST_FREQUENCY: Final = 0.01
"""Seconds; a spool that is scanned without a pause does nothing else."""


@dataclass(frozen=True, slots=True)
class SpoolSettings:
    """One `[[spool]]` of the configuration. Lengths of time are in seconds.

    Attributes:
        name: The spool's name.
        directory: The spool directory, absolute; made if it is missing.
        imports: Files or modules with handlers, imported in every worker process.
        processes: How many worker processes; 0 if it is `external`.
        concurrency: How many async handlers may run at once, per process.
        frequency: Between two scans, and from a failed attempt to the next where nothing else is said.
        durability: `fsync`: what is acknowledged is on disk; `os`: it survives our crash, not a power cut.
        timeout: A handler that takes longer is ended; 0: no limit.
        max_tasks: A worker process is replaced after so many tasks; 0: never.
        policy: When a task is tried again, and when it is given up.
        chdir: Where handlers run; empty: in the service's working directory.
        external: Others run what this service puts there: a uWSGI, or another trispool.
        keep_history: How long attempts are kept in the ledger; 0: for ever.
    """

    name: str
    directory: str
    imports: tuple[str, ...] = ()
    processes: int = 2
    concurrency: int = 100
    frequency: float = 30.0
    durability: str = "fsync"
    timeout: float = 0.0
    max_tasks: int = 0
    policy: RetryPolicy = field(default_factory=RetryPolicy)
    chdir: str = ""
    external: bool = False
    keep_history: float = 30 * 86400.0


@dataclass(frozen=True, slots=True)
class Config:
    """A whole configuration that is good in itself; `trispool.config` makes it. Paths are absolute.

    Attributes:
        state_dir: Tokens, and what else belongs to the service and to no spool.
        grace_seconds: What running tasks get when the service is told to stop.
        http: The API.
        listen: The uwsgi sockets, any number.
        spools: At least one; the first takes what names no spool.
    """

    state_dir: str
    grace_seconds: float
    http: HttpSettings
    listen: tuple[ListenSettings, ...]
    spools: tuple[SpoolSettings, ...]
