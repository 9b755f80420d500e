"""What the API answers: values of `trispool.control` as JSON documents.

Times are Unix seconds and durations seconds, numbers with a fraction, never text. Bytes (the values of vars, bodies)
are text where they are UTF-8 and `{"base64": "…"}` where not; in keys a byte that is not UTF-8 is shown as `\\xff`.
"""

from __future__ import annotations

import base64
import codecs
from typing import TYPE_CHECKING, Any, Final

from trispool.admin.problems import document, problem_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from trispool.control import Attempt, Page, SpoolStatus, TaskDetail, TaskSummary, WorkerStatus
    from trispool.errors import TrispoolError
    from trispool.operating import AuditPage, BulkPage, BulkPreview, BulkStatus
    from trispool.task import Accepted

__all__ = [
    "accepted_document",
    "audit_document",
    "bulk_document",
    "bulk_page_document",
    "page_document",
    "preview_document",
    "refused_document",
    "spool_document",
    "summary_document",
    "task_document",
    "worker_document",
]

MAX_PREVIEW: Final = 4096
"""How many bytes of a body a task's document shows; `GET /tasks/{id}/body` has them all."""


def accepted_document(accepted: Accepted) -> dict[str, object]:
    """The answer to an enqueued task."""
    return {"id": accepted.id, "spool": accepted.spool, "at": accepted.at}


def refused_document(error: TrispoolError, line: int) -> dict[str, object]:
    """What became of one task of a batch that was not kept."""
    problem = problem_of(error)
    return document(problem.status, problem.detail, line=line)


def spool_document(status: SpoolStatus) -> dict[str, object]:
    """A spool's settings and counts."""
    return {
        "name": status.name,
        "directory": status.directory,
        "frequency": status.frequency,
        "processes": status.processes,
        "paused": status.paused,
        "durability": status.durability,
        "ready": status.ready,
        "scheduled": status.scheduled,
        "running": status.running,
        "retrying": status.retrying,
        "held": status.held,
        "dead": status.dead,
        "oldest_ready_at": status.oldest_ready_at,
        "finished": dict(status.finished),
        "workers": [worker_document(worker) for worker in status.workers],
        "problem": status.problem,
        "configured": dict(status.configured),
        "scanned": status.scanned,
        "refusing": status.refusing,
    }


def page_document(page: Page) -> dict[str, object]:
    """A part of a list of tasks."""
    return {"tasks": [summary_document(item) for item in page.items], "cursor": page.cursor}


def task_document(task: TaskDetail) -> dict[str, object]:
    """A task with all that is known of it."""
    return summary_document(task.summary) | {
        "vars": None if task.vars is None else _vars_document(task.vars),
        "body": None if task.body is None else _body_document(task.body),
        "history": _history_document(task.attempts),
    }


def summary_document(task: TaskSummary) -> dict[str, object]:
    """A task as a row of a list."""
    progress = task.progress
    return {
        "id": task.id,
        "spool": task.spool,
        "state": task.state.value,
        "at": task.at,
        "priority": task.priority,
        "enqueued_at": task.enqueued_at,
        "attempts": task.attempts,
        "last_error": task.last_error,
        "finished_at": task.finished_at,
        "run_seconds": task.run_seconds,
        "progress": progress and {"fraction": progress[0], "text": progress[1]},
        "handler": task.handler,
    }


def _history_document(attempts: Sequence[Attempt]) -> list[dict[str, object]]:
    return [
        {
            "number": attempt.number,
            "outcome": attempt.outcome,
            "started_at": attempt.started_at,
            "queue_seconds": attempt.queue_seconds,
            "run_seconds": attempt.run_seconds,
            "worker_pid": attempt.worker_pid,
            "handler": attempt.handler,
            "error": attempt.error,
            "traceback": attempt.traceback,
        }
        for attempt in attempts
    ]


def worker_document(worker: WorkerStatus, spool: str | None = None) -> dict[str, object]:
    """A worker; with the name of its spool where that is not clear."""
    document: dict[str, object] = {
        "pid": worker.pid,
        "state": worker.state,
        "task_id": worker.task_id,
        "task_since": worker.task_since,
        "tasks_done": worker.tasks_done,
        "started_at": worker.started_at,
        "is_async": worker.is_async,
    }
    return document if spool is None else document | {"spool": spool}


def preview_document(preview: BulkPreview) -> dict[str, object]:
    """What a bulk action would do."""
    return {
        "matched": preview.matched,
        "refused": preview.refused,
        "by_state": dict(preview.by_state),
        "sample": list(preview.sample),
    }


def bulk_document(status: BulkStatus) -> dict[str, object]:
    """How far a bulk action is."""
    return {
        "id": status.id,
        "action": status.action.value,
        "state": status.state,
        "total": status.total,
        "done": status.done,
        "refused": status.refused,
        "actor": status.actor,
        "started_at": status.started_at,
        "finished_at": status.finished_at,
        "problem": status.problem,
    }


def bulk_page_document(page: BulkPage) -> dict[str, object]:
    """The same with some of its results."""
    return bulk_document(page.status) | {
        "results": [
            {
                "id": result.id,
                "state": result.state and result.state.value,
                "status": result.status,
                "detail": result.detail,
            }
            for result in page.results
        ],
        "cursor": page.cursor,
    }


def audit_document(page: AuditPage) -> dict[str, object]:
    """A part of the audit log."""
    return {
        "rows": [
            {
                "seq": row.seq,
                "at": row.at,
                "actor": row.actor,
                "role": row.role,
                "address": row.address,
                "action": row.action,
                "target": row.target,
                "before": row.before,
                "after": row.after,
                "outcome": row.outcome,
            }
            for row in page.rows
        ],
        "cursor": page.cursor,
    }


def _vars_document(vars: Mapping[bytes, bytes]) -> dict[str, Any]:
    return {key.decode("utf-8", "backslashreplace"): _text_or_base64(value) for key, value in vars.items()}


def _text_or_base64(value: bytes) -> str | dict[str, str]:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(value).decode("ascii")}


def _body_document(body: bytes) -> dict[str, object]:
    """A body's size and beginning; a character cut in two by the limit does not make it binary."""
    shown = body[:MAX_PREVIEW]
    truncated = len(body) > MAX_PREVIEW
    preview: str | dict[str, str]
    try:
        preview = codecs.getincrementaldecoder("utf-8")().decode(shown, final=not truncated)
    except UnicodeDecodeError:
        preview = _text_or_base64(shown)
    return {"size": len(body), "preview": preview, "truncated": truncated}
