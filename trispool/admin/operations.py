"""What OpenAPI tells of each operation: its words, what it takes, what it answers, and examples that work.

A table and nothing else; `openapi` makes the document of it. Loaded on the first request for that document.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from trispool.admin import schemas
from trispool.admin.described import BINARY, FIELDS, FORM_WITH_FILE, TEXT, Answer, Operation, Sent
from trispool.admin.enqueue import FORM, JSON, MULTIPART, NDJSON
from trispool.admin.models import (
    AuditListing,
    BulkListing,
    BulkOrder,
    EventsFrom,
    Reschedule,
    Restart,
    SpoolSettings,
    TaskListing,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["OPERATIONS", "TAGS", "TASK_ID"]

TAGS: Final = {
    "Enqueuing": "Adding tasks, one by one and in batches.",
    "Tasks": "Looking at tasks, and acting on them.",
    "Bulk": "Acting on many tasks at once.",
    "Spools and workers": "Settings that can be changed while they run.",
    "Watching": "Figures, events, the audit log.",
    "Session": "For browsers: a token is exchanged for a cookie.",
    "Probes": "For other programs, outside of the versioned API.",
}

TASK_ID: Final = "uwsgi_spoolfile_on_host_1_1_1_1700000000_0"

_REPLAYED: Final = {"Idempotent-Replayed": "`true`: this is the answer to an earlier request with the same key."}
_TASK_NOW: Final = Answer("The task as it is now.", schemas.Task)

_CHANGING: Final = (404, 408, 413, 415, 503)
_ACTING: Final = (*_CHANGING, 409)


def _action(summary: str, description: str) -> Operation:
    return Operation("Tasks", summary, {200: _TASK_NOW}, description, problems=_ACTING)


OPERATIONS: Final[Mapping[str, Operation]] = {
    "enqueue": Operation(
        "Enqueuing",
        "Enqueue a task or a batch",
        {
            201: Answer(
                "Kept, as durably as the spool is configured. One task: its id and address; a batch: an id a line.",
                {"anyOf": [{"$ref": "AcceptedTask"}, {"$ref": "AcceptedBatch"}]},
                headers={"Location": "The task's address, relative to this one."} | _REPLAYED,
                other={NDJSON: TEXT},
            ),
            207: Answer(
                "Of the batch some tasks were kept and some not; `errors` says which, and why.",
                schemas.AcceptedBatch,
                headers=_REPLAYED,
                other={NDJSON: TEXT},
            ),
        },
        "A task is a JSON document, a form, or a form with a file (its body). Content of any other type is the body "
        "of a task, as it is, whose vars stand in the query of the address; with the types named here the query must "
        "be empty.\n\nA batch is NDJSON (an array here), a document a line, up to 10,000: one transaction. With a bad "
        "line nothing of it is kept. With `Accept: application/x-ndjson` the answer has a line a task, too.",
        headers={
            "Idempotency-Key": {
                "schema": {"type": "string", "pattern": "^[!-~]{1,255}$"},
                "description": "1 to 255 visible ASCII characters. The same key gives the same task, never a second "
                "one, for 24 hours and across restarts; with another request it is refused (422).",
            }
        },
        sends={
            JSON: Sent(
                {"$ref": "NewTask"},
                {
                    "now": {"vars": {"handler": "encode", "path": "/srv/a.mov"}},
                    "later": {"vars": {"handler": "encode", "n": 5}, "at": "2031-05-04T12:00:00Z", "priority": 3},
                    "body": {"vars": {"name": {"base64": "/wA="}}, "body": "aGVsbG8="},
                },
            ),
            NDJSON: Sent(
                {"type": "array", "minItems": 1, "items": {"$ref": "NewTask"}},
                {"batch": [{"vars": {"handler": "encode", "n": 1}}, {"vars": {"handler": "encode", "n": 2}}]},
            ),
            FORM: Sent(FIELDS, {"form": {"handler": "encode", "path": "/srv/a.mov", "at": "1900000000"}}),
            MULTIPART: Sent(
                FORM_WITH_FILE,
                {"file": {"handler": "encode", "file": "hello"}},
            ),
            "application/octet-stream": Sent(
                {**BINARY, "description": "The body of the task; its vars stand in the query."}, {"raw": "hello"}
            ),
        },
        problems=(*_CHANGING, 422),
    ),
    "list_tasks": Operation(
        "Tasks",
        "List and search tasks",
        {200: Answer("A page of tasks.", schemas.TaskPage)},
        "Waiting and finished tasks alike. A page takes a bounded amount of work, so it may be short, or empty, though "
        "`cursor` leads on. Further pages are asked for with the same filter.",
        query=TaskListing,
        problems=(404, 409, 503),
        examples={"state": "ready", "q": "a.mov", "limit": 20, "enqueued_after": "2031-05-04T12:00:00Z"},
    ),
    "show_task": Operation(
        "Tasks",
        "Show a task",
        {200: Answer("All that is known of it.", schemas.TaskDetail)},
        "With its vars, the beginning of its body and the history of its attempts.",
        problems=(404, 413, 503),
    ),
    "show_body": Operation(
        "Tasks",
        "Get the body of a task",
        {200: Answer("The bytes.", BINARY, "application/octet-stream")},
        problems=(404, 413, 503),
    ),
    "cancel_task": _action(
        "Cancel a task", "It is not run, or not run again; a running one is broken off. It stays in the history."
    ),
    "hold_task": _action("Hold a task", "It waits until it is released, also over restarts."),
    "release_task": _action("Release a held task", "It is due when it was due before."),
    "run_task": _action("Run a task now", "It is due at once; its turn comes after what is due already."),
    "retry_task": _action(
        "Retry a task",
        "A dead task starts anew, its attempts forgotten; one that waits for another attempt is due now.",
    ),
    "reschedule_task": Operation(
        "Tasks",
        "Run a task at another time",
        {200: _TASK_NOW},
        "Of a task that has failed before this is its next attempt.",
        sends={JSON: Sent(Reschedule, {"time": {"at": "2031-05-04T12:00:00Z"}, "seconds": {"at": 1900000000.5}})},
        problems=_ACTING,
    ),
    "start_bulk": Operation(
        "Bulk",
        "Act on many tasks",
        {
            200: Answer(
                "It is finished, or, with `dry_run`, would do this.",
                {"anyOf": [{"$ref": "BulkResults"}, {"$ref": "BulkPreview"}]},
                headers={"Location": "Where its results are, relative to this address."},
            ),
            202: Answer(
                "It goes on; its address tells how far it is.",
                schemas.BulkResults,
                headers={"Location": "That address, relative to this one."},
            ),
        },
        "On tasks by their ids, or on all that a filter means at this moment. What is not possible for one task is "
        "told in its result, and does not stop the others.",
        sends={
            JSON: Sent(
                BulkOrder,
                {
                    "ids": {"action": "hold", "ids": [TASK_ID]},
                    "preview": {"action": "cancel", "filter": {"state": "dead", "q": "a.mov"}, "dry_run": True},
                    "filter": {"action": "reschedule", "filter": {"spool": "default"}, "at": "2031-05-04T12:00:00Z"},
                },
            )
        },
        problems=_CHANGING,
    ),
    "show_bulk": Operation(
        "Bulk",
        "Show how far a bulk action is",
        {200: Answer("Its state and some of its results.", schemas.BulkResults)},
        "Known for an hour after its end.",
        query=BulkListing,
        problems=(404,),
        examples={"limit": 100},
    ),
    "stop_bulk": Operation(
        "Bulk",
        "Stop a bulk action",
        {200: Answer("Its state.", schemas.Bulk)},
        "What has been done stays done.",
        problems=_CHANGING,
    ),
    "list_spools": Operation("Spools and workers", "List spools", {200: Answer("All spools.", schemas.Spools)}),
    "show_spool": Operation(
        "Spools and workers", "Show a spool", {200: Answer("The spool.", schemas.Spool)}, problems=(404,)
    ),
    "change_spool": Operation(
        "Spools and workers",
        "Change settings of a spool",
        {200: Answer("The spool as it is now.", schemas.Spool)},
        "At once: all that are given, or none. After a restart they are as configured.",
        sends={
            JSON: Sent(
                SpoolSettings,
                {"all": {"frequency": 5, "paused": True, "processes": 4}, "resume": {"paused": False}},
            )
        },
        problems=(*_CHANGING, 409),
    ),
    "scan_spool": Operation(
        "Spools and workers",
        "Look through a spool now",
        {200: Answer("The spool afterwards.", schemas.Spool)},
        "Finds files that others put there, if the system did not tell of them.",
        problems=_CHANGING,
    ),
    "list_workers": Operation("Spools and workers", "List workers", {200: Answer("All workers.", schemas.Workers)}),
    "restart_worker": Operation(
        "Spools and workers",
        "Restart a worker",
        {200: Answer("The worker as it was.", schemas.Worker)},
        "When it has finished what it is running; or, killed, at once, and what it was running runs again.",
        sends={JSON: Sent(Restart, {"kill": {"kill": True}})},
        needs_body=False,
        problems=(*_CHANGING, 409),
    ),
    "stats": Operation(
        "Watching",
        "Show figures",
        {200: Answer("Counts, rates and times of the last hour.", schemas.Stats)},
    ),
    "audit": Operation(
        "Watching",
        "Show the audit log",
        {200: Answer("What was changed: by whom, when, from where, before and after.", schemas.AuditLog)},
        query=AuditListing,
        problems=(404, 503),
        examples={"actor": "operator", "limit": 10},
    ),
    "events": Operation(
        "Watching",
        "Follow what happens",
        {
            200: Answer(
                "Server-sent events, without end: `spools`, `tasks`, `workers`, `settings`, `bulk`, and `reset`: some "
                "are lost, so look afresh. Each has an `id` and a JSON document as its `data`; comments every 15 s.",
                TEXT,
                "text/event-stream",
            )
        },
        query=EventsFrom,
        headers={
            "Last-Event-ID": {
                "schema": {"type": "string", "maxLength": 1000},
                "description": "The id of the last event that was seen; a browser sends it by itself, and it goes "
                "before `after`.",
            }
        },
        problems=(503,),
    ),
    "log_in": Operation(
        "Session",
        "Log in",
        {201: Answer("The cookie is set.", schemas.SessionInfo, headers={"Set-Cookie": "trispool_session"})},
        "For browsers; programs send the token itself.",
        sends={
            JSON: Sent(
                {
                    "type": "object",
                    "required": ["token"],
                    "additionalProperties": False,
                    "properties": {"token": {"type": "string", "description": "A token."}},
                },
                {},
            )
        },
        problems=(401, 403, 408, 413, 415, 429),
    ),
    "show": Operation(
        "Session", "Show who is logged in", {200: Answer("Who asks.", schemas.SessionInfo)}, "Any role may ask."
    ),
    "log_out": Operation(
        "Session", "Log out", {204: Answer("The session is over.", None)}, "Any role may.", problems=(503,)
    ),
    "healthz": Operation("Probes", "Is it alive?", {200: Answer("It does its work.", schemas.Health)}),
    "readyz": Operation("Probes", "Is it ready?", {200: Answer("It keeps and runs tasks.", schemas.Health)}),
    "metrics": Operation(
        "Probes",
        "Get metrics",
        {200: Answer("Prometheus' text format 0.0.4.", TEXT, "text/plain; version=0.0.4; charset=utf-8")},
    ),
}
