"""Handlers that record when they were called and how that ended, and look whether what they got is what was sent."""

from __future__ import annotations

import os
import time
import zlib
from typing import TYPE_CHECKING, Any

import uwsgi

from tests.faults.runs import End, Recorder
from trispool import Retry, Task, handler

if TYPE_CHECKING:
    from collections.abc import Mapping

_recorder = Recorder(os.environ["FAULTS_RUNS"], os.environ["FAULTS_LIFE"])


def _end(vars: Mapping[bytes, bytes], body: bytes, end: End = End.OK) -> End:
    """How a call ends: not well if the task is not whole."""
    whole = int(vars[b"size"]) == len(body) and int(vars[b"sum"]) == zlib.crc32(body)
    return end if whole else End.TORN


def legacy(env: dict[Any, bytes]) -> int:
    """By uWSGI's convention. Some take a while, some ask to be run again until a certain time."""
    call = _recorder.started(int(env[b"n"]), os.path.basename(env["spooler_task_name"]).decode(), 0)
    if b"seconds" in env:
        time.sleep(float(env[b"seconds"]))
    again = time.time() < float(env.get(b"until", b"0"))
    call.ended(_end(env, env.get("body", b""), End.AGAIN if again else End.OK))
    return int(uwsgi.SPOOL_RETRY if again else uwsgi.SPOOL_OK)


uwsgi.spooler = legacy


@handler
def again(task: Task) -> None:
    """Fails as often as it was told to, in both ways."""
    call = _recorder.started(int(task.vars[b"n"]), task.id, task.attempt)
    if task.attempt <= int(task.vars[b"times"]):
        call.ended(_end(task.vars, task.body, End.AGAIN))
        if task.attempt % 2:
            raise Retry("on purpose", in_=0.05)
        raise ValueError("on purpose")
    call.ended(_end(task.vars, task.body))


if os.environ["FAULTS_ASYNC"] == "1":
    # One such handler, and all tasks of the worker are run in the other loop.
    import trio

    @handler
    async def slow(task: Task) -> None:
        """Waits, many at once."""
        call = _recorder.started(int(task.vars[b"n"]), task.id, task.attempt)
        await trio.sleep(float(task.vars[b"seconds"]))
        call.ended(_end(task.vars, task.body))
