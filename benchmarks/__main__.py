"""`python -m benchmarks`: those who take part in turn, several rounds, tables on stdout and into the docs."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from benchmarks import disk, document, goals
from benchmarks.machine import commit, describe
from benchmarks.report import Result
from benchmarks.scenarios import SCENARIOS
from benchmarks.servers import ROOT, ServerFailed
from benchmarks.sizes import Sizes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def _sizes(command: Callable[..., Any]) -> Callable[..., Any]:
    """An option for each field of `Sizes`."""
    for field in reversed(dataclasses.fields(Sizes)):
        limits = click.IntRange(1, field.metadata["most"])
        name = f"--{field.name.replace('_', '-')}"
        text = field.metadata["help"]
        command = click.option(name, default=field.default, show_default=True, type=limits, help=text)(command)
    return command


@click.command()
@click.argument("benchmarks", nargs=-1, type=click.Choice(list(SCENARIOS)))
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(1, 100), help="At most, of each.")
@click.option(
    "--directory",
    default=None,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Where the spools are made (and removed): the disk matters. Default: a fresh ext4 of their own, in a file of "
    "the system's temporary directory, where root may mount one; else that directory.",
)
@click.option("--write", is_flag=True, help="Put tables and plots into the docs.")
@click.option(
    "--docs",
    default=document.DOCS,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Where these are; those of this checkout by default.",
)
@_sizes
def main(
    benchmarks: tuple[str, ...], rounds: int, directory: Path | None, write: bool, docs: Path, **counts: int
) -> None:
    """Compare trispool with uWSGI and with other queues: all BENCHMARKS, or those named."""
    sizes = Sizes(**counts)
    failures: list[str] = []
    with _workspace(directory) as workspace:
        circumstances = [f"{time.strftime('%Y-%m-%d')}, commit {commit(ROOT)}", *describe(workspace)]
        for name in benchmarks or SCENARIOS:
            before = len(failures)
            result = _run(name, workspace, sizes, rounds, circumstances, failures)
            if not result.ranked and len(failures) > before:
                continue  # a comparison needs all, but the other benchmarks are as good as ever
            click.echo("\n".join([*result.lines(), ""]))
            if write:
                _write(docs, name, result)
    if write:
        click.echo("\n".join(goals.lines(document.kept(docs / document.FIGURES))))
    sys.exit(bool(failures))


@contextlib.contextmanager
def _workspace(directory: Path | None) -> Iterator[Path]:
    with contextlib.ExitStack() as stack:
        if directory is None:
            directory = stack.enter_context(disk.fresh())
        workspace = Path(tempfile.mkdtemp(prefix="bench-", dir=directory))
        workspace.chmod(0o711)  # Redis and PostgreSQL run as users of their own
        try:
            yield workspace
        finally:
            # Only now: mass deletes between the runs would slow down some file systems.
            shutil.rmtree(workspace)


def _run(
    name: str, workspace: Path, sizes: Sizes, rounds: int, circumstances: list[str], failures: list[str]
) -> Result:
    """All rounds of one benchmark; who failed is noted, and added to the failures."""
    scenario = SCENARIOS[name]
    rounds = min(rounds, scenario.rounds)
    of_run = [f"{'1 round' if rounds == 1 else f'{rounds} rounds'}; {'; '.join(circumstances)}"]
    result = Result(scenario.title(sizes), list(scenario.notes(sizes)), of_run, ranked=scenario.ranked)
    for number in range(rounds):
        for place, (who, run) in enumerate(scenario.runs.items()):
            began = time.monotonic()
            try:
                result.add(who, run(workspace / f"{name}-{number}-{place}", sizes))
            except (ServerFailed, RuntimeError, OSError) as error:
                click.echo(f"{name}, round {number + 1}, {who} failed: {error}", err=True)
                failures.append(f"{who} failed in round {number + 1}.")
                result.notes.append(failures[-1])
            else:
                click.echo(f"{name}, round {number + 1}, {who}: {time.monotonic() - began:.0f} s", err=True)
    return result


def _write(docs: Path, name: str, result: Result) -> None:
    """At once, so that what has run is there if a later benchmark fails."""
    figures, page = docs / document.FIGURES, docs / document.PAGE
    results = document.kept(figures) | {name: result}
    document.keep(figures, results)
    text = document.replaced(page.read_text(), name, "\n".join(result.lines()))
    page.write_text(document.replaced(text, "goals", "\n".join(goals.lines(results))))
    # Only here: it takes a second, and is not installed where nothing is to be drawn.
    from benchmarks import plots

    plots.draw(docs / "plots", results)


if __name__ == "__main__":
    main()
