"""Times as requests have them: Unix seconds, a number or a text that is one, or ISO 8601 with its offset. Pure."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Final

from trispool.task import LATEST_AT

__all__ = ["EXPECTED", "SCHEMA", "parse_moment"]

EXPECTED: Final = f"Unix seconds from 0 to {LATEST_AT:.0f}, or an ISO 8601 time with its offset, 2031-05-04T12:00:00Z"

_NUMBER: Final = re.compile(r"[0-9]{1,12}(?:\.[0-9]{0,30})?(?:[eE][+-]?[0-9]{1,3})?")

_ISO: Final = (  # the days that there are, from 1971 to 2439: what a client makes after this pattern is accepted
    "^(?:(?:197[1-9]|19[89][0-9]|2[0-3][0-9]{2}|24[0-3][0-9])-"
    "(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|1[0-9]|2[0-8]))"
    "|(?:197[26]|198[048]|199[26]|2000|2[0-3](?:0[48]|[2468][048]|[13579][26])|24(?:0[048]|[13][26]|2[048]))-02-29)"
    "T(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\\.[0-9]{1,6})?(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])$"
)

SCHEMA: Final[dict[str, object]] = {
    "anyOf": [{"type": "number", "minimum": 0, "maximum": LATEST_AT}, {"type": "string", "pattern": _ISO}],
}
"""The same for a JSON schema."""


def parse_moment(value: object) -> float:
    """Unix seconds.

    Raises:
        ValueError: It is no time, or out of range.
    """
    if isinstance(value, str):
        text = value.strip()
        seconds = float(text) if _NUMBER.fullmatch(text) else _of_iso(text)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        if not 0 <= value <= LATEST_AT:  # also what is not finite, and integers that are no float
            raise ValueError("out of range")
        seconds = float(value)
    else:
        raise ValueError("not a time")
    if not 0 <= seconds <= LATEST_AT:
        raise ValueError("out of range")
    return seconds


def _of_iso(text: str) -> float:
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError("without its offset")
    try:
        return moment.timestamp()
    except OverflowError:
        raise ValueError("out of range") from None
