"""What is measured. Each scenario runs one server once and returns its figures.

Every packet carries a number, `key`, by which its start is found again among what the handlers record. Before anything
is timed, each server runs a few tasks by each socket, so that all its processes are up and warm.
"""

from __future__ import annotations

import json
import os
import random
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from benchmarks.client import Address, exchange, run_load
from benchmarks.httpload import post, post_all
from benchmarks.machine import create_cost
from benchmarks.pages import pages
from benchmarks.report import CREATE_COST, Measure, percentile
from benchmarks.servers import Kind, Server, ServerFailed, prepare, running
from trispool import spoolfile
from trispool.packet import encode_packet, encode_vars

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from benchmarks.client import Drive

__all__ = ["SCENARIOS", "Scenario", "Sizes", "packet"]

WARM_UP: Final = 64
"""Tasks by each socket."""

BATCH: Final = 1_000
"""Tasks of one NDJSON request."""

BATCH_CONNECTIONS: Final = 2
"""Of each client process, with batches: the server has always one to read while it keeps another."""

FSYNC_SHARE: Final = 10
"""Where every task has to reach the disk, one in so many is enough to see how long that takes."""

PATIENCE: Final = 120.0
"""Seconds for what has been enqueued to run."""

IDLE_SECONDS: Final = 0.02
"""Between two tasks sent one at a time."""

SHORTEST: Final = 1
"""Seconds: the shortest frequency that uWSGI knows. It looks for due tasks, and for those of which it has missed the
signal because all its spoolers were busy, once in so long."""

OLD_SECONDS: Final = 2.0
"""Files that wait are older. trispool leaves one of the last second alone for another: it may still be written to."""

