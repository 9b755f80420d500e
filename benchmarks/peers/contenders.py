"""Who takes part, and how each is set up: in words, for the report, and in deed."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from benchmarks.peers import stores
from benchmarks.peers.clients import Way, send_by
from benchmarks.processes import cpu_seconds, end, family, start
from benchmarks.records import Records
from benchmarks.servers import ROOT, ServerFailed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from benchmarks.peers.stores import Store

__all__ = ["PEERS", "Peer", "Running"]

STOP_SECONDS: Final = 10.0


@dataclass(frozen=True, slots=True)
class Running:
    """A contender that is ready for tasks.

    Attributes:
        send: Sends tasks from clients.
        records: What its handlers have recorded.
        pids: Its processes, without those that they start.
        check: Raises `ServerFailed` if it has ended.
    """

    send: Way
    records: Records
    pids: Sequence[int]
    check: Callable[[], None]

    def cpu_seconds(self) -> float:
        """What all its processes have used, those of what keeps its tasks included."""
        return cpu_seconds([member for pid in self.pids for member in family(pid)])


@dataclass(frozen=True, slots=True)
class Peer:
    """A task queue of others.

    Attributes:
        name: In the table.
        package: Without which it is left out.
        module: Its tasks, one of `benchmarks.peers`.
        store: Keeps its tasks.
        workers: The commands that run two worker processes.
        setup: What is to be known of it.
        survives: What a task that waits survives.
        prepare: A command to run before, or none.
        share: It has one in so many of the tasks, since it takes so long.
        synced: Whether a task is on disk before it is acknowledged.
    """

    name: str
    package: str
    module: str
    store: Callable[[Path], AbstractContextManager[Store]]
    workers: Sequence[Sequence[str]]
    setup: str
    survives: str
    prepare: Sequence[str] = ()
    share: int = 1
    synced: bool = False

    @property
    def installed(self) -> bool:
        """Whether it is there."""
        return importlib.util.find_spec(self.package) is not None

    @contextlib.contextmanager
    def running(self, folder: Path) -> Iterator[Running]:
        """Run it in a folder.

        Raises:
            ServerFailed: It does not start.
        """
        seen, log = folder / "records", folder / "log"
        seen.mkdir(parents=True)
        with self.store(folder) as store, contextlib.ExitStack() as stack:
            environment = {"BENCHMARK_BROKER": store.url, "BENCHMARK_RECORDS": os.fspath(seen)}
            environment |= {"BENCHMARK_FSYNC": "yes" if self.synced else "no"}
            environment |= {"PYTHONPATH": os.fspath(ROOT), "PROCRASTINATE_APP": f"{self.module}.app"}
            begin = functools.partial(start, folder=folder, log=log, environment=environment)
            if self.prepare and begin(_command(self.prepare, store)).wait():
                raise ServerFailed(f"{self.name}: {log.read_text(errors='replace')[-2000:]}")
            workers = []
            for command in self.workers:
                workers.append(begin(_command(command, store)))
                stack.callback(end, workers[-1], STOP_SECONDS)
            records = Records(seen)
            stack.callback(records.close)

            def check() -> None:
                if any(worker.poll() is not None for worker in workers):
                    raise ServerFailed(f"{self.name}: a worker has ended\n{log.read_text(errors='replace')[-2000:]}")

            pids = [*store.pids, *(worker.pid for worker in workers)]
            yield Running(send_by(self.module, environment), records, pids, check)


def _command(command: Sequence[str], store: Store) -> list[str]:
    program = Path(sys.executable).with_name(command[0])
    return [os.fspath(program), *(part.replace("{url}", store.url) for part in command[1:])]


_REDIS: Final = "a kill, and a power cut if it has waited for a second"
_KILL: Final = "a kill"
_CUT: Final = "a power cut"

_TASKS: Final = "benchmarks.peers"
_HUEY: Final = ["huey_consumer", f"{_TASKS}.huey_tasks.huey", "--workers", "2", "--worker-type", "process"]
_RQ: Final = ["rq", "worker-pool", "--num-workers", "2", "--url", "{url}", "--quiet"]
_DRAMATIQ: Final = ["dramatiq", "--processes", "2", f"{_TASKS}.dramatiq_tasks"]
_CELERY: Final = ["celery", "--app", f"{_TASKS}.celery_tasks", "worker", "--concurrency", "2", "--loglevel", "WARNING"]
_PROCRASTINATE: Final = ["procrastinate", "worker", "--concurrency", "10"]

PEERS: Final = (
    Peer(
        "Huey (SQLite)",
        "huey",
        f"{_TASKS}.huey_tasks",
        stores.file,
        [_HUEY],
        "`SqliteHuey` as it comes but for `timeout=30`, `huey_consumer --workers 2 --worker-type process`",
        _KILL,
    ),
    Peer(
        "Huey (SQLite, synced)",
        "huey",
        f"{_TASKS}.huey_tasks",
        stores.file,
        [_HUEY],
        "the same with `fsync=True`",
        _CUT,
        synced=True,
    ),
    Peer(
        "RQ (Redis)",
        "rq",
        f"{_TASKS}.rq_tasks",
        stores.redis,
        [_RQ],
        "`rq worker-pool --num-workers 2`: a process for each job, as its documentation wants it in production",
        _REDIS,
        share=10,
    ),
    Peer(
        "RQ, SimpleWorker (Redis)",
        "rq",
        f"{_TASKS}.rq_tasks",
        stores.redis,
        [[*_RQ, "--worker-class", "rq.SimpleWorker"]],
        "the same without, which it allows for jobs of a few milliseconds that are trusted not to crash",
        _REDIS,
    ),
    Peer(
        "Dramatiq (Redis)",
        "dramatiq",
        f"{_TASKS}.dramatiq_tasks",
        stores.redis,
        [_DRAMATIQ],
        "`dramatiq --processes 2`, 8 threads each as it comes",
        _REDIS,
    ),
    Peer(
        "Dramatiq (Redis, synced)",
        "dramatiq",
        f"{_TASKS}.dramatiq_tasks",
        stores.redis_always,
        [_DRAMATIQ],
        "the same with `appendfsync always`",
        _CUT,
        synced=True,
    ),
    Peer(
        "Celery (Redis)",
        "celery",
        f"{_TASKS}.celery_tasks",
        stores.redis,
        [_CELERY],
        '`celery worker --concurrency 2`, results ignored, and a prefetch multiplier of 64, as its guide "Optimizing" '
        "says for many short tasks",
        _REDIS,
    ),
    Peer(
        "Procrastinate (PostgreSQL)",
        "procrastinate",
        f"{_TASKS}.procrastinate_tasks",
        stores.postgresql,
        [_PROCRASTINATE, _PROCRASTINATE],
        "two of `procrastinate worker --concurrency 10`, an asynchronous task, connections from a pool",
        _CUT,
        ["procrastinate", "schema", "--apply"],
        synced=True,
    ),
)
