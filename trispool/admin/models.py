"""What requests may say, as pydantic models: queries and JSON bodies. (New tasks are read by `enqueue`.)

The description of a field says what is expected there: it stands in OpenAPI and in the answer to a request that has
something else. Nothing unknown, no null.
"""

from __future__ import annotations

import re
from typing import Annotated, Final, Literal, TypeAlias, TypeVar, cast

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    PlainValidator,
    StringConstraints,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from pydantic_core import CoreSchema, PydanticCustomError

from trispool.admin import moments
from trispool.operating import Action, BulkRequest, SpoolChange, TaskFilter, TaskQuery
from trispool.settings import SHORTEST_FREQUENCY
from trispool.task import TaskState

__all__ = [
    "AuditListing",
    "BulkListing",
    "BulkOrder",
    "EventsFrom",
    "Nothing",
    "Reschedule",
    "Restart",
    "SpoolSettings",
    "TaskListing",
]

MAX_PAGE: Final = 500
MAX_IDS: Final = 10_000
"""Of one bulk action; more are a filter."""

MAX_ID: Final = 255
"""Characters of a task's id: a file has no longer name."""

MAX_PROCESSES: Final = 256
"""Of a spool, by a request: a slip must not bring a machine down. The configuration may say more."""
LONGEST_FREQUENCY: Final = 10 * 365 * 86400.0

_NO_NUL: Final = r"^[^\x00]+$"


def _whole(value: object) -> object:
    """A number in a query: digits and nothing else."""
    if isinstance(value, str) and not re.fullmatch("[0-9]{1,9}", value):
        raise ValueError("not digits")
    return value


def _integral(value: object) -> object:
    """JSON does not tell 4.0 from 4."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _moment(value: object) -> float:
    return moments.parse_moment(value)


Text: TypeAlias = Annotated[str, StringConstraints(min_length=1, max_length=1000, pattern=_NO_NUL)]
TaskId: TypeAlias = Annotated[str, StringConstraints(min_length=1, max_length=MAX_ID, pattern=_NO_NUL)]
Moment: TypeAlias = Annotated[float, PlainValidator(_moment), WithJsonSchema(dict(moments.SCHEMA))]
PageSize: TypeAlias = Annotated[int, Field(ge=1, le=MAX_PAGE), BeforeValidator(_whole)]


Count: TypeAlias = Annotated[int, Field(strict=True, ge=1, le=MAX_PROCESSES), BeforeValidator(_integral)]


class _NotNull:
    """Of a type with None: that is for what is absent, and a null in a request is refused."""

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        schema = handler(source)
        assert schema["type"] == "nullable"
        return cast("CoreSchema", schema["schema"])


T = TypeVar("T")
Maybe: TypeAlias = Annotated[T | None, _NotNull()]


class Request(BaseModel):
    """The whole of a query or JSON body."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)


class Nothing(Request):
    """No fields at all."""


_TIME: Final = moments.EXPECTED


class Filter(Request):
    """Which tasks are meant; what is absent does not matter."""

    spool: Maybe[Text] = Field(None, description="the name of a spool")
    state: Maybe[TaskState] = Field(None, description=f"one of {', '.join(TaskState)}")
    handler: Maybe[Text] = Field(None, description="the whole name of a handler, 1 to 1,000 characters")
    q: Maybe[Text] = Field(
        None, description="text in the id, the last error or the vars, 1 to 1,000 characters; case counts"
    )
    enqueued_after: Maybe[Moment] = Field(None, description=_TIME)
    enqueued_before: Maybe[Moment] = Field(None, description=_TIME)
    due_after: Maybe[Moment] = Field(None, description=_TIME)
    due_before: Maybe[Moment] = Field(None, description=_TIME)

    def filter(self) -> TaskFilter:
        """The same as a value of the domain."""
        return TaskFilter(**{name: getattr(self, name) for name in Filter.model_fields})