DAY: Final = 86_400.0


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much of everything.

    Attributes:
        enqueue: Packets by each socket.
        drain: Files that wait before the server starts.
        latency: Tasks sent one at a time.
        scheduled: Tasks for tomorrow in the directory.
        scheduled_latency: Tasks sent one at a time beside them.
        at: Tasks with an `at`.
        at_seconds: How long the times of these are apart.
        http: Tasks by single HTTP requests.
        http_batches: Batches by HTTP.
        waiting: Tasks for tomorrow, and as many that are held, and that are dead, to be listed.
        finished: Tasks in the history.
        asked: How often each page is asked for.
        processes: Client processes.
        connections: Of each.
    """

    enqueue: int = 20_000
    drain: int = 20_000
    latency: int = 300
    scheduled: int = 100_000
    scheduled_latency: int = 40
    at: int = 200
    at_seconds: float = 4.0
    http: int = 4_000
    http_batches: int = 60
    waiting: int = 100_000
    finished: int = 1_000_000
    asked: int = 30
    processes: int = 2
    connections: int = 16


@dataclass(frozen=True, slots=True)
class Scenario:
    """One benchmark.

    Attributes:
        title: What it does.
        run: Runs one server in a folder that is yet to be made, and measures.
        notes: What has to be known to read the figures.
        kinds: The servers.
    """

    title: Callable[[Sizes], str]
    run: Callable[[Kind, Path, Sizes], Mapping[Measure, float]]
    notes: Callable[[Sizes], list[str]]
    kinds: tuple[Kind, ...] = (Kind.UWSGI, Kind.OS)


# Enqueuing


def enqueue(kind: Kind, folder: Path, sizes: Sizes) -> Mapping[Measure, float]:
    """As many packets a second as a server takes, while it runs the tasks."""
    prepare(folder)
    figures = {CREATE_COST: create_cost(folder) * 1e6}
    count = -(-sizes.enqueue // FSYNC_SHARE) if kind is Kind.FSYNC else sizes.enqueue
    with running(kind, folder, frequency=_at_its_best(kind)) as server:
        started = _warm_up(server)
        addresses: dict[str, Address] = {"Unix": server.unix, "TCP": server.tcp}
        for name, address in addresses.items():
            packets = [packet(number) for number in range(count)]
            cpu = server.cpu_seconds()
            load = run_load(address, packets, sizes.processes, sizes.connections)
            if load.refused:
                raise ServerFailed(f"{load.refused} of {count} packets were refused\n{server.log_end()}")
            server.wait_for(started + count, PATIENCE)
            cpu = server.cpu_seconds() - cpu
            starts = server.records.read(started)
            if {record.key for record in starts} != set(range(count)):
                raise ServerFailed(f"of {count} acknowledged tasks others have run than were sent")
            started += count
            figures[Measure(f"{name} socket: enqueued", "/s", more_is_better=True)] = load.rate
            figures[Measure(f"{name} socket: answer, p50", "ms")] = percentile(load.latencies, 50) * 1e3
            figures[Measure(f"{name} socket: answer, p99", "ms")] = percentile(load.latencies, 99) * 1e3
            whole = starts[-1].monotonic - load.began
            figures[Measure(f"{name} socket: enqueued and run", "/s", more_is_better=True)] = count / whole
            figures[Measure(f"{name} socket: CPU a task, run too", "µs")] = cpu / count * 1e6
    return figures


# By HTTP


def http(kind: Kind, folder: Path, sizes: Sizes) -> Mapping[Measure, float]:
    """As many tasks as a server takes by HTTP while it runs them; uWSGI by its socket, as it has nothing like it."""
    prepare(folder)
    figures = {CREATE_COST: create_cost(folder) * 1e6}
    with running(kind, folder, frequency=_at_its_best(kind)) as server:
        started = _warm_up(server)
        if kind is Kind.UWSGI:
            packets = [packet(number) for number in range(sizes.enqueue)]
            started = _load(server, figures, "one a request", started, server.unix, packets, 1, sizes, None)
            return figures
        token = (folder / "var" / "token").read_text().strip()
        path = "/api/v1/spools/default/tasks"
        singles = [post(path, token, "application/json", _document(number)) for number in range(sizes.http)]
        batches = [
            post(path, token, "application/x-ndjson", b"\n".join(_document(first + one) for one in range(BATCH)))
            for first in range(0, sizes.http_batches * BATCH, BATCH)
        ]
        address = os.fspath(folder / "http")
        started = _load(server, figures, "one a request", started, address, singles, 1, sizes, post_all)
        _load(server, figures, f"{BATCH:,} a request", started, address, batches, BATCH, sizes, post_all)
    return figures


def _load(
    server: Server,
    figures: dict[Measure, float],
    name: str,
    started: int,
    address: Address,
    requests: Sequence[bytes],
    each: int,
    sizes: Sizes,
    drive: Drive | None,
) -> int:
    """Send requests of `each` tasks, and wait until all have run; returns how many have been started since ever."""
    count = len(requests) * each
    connections = sizes.connections if each == 1 else BATCH_CONNECTIONS
    cpu = server.cpu_seconds()
    load = run_load(address, requests, sizes.processes, connections, drive)
    if load.refused:
        raise ServerFailed(f"{load.refused} of {len(requests)} requests were refused\n{server.log_end()}")
    server.wait_for(started + count, PATIENCE)
    cpu = server.cpu_seconds() - cpu
    starts = server.records.read(started)
    if {record.key for record in starts} != set(range(count)):
        raise ServerFailed(f"of {count} acknowledged tasks others have run than were sent")
    whole = starts[-1].monotonic - load.began
    figures[Measure(f"{name}: enqueued", "/s", more_is_better=True)] = load.rate * each
    figures[Measure(f"{name}: enqueued and run", "/s", more_is_better=True)] = count / whole
    figures[Measure(f"{name}: answer, p50", "ms")] = percentile(load.latencies, 50) * 1e3
    figures[Measure(f"{name}: answer, p99", "ms")] = percentile(load.latencies, 99) * 1e3
    figures[Measure(f"{name}: CPU a task, run too", "µs")] = cpu / count * 1e6
    return started + count


def _document(number: int) -> bytes:
    vars_ = {"key": f"{number:.6f}", "path": "/srv/media/incoming/clip.mov", "preset": "fast", "user": "4711"}
    return json.dumps({"vars": vars_}).encode()


# Draining


def drain(kind: Kind, folder: Path, sizes: Sizes) -> Mapping[Measure, float]:
    """How fast a server works off what it finds at its start."""
    spool = prepare(folder)
    figures = {CREATE_COST: create_cost(folder) * 1e6}
    _fill(spool, sizes.drain)
    # Files that are still on their way to the disk would be waited for by whoever deletes them.
    os.sync()
    time.sleep(OLD_SECONDS)
    began = time.monotonic()
    with running(kind, folder) as server:
        server.wait_for(sizes.drain, PATIENCE, poll=0.01)
        starts = server.records.read()
        cpu = server.cpu_seconds()
    first, last = starts[0].monotonic, starts[-1].monotonic
    figures[Measure("first to last start", "/s", more_is_better=True)] = (len(starts) - 1) / (last - first)
    figures[Measure("server's exec to first start", "s")] = first - began
    figures[Measure("server's exec to last start", "s")] = last - began
    figures[Measure("CPU, the server's start included", "s")] = cpu
    return figures


# One task at a time


def idle_latency(kind: Kind, folder: Path, sizes: Sizes) -> Mapping[Measure, float]:
    """How long it takes from sending a packet to its handler's start, when there is nothing else to do."""
    prepare(folder)
    figures = {CREATE_COST: create_cost(folder) * 1e6}
    with running(kind, folder, frequency=_at_its_best(kind)) as server:
        figures |= _latency(server, sizes.latency, IDLE_SECONDS)
    return figures


