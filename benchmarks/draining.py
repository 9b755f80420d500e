"""How fast a server works off what it finds at its start."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from benchmarks.machine import create_cost
from benchmarks.report import CREATE_COST, Measure
from benchmarks.scenario import BOTH, Scenario, of_servers
from benchmarks.servers import Kind, prepare, running
from benchmarks.tasks import PATIENCE, as_sent, fill

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from benchmarks.sizes import Sizes

__all__ = ["RATE", "SCENARIO"]

OLD_SECONDS: Final = 2.0
"""Files that wait are older. trispool leaves one of the last second alone for another: it may still be written to."""

RATE: Final = Measure("first to last start", "/s", more_is_better=True)


def drain(kind: Kind, folder: Path, sizes: Sizes) -> Mapping[Measure, float]:
    """One server."""
    spool = prepare(folder)
    figures = {CREATE_COST: create_cost(folder) * 1e6}
    fill(spool, sizes.drain)
    time.sleep(OLD_SECONDS)
    began = time.monotonic()
    with running(kind, folder) as server:
        server.wait_for(sizes.drain, PATIENCE, poll=0.01)
        starts = server.records.read()
        as_sent(starts, sizes.drain)
        cpu = server.cpu_seconds()
    first, last = starts[0].monotonic, starts[-1].monotonic
    figures[RATE] = (len(starts) - 1) / (last - first)
    figures[Measure("server's exec to first start", "s")] = first - began
    figures[Measure("server's exec to last start", "s")] = last - began
    figures[Measure("CPU, the server's start included", "s")] = cpu
    return figures


SCENARIO: Final = Scenario(
    lambda sizes: f"Drain {sizes.drain:,} files that wait when the server starts",
    of_servers(drain, BOTH),
    lambda _: ["The time of an exec includes that of Python and of the imports."],
)
