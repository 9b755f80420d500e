"""As many tasks as a server takes by HTTP while it runs them; uWSGI by its socket, as it has nothing like it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from benchmarks.client import run_load
from benchmarks.httpload import post, post_all
from benchmarks.machine import create_cost
from benchmarks.report import CREATE_COST, Measure, percentile
from benchmarks.scenario import Scenario, of_servers
from benchmarks.servers import Kind, ServerFailed, prepare, running, token
from benchmarks.tasks import BATCH, PATIENCE, as_sent, best_frequency, document, lines, packet, warm_up

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from benchmarks.client import Address, Drive
    from benchmarks.servers import Server
    from benchmarks.sizes import Sizes

__all__ = ["BATCHES", "BATCH_CONNECTIONS", "SCENARIO", "TASKS_PATH"]

BATCH_CONNECTIONS: Final = 2
"""Of each client process, with batches: the server has always one to read while it keeps another."""

BATCHES: Final = f"{BATCH:,} a request"
TASKS_PATH: Final = "/api/v1/spools/default/tasks"


def http(kind: Kind, folder: Path, sizes: Sizes) -> Mapping[Measure, float]:
    """One server."""
    prepare(folder)
    figures = {CREATE_COST: create_cost(folder) * 1e6}
    with running(kind, folder, frequency=best_frequency(kind)) as server:
        started = warm_up(server)
        if kind is Kind.UWSGI:
            packets = [packet(number) for number in range(sizes.enqueue)]
            started = _load(server, figures, "one a request", started, server.unix, packets, 1, sizes, None)
            return figures
        word = token(folder)
        singles = [post(TASKS_PATH, word, "application/json", document(number)) for number in range(sizes.http)]
        batches = [
            post(TASKS_PATH, word, "application/x-ndjson", lines(range(first, first + BATCH)))
            for first in range(0, sizes.http_batches * BATCH, BATCH)
        ]
        address = os.fspath(folder / "http")
        started = _load(server, figures, "one a request", started, address, singles, 1, sizes, post_all)
        _load(server, figures, BATCHES, started, address, batches, BATCH, sizes, post_all)
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
    as_sent(starts, count)
    whole = starts[-1].monotonic - load.began
    figures[Measure(f"{name}: enqueued", "/s", more_is_better=True)] = load.rate * each
    figures[Measure(f"{name}: enqueued and run", "/s", more_is_better=True)] = count / whole
    figures[Measure(f"{name}: answer, p50", "ms")] = percentile(load.latencies, 50) * 1e3
    figures[Measure(f"{name}: answer, p99", "ms")] = percentile(load.latencies, 99) * 1e3
    figures[Measure(f"{name}: CPU a task, run too", "µs")] = cpu / count * 1e6
    return started + count


SCENARIO: Final = Scenario(
    lambda sizes: f"Enqueue {sizes.http:,} tasks by HTTP one at a time, {sizes.http_batches * BATCH:,} in batches",
    of_servers(http, Kind),
    lambda sizes: [
        "By a Unix socket, over connections that stay open. uWSGI cannot be enqueued to by HTTP; what stands for it"
        f" are {sizes.enqueue:,} packets by its own socket.",
    ],
)
