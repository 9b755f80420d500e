"""The HTTP API, version 1: all its routes. What each takes and answers is told to the world by `openapi`.

| request | needs | module |
| --- | --- | --- |
| `POST /spools/{name}/tasks` | enqueue | `enqueuing` |
| `GET /tasks`, `/tasks/{id}`, `/tasks/{id}/body` | view | `tasks` |
| `POST /tasks/{id}/{cancel,hold,release,run,retry,reschedule}` | operate | `tasks` |
| `POST /tasks/bulk`, `DELETE /tasks/bulk/{id}` | operate | `bulk` |
| `GET /tasks/bulk/{id}` | view | `bulk` |
| `GET /spools`, `/spools/{name}`, `/workers` | view | `spools` |
| `PATCH /spools/{name}`, `POST /spools/{name}/scan`, `/workers/{pid}/restart` | operate | `spools` |
| `GET /stats`, `/audit` | view | `watching` |
| `GET /events` | view | `events` |
| `POST /session`; `GET`, `DELETE /session` | nothing; any token or session | `session` |

All under `/api/v1`; beside it `GET /healthz`, `/readyz`, `/openapi.json` and `/docs` (public) and `/metrics` (view).

A view parses, asks `Control` once, and answers. Unknown members and query fields are refused, so that a misspelt filter
does not mean "all". Every error is a problem document (`problems`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trispool.admin.bulk import BulkViews
from trispool.admin.enqueuing import EnqueueViews
from trispool.admin.events import EventViews
from trispool.admin.spools import SpoolViews
from trispool.admin.tasks import TaskViews
from trispool.admin.watching import WatchViews

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trispool.admin.auth import Accounts
    from trispool.admin.routes import Route
    from trispool.admin.settings import AdminSettings
    from trispool.admin.streams import Streams
    from trispool.control import Control

__all__ = ["api_routes"]


def api_routes(control: Control, accounts: Accounts, settings: AdminSettings, streams: Streams) -> Sequence[Route]:
    """The routes below the prefix.

    Args:
        control: The service.
        accounts: Who is let in.
        settings: Limits of a request.
        streams: Answers without end.
    """
    return (
        *EnqueueViews(control, settings).routes(),
        *TaskViews(control).routes(),
        *BulkViews(control).routes(),
        *SpoolViews(control).routes(),
        *WatchViews(control).routes(),
        *EventViews(control, accounts, streams).routes(),
    )
