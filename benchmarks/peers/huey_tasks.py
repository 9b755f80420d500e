"""Huey, with its tasks in an SQLite file."""

from __future__ import annotations

import os

from huey import SqliteHuey

from benchmarks.records import Appender

huey = SqliteHuey(
    filename=os.environ["BENCHMARK_BROKER"],
    fsync=os.environ["BENCHMARK_FSYNC"] == "yes",
    timeout=30,  # a client that has waited for its turn for 5 s, as it comes, would be told that the database is locked
)
_records = Appender(os.environ["BENCHMARK_RECORDS"])


@huey.task()
def handle(key: float) -> None:
    """Record that the task has started, and be done with it."""
    _records.add(key)


def send(key: float) -> None:
    """Enqueue one."""
    handle(key)
