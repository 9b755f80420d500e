"""How often something took how long, in a few numbers: what percentiles and Prometheus' histograms are made of."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from math import ceil, sqrt
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["BOUNDS", "PERCENTILE_ERROR", "Histogram"]

_DECADE: Final = (100, 112, 125, 140, 160, 180, 200, 224, 250, 280, 315, 355, 400, 450, 500, 560, 630, 710, 800, 900)
"""Renard's preferred numbers (ISO 3, R''20), times 100: 20 a decade, with 1, 2.5 and 5 among them."""

_HUMAN: Final = (30, 60, 300, 600, 1800, 3600, 7200, 86400)

BOUNDS: Final = sorted(
    {float(f"{mantissa}e{power}") for power in range(-7, 4) for mantissa in _DECADE} | {float(n) for n in _HUMAN}
)
"""The upper bounds of a histogram's buckets, seconds: from 10 µs to ten days."""

PERCENTILE_ERROR: Final = 0.07
"""How far a percentile may be off, as a part of it: the bounds are at most 14 % apart (1.4 to 1.6), and the middle, in
ratio, is told. (Below 10 µs, 10 µs is told.)"""


class Histogram:
    """How often something took how long.

    Attributes:
        counts: By the number of the bucket; those that nothing fell into are missing.
        sum: Of all lengths of time, seconds.
    """

    __slots__ = ("counts", "sum")

    def __init__(self) -> None:
        self.counts: defaultdict[int, int] = defaultdict(int)
        self.sum = 0.0

    def observe(self, seconds: float) -> None:
        """Count one."""
        self.counts[bisect_left(BOUNDS, seconds)] += 1
        self.sum += seconds

    def observe_all(self, lengths: Sequence[float]) -> None:
        """Count several."""
        counts, bounds = self.counts, BOUNDS
        for seconds in lengths:
            counts[bisect_left(bounds, seconds)] += 1
        self.sum += sum(lengths)

    def add(self, other: Histogram) -> None:
        """Count all that another one has."""
        counts = self.counts
        for bucket, count in other.counts.items():
            counts[bucket] += count
        self.sum += other.sum

    def subtract(self, other: Histogram) -> None:
        """Forget what another one has, all of which was added before."""
        counts = self.counts
        for bucket, count in other.counts.items():
            counts[bucket] -= count
            if not counts[bucket]:
                del counts[bucket]
        self.sum = max(0.0, self.sum - other.sum) if counts else 0.0

    def copy(self) -> Histogram:
        """One that no longer changes."""
        copied = Histogram()
        copied.counts = self.counts.copy()
        copied.sum = self.sum
        return copied

    @property
    def count(self) -> int:
        """How many there were."""
        return sum(self.counts.values())

    def percentiles(self, *parts: float) -> list[float | None]:
        """How long, at most, so large parts of them took; off by `PERCENTILE_ERROR` at most. None: there were none.

        Args:
            parts: Ascending; 0.5 asks for the median.
        """
        total = self.count
        if not total:
            return [None] * len(parts)
        found: list[float | None] = []
        passed = 0
        buckets = iter(sorted(self.counts.items()))
        bucket = 0
        for part in parts:
            rank = ceil(part * total)
            while passed < rank:
                bucket, count = next(buckets)
                passed += count
            found.append(_middle(bucket))
        return found

    def at_most(self, bounds: Iterable[float]) -> list[int]:
        """How many took at most so long, for ascending bounds that are among `BOUNDS`."""
        ordered = sorted(self.counts.items())
        position = passed = 0
        found = []
        for bound in bounds:
            last = bisect_left(BOUNDS, bound)
            while position < len(ordered) and ordered[position][0] <= last:
                passed += ordered[position][1]
                position += 1
            found.append(passed)
        return found


def _middle(bucket: int) -> float:
    if bucket == 0:
        return BOUNDS[0]
    return sqrt(BOUNDS[bucket - 1] * BOUNDS[bucket]) if bucket < len(BOUNDS) else BOUNDS[-1]
