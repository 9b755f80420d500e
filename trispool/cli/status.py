"""`trispool status`."""

from __future__ import annotations

from typing import Any

import click

from trispool.cli import display
from trispool.cli.reach import Reach, reach_options

__all__ = ["status"]


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@reach_options
def status(reach: Reach, as_json: bool) -> None:
    """Show all spools of the running service; exit code 1 if it does not answer."""
    service = reach.needed_service()
    spools = service.get("/spools")["spools"]
    ok, problems = service.is_healthy()
    if as_json:
        display.print_json({"ok": ok, "problems": problems, "spools": spools})
        return
    display.print_table(
        ("SPOOL", "STATE", "READY", "SCHEDULED", "RUNNING", "RETRYING", "DEAD", "OK", "FAILED", "OLDEST", "WORKERS"),
        [_row(spool) for spool in spools],
    )
    for problem in problems:
        for line in problem.splitlines():
            click.echo(f"problem: {display.printable(line)}")


def _row(spool: dict[str, Any]) -> tuple[str, ...]:
    finished = spool["finished"]
    failed = sum(count for outcome, count in finished.items() if outcome in ("failed", "lost", "timeout"))
    busy = sum(worker["state"] == "busy" for worker in spool["workers"])
    return (
        spool["name"],
        "paused" if spool["paused"] else "problem" if spool["problem"] else "working",
        *(str(spool[key]) for key in ("ready", "scheduled", "running", "retrying", "dead")),
        str(finished.get("ok", 0)),
        str(failed),
        display.ago(spool["oldest_ready_at"]),
        f"{busy} of {len(spool['workers'])} busy",
    )
