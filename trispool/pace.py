"""How many tasks to hand to a worker at once: by how long handlers take. Pure."""

from __future__ import annotations

from typing import Final

__all__ = ["MAX_AHEAD", "MAX_BATCH", "Pace"]

MAX_BATCH: Final = 64
"""Tasks in one frame: beyond it handing over hardly costs less a task."""

MAX_AHEAD: Final = 2 * MAX_BATCH
"""Tasks in one sync worker's hand: a batch that it runs and one that waits in the socket."""

AHEAD_SECONDS: Final = 0.002
"""A sync worker is given work for so long ahead, by what handlers took lately. More would make nothing quicker and let
tasks wait behind others."""


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
        if self.seconds is None:
            return 1
        if self.seconds * MAX_AHEAD <= AHEAD_SECONDS:
            return MAX_AHEAD
        return max(1, int(AHEAD_SECONDS / self.seconds))
