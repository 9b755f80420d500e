"""Lengths of time and sizes as people write them. Pure; for the configuration and the command line."""

from __future__ import annotations

import re
import sys
from typing import Final

__all__ = ["read_bytes", "read_seconds"]

_SECONDS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_BYTES: Final = {
    **{"": 1, "B": 1},
    **{"kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9},
    **{"KiB": 2**10, "MiB": 2**20, "GiB": 2**30},
}
_NUMBER: Final = r"([0-9]{1,15}(?:\.[0-9]{1,15})?)"
_PART: Final = re.compile(rf" ?{_NUMBER} ?(ms|[smhdw])")
_PLAIN: Final = re.compile(_NUMBER)
_SIZE: Final = re.compile(rf"{_NUMBER} ?([A-Za-z]*)")


def read_seconds(value: object) -> float:
    """A length of time, from 0 up: a number of seconds, or a text such as `30s`, `1h30m`, `500ms` or `30d`.

    Raises:
        ValueError: It is something else.
    """
    if isinstance(value, str):
        if _PLAIN.fullmatch(value):
            return float(value)
        if value.strip() and not _PART.sub("", value):
            return sum(float(number) * _SECONDS[unit] for number, unit in _PART.findall(value))
    elif isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= sys.float_info.max:
        return float(value)
    raise ValueError("no length of time")


def read_bytes(value: object) -> int:
    """A size in bytes: a whole number, or a text such as `64MiB`, `1.5 GiB` or `100kB`.

    Raises:
        ValueError: It is something else.
    """
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    if isinstance(value, str) and (match := _SIZE.fullmatch(value)) and match[2] in _BYTES:
        size = float(match[1]) * _BYTES[match[2]]
        if size == int(size):
            return int(size)
    raise ValueError("no size")
