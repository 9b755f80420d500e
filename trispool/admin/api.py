"""The JSON API of version 1, all routes under `/api/v1`; what it answers is described in `documents`.

| request | needs | answer |
| --- | --- | --- |
| `POST /spools/{name}/tasks` | enqueue | 201, `Location`, `{"id", "spool", "at"}`; what may be sent: see `enqueue` |
| the same with `application/x-ndjson` | enqueue | 201, `{"count", "ids"}`; see `Api.enqueue` |
| `GET /tasks?spool=&state=&q=&order=asc\\|desc&limit=&cursor=` | view | `{"tasks": […], "cursor"}` |
| `GET /tasks/{id}` | view | the task with `vars`, the beginning of its `body` and its `history` of attempts |
| `GET /tasks/{id}/body` | view | the bytes |
| `GET /spools`, `GET /spools/{name}` | view | `{"spools": […]}`; settings, counts, workers |
| `PATCH /spools/{name}` | operate | `{"frequency": 5, "paused": true}`, either or both; the spool |
| `POST /spools/{name}/scan` | operate | looks through the directory now; the spool afterwards |

Unknown members and query fields are refused, so that a misspelt filter does not mean "all". Every error is a problem
document (`problems`).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final, Literal, cast
from urllib.parse import quote

import msgspec
import trio
from quart import Blueprint, Response, request

from trispool.admin.auth import Role
from trispool.admin.documents import (
    accepted_document,
    page_document,
    refused_document,
    spool_document,
    task_document,
)
from trispool.admin.enqueue import NDJSON, parse_fields, parse_lines, parse_task
from trispool.admin.problems import Problem, problem_of
from trispool.errors import TaskNotFound, TaskRefused, TrispoolError
from trispool.task import Accepted, NewTask, TaskState

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from trispool.admin.settings import AdminSettings
    from trispool.control import Control, SpoolStatus

__all__ = ["Api"]

PREFIX: Final = "/api/v1"
MAX_PAGE: Final = 500
MAX_REPORTED: Final = 100
"""How many bad lines of a batch are named."""

SLICE: Final = 200
"""Lines of a batch parsed between two looks at the rest of the service: about a millisecond."""


class Api:
    """The views; each parses, asks `control` once, and answers.

    Args:
        control: The service.
        settings: Limits of a request.
    """

    def __init__(self, control: Control, settings: AdminSettings) -> None:
        self._control = control
        self._settings = settings
        self._routes: Sequence[tuple[str, str, Callable[..., Any], Role]] = (
            ("POST", "/spools/<name>/tasks", self.enqueue, Role.ENQUEUE),
            ("GET", "/tasks", self.tasks, Role.VIEW),
            ("GET", "/tasks/<task_id>", self.task, Role.VIEW),
            ("GET", "/tasks/<task_id>/body", self.body, Role.VIEW),
            ("GET", "/spools", self.spools, Role.VIEW),
            ("GET", "/spools/<name>", self.spool, Role.VIEW),
            ("PATCH", "/spools/<name>", self.change_spool, Role.OPERATE),
            ("POST", "/spools/<name>/scan", self.scan, Role.OPERATE),
        )

    def blueprint(self) -> Blueprint:
        """The routes."""
        blueprint = Blueprint("api", __name__, url_prefix=PREFIX)
        for method, rule, view, _ in self._routes:
            blueprint.add_url_rule(rule, view.__name__, view, methods=[method])
        return blueprint

    def roles(self) -> dict[str, Role]:
        """Endpoint to the role it needs."""
        return {f"api.{view.__name__}": role for _, _, view, role in self._routes}

    async def enqueue(self, name: str) -> Response:
        """Keep one task, or a batch of them.

        A batch is checked whole before any of it is kept: with a bad line nothing is, and the answer is 400 with an
        error for each. Its answer has one id a task, in order: `{"count": 2, "ids": ["…", "…"]}`, or a line each if
        the client prefers NDJSON. Should the store keep some and not others, the status is 207 (as in WebDAV, RFC
        4918), the id of the others is null, and `errors` names the line, status and reason of each.
        """
        spool = self._spool(name)
        body = await _read_body()
        if request.mimetype == NDJSON:
            return await self._enqueue_batch(spool, body)
        task = _for_spool(spool, parse_task(request.mimetype, request.mimetype_params, request.query_string, body))
        [result] = await self._control.enqueue([task], default_spool=name)
        if isinstance(result, TrispoolError):
            raise result
        location = f"{PREFIX}/tasks/{quote(result.id, safe='')}"
        return _json(accepted_document(result), 201, {"Location": location})

    async def _enqueue_batch(self, spool: SpoolStatus, body: bytes) -> Response:
        _query(())
        tasks, lines = await self._read_batch(spool, body)
        results = await self._control.enqueue(tasks, default_spool=spool.name)
        refused = [
            refused_document(result, line)
            for line, result in zip(lines, results, strict=True)
            if isinstance(result, TrispoolError)
        ]
        if len(refused) == len(results):
            first = problem_of(next(result for result in results if isinstance(result, TrispoolError)))
            raise Problem(first.status, first.detail, headers=first.headers, errors=refused[:MAX_REPORTED])
        status = 207 if refused else 201
        if request.accept_mimetypes.best_match(["application/json", NDJSON]) == NDJSON:
            answers = [
                accepted_document(result) if isinstance(result, Accepted) else refused_document(result, line)
                for line, result in zip(lines, results, strict=True)
            ]
            return Response(msgspec.json.Encoder().encode_lines(answers), status=status, content_type=NDJSON)
        ids = [result.id if isinstance(result, Accepted) else None for result in results]
        answer: dict[str, object] = {"count": len(ids) - len(refused), "ids": ids}
        return _json(answer | ({"errors": refused} if refused else {}), status)

    async def _read_batch(self, spool: SpoolStatus, body: bytes) -> tuple[list[NewTask], list[int]]:
        """The tasks of a batch and the lines they stand on.

        Raises:
            Problem: The batch is empty, too large, or has a bad line.
        """
        limit = self._settings.max_batch
        if body.count(b"\n") > 2 * limit:  # room for blank lines, but not for splitting gigabytes of them
            raise Problem(413, f"The batch has more than the {limit} lines allowed.")
        tasks: list[NewTask] = []
        lines: list[int] = []
        errors: list[dict[str, object]] = []
        for line, result in parse_lines(body):
            try:
                if isinstance(result, TaskRefused):
                    raise result
                tasks.append(_for_spool(spool, result))
                lines.append(line)
            except TaskRefused as error:
                errors.append({"line": line, "detail": str(error)})
            if line % SLICE == 0:
                await trio.lowlevel.checkpoint()
        if len(tasks) > limit:
            raise Problem(413, f"The batch has more than the {limit} lines allowed.")
        if errors:
            raise Problem(
                400,
                f"{len(errors)} of {len(errors) + len(tasks)} lines are bad; nothing was enqueued.",
                errors=errors[:MAX_REPORTED],
            )
        if not tasks:
            raise Problem(400, "The batch has no lines: expected one JSON document a line.")
        return tasks, lines

    async def tasks(self) -> Response:
        """A part of the list of tasks."""
        query = _query(("spool", "state", "q", "order", "limit", "cursor"))
        order = query.get("order", "asc")
        if order not in ("asc", "desc"):
            raise Problem(400, f"order={order!r:.60}: expected asc or desc")
        page = await self._control.tasks(
            spool=query.get("spool"),
            state=_state(query.get("state")),
            q=query.get("q"),
            order=cast("Literal['asc', 'desc']", order),
            limit=_limit(query.get("limit", "50")),
            cursor=query.get("cursor"),
        )
        return _json(page_document(page))

    async def task(self, task_id: str) -> Response:
        """One task."""
        _query(())
        return _json(task_document(await self._control.task(task_id)))

    async def body(self, task_id: str) -> Response:
        """The body of a task: bytes of unknown origin, so never shown in place by a browser."""
        _query(())
        detail = await self._control.task(task_id)
        if detail.body is None:
            raise TaskNotFound("This task has left the spool, and its body with it.")
        return Response(
            detail.body,
            content_type="application/octet-stream",
            headers={"Content-Disposition": 'attachment; filename="body"'},
        )

    async def spools(self) -> Response:
        """All spools."""
        _query(())
        return _json({"spools": [spool_document(status) for status in self._control.spools()]})

    async def spool(self, name: str) -> Response:
        """One spool."""
        _query(())
        return _json(spool_document(self._spool(name)))

    async def change_spool(self, name: str) -> Response:
        """Change settings of a spool, all or none of those that are given."""
        _query(())
        self._spool(name)
        changes = _changes(await _read_body())
        if "frequency" in changes:
            self._control.set_frequency(name, changes["frequency"])
        if "paused" in changes:
            (self._control.pause if changes["paused"] else self._control.resume)(name)
        return _json(spool_document(self._control.spool(name)))

    async def scan(self, name: str) -> Response:
        """Look through a spool now."""
        _query(())
        await self._control.scan(name)
        return _json(spool_document(self._spool(name)))

    def _spool(self, name: str) -> SpoolStatus:
        return self._control.spool(name)


def _json(content: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(content), status=status, headers=headers, content_type="application/json")


async def _read_body() -> bytes:
    """The request's body, within the limits of size and time."""
    encoding = request.headers.get("Content-Encoding", "identity")
    if encoding.lower() != "identity":
        raise Problem(
            415, f"Content-Encoding {encoding} is not understood here.", headers={"Accept-Encoding": "identity"}
        )
    return await request.get_data(cache=False, as_text=False, parse_form_data=False)


