"""Pictures of the figures, as small SVG files that are the same for the same figures, legible on white and on black."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import matplotlib as mpl

from benchmarks.latency import CPU
from benchmarks.report import RUN, shown
from benchmarks.servers import Kind

mpl.use("svg")
from matplotlib import pyplot as plt  # only now without a display

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from benchmarks.report import Result

__all__ = ["draw"]

INK: Final = "#7d8590"
"""Grey that can be read on white as well as on black."""

COLOURS: Final = {True: "#1f9d8f", False: "#b0713a"}
"""Of trispool, and of others."""

UWSGI, OS, FSYNC = (kind.value for kind in (Kind.UWSGI, Kind.OS, Kind.FSYNC))


@dataclass(frozen=True, slots=True)
class Bars:
    """One picture of horizontal bars.

    Attributes:
        name: Of the file.
        title: Above it.
        benchmark: Whose figures.
        bars: For each bar its label, the measure, and whose figure; none: all that take part, by their names.
        measure: Of the latter.
        logarithmic: Whether ten times as much is always as much longer.
    """

    name: str
    title: str
    benchmark: str
    bars: Sequence[tuple[str, str, str]] = ()
    measure: str = ""
    logarithmic: bool = False

    def figures(self, results: Mapping[str, Result]) -> list[tuple[str, float]]:
        """Labels and figures; none if the benchmark has not run."""
        result = results.get(self.benchmark)
        if result is None:
            return []
        bars = self.bars or [(who, self.measure, who) for who in result.taking_part()]
        found = [(label, result.median(measure, who)) for label, measure, who in bars]
        figures = [(label, figure) for label, figure in found if figure is not None]
        return figures if self.bars else sorted(figures, key=lambda bar: -bar[1])


PICTURES: Final = (
    Bars(
        "enqueue",
        "Enqueued by Unix socket while the tasks run, tasks/s (more is better)",
        "enqueue",
        [
            ("the client alone", "Unix socket: enqueued", "client alone"),
            ("uWSGI", "Unix socket: enqueued", UWSGI),
            ('trispool, "os"', "Unix socket: enqueued", OS),
            ('trispool, "fsync"', "Unix socket: enqueued", FSYNC),
        ],
    ),
    Bars("peers", "End to end, tasks/s (more is better; logarithmic)", "peers", measure=RUN.name, logarithmic=True),
    Bars(
        "scheduled",
        "CPU a task beside 100,000 scheduled tasks, ms (less is better; logarithmic)",
        "scheduled",
        [("uWSGI", CPU.name, UWSGI), ("trispool", CPU.name, OS)],
        logarithmic=True,
    ),
)


def draw(folder: Path, results: Mapping[str, Result]) -> None:
    """Draw all pictures of which there are figures.

    Args:
        folder: Where the files go.
        results: The figures.
    """
    folder.mkdir(exist_ok=True)
    for picture in PICTURES:
        figures = picture.figures(results)
        if figures:
            _draw(folder / f"{picture.name}.svg", picture, figures)


def _draw(path: Path, picture: Bars, figures: Sequence[tuple[str, float]]) -> None:
    labels = [label.replace("`", "") for label, _ in figures]
    lengths = [figure for _, figure in figures]
    style: Any = {
        "svg.hashsalt": picture.name,  # else the names of its parts are random
        "svg.fonttype": "none",  # text stays text: small, and in the reader's font
        "text.color": INK,
        "axes.edgecolor": INK,
        "xtick.color": INK,
        "ytick.color": INK,
        "font.size": 10,
    }
    with mpl.rc_context(style):
        drawing, axes = plt.subplots(figsize=(8, 0.6 + 0.33 * len(figures)))
        colours = [COLOURS["trispool" in label] for label in labels]
        bars = axes.barh(labels, lengths, color=colours, height=0.7, log=picture.logarithmic)
        axes.bar_label(bars, [shown(length) for length in lengths], padding=4)
        axes.invert_yaxis()
        axes.set_title(picture.title, fontsize=10, loc="left")
        # Room for the figures. A logarithmic bar has no beginning: this one starts at half of the shortest.
        least, most = min(lengths), max(lengths)
        axes.set_xlim(*((least / 2, most * (most / least) ** 0.15) if picture.logarithmic else (0, most * 1.15)))
        for side in ("top", "right", "bottom"):
            axes.spines[side].set_visible(False)
        axes.tick_params(bottom=False, labelbottom=False, left=False, which="both")
        drawing.savefig(path, transparent=True, bbox_inches="tight", metadata={"Date": None, "Creator": None})
        plt.close(drawing)
    # matplotlib ends some lines with a blank, which others would take away.
    path.write_text(re.sub(r"[ \t]+$", "", path.read_text(), flags=re.MULTILINE))
