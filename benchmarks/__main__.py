"""`python -m benchmarks`: trispool and uWSGI in turn, several rounds, tables on stdout."""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from pathlib import Path

import click

from benchmarks.client import run_load, trivial_responder
from benchmarks.machine import describe
from benchmarks.records import CAPACITY
from benchmarks.report import Table
from benchmarks.scenarios import SCENARIOS, Sizes, packet
from benchmarks.servers import ServerFailed

_DEFAULTS = Sizes()
_COUNT = click.IntRange(1, CAPACITY // 2)


@click.command()
@click.argument("benchmarks", nargs=-1, type=click.Choice(list(SCENARIOS)))
@click.option(
    "--rounds", default=3, show_default=True, type=click.IntRange(1, 100), help="Of each, the servers in turn."
)
@click.option(
    "--directory",
    default=None,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Where the spools are made (and removed): the disk matters. Default: the system's temporary one.",
)
@click.option("--enqueue", default=_DEFAULTS.enqueue, show_default=True, type=_COUNT, help="Tasks by each socket.")
@click.option("--http", default=_DEFAULTS.http, show_default=True, type=_COUNT, help="Tasks by HTTP, one at a time.")
@click.option(
    "--http-batches", default=_DEFAULTS.http_batches, show_default=True, type=click.IntRange(1, 500), help="By HTTP."
)
@click.option("--waiting", default=_DEFAULTS.waiting, show_default=True, type=click.IntRange(1), help="Tasks to list.")
@click.option(
    "--finished", default=_DEFAULTS.finished, show_default=True, type=click.IntRange(1), help="Tasks in the history."
)
@click.option("--asked", default=_DEFAULTS.asked, show_default=True, type=click.IntRange(1), help="Times, each page.")
@click.option("--drain", default=_DEFAULTS.drain, show_default=True, type=_COUNT, help="Files to drain.")
@click.option("--latency", default=_DEFAULTS.latency, show_default=True, type=_COUNT, help="Tasks one at a time.")
@click.option(
    "--scheduled", default=_DEFAULTS.scheduled, show_default=True, type=click.IntRange(1), help="Tasks for tomorrow."
)
@click.option(
    "--scheduled-latency",
    default=_DEFAULTS.scheduled_latency,
    show_default=True,
    type=_COUNT,
    help="Tasks one at a time beside them.",
)
@click.option("--at", default=_DEFAULTS.at, show_default=True, type=_COUNT, help="Tasks with a time.")
@click.option(
    "--processes", default=_DEFAULTS.processes, show_default=True, type=click.IntRange(1, 64), help="Client processes."
)
@click.option(
    "--connections",
    default=_DEFAULTS.connections,
    show_default=True,
    type=click.IntRange(1, 256),
    help="Of each client process at once.",
)
def main(benchmarks: tuple[str, ...], rounds: int, directory: Path | None, **counts: int) -> None:
    """Compare trispool with uWSGI: all BENCHMARKS, or those named."""
    sizes = Sizes(**counts)
    workspace = Path(tempfile.mkdtemp(prefix="bench-", dir=directory))
    try:
        click.echo(f"## trispool and uWSGI, {time.strftime('%Y-%m-%d %H:%M')}, {rounds} rounds: median (least-most)\n")
        click.echo("".join(f"- {line}\n" for line in describe(workspace)))
        for name in benchmarks or SCENARIOS:
            _run(name, workspace, sizes, rounds)
    except ServerFailed as error:
        click.echo(f"failed: {error}", err=True)
        sys.exit(1)
    finally:
        # Only now: mass deletes between the runs would slow down some file systems.
        shutil.rmtree(workspace)


def _run(name: str, workspace: Path, sizes: Sizes, rounds: int) -> None:
    scenario = SCENARIOS[name]
    notes = scenario.notes(sizes)
    if name == "enqueue":
        notes.append(_client_limit(workspace, sizes))
    table = Table(scenario.title(sizes), notes)
    for number in range(rounds):
        for kind in scenario.kinds:
            table.add(kind, scenario.run(kind, workspace / f"{name}-{number}-{kind.name}", sizes))
    click.echo("\n".join(table.lines()))


def _client_limit(workspace: Path, sizes: Sizes) -> str:
    packets = [packet(number) for number in range(sizes.enqueue)]
    with trivial_responder(workspace / "responder") as addresses:
        unix, tcp = (run_load(address, packets, sizes.processes, sizes.connections).rate for address in addresses)
    return f"The client's limit, against a server that only answers: {unix:,.0f}/s by Unix socket, {tcp:,.0f}/s by TCP."


if __name__ == "__main__":
    main()
