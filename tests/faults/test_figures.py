"""Tables of faults: every row is shown, every broken promise is told, and a section replaces its last one alone."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.faults import __main__ as command
from tests.faults.figures import DOCS, Outcome, names, replaced, scenario, section, table

if TYPE_CHECKING:
    from pathlib import Path
    from random import Random


class Fake:
    """A scenario that finds what it is told to find."""

    title = "Nothing at all"
    promise = "Nothing happens."

    def __init__(self, *outcomes: Outcome) -> None:
        self.outcomes = list(outcomes)
        self.drawn: list[float] = []

    def run(self, scale: float, folder: Path, random: Random) -> list[Outcome]:
        (folder / "left").touch()
        self.drawn.append(random.random())
        return self.outcomes


def test_a_table_has_a_row_an_outcome_and_a_column_a_figure() -> None:
    shown = table([Outcome("kill", 10000, {"lost": 0, "ms": 1.2345}), Outcome("a|b", 2, {"said": "x"}, ["lost 1"])])
    assert shown.splitlines() == [
        "|      |  tried | lost |   ms | said | promises broken |",
        "|------|-------:|-----:|-----:|-----:|----------------:|",
        "| kill | 10,000 |    0 | 1.23 |      |               0 |",
        r"| a\|b |      2 |      |      |    x |               1 |",
    ]


def test_a_section_tells_the_broken_promises_and_counts_the_rest() -> None:
    outcomes = [Outcome("kill", 3, {}, [f"task {number} was lost" for number in range(23)])]
    text = section(Fake(), outcomes, ["a machine"])
    assert text.startswith("## Nothing at all\n\nNothing happens.\n\n|")
    assert "- **kill**: task 19 was lost\n- **kill**: and 3 more\n\n- a machine" in text


def test_a_section_replaces_its_last_one_alone() -> None:
    document = "# Head\n\n<!-- a: begin -->\nold\n<!-- a: end -->\n\n<!-- b: begin -->\nother\n<!-- b: end -->\n"
    assert replaced(document, "a", "new") == document.replace("old", "new")
    assert replaced(document, "c", "new") == document + "\n<!-- c: begin -->\nnew\n<!-- c: end -->\n"
    with pytest.raises(ValueError, match="has no"):
        replaced("<!-- a: begin -->", "a", "new")


def test_every_scenario_is_found_and_has_a_place_in_the_docs() -> None:
    document = DOCS.read_text()
    assert "kills" in names()
    for name in names():
        assert f"<!-- {name}: begin -->" in document, name
        assert scenario(name).title
        assert scenario(name).promise


def test_the_command_prints_and_writes_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    document = tmp_path / "reliability.md"
    document.write_text("# Head\n")
    monkeypatch.setattr(command, "DOCS", document)
    fake = Fake(Outcome("kill", 1))
    monkeypatch.setattr(command, "scenario", lambda name: fake)
    place = tmp_path / "place"
    place.mkdir()
    assert command._run("fake", 1, 7, place, True)
    assert "`python -m tests.faults fake --scale 1 --seed 7`" in document.read_text()
    assert list(place.iterdir()) == []
    assert command._run("fake", 1, 7, place, False)
    assert fake.drawn[0] == fake.drawn[1]
    fake.outcomes = [Outcome("kill", 1, {}, ["lost"])]
    assert not command._run("fake", 1, 7, place, False)


def test_the_command_fails_when_a_scenario_does_not_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(name: str) -> Fake:
        raise OSError("no disk")

    monkeypatch.setattr(command, "scenario", broken)
    assert not command._run("broken", 1, 7, tmp_path, False)
    assert "no disk" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_command_knows_its_scenarios() -> None:
    arguments = [sys.executable, "-m", "tests.faults", "nothing"]
    told = subprocess.run(arguments, cwd=DOCS.parents[1], capture_output=True, text=True, check=False)
    assert told.returncode == 2
    assert "'kills'" in told.stderr
