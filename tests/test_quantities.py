"""Lengths of time and sizes as people write them."""

from __future__ import annotations

import contextlib
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trispool.quantities import read_bytes, read_seconds


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (0, 0.0),
        (30, 30.0),
        (0.25, 0.25),
        ("30", 30.0),
        ("2.5", 2.5),
        ("500ms", 0.5),
        ("30s", 30.0),
        ("30 s", 30.0),
        ("5m", 300.0),
        ("2h", 7200.0),
        ("30d", 30 * 86400.0),
        ("1w", 604800.0),
        ("1h30m", 5400.0),
        ("1h 30m", 5400.0),
        ("1.5h", 5400.0),
    ],
)
def test_lengths_of_time_are_read(value: object, seconds: float) -> None:
    assert read_seconds(value) == seconds


@pytest.mark.parametrize(
    "value",
    [
        "",
        " ",
        "s",
        "abc",
        "-1",
        -1,
        "1 y",
        "1x",
        "1h30",
        "30 30s",
        math.inf,
        math.nan,
        True,
        None,
        [1],
        "1e3",
        "٣s",
        10**400,
    ],
)
def test_no_length_of_time_is_made_of_something_else(value: object) -> None:
    with pytest.raises(ValueError, match="no length"):
        read_seconds(value)


@pytest.mark.parametrize(
    ("value", "size"),
    [
        (0, 0),
        (65535, 65535),
        ("65535", 65535),
        ("10B", 10),
        ("512KiB", 524288),
        ("64MiB", 67108864),
        ("64 MiB", 67108864),
        ("1.5GiB", 1610612736),
        ("100kB", 100_000),
        ("1MB", 1_000_000),
    ],
)
def test_sizes_are_read(value: object, size: int) -> None:
    assert read_bytes(value) == size


@pytest.mark.parametrize("value", ["", "MiB", "64 MBs", "64mib", -1, "-1", 1.0, "1.5B", True, None, "9" * 400, "1e3"])
def test_no_size_is_made_of_something_else(value: object) -> None:
    with pytest.raises(ValueError, match="no size"):
        read_bytes(value)


@given(st.text())
def test_any_text_is_a_length_or_refused(text: str) -> None:
    for read in (read_seconds, read_bytes):
        with contextlib.suppress(ValueError):
            assert 0 <= read(text) < math.inf
