"""What is known of a task that runs: a value, which its backlog keeps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trispool.task import Entry

__all__ = ["Running"]


@dataclass(slots=True)
class Running:
    """A task that a worker has in hand.

    Attributes:
        entry: The task, as it was when it was handed over.
        due_at: When it became due, Unix seconds.
        attempt: The number of this attempt.
        given_at: When it was handed over, Unix seconds.
        worker_pid: To which process.
        moved_at: The `at` that somebody gave it meanwhile, or None.
        moved_to: Where somebody has put it meanwhile, a `ref`, or None.
        progress: (fraction, text), as its handler last said, or None.
    """

    entry: Entry
    due_at: float
    attempt: int
    given_at: float
    worker_pid: int
    moved_at: float | None = None
    moved_to: str | None = None
    progress: tuple[float, str] | None = None
