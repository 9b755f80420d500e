"""From a call's arguments to a task's vars, and back: by the annotations of the handler's function. Pure.

A var is bytes. What it becomes is decided by the annotation of the parameter it is for:

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
| `Task` | | gets the task itself |
| everything else | JSON | |

Three more rules: a parameter named `body` gets the task's body (as bytes, unless its annotation says otherwise); a var
nobody asked for is left out; a `**` parameter gets all vars that no other parameter names, but for the special keys.
"""

from __future__ import annotations

import enum
import inspect
import json
import types
import typing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, Union

from trispool.task import Task

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["SPECIAL_KEYS", "ArgumentError", "Plan"]

SPECIAL_KEYS: Final = frozenset({"handler", "at", "priority", "spooler"})
"""Vars with a meaning for the spooler. A parameter of that name can read one; only `options` can set it."""

_TRUE: Final = frozenset({b"true", b"1", b"yes", b"on"})
_FALSE: Final = frozenset({b"false", b"0", b"no", b"off"})
_MISSING: Final = inspect.Parameter.empty
_SHOWN: Final = 60


class ArgumentError(Exception):
    """A task's vars do not fit the handler's parameters."""


@dataclass(frozen=True, slots=True)
class _Kind:
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


@dataclass(frozen=True, slots=True)
class _Parameter:
    name: str
    key: bytes
    kind: _Kind
    optional: bool
    default: Any
    positional: bool


