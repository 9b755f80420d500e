"""Errors as problem documents (RFC 9457), all of them: one class to raise, one table from errors to statuses.

`{"type": "about:blank", "title": "Bad Request", "status": 400, "detail": "what is wrong and what is expected"}`. What
names single faults has them in `errors`, a list of up to a hundred like

    {"detail": "limit=0: expected …", "parameter": "limit", "value": "0", "expected": "a whole number from 1 to 500"}

with `pointer` (RFC 6901) instead of `parameter` for a place in a JSON body, and `line` (from 1) for one in a batch.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING

import msgspec
import structlog
from quart import Quart, Response, has_request_context, request
from werkzeug.exceptions import HTTPException, NotFound, RequestEntityTooLarge, RequestTimeout

from trispool.admin.faults import FaultyRequest
from trispool.errors import SpoolUnavailable, TaskNotFound, TaskRefused, TrispoolError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from trispool.admin.settings import AdminSettings

__all__ = ["Problem", "answer_errors", "document", "problem_of"]

RETRY_AFTER_SECONDS = 5
"""What a full or stopping spool tells its clients: a guess, long enough for a restart."""

_log = structlog.get_logger()


class Problem(Exception):
    """The request cannot be answered as asked.

    Args:
        status: The HTTP status.
        detail: What is wrong, for a person.
        headers: Additional headers of the answer.
        members: Additional members of the document.
    """

    def __init__(
        self, status: int, detail: str, *, headers: Mapping[str, str] | None = None, **members: object
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.headers = dict(headers or {})
        self.members = members

    def response(self) -> Response:
        """The answer."""
        return Response(
            msgspec.json.encode(document(self.status, self.detail, **self.members)),
            status=self.status,
            headers=self.headers,
            content_type="application/problem+json",
        )


def document(status: int, detail: str, **members: object) -> dict[str, object]:
    """A problem document, before encoding."""
    title = HTTPStatus(status).phrase
    return {"type": "about:blank", "title": title, "status": status, "detail": detail} | members


def problem_of(error: TrispoolError) -> Problem:
    """What a client is told of an error of the domain."""
    match error:
        case FaultyRequest():
            return Problem(error.status, str(error), errors=[fault.document() for fault in error.faults])
        case TaskRefused(status=429):
            return Problem(429, str(error), headers={"Retry-After": str(RETRY_AFTER_SECONDS)})
        case TaskRefused():
            return Problem(error.status, str(error))
        case TaskNotFound():
            return Problem(404, str(error))
        case SpoolUnavailable():
            return Problem(503, str(error), headers={"Retry-After": str(RETRY_AFTER_SECONDS)})
    return _unexpected(error)


def answer_errors(app: Quart, settings: AdminSettings) -> None:
    """Make `app` answer every error with a problem document."""

    async def on_problem(problem: Problem) -> Response:
        return problem.response()

    async def on_trispool_error(error: TrispoolError) -> Response:
        return problem_of(error).response()

    async def on_http_exception(error: HTTPException) -> Response:
        return _of_http_exception(error, settings).response()

    async def on_exception(error: Exception) -> Response:
        return _unexpected(error).response()

    app.register_error_handler(Problem, on_problem)
    app.register_error_handler(TrispoolError, on_trispool_error)
    app.register_error_handler(HTTPException, on_http_exception)
    app.register_error_handler(Exception, on_exception)


def _of_http_exception(error: HTTPException, settings: AdminSettings) -> Problem:
    """Quart's and Werkzeug's own: no such route, method not allowed, body too large or too slow."""
    status = error.code or 500
    if status >= 500:
        return _unexpected(error)
    match error:
        case NotFound():
            detail = "There is nothing at this address."
        case RequestEntityTooLarge():
            detail = f"The request body is larger than the {settings.max_body} bytes allowed."
        case RequestTimeout():
            detail = f"The request body was not here within {settings.body_timeout:g} s."
        case _:
            detail = error.description or HTTPStatus(status).description
    return Problem(status, detail, headers=dict(_own_headers(error.get_headers())))


def _own_headers(headers: Iterable[tuple[str, str]]) -> Iterable[tuple[str, str]]:
    """Without those that describe Werkzeug's HTML page."""
    return ((name, value) for name, value in headers if not name.lower().startswith("content-"))


def _unexpected(error: Exception) -> Problem:
    """A fault of ours: everything to the log, nothing to the client."""
    where = {"method": request.method, "path": request.path} if has_request_context() else {}
    _log.error("http_request_failed", exc_info=error, **where)
    return Problem(500, "The service failed to answer this request; its log says why.")
