"""Celery, by Redis; of its guide "Optimizing" what it says of many short tasks."""

from __future__ import annotations

import os

from celery import Celery

from benchmarks.records import Appender

app = Celery("benchmark", broker=os.environ["BENCHMARK_BROKER"])
app.conf.worker_prefetch_multiplier = 64
app.conf.task_ignore_result = True
_records = Appender(os.environ["BENCHMARK_RECORDS"])


@app.task
def handle(key: float) -> None:
    """Record that the task has started, and be done with it."""
    _records.add(key)


def send(key: float) -> None:
    """Enqueue one."""
    handle.delay(key)
