"""Moments and lengths of time as people type them."""

from __future__ import annotations

import contextlib
import re
import time
from datetime import datetime
from typing import TYPE_CHECKING, Final

import click

from trispool.quantities import read_seconds

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["WHEN", "Length", "read_when"]

_UNIX: Final = re.compile(r"[0-9]{1,12}(\.[0-9]{0,9})?")


def read_when(text: str, now: float) -> float:
    """Unix seconds from a Unix time, an ISO 8601 time (of this machine if without offset), or `+` and a length.

    Raises:
        ValueError: It is none of them.
    """
    try:
        if text.startswith("+"):
            return now + read_seconds(text[1:])
        if _UNIX.fullmatch(text):
            return float(text)
        return datetime.fromisoformat(text).astimezone().timestamp()
    except (ValueError, OverflowError, OSError):
        raise ValueError("no moment") from None


class _When(click.ParamType[float]):
    """A moment; see `read_when`."""

    name = "when"

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock

    def convert(self, value: str | float, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        try:
            return read_when(value, self._clock())
        except ValueError:
            self.fail(
                f"{value!r}: expected a Unix time, an ISO 8601 time such as 2031-05-04T12:00, or +90s, +2h", param, ctx
            )


WHEN: Final = _When()


class Length(click.ParamType[float]):
    """A length of time, in seconds; see `read_seconds`.

    Args:
        expected: What to say to something else.
        may_be_zero: Whether there may be none.
    """

    name = "length"

    def __init__(self, expected: str, *, may_be_zero: bool = False) -> None:
        self._expected = expected
        self._may_be_zero = may_be_zero

    def convert(self, value: str | float, param: click.Parameter | None, ctx: click.Context | None) -> float:
        with contextlib.suppress(ValueError):
            seconds = read_seconds(value)
            if seconds or self._may_be_zero:
                return seconds
        self.fail(f"{value!r}: expected {self._expected}", param, ctx)
