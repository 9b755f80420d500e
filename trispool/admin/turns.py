"""Strangers' requests, a few at a time: a crowd of them shall not keep those waiting who have a token.

A request takes some ten turns of the loop, and each turn as long as all requests that are worked on in it: with a
thousand of them, most of a second. So who shows neither token nor cookie waits for one of few places, until his answer
begins; to send it costs little, and may take as long as the client likes. Whether the token is good is not asked here:
this is for crowds, not against somebody who means it.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final

import trio

from trispool.admin.guard import is_stranger

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hypercorn.typing import ASGIFramework, ASGIReceiveCallable, ASGISendCallable, ASGISendEvent, Scope

__all__ = ["InTurn"]

PLACES: Final = 4
"""Requests of strangers at once; nearly all that they do is work for one processor."""


class InTurn:
    """An application in front of which strangers wait; to be called as it.

    Args:
        app: The application.
    """

    def __init__(self, app: ASGIFramework) -> None:
        self._app = app
        self._places = trio.Semaphore(PLACES)

    async def __call__(self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        """One request."""
        if scope["type"] != "http" or not is_stranger(headers := dict(scope["headers"])):
            await self._app(scope, receive, send)
            return
        with contextlib.ExitStack() as place:
            # Who has still to send a body would keep a place for as long as he likes; few addresses take one.
            if not _has_body(headers):
                await self._places.acquire()
                place.callback(self._places.release)

            async def send_on(event: ASGISendEvent) -> None:
                place.close()
                await send(event)

            await self._app(scope, receive, send_on)


def _has_body(headers: Mapping[bytes, bytes]) -> bool:
    return b"transfer-encoding" in headers or headers.get(b"content-length", b"0") != b"0"
