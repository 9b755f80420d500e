"""The tasks of the benchmarks, and how a server is brought to rest before something is timed.

Every task carries a number, `key`, by which its start is found again among what the handlers record.
"""

from __future__ import annotations

import json
import os
import random
import time
from typing import TYPE_CHECKING, Final

from benchmarks.client import exchange
from benchmarks.servers import Kind, ServerFailed
from trispool import spoolfile
from trispool.packet import encode_packet, encode_vars

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from benchmarks.records import Record
    from benchmarks.servers import Server

__all__ = [
    "BATCH",
    "DAY",
    "PATIENCE",
    "SHORTEST",
    "as_sent",
    "best_frequency",
    "document",
    "fill",
    "lines",
    "packet",
    "rest",
    "warm_up",
]

WARM_UP: Final = 64
"""Tasks by each socket, so that all processes are up and warm before anything is timed."""

BATCH: Final = 1_000
"""Tasks of one NDJSON request."""

PATIENCE: Final = 120.0
"""Seconds for what has been enqueued to run."""

SHORTEST: Final = 1
"""Seconds: the shortest frequency that uWSGI knows. It looks for due tasks, and for those of which it has missed the
signal because all its spoolers were busy, once in so long."""

DAY: Final = 86_400.0

_VARS: Final = {"path": "/srv/media/incoming/clip.mov", "preset": "fast", "user": "4711"}


def best_frequency(kind: Kind) -> int:
    """The frequency at which a server is at its best; trispool has its default, since nothing depends on it."""
    return SHORTEST if kind is Kind.UWSGI else 30


def packet(key: float, at: float | None = None, **more: str) -> bytes:
    """A uwsgi packet of a common size.

    Args:
        key: By which the handler's record is found.
        at: Unix seconds, or None: at once.
        more: Further vars.
    """
    vars_ = {"key": f"{key:.6f}", **_VARS, **more}
    if at is not None:
        vars_["at"] = f"{at:.6f}"
    return encode_packet(encode_vars(vars_))


def document(key: float, **more: str) -> bytes:
    """The same task in JSON."""
    return json.dumps({"vars": {"key": f"{key:.6f}", **_VARS, **more}}).encode()


def lines(keys: range, **more: str) -> bytes:
    """Several in NDJSON."""
    return b"\n".join(document(key, **more) for key in keys)


def fill(spool: Path, count: int, at: float | None = None) -> None:
    """Write spool files as uWSGI does, and wait until they are on disk.

    Args:
        spool: The directory.
        count: How many.
        at: Unix seconds, or None: at once.
    """
    home = os.open(spool, os.O_RDONLY | os.O_DIRECTORY)
    for number in range(count):
        seconds, microseconds = divmod(time.time_ns() // 1000, 1_000_000)
        name = spoolfile.new_name("host", os.getpid(), number, random.getrandbits(31), seconds, microseconds)
        fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=home)
        os.write(fd, spoolfile.encode(encode_vars({"key": str(number), **_VARS}), b""))
        if at is not None:
            os.utime(fd, (at, at))
        os.close(fd)
    os.close(home)
    # What is still on its way to the disk would be waited for by whoever writes next.
    os.sync()


def warm_up(server: Server, already: int = 0) -> int:
    """Run a few tasks; returns how many these were.

    Args:
        server: Which.
        already: How many have started before.
    """
    for address in (server.unix, server.tcp):
        for number in range(WARM_UP):
            exchange(address, packet(number))
    server.wait_for(already + 2 * WARM_UP, PATIENCE)
    return 2 * WARM_UP


def rest(server: Server) -> None:
    """Wait until the server has found what there is, and rests.

    Raises:
        ServerFailed: It does not come to rest.
    """
    deadline = time.monotonic() + PATIENCE
    before = server.cpu_seconds()
    while time.monotonic() < deadline:
        time.sleep(1.0)
        now = server.cpu_seconds()
        if now - before < 0.05:
            return
        before = now
    raise ServerFailed(f"it is not idle after {PATIENCE} s\n{server.log_end()}")


def as_sent(starts: Collection[Record], count: int) -> None:
    """Raise `ServerFailed` if others have run than the tasks 0 to `count`, or some twice."""
    if len(starts) != count or {record.key for record in starts} != set(range(count)):
        raise ServerFailed(f"of {count} acknowledged tasks others have run than were sent, or some twice")
