"""Handlers of `tests.faults.power`: traced they say where they are, and after the power cut what they were given."""

from __future__ import annotations

import contextlib
import os
import time
from hashlib import sha256

from trispool import Retry, Task, handler

IS_TRACED = os.environ["POWER"] == "traced"


def say(word: str, n: bytes) -> None:
    """Something that strace sees: a link that there is not."""
    with contextlib.suppress(OSError):
        os.readlink(f"/power/{word}/{n.decode()}")


def note(task: Task) -> None:
    """A line at the end of a file; the current directory is that of the disk."""
    digest = sha256(b"\0".join((task.vars[b"n"], task.vars[b"pad"], task.body))).hexdigest()
    fd = os.open("ran", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(fd, f"{task.vars[b'n'].decode()} {digest}\n".encode())
    os.close(fd)


@handler
def child(task: Task, n: str, pad: str, do: str) -> None:
    """What another handler has enqueued; of the arguments only `spool` makes use."""
    run(task)


@handler(default=True)
def run(task: Task) -> None:
    """Does as it is told, where it is traced."""
    n = task.vars[b"n"]
    if not IS_TRACED:
        note(task)
        return
    say("began", n)
    match task.vars[b"do"]:
        case b"retry" if task.attempt == 1:
            raise Retry("not now", in_=0.3)
        case b"fail":
            raise ValueError("on purpose")
        case b"slow":
            time.sleep(0.3)
        case b"spawn":
            for number in range(2):
                new = f"{n.decode()}.{number}"
                child.spool(n=new, do="quick", pad=new * 50)
                say("kept", new.encode())
    say("ended", n)
