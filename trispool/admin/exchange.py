"""What all views share: reading a request, within its limits and with its faults at once, and answering it."""

from __future__ import annotations

import contextlib
import math
from typing import TYPE_CHECKING, Final, TypeVar, cast

import msgspec
import trio
from pydantic import ValidationError
from quart import Response, g, request
from werkzeug.exceptions import RequestTimeout

from trispool.admin.enqueue import pairs_of
from trispool.admin.faults import MAX_FAULTS, Fault, FaultyRequest, faults_in
from trispool.admin.jsonbody import decode_object
from trispool.admin.models import Nothing, Request
from trispool.admin.problems import Problem
from trispool.errors import TaskRefused

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from trispool.operating import Actor

__all__ = ["actor", "answer", "paging", "read_body", "read_json", "read_nothing", "read_optional_json", "read_query"]

MAX_JSON: Final = 4 * 1024 * 1024
"""Bytes of a JSON body that is not a task: room for 10,000 ids of 255 characters, and some more."""

JSON_TYPES: Final = ("application/json", "application/merge-patch+json")

Asked = TypeVar("Asked", bound=Request)


def actor() -> Actor:
    """Who sent this request; the guard has found out."""
    return cast("Actor", g.actor)


def answer(content: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A JSON document."""
    return Response(
        msgspec.json.encode(content),
        status=status,
        headers=None if headers is None else dict(headers),
        content_type="application/json",
    )


def read_query(model: type[Asked]) -> Asked:
    """The query of the request.

    Raises:
        FaultyRequest: All that is wrong with it.
    """
    fields: dict[str, str] = {}
    faults: list[Fault] = []
    for raw_key, raw_value in pairs_of(request.query_string):
        try:
            key, value = raw_key.decode(), raw_value.decode()
        except UnicodeDecodeError:
            faults.append(Fault(parameter=raw_key.decode("utf-8", "replace"), value=raw_value, expected="UTF-8"))
            continue
        if key in fields:
            faults.append(Fault("given twice", parameter=key, value=value, expected="every field once"))
        fields[key] = value
    return _validated(model, fields, faults, in_query=True)


@contextlib.contextmanager
def paging(cursor: str | None) -> Iterator[None]:
    """What is asked of the service in this block begins at `cursor`, which may be none of its own.

    Raises:
        FaultyRequest: So it is: there is no such page.
    """
    try:
        yield
    except TaskRefused as error:
        if cursor is None or error.status != 400:
            raise
        fault = Fault(parameter="cursor", value=cursor, expected="the cursor of the page before")
        raise FaultyRequest([fault], status=404) from None


async def read_json(model: type[Asked]) -> Asked:
    """The JSON body of the request; its query has to be empty.

    Raises:
        FaultyRequest: All that is wrong with it.
        Problem: It is of another content type, or too large.
    """
    read_query(Nothing)
    if request.mimetype not in JSON_TYPES:
        raise _not_json()
    body = await read_body(MAX_JSON)
    return _validated(model, decode_object(body), [], in_query=False)


async def read_optional_json(model: type[Asked]) -> Asked:
    """`read_json` where no body is as good as an empty object."""
    if request.mimetype in JSON_TYPES:
        return await read_json(model)
    read_query(Nothing)
    if await read_body(MAX_JSON):
        raise _not_json()
    return model()


async def read_nothing() -> None:
    """See that the request says no more than its address; an empty JSON object is fine. Raises as `read_json` does."""
    await read_optional_json(Nothing)


async def read_body(limit: int | None = None) -> bytes:
    """The body of the request.

    Args:
        limit: How many bytes it may have, if fewer than any request.

    Raises:
        Problem: It is compressed or too large.
        RequestTimeout: It did not come in time.
    """
    encoding = request.headers.get("Content-Encoding", "identity")
    if encoding.lower() != "identity":
        raise Problem(
            415, f"Content-Encoding {encoding} is not understood here.", headers={"Accept-Encoding": "identity"}
        )
    if limit is not None and (request.content_length or 0) > limit:
        raise _too_large(limit)
    if limit is None:
        return await request.get_data(cache=False, as_text=False, parse_form_data=False)
    body = b""
    try:
        with trio.fail_after(request.body_timeout or math.inf):
            async for part in request.body:
                body += part
                if len(body) > limit:  # a request in chunks has not said so
                    raise _too_large(limit)
    except trio.TooSlowError:
        raise RequestTimeout from None
    return body


def _too_large(limit: int) -> Problem:
    return Problem(413, f"The request body is larger than the {limit} bytes allowed here.")


def _not_json() -> Problem:
    headers = {"Accept-Patch" if request.method == "PATCH" else "Accept-Post": JSON_TYPES[0]}
    return Problem(415, "Expected the content type application/json.", headers=headers)


def _validated(model: type[Asked], data: Mapping[str, object], faults: list[Fault], *, in_query: bool) -> Asked:
    try:
        asked = model.model_validate(data)
    except ValidationError as error:
        faults += faults_in(error, model, data, in_query=in_query)
        raise FaultyRequest(faults[:MAX_FAULTS]) from None
    if faults:
        raise FaultyRequest(faults[:MAX_FAULTS])
    return asked