def _query(allowed: Collection[str]) -> dict[str, str]:
    """The fields of the query.

    Raises:
        Problem: One is not among `allowed`, or not UTF-8.
        TaskRefused: One comes twice.
    """
    try:
        query = {key.decode(): value.decode() for key, value in parse_fields(request.query_string).items()}
    except UnicodeDecodeError:
        raise Problem(400, "The query is not UTF-8.") from None
    for key in query:
        if key not in allowed:
            expected = f"expected only {', '.join(allowed)}" if allowed else "expected none"
            raise Problem(400, f"{key:.60}: unknown field of the query; {expected}")
    return query


def _state(text: str | None) -> TaskState | None:
    try:
        return TaskState(text) if text is not None else None
    except ValueError:
        raise Problem(400, f"state={text!r:.60}: expected one of {', '.join(TaskState)}") from None


def _limit(text: str) -> int:
    """The length of a page; more than `MAX_PAGE` is not an error, as the cursor leads on."""
    if not (text.isascii() and text.isdigit() and len(text) <= 9 and int(text) > 0):
        raise Problem(400, f"limit={text!r:.60}: expected a number from 1 to {MAX_PAGE}")
    return min(int(text), MAX_PAGE)


def _for_spool(spool: SpoolStatus, task: NewTask) -> NewTask:
    """`task`, if it is content with the spool that the address names.

    Raises:
        TaskRefused: Its var `spooler` wants another one.
    """
    if task.spool not in (None, spool.name, spool.directory):
        raise TaskRefused(f"spooler={task.spool!r:.60}: this address enqueues into the spool {spool.name} only")
    return task


def _changes(body: bytes) -> dict[str, Any]:
    """The changes that a PATCH asks for; every fault at once.

    Raises:
        Problem: It is not JSON, or a member is unknown or of no use.
    """
    if request.mimetype not in ("application/json", "application/merge-patch+json"):
        raise Problem(415, "Expected application/json.", headers={"Accept-Patch": "application/json"})
    try:
        changes = msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Problem(400, f"Not a JSON object: {error}") from None
    errors = []
    for key, value in changes.items():
        match key, value:
            case "paused", bool():
                continue
            case "frequency", int() | float() if not isinstance(value, bool) and 0 < value < math.inf:
                continue
            case "paused", _:
                detail = "expected true or false"
            case "frequency", _:
                detail = "expected seconds, a positive number"
            case _:
                detail = "unknown member; expected frequency or paused"
        errors.append({"pointer": "/" + key.replace("~", "~0").replace("/", "~1"), "detail": detail})
    if errors:
        raise Problem(
            400, "; ".join(f"{error['pointer'][1:]:.60}: {error['detail']}" for error in errors), errors=errors
        )
    return changes
