"""docs/performance.md and the figures it is made from, docs/performance.json.

A benchmark's section stands between two comments, and is replaced by its next run; all else in the page is prose. The
figures are kept so that tables that need several benchmarks can be made when only one of them has run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from benchmarks.report import Result
from benchmarks.servers import ROOT

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["DOCS", "FIGURES", "PAGE", "keep", "kept", "replaced"]

DOCS: Final = ROOT / "docs"
FIGURES: Final = "performance.json"
PAGE: Final = "performance.md"


def kept(path: Path) -> dict[str, Result]:
    """The figures of all benchmarks that have run; none if there is no such file."""
    if not path.exists():
        return {}
    return msgspec.json.decode(path.read_bytes(), type=dict[str, Result])


def keep(path: Path, results: Mapping[str, Result]) -> None:
    """Write the figures, one benchmark after the other by name, so that a diff shows what has run."""
    encoded = msgspec.json.encode({name: results[name] for name in sorted(results)})
    path.write_bytes(msgspec.json.format(encoded, indent=1) + b"\n")


def replaced(page: str, name: str, section: str) -> str:
    """The page with the section of one benchmark put in the place of its last one.

    Raises:
        ValueError: The page has no such place.
    """
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, _, rest = page.partition(begin)
    _, ended, after = rest.partition(end)
    if not ended:
        raise ValueError(f"there is no {begin} with an {end}")
    return f"{before}{begin}\n\n{section}\n\n{end}{after}"
