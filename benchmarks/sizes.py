"""How much of everything. Each field is an option of the command line."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from benchmarks.records import CAPACITY

__all__ = ["Sizes"]

_RECORDED: Final = CAPACITY // 2
"""So many tasks all in all does a worker record."""


def _count(default: float, text: str, most: int = 100_000_000) -> Any:  # noqa: ANN401 # as `field` itself
    return field(default=default, metadata={"help": text, "most": most})


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much of everything; `metadata` has what each is, and the most that it may be."""

    enqueue: int = _count(20_000, "Packets by each socket.", _RECORDED)
    http: int = _count(4_000, "Tasks by HTTP, one at a time.", _RECORDED)
    http_batches: int = _count(60, "Batches by HTTP.", 500)
    drain: int = _count(20_000, "Files that wait before the server starts.", _RECORDED)
    latency: int = _count(300, "Tasks one at a time.", _RECORDED)
    scheduled: int = _count(100_000, "Tasks for tomorrow.")
    scheduled_latency: int = _count(300, "Tasks one at a time beside them; uWSGI has an eighth of it.", _RECORDED)
    million: int = _count(1_000_000, "Tasks for tomorrow, of which uWSGI is spared.")
    rest: int = _count(30, "Seconds for which a server has nothing to do, and is watched.", 3600)
    at: int = _count(200, "Tasks with a time.", _RECORDED)
    at_seconds: int = _count(4, "Seconds within which these are due.", 3600)
    waiting: int = _count(100_000, "Tasks to list, in each state.")
    finished: int = _count(1_000_000, "Tasks in the history.")
    asked: int = _count(30, "How often each page is asked for.")
    cost: int = _count(20_000, "Tasks of which the cost is taken apart.", _RECORDED)
    peers: int = _count(5_000, "Tasks for each of the queues.", _RECORDED)
    processes: int = _count(2, "Client processes.", 64)
    connections: int = _count(16, "Of each client process at once.", 256)
