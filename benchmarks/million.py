"""A million tasks that are for later: the start, the memory, the CPU, and a task beside them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from benchmarks.asker import Asker
from benchmarks.client import exchange
from benchmarks.latency import IDLE, PAUSE, one_at_a_time, resting
from benchmarks.report import Measure
from benchmarks.scenario import Scenario, of_servers
from benchmarks.servers import Kind, prepare, running
from benchmarks.tasks import DAY, PATIENCE, fill, packet, rest

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from benchmarks.sizes import Sizes

__all__ = ["FIRST", "KNOWN", "MEMORY", "READY", "SCENARIO"]

FIRST: Final = Measure("exec to the start of a first task", "s")
READY: Final = Measure("exec to ready, as `/readyz` has it", "s")
KNOWN: Final = Measure("exec to all tasks known", "s")
MEMORY: Final = Measure("memory of all processes", "MB")


def million(kind: Kind, folder: Path, sizes: Sizes) -> Mapping[Measure, float]:
    """One server."""
    fill(prepare(folder), sizes.million, time.time() + DAY)
    began = time.monotonic()
    with running(kind, folder) as server:
        exchange(server.unix, packet(0))
        asker = Asker(folder)
        asker.wait("/readyz", lambda answer: bool(answer["ok"]), PATIENCE, server.check)
        ready = time.monotonic() - began
        asker.wait(
            "/api/v1/spools",
            lambda answer: bool(answer["spools"][0]["scheduled"] >= sizes.million),
            PATIENCE,
            server.check,
        )
        known = time.monotonic() - began
        server.wait_for(1, PATIENCE)
        figures = {FIRST: server.records.read()[0].monotonic - began, READY: ready, KNOWN: known}
        rest(server)
        figures[MEMORY] = server.resident_bytes() / 1e6
        figures |= one_at_a_time(server, sizes.scheduled_latency, PAUSE, already=1)
        figures[IDLE] = resting(server, sizes.rest)
    return figures


SCENARIO: Final = Scenario(
    lambda sizes: f"Start, rest, and one task at a time, beside {sizes.million:,} tasks for tomorrow",
    of_servers(million, (Kind.OS,)),
    lambda sizes: [
        "The first task is sent as soon as the socket answers, while the directory is still looked through.",
        "Memory is the sum of what each process has resident; what they share counts for each.",
        f"{sizes.scheduled_latency} tasks one at a time. uWSGI is spared: it looks through all of them for each task.",
    ],
    rounds=1,
)
