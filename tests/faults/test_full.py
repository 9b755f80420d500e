"""Full file systems: that they are, and one round on each kind."""

from __future__ import annotations

import errno
from random import Random
from typing import TYPE_CHECKING

import pytest

from tests.faults.full import ENDS, INODES, KINDS, Kind, rounds, why_not
from tests.faults.witness import Watched

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def mountable(tmp_path: Path) -> None:
    if reason := why_not(tmp_path):
        pytest.skip(reason)


@pytest.mark.usefixtures("mountable")
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_disk_that_was_filled_has_no_room_until_it_is_freed(kind: Kind, tmp_path: Path) -> None:
    with kind.mounted(tmp_path / "small") as disk:
        (disk.place / "kept").write_bytes(b"as it is")
        disk.fill()
        with pytest.raises(OSError, match="No space left") as caught:
            (disk.place / "more").write_bytes(b"1")
        assert caught.value.errno == errno.ENOSPC
        disk.leave(1)
        disk.fill()
        disk.free()
        (disk.place / "more").write_bytes(bytes(INODES * 1024))
        assert (disk.place / "kept").read_bytes() == b"as it is"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("mountable")
def test_a_disk_that_becomes_full_costs_no_task(tmp_path: Path) -> None:
    outcome = rounds(KINDS[0], ENDS[:2], tmp_path / "small", Random(1))
    assert outcome.violations == []
    assert outcome.tried == 2
    assert int(outcome.figures["refused"]) > 0
    assert outcome.figures["lost"] == 0
    assert int(outcome.figures["refused to start"]) + int(outcome.figures["started when full"]) == 1


@pytest.mark.usefixtures("mountable")
def test_what_a_service_says_on_a_full_disk_is_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Watched.attempt

    def attempt(service: Watched) -> int | None:
        code = real(service)
        if code is None:
            service.close()
        service.log.write_text(f"{service.log.read_text()}Traceback (most recent call last):\n")
        return 1

    monkeypatch.setattr(Watched, "attempt", attempt)
    outcome = rounds(KINDS[0], ["is killed"], tmp_path / "small", Random(1))
    assert [text[:36] for text in outcome.violations] == ["it did not start, with exit code 1: "]
