"""From a request to the tasks it asks for. Pure: bytes in, `NewTask` out or a `TaskRefused` that names the fault.

| content type | vars | body |
| --- | --- | --- |
| `application/json` | member `vars`: text, numbers, booleans, `{"base64": "…"}` for any bytes | member `body`, base64 |
| `application/x-ndjson` | one such document a line; blank lines are skipped | |
| `application/x-www-form-urlencoded` | the fields, any bytes | none |
| `multipart/form-data` | the fields, any bytes | the one file, if any |
| any other, or none | the query's fields, any bytes | the request's body |

When: member or field `at`, Unix seconds (a number, or a text that is one) or an ISO 8601 time with its offset
(`2031-05-04T12:00:00+02:00`, `…Z`); nothing or 0 is at once. How urgently: `priority`, an integer from 0. In every form
they may instead stand among the vars. Handlers see both among the vars, as with uWSGI, `at` in Unix seconds.

Nothing is guessed: a key that comes twice, an unknown member, a time without offset, a `null` are refused. Numbers and
booleans become the text that JSON has for them: `5`, `0.1`, `true`.
"""

from __future__ import annotations

import base64
import binascii
import re
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote_to_bytes

import msgspec
from werkzeug.exceptions import RequestEntityTooLarge
from werkzeug.sansio.multipart import Data, Epilogue, Field, File, MultipartDecoder

from trispool.errors import TaskRefused
from trispool.packet import new_task

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from trispool.task import NewTask

__all__ = ["NDJSON", "parse_at", "parse_fields", "parse_lines", "parse_task"]

JSON: Final = "application/json"
NDJSON: Final = "application/x-ndjson"
FORM: Final = "application/x-www-form-urlencoded"
MULTIPART: Final = "multipart/form-data"

MAX_PARTS: Final = 10_000
"""Of a multipart body. A var takes at least five bytes of 65,535, so more than 13,107 cannot be right anyway."""

_NUMBER = re.compile(r"\d+(\.\d*)?")


class _Document(msgspec.Struct, forbid_unknown_fields=True):
    """A task as JSON. The values of `vars` are looked at by `_value`, whose messages name the key."""

    vars: dict[str, Any] = {}  # msgspec copies it
    at: int | float | str | None = None
    priority: int | None = None
    body: str = ""


_decode_document = msgspec.json.Decoder(_Document).decode


def parse_task(mimetype: str, options: Mapping[str, str], query: bytes, body: bytes) -> NewTask:
    """One task, of any content type but NDJSON.

    Args:
        mimetype: The content type in lower case without its parameters; empty if the request has none.
        options: Those parameters.
        query: The query string, still encoded.
        body: The body of the request.

    Raises:
        TaskRefused: What is wrong, naming the member, field or key.
    """
    if mimetype in (JSON, FORM, MULTIPART) and query:
        raise TaskRefused(f"The vars of a request of type {mimetype} stand in its body; its query must be empty.")
    match mimetype:
        case "application/json":
            return parse_document(body)
        case "application/x-www-form-urlencoded":
            return _task(parse_fields(body), b"")
        case "multipart/form-data":
            return _task(*_parse_multipart(options.get("boundary", ""), body))
    return _task(parse_fields(query), body)


