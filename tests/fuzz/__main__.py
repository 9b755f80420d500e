"""`make fuzz`: every target for a while, then the properties with many examples, then the API by its own description.

What breaks a target is put into tests/data/corpus, where every test run finds it.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

import click

from tests.fuzz.http import HTTP_SEEDS
from tests.fuzz.targets import TARGETS

ROOT: Final = Path(__file__).parents[2]
CORPUS: Final = ROOT / "tests/data/corpus"

SEEDS: Final = {**{name: target.seeds for name, target in TARGETS.items()}, "http": HTTP_SEEDS}

OTHERS: Final = ("properties", "api")

EXAMPLES_A_SECOND: Final = 15
"""Of the properties, all targets together; a guess that keeps to the time that was asked for, about."""

LIMITS: Final = ("-timeout=120", "-rss_limit_mb=2048", "-max_len=4096", "-verbosity=1", "-print_final_stats=1")
"""A case that takes longer than so many seconds, by the clock on the wall, or more MB, is one that was found."""


@click.command()
@click.argument("names", nargs=-1, type=click.Choice([*SEEDS, *OTHERS]), metavar="[NAMES]...")
@click.option("--seconds", default=600, show_default=True, type=click.IntRange(1), help="For each.")
@click.option("--seed", default=0, show_default=True, help="Of chance; 0: another one each time.")
def main(names: tuple[str, ...], seconds: int, seed: int) -> None:
    """Fuzz NAMES, or everything."""
    is_sound = True
    for name in names or (*SEEDS, *OTHERS):
        match name:
            case "properties":
                found = not _properties(seconds)
            case "api":
                found = not _api(seconds, seed)
            case _:
                found = not _guided(name, seconds, seed)
        click.echo(f"{name}: {'SOMETHING WAS FOUND, see above' if found else 'nothing found'}")
        is_sound &= not found
    sys.exit(0 if is_sound else 1)


def _guided(name: str, seconds: int, seed: int) -> bool:
    """One target under atheris; whether nothing was found."""
    if importlib.util.find_spec("atheris") is None:
        click.echo(f"{name}: atheris is not installed (it has wheels for few systems); the properties run all the same")
        return True
    with tempfile.TemporaryDirectory(prefix=f"fuzz-{name}-") as folder:
        seeds, found = Path(folder, "seeds"), Path(folder, "found")
        found.mkdir()
        shutil.copytree(CORPUS / name, seeds) if (CORPUS / name).is_dir() else seeds.mkdir()
        for number, content in enumerate(SEEDS[name]):
            (seeds / f"seed-{number}").write_bytes(content)
        done = subprocess.run(
            [
                *(sys.executable, "-m", "tests.fuzz.guided", name, *LIMITS),
                *(f"-max_total_time={seconds}", f"-seed={seed}", f"-artifact_prefix={found}/", str(seeds)),
            ],
            cwd=ROOT,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        runs = re.search(r"number_of_executed_units: (\d+)", done.stderr)
        click.echo(f"{name}: {int(runs[1]) if runs else 0:,} runs")
        if done.returncode == 0:
            return True
        click.echo(done.stdout[-8000:] + done.stderr[-8000:])
        for case in found.iterdir():
            kept = CORPUS / name / case.name[:24]
            kept.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(case, kept)
            click.echo(f"kept as {kept.relative_to(ROOT)}: {case.read_bytes()[:200]!r}")
        return False


def _properties(seconds: int) -> bool:
    """What Hypothesis makes of the seeds, more of it than in a test run; whether nothing was found."""
    examples = max(1, seconds * EXAMPLES_A_SECOND)
    return _succeeds(["-m", "pytest", "-q", "tests/fuzz/test_targets.py"], FUZZ_EXAMPLES=str(examples))


def _api(seconds: int, seed: int) -> bool:
    """The API as its OpenAPI document describes it, in sequences of calls, too; whether nothing was found."""
    return _succeeds(["-m", "tests.fuzz.api", str(seconds), str(seed)])


def _succeeds(arguments: list[str], **environment: str) -> bool:
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}, check=False).returncode == 0


if __name__ == "__main__":
    main()
