"""Procrastinate, in PostgreSQL: an asynchronous task, and synchronous clients."""

from __future__ import annotations

import functools
import os

from procrastinate import App, PsycopgConnector

from benchmarks.records import Appender

app = App(connector=PsycopgConnector(conninfo=os.environ["BENCHMARK_BROKER"]))
_records = Appender(os.environ["BENCHMARK_RECORDS"])


@app.task
async def handle(key: float) -> None:
    """Record that the task has started, and be done with it."""
    _records.add(key)


def send(key: float) -> None:
    """Enqueue one."""
    _open()
    handle.defer(key=key)


@functools.cache
def _open() -> App:
    """A client opens the connections that a worker opens by itself."""
    return app.open()
