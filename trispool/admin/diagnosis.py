"""Why a new task was refused: its faults, found by looking at each part by itself. Pure, and never in a hurry."""

from __future__ import annotations

import base64
import binascii
import itertools
import math
from typing import TYPE_CHECKING, Any, Final

from trispool.admin import moments
from trispool.admin.faults import MAX_FAULTS, Fault, FaultyRequest, pointer
from trispool.admin.jsonbody import decode_object
from trispool.errors import TaskRefused
from trispool.packet import new_task
from trispool.task import MAX_PRIORITY

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

__all__ = ["BASE64", "VAR", "of_document", "of_fields"]

MAX_VARS: Final = 65_535 // 4
"""Each takes four bytes for its lengths."""

VAR: Final = 'text, a number, true, false, or {"base64": "…"}'
BASE64: Final = "base64 (RFC 4648 section 4)"
_AT: Final = f"{moments.EXPECTED}; 0 or nothing: at once"
_PRIORITY: Final = f"a whole number from 0 to {MAX_PRIORITY}"
_SPECIAL: Final = {b"at": _AT, b"priority": _PRIORITY, b"spooler": "the name or the directory of a spool"}
_MEMBERS: Final = {"vars": "an object", "at": _AT, "priority": _PRIORITY, "body": BASE64}


def of_document(data: bytes, error: Exception) -> FaultyRequest:
    """What is wrong with a JSON document.

    Args:
        data: What was sent.
        error: What was found first; all there is to say if a task is only too large as a whole.
    """
    try:
        document = decode_object(data)
    except FaultyRequest as faulty:
        return faulty
    return _conclude(_in_document(document), error)


def of_fields(pairs: Sequence[tuple[bytes, bytes]], error: Exception) -> FaultyRequest:
    """What is wrong with the fields of a form or query."""
    return _conclude(_in_fields(pairs), error)


def _conclude(found: Iterator[tuple[Fault, int]], error: Exception) -> FaultyRequest:
    first = list(itertools.islice(found, MAX_FAULTS))
    if not first:
        return FaultyRequest([Fault(str(error))], status=error.status if isinstance(error, TaskRefused) else 400)
    faults, statuses = zip(*first, strict=True)
    return FaultyRequest(faults, status=statuses[0] if len(set(statuses)) == 1 else 400)


def _at(place: Mapping[str, str], fault: Fault) -> Fault:
    """`fault`, with its place."""
    return Fault(fault.problem, value=fault.value, expected=fault.expected, **place)


def _in_fields(pairs: Sequence[tuple[bytes, bytes]]) -> Iterator[tuple[Fault, int]]:
    fields: dict[bytes, bytes] = {}
    for key, value in pairs:
        if key in fields:
            yield Fault("given twice; a var has one value", parameter=_text(key), value=value), 400
        fields[key] = value
    for key, value in fields.items():
        for fault, status in _in_var(key, value, value):
            yield _at({"parameter": _text(key)}, fault), status


def _in_document(document: Mapping[str, Any]) -> Iterator[tuple[Fault, int]]:
    vars = document.get("vars")
    for name, value in document.items():
        place = pointer(name)
        if name == "vars" and isinstance(value, dict):
            for key, member in itertools.islice(value.items(), MAX_VARS):
                yield from _in_member(key, member)
        elif name not in _MEMBERS:
            yield Fault("unknown member", pointer=place, value=value, expected=f"one of {', '.join(_MEMBERS)}"), 400
        elif not _is_good(name, value):
            yield Fault(pointer=place, value=value, expected=_MEMBERS[name]), 400
        elif value is not None and isinstance(vars, dict) and name in vars:
            yield Fault("given twice, beside the vars and among them", pointer=place), 400


def _is_good(name: str, value: object) -> bool:
    """Whether a member of the document other than good vars is what it should be."""
    if isinstance(value, bool):
        return False
    match name, value:
        case "at", None | int() | float() | str():
            return not _is_bad_at(value)
        case "priority", None:
            return True
        case "priority", int() | float():
            return math.isfinite(value) and value == int(value) and 0 <= value <= MAX_PRIORITY
        case "body", str():
            return _is_base64(value)
    return False


def _in_member(key: str, value: object) -> Iterator[tuple[Fault, int]]:
    """The faults of one member of `vars`."""
    place = pointer("vars", key)
    try:
        raw_key = key.encode()
        match value:
            case str():
                raw = value.encode()
            case bool():
                raw = b"true" if value else b"false"
            case int() | float():
                raw = str(value).encode()
            case {"base64": encoded, **others} if not others:
                if not isinstance(encoded, str) or not _is_base64(encoded):
                    yield Fault(pointer=f"{place}/base64", value=encoded, expected=BASE64), 400
                    return
                raw = base64.b64decode(encoded)
            case _:
                yield Fault(pointer=place, value=value, expected=VAR), 400
                return
    except UnicodeEncodeError:
        yield Fault("lone surrogates have no UTF-8 form", pointer=place, value=value), 400
        return
    for fault, status in _in_var(raw_key, raw, value):
        yield _at({"pointer": place}, fault), status


def _in_var(key: bytes, raw: bytes, value: object) -> Iterator[tuple[Fault, int]]:
    """The faults of one var, without their place.

    Args:
        key: Its key.
        raw: Its value.
        value: The same as it was sent.
    """
    if key == b"at":
        if _is_bad_at(raw.decode("utf-8", "replace")):
            yield Fault(value=value, expected=_SPECIAL[key]), 400
        return
    try:
        new_task({key: raw})
    except TaskRefused as error:
        if key in _SPECIAL and error.status == 400:
            yield Fault(value=value, expected=_SPECIAL[key]), 400
        else:
            yield Fault(str(error), value=value), error.status


def _is_bad_at(value: object) -> bool:
    if value is None or (isinstance(value, str) and not value.strip()):
        return False
    try:
        moments.parse_moment(value)
    except ValueError:
        return True
    return False


def _is_base64(text: str) -> bool:
    try:
        base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return False
    return True


def _text(key: bytes) -> str:
    return key.decode("utf-8", "backslashreplace")
