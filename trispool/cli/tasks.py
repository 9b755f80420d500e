"""`trispool put`, `list` and `show`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, BinaryIO, Final
from urllib.parse import quote, quote_from_bytes

import click

from trispool.cli import display
from trispool.cli.reach import Reach, directory_option, reach_options
from trispool.cli.when import WHEN
from trispool.task import MAX_PRIORITY, TaskState

if TYPE_CHECKING:
    from trispool.cli.client import Service

__all__ = ["list_", "put", "show"]

MAX_QUERY: Final = 16_000
"""How many bytes of vars go into a query; the service takes 32 KiB of request line and headers."""

_MAX_PAGE: Final = 500


@click.command()
@click.argument("items", metavar="KEY=VALUE...", nargs=-1)
@click.option("-s", "--spool", help="The spool; without it the first one.")
@click.option(
    "--at", type=WHEN, help="Not before: Unix time, ISO 8601 time (of this machine if without offset), +90s, +2h."
)
@click.option("--priority", type=click.IntRange(0, MAX_PRIORITY), help="Smaller runs first; without one it runs last.")
@click.option("--body", type=click.File("rb"), metavar="FILE|-", help="The body of the task.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@directory_option
@reach_options
def put(
    reach: Reach,
    items: tuple[str, ...],
    spool: str | None,
    at: float | None,
    priority: int | None,
    body: BinaryIO | None,
    as_json: bool,
) -> None:
    """Enqueue a task and print its id.

    The vars of the task are KEY=VALUE; a handler is named by the var `handler`.
    """
    vars = _vars(items, at=at, priority=priority)
    if not vars and body is None:
        raise click.UsageError("expected at least one KEY=VALUE, or --body")
    content = body.read() if body is not None else b""

    def at_service(service: Service) -> dict[str, Any]:
        return _post(service, spool or reach.default_spool(), vars, content, at, priority)

    def in_directory(_: object) -> dict[str, Any]:
        from trispool.cli import offline

        return offline.keep_task(reach.place(spool), vars, content, at, priority)

    answer = reach.ask(at_service, in_directory)
    if as_json:
        display.print_json(answer)
    else:
        click.echo(answer["id"])


def _vars(items: tuple[str, ...], **options: object) -> dict[bytes, bytes]:
    vars: dict[bytes, bytes] = {}
    for item in items:
        # Arguments are bytes; what is not UTF-8 in them comes as lone surrogates.
        key, equals, value = os.fsencode(item).partition(b"=")
        name = display.printable(key.decode(errors="backslashreplace"))
        if not equals or not key:
            raise click.UsageError(f"{display.printable(item)}: expected KEY=VALUE")
        if key in vars or options.get(name) is not None:
            raise click.UsageError(f"{name} is given twice")
        vars[key] = value
    return vars


def _post(
    service: Service, spool: str, vars: dict[bytes, bytes], body: bytes, at: float | None, priority: int | None
) -> dict[str, Any]:
    """Hand a task to the service: as a form, or, with a body, as that body with the vars in the query."""
    fields = dict(vars)
    if at is not None:
        fields[b"at"] = f"{at:.6f}".encode()
    if priority is not None:
        fields[b"priority"] = str(priority).encode()
    form = "&".join(f"{quote_from_bytes(key, '')}={quote_from_bytes(value, '')}" for key, value in fields.items())
    path = f"/spools/{quote(spool, safe='')}/tasks"
    if not body:
        return service.post(path, form.encode("ascii"), "application/x-www-form-urlencoded")
    if len(form) <= MAX_QUERY:
        return service.post(f"{path}?{form}", body, "application/octet-stream")
    import base64
    import json

    document: dict[str, object] = {
        "vars": {
            key.decode(errors="surrogateescape"): {"base64": base64.b64encode(value).decode("ascii")}
            for key, value in fields.items()
        },
        "body": base64.b64encode(body).decode("ascii"),
    }
    return service.post(path, json.dumps(document).encode(), "application/json")


@click.command("list")
@click.option("-s", "--spool", help="Only of this spool.")
@click.option("--state", type=click.Choice([state.value for state in TaskState]), help="Only those in this state.")
@click.option("-q", metavar="TEXT", help="Only those with this text in their id, handler or error.")
@click.option(
    "--order", type=click.Choice(["asc", "desc"]), default="asc", show_default=True, help="By time of enqueuing."
)
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True, help="How many at most.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@directory_option
@reach_options
def list_(
    reach: Reach, spool: str | None, state: str | None, q: str | None, order: str, limit: int, as_json: bool
) -> None:
    """List tasks, waiting and finished."""

    def at_service(service: Service) -> dict[str, Any]:
        tasks: list[Any] = []
        cursor = None
        while True:
            query = {"spool": spool, "state": state, "q": q, "order": order, "cursor": cursor}
            page = service.get("/tasks", query | {"limit": str(min(limit - len(tasks), _MAX_PAGE))})
            tasks += page["tasks"]
            cursor = page["cursor"]
            if cursor is None or len(tasks) >= limit:
                return {"tasks": tasks, "cursor": cursor, "more": cursor is not None}

    def in_directories(_: object) -> dict[str, Any]:
        from trispool.cli import offline

        places = reach.places if spool is None else [reach.place(spool)]
        return offline.list_tasks(places, state=state, q=q, descending=order == "desc", limit=limit)

    answer = reach.ask(at_service, in_directories)
    if as_json:
        display.print_json(answer)
        return
    display.print_table(
        ("ID", "SPOOL", "STATE", "AT", "PRIORITY", "ATTEMPTS", "ERROR"),
        (
            (
                task["id"],
                task["spool"] or "-",
                task["state"],
                display.moment(task["at"]),
                display.number(task["priority"]),
                display.number(task["attempts"]),
                task["last_error"] or "",
            )
            for task in answer["tasks"]
        ),
    )
    if answer["more"]:
        click.echo(f"note: there are more than these {len(answer['tasks'])}; see --limit", err=True)


@click.command()
@click.argument("task_id", metavar="ID")
@click.option("--body", "only_body", is_flag=True, help="Print the body of the task and nothing else.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@directory_option
@reach_options
def show(reach: Reach, task_id: str, only_body: bool, as_json: bool) -> None:
    """Show all that is known of a task."""
    from trispool.cli import offline

    path = f"/tasks/{quote(task_id, safe='')}"
    if only_body:
        body = reach.ask(lambda service: service.get_bytes(f"{path}/body"), lambda all: offline.read_body(all, task_id))
        click.echo(body, nl=False)
        return
    task = reach.ask(lambda service: service.get(path), lambda all: offline.find_task(all, task_id))
    if as_json:
        display.print_json(task)
        return
    for line in _lines(task):
        click.echo(line)


def _lines(task: dict[str, Any]) -> list[str]:
    """A task for people."""
    known = {
        "id": task["id"],
        "spool": task["spool"],
        "state": task["state"],
        "at": display.moment(task["at"]),
        "priority": task["priority"],
        "enqueued": display.moment(task["enqueued_at"]),
        "attempts": task["attempts"],
        "finished": task["finished_at"] and display.moment(task["finished_at"]),
        "error": task["last_error"],
    }
    if task["progress"]:
        known["progress"] = f"{task['progress']['fraction']:.0%} {task['progress']['text']}"
    lines = [f"{key + ':':10}{display.printable(str(value))}" for key, value in known.items() if value is not None]
    if task["vars"] is not None:
        lines += ["vars:", *(f"  {display.printable(key)} = {_content(value)}" for key, value in task["vars"].items())]
    if task["body"] is not None and task["body"]["size"]:
        cut = ", its beginning" if task["body"]["truncated"] else ""
        lines.append(f"body: {task['body']['size']} bytes{cut}")
        lines += _block(_content(task["body"]["preview"], keep_lines=True))
    for attempt in task["history"]:
        when = display.moment(attempt["started_at"])
        if not attempt["worker_pid"]:  # an operator's doing
            lines.append(display.printable(f"{attempt['outcome']} at {when} {attempt['error'] or ''}".rstrip()))
            continue
        lines.append(
            f"attempt {attempt['number']}: {attempt['outcome']} at {when},"
            f" {attempt['run_seconds']:.3f} s in process {attempt['worker_pid']}"
            + (f", handler {display.printable(attempt['handler'])}" if attempt["handler"] else "")
        )
        lines += _block(attempt["traceback"] or attempt["error"] or "")
    return lines


def _content(value: str | dict[str, str], *, keep_lines: bool = False) -> str:
    if not isinstance(value, str):
        return f"(base64) {value['base64']}"
    return value if keep_lines else display.printable(value)


def _block(text: str) -> list[str]:
    return [f"  {display.printable(line)}" for line in text.splitlines()]
