"""What a route is: one line of a view's table, from which the application, the guard and OpenAPI are made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from quart import Blueprint, Response
from werkzeug.routing import BaseConverter

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from trispool.admin.auth import Role

__all__ = ["PREFIX", "Route", "TaskId", "blueprint_of"]

PREFIX: Final = "/api/v1"


class TaskId(BaseConverter):
    """Of a path, a task's id: anything but `bulk`, which stands there for something else."""

    regex = "(?!bulk$)[^/]+"


@dataclass(frozen=True, slots=True)
class Route:
    """An address and what answers there.

    Attributes:
        name: Of the operation, in Quart and in OpenAPI.
        method: The HTTP method.
        rule: The path, as Werkzeug has it.
        view: Called with the variables of the path.
        role: What a token must permit; None: no token is needed.
    """

    name: str
    method: str
    rule: str
    view: Callable[..., Awaitable[Response]]
    role: Role | None


def blueprint_of(name: str, routes: Iterable[Route], prefix: str | None = None) -> Blueprint:
    """A blueprint with these routes."""
    blueprint = Blueprint(name, __name__, url_prefix=prefix)
    for route in routes:
        blueprint.add_url_rule(route.rule, route.name, route.view, methods=[route.method])
    return blueprint