class TaskListing(Filter):
    """The query of a list of tasks."""

    sort: Literal["enqueued", "due"] = Field(
        "enqueued", description="enqueued, or due (of the states scheduled, ready and held)"
    )
    order: Literal["asc", "desc"] = Field("asc", description="asc or desc")
    limit: PageSize = Field(50, description=f"a whole number from 1 to {MAX_PAGE}")
    cursor: Maybe[Text] = Field(None, description="the cursor of the page before")

    def query(self) -> TaskQuery:
        """The same as a value of the domain."""
        return TaskQuery(self.filter(), sort=self.sort, order=self.order, limit=self.limit, cursor=self.cursor)


class BulkListing(Request):
    """The query of the results of a bulk action."""

    limit: PageSize = Field(MAX_PAGE, description=f"a whole number from 1 to {MAX_PAGE}")
    cursor: Maybe[Text] = Field(None, description="the cursor of the page before")


class AuditListing(Request):
    """The query of the audit log."""

    actor: Maybe[Text] = Field(None, description="the name of a token")
    action: Maybe[Text] = Field(None, description="an action such as task.cancel")
    target: Maybe[Text] = Field(None, description="what was changed: a task's id, a spool's name, …")
    limit: PageSize = Field(50, description=f"a whole number from 1 to {MAX_PAGE}")
    cursor: Maybe[Text] = Field(None, description="the cursor of the page before")


class EventsFrom(Request):
    """The query of the events."""

    after: Maybe[Text] = Field(None, description="the id of the last event that was seen")


class SpoolSettings(Request):
    """New settings of a spool; what is absent stays as it is."""

    frequency: Maybe[float] = Field(
        None,
        strict=True,
        ge=SHORTEST_FREQUENCY,
        le=LONGEST_FREQUENCY,
        allow_inf_nan=False,
        description=f"seconds between two scans, from {SHORTEST_FREQUENCY} up to ten years",
    )
    paused: Maybe[bool] = Field(None, strict=True, description="true or false")
    processes: Maybe[Count] = Field(None, description=f"how many workers, from 1 to {MAX_PROCESSES}")

    def change(self) -> SpoolChange:
        """The same as a value of the domain."""
        return SpoolChange(self.frequency, self.paused, self.processes)


class Restart(Request):
    """How to restart a worker."""

    kill: bool = Field(
        False, strict=True, description="true: at once, or false: when it has finished what it is running"
    )


class Reschedule(Request):
    """When a task shall run."""

    at: Moment = Field(description=_TIME)


class BulkOrder(Request):
    """One action on the tasks of `ids`, or on all that `filter` means."""

    model_config = ConfigDict(
        json_schema_extra={
            "oneOf": [{"required": ["ids"]}, {"required": ["filter"]}],
            "if": {"properties": {"action": {"const": "reschedule"}}},
            "then": {"required": ["at"]},
            "else": {"not": {"required": ["at"]}},
        }
    )

    action: Action = Field(description=f"one of {', '.join(Action)}")
    ids: Maybe[list[TaskId]] = Field(
        None, min_length=1, max_length=MAX_IDS, description=f"ids of tasks, from 1 to {MAX_IDS}"
    )
    filter: Maybe[Filter] = Field(
        None, json_schema_extra={"minProperties": 1}, description="which tasks, by one criterion at least"
    )
    at: Maybe[Moment] = Field(None, description=_TIME)
    dry_run: bool = Field(False, strict=True, description="true: only tell which tasks it would be; or false")

    @field_validator("filter")
    @classmethod
    def _says_something(cls, filter: Filter) -> Filter:
        if not filter.model_fields_set:
            raise PydanticCustomError("empty", "empty")
        return filter

    @model_validator(mode="after")
    def _is_whole(self) -> BulkOrder:
        if (self.ids is None) == (self.filter is None):
            raise PydanticCustomError("together", "either ids or filter, one of both")
        if (self.at is None) == (self.action is Action.RESCHEDULE):
            raise PydanticCustomError("together", "at with the action reschedule, and with no other")
        return self

    def request(self) -> BulkRequest:
        """The same as a value of the domain; an id that comes twice counts once."""
        ids = None if self.ids is None else list(dict.fromkeys(self.ids))
        return BulkRequest(self.action, ids, None if self.filter is None else self.filter.filter(), self.at)
