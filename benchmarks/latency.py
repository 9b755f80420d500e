"""How long it takes from sending a packet to its handler's start, one task at a time, on an idle server."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from benchmarks.client import exchange
from benchmarks.machine import create_cost
from benchmarks.report import CREATE_COST, Measure, percentile
from benchmarks.scenario import BOTH, Scenario, of_servers
from benchmarks.servers import Kind, prepare, running
from benchmarks.tasks import DAY, PATIENCE, best_frequency, fill, packet, rest, warm_up

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from benchmarks.servers import Server
    from benchmarks.sizes import Sizes

__all__ = ["ALONE", "BESIDE", "CPU", "IDLE", "P99", "REST", "one_at_a_time", "resting"]

PAUSE: Final = 0.02
"""Seconds between two tasks."""

SLOW: Final = 8
"""uWSGI looks through the whole directory for each task, which takes it hundreds of times as long: so it has but one in
so many of the tasks, and more time for each."""

SLOW_PAUSE: Final = 0.3

CPU: Final = Measure("CPU a task", "ms")
P99: Final = Measure("sent to started, p99", "ms")
IDLE: Final = Measure("CPU of an idle server", "ms in 1 s")


def idle_latency(kind: Kind, folder: Path, sizes: Sizes) -> Mapping[Measure, float]:
    """With nothing else to do."""
    prepare(folder)
    figures = {CREATE_COST: create_cost(folder) * 1e6}
    with running(kind, folder, frequency=best_frequency(kind)) as server:
        figures |= one_at_a_time(server, sizes.latency, PAUSE)
    return figures


def scheduled_latency(kind: Kind, folder: Path, sizes: Sizes) -> Mapping[Measure, float]:
    """Beside many tasks that are for later."""
    folder = _scheduled(kind, folder, sizes)
    with running(kind, folder) as server:
        if kind is Kind.UWSGI:
            return one_at_a_time(server, -(-sizes.scheduled_latency // SLOW), SLOW_PAUSE)
        return one_at_a_time(server, sizes.scheduled_latency, PAUSE)


def idle(kind: Kind, folder: Path, sizes: Sizes) -> Mapping[Measure, float]:
    """What a server uses that has nothing to do but to wait for them."""
    with running(kind, _scheduled(kind, folder, sizes)) as server:
        warm_up(server)
        rest(server)
        return {IDLE: resting(server, sizes.rest)}


def one_at_a_time(server: Server, count: int, pause: float, already: int = 0) -> dict[Measure, float]:
    """Send so many tasks.

    Args:
        server: To whom.
        count: How many.
        pause: Seconds between a start and the next task.
        already: How many tasks have started before.
    """
    started = already + warm_up(server, already)
    rest(server)
    cpu = server.cpu_seconds()
    for number in range(count):
        exchange(server.unix, packet(time.monotonic()))
        server.wait_for(started + number + 1, PATIENCE, poll=0.0005)
        time.sleep(pause)
    cpu = server.cpu_seconds() - cpu
    # The packet has its key with six digits.
    latencies = sorted(record.monotonic - record.key for record in server.records.read(started))
    figures = {Measure(f"sent to started, p{percent}", "ms"): percentile(latencies, percent) for percent in (50, 90)}
    if count >= 100:  # of fewer, the 99th percentile would be the longest
        figures[P99] = percentile(latencies, 99)
    figures[Measure("sent to started, longest", "ms")] = latencies[-1]
    return {measure: seconds * 1e3 for measure, seconds in figures.items()} | {CPU: cpu / count * 1e3}


def resting(server: Server, seconds: float) -> float:
    """Milliseconds of CPU a second of a server that nobody asks for anything."""
    before = server.cpu_seconds()
    time.sleep(seconds)
    return (server.cpu_seconds() - before) / seconds * 1e3


def _scheduled(kind: Kind, folder: Path, sizes: Sizes) -> Path:
    """A folder with tasks for tomorrow. To fill it takes longer than all the rest, and they stay what they are: the
    rounds share it."""
    folder = folder.parent / f"scheduled {kind.name}"
    if not folder.exists():
        fill(prepare(folder), sizes.scheduled, time.time() + DAY)
    return folder


ALONE: Final = Scenario(
    lambda sizes: f"One task at a time, {sizes.latency} by Unix socket, nothing else to do",
    of_servers(idle_latency, BOTH),
)

BESIDE: Final = Scenario(
    lambda sizes: f"The same, {sizes.scheduled_latency} beside {sizes.scheduled:,} tasks for tomorrow",
    of_servers(scheduled_latency, BOTH),
    lambda _: [
        f"uWSGI has an eighth of the tasks, and {SLOW_PAUSE} s between two, since each takes it so long.",
        "A scan that falls due meanwhile (every 30 s) is part of the CPU.",
    ],
)

REST: Final = Scenario(
    lambda sizes: f"Nothing to do for {sizes.rest} s, beside {sizes.scheduled:,} tasks for tomorrow",
    of_servers(idle, BOTH),
    lambda _: ["Both look through the directory every 30 s, their default: once within that time."],
    rounds=1,
)
