"""What is said of an operation, as values, and the schema of a new task. `operations` has the table of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from trispool.admin import moments
from trispool.admin.diagnosis import BASE64
from trispool.admin.enqueue import JSON
from trispool.task import MAX_PRIORITY

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pydantic import BaseModel

__all__ = ["BINARY", "FIELDS", "FORM_WITH_FILE", "NEW_TASK", "TEXT", "Answer", "Operation", "Sent"]

BINARY: Final[Mapping[str, Any]] = {"type": "string", "format": "binary"}
TEXT: Final[Mapping[str, Any]] = {"type": "string"}

_BASE64: Final = {
    "type": "string",
    "pattern": "^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$",
    "description": BASE64,
}

NEW_TASK: Final[Mapping[str, Any]] = {
    "type": "object",
    "additionalProperties": False,
    "description": "A task. Among its vars `at`, `priority` and `spooler` mean what they mean to uWSGI.",
    "properties": {
        "vars": {
            "type": "object",
            "propertyNames": {"minLength": 1},
            "additionalProperties": {
                "anyOf": [
                    {"type": ["string", "number", "boolean"]},
                    {
                        "type": "object",
                        "properties": {"base64": _BASE64},
                        "required": ["base64"],
                        "additionalProperties": False,
                        "description": "Any bytes.",
                    },
                ]
            },
            "description": "Keys and values, 65,535 bytes at most; numbers and booleans become text.",
        },
        "at": {
            "anyOf": [*moments.SCHEMA["anyOf"], {"type": "null"}],  # type: ignore[misc]
            "description": f"Do not run before: {moments.EXPECTED}. 0 or null: at once.",
        },
        "priority": {
            "type": ["integer", "null"],
            "minimum": 0,
            "maximum": MAX_PRIORITY,
            "description": "Smaller runs first; null: after all that have one.",
        },
        "body": {**_BASE64, "description": f"The body, {BASE64}."},
    },
}

FIELDS: Final = {
    "type": "object",
    "propertyNames": {"minLength": 1},
    "additionalProperties": {"type": "string"},
    "description": "The vars; `at` and `priority` among them.",
}


FORM_WITH_FILE: Final = {
    "type": "object",
    "propertyNames": {"minLength": 1},
    "additionalProperties": {"type": "string"},
    "properties": {
        "file": {
            "type": "string",
            "contentMediaType": "application/octet-stream",
            "description": "The body, in a part of any name that has a file name. The others are vars.",
        }
    },
}


@dataclass(frozen=True, slots=True)
class Sent:
    """A body that an operation takes.

    Attributes:
        schema: A model, or a schema.
        examples: Name to example.
    """

    schema: type[BaseModel] | Mapping[str, Any]
    examples: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Answer:
    """What an operation answers if all is well.

    Attributes:
        description: What that means.
        schema: A model, a schema, or None for nothing.
        content_type: Its content type.
        headers: Header to description.
        other: Further content types and their schemas.
    """

    description: str
    schema: type[BaseModel] | Mapping[str, Any] | None
    content_type: str = JSON
    headers: Mapping[str, str] = field(default_factory=dict)
    other: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation.

    Attributes:
        tag: The part of the API it belongs to.
        summary: A line.
        answers: Status to answer.
        description: More words.
        query: The model of its query.
        headers: Headers it takes: name to schema.
        sends: Content type to body.
        needs_body: Whether there has to be one.
        problems: Statuses of errors beyond those that all have.
        examples: Examples of its query.
    """

    tag: str
    summary: str
    answers: Mapping[int, Answer]
    description: str = ""
    query: type[BaseModel] | None = None
    headers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    sends: Mapping[str, Sent] = field(default_factory=dict)
    needs_body: bool = True
    problems: Sequence[int] = ()
    examples: Mapping[str, object] = field(default_factory=dict)
