"""`GET /events`: what happens, as server-sent events. How long a reader may take for them, `connection` knows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from quart import Response, g, request

from trispool.admin.auth import Role
from trispool.admin.exchange import read_query
from trispool.admin.faults import Fault, FaultyRequest
from trispool.admin.models import EventsFrom
from trispool.admin.problems import Problem
from trispool.admin.routes import Route
from trispool.admin.streams import EventStream, Streams

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trispool.admin.auth import Accounts
    from trispool.control import Control

__all__ = ["EventViews"]

MAX_ID = 1000
"""Characters of a `Last-Event-ID`."""


class EventViews:
    """The view.

    Args:
        control: The service.
        accounts: A reader whose token is revoked is told no more.
        streams: All streams of the server.
    """

    def __init__(self, control: Control, accounts: Accounts, streams: Streams) -> None:
        self._control = control
        self._accounts = accounts
        self._streams = streams

    def routes(self) -> Sequence[Route]:
        """Its address."""
        return (Route("events", "GET", "/events", self.events, Role.VIEW),)

    async def events(self) -> Response:
        """What happens from now on, or after the last event that was seen."""
        after = read_query(EventsFrom).after
        # A browser that comes back asks at the same address, so the header is newer than the query.
        last = request.headers.get("Last-Event-ID")
        if last is not None and len(last) > MAX_ID:
            raise FaultyRequest([Fault(parameter="Last-Event-ID", value=last, expected="the id of an event")])
        if self._streams.is_full or self._streams.is_stopping:
            raise Problem(
                503,
                f"There are {self._streams.limit} readers of events, as many as there may be, or the service ends.",
                headers={"Retry-After": "5"},
            )
        headers = {"X-Accel-Buffering": "no"}  # nginx would collect events until it has a page of them
        if request.method == "HEAD":
            return Response(b"", content_type="text/event-stream", headers=headers)
        token, session = g.token, g.session
        stream = EventStream(
            self._streams, self._control.events(last or after), lambda: self._accounts.is_accepted(token, session)
        )
        return Response(stream, content_type="text/event-stream", headers=headers)
