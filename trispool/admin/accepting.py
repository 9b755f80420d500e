"""Accepting: many connections in one turn of the loop, and with little work for those that come to nothing.

A client that has left by the time its connection is accepted costs three system calls, and no Trio task. While there
is no room for one more, those that connect wait in the kernel's queue, at no cost to us.
"""

from __future__ import annotations

import contextlib
import socket
import time
from typing import TYPE_CHECKING, Final

import structlog
import trio

from trispool.bind import ERRORS_OF_ONE_CONNECTION, SHORT_OF_RESOURCES

if TYPE_CHECKING:
    from collections.abc import Callable

    from trispool.admin.crowd import Crowd

__all__ = ["accept_all"]

BEGUN_AT_ONCE: Final = 8
"""After so many connections that are to be served those that are served already have their turn. Each has some ten
turns of the loop until its answer is out, and none of these shall be long. …"""

TURN_SECONDS: Final = 0.003
"""… Also after so long, which is 200 that their clients have left."""

PAUSE_SECONDS: Final = 0.1
"""How long not to accept when descriptors or memory are short; as Trio's `serve_listeners`."""

_log = structlog.get_logger()


async def accept_all(
    listening: socket.socket,
    crowd: Crowd,
    may_connect: Callable[[str], bool] | None,
    serve: Callable[[socket.socket], object],
    refuse: Callable[[socket.socket], object],
) -> None:
    """Accept until cancelled.

    Args:
        listening: It does not block; closed in the end.
        crowd: Says whether there is room.
        may_connect: Whether this address may; None: all may.
        serve: Begins to serve a client.
        refuse: Begins to refuse one, for which there is no room.
    """
    with listening:
        while True:
            await trio.lowlevel.wait_readable(listening)
            ends_at = time.perf_counter() + TURN_SECONDS
            begun = 0
            while begun < BEGUN_AT_ONCE and time.perf_counter() < ends_at:
                try:
                    sock, address = listening.accept()
                except BlockingIOError:
                    break
                except OSError as error:
                    if error.errno in SHORT_OF_RESOURCES:
                        _log.error("http_accepting_pauses", reason=str(error), seconds=PAUSE_SECONDS)
                        await trio.sleep(PAUSE_SECONDS)
                        break
                    if error.errno in ERRORS_OF_ONE_CONNECTION:
                        continue
                    raise
                with contextlib.ExitStack() as stack:
                    stack.callback(sock.close)
                    # A Unix socket has no addresses, but its permissions.
                    is_allowed = may_connect is None or not isinstance(address, tuple) or may_connect(address[0])
                    if is_allowed and not _has_left(sock):
                        begin = serve if await crowd.wait_for_room() else refuse
                        stack.pop_all()
                        begin(sock)
                        begun += 1


def _has_left(sock: socket.socket) -> bool:
    """Whether a client has gone without having said anything."""
    try:
        return not sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except OSError:
        return True
