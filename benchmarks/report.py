"""Figures of several rounds, and the table that shows them."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

from benchmarks.servers import Kind

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["Measure", "Table", "percentile"]

UNEVEN: Final = 2.0
"""If creating a file cost so much more in one run than in another, their other figures cannot be compared."""


class Measure(NamedTuple):
    """One line of a table.

    Attributes:
        name: What is measured.
        unit: In what.
        more_is_better: None: it is no merit of a server.
    """

    name: str
    unit: str
    more_is_better: bool | None = False


CREATE_COST: Final = Measure("disk: create and rename one file", "µs", None)


@dataclass(slots=True)
class Table:
    """The figures of one benchmark.

    Attributes:
        title: What it does.
        notes: What has to be known to read it.
        figures: For each measure and server, one for each round.
    """

    title: str
    notes: Sequence[str] = ()
    figures: dict[Measure, dict[Kind, list[float]]] = field(default_factory=dict)

    def add(self, kind: Kind, measured: Mapping[Measure, float]) -> None:
        """The figures of one round."""
        for measure, value in measured.items():
            self.figures.setdefault(measure, {}).setdefault(kind, []).append(value)

    def lines(self) -> list[str]:
        """The table in Markdown, aligned."""
        kinds = [kind for kind in Kind if any(kind in by_kind for by_kind in self.figures.values())]
        rows = [["", "unit", *(kind.value for kind in kinds), "times as good"]]
        for measure, by_kind in self.figures.items():
            cells = [_cell(by_kind.get(kind, [])) for kind in kinds]
            rows.append([measure.name, measure.unit, *cells, _verdict(measure, by_kind)])
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        drawn = [_row(row, widths) for row in rows]
        drawn.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
        return [f"### {self.title}", "", *drawn, "", *(f"- {note}" for note in [*self.notes, *self._warnings()]), ""]

    def _warnings(self) -> list[str]:
        costs = [cost for by_round in self.figures.get(CREATE_COST, {}).values() for cost in by_round]
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


def _row(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = (
        cell.ljust(width) if column < 2 else cell.rjust(width)
        for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
    )
    return "| " + " | ".join(padded) + " |"


def _cell(values: Sequence[float]) -> str:
    if not values:
        return ""
    middle = _number(statistics.median(values))
    if len(values) == 1:
        return middle
    return f"{middle} ({_number(min(values))}-{_number(max(values))})"


def _verdict(measure: Measure, by_kind: Mapping[Kind, Sequence[float]]) -> str:
    if measure.more_is_better is None or Kind.UWSGI not in by_kind or Kind.OS not in by_kind:
        return ""
    ours, theirs = statistics.median(by_kind[Kind.OS]), statistics.median(by_kind[Kind.UWSGI])
    better, worse = (ours, theirs) if measure.more_is_better else (theirs, ours)
    if not worse:
        return "" if not better else "no end"
    return _number(better / worse)


def _number(value: float) -> str:
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    if abs(value) >= 100 or value == int(value):
        return f"{value:.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"
