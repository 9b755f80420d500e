"""RQ; the jobs are functions, and need no decorator."""

from __future__ import annotations

import os

from redis import Redis
from rq import Queue

from benchmarks.records import Appender

queue = Queue(connection=Redis.from_url(os.environ["BENCHMARK_BROKER"]))
_records = Appender(os.environ["BENCHMARK_RECORDS"])


def handle(key: float) -> None:
    """Record that the task has started, and be done with it."""
    _records.add(key)


def send(key: float) -> None:
    """Enqueue one."""
    queue.enqueue(handle, key)
