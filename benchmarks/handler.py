"""The no-op handler of all benchmarks; the same file under uWSGI and under trispool."""

from __future__ import annotations

import os

import uwsgi  # type: ignore[import-untyped]  # the server provides it

from benchmarks.records import Recorder

SPOOL_OK: int = uwsgi.SPOOL_OK

_recorder = Recorder(os.environ["BENCHMARK_RECORDS"])


def handle(env: dict[bytes | str, bytes]) -> int:
    """Record that the task has started, and be done with it."""
    _recorder.add(float(env[b"key"]))
    return SPOOL_OK


uwsgi.spooler = handle
