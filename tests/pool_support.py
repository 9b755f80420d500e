"""A pool with real workers and an employer that takes notes, for tests."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio

from tests.worker_support import PATIENCE, Gate, children
from trispool.packet import encode_vars
from trispool.store import Claim

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence
    from pathlib import Path

    from trispool.pool import Pool
    from trispool.workerlink import Report, Stream
    from trispool.workerproc import WorkerProcess


def claim(task_id: str, body: bytes = b"", **vars: object) -> Claim:
    """A task that is carried to the worker."""
    return Claim(task_id, task_id, (encode_vars({key: str(value) for key, value in vars.items()}), body))


class Recorder:
    """An employer that notes what it is told.

    It fails the test at once if a task comes back that it did not give, or a second time.
    """

    def __init__(self) -> None:
        self.ready: list[WorkerProcess] = []
        self.lost: list[tuple[WorkerProcess, str]] = []
        self.reports: list[Report] = []
        self.returned: list[str] = []
        self.suspects: list[str] = []
        self.log: list[tuple[str | None, str]] = []
        self.progress: list[tuple[str, float, str]] = []
        self.frequencies: list[float] = []
        self.out: set[Claim] = set()
        self.on_report: Callable[[WorkerProcess], None] = lambda worker: None
        self._changed = trio.Event()

    def give(self, worker: WorkerProcess, *claims: Claim, attempt: int = 1) -> None:
        """Hand over, remembering that they are out."""
        self.out.update(claims)
        worker.give(claims, [attempt] * len(claims))

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait until something is so."""
        with trio.fail_after(PATIENCE):
            while not condition():
                self._changed = trio.Event()
                await self._changed.wait()

    async def worker(self, count: int = 1) -> WorkerProcess:
        """The `count`-th worker to become ready."""
        await self.until(lambda: len(self.ready) >= count)
        return self.ready[count - 1]

    def out_ids(self) -> set[str]:
        """The ids of the tasks that have not come back."""
        return {item.id for item in self.out}

    def codes(self) -> dict[str, str]:
        """How tasks ended, by id; the last word counts."""
        return {report.claim.id: report.code for report in self.reports}

    def ended(self) -> dict[str, str]:
        """The same without those that were returned."""
        return {task_id: code for task_id, code in self.codes().items() if code != "returned"}

    def back(self) -> list[str]:
        """The tasks that were returned: recalled from behind a slow one, or by a dead worker. Which of the two depends
        on how fast the machine is."""
        return sorted(self.returned + [report.claim.id for report in self.reports if report.code == "returned"])

    def _back(self, claims: Sequence[Claim]) -> None:
        for item in claims:
            self.out.remove(item)
        self._changed.set()

    # What the pool calls

    def worker_ready(self, worker: WorkerProcess, /) -> None:
        self.ready.append(worker)
        self._changed.set()

    def worker_reported(self, worker: WorkerProcess, reports: Sequence[Report], /) -> None:
        self.reports.extend(reports)
        self._back([report.claim for report in reports])
        self.on_report(worker)

    def worker_lost(
        self, worker: WorkerProcess, returned: Sequence[Claim], suspects: Sequence[Claim], cause: str, /
    ) -> None:
        assert worker in self.ready
        assert worker not in [lost for lost, _ in self.lost]
        self.lost.append((worker, cause))
        self.returned += [item.id for item in returned]
        self.suspects += [item.id for item in suspects]
        self._back([*returned, *suspects])

    def worker_progress(self, worker: WorkerProcess, task_id: str, fraction: float, text: str, /) -> None:
        self.progress.append((task_id, fraction, text))
        self._changed.set()

    def worker_log(self, worker: WorkerProcess, stream: Stream, task_id: str | None, line: str, /) -> None:
        self.log.append((task_id, line))
        self._changed.set()

    def worker_set_frequency(self, seconds: float, /) -> None:
        self.frequencies.append(seconds)
        self._changed.set()


@asynccontextmanager
async def serving(pool: Pool) -> AsyncIterator[trio.Nursery]:
    """Serve a pool; end it by cancelling."""
    with trio.fail_after(3 * PATIENCE):
        async with trio.open_nursery() as nursery:
            await nursery.start(pool.serve_pool)
            yield nursery
            nursery.cancel_scope.cancel()


@pytest.fixture(autouse=True)
def no_process_left() -> Iterator[None]:
    """Fails a test that leaves a process behind, running or not reaped."""
    before = children()
    yield
    assert children() - before == set()


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    """What handlers can be made to wait for."""
    made = Gate(tmp_path / "gate")
    yield made
    made.close()


@pytest.fixture
def recorder() -> Recorder:
    """The employer."""
    return Recorder()
