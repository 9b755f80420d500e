"""A handler that notes when it began and when it ended. Loaded by the workers of a service."""

from __future__ import annotations

import json
import os
import socket
import time

from trispool import Retry, Task, handler

_notes = os.open(os.environ["NOTES"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)


def _note(word: str, n: str) -> None:
    # The same clock for all processes, which no one sets.
    os.write(_notes, f"{word} {n} {time.clock_gettime(time.CLOCK_MONOTONIC)} {time.time()}\n".encode())


@handler(default=True)
def note(task: Task, n: str, do: str = "") -> None:
    """Two lines at the end of a file; one write each, so that no other process comes between."""
    _note("began", n)
    if do == "retry" and task.attempt == 1:
        raise Retry("not now", in_=0.2)
    if do == "slow":
        time.sleep(0.05)
    _note("ended", n)


if "TELLING" in os.environ:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as telling:
        telling.sendto(json.dumps({"event": "loaded"}).encode(), os.environ["TELLING"])
