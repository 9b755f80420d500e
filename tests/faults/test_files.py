"""Torn and altered spool files: some hundred of them, and whether the judge sees what it has to."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

import pytest

from tests.acceptance.harness import packet
from tests.faults.files import SCENARIO, Found, Made, digest, flipped, judge, lengths_in, parsed, variants

if TYPE_CHECKING:
    from pathlib import Path

TASK = packet({"n": "1", "k": ""}) + b"body"
GOOD = digest({b"n": b"1", b"k": b""}, b"body")
MADE = {"task": Made("kind", "task", TASK), "torn": Made("kind", "torn", TASK[:9])}
KEPT = Found({"task": [GOOD]}, {"torn": TASK[:9]}, set(), {"torn": "why"})


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (TASK, ({b"n": b"1", b"k": b""}, b"body")),
        (TASK[:-4], ({b"n": b"1", b"k": b""}, b"")),
        (TASK[:-5], None),
        (b"", None),
        (b"\x11\0\0\0", ({}, b"")),
        (b"\x11\0\0\1", None),
        (b"\x12\0\0\0", None),
        (packet({"": "1"}), None),
        (b"\x11\x03\0\0\1\0n", None),
        (b"\x11\1\0\0\1", None),
        (packet({"n": "1"}).replace(b"\1\0n", b"\xff\0n"), None),
    ],
)
def test_what_is_a_task_is_told_without_trispool(
    content: bytes, expected: tuple[dict[bytes, bytes], bytes] | None
) -> None:
    assert parsed(content) == expected


def test_every_length_and_every_bit_of_the_lengths_is_there() -> None:
    made = [*variants(0.01, Random(1))]
    first = [file.content for file in made if file.kind.startswith("cut") and file.what.startswith("task 0")]
    whole = first[-1]
    assert first == [whole[:length] for length in range(len(whole) + 1)]
    assert [*lengths_in({"n": "1", "ü": ""})] == [4, 5, 7, 8, 10, 11, 14, 15]
    assert flipped(b"\0\0", [0, 15]) == b"\x01\x80"
    assert len({file.content for file in made if file.kind.startswith("every bit")}) > 300


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (KEPT, []),
        (KEPT._replace(ran={}), ["task: is gone"]),
        (KEPT._replace(dead={}), ["torn: is gone"]),
        (KEPT._replace(ran={"task": ["other"]}), ["task: ran with other vars or another body than it has"]),
        (KEPT._replace(ran={"task": [GOOD, GOOD]}), ["task: ran 2 times"]),
        (KEPT._replace(ran={"task": [GOOD], "torn": [GOOD]}), ["torn: is no task, and ran"]),
        (KEPT._replace(dead={"torn": b""}), ["torn: was altered when it was set aside"]),
        (KEPT._replace(reasons={}), ["torn: was set aside without a reason"]),
        (KEPT._replace(ran={}, waiting={"task"}), ["task: is there still, and is neither run nor set aside"]),
        (
            KEPT._replace(ran={}, dead={"task": TASK, "torn": TASK[:9]}, reasons={"task": "why", "torn": "why"}),
            ["task: is a task, and was set aside"],
        ),
        (KEPT._replace(dead={"torn": TASK[:9], "x": b""}), ["x: nobody made it"]),
    ],
)
def test_the_judge_sees_what_became_of_a_file(found: Found, expected: list[str]) -> None:
    (outcome,) = judge(MADE, found)
    assert outcome.violations == expected


def test_no_file_is_deleted_or_run_with_anything_else(tmp_path: Path) -> None:
    outcomes = SCENARIO.run(0.01, tmp_path, Random(1))
    assert [(outcome.name, outcome.violations) for outcome in outcomes if outcome.violations] == []
    assert all(int(outcome.figures["ran"]) and int(outcome.figures["set aside"]) for outcome in outcomes)