def scheduled_latency(kind: Kind, folder: Path, sizes: Sizes) -> Mapping[Measure, float]:
    """The same beside many tasks that are for later."""
    # To fill a directory takes longer than all the rest, and these tasks stay what they are: the rounds share it.
    folder = folder.parent / f"scheduled {kind.name}"
    if not folder.exists():
        _fill(prepare(folder), sizes.scheduled, time.time() + DAY)
        os.sync()
    with running(kind, folder) as server:
        figures = _latency(server, sizes.scheduled_latency, 0.3)
    return figures


def _latency(server: Server, count: int, pause: float) -> dict[Measure, float]:
    started = _warm_up(server)
    # Until the server has found what is in the directory, and rests.
    _wait_until_idle(server)
    cpu = server.cpu_seconds()
    for number in range(count):
        sent = time.monotonic()
        exchange(server.unix, packet(sent))
        server.wait_for(started + number + 1, PATIENCE, poll=0.0005)
        time.sleep(pause)
    cpu = server.cpu_seconds() - cpu
    latencies = sorted(record.monotonic - record.key for record in server.records.read(started))
    high = 99 if count >= 100 else 90  # of fewer, the 99th percentile would be the longest
    return {
        Measure("sent to started, p50", "ms"): percentile(latencies, 50) * 1e3,
        Measure(f"sent to started, p{high}", "ms"): percentile(latencies, high) * 1e3,
        Measure("sent to started, longest", "ms"): latencies[-1] * 1e3,
        Measure("CPU a task", "ms"): cpu / count * 1e3,
    }


# At a given time


def lateness(kind: Kind, folder: Path, sizes: Sizes) -> Mapping[Measure, float]:
    """How exactly a server keeps to `at`."""
    prepare(folder)
    figures = {CREATE_COST: create_cost(folder) * 1e6}
    with running(kind, folder, frequency=_at_its_best(kind)) as server:
        started = _warm_up(server)
        begin = time.time() + 1.0
        # Always the same moments, relative to the start.
        dice = random.Random(20_000)
        times = [round(begin + dice.random() * sizes.at_seconds, 6) for _ in range(sizes.at)]
        for at in times:
            exchange(server.unix, packet(at, at=at))
        server.wait_for(started + sizes.at, sizes.at_seconds + PATIENCE)
        late = sorted(record.at - record.key for record in server.records.read(started))
    return figures | {
        Measure("lateness, p50 (below 0: early)", "ms", None): percentile(late, 50) * 1e3,
        Measure("lateness, p99", "ms"): percentile(late, 99) * 1e3,
        Measure("lateness, most", "ms"): late[-1] * 1e3,
        Measure("started too early", "tasks"): sum(seconds < 0 for seconds in late),
        Measure("started too early, most", "ms"): max(0.0, -late[0] * 1e3),
    }


# What they share


def _at_its_best(kind: Kind) -> int:
    """The frequency; trispool has its default, since nothing here depends on it."""
    return SHORTEST if kind is Kind.UWSGI else 30


def packet(key: float, at: float | None = None) -> bytes:
    """A uwsgi packet of a common size.

    Args:
        key: By which the handler's record is found.
        at: Unix seconds, or None: at once.
    """
    vars_ = {"key": f"{key:.6f}", "path": "/srv/media/incoming/clip.mov", "preset": "fast", "user": "4711"}
    if at is not None:
        vars_["at"] = f"{at:.6f}"
    return encode_packet(encode_vars(vars_))


