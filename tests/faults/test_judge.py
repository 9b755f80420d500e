"""The judge of kills: it sees every promise that is broken, and calls none broken that was kept."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from tests.faults.judge import IN_FLIGHT_SECONDS, Evidence, Kill, judge
from tests.faults.load import Answer, Sent
from tests.faults.runs import End, Run

FIRST = Run(1, "a", 1, started=10.0, started_at=1010.0, ended=10.1, end=End.OK, worker=7, life=1)
SECOND = dataclasses.replace(FIRST, started=12.0, started_at=1012.0, ended=12.1, worker=8, life=2)
SENT = {1: Sent(0.0, "HTTP", Answer.ACKNOWLEDGED)}
WHOLE = Evidence(SENT, [FIRST], [], {"a": 1})
KILL = Kill(10.2, life=1)


def changed(**changes: Any) -> Evidence:
    return dataclasses.replace(WHOLE, **changes)


def run(**changes: Any) -> Run:
    return dataclasses.replace(FIRST, **changes)


KEPT = {
    "one call": WHOLE,
    "not acknowledged, and not run": changed(sent={**SENT, 2: Sent(0.0, "HTTP")}),
    "not acknowledged, and run": changed(sent={1: Sent(0.0, "HTTP")}),
    "a call that failed, and another": changed(runs=[run(end=End.AGAIN), dataclasses.replace(SECOND, attempt=2)]),
    "uWSGI's handlers do not know their attempts": changed(
        runs=[run(end=End.AGAIN, attempt=0), dataclasses.replace(SECOND, attempt=0)]
    ),
    "killed in the call": changed(runs=[run(ended=0.0, end=End.NONE), SECOND], kills=[KILL]),
    "killed as a worker in the call": changed(
        runs=[run(ended=0.0, end=End.NONE), SECOND], kills=[Kill(10.05, life=1, worker=7)]
    ),
    "killed just after the call": changed(runs=[FIRST, SECOND], kills=[KILL]),
    "failed just before a kill, and the same attempt again": changed(runs=[run(end=End.AGAIN), SECOND], kills=[KILL]),
    "killed just after the call, and not known": changed(kills=[KILL], history={}),
}

BROKEN = {
    "lost": (changed(runs=[], history={}), "task 1 (HTTP) was acknowledged and has not run to its end"),
    "lost in the call": (
        changed(runs=[run(ended=0.0, end=End.NONE)], kills=[KILL], history={}),
        "task 1 (HTTP) was acknowledged and has not run to its end",
    ),
    "not tried again": (
        changed(runs=[run(end=End.AGAIN)], history={}),
        "task 1 (HTTP) was acknowledged and has not run to its end",
    ),
    "not sent": (changed(sent={}), "task 1 ran and had not been sent"),
    "refused": (changed(sent={1: Sent(0.0, "HTTP", Answer.REFUSED)}), "task 1 (HTTP) was refused and ran"),
    "early": (changed(sent={1: Sent(1010.5, "HTTP")}), "task 1 (HTTP) ran 0.500000 s early"),
    "torn": (
        changed(runs=[run(end=End.TORN), dataclasses.replace(SECOND, attempt=2)], kills=[KILL]),
        "task 1 (HTTP) was not what had been sent",
    ),
    "enqueued twice": (
        changed(runs=[FIRST, dataclasses.replace(SECOND, task="b")], kills=[KILL], history={"a": 1, "b": 1}),
        "task 1 (HTTP) was enqueued twice: ['a', 'b']",
    ),
    "twice for nothing": (changed(runs=[FIRST, SECOND]), "task 1 ran well, and was run again"),
    "twice, and the kill was long after": (
        changed(runs=[FIRST, SECOND], kills=[Kill(10.2 + IN_FLIGHT_SECONDS, life=1)]),
        "task 1 ran well, 0.600 s before a kill, and was run again",
    ),
    "twice, and another service was killed": (
        changed(runs=[FIRST, SECOND], kills=[Kill(10.2, life=2)]),
        "task 1 ran well, and was run again",
    ),
    "twice at the same time": (
        changed(runs=[FIRST, dataclasses.replace(SECOND, started=10.05)], kills=[KILL]),
        "task 1 ran twice at the same time",
    ),
    "again before the kill": (
        changed(runs=[run(ended=0.0, end=End.NONE), dataclasses.replace(SECOND, started=10.15)], kills=[KILL]),
        "task 1 ran twice at the same time",
    ),
    "never ended": (
        changed(runs=[FIRST, dataclasses.replace(SECOND, ended=0.0, end=End.NONE)], kills=[KILL]),
        "task 1: a call never ended, and nobody killed it",
    ),
    "the same attempt for nothing": (
        changed(runs=[run(end=End.AGAIN), SECOND]),
        "task 1: attempt 1 failed, and then came 1",
    ),
    "not known": (changed(history={}), "a ran well, and the history does not know it"),
    "known twice": (changed(history={"a": 2}), "a is in the history 2 times as done"),
    "known, and not run": (changed(history={"a": 1, "b": 1}), "b is in the history as done, and has not run well"),
    "left": (changed(left=[".trispool/dead/a"]), ".trispool/dead/a is left"),
}


@pytest.mark.parametrize("evidence", KEPT.values(), ids=KEPT)
def test_a_promise_that_was_kept_is_called_kept(evidence: Evidence) -> None:
    assert judge(evidence).violations == []


@pytest.mark.parametrize(("evidence", "said"), BROKEN.values(), ids=BROKEN)
def test_a_promise_that_was_broken_is_told(evidence: Evidence, said: str) -> None:
    assert said in judge(evidence).violations


def test_what_was_found_is_counted() -> None:
    runs = [FIRST, SECOND, run(number=2, task="b", ended=0.0, end=End.NONE)]
    sent = {**SENT, 2: Sent(0.0, "file", Answer.ACKNOWLEDGED), 3: Sent(0.0, "file")}
    verdict = judge(Evidence(sent, runs, [KILL], {}))
    verdict.add(judge(changed(kills=[KILL])))
    figures = {name: round(value, 6) for name, value in verdict.figures().items()}
    assert figures == {
        "sent": 4,
        "acknowledged": 3,
        "lost": 1,
        "handler calls": 4,
        "run twice": 1,
        "in flight at most, ms": 100.0,
        "not in the history": 1,
    }
    assert verdict.violations == ["task 2 (file) was acknowledged and has not run to its end"]
