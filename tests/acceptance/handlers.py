"""Handlers of the acceptance tests: they tell what they do, and wait for what they are told."""

from __future__ import annotations

import json
import os
import socket
import time

import uwsgi

_telling = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)


def tell(**what: object) -> None:
    _telling.sendto(json.dumps({"pid": os.getpid(), **what}).encode(), os.environ["TELLING"])


def legacy(env: dict[bytes | str, bytes]) -> int:
    name = env.get(b"do", b"note").decode()
    n = env.get(b"n", b"").decode()
    body = env.get("body", b"")
    tell(event=name, n=n, at=time.time(), size=len(body), task=os.path.basename(env["spooler_task_name"]).decode())
    if name == "wait":
        # Until the test has made the file of that name.
        while not os.path.exists(n):
            time.sleep(0.005)
        tell(event="waited", n=n)
    if name == "retry":
        return uwsgi.SPOOL_RETRY
    if name == "fail":
        raise ValueError("on purpose")
    if name == "exit":
        os._exit(7)
    if name == "print":
        print("a line of", n)
    return uwsgi.SPOOL_OK


uwsgi.spooler = legacy
tell(event="loaded")