class Plan:
    """What one function wants, worked out once.

    Args:
        function: The function.

    Attributes:
        takes_task: Whether some parameter wants the `Task`.

    Raises:
        TypeError: An annotation cannot be resolved.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        signature = inspect.signature(function)
        hints = _hints(function, signature)
        self._wanted: list[_Parameter] = []
        self._tasks: list[str] = []
        self._body: _Parameter | None = None
        self._rest: _Kind | None = None
        self._positional = 0
        for parameter in signature.parameters.values():
            self._look_at(parameter, hints.get(parameter.name, _MISSING))
        self.takes_task = bool(self._tasks)
        self._named = {parameter.key for parameter in self._wanted}
        if self._body is not None:
            self._named.add(b"body")
        # What `spool` can be called with: all but the task itself and what only `options` may say.
        self._accepts = signature.replace(
            parameters=[
                parameter
                for name, parameter in signature.parameters.items()
                if name not in self._tasks
                and name not in SPECIAL_KEYS
                and parameter.kind is not inspect.Parameter.VAR_POSITIONAL
            ]
        )
        self._special = [p for p in self._wanted if p.name in SPECIAL_KEYS and p.name != "handler"]

    def _look_at(self, parameter: inspect.Parameter, annotation: object) -> None:
        if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            return
        if parameter.name == "body" and annotation is _MISSING:
            annotation = bytes
        kind, optional = _kind(annotation)
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            self._rest = _LENIENT if kind is _TEXT else kind
            return
        positional = parameter.kind is inspect.Parameter.POSITIONAL_ONLY
        wanted = _Parameter(parameter.name, parameter.name.encode(), kind, optional, parameter.default, positional)
        if _is_task(annotation):
            if positional:
                raise TypeError(f"parameter {parameter.name}: the task is passed by name, it must not stand before /")
            self._tasks.append(parameter.name)
        elif parameter.name == "body" and not positional:
            self._body = wanted
        else:
            self._wanted.append(wanted)
            self._positional += positional

    def arguments(
        self, vars: Mapping[bytes, bytes], body: bytes, task: Task | None
    ) -> tuple[list[object], dict[str, object]]:
        """What to call the function with.

        Args:
            vars: The task's.
            body: The task's.
            task: The task, needed if `takes_task`.

        Returns:
            Positional and keyword arguments.

        Raises:
            ArgumentError: A var is missing or is not what its parameter wants.
        """
        keyword: dict[str, object] = {}
        for parameter in self._wanted:
            value = vars.get(parameter.key)
            if value is not None:
                keyword[parameter.name] = _decode(parameter, value)
            elif parameter.default is not _MISSING:
                continue
            elif parameter.optional:
                keyword[parameter.name] = None
            else:
                raise ArgumentError(f"var {parameter.name} is missing: {parameter.kind.expected} expected")
        # An absent body is an empty one, unless the function says what absent means.
        if self._body is not None and (body or self._body.default is _MISSING):
            keyword["body"] = _decode(self._body, body)
        for name in self._tasks:
            keyword[name] = task
        if self._rest is not None:
            self._add_rest(keyword, vars)
        if not self._positional:
            return [], keyword
        return [
            keyword.pop(parameter.name, parameter.default) for parameter in self._wanted if parameter.positional
        ], keyword

    def _add_rest(self, keyword: dict[str, object], vars: Mapping[bytes, bytes]) -> None:
        rest = self._rest
        assert rest is not None
        for key, value in vars.items():
            name = key.decode(errors="surrogateescape")
            if key in self._named or name in SPECIAL_KEYS or name in keyword:
                continue
            try:
                keyword[name] = rest.decode(value)
            except ValueError as error:
                raise ArgumentError(_misfit(name, rest, value)) from error

    def encode(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], special: Mapping[str, object]
    ) -> tuple[dict[bytes, bytes], bytes]:
        """The vars and the body of a task that makes the function run with these arguments.

        Args:
            args: Positional arguments.
            kwargs: Keyword arguments.
            special: The special keys that the task will have.

        Raises:
            TypeError: The function cannot be called so.
        """
        for name in kwargs:
            if name in SPECIAL_KEYS:
                raise TypeError(f"{name} has a meaning for the spooler: it is set by options(), not as an argument")
        bound = self._accepts.bind(*args, **kwargs).arguments
        for parameter in self._special:
            if parameter.default is _MISSING and not parameter.optional and special.get(parameter.name) is None:
                raise TypeError(f"missing: options({parameter.name}=…)")
        vars: dict[bytes, bytes] = {}
        for parameter in self._wanted:
            if parameter.name in bound:
                value = _encode(parameter, bound.pop(parameter.name))
                if value is not None:
                    vars[parameter.key] = value
        body = b""
        if self._body is not None and "body" in bound:
            body = _encode(self._body, bound.pop("body")) or b""
        if self._rest is not None:
            for rest in bound.values():
                for name, value in rest.items():
                    vars[name.encode(errors="surrogateescape")] = _encode_rest(name, self._rest, value)
        return vars, body


def _decode(parameter: _Parameter, value: bytes) -> object:
    kind = parameter.kind
    if parameter.optional and not kind.textual and (not value or value == b"null"):
        return None
    try:
        return kind.decode(value)
    except (ValueError, RecursionError) as error:
        raise ArgumentError(_misfit(parameter.name, kind, value)) from error


def _encode(parameter: _Parameter, value: object) -> bytes | None:
    """The var, or None if leaving it out says it."""
    kind = parameter.kind
    if value is None and (parameter.optional or parameter.default is None):
        if parameter.default is None or parameter.default is _MISSING:
            return None
        if kind.textual:
            raise TypeError(f"{parameter.name}=None cannot be told from text: only a default of None makes it possible")
        return b"null"
    return _encode_rest(parameter.name, kind, value)


def _encode_rest(name: str, kind: _Kind, value: object) -> bytes:
    try:
        encoded = kind.encode(value)
        kind.decode(encoded)  # what cannot be read back is refused here, where the caller sees it
    except (TypeError, ValueError, RecursionError) as error:
        raise TypeError(f"{name}={_shorten(repr(value))}: {kind.expected} expected") from error
    return encoded


def _misfit(name: str, kind: _Kind, value: bytes) -> str:
    return f"var {name}={_shorten(repr(value))}: {kind.expected} expected"


def _shorten(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


# Annotations


def _hints(function: Callable[..., Any], signature: inspect.Signature) -> dict[str, Any]:
    """Annotations as objects; `Task` is known even where it is imported for type checkers only."""
    plain = inspect.unwrap(function)
    if not inspect.isroutine(plain):  # an object that can be called
        plain = getattr(type(plain), "__call__", plain)  # noqa: B004 # it is the function that is wanted
    scope = getattr(plain, "__globals__", {})
    hints: dict[str, Any] = {}
    for name, parameter in signature.parameters.items():
        annotation = parameter.annotation
        if isinstance(annotation, str):
            try:
                annotation = eval(annotation, {**vars(typing), "Task": Task, **scope})
            except Exception as error:
                raise TypeError(
                    f"the annotation of parameter {name} of {getattr(function, '__qualname__', function)}, "
                    f"{annotation!r}, cannot be resolved: {error}"
                ) from error
        hints[name] = annotation
    return hints


def _is_task(annotation: object) -> bool:
    return annotation is Task or Task in typing.get_args(annotation)


def _kind(annotation: object) -> tuple[_Kind, bool]:
    """How values of this annotation travel, and whether None is one of them."""
    while typing.get_origin(annotation) is typing.Annotated or isinstance(annotation, typing.NewType):
        if isinstance(annotation, typing.NewType):
            annotation = annotation.__supertype__
        else:
            annotation = typing.get_args(annotation)[0]
    if typing.get_origin(annotation) in (Union, types.UnionType):
        members = typing.get_args(annotation)
        optional = type(None) in members
        kinds = [_kind(member)[0] for member in members if member is not type(None)]
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


def _union(kinds: list[_Kind]) -> _Kind:
    ordered = sorted(kinds, key=lambda kind: kind.textual)  # stable: as written, but text last

    def decode(value: bytes) -> object:
        for kind in ordered:
            try:
                return kind.decode(value)
            except ValueError:
                continue
        raise ValueError

    return _Kind(" or ".join(kind.expected for kind in kinds), decode, _to_bytes, ordered[-1].textual)


def _choice(choices: dict[bytes, Any]) -> _Kind:
    def decode(value: bytes) -> object:
        try:
            return choices[value]
        except KeyError:
            raise ValueError from None

    return _Kind(f"one of {', '.join(key.decode(errors='replace') for key in choices)}", decode, _to_bytes)


def _json_container(container: Callable[[Any], Any]) -> _Kind:
    written = dict if container is dict else list

    def decode(value: bytes) -> object:
        data = json.loads(value)
        if not isinstance(data, written):
            raise ValueError
        return data if container is written else container(data)

    def encode(value: object) -> bytes:
        return _to_json(list(value) if isinstance(value, tuple | set | frozenset) else value)

    return _Kind(f"a JSON {'object' if written is dict else 'array'}", decode, encode)


_CONTAINERS: Final = (list, tuple, set, frozenset, dict)
_TEXT: Final = _Kind("UTF-8 text", bytes.decode, _to_text, textual=True)
_LENIENT: Final = _Kind("text", lambda value: value.decode(errors="surrogateescape"), _to_text, textual=True)
_JSON: Final = _Kind("JSON", json.loads, _to_json)
_KINDS: Final[dict[Any, _Kind]] = {
    _MISSING: _TEXT,
    str: _TEXT,
    Any: _TEXT,
    object: _TEXT,
    bytes: _Kind("bytes", bytes, _to_plain_bytes, textual=True),
    int: _Kind("a whole number", int, _to_number),
    float: _Kind("a number", float, _to_number),
    bool: _Kind("true or false", _read_bool, _to_bytes),
}
