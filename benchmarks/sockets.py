"""As many packets a second as a server takes by its sockets while it runs the tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from benchmarks.client import run_load, trivial_responder
from benchmarks.machine import create_cost
from benchmarks.openload import UNDER_WAY, send_over_open
from benchmarks.report import CREATE_COST, Measure, percentile
from benchmarks.scenario import Scenario, of_servers
from benchmarks.servers import Kind, ServerFailed, prepare, running
from benchmarks.tasks import PATIENCE, SHORTEST, as_sent, best_frequency, packet, warm_up

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from benchmarks.client import Address, Drive
    from benchmarks.sizes import Sizes

__all__ = ["SCENARIO"]

OPEN: Final = "Unix socket, kept open"
"""What only trispool takes."""

CLIENT: Final = "client alone"
"""The name of the server that does nothing but answer."""


def enqueue(kind: Kind, folder: Path, sizes: Sizes) -> Mapping[Measure, float]:
    """One server."""
    prepare(folder)
    figures = {CREATE_COST: create_cost(folder) * 1e6}
    packets = [packet(number) for number in range(sizes.enqueue)]
    with running(kind, folder, frequency=best_frequency(kind)) as server:
        started = warm_up(server)
        loads: list[tuple[str, Address, Drive | None]] = [
            ("Unix socket", server.unix, None),
            ("TCP socket", server.tcp, None),
        ]
        if kind is not Kind.UWSGI:
            loads.append((OPEN, server.unix, send_over_open))
        for name, address, drive in loads:
            cpu = server.cpu_seconds()
            load = run_load(address, packets, sizes.processes, sizes.connections, drive)
            if load.refused:
                raise ServerFailed(f"{load.refused} of {len(packets)} packets were refused\n{server.log_end()}")
            server.wait_for(started + len(packets), PATIENCE)
            cpu = server.cpu_seconds() - cpu
            starts = server.records.read(started)
            as_sent(starts, len(packets))
            started += len(packets)
            figures[Measure(f"{name}: enqueued", "/s", more_is_better=True)] = load.rate
            figures[Measure(f"{name}: answer, p50", "ms")] = percentile(load.latencies, 50) * 1e3
            figures[Measure(f"{name}: answer, p99", "ms")] = percentile(load.latencies, 99) * 1e3
            whole = starts[-1].monotonic - load.began
            figures[Measure(f"{name}: enqueued and run", "/s", more_is_better=True)] = len(packets) / whole
            figures[Measure(f"{name}: CPU a task, run too", "µs")] = cpu / len(packets) * 1e6
    return figures


def client(folder: Path, sizes: Sizes) -> Mapping[Measure, float]:
    """The client's own limit."""
    folder.mkdir()
    packets = [packet(number) for number in range(sizes.enqueue)]
    figures = {}
    with trivial_responder(folder / "sock") as addresses:
        for name, address in (("Unix", addresses[0]), ("TCP", addresses[1])):
            load = run_load(address, packets, sizes.processes, sizes.connections)
            figures[Measure(f"{name} socket: enqueued", "/s", more_is_better=True)] = load.rate
            figures[Measure(f"{name} socket: answer, p50", "ms")] = percentile(load.latencies, 50) * 1e3
            figures[Measure(f"{name} socket: answer, p99", "ms")] = percentile(load.latencies, 99) * 1e3
    return figures


SCENARIO: Final = Scenario(
    lambda sizes: f"Enqueue {sizes.enqueue:,} tasks by each socket, while they run",
    {**of_servers(enqueue, Kind), CLIENT: client},
    lambda sizes: [
        f"{sizes.processes} client processes with {sizes.connections} connections each, one packet a connection. "
        "uWSGI's spoolers run at the lowest priority, as trispool's workers do, and with more workers for its "
        'sockets it lets a backlog grow that runs afterwards; see "enqueued and run".',
        f'"{OPEN}": connections that stay open, with {UNDER_WAY} packets under way on each. uWSGI takes one packet a '
        "connection.",
        f'"{CLIENT}" is the client\'s own limit: two processes that read a packet and answer, nothing else.',
        f"uWSGI's frequency is {SHORTEST} s: tasks that come while its spoolers are busy wait for the next scan.",
    ],
)
