"""Handlers of the fault scenarios: they tell what they were given, and fail where they are told to."""

from __future__ import annotations

import json
import os
import socket
import zlib

from trispool import Retry, handler

_telling = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
_tried: set[str] = set()


def tell(**what: object) -> None:
    """Not through a file: that might be what is made to fail."""
    _telling.sendto(json.dumps({"pid": os.getpid(), **what}).encode(), os.environ["TELLING"])


@handler
def told(n: str, check: str, do: str = "", body: bytes = b"") -> None:
    """Tells that it ran, and whether the task is as it was sent."""
    if do == "retry" and n not in _tried:
        _tried.add(n)
        raise Retry
    tell(event="ran", n=n, good=check == str(zlib.crc32(n.encode() + body)))


@handler(retries=0)
def doomed(n: str, check: str, doom: str, body: bytes = b"") -> None:
    """Fails for good while there is a file of that name."""
    if os.path.exists(doom):
        raise ValueError("on purpose")
    tell(event="ran", n=n, good=check == str(zlib.crc32(n.encode() + body)))


tell(event="loaded")
