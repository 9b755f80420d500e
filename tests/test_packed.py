"""Very many rows in little memory."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trispool import packed
from trispool.packed import Packed

ROWS = st.lists(st.text(st.characters()) | st.tuples(st.text(), st.none() | st.integers()).map(list), max_size=20)


@pytest.fixture(autouse=True)
def short_blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.function is not test_rows_take_little_memory_when_they_are_names:
        monkeypatch.setattr(packed, "ROWS_PER_BLOCK", 4)


@given(ROWS, st.integers(0, 25))
def test_rows_are_as_they_were_when_read(rows: list[object], start: int) -> None:
    made: Packed[object] = Packed()
    for number, row in enumerate(rows):
        assert len(made) == number
        made.append(row)
    assert list(made.rows()) == rows
    assert list(made.rows(start)) == rows[start:]


def test_bytes_that_are_not_text_are_kept_when_they_are_in_a_name() -> None:
    name = b"uwsgi_spoolfile_on_\xff".decode(errors="surrogateescape")
    made: Packed[str] = Packed()
    for _ in range(5):
        made.append(name)
    assert list(made.rows()) == [name] * 5


def test_rows_take_little_memory_when_they_are_names() -> None:
    tracemalloc.start()
    made: Packed[str] = Packed()
    for number in range(20_000):
        made.append(f"uwsgi_spoolfile_on_thehost_12345_{number}_{number * 7919 % 2**31}_1700000000_{number % 10**6:06}")
    size = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert len(made) == 20_000
    assert size < 20_000 * 30  # as strings they take 130 bytes and more
