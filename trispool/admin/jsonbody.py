"""JSON as a request's body has to be: UTF-8, no key twice or with lone surrogates, no NaN, not too deep. Pure."""

from __future__ import annotations

import itertools
import json
from typing import TYPE_CHECKING, Any, Final

from trispool.admin.faults import MAX_FAULTS, Fault, FaultyRequest, pointer

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["check_marks", "decode_object", "doubled"]

MAX_MARKS: Final = 100_000
"""Colons, and as many commas. The vars of a task have 65,535 bytes, base64 has neither, and 10,000 ids have 9,999."""

_TWICE: Final = object()
"""In place of the value of a key that comes twice."""


def check_marks(data: bytes) -> None:
    """See, without reading it, that a document has no more members and items than one that is right: these cost time.

    Raises:
        FaultyRequest: It has more.
    """
    if len(data) > MAX_MARKS and max(data.count(b":"), data.count(b",")) > MAX_MARKS:
        raise FaultyRequest([Fault("the JSON document has too many members or items")], status=413)


def decode_object(data: bytes) -> dict[str, Any]:
    """The JSON object that `data` are.

    Raises:
        FaultyRequest: They are not one, or a key comes twice.
    """
    check_marks(data)
    document, faults = _decode(data)
    if faults:
        raise FaultyRequest(faults)
    if not isinstance(document, dict):
        raise FaultyRequest([Fault(pointer="", value=document, expected="a JSON object")])
    return document


def doubled(data: bytes) -> list[Fault]:
    """A fault for each key that comes twice in what is JSON otherwise. (Most parsers let the last one win.)"""
    return _decode(data)[1]


def _decode(data: bytes) -> tuple[Any, list[Fault]]:
    try:
        document = _loads(data.decode())
        return document, list(itertools.islice(_bad_keys(document, ()), MAX_FAULTS))
    except UnicodeDecodeError as error:
        problem = f"the byte {error.start} is not UTF-8"
    except json.JSONDecodeError as error:
        problem = f"{error.msg[:1].lower()}{error.msg[1:]} at line {error.lineno}, column {error.colno}"
    except RecursionError:
        problem = "it is nested too deep"
    except ValueError:
        problem = "a number has too many digits"
    raise FaultyRequest([Fault(f"Not JSON: {problem}")])


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                members[key] = _TWICE
            seen.add(key)
    return members


def _no_constant(name: str) -> None:
    raise FaultyRequest([Fault(f"Not JSON: {name} is no number there")])


_loads: Final = json.JSONDecoder(object_pairs_hook=_pairs, parse_constant=_no_constant).decode


def _bad_keys(value: object, path: tuple[object, ...]) -> Iterator[Fault]:
    if isinstance(value, dict):
        for key, member in value.items():
            place = (*path, key)
            if member is _TWICE:
                yield Fault("given twice", pointer=pointer(*place), expected="every key once")
            elif _has_surrogates(key):
                yield Fault("lone surrogates have no UTF-8 form", pointer=pointer(*place))
            else:
                yield from _bad_keys(member, place)
    elif isinstance(value, list):
        for index, member in enumerate(value):
            yield from _bad_keys(member, (*path, index))


def _has_surrogates(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False
