"""From a call's arguments to a task's vars, and back: by the annotations of the handler's function. Pure.

The annotation of a parameter decides what becomes of the var of its name (`trispool.kinds`). More rules:

- A parameter annotated `Task` gets the task itself.
- One named `body` gets the task's body, as bytes, unless its annotation says otherwise.
- A var that nobody asked for is left out.
- A `**` parameter gets all vars that no other parameter names, but for the special keys. Without an annotation they are
  text in which bytes that are not UTF-8 are kept as surrogates, since a web server's headers may be anything.
"""

from __future__ import annotations

import functools
import inspect
import typing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from trispool.kinds import LENIENT_TEXT, MISSING, TEXT, kind_of
from trispool.task import Task

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from trispool.kinds import Kind

__all__ = ["SPECIAL_KEYS", "ArgumentError", "Plan"]

SPECIAL_KEYS: Final = frozenset({"handler", "at", "priority", "spooler"})
"""Vars with a meaning for the spooler. A parameter of that name can read one; only `options` can set it."""

_SHOWN: Final = 60
"""Characters of a value in a message."""

_UNREADABLE: Final = (ValueError, TypeError, RecursionError)
"""What the conversion of a hostile value can raise: bad text, a list in a set, deep nesting."""


class ArgumentError(Exception):
    """A task's vars do not fit the handler's parameters."""


@dataclass(frozen=True, slots=True)
class _Parameter:
    name: str
    key: bytes
    kind: Kind
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
        self._rest: Kind | None = None
        self._positional = 0
        for parameter in signature.parameters.values():
            self._look_at(parameter, hints.get(parameter.name, MISSING))
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
        if parameter.name == "body" and annotation is MISSING:
            annotation = bytes
        kind, optional = kind_of(annotation)
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            self._rest = LENIENT_TEXT if kind is TEXT else kind
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
            elif parameter.default is not MISSING:
                continue
            elif parameter.optional:
                keyword[parameter.name] = None
            else:
                raise ArgumentError(f"var {parameter.name} is missing: {parameter.kind.expected} expected")
        # An absent body is an empty one, unless the function says what absent means.
        if self._body is not None and (body or self._body.default is MISSING):
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
            except _UNREADABLE as error:
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
            if parameter.default is MISSING and not parameter.optional and special.get(parameter.name) is None:
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
    except _UNREADABLE as error:
        raise ArgumentError(_misfit(parameter.name, kind, value)) from error


def _encode(parameter: _Parameter, value: object) -> bytes | None:
    """The var, or None if leaving it out says it."""
    kind = parameter.kind
    if value is None and (parameter.optional or parameter.default is None):
        if parameter.default is None or parameter.default is MISSING:
            return None
        if kind.textual:
            raise TypeError(f"{parameter.name}=None cannot be told from text: only a default of None makes it possible")
        return b"null"
    return _encode_rest(parameter.name, kind, value)


def _encode_rest(name: str, kind: Kind, value: object) -> bytes:
    try:
        encoded = kind.encode(value)
        kind.decode(encoded)  # what cannot be read back is refused here, where the caller sees it
    except _UNREADABLE as error:
        raise TypeError(f"{name}={_shorten(repr(value))}: {kind.expected} expected") from error
    return encoded


def _misfit(name: str, kind: Kind, value: bytes) -> str:
    return f"var {name}={_shorten(repr(value))}: {kind.expected} expected"


def _shorten(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


# Annotations


def _hints(function: Callable[..., Any], signature: inspect.Signature) -> dict[str, Any]:
    """Annotations as objects; `Task` is known even where it is imported for type checkers only."""
    plain: Any = inspect.unwrap(function)
    while isinstance(plain, functools.partial):
        plain = inspect.unwrap(plain.func)
    if not inspect.isroutine(plain):  # an object that can be called
        plain = type(plain).__call__
    scope = {**vars(typing), "Task": Task, **getattr(plain, "__globals__", {})}
    try:
        return typing.get_type_hints(plain, scope, include_extras=True)
    except Exception:
        return _hints_one_by_one(function, signature, scope)


def _hints_one_by_one(
    function: Callable[..., Any], signature: inspect.Signature, scope: dict[str, Any]
) -> dict[str, Any]:
    """Tells which one it is that cannot be resolved; the annotation of the result may be anything."""
    hints: dict[str, Any] = {}
    for name, parameter in signature.parameters.items():
        annotation = parameter.annotation
        if isinstance(annotation, str):
            try:
                annotation = eval(annotation, scope)
            except Exception as error:
                raise TypeError(
                    f"the annotation of parameter {name} of {getattr(function, '__qualname__', function)}, "
                    f"{annotation!r}, cannot be resolved: {error}"
                ) from error
        hints[name] = annotation
    return hints


def _is_task(annotation: object) -> bool:
    return annotation is Task or Task in typing.get_args(annotation)
