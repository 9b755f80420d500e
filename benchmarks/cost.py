"""What a task costs: processor time of the service and of its workers, and their system calls."""

from __future__ import annotations

import functools
import os
import time
from typing import TYPE_CHECKING, Final, TypeAlias

from benchmarks import strace
from benchmarks.asker import Asker
from benchmarks.batches import BATCH_CONNECTIONS, TASKS_PATH
from benchmarks.client import run_load
from benchmarks.httpload import post, post_all
from benchmarks.processes import cpu_times, family
from benchmarks.report import Measure
from benchmarks.scenario import Scenario
from benchmarks.servers import Kind, ServerFailed, prepare, running, token
from benchmarks.tasks import BATCH, PATIENCE, fill, lines, packet, rest, warm_up

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from benchmarks.servers import Server
    from benchmarks.sizes import Sizes

__all__ = ["SCENARIO"]

TRACED_SHARE: Final = 4
"""strace makes each call ten times as long, so one in so many of the tasks is enough."""

LEAST: Final = 0.005
"""Calls a task; rarer ones are left out."""

Go: TypeAlias = "Callable[[], None]"
Load: TypeAlias = "Callable[[Server, Path, Sizes, int], Go]"
"""Makes so many tasks ready, and returns what sets them going."""


def _by_socket(server: Server, _folder: Path, sizes: Sizes, count: int) -> Go:
    packets = [packet(number) for number in range(count)]
    return lambda: _taken(run_load(server.unix, packets, sizes.processes, sizes.connections).refused)


def _in_batches(_server: Server, folder: Path, sizes: Sizes, count: int) -> Go:
    word = token(folder)
    bodies = [lines(range(first, min(first + BATCH, count))) for first in range(0, count, BATCH)]
    requests = [post(TASKS_PATH, word, "application/x-ndjson", body) for body in bodies]
    address = os.fspath(folder / "http")
    return lambda: _taken(run_load(address, requests, sizes.processes, BATCH_CONNECTIONS, post_all).refused)


def _at_drain(server: Server, folder: Path, _sizes: Sizes, count: int) -> Go:
    asker = Asker(folder)
    asker.ask("/api/v1/spools/default", {"paused": True})
    fill(folder / "spool", count)
    asker.wait("/api/v1/spools", lambda answer: bool(answer["spools"][0]["ready"] >= count), PATIENCE, server.check)
    rest(server)

    def resume() -> None:
        asker.ask("/api/v1/spools/default", {"paused": False})

    return resume


def _taken(refused: int) -> None:
    if refused:
        raise ServerFailed(f"{refused} requests were refused")


def cost(load: Load, folder: Path, sizes: Sizes) -> Mapping[Measure, float]:
    """One way in."""
    prepare(folder)
    figures = {}
    with running(Kind.OS, folder) as server:
        started = warm_up(server)
        service, *workers = family(server.process.pid)
        go = load(server, folder, sizes, sizes.cost)
        before = cpu_times([service]), cpu_times(workers)
        go()
        started += sizes.cost
        server.wait_for(started, PATIENCE)
        time.sleep(1.0)  # until the last history is written
        after = cpu_times([service]), cpu_times(workers)
        for name, old, new in zip(("service", "workers"), before, after, strict=True):
            for part, one, two in zip(("user", "system"), old, new, strict=True):
                figures[Measure(f"{name}: {part} time", "µs")] = (two - one) / sizes.cost * 1e6
        if strace.available():
            figures |= _traced(load, folder, sizes, server, started)
    return figures


def _traced(load: Load, folder: Path, sizes: Sizes, server: Server, started: int) -> dict[Measure, float]:
    service, *workers = family(server.process.pid)
    count = -(-sizes.cost // TRACED_SHARE)
    go = load(server, folder, sizes, count)
    with (
        strace.counted([service], folder / "service.strace") as of_service,
        strace.counted(workers, folder / "workers.strace") as of_workers,
    ):
        go()
        server.wait_for(started + count, PATIENCE, poll=0.05)
        time.sleep(1.0)
    figures = {}
    for name, calls in (("service", of_service), ("workers", of_workers)):
        figures[Measure(f"{name}: system calls", "a task")] = sum(calls.values()) / count
        for call, times in sorted(calls.items(), key=lambda item: -item[1]):
            if times / count >= LEAST:
                figures[Measure(f"{name}: `{call}`", "a task")] = times / count
    return figures


SCENARIO: Final = Scenario(
    lambda sizes: f"Processor time and system calls of one in {sizes.cost:,} tasks",
    {
        "by Unix socket": functools.partial(cost, _by_socket),
        "in batches by HTTP": functools.partial(cost, _in_batches),
        "at drain": functools.partial(cost, _at_drain),
    },
    lambda sizes: [
        '`durability = "os"`, 2 worker processes, which are added up. The load is that of the tables above; at drain, '
        "the files have come while the spool was paused.",
        f"The calls are those of another {sizes.cost // TRACED_SHARE:,} tasks, since strace makes a server many times "
        "slower: a batch of work may be of another size then than without it.",
        f"Calls of which there are fewer than {LEAST} a task are left out.",
    ],
    rounds=1,
)
