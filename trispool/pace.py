"""How many tasks to hand to a worker at once: by how long handlers take. Pure."""

from __future__ import annotations

from typing import Final

__all__ = ["LONGEST_AHEAD_SECONDS", "MAX_AHEAD", "MAX_BATCH", "MAX_FEWEST", "Pace"]

MAX_BATCH: Final = 256
"""Tasks in one frame. Each frame costs the service and the worker 0.2 ms or more, most of it to go from the one to the
other: 4 µs a task with 64, 1 µs with 256."""

MAX_AHEAD: Final = 2 * MAX_BATCH
"""Tasks in one sync worker's hand: a batch that it runs and one that waits in the socket."""

AHEAD_SECONDS: Final = 0.002
"""A sync worker is given work for so long ahead, by what handlers took lately. More would make nothing quicker and let
tasks wait behind others."""

LEAST_SECONDS: Final = 0.0005
"""Less work than this neither waits behind other work nor is shared out. To hand over and to hear the end of it costs
the service 0.1 ms, and as much again where it wakes a worker on another processor."""

MAX_FEWEST: Final = 64
"""So many tasks are never too few for either, however quick they are."""

LONGEST_AHEAD_SECONDS: Final = 0.02
"""If handlers are found to be slower than was thought, what a worker has in hand for longer is taken back."""


class Pace:
    """How long the handlers of a spool take, and so how many tasks to hand over at once; its workers share it."""

    def __init__(self) -> None:
        self.seconds: float | None = None
        """A moving average of the handlers' run time; None: nothing is known yet."""

    def measured(self, total_seconds: float, count: int) -> None:
        """So many runs took so long together."""
        mean = total_seconds / count
        if self.seconds is None:
            self.seconds = mean
        else:
            # Each run weighs an eighth of all that was known before it.
            self.seconds += (mean - self.seconds) * (1 - 0.875**count)

    @property
    def ahead(self) -> int:
        """How many tasks a sync worker should have in hand."""
        return self._tasks_in(AHEAD_SECONDS, MAX_AHEAD)

    @property
    def fewest(self) -> int:
        """Fewer tasks neither go behind others into a sync worker's hand nor are shared out among several."""
        return self._tasks_in(LEAST_SECONDS, MAX_FEWEST)

    def _tasks_in(self, seconds: float, most: int) -> int:
        if self.seconds is None:
            return 1
        if self.seconds * most <= seconds:
            return most
        return max(1, int(seconds / self.seconds))

    def is_too_much(self, count: int) -> bool:
        """Whether a sync worker should not have so many tasks in hand, now that this is known."""
        return self.seconds is not None and count > 1 and self.seconds * count > LONGEST_AHEAD_SECONDS
