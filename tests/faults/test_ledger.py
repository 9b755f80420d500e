"""Damaged databases: that they are damaged, and a few of them, under the real service."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

import pytest

from tests.acceptance.harness import telling_in
from tests.faults.figures import Tally
from tests.faults.ledger import DAMAGES, SCENARIO, Damage, judge
from tests.faults.witness import Watched

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.name)
def test_a_file_is_another_one_when_it_has_been_damaged(damage: Damage, tmp_path: Path) -> None:
    path = tmp_path / "spool.db"
    before = bytes(range(256)) * 64
    path.write_bytes(before)
    (tmp_path / "copy of spool.db").write_bytes(b"old")
    inode = path.stat().st_ino
    damage.do(path, Random(1))
    if damage.name == "removed":
        assert not path.exists()
    else:
        assert path.read_bytes() != before
        assert (path.stat().st_ino == inode) == damage.in_place


def test_a_database_that_is_set_aside_without_a_word_is_reported(tmp_path: Path) -> None:
    with telling_in(tmp_path) as telling:
        service = Watched(tmp_path, telling)
        try:
            service.start()
            (service.spool / ".trispool/spool.db.damaged-1").touch()
            tally = Tally()
            judge(service, "case", tally)
            assert tally.violations == [
                "case: set aside without a word (history_damaged): ['spool.db.damaged-1']",
            ]
        finally:
            service.close()


def test_what_is_damaged_costs_no_task(tmp_path: Path) -> None:
    outcomes = SCENARIO.run(0.006, tmp_path, Random(1))
    assert [text for outcome in outcomes for text in outcome.violations] == []
    assert all(outcome.tried for outcome in outcomes)
