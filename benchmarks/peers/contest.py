"""End to end: from the first call of a client to the start of the last task, as many tasks for each queue."""

from __future__ import annotations

import functools
import resource
import time
from typing import TYPE_CHECKING, Final

from benchmarks.peers.contenders import PEERS, Peer
from benchmarks.peers.ours import OURS, Ours
from benchmarks.report import RUN, Measure
from benchmarks.scenario import Scenario
from benchmarks.servers import ServerFailed
from benchmarks.tasks import PATIENCE, as_sent

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from benchmarks.peers.contenders import Running
    from benchmarks.scenario import Run
    from benchmarks.sizes import Sizes

__all__ = ["ENQUEUED", "SCENARIO"]

WARM_UP: Final = 64
"""Tasks before those that are measured; their numbers follow those of the latter."""

CONTENDERS: Final[Sequence[Peer | Ours]] = (*PEERS, *OURS)

ENQUEUED: Final = Measure("enqueued", "/s", more_is_better=True)
CPU: Final = Measure("CPU a task, clients and store too", "µs")


def compete(contender: Peer | Ours, folder: Path, sizes: Sizes) -> Mapping[Measure, float]:
    """One contender."""
    count = -(-sizes.peers // contender.share)
    with contender.running(folder) as running:
        running.send(range(count, count + WARM_UP), sizes.processes, sizes.connections)
        _wait(running, WARM_UP)
        cpu = running.cpu_seconds() + _children()
        load = running.send(range(count), sizes.processes, sizes.connections)
        if load.refused:
            raise ServerFailed(f"{contender.name}: {load.refused} requests were refused")
        _wait(running, WARM_UP + count)
        cpu = running.cpu_seconds() + _children() - cpu
        starts = running.records.read(WARM_UP)
        as_sent(starts, count)
    return {
        RUN: count / (starts[-1].monotonic - load.began),
        ENQUEUED: count / load.seconds,
        CPU: cpu / count * 1e6,
    }


def _children() -> float:
    """CPU seconds of the client processes, which have ended and been waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _wait(running: Running, count: int) -> None:
    deadline = time.monotonic() + PATIENCE
    while (now := running.records.count()) < count:
        running.check()
        if time.monotonic() > deadline:
            raise ServerFailed(f"{now} of {count} tasks have started in {PATIENCE} s")
        time.sleep(0.005)


def _runs() -> dict[str, Run]:
    return {contender.name: functools.partial(compete, contender) for contender in CONTENDERS if contender.installed}


def _notes(sizes: Sizes) -> list[str]:
    notes = [
        f"{sizes.processes} client processes and 2 worker processes on the same machine, a handler that records its "
        "start and returns. Clients of the other queues, and of `handler.spool()`, call their function once a task, "
        f"one after the other; by socket each process has {sizes.connections} packets on their way, and by HTTP two "
        "batches.",
        "Redis has `appendonly yes` and `appendfsync everysec`, as its documentation advises for data that is to last; "
        "PostgreSQL is as it comes, and syncs before it answers.",
    ]
    for contender in CONTENDERS:
        missing = "" if contender.installed else " (not installed, and so not measured)"
        fewer = f" It has one in {contender.share} of the tasks." if contender.share > 1 else ""
        notes.append(f"{contender.name}{missing}: {contender.setup}. What waits survives {contender.survives}.{fewer}")
    return notes


SCENARIO: Final = Scenario(
    lambda sizes: f"Task queues for Python, end to end: {sizes.peers:,} tasks from the first call to the last start",
    _runs(),
    _notes,
    rounds=2,  # of two minutes each
    ranked=True,
)
