"""A handler that notes what it was given, to the last byte. Loaded by the workers of a service."""

from __future__ import annotations

import json
import os
import socket
from hashlib import sha256

from trispool import Task, handler

_ran = os.open("ran", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)


@handler(default=True)
def note(task: Task) -> None:
    """A line at the end of a file in the current directory; one write, so that no other process comes between."""
    vars = [[key.hex(), value.hex()] for key, value in sorted(task.vars.items())]
    digest = sha256(json.dumps([vars, task.body.hex()]).encode()).hexdigest()
    os.write(_ran, f"{task.id} {digest}\n".encode())


with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as telling:
    telling.sendto(json.dumps({"event": "loaded"}).encode(), os.environ["TELLING"])
