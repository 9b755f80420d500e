"""Figures of several rounds, and the tables that show them."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from benchmarks.servers import Kind

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["CREATE_COST", "RUN", "Measure", "Result", "Row", "percentile", "shown"]

UNEVEN: Final = 2.0
"""If creating a file cost so much more in one run than in another, their other figures cannot be compared."""


class Measure(NamedTuple):
    """What is measured.

    Attributes:
        name: In words.
        unit: In what.
        more_is_better: None: it is no merit of a server.
    """

    name: str
    unit: str
    more_is_better: bool | None = False


CREATE_COST: Final = Measure("disk: create and rename one file", "µs", None)
RUN: Final = Measure("enqueued and run", "/s", more_is_better=True)
"""By which a ranking is made."""


class Row(msgspec.Struct):
    """The figures of one measure.

    Attributes:
        name: What.
        unit: In what.
        more_is_better: As of a `Measure`.
        figures: For each who took part, one of each round.
    """

    name: str
    unit: str
    more_is_better: bool | None
    figures: dict[str, list[float]]

    def median(self, who: str) -> float | None:
        """The figure of one who took part; None: there is none."""
        return statistics.median(self.figures[who]) if self.figures.get(who) else None


class Result(msgspec.Struct):
    """The figures of one benchmark, as they are kept in docs/performance.json.

    Attributes:
        title: What it does.
        notes: What has to be known to read it.
        circumstances: When, of which commit, on what.
        rows: The figures.
        ranked: Whether who took part are the lines of its table, and not the columns.
    """

    title: str
    notes: list[str] = msgspec.field(default_factory=list)
    circumstances: list[str] = msgspec.field(default_factory=list)
    rows: list[Row] = msgspec.field(default_factory=list)
    ranked: bool = False

    def add(self, who: str, measured: Mapping[Measure, float]) -> None:
        """The figures of one round."""
        for measure, value in measured.items():
            row = self.row(measure.name)
            if row is None:
                row = Row(*measure, {})
                self.rows.insert(self._place(row), row)
            row.figures.setdefault(who, []).append(value)

    def _place(self, row: Row) -> int:
        """Behind the last one of the same subject, which is what stands before a colon."""
        subject = row.name.partition(":")[0]
        same = [place for place, other in enumerate(self.rows, 1) if other.name.partition(":")[0] == subject]
        return same[-1] if same else len(self.rows)

    def row(self, name: str) -> Row | None:
        """The figures of a measure; None: it has not been taken."""
        return next((row for row in self.rows if row.name == name), None)

    def median(self, name: str, who: str) -> float | None:
        """A figure; None: it has not been taken."""
        row = self.row(name)
        return None if row is None else row.median(who)

    def taking_part(self) -> list[str]:
        """Who took part."""
        return list(dict.fromkeys(who for row in self.rows for who in row.figures))

    def lines(self) -> list[str]:
        """A section in Markdown, with its table."""
        table = _ranking(self) if self.ranked else _columns(self)
        notes = [*self.notes, *self._warnings(), *self.circumstances]
        return [f"### {self.title}", "", *table, "", *(f"- {note}" for note in notes)]

    def _warnings(self) -> list[str]:
        row = self.row(CREATE_COST.name)
        costs = [cost for by_round in row.figures.values() for cost in by_round] if row else []
        if costs and max(costs) > UNEVEN * min(costs):
            return [
                f"NOT COMPARABLE: creating a file cost {min(costs):.0f} to {max(costs):.0f} µs from run to run. "
                "Repeat it on another file system (`--directory`), or when nothing else uses this one."
            ]
        return []


def percentile(values: Sequence[float], percent: float) -> float:
    """The value that so many percent of the values do not exceed; NaN if there are none.

    Args:
        values: Sorted.
        percent: 0 to 100.
    """
    if not values:
        return float("nan")
    return values[min(len(values) - 1, int(len(values) * percent / 100))]


def shown(value: float) -> str:
    """A number, as exact as it can be meant."""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    if abs(value) >= 100 or value == int(value):
        return f"{value:.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def _columns(result: Result) -> list[str]:
    who = result.taking_part()
    compared = Kind.UWSGI.value in who and Kind.OS.value in who
    cells = [["", "unit", *who, *(["times as good"] if compared else [])]]
    for row in result.rows:
        verdict = [_verdict(row, Kind.OS.value, Kind.UWSGI.value)] if compared else []
        cells.append([row.name, row.unit, *(_cell(row.figures.get(one, ())) for one in who), *verdict])
    return _drawn(cells, left=2)


def _ranking(result: Result) -> list[str]:
    """A line for each who took part, the best one last; how many times as good as a line the best is."""
    first, *others = sorted(result.rows, key=lambda row: row.name != RUN.name)
    who = sorted(result.taking_part(), key=lambda one: first.median(one) or 0.0)
    rows = [first, *others]
    cells = [["", *(f"{row.name}, {row.unit}" for row in rows), "the last is so many times as good"]]
    cells += [[one, *(_cell(row.figures.get(one, ())) for row in rows), _verdict(first, who[-1], one)] for one in who]
    return _drawn(cells, left=1)


def _drawn(cells: Sequence[Sequence[str]], left: int) -> list[str]:
    """A table in Markdown, aligned; so many columns are words."""
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    lines = []
    for row in cells:
        padded = (
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        lines.append("| " + " | ".join(padded) + " |")
    rules = ["-" * (width + 2) if column < left else "-" * (width + 1) + ":" for column, width in enumerate(widths)]
    lines.insert(1, "|" + "|".join(rules) + "|")
    return lines


def _cell(values: Sequence[float]) -> str:
    if not values:
        return ""
    middle = shown(statistics.median(values))
    if len(values) == 1:
        return middle
    return f"{middle} ({shown(min(values))}-{shown(max(values))})"


def _verdict(row: Row, one: str, other: str) -> str:
    ours, theirs = row.median(one), row.median(other)
    if row.more_is_better is None or ours is None or theirs is None:
        return ""
    better, worse = (ours, theirs) if row.more_is_better else (theirs, ours)
    if not worse:
        return "" if not better else "no end"
    return shown(better / worse)
