"""What the service tells of itself to those who ask again and again: figures as JSON and as Prometheus' text.

Nobody is delayed by it: in the loop only a snapshot is taken (0.3 ms for ten handlers), the rest is done in a thread,
and what was made is given to all who ask within `FRESH_SECONDS`.
"""

from __future__ import annotations

import importlib.metadata
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Final, Generic, TypeVar

import trio

from trispool.stats import stats_document

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from trispool.control import SpoolStatus
    from trispool.figures import Figures
    from trispool.httpcounts import HttpCounts
    from trispool.ledger import Ledger
    from trispool.listener import Listener

__all__ = ["Reports"]

FRESH_SECONDS: Final = 1.0
"""So old what is told may be."""

T = TypeVar("T")


class Reports:
    """See the module.

    Args:
        statuses: The spools at this moment.
        figures: What counts them, by their names.
        ledgers: Their histories, by their names.
        requests: What counts HTTP requests.
        readers: How many read the events at this moment.
        clock: Unix seconds.
    """

    def __init__(
        self,
        statuses: Callable[[], Sequence[SpoolStatus]],
        figures: Mapping[str, Figures],
        ledgers: Mapping[str, Ledger],
        requests: HttpCounts,
        readers: Callable[[], int],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._statuses = statuses
        self._figures = figures
        self._ledgers = ledgers
        self._requests = requests
        self._readers = readers
        self._clock = clock
        self._listeners: list[Listener] = []
        self._version = importlib.metadata.version("trispool")
        self._limiter = trio.CapacityLimiter(1)
        self._stats = _Kept(self._make_stats)
        self._metrics = _Kept(self._make_metrics)

    def add_listener(self, listener: Listener) -> None:
        """Tell of a uwsgi socket, too."""
        self._listeners.append(listener)

    async def stats(self) -> Mapping[str, object]:
        """See `trispool.stats`."""
        return await self._stats.get()

    async def metrics(self) -> bytes:
        """See `trispool.metrics`."""
        return await self._metrics.get()

    async def _make_stats(self) -> Mapping[str, object]:
        statuses, now = self._statuses(), self._clock()
        figures = {name: counted.snapshot() for name, counted in self._figures.items()}
        return await trio.to_thread.run_sync(stats_document, statuses, figures, now, limiter=self._limiter)

    async def _make_metrics(self) -> bytes:
        statuses, now = self._statuses(), self._clock()
        figures = {name: counted.snapshot() for name, counted in self._figures.items()}
        history = {
            name: replace(ledger.statistics, commits=ledger.statistics.commits.copy())
            for name, ledger in self._ledgers.items()
        }
        listeners = {listener.addresses[0]: listener.statistics() for listener in self._listeners}
        requests = self._requests.copy()
        readers = self._readers()

        def render() -> bytes:
            from trispool.metrics import Readings, render_metrics

            return render_metrics(
                Readings(now, self._version, statuses, figures, history, listeners, requests, readers)
            )

        return await trio.to_thread.run_sync(render, limiter=self._limiter)


class _Kept(Generic[T]):
    """Something that is made when it is asked for, and kept for a while; who asks meanwhile waits for the same."""

    def __init__(self, make: Callable[[], Awaitable[T]]) -> None:
        self._make = make
        self._making = trio.Lock()
        self._made: tuple[float, T] | None = None

    async def get(self) -> T:
        async with self._making:
            now = trio.current_time()
            if self._made is None or not 0 <= now - self._made[0] < FRESH_SECONDS:
                self._made = (now, await self._make())
            return self._made[1]
