"""Showing things: tables on a terminal, tab-separated lines elsewhere, JSON on request.

What is shown may come from anybody who can enqueue, so nothing of it reaches a terminal unescaped.
"""

from __future__ import annotations

import json
import sys
import time
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

import click

from trispool.printable import printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["ago", "moment", "number", "print_json", "print_table", "printable"]


MIN_LAST: Final = 20
"""The last column of a table gets so many characters, however long the lines become."""


def print_json(document: object) -> None:
    """A document, indented."""
    click.echo(json.dumps(document, indent=2))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Rows under headings. Only the last column is cut, so that an id can be copied from the narrowest terminal."""
    cells = [[printable(cell) for cell in row] for row in (columns, *rows)]
    if not sys.stdout.isatty():
        for row in cells:
            click.echo("\t".join(row))
        return
    from rich import box
    from rich.cells import cell_len
    from rich.console import Console, ConsoleDimensions
    from rich.table import Table
    from rich.text import Text

    # Left to itself, rich would squeeze the columns that are in the way of a long one to nothing.
    widths = [max(cell_len(row[number]) for row in cells) for number in range(len(columns))]
    gaps = 2 * (len(columns) - 1)
    console = Console()
    widths[-1] = min(widths[-1], max(console.width - sum(widths[:-1]) - gaps, MIN_LAST))
    console.size = ConsoleDimensions(max(console.width, sum(widths) + gaps), console.height)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for column, width in zip(columns, widths, strict=True):
        table.add_column(column, width=width, no_wrap=True)
    for row in cells[1:]:
        table.add_row(*(Text(cell) for cell in row))
    console.print(table)


def moment(seconds: float | None) -> str:
    """A Unix time as this machine's clock shows it."""
    if not seconds:
        return "-"
    try:
        local = datetime.fromtimestamp(seconds).astimezone()
    except (ValueError, OverflowError, OSError):
        return f"{seconds:.3f}"
    if sys.stdout.isatty():
        return local.strftime("%Y-%m-%d %H:%M:%S")
    return local.isoformat(timespec="milliseconds")


def ago(seconds: float | None) -> str:
    """How long a Unix time is ago, roughly."""
    if not seconds:
        return "-"
    past = max(0.0, time.time() - seconds)
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if past >= 2 * size:
            return f"{past / size:.0f}{unit}"
    return f"{past:.1f}s"


def number(value: Any) -> str:  # noqa: ANN401 # a number, or nothing, from JSON
    """A number, or a dash."""
    return "-" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
