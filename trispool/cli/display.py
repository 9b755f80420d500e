"""Showing things: tables on a terminal, tab-separated lines elsewhere, JSON on request.

What is shown may come from anybody who can enqueue, so nothing of it reaches a terminal unescaped.
"""

from __future__ import annotations

import json
import sys
import time
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from trispool.printable import printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["ago", "moment", "number", "print_json", "print_table", "printable"]


def print_json(document: object) -> None:
    """A document, indented."""
    click.echo(json.dumps(document, indent=2))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Rows under headings. The first column is never cut, the last takes what is left."""
    if not sys.stdout.isatty():
        for row in (columns, *rows):
            click.echo("\t".join(printable(cell) for cell in row))
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for number, column in enumerate(columns):
        is_last = number == len(columns) - 1
        table.add_column(column, no_wrap=True, overflow="ellipsis" if is_last else "fold", ratio=1 if is_last else None)
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    Console().print(table)


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
