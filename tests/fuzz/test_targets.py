"""All targets: with their seeds, with what was found once, and with what Hypothesis makes of the seeds."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.http import HTTP_SEEDS, http_server
from tests.fuzz.targets import TARGETS, Target

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CORPUS = Path(__file__).parents[1] / "data/corpus"
FOUND = sorted((path.parent.name, path.name) for path in CORPUS.glob("*/*"))
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "60"))
"""For each target; `make fuzz` wants many more."""


NAMES = [*TARGETS, "http"]


@pytest.fixture(scope="module")
def targets() -> Iterator[dict[str, Target]]:
    """All of them; the server of one is a thread."""
    with http_server() as run:
        yield {**TARGETS, "http": Target(run, HTTP_SEEDS)}


@pytest.mark.parametrize("name", NAMES)
def test_good_bytes_are_good(name: str, targets: dict[str, Target]) -> None:
    for seed in targets[name].seeds:
        targets[name].run(seed)


@pytest.mark.parametrize(("name", "case"), FOUND)
def test_what_was_found_once_stays_mended(name: str, case: str, targets: dict[str, Target]) -> None:
    targets[name].run((CORPUS / name / case).read_bytes())


@st.composite
def damaged(draw: Callable[[st.SearchStrategy[Any]], Any], seeds: list[bytes]) -> bytes:
    """A good one, or two after each other, with some pieces replaced."""
    data = bytearray(b"".join(draw(st.lists(st.sampled_from(seeds), min_size=1, max_size=2))))
    for _ in range(draw(st.integers(0, 4))):
        start = draw(st.integers(0, len(data)))
        end = draw(st.integers(start, min(len(data), start + 8)))
        data[start:end] = draw(
            st.one_of(st.binary(max_size=6), st.sampled_from([b"9" * 400, b"[" * 2000, b"\xff\xff"]))
        )
    return bytes(data)


@pytest.mark.parametrize("name", NAMES)
def test_anything_gives_a_value_or_its_declared_error(name: str, targets: dict[str, Target]) -> None:
    target = targets[name]

    @settings(max_examples=EXAMPLES, deadline=None)
    @given(st.one_of(damaged(list(target.seeds)), st.binary(max_size=100)))
    def property_(data: bytes) -> None:
        target.run(data)

    property_()
