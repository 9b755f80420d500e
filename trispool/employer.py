"""Who a worker process works for, and who keeps it: the dispatcher and the pool, as the worker's handle sees them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trispool.store import Claim
    from trispool.workerlink import Report, Stream
    from trispool.workerproc import WorkerProcess

__all__ = ["Employer", "Keeper"]


class Employer(Protocol):
    """Whose tasks are run. Called in the Trio thread, in plain calls that must not raise."""

    def worker_ready(self, worker: WorkerProcess, /) -> None:
        """It has imported its handlers and takes tasks."""

    def worker_reported(self, worker: WorkerProcess, reports: Sequence[Report], /) -> None:
        """These tasks, if any, are no longer in its hand; it may have more room."""

    def worker_lost(
        self, worker: WorkerProcess, returned: Sequence[Claim], suspects: Sequence[Claim], cause: str, /
    ) -> None:
        """It is gone; said once of every worker that was ready.

        Args:
            worker: Which.
            returned: Tasks it had that are not to blame: not begun, or ended by our wish.
            suspects: Tasks it was running when it died; or the one that was cancelled, if it was killed for that.
            cause: `killed by signal 11 (SIGSEGV)`, `exited with code 3`, `harakiri: ran longer than 60 s`, …
        """

    def worker_progress(self, worker: WorkerProcess, task_id: str, fraction: float, text: str, /) -> None:
        """A handler has told how far it is."""

    def worker_log(self, worker: WorkerProcess, stream: Stream, task_id: str | None, line: str, /) -> None:
        """A handler, or what it started, has written a line."""

    def worker_set_frequency(self, seconds: float, /) -> None:
        """A handler wants the spool scanned so often; 0: as configured."""


class Keeper(Protocol):
    """Who keeps the workers: the pool."""

    def worker_is_busy(self) -> None:
        """Call `WorkerProcess.watch` from now on."""

    def worker_has_started(self) -> None:
        """There is one process more."""

    def worker_is_ready(self) -> None:
        """The handlers can be imported."""
