"""A priority queue of many integers that come in bursts and are taken in batches; pure.

They are kept in a few sorted runs. A heap of very many compares, for each that is taken, a dozen pairs of numbers from
anywhere in memory; to merge what lies in order already, and to take the end of it, costs a fifth of that.
"""

from __future__ import annotations

from heapq import heapify, heappop, heapreplace
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["ReadyQueue"]

MAX_UNSORTED: Final = 2048
"""To sort so many takes less than 1 ms."""

MAX_RUN: Final = 32 * 1024
"""Two runs are merged if they are not longer than this together, which takes 1 ms: then no call takes much longer than
that, and of a million numbers there are thirty runs."""

_SHORTER: Final = 16
"""A run is merged with one that is so many times as long at most: then each number is merged only so often."""


class ReadyQueue:
    """See the module."""

    def __init__(self) -> None:
        self._unsorted: list[int] = []
        # Each from the largest to the smallest; none is empty. Mostly, a shorter one stands behind a longer one.
        self._runs: list[list[int]] = []

    def __len__(self) -> int:
        return len(self._unsorted) + sum(map(len, self._runs))

    def __iter__(self) -> Iterator[int]:
        for run in (self._unsorted, *self._runs):
            yield from run

    def push(self, number: int) -> None:
        """Add one."""
        self._unsorted.append(number)
        if len(self._unsorted) >= MAX_UNSORTED:
            self._sort()

    def pop(self, limit: int) -> list[int]:
        """Take out the smallest ones, in their order.

        Args:
            limit: How many at most, 1 or more.
        """
        if self._unsorted:
            self._sort()
        runs = self._runs
        if not runs:
            return []
        if len(runs) > 1:
            return self._merge(limit)
        (run,) = runs
        popped = run[: -limit - 1 : -1]
        del run[-limit:]
        if not run:
            runs.clear()
        return popped

    def keep(self, is_wanted: Callable[[int], bool]) -> None:
        """Drop those that are not wanted."""
        self._unsorted = [*filter(is_wanted, self._unsorted)]
        self._runs = [kept for run in self._runs if (kept := [*filter(is_wanted, run)])]

    def _sort(self) -> None:
        run = sorted(self._unsorted, reverse=True)
        self._unsorted.clear()
        runs = self._runs
        while runs and len(runs[-1]) <= _SHORTER * len(run) and len(runs[-1]) + len(run) <= MAX_RUN:
            run = sorted(runs.pop() + run, reverse=True)
        runs.append(run)

    def _merge(self, limit: int) -> list[int]:
        popped: list[int] = []
        runs = self._runs
        following = [(run[-1], place) for place, run in enumerate(runs)]
        heapify(following)
        while following and len(popped) < limit:
            _, place = following[0]
            run = runs[place]
            popped.append(run.pop())
            if run:
                heapreplace(following, (run[-1], place))
            else:
                heappop(following)
        if len(following) < len(runs):
            self._runs = [run for run in runs if run]
        return popped
