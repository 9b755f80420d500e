"""Who asked for what: a log line for each answered request, and counts of them for the metrics.

What is known of a request only where it is handled (who sent it, by which rule it was routed) is put into the `state`
of its ASGI scope, where the server finds it when the answer has been sent. Queries, headers and bodies are never looked
at: they hold vars, tokens and cookies.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import structlog
from hypercorn.logging import Logger
from hypercorn.protocol.events import Body, Event, Response
from quart import Quart, g, request

from trispool.httpcounts import UNMATCHED, HttpCounts

if TYPE_CHECKING:
    import h11
    from hypercorn.config import Config
    from hypercorn.typing import HTTPScope, ResponseSummary, WWWScope
    from quart import Response as QuartResponse

__all__ = ["AccessLog", "note_answer", "note_requests"]

_PROBES: Final = frozenset({"/healthz", "/readyz", "/metrics"})
"""Machines ask these every few seconds; that they were answered well is logged as `debug`."""

_KEY: Final = "trispool.access"

_log = structlog.get_logger()


@dataclass(slots=True)
class _Access:
    """What is known of one request.

    Attributes:
        actor: The name of the token it came with, or None.
        route: The rule by which it was routed, such as `/api/v1/tasks/<task_id>`.
        status: Of its answer, or None: there is none yet.
        sent: Bytes of its answer's content so far.
    """

    actor: str | None = None
    route: str | None = None
    status: int | None = None
    sent: int = 0


def note_requests(app: Quart) -> None:
    """Have the log know who sends the requests of `app`, and which rules they fit. The guard says who: `g.actor`."""

    async def note(response: QuartResponse) -> QuartResponse:
        access = _access(request.scope)
        actor = g.get("actor")
        access.actor = actor and actor.name
        access.route = request.url_rule.rule if request.url_rule is not None else None
        return response

    app.after_request(note)


def note_answer(scope: HTTPScope, event: Event) -> None:
    """A part of an answer is being sent."""
    if isinstance(event, Response):
        _access(scope).status = event.status_code
    elif isinstance(event, Body):
        _access(scope).sent += len(event.data)


class AccessLog(Logger):
    """Hypercorn's log lines as ours."""

    def __init__(self, config: Config) -> None:
        self.access_logger = None
        self.error_logger = None
        self._counts: HttpCounts = getattr(config, "counts", HttpCounts())

    async def access(self, request: WWWScope, response: ResponseSummary | None, request_time: float) -> None:
        """Log and count an answered request, or one whose sender left before its answer was sent."""
        access = _access(request)
        status = access.status
        client = request["client"]
        is_probe = access.route in _PROBES and status is not None and status < 400
        (_log.debug if is_probe else _log.info)(
            "http_request",
            method=request.get("method", ""),
            path=request["path"],
            route=access.route,
            status=status,
            seconds=round(request_time, 6),
            bytes=access.sent,
            actor=access.actor,
            client=client[0] if client else "unix",
        )
        counts = self._counts
        route = access.route or UNMATCHED
        method = str(request.get("method", "")) if access.route else ""
        counts.requests[method, route, "none" if status is None else str(status)] += 1
        counts.seconds[route] += request_time
        counts.sent[route] += access.sent

    def refused(
        self, status: int, client: tuple[str, int] | None, request: h11.Request | None, route: str | None
    ) -> None:
        """Log and count what was answered with `status` without the application; `request`: None if it was none."""
        method = request and request.method.decode("ascii").upper()
        path = request and request.target.partition(b"?")[0].decode("ascii")
        name = client[0] if client else "unix"
        _log.info("http_request", method=method, path=path, route=route, status=status, actor=None, client=name)
        self._counts.requests[(method or "") if route else "", route or UNMATCHED, str(status)] += 1

    async def exception(self, message: str, *args: object, **kwargs: object) -> None:
        """Log the exception that is being handled: one that the application let through."""
        _log.exception("http_application_failed")


def _access(scope: Any) -> _Access:  # noqa: ANN401 # hypercorn's and Quart's types of it differ
    access: _Access = scope["state"].setdefault(_KEY, _Access())
    return access
