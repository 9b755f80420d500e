"""trispool's own producer: it makes a file, without asking the service."""

from __future__ import annotations

import os

from benchmarks.records import Recorder
from trispool import handler

_records = Recorder(os.environ["BENCHMARK_RECORDS"])


@handler
def handle(key: float) -> None:
    """Record that the task has started, and be done with it."""
    _records.add(key)


def send(key: float) -> None:
    """Enqueue one."""
    handle.spool(key=key)
