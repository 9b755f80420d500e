"""What was asked by HTTP, as counts."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Final

__all__ = ["UNMATCHED", "HttpCounts"]

UNMATCHED: Final = "unmatched"
"""The route of a request that fits no rule. Neither its path nor its method becomes a label: clients make them up."""


@dataclass(slots=True)
class HttpCounts:
    """What was answered since the start.

    Attributes:
        requests: By method, route and status; status `none`: the client left before it was answered.
        seconds: All answers together, by route: seconds from the first byte of a request to the last of its answer.
        sent: Bytes of their contents, by route.
    """

    requests: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    sent: Counter[str] = field(default_factory=Counter)

    def copy(self) -> HttpCounts:
        """One that no longer changes."""
        return HttpCounts(self.requests.copy(), self.seconds.copy(), self.sent.copy())
