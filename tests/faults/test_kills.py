"""Kills at a few moments; `make faults` makes ten thousand. And that the scenario sees what is lost."""

from __future__ import annotations

import sqlite3
from random import Random
from typing import TYPE_CHECKING

from tests.faults import kills, lives, zygote
from tests.faults.kills import SCENARIO, Target, play
from tests.faults.lives import Life

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def test_promises_are_kept_at_a_few_kills(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # One of each, and some more of what is quick; to start and to stop takes longer than a kill.
    monkeypatch.setattr(kills, "SHARES", {Target.SERVICE: 4, Target.WORKER: 3, Target.ALL: 1})
    outcomes = SCENARIO.run(1, tmp_path, Random(1))
    assert [outcome.tried for outcome in outcomes] == [4, 3, 1] * 2
    for outcome in outcomes:
        assert outcome.violations == [], outcome.name
        assert int(outcome.figures["acknowledged"]) > 20, outcome.name


def test_a_task_that_gets_lost_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lives, "END_SECONDS", 1.5)
    start = Life.start

    def start_after_a_theft(life: Life) -> None:
        for path in life.place.spool.glob("uwsgi_spoolfile_*"):
            path.unlink()
        if (database := life.place.spool / ".trispool/spool.db").exists():
            with sqlite3.connect(database) as connection:
                connection.execute("DELETE FROM incoming")
            connection.close()
        start(life)

    monkeypatch.setattr(Life, "start", start_after_a_theft)
    with zygote.opened() as parent:
        verdict = play(Life(parent, tmp_path / "spool", "os", with_async=False), Target.SERVICE, 4, Random(1))
    assert verdict.lost
    assert any("was acknowledged and has not run to its end" in text for text in verdict.violations)


def test_a_service_that_ends_by_itself_is_seen(tmp_path: Path) -> None:
    with zygote.opened() as parent:
        life = Life(parent, tmp_path / "spool", "os", with_async=False)
        (life.place.folder / "config.toml").write_text("[[spool]]\n")
        life.start()
        assert parent.wait(life.pid) == 2
        assert "directory" in life.end_of_log()
        assert zygote.children(parent._process.pid) == []
