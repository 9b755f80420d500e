"""How values of an annotation travel as a var, which is bytes. Pure.

| annotation | on the wire | notes |
| --- | --- | --- |
| none, `str`, `Any`, `object` | UTF-8 text | |
| `bytes` | as it is | |
| `int`, `float` | decimal text | |
| `bool` | `true`, `false` | also read: 1/0, yes/no, on/off, in any case |
| `Literal[...]`, an enum | text of the value | anything else is an error |
| `list`, `tuple`, `set`, `frozenset`, `dict` and their `[...]` | JSON | the elements are not looked at |
| `X | None` | as X; `null` or nothing is None | for text and bytes only a missing var is None: `null` is a name, too |
| `X | Y` | as the first that fits | text and bytes are tried last |
| everything else | JSON | |
"""

from __future__ import annotations

import enum
import inspect
import json
import types
import typing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, Union

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["LENIENT_TEXT", "MISSING", "TEXT", "Kind", "kind_of"]

MISSING: Final = inspect.Parameter.empty
"""The annotation, or the default, of a parameter that has none."""

_TRUE: Final = frozenset({b"true", b"1", b"yes", b"on"})
_FALSE: Final = frozenset({b"false", b"0", b"no", b"off"})


@dataclass(frozen=True, slots=True)
class Kind:
    """How values of one annotation travel.

    Attributes:
        expected: For messages.
        decode: Raises ValueError.
        encode: Raises TypeError or ValueError.
        textual: Whether every byte string, or every text, is a value, so that none is left to mean None.
    """

    expected: str
    decode: Callable[[bytes], Any]
    encode: Callable[[Any], bytes]
    textual: bool = False


def kind_of(annotation: object) -> tuple[Kind, bool]:
    """How values of this annotation travel, and whether None is one of them."""
    while typing.get_origin(annotation) is typing.Annotated or isinstance(annotation, typing.NewType):
        if isinstance(annotation, typing.NewType):
            annotation = annotation.__supertype__
        else:
            annotation = typing.get_args(annotation)[0]
    if typing.get_origin(annotation) in (Union, types.UnionType):
        members = typing.get_args(annotation)
        optional = type(None) in members
        kinds = [kind_of(member)[0] for member in members if member is not type(None)]
        return kinds[0] if len(kinds) == 1 else _union(kinds), optional
    if typing.get_origin(annotation) is Literal:
        values = typing.get_args(annotation)
        return _choice({_to_bytes(value): value for value in values}), None in values
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return _choice({_to_bytes(member.value): member for member in annotation}), False
    container = typing.get_origin(annotation) or annotation
    if container in _CONTAINERS:
        return _json_container(container), False
    return _KINDS.get(annotation, _JSON), False


def _to_bytes(value: object) -> bytes:
    """The wire form that needs no annotation: text for scalars, JSON for the rest."""
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    if isinstance(value, enum.Enum):
        return _to_bytes(value.value)
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, bool):
        return b"true" if value else b"false"
    if isinstance(value, int | float):
        return repr(value).encode()
    return _to_json(value)


def _to_json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def _to_text(value: object) -> bytes:
    if value is None:
        raise TypeError("None is not text")
    return _to_bytes(value)


def _to_number(value: object) -> bytes:
    return b"%d" % value if isinstance(value, bool) else _to_bytes(value)


def _to_plain_bytes(value: object) -> bytes:
    if not isinstance(value, bytes | bytearray | memoryview | str):
        raise TypeError("not bytes")
    return _to_bytes(value)


def _read_bool(value: bytes) -> bool:
    value = value.strip().lower()
    if value in _TRUE:
        return True
    if value in _FALSE:
        return False
    raise ValueError


def _union(kinds: list[Kind]) -> Kind:
    ordered = sorted(kinds, key=lambda kind: kind.textual)  # stable: as written, but text last

    def decode(value: bytes) -> object:
        for kind in ordered:
            try:
                return kind.decode(value)
            except ValueError:
                continue
        raise ValueError

    return Kind(" or ".join(kind.expected for kind in kinds), decode, _to_bytes, ordered[-1].textual)


def _choice(choices: dict[bytes, Any]) -> Kind:
    def decode(value: bytes) -> object:
        try:
            return choices[value]
        except KeyError:
            raise ValueError from None

    return Kind(f"one of {', '.join(key.decode(errors='replace') for key in choices)}", decode, _to_bytes)


def _json_container(container: Callable[[Any], Any]) -> Kind:
    written = dict if container is dict else list

    def decode(value: bytes) -> object:
        data = json.loads(value)
        if not isinstance(data, written):
            raise ValueError
        return data if container is written else container(data)

    def encode(value: object) -> bytes:
        return _to_json(list(value) if isinstance(value, tuple | set | frozenset) else value)

    return Kind(f"a JSON {'object' if written is dict else 'array'}", decode, encode)


_CONTAINERS: Final = (list, tuple, set, frozenset, dict)
TEXT: Final = Kind("UTF-8 text", bytes.decode, _to_text, textual=True)
LENIENT_TEXT: Final = Kind("text", lambda value: value.decode(errors="surrogateescape"), _to_text, textual=True)
_JSON: Final = Kind("JSON", json.loads, _to_json)
_KINDS: Final[dict[Any, Kind]] = {
    MISSING: TEXT,
    str: TEXT,
    Any: TEXT,
    object: TEXT,
    bytes: Kind("bytes", bytes, _to_plain_bytes, textual=True),
    int: Kind("a whole number", int, _to_number),
    float: Kind("a number", float, _to_number),
    bool: Kind("true or false", _read_bool, _to_bytes),
}
