"""Tasks: lists, one task, its body, and what can be done to it."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from quart import Response

from trispool.admin.auth import Role
from trispool.admin.documents import page_document, summary_document, task_document
from trispool.admin.exchange import actor, answer, paging, read_json, read_nothing, read_query
from trispool.admin.faults import ABSENT, Fault, FaultyRequest
from trispool.admin.models import Nothing, Reschedule, TaskListing
from trispool.admin.routes import Route
from trispool.errors import TaskNotFound
from trispool.operating import Action
from trispool.task import TaskState

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trispool.control import Control

__all__ = ["TaskViews"]

_HAVE_A_TIME = (TaskState.SCHEDULED, TaskState.READY, TaskState.HELD)
"""What is in one of these states can be sorted by the time it is due."""


class TaskViews:
    """The views.

    Args:
        control: The service.
    """

    def __init__(self, control: Control) -> None:
        self._control = control

    def routes(self) -> Sequence[Route]:
        """Their addresses."""
        return (
            Route("list_tasks", "GET", "/tasks", self.list, Role.VIEW),
            Route("show_task", "GET", "/tasks/<task:task_id>", self.show, Role.VIEW),
            Route("show_body", "GET", "/tasks/<task:task_id>/body", self.body, Role.VIEW),
            *(
                Route(
                    f"{action}_task",
                    "POST",
                    f"/tasks/<task:task_id>/{action}",
                    functools.partial(self.act, action=action),
                    Role.OPERATE,
                )
                for action in Action
                if action is not Action.RESCHEDULE
            ),
            Route("reschedule_task", "POST", "/tasks/<task:task_id>/reschedule", self.reschedule, Role.OPERATE),
        )

    async def list(self) -> Response:
        """A part of the list of tasks."""
        asked = read_query(TaskListing)
        if asked.sort == "due" and asked.state not in _HAVE_A_TIME:
            expected = f"beside sort=due one of {', '.join(_HAVE_A_TIME)}"
            value = ABSENT if asked.state is None else asked.state.value
            raise FaultyRequest([Fault(parameter="state", value=value, expected=expected)], status=409)
        with paging(asked.cursor):
            page = await self._control.tasks(asked.query())
        return answer(page_document(page))

    async def show(self, task_id: str) -> Response:
        """One task."""
        read_query(Nothing)
        return answer(task_document(await self._control.task(task_id)))

    async def body(self, task_id: str) -> Response:
        """The body of a task: bytes of unknown origin, so never shown in place by a browser."""
        read_query(Nothing)
        detail = await self._control.task(task_id)
        if detail.body is None:
            raise TaskNotFound("This task has left the spool, and its body with it.")
        return Response(
            detail.body,
            content_type="application/octet-stream",
            headers={"Content-Disposition": 'attachment; filename="body"'},
        )

    async def act(self, task_id: str, *, action: Action) -> Response:
        """Do something to a task that needs no more words."""
        await read_nothing()
        return answer(summary_document(await self._control.act(task_id, action, actor())))

    async def reschedule(self, task_id: str) -> Response:
        """Let a task run at another time."""
        asked = await read_json(Reschedule)
        return answer(summary_document(await self._control.act(task_id, Action.RESCHEDULE, actor(), at=asked.at)))