def parse_document(data: bytes) -> NewTask:
    """One task from its JSON document.

    Raises:
        TaskRefused: What is wrong.
    """
    try:
        document = _decode_document(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise TaskRefused(f"Not the JSON of a task: {error}") from None
    vars = {_utf8(key, "a key of vars"): _value(key, value) for key, value in document.vars.items()}
    return _task(vars, _from_base64(document.body, "body"), document.at, document.priority)


def parse_lines(data: bytes) -> Iterator[tuple[int, NewTask | TaskRefused]]:
    """The tasks of an NDJSON body: for each line that is not blank its number, from 1, and the task or its fault."""
    for number, line in enumerate(data.split(b"\n"), 1):
        if line and not line.isspace():
            try:
                yield number, parse_document(line)
            except TaskRefused as error:
                yield number, error


def parse_fields(data: bytes) -> dict[bytes, bytes]:
    """The fields of a form or query (WHATWG URL, section 5.1), as bytes: a var need not be text.

    Raises:
        TaskRefused: A field comes twice.
    """
    fields: dict[bytes, bytes] = {}
    for part in data.split(b"&"):
        if part:
            key, _, value = part.replace(b"+", b" ").partition(b"=")
            _set_once(fields, unquote_to_bytes(key), unquote_to_bytes(value))
    return fields


def parse_at(value: float | str | None, what: str = "at") -> float | None:
    """When a task shall run, in Unix seconds, or None for at once.

    Args:
        value: Unix seconds or ISO 8601, see the top of this module.
        what: Its name in messages.

    Raises:
        TaskRefused: It is neither, or an ISO 8601 time without offset.
    """
    try:
        if not isinstance(value, str):
            return float(value) if value else None
        text = value.strip()
        if not text or _NUMBER.fullmatch(text):
            return float(text or 0) or None
        moment = datetime.fromisoformat(text)
    except (ValueError, OverflowError):
        raise TaskRefused(
            f"{what}={value!r:.60}: expected Unix seconds or an ISO 8601 time such as 2031-05-04T12:00:00Z"
        ) from None
    if moment.tzinfo is None:
        raise TaskRefused(f"{what}={value!r:.60}: expected an offset after an ISO 8601 time, such as Z or +02:00")
    return moment.timestamp()


def _task(vars: dict[bytes, bytes], body: bytes, at: float | str | None = None, priority: int | None = None) -> NewTask:
    """A task from its parts, whose vars may hold `at` and `priority` too."""
    if b"at" in vars:
        if at is not None:
            raise TaskRefused("at: given twice, beside the vars and among them")
        at = vars.pop(b"at").decode("utf-8", "replace")
    if b"priority" in vars and priority is not None:
        raise TaskRefused("priority: given twice, beside the vars and among them")
    return new_task(vars, body, at=parse_at(at), priority=priority)


def _value(key: str, value: object) -> bytes:
    """A value of `vars` in JSON as bytes."""
    match value:
        case str():
            return _utf8(value, f"vars.{key}")
        case bool():
            return b"true" if value else b"false"
        case int() | float():
            return str(value).encode()
        case {"base64": str(encoded), **others} if not others:
            return _from_base64(encoded, f"vars.{key:.60}.base64")
    raise TaskRefused(f'vars.{key:.60}: expected text, a number, true, false, or {{"base64": "…"}}')


def _utf8(text: str, what: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise TaskRefused(f"{what:.60}: text with lone surrogates has no UTF-8 form") from None


def _from_base64(text: str, what: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise TaskRefused(f"{what}: expected base64 (RFC 4648 section 4): {error}") from None


def _parse_multipart(boundary: str, data: bytes) -> tuple[dict[bytes, bytes], bytes]:
    """The fields and the file of a multipart/form-data body (RFC 7578).

    Werkzeug's decoder is used without its form parser, which replaces what is not text.
    """
    if not boundary or not boundary.isascii():
        raise TaskRefused("multipart/form-data needs its boundary in the Content-Type")
    decoder = MultipartDecoder(boundary.encode("ascii"), max_parts=MAX_PARTS)
    decoder.receive_data(data)
    decoder.receive_data(None)
    fields: dict[bytes, bytes] = {}
    body: bytes | None = None
    part: Field | File | None = None
    content = b""
    try:
        while not isinstance(event := decoder.next_event(), Epilogue):
            if isinstance(event, Field | File):
                part, content = event, b""
            elif isinstance(event, Data):
                content += event.data
                if event.more_data or part is None:
                    continue
                if isinstance(part, Field):
                    _set_once(fields, (part.name or "").encode(), content)
                elif part.filename or content:  # a browser sends an empty one for a file nobody chose
                    if body is not None:
                        raise TaskRefused("At most one file: it becomes the body of the task.")
                    body = content
    except (ValueError, RequestEntityTooLarge) as error:
        raise TaskRefused(f"Not multipart/form-data: {error}") from None
    return fields, body or b""


def _set_once(fields: dict[bytes, bytes], key: bytes, value: bytes) -> None:
    if key in fields:
        raise TaskRefused(f"{key.decode('utf-8', 'backslashreplace'):.60}: given twice; a var has one value")
    fields[key] = value
