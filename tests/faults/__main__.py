"""`python -m tests.faults`: runs scenarios, prints what they found, and puts it into docs/reliability.md if told to."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from random import Random

import click

from benchmarks.machine import describe
from tests.faults.figures import DOCS, names, replaced, scenario, section


@click.command()
@click.argument("scenarios", nargs=-1, type=click.Choice(names()), metavar="[NAMES]...")
@click.option(
    "--scale", default=1.0, show_default=True, type=click.FloatRange(0, min_open=True), help="1 is the run of the docs."
)
@click.option("--seed", default=1, show_default=True, help="Of all that is left to chance.")
@click.option(
    "--directory",
    default=None,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Where the spools are made (and removed): the file system matters. Default: the system's temporary one.",
)
@click.option("--write", is_flag=True, help=f"Put the tables into {DOCS.parent.name}/{DOCS.name}.")
def main(scenarios: tuple[str, ...], scale: float, seed: int, directory: Path | None, write: bool) -> None:
    """Make faults, and count what they broke: all NAMES, or those given."""
    kept = True
    for name in scenarios or names():
        kept &= _run(name, scale, seed, directory, write)
    sys.exit(0 if kept else 1)


def _run(name: str, scale: float, seed: int, directory: Path | None, write: bool) -> bool:
    workspace = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=directory))
    circumstances = [f"{time.strftime('%Y-%m-%d %H:%M')}, commit {_commit()}", *describe(workspace)]
    click.echo(f"running {name} at scale {scale:g} with seed {seed}", err=True)
    began = time.monotonic()
    try:
        found = scenario(name)
        # A scenario's chance is its own: it is the same alone as among others.
        outcomes = found.run(scale, workspace, Random(f"{name} {seed}"))
    except Exception:
        # The others take hours, and say something all the same.
        traceback.print_exc()
        click.echo(f"{name} did not come to its end", err=True)
        return False
    finally:
        shutil.rmtree(workspace)
    command = f"`python -m tests.faults {name} --scale {scale:g} --seed {seed}`"
    circumstances.append(f"{command}, {time.monotonic() - began:,.0f} s")
    text = section(found, outcomes, circumstances)
    click.echo(f"{text}\n")
    if write:
        DOCS.write_text(replaced(DOCS.read_text(), name, text))
    return not any(outcome.violations for outcome in outcomes)


def _commit() -> str:
    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=DOCS.parent, check=True, capture_output=True, text=True
        ).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", "../trispool")
        return f"{git('rev-parse', '--short', 'HEAD')}{' with changes' if changed else ''}"
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


if __name__ == "__main__":
    main()
