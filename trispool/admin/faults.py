"""What is wrong with a request, as values: its faults, each with its place, the value and what was expected.

A fault of a JSON body has a `pointer` (RFC 6901), one of the query, of a form or of a header a `parameter`, one of a
batch its `line`. Pure.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, get_args

from pydantic import BaseModel

from trispool.errors import TaskRefused

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from pydantic import ValidationError

__all__ = ["ABSENT", "Fault", "FaultyRequest", "faults_in", "pointer", "shown"]

MAX_FAULTS: Final = 100
"""Of one request that are looked for and named: an answer must not be many times as large as what was sent."""

MAX_SHOWN: Final = 60
"""Characters of a bad value that an answer repeats."""

ABSENT: Final = object()
"""In place of a value that there is not."""


MAX_POINTER: Final = 1000
"""Characters of a pointer; one that was cut points at nothing, but neither does anybody follow one so long."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong.

    Attributes:
        problem: What, if there is more to say than what was expected.
        pointer: Where in the JSON body.
        parameter: In which field of the query or form, or in which header.
        value: What stands there.
        expected: What should.
    """

    problem: str = ""
    pointer: str | None = None
    parameter: str | None = None
    value: object = ABSENT
    expected: str = ""

    @property
    def detail(self) -> str:
        """All of it in words: `limit=0: expected a number from 1 to 500`."""
        place = self.parameter if self.pointer is None else self.pointer[1:].replace("/", ".")
        value = "" if self.value is ABSENT else f"={shown(self.value)}"
        where = f"{shown(place)}{value}: " if place else ""
        return where + "; ".join(filter(None, (self.problem, self.expected and f"expected {self.expected}")))

    def document(self, line: int | None = None) -> dict[str, object]:
        """It as a member of `errors`.

        Args:
            line: Of the batch.
        """
        members = {
            "line": line,
            "pointer": None if self.pointer is None else shown(self.pointer, MAX_POINTER),
            "parameter": None if self.parameter is None else shown(self.parameter),
            "value": None if self.value is ABSENT else shown(self.value),
            "expected": self.expected or None,
        }
        return {"detail": self.detail} | {name: member for name, member in members.items() if member is not None}


class FaultyRequest(TaskRefused):
    """The request is not one that can be done.

    Args:
        faults: What is wrong with it, at least one.
        status: The HTTP status.
    """

    def __init__(self, faults: Sequence[Fault], *, status: int = 400) -> None:
        super().__init__("; ".join(fault.detail for fault in faults[:10]), status=status)
        self.faults = faults


def shown(value: object, limit: int = MAX_SHOWN) -> str:
    """A value as an answer may repeat it: text as it is, all else as JSON, cut short."""
    if isinstance(value, bytes):
        value = value[: 4 * limit].decode("utf-8", "backslashreplace")
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return printable(text if len(text) <= limit else text[: limit - 1] + "…")


def printable(text: str) -> str:
    """`text` without what has no UTF-8 form."""
    return text.encode("utf-8", "backslashreplace").decode()


def pointer(*path: object) -> str:
    """The JSON pointer of a place."""
    return "".join(f"/{str(part).replace('~', '~0').replace('/', '~1')}" for part in path)


def faults_in(
    error: ValidationError, model: type[BaseModel], data: Mapping[str, Any], *, in_query: bool
) -> Iterator[Fault]:
    """What pydantic says, in our words. What a field expects is its description in the model.

    Args:
        error: From validating.
        model: What was validated against.
        data: What was validated.
        in_query: The data are fields of the query, not members of a JSON document.
    """
    for item in error.errors(include_url=False, include_context=False, include_input=False)[:MAX_FAULTS]:
        path = item["loc"]
        problem, expected = "", _expected(model, path)
        value = _value_at(data, path)
        match item["type"]:
            case "extra_forbidden":
                problem = "unknown field" if in_query else "unknown member"
                expected = _names(_model_at(model, path[:-1]))
            case "missing":
                problem, value = "missing", ABSENT
            case "together":  # raised by a check of the whole model
                expected, value = item["msg"], ABSENT
        if in_query:
            yield Fault(problem, parameter=str(path[0]), value=value, expected=expected)
        else:
            yield Fault(problem, pointer=pointer(*path), value=value, expected=expected)


def _names(model: type[BaseModel]) -> str:
    names = list(model.model_fields)
    return f"one of {', '.join(names)}" if names else "none"


def _expected(model: type[BaseModel], path: Iterable[int | str]) -> str:
    """The description of the innermost field on the way."""
    description = ""
    inner: type[BaseModel] | None = model
    for part in path:
        field = inner.model_fields.get(part) if inner is not None and isinstance(part, str) else None
        if field is not None:
            description = field.description or description
            inner = _model_of(field.annotation)
    return description


def _model_at(model: type[BaseModel], path: Iterable[int | str]) -> type[BaseModel]:
    for part in path:
        inner = _model_of(model.model_fields[str(part)].annotation)
        assert inner is not None, "only members of models can be unknown"
        model = inner
    return model


def _model_of(annotation: object) -> type[BaseModel] | None:
    """The model that a field holds, if any."""
    for kind in (annotation, *get_args(annotation)):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return None


def _value_at(data: object, path: Iterable[int | str]) -> object:
    for part in path:
        try:
            data = data[part]  # type: ignore[index]
        except (KeyError, IndexError, TypeError):
            return ABSENT
    return data
