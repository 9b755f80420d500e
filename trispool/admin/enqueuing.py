"""`POST /spools/{name}/tasks`: one task or a batch, and never twice under one `Idempotency-Key`.

What may be sent is described in `enqueue`. A batch is checked whole before any of it is kept: with a bad line nothing
is, and the answer is 400 with an error for each. Its answer has one id a task, in order: `{"count": 2, "ids": ["…",
"…"]}`, or a line each if the client prefers NDJSON. Should the store keep some and not others, the status is 207 (as in
WebDAV, RFC 4918), the id of the others is null, and `errors` names the line, status and reason of each.
"""

from __future__ import annotations

import functools
import re
from hashlib import sha256
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

import msgspec
import trio
from quart import Response, request

from trispool.admin.auth import Role
from trispool.admin.documents import accepted_document, refused_document
from trispool.admin.enqueue import JSON, NDJSON, parse_lines, parse_task
from trispool.admin.exchange import actor, answer, read_body, read_query
from trispool.admin.faults import Fault, FaultyRequest
from trispool.admin.models import Nothing
from trispool.admin.problems import Problem, problem_of
from trispool.admin.routes import Route
from trispool.errors import TrispoolError
from trispool.operating import OnceKey
from trispool.task import Accepted, NewTask

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trispool.admin.settings import AdminSettings
    from trispool.control import Control, SpoolStatus

__all__ = ["EnqueueViews"]

MAX_REPORTED: Final = 100
"""How many faults of a batch are named."""

SLICE: Final = 200
"""Lines of a batch parsed between two looks at the rest of the service: about a millisecond."""

REPLAYED: Final = {"Idempotent-Replayed": "true"}
"""Says that the answer is that of an earlier request with the same key."""

THREAD_BYTES: Final = 256 * 1024
"""What takes longer to read, some milliseconds, is read in a thread."""

_is_key: Final = re.compile(r"[\x21-\x7e]{1,255}").fullmatch


class EnqueueViews:
    """The view.

    Args:
        control: The service.
        settings: Limits of a request.
    """

    def __init__(self, control: Control, settings: AdminSettings) -> None:
        self._control = control
        self._settings = settings
        self._threads = trio.CapacityLimiter(2)

    def routes(self) -> Sequence[Route]:
        """Its address."""
        return (Route("enqueue", "POST", "/spools/<name>/tasks", self.enqueue, Role.ENQUEUE),)

    async def enqueue(self, name: str) -> Response:
        """Keep one task, or a batch of them."""
        spool = self._control.spool(name)
        body = await read_body()
        if request.mimetype == NDJSON:
            return await self._enqueue_batch(spool, body)
        parse = functools.partial(parse_task, request.mimetype, request.mimetype_params, request.query_string, body)
        is_large = len(body) > THREAD_BYTES
        task = _for_spool(spool, await trio.to_thread.run_sync(parse, limiter=self._threads) if is_large else parse())
        [result], replayed = await self._keep([task], name)
        if isinstance(result, TrispoolError):
            raise result
        headers = {"Location": f"../../tasks/{quote(result.id, safe='')}"}
        return answer(accepted_document(result), 201, headers | REPLAYED if replayed else headers)

    async def _keep(self, tasks: Sequence[NewTask], spool: str) -> tuple[Sequence[Accepted | TrispoolError], bool]:
        """Enqueue them, unless that was done before under this request's key; then what came of it, and True."""
        key = request.headers.get("Idempotency-Key")
        if key is None:
            return await self._control.enqueue(tasks, default_spool=spool), False
        if not _is_key(key):
            raise FaultyRequest(
                [Fault(parameter="Idempotency-Key", value=key, expected="1 to 255 visible ASCII characters")]
            )
        # Of what is asked for, not of the bytes: multipart has another boundary each time it is sent.
        asked = repr((request.path, request.query_string, request.mimetype)).encode("utf-8", "surrogateescape")
        # 64 MiB take 50 ms.
        fingerprint = await trio.to_thread.run_sync(_fingerprint, asked, tasks, limiter=self._threads)
        once = OnceKey(key, actor().name, fingerprint)
        return await self._control.enqueue_once(once, tasks, default_spool=spool)

    async def _enqueue_batch(self, spool: SpoolStatus, body: bytes) -> Response:
        read_query(Nothing)
        tasks, lines = await self._read_batch(spool, body)
        results, replayed = await self._keep(tasks, spool.name)
        refused = [
            refused_document(result, line)
            for line, result in zip(lines, results, strict=True)
            if isinstance(result, TrispoolError)
        ]
        if len(refused) == len(results):
            first = problem_of(next(result for result in results if isinstance(result, TrispoolError)))
            raise Problem(first.status, first.detail, headers=first.headers, errors=refused[:MAX_REPORTED])
        status = 207 if refused else 201
        headers = REPLAYED if replayed else {}
        if request.accept_mimetypes.best_match([JSON, NDJSON]) == NDJSON:
            answers = [
                accepted_document(result) if isinstance(result, Accepted) else refused_document(result, line)
                for line, result in zip(lines, results, strict=True)
            ]
            content = msgspec.json.Encoder().encode_lines(answers)
            return Response(content, status=status, headers=headers, content_type=NDJSON)
        ids = [result.id if isinstance(result, Accepted) else None for result in results]
        document: dict[str, object] = {"count": len(ids) - len(refused), "ids": ids}
        return answer(document | ({"errors": refused} if refused else {}), status, headers)

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
        bad = 0
        for line, result in parse_lines(body):
            try:
                if isinstance(result, FaultyRequest):
                    raise result
                tasks.append(_for_spool(spool, result))
                lines.append(line)
            except FaultyRequest as error:
                bad += 1
                errors += (fault.document(line) for fault in error.faults)
            if line % SLICE == 0 or bad:  # why a line is bad takes long to say
                await trio.lowlevel.checkpoint()
                if len(errors) > MAX_REPORTED:
                    break
        if len(tasks) > limit:
            raise Problem(413, f"The batch has more than the {limit} lines allowed.")
        if bad:
            more = ", and then no further were looked at" if len(errors) > MAX_REPORTED else ""
            raise Problem(
                400,
                f"{bad} of {bad + len(tasks)} lines are bad{more}; nothing was enqueued.",
                errors=errors[:MAX_REPORTED],
            )
        if not tasks:
            raise Problem(400, "The batch has no lines: expected one JSON document a line.")
        return tasks, lines


def _fingerprint(asked: bytes, tasks: Sequence[NewTask]) -> bytes:
    """What tells a request from others: how it was sent, and the tasks in it."""
    digest = sha256(b"%d:%s" % (len(asked), asked))
    for task in tasks:
        # With the lengths of its parts before them, no two lists of tasks are the same bytes.
        digest.update(repr((task.at, task.priority, task.spool, len(task.payload), len(task.body))).encode())
        digest.update(task.payload)
        digest.update(task.body)
    return digest.digest()


def _for_spool(spool: SpoolStatus, task: NewTask) -> NewTask:
    """`task`, if it is content with the spool that the address names.

    Raises:
        FaultyRequest: Its var `spooler` wants another one.
    """
    if task.spool not in (None, spool.name, spool.directory):
        expected = f"{spool.name}, the spool of this address, or its directory"
        in_json = request.mimetype in (JSON, NDJSON)
        place = {"pointer": "/vars/spooler"} if in_json else {"parameter": "spooler"}
        raise FaultyRequest([Fault(value=task.spool, expected=expected, **place)])
    return task
