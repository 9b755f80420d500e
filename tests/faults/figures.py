"""What a fault scenario finds, and how that becomes a table of docs/reliability.md.

A scenario is a module of this package with a `SCENARIO` in it. It makes faults, and judges by what the outside saw:
clients' acknowledgements, handlers' starts. It does not assert; it counts, and says in words which promise was broken.
"""

from __future__ import annotations

import importlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from random import Random

DOCS: Final = Path(__file__).parents[2] / "docs/reliability.md"

TOLD: Final = 20
"""Violations of one row that are told in words; the rest are counted. A thousand lost tasks have one cause."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One row of docs/reliability.md."""

    name: str
    """What was done, as "kill -9 of the service"."""
    tried: int
    """How many moments, calls, lengths, …"""
    figures: Mapping[str, int | float | str] = field(default_factory=dict)
    """{"acknowledged": …, "lost": 0, …}: the other columns. Rows of a scenario should have the same ones."""
    violations: Sequence[str] = ()
    """Promises that were broken, in words; empty if all were kept."""


@dataclass(slots=True)
class Tally:
    """What comes of the cases of one row, until it is one."""

    tried: int = 0
    figures: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0
    violations: list[str] = field(default_factory=list)


class Scenario(Protocol):
    """One kind of fault."""

    @property
    def title(self) -> str:
        """Heading of its section."""

    @property
    def promise(self) -> str:
        """What is promised, one sentence."""

    def run(self, scale: float, folder: Path, random: Random) -> list[Outcome]:
        """Make the faults.

        Args:
            scale: How much of it: 1 is the long run of the docs, 0.01 that of `make test`, or what fits in seconds.
            folder: An empty directory of its own, which the caller removes.
            random: The only source of chance, so that a seed brings the same run again, as far as processes allow.
        """


def names() -> list[str]:
    """The scenarios of this package. They are not loaded: one may be broken, and not be wanted."""
    modules = Path(__file__).parent.glob("*.py")
    return sorted(path.stem for path in modules if path.stem.isalpha() and "\nSCENARIO" in path.read_text())


def scenario(name: str) -> Scenario:
    """The scenario of a module."""
    found: Scenario = importlib.import_module(f"tests.faults.{name}").SCENARIO
    return found


def section(scenario: Scenario, outcomes: Sequence[Outcome], circumstances: Sequence[str]) -> str:
    """A section of the docs: heading, promise, table, what was broken, and what it was taken on."""
    parts = [f"## {scenario.title}", scenario.promise, table(outcomes)]
    if broken := _broken(outcomes):
        parts.append(broken)
    parts.append("\n".join(f"- {line}" for line in circumstances))
    return "\n\n".join(parts)


def table(outcomes: Sequence[Outcome]) -> str:
    """The outcomes as a Markdown table."""
    # A dict keeps the order in which columns were first seen, a set does not.
    columns = list(dict.fromkeys(key for outcome in outcomes for key in outcome.figures))
    rows = [["", "tried", *columns, "promises broken"]]
    rows += [
        [
            _shown(outcome.name),
            _shown(outcome.tried),
            *(_shown(outcome.figures.get(column, "")) for column in columns),
            _shown(len(outcome.violations)),
        ]
        for outcome in outcomes
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [_line(row, widths) for row in rows]
    rule = f"|{'-' * (widths[0] + 2)}|" + "".join(f"{'-' * (width + 1)}:|" for width in widths[1:])
    return "\n".join([lines[0], rule, *lines[1:]])


def replaced(document: str, name: str, section: str) -> str:
    """The document with the section of one scenario put in the place of its last one, or at the end."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    content = f"{begin}\n{section}\n{end}"
    before, found, rest = document.partition(begin)
    if not found:
        return f"{document.rstrip()}\n\n{content}\n"
    _, ended, after = rest.partition(end)
    if not ended:
        raise ValueError(f"{begin} has no {end}")
    return f"{before}{content}{after}"


def _broken(outcomes: Sequence[Outcome]) -> str:
    lines = []
    for outcome in outcomes:
        lines += [f"- **{outcome.name}**: {text}" for text in outcome.violations[:TOLD]]
        if (more := len(outcome.violations) - TOLD) > 0:
            lines.append(f"- **{outcome.name}**: and {more:,} more")
    return "\n".join(["Promises broken:", "", *lines]) if lines else ""


def _shown(value: float | str) -> str:
    match value:
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}"
        case float():
            # Three digits tell all that a figure of one run can tell.
            return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
        case _:
            return value.replace("|", r"\|")


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    first, *others = row
    cells = [first.ljust(widths[0]), *(text.rjust(width) for text, width in zip(others, widths[1:], strict=True))]
    return f"| {' | '.join(cells)} |"
