"""From a request to the tasks it asks for. Pure: bytes in, `NewTask` out or a `FaultyRequest` that names its faults.

What is right is read as fast as can be; what is not is looked at again by `diagnosis`, which says why.

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

Nothing is guessed: a key that comes twice, an unknown member, a time without offset, a `null` among vars are refused.
Numbers and booleans become the text that JSON has for them: `5`, `0.1`, `true`.
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote_to_bytes

import msgspec
from msgspec import UNSET, UnsetType
from werkzeug.exceptions import RequestEntityTooLarge
from werkzeug.sansio.multipart import Data, Epilogue, Field, File, MultipartDecoder, NeedData

from trispool.admin import diagnosis
from trispool.admin.faults import Fault, FaultyRequest
from trispool.admin.jsonbody import check_marks, doubled
from trispool.admin.moments import EXPECTED, parse_moment
from trispool.errors import TaskRefused
from trispool.packet import new_task

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from trispool.task import NewTask

__all__ = ["JSON", "NDJSON", "pairs_of", "parse_at", "parse_document", "parse_lines", "parse_task"]

JSON: Final = "application/json"
NDJSON: Final = "application/x-ndjson"
FORM: Final = "application/x-www-form-urlencoded"
MULTIPART: Final = "multipart/form-data"

MAX_FIELDS: Final = diagnosis.MAX_VARS
"""Of a form or query."""

MAX_FORM: Final = 4 * 65_535
"""Bytes of a form or query: an escaped byte of a var takes three."""

PIECE: Final = 1024 * 1024
"""Bytes of a multipart body that are looked through at once; nothing else in this process runs meanwhile."""

MAX_PART_HEADERS: Final = 2 * 1024 * 1024
"""Bytes of all headers of a multipart body; those of 10,000 fields take one."""

MAX_PARTS: Final = 10_000
"""Of a multipart body. A var takes at least five bytes of 65,535, so more than 13,107 cannot be right anyway."""

_spaced_colon: Final = re.compile(rb"\s:").search


class _Document(msgspec.Struct, forbid_unknown_fields=True):
    """A task as JSON. The values of `vars` are looked at by `_value`."""

    vars: dict[str, Any] | UnsetType = UNSET
    at: int | float | str | UnsetType | None = UNSET
    priority: int | float | UnsetType | None = UNSET
    body: str | UnsetType = UNSET


_decode_document: Final = msgspec.json.Decoder(_Document).decode


def parse_task(mimetype: str, options: Mapping[str, str], query: bytes, body: bytes) -> NewTask:
    """One task, of any content type but NDJSON.

    Args:
        mimetype: The content type in lower case without its parameters; empty if the request has none.
        options: Those parameters.
        query: The query string, still encoded.
        body: The body of the request.

    Raises:
        FaultyRequest: What is wrong, naming the member or field.
    """
    if mimetype in (JSON, FORM, MULTIPART) and query:
        raise FaultyRequest(
            [
                Fault(f"the vars of a request of type {mimetype} stand in its body", parameter=key, expected="no query")
                for key in dict.fromkeys(key.decode("utf-8", "replace") for key, _ in pairs_of(query))
            ]
            or [Fault(expected="no query")]
        )
    match mimetype:
        case "application/json":
            return parse_document(body)
        case "application/x-www-form-urlencoded":
            return _of_fields(pairs_of(body), b"")
        case "multipart/form-data":
            return _of_fields(*_parse_multipart(options.get("boundary", ""), body))
    return _of_fields(pairs_of(query), body)


def parse_document(data: bytes) -> NewTask:
    """One task from its JSON document.

    Raises:
        FaultyRequest: What is wrong.
    """
    check_marks(data)
    try:
        document = _decode_document(data)
        # This is the hot path of batches: counting keys on the way is what finding doubled ones costs.
        keys = 0
        vars: dict[bytes, bytes] = {}
        if document.vars is not UNSET:
            if len(document.vars) > MAX_FIELDS:  # to say what is wrong with each would take long
                raise FaultyRequest([Fault(pointer="/vars", expected=f"at most {MAX_FIELDS} vars")], status=413)
            keys = 1 + len(document.vars)
            for key, value in document.vars.items():
                if type(value) is str:
                    vars[key.encode()] = value.encode()
                else:
                    vars[key.encode()] = _value(value)
                    if type(value) is dict:
                        keys += 1
        at: float | str | None = None
        priority: int | None = None
        body = b""
        if document.at is not UNSET:
            at, keys = document.at, keys + 1
        if document.priority is not UNSET:
            priority, keys = _whole(document.priority), keys + 1
        if document.body is not UNSET:
            body, keys = _from_base64(document.body), keys + 1
        task = _task(vars, body, at, priority)
    except FaultyRequest:
        raise
    except (msgspec.DecodeError, UnicodeError, RecursionError, TaskRefused) as error:
        raise diagnosis.of_document(data, error) from None
    # A key has one colon. Only if there are more of them, in a URL say, is a closer look needed; only if there are more
    # than stand behind a quote, which a URL has not, does it cost something.
    if data.count(b":") != keys and (data.count(b'":') != keys or _spaced_colon(data)) and (twice := doubled(data)):
        raise FaultyRequest(twice)
    return task


def parse_lines(data: bytes) -> Iterator[tuple[int, NewTask | FaultyRequest]]:
    """The tasks of an NDJSON body: for each line that is not blank its number, from 1, and the task or its fault."""
    for number, line in enumerate(data.split(b"\n"), 1):
        if line and not line.isspace():
            try:
                yield number, parse_document(line)
            except FaultyRequest as error:
                yield number, error


def pairs_of(data: bytes) -> list[tuple[bytes, bytes]]:
    """The fields of a form or query (WHATWG URL, section 5.1), as bytes: a var need not be text.

    Raises:
        FaultyRequest: They are more than a task can have.
    """
    if len(data) > MAX_FORM or data.count(b"&") > MAX_FIELDS:
        raise FaultyRequest([Fault(f"more than {MAX_FORM} bytes or {MAX_FIELDS} fields")], status=413)
    pairs = []
    for part in data.split(b"&"):
        if part:
            key, _, value = part.replace(b"+", b" ").partition(b"=")
            pairs.append((unquote_to_bytes(key), unquote_to_bytes(value)))
    return pairs


def parse_at(value: float | str | None) -> float | None:
    """When a task shall run, in Unix seconds, or None for at once.

    Args:
        value: Unix seconds or ISO 8601, see the top of this module.

    Raises:
        TaskRefused: It is neither, or an ISO 8601 time without offset.
    """
    if value is None or value == "" or (isinstance(value, str) and value.isspace()):
        return None
    try:
        return parse_moment(value) or None
    except ValueError:
        raise TaskRefused(f"at={value!r:.60}: expected {EXPECTED}") from None


def _of_fields(pairs: Sequence[tuple[bytes, bytes]], body: bytes) -> NewTask:
    fields = dict(pairs)
    try:
        if len(fields) < len(pairs):
            raise TaskRefused("A field comes twice; a var has one value.")
        return _task(fields, body)
    except TaskRefused as error:
        raise diagnosis.of_fields(pairs, error) from None


def _task(vars: dict[bytes, bytes], body: bytes, at: float | str | None = None, priority: int | None = None) -> NewTask:
    """A task from its parts, whose vars may hold `at` and `priority` too."""
    if b"at" in vars:
        if at is not None:
            raise TaskRefused("at: given twice, beside the vars and among them")
        at = vars.pop(b"at").decode("utf-8", "replace")
    if b"priority" in vars and priority is not None:
        raise TaskRefused("priority: given twice, beside the vars and among them")
    return new_task(vars, body, at=parse_at(at), priority=priority)


def _value(value: object) -> bytes:
    """A value of `vars` in JSON, other than text, as bytes."""
    match value:
        case bool():
            return b"true" if value else b"false"
        case int() | float():
            return str(value).encode()
        case {"base64": str(encoded), **others} if not others:
            return _from_base64(encoded)
    raise TaskRefused(f"a value of vars: expected {diagnosis.VAR}")


def _whole(value: float | None) -> int | None:
    """A priority; JSON does not tell 4.0 from 4."""
    if value is None or value % 1 == 0:
        return value if value is None else int(value)
    raise TaskRefused(f"priority={value!r}: expected a whole number")


def _from_base64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise TaskRefused(f"expected {diagnosis.BASE64}: {error}") from None


def _check_part_headers(boundary: bytes, data: bytes) -> None:
    """See that a multipart body does not consist of headers, which Werkzeug reads slowly and without a limit."""
    total = 0
    start = data.find(b"--" + boundary)
    while start >= 0:
        end = data.find(b"\r\n\r\n", start)
        end = len(data) if end < 0 else end
        total += end - start
        if total > MAX_PART_HEADERS:
            raise FaultyRequest([Fault(f"more than {MAX_PART_HEADERS} bytes of headers of parts")], status=413)
        start = data.find(b"\n--" + boundary, end)


def _parse_multipart(boundary: str, data: bytes) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """The fields and the file of a multipart/form-data body (RFC 7578).

    Werkzeug's decoder is used without its form parser, which replaces what is not text.
    """
    if not boundary or not boundary.isascii():
        raise FaultyRequest([Fault(parameter="Content-Type", expected="the boundary of multipart/form-data")])
    _check_part_headers(boundary.encode("ascii"), data)
    decoder = MultipartDecoder(boundary.encode("ascii"), max_parts=MAX_PARTS)
    pieces = (data[start : start + PIECE] for start in range(0, len(data), PIECE))
    fields: list[tuple[bytes, bytes]] = []
    body: bytes | None = None
    part: Field | File | None = None
    content = bytearray()
    try:
        while not isinstance(event := decoder.next_event(), Epilogue):
            if isinstance(event, NeedData):
                decoder.receive_data(next(pieces, None))
            elif isinstance(event, Field | File):
                part, content = event, bytearray()
            elif isinstance(event, Data):
                content += event.data
                if event.more_data or part is None:
                    continue
                if isinstance(part, Field):
                    fields.append(((part.name or "").encode(), bytes(content)))
                elif part.filename or content:  # a browser sends an empty one for a file nobody chose
                    if body is not None:
                        raise FaultyRequest(
                            [Fault("a second file", parameter=part.name or "", expected="one file: the task's body")]
                        )
                    body = bytes(content)
    except (ValueError, RequestEntityTooLarge) as error:
        raise FaultyRequest([Fault(f"Not multipart/form-data: {error}")]) from None
    return fields, body or b""
