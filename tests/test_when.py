"""Moments as people type them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from trispool.cli.when import read_when

if TYPE_CHECKING:
    from collections.abc import Iterator

NOW = 1_700_000_000.0
NOON = 1_935_662_400.0
"""Of 4 May 2031 in UTC."""


@pytest.fixture(autouse=True)
def in_kolkata() -> Iterator[None]:
    """Where clocks are 19,800 seconds ahead of UTC, all year."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", "Asia/Kolkata")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1794139509", 1794139509.0),
        ("1794139509.25", 1794139509.25),
        ("0", 0.0),
        ("+90s", NOW + 90),
        ("+2h", NOW + 7200),
        ("+1h30m", NOW + 5400),
        ("+5", NOW + 5),
        ("2031-05-04T12:00:00Z", NOON),
        ("2031-05-04T12:00:00+02:00", NOON - 7200),
        ("2031-05-04T12:00:00", NOON - 19800),
        ("2031-05-04 12:00", NOON - 19800),
        ("2031-05-04", NOON - 19800 - 43200),
    ],
)
def test_moments_are_read(text: str, seconds: float) -> None:
    assert read_when(text, NOW) == seconds


@pytest.mark.parametrize("text", ["", "tomorrow", "+", "+x", "-5", "-90s", "2031-13-01", "nan", "1e9", "12:00"])
def test_what_is_no_moment_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no moment"):
        read_when(text, NOW)