def _fill(spool: Path, count: int, at: float | None = None) -> None:
    """Write spool files as uWSGI does."""
    for number in range(count):
        vars_ = {"key": str(number), "path": "/srv/media/incoming/clip.mov", "preset": "fast", "user": "4711"}
        seconds, microseconds = divmod(time.time_ns() // 1000, 1_000_000)
        path = spool / spoolfile.new_name("host", os.getpid(), number, random.getrandbits(31), seconds, microseconds)
        path.write_bytes(spoolfile.encode(encode_vars(vars_), b""))
        if at is not None:
            os.utime(path, (at, at))


def _warm_up(server: Server) -> int:
    """Returns how many tasks that was."""
    for address in (server.unix, server.tcp):
        for number in range(WARM_UP):
            exchange(address, packet(number))
    server.wait_for(2 * WARM_UP, PATIENCE)
    return 2 * WARM_UP


def _wait_until_idle(server: Server) -> None:
    deadline = time.monotonic() + PATIENCE
    before = server.cpu_seconds()
    while time.monotonic() < deadline:
        time.sleep(1.0)
        now = server.cpu_seconds()
        if now - before < 0.05:
            return
        before = now
    raise ServerFailed(f"it is not idle after {PATIENCE} s\n{server.log_end()}")


SCENARIOS: Final[dict[str, Scenario]] = {
    "enqueue": Scenario(
        lambda sizes: f"Enqueue {sizes.enqueue:,} tasks by each socket, while they run",
        enqueue,
        lambda sizes: [
            f"{sizes.processes} client processes with {sizes.connections} connections each, one packet a connection. "
            "uWSGI's spoolers run at the lowest priority, as trispool's workers do, and with more workers for its "
            'sockets it lets a backlog grow that runs afterwards; see "enqueued and run".',
            f'With "fsync" {sizes.enqueue // FSYNC_SHARE:,} tasks. uWSGI has nothing like it.',
            f"uWSGI's frequency is {SHORTEST} s: tasks that come while its spoolers are busy wait for the next scan.",
        ],
        tuple(Kind),
    ),
    "http": Scenario(
        lambda sizes: f"Enqueue {sizes.http:,} tasks by HTTP one at a time, {sizes.http_batches * BATCH:,} in batches",
        http,
        lambda sizes: [
            "By a Unix socket, over connections that stay open. uWSGI cannot be enqueued to by HTTP; what stands for it"
            f" are {sizes.enqueue:,} packets by its own socket.",
        ],
        tuple(Kind),
    ),
    "drain": Scenario(
        lambda sizes: f"Drain {sizes.drain:,} files that wait when the server starts",
        drain,
        lambda _: ["The time of an exec includes that of Python and of the imports."],
    ),
    "latency": Scenario(
        lambda sizes: f"One task at a time, {sizes.latency} by Unix socket, nothing else to do",
        idle_latency,
        lambda _: [],
    ),
    "scheduled": Scenario(
        lambda sizes: f"The same, {sizes.scheduled_latency} beside {sizes.scheduled:,} tasks for tomorrow",
        scheduled_latency,
        lambda _: ["A scan that falls due meanwhile (every 30 s) is part of the CPU."],
    ),
    "pages": Scenario(
        lambda sizes: (
            f"Pages of lists by HTTP: {sizes.waiting:,} tasks wait, {sizes.waiting:,} are held, {sizes.waiting:,} are "
            f"dead, {sizes.finished:,} are finished"
        ),
        pages,
        lambda sizes: [
            f"Each is asked for {sizes.asked} times. uWSGI has nothing like it.",
            "A page with a filter that little fits may be short, or empty, and yet not be the last.",
        ],
        (Kind.OS,),
    ),
    "at": Scenario(
        lambda sizes: f"{sizes.at} tasks with `at`, within {sizes.at_seconds:g} s",
        lateness,
        lambda _: [
            f"uWSGI's frequency is {SHORTEST} s here, its shortest; by default it is 30 s, and a task so much late. "
            "It cuts the fraction of `at`, and so starts tasks up to a second early."
        ],
    ),
}
