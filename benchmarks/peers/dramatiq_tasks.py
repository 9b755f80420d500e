"""Dramatiq, by Redis."""

from __future__ import annotations

import os

import dramatiq
from dramatiq.brokers.redis import RedisBroker

from benchmarks.records import Appender

dramatiq.set_broker(RedisBroker(url=os.environ["BENCHMARK_BROKER"]))
_records = Appender(os.environ["BENCHMARK_RECORDS"])


@dramatiq.actor
def handle(key: float) -> None:
    """Record that the task has started, and be done with it."""
    _records.add(key)


def send(key: float) -> None:
    """Enqueue one."""
    handle.send(key)
