"""How exactly a server keeps to `at`."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING, Final

from benchmarks.client import exchange
from benchmarks.machine import create_cost
from benchmarks.report import CREATE_COST, Measure, percentile
from benchmarks.scenario import BOTH, Scenario, of_servers
from benchmarks.servers import Kind, prepare, running
from benchmarks.tasks import PATIENCE, SHORTEST, best_frequency, packet, warm_up

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from benchmarks.sizes import Sizes

__all__ = ["EARLY", "P99", "SCENARIO"]

P99: Final = Measure("lateness, p99", "ms")
EARLY: Final = Measure("started too early", "tasks")


def lateness(kind: Kind, folder: Path, sizes: Sizes) -> Mapping[Measure, float]:
    """One server."""
    prepare(folder)
    figures = {CREATE_COST: create_cost(folder) * 1e6}
    with running(kind, folder, frequency=best_frequency(kind)) as server:
        started = warm_up(server)
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
        P99: percentile(late, 99) * 1e3,
        Measure("lateness, most", "ms"): late[-1] * 1e3,
        EARLY: sum(seconds < 0 for seconds in late),
        Measure("started too early, most", "ms"): max(0.0, -late[0] * 1e3),
    }


SCENARIO: Final = Scenario(
    lambda sizes: f"{sizes.at} tasks with `at`, within {sizes.at_seconds} s",
    of_servers(lateness, BOTH),
    lambda _: [
        f"uWSGI's frequency is {SHORTEST} s here, its shortest; by default it is 30 s, and a task so much late. "
        "It cuts the fraction of `at`, and so starts tasks up to a second early."
    ],
)
