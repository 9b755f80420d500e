"""Two services on one spool, of which one is killed; and whether the judge sees what it has to."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

from tests.faults.two import SCENARIO, Seen, judge

if TYPE_CHECKING:
    from pathlib import Path


def seen(**ended: list[float]) -> Seen:
    return Seen({"a", "b"}, {"a", "b"}, {}, ended, None, "no_write_behind")


def test_the_judge_sees_what_is_lost_and_what_ran_twice() -> None:
    assert judge(seen(a=[1.0], b=[2.0]))[1] == []
    assert judge(seen(a=[1.0]))[1] == ["b was acknowledged and is lost"]
    assert judge(seen(a=[1.0], b=[2.0], c=[1.0]))[1] == ["c ran, and nobody sent it"]
    assert judge(seen(a=[1.0, 1.5], b=[2.0]))[1] == ["a ran 2 times, [1.0, 1.5] (killed: None)"]
    refused = seen(a=[1.0], b=[2.0])
    refused.refused.append("c was answered b''")
    assert judge(refused)[1] == ["c was answered b''"]
    silent = seen(a=[1.0], b=[2.0])
    silent.log = ""
    assert judge(silent)[1] == ["the second service does not say that there is another one"]


def test_what_had_just_ended_at_a_kill_may_run_again_and_nothing_else() -> None:
    killed = seen(a=[10.0, 12.0], b=[2.0])
    killed.killed_at = 10.1
    counts, violations = judge(killed)
    assert (counts["run twice"], violations) == (1, [])
    killed.killed_at = 11.5
    assert len(judge(killed)[1]) == 1
    killed.killed_at = 10.1
    killed.ended["a"].append(13.0)
    assert len(judge(killed)[1]) == 1


def test_each_task_runs_once_between_two_services(tmp_path: Path) -> None:
    outcomes = SCENARIO.run(0.01, tmp_path, Random(1))
    assert [(outcome.name, outcome.violations) for outcome in outcomes if outcome.violations] == []
    assert all(int(outcome.figures["acknowledged"]) > 20 for outcome in outcomes)
