"""The clock is set, once in a few ways; and whether the judge sees what it has to."""

from __future__ import annotations

import subprocess
import sys
import time
from random import Random
from typing import TYPE_CHECKING, cast

import pytest

from tests.faults.clock import HOUR, SCENARIO, SOURCE, Asked, Clock, Watched, early, judge

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.acceptance.harness import Service


@pytest.fixture
def clock(tmp_path: Path) -> Iterator[Clock]:
    clock = Clock(tmp_path)
    yield clock
    clock.close()


@pytest.fixture
def watched(tmp_path: Path, clock: Clock) -> Watched:
    """One task for 1000 by the wall clock, which is an hour ahead for a while."""
    (tmp_path / "notes").touch()
    clock.steps[:] = [(0.0, 0.0), (100.0, HOUR), (110.0, 0.0)]
    return Watched(cast("Service", None), clock, tmp_path / "notes", Random(1), {"1": Asked(1000.0)})


def note(watched: Watched, monotonic: float, wall: float) -> None:
    with watched.notes.open("a") as notes:
        notes.write(f"began 1 {monotonic} {wall}\nended 1 {monotonic + 0.1} {wall + 0.1}\n")


def test_the_judge_sees_what_is_early_stalled_and_run_again(watched: Watched) -> None:
    assert judge(watched, ["1"], []) == ["1 is stalled"]
    note(watched, 50.0, 1000.0)
    assert judge(watched, ["1"], []) == []
    assert judge(watched, [], ["1"]) == ["1 started long before its time"]
    note(watched, 51.0, 999.0)
    assert judge(watched, ["1"], []) == ["1 started 1.000 s early", "1 ran 2 times"]


@pytest.mark.parametrize(("monotonic", "is_early"), [(99.9, True), (110.5, False), (112.0, True)])
def test_a_start_is_early_unless_the_clock_was_set_back_meanwhile(
    watched: Watched, monotonic: float, is_early: bool
) -> None:
    note(watched, monotonic, 900.0)
    assert bool(early(watched)) is is_early


def test_a_process_sees_the_clock_that_is_set_for_it_and_no_other(tmp_path: Path, clock: Clock) -> None:
    library = tmp_path / "clock.so"
    subprocess.run(
        ["gcc", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o", library, SOURCE, "-ldl"], check=True
    )
    clock.set(-HOUR)
    code = """if True:
        import os, time
        fd = os.open("file", os.O_CREAT | os.O_WRONLY)
        os.write(fd, b"x")
        status = os.stat("file")
        print(time.time(), time.monotonic(), status.st_mtime, status.st_ctime, os.fstat(fd).st_ctime)
    """
    before, since = time.time(), time.monotonic()
    told = subprocess.run(
        [sys.executable, "-c", code],
        env={"LD_PRELOAD": str(library), "CLOCK_STEPS": str(clock.path)},
        cwd=tmp_path,
        capture_output=True,
        check=True,
        text=True,
    )
    wall, monotonic, *stamps = map(float, told.stdout.split())
    # The kernel's clock for files is some milliseconds late.
    assert all(before - 0.1 <= stamp + HOUR <= time.time() for stamp in (wall, *stamps))
    assert since <= monotonic <= time.monotonic()
    assert (tmp_path / "file").stat().st_mtime == stamps[0]


def test_a_process_that_has_no_clock_does_not_start(tmp_path: Path) -> None:
    library = tmp_path / "clock.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, SOURCE, "-ldl"], check=True)
    told = subprocess.run([sys.executable, "-c", ""], env={"LD_PRELOAD": str(library)}, check=False)
    assert told.returncode == 99


def test_nothing_is_early_or_stalled_when_the_clock_is_set(tmp_path: Path) -> None:
    outcomes = SCENARIO.run(0.01, tmp_path, Random(1))
    assert [(outcome.name, outcome.violations) for outcome in outcomes if outcome.violations] == []
    assert all(int(outcome.figures["ran"]) for outcome in outcomes)
