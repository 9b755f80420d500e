"""The operator's verbs: on tasks `cancel`, `hold`, `release`, `run-now`, `retry` and `reschedule`, on spools `pause`,
`resume` and `frequency`. The service does it, and says what is not possible.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

import click

from trispool.cli import display
from trispool.cli.reach import reach_options
from trispool.cli.when import WHEN, Length

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from trispool.cli.reach import Reach

__all__ = ["COMMANDS"]

_FREQUENCY: Final = Length("a length of time such as 5, 30s or 1h30m", may_be_zero=True)

_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_ids_argument = click.argument("ids", metavar="ID...", nargs=-1, required=True)
_spool_argument = click.argument("spool", metavar="SPOOL")


# Tasks


def _task_verb(name: str, action: str, does: str) -> click.Command:
    @click.command(name, help=f"{does} With - the ids are read from standard input, as `trispool list` prints them.")
    @_ids_argument
    @_json_option
    @reach_options
    def command(reach: Reach, ids: tuple[str, ...], as_json: bool) -> None:
        _act(reach, ids, action, None, as_json)

    return command


@click.command()
@_ids_argument
@click.option("--at", type=WHEN, required=True, help="When: as for `trispool put`.")
@_json_option
@reach_options
def reschedule(reach: Reach, ids: tuple[str, ...], at: float, as_json: bool) -> None:
    """Let waiting tasks start at another time. With - the ids are read from standard input."""
    _act(reach, ids, "reschedule", {"at": at}, as_json)


def _act(reach: Reach, ids: Iterable[str], action: str, order: dict[str, Any] | None, as_json: bool) -> None:
    """Do something to tasks, one after the other; that it is refused for one does not stop the others."""
    from trispool.cli.client import Refused

    done: list[dict[str, Any]] = []
    refused: list[dict[str, str]] = []
    for task_id in _all_of(ids):
        try:
            task = reach.needed_service().send("POST", f"/tasks/{quote(task_id, safe='')}/{action}", order)
        except Refused as error:
            refused.append({"id": task_id, "error": str(error)})
            click.echo(f"error: {display.printable(task_id)}: {error}", err=True)
        else:
            done.append(task)
            if not as_json:
                click.echo(f"{display.printable(task['id'])}\t{task['state']}")
    if as_json:
        display.print_json({"tasks": done, "refused": refused})
    if refused:
        sys.exit(1)


def _all_of(ids: Iterable[str]) -> Iterator[str]:
    for task_id in ids:
        if task_id != "-":
            yield task_id
            continue
        for line in sys.stdin:
            found, tab, _ = line.strip().partition("\t")
            if found and not (tab and found == "ID"):  # a heading
                yield found


# Spools


@click.command()
@_spool_argument
@_json_option
@reach_options
def pause(reach: Reach, spool: str, as_json: bool) -> None:
    """Start no more tasks of a spool until it is resumed, or the service starts anew. Those that run go on."""
    _change(reach, spool, {"paused": True}, as_json)


@click.command()
@_spool_argument
@_json_option
@reach_options
def resume(reach: Reach, spool: str, as_json: bool) -> None:
    """Start the tasks of a spool again."""
    _change(reach, spool, {"paused": False}, as_json)


@click.command()
@_spool_argument
@click.argument("seconds", metavar="SECONDS", type=_FREQUENCY)
@_json_option
@reach_options
def frequency(reach: Reach, spool: str, seconds: float, as_json: bool) -> None:
    """Scan a spool, and retry its tasks, every so many seconds (5, 30s, 1h30m) until the service starts anew."""
    _change(reach, spool, {"frequency": seconds}, as_json)


def _change(reach: Reach, spool: str, change: dict[str, Any], as_json: bool) -> None:
    now = reach.needed_service().send("PATCH", f"/spools/{quote(spool, safe='')}", change)
    if as_json:
        display.print_json(now)
    else:
        state = "paused" if now["paused"] else "working"
        click.echo(f"{display.printable(now['name'])}\t{state}\tfrequency {now['frequency']:g} s")


COMMANDS: Final = (
    _task_verb("cancel", "cancel", "Let tasks not run, or break them off. They stay in the history."),
    _task_verb("hold", "hold", "Let waiting tasks wait until they are released."),
    _task_verb("release", "release", "Let held tasks go on waiting for their time."),
    _task_verb("run-now", "run", "Let waiting tasks start now, whenever they were to."),
    _task_verb("retry", "retry", "Run dead tasks again, and at once those that wait for another attempt."),
    reschedule,
    pause,
    resume,
    frequency,
)
