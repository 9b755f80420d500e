"""What a benchmark is: who takes part, and what each of them does in a round."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

from benchmarks.servers import Kind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from benchmarks.report import Measure
    from benchmarks.sizes import Sizes

__all__ = ["BOTH", "Run", "Scenario", "of_servers"]

Run: TypeAlias = "Callable[[Path, Sizes], Mapping[Measure, float]]"
"""Does one round in a folder that is yet to be made, and measures."""

BOTH = (Kind.UWSGI, Kind.OS)


@dataclass(frozen=True, slots=True)
class Scenario:
    """One benchmark.

    Attributes:
        title: What it does.
        runs: Those who take part, by the name that they have in the table, and what each does in a round.
        notes: What has to be known to read the figures.
        rounds: The most rounds, for one that takes minutes or that varies little.
        ranked: Whether each who takes part has a line of the table, and not a column.
    """

    title: Callable[[Sizes], str]
    runs: Mapping[str, Run]
    notes: Callable[[Sizes], Sequence[str]] = lambda _: ()
    rounds: int = 100
    ranked: bool = False


def of_servers(run: Callable[[Kind, Path, Sizes], Mapping[Measure, float]], kinds: Iterable[Kind]) -> dict[str, Run]:
    """The same for several servers.

    Args:
        run: Does a round with one.
        kinds: Which.
    """
    return {kind.value: partial(run, kind) for kind in kinds}
