"""All benchmarks, in the order in which they run: what fills the disk comes last."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from benchmarks import batches, cost, draining, latency, lateness, million, pages, sockets
from benchmarks.peers import contest

if TYPE_CHECKING:
    from benchmarks.scenario import Scenario

__all__ = ["SCENARIOS"]

SCENARIOS: Final[dict[str, Scenario]] = {
    "enqueue": sockets.SCENARIO,
    "http": batches.SCENARIO,
    "drain": draining.SCENARIO,
    "latency": latency.ALONE,
    "at": lateness.SCENARIO,
    "cost": cost.SCENARIO,
    "peers": contest.SCENARIO,
    "scheduled": latency.BESIDE,
    "rest": latency.REST,
    "pages": pages.SCENARIO,
    "million": million.SCENARIO,
}
