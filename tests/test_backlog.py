"""Backlog: pure, so every case is exact; and a machine that does what people, programs and workers do, in any order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from trispool.backlog import SETTLE_SECONDS, Backlog, Running
from trispool.retry import RunAgain
from trispool.schedule import Waiting
from trispool.task import Entry, Retrying

if TYPE_CHECKING:
    from collections.abc import Iterable

NOW = 1_000_000.0
FREQUENCY = 30.0
PID = 7


def entry(
    name: str, at: float = NOW - 10, priority: int | None = None, *, number: int = 0, fresh: bool = False
) -> Entry:
    ref = name if priority is None else f"{priority}/{name}"
    return Entry(name, ref, at, priority, (number, 0), fresh)


def backlog_of(*entries: Entry, remembered: dict[str, Retrying] | None = None) -> Backlog:
    backlog = Backlog(FREQUENCY, remembered)
    scan(backlog, entries)
    return backlog


def scan(backlog: Backlog, entries: Iterable[Entry], now: float = NOW) -> list[str]:
    backlog.scan_begins()
    for seen in entries:
        backlog.saw(seen, now)
    return end_scan(backlog)


def end_scan(backlog: Backlog) -> list[str]:
    backlog.scan_ends()
    for refs in backlog.unseen():
        for ref in refs:
            backlog.gone(ref)
    return [task_id for lost in backlog.lost() for task_id in backlog.forget_lost(lost)]


def waiting_in(backlog: Backlog) -> list[Waiting]:
    schedule = backlog.schedule
    return [waiting for slot in range(schedule.slots) if (waiting := schedule.at(slot))]


def take(backlog: Backlog, now: float, limit: int = 99) -> list[str]:
    return [running.entry.ref for running in backlog.take(limit, now, PID)]


def take_one(backlog: Backlog, now: float = NOW) -> Running:
    (running,) = backlog.take(1, now, PID)
    return running


def fail(backlog: Backlog, ref: str, now: float, *, after: float = FREQUENCY, by_frequency: bool = True) -> Retrying:
    running = backlog.ended(ref)
    assert running is not None
    return backlog.wait_again(running, RunAgain(now + after, running.attempt, by_frequency), now, "no")


def due_at(backlog: Backlog, task_id: str) -> float:
    found = backlog.find(task_id)
    assert isinstance(found, Waiting)
    return found.due_at


def test_a_task_is_either_waiting_or_running() -> None:
    backlog = Backlog(FREQUENCY)
    backlog.added(entry("a"), NOW)
    assert (backlog.ready, len(backlog.running)) == (1, 0)
    running = take_one(backlog)
    assert (running.attempt, running.given_at, running.worker_pid, running.due_at) == (1, NOW, PID, NOW - 10)
    assert (backlog.ready, dict(backlog.running)) == (0, {"a": running})
    assert backlog.find("a") is running
    assert backlog.ended("a") is running
    assert backlog.ended("a") is None
    backlog.put_back(running, NOW)
    assert (backlog.ready, len(backlog.running)) == (1, 0)


def test_a_running_task_that_is_added_or_seen_does_not_wait_too() -> None:
    backlog = backlog_of(entry("a"))
    take_one(backlog)
    backlog.added(entry("a"), NOW)
    backlog.saw(entry("a"), NOW)
    backlog.saw(entry("a"), NOW, told=True)
    assert (backlog.ready, backlog.scheduled, list(backlog.running)) == (0, 0, ["a"])


def test_a_task_is_found_by_its_id_in_any_priority_directory() -> None:
    backlog = backlog_of(entry("a"), entry("b", priority=3), entry("c", NOW + 9, priority=12))
    assert isinstance(backlog.find("c"), Waiting)
    take(backlog, NOW)
    assert isinstance(backlog.find("b"), Running)
    assert backlog.find("d") is None


def test_a_retry_waits_and_counts_its_attempts() -> None:
    backlog = backlog_of(entry("a"))
    take_one(backlog)
    known = fail(backlog, "a", NOW)
    assert known == Retrying("a", 1, NOW + 30, True, NOW, "no")
    assert (backlog.retrying, backlog.attempts("a"), backlog.last_error("a")) == (1, 1, "no")
    assert take(backlog, NOW + 29.99) == []
    running = take_one(backlog, NOW + 30)
    assert (running.attempt, running.due_at) == (2, NOW + 30)
    assert backlog.retrying == 0
    backlog.ended("a")
    assert backlog.finished("a") is True
    assert (backlog.attempts("a"), backlog.last_error("a"), backlog.finished("a")) == (0, None, False)


def test_a_scan_does_not_bring_a_retry_forward() -> None:
    backlog = backlog_of(entry("a"))
    take_one(backlog)
    fail(backlog, "a", NOW)
    scan(backlog, [entry("a")], NOW + 1)
    backlog.saw(entry("a"), NOW + 1, told=True)  # our own worker has closed it
    assert due_at(backlog, "a") == NOW + 30


def test_a_retry_of_what_was_found_fresh_is_not_run_at_once_when_its_own_worker_closes_it() -> None:
    backlog = Backlog(FREQUENCY)
    backlog.saw(entry("a", fresh=True), NOW, told=True)
    take_one(backlog, NOW + 1)
    fail(backlog, "a", NOW + 1)
    backlog.saw(entry("a"), NOW + 1, told=True)
    assert due_at(backlog, "a") == NOW + 31


@pytest.mark.parametrize("at", [NOW + 5, NOW + 500, NOW - 1])
@pytest.mark.parametrize("told", [True, False])
def test_a_touch_of_a_waiting_task_is_its_due_time_back_off_or_not(at: float, told: bool) -> None:
    backlog = backlog_of(entry("a"), entry("b"))
    for running in backlog.take(2, NOW, PID):
        fail(backlog, running.entry.ref, NOW)
    if told:
        backlog.saw(entry("a", at), NOW + 1, told=True)
    else:
        scan(backlog, [entry("a", at), entry("b")], NOW + 1)
    assert due_at(backlog, "a") == at
    backlog.set_frequency(10, NOW + 1)
    assert due_at(backlog, "a") == at
    assert due_at(backlog, "b") == NOW + 10
    assert backlog.take(1, max(at, NOW + 1), PID)[0].attempt == 2


def test_a_task_without_a_time_does_not_wait_for_a_clock_that_was_set_back() -> None:
    made = 1_000_000 * (int(NOW) + 3600)
    untimed, timed = entry("a", NOW + 3600.5, number=made), entry("b", NOW + 3602, number=made)
    backlog = backlog_of(untimed, timed)
    assert take(backlog, NOW) == ["a"]
    # A worker, which has its vars, may see that it was asked for a time all the same.
    (running,) = backlog_of(untimed).take(1, NOW, PID)
    backlog = Backlog(FREQUENCY)
    backlog.put_back(running, NOW, at=NOW + 3600.5)
    assert scan(backlog, [untimed]) == []
    assert take(backlog, NOW) == []
    assert take(backlog, NOW + 3601) == ["a"]


def test_a_touch_of_a_running_task_counts_when_its_attempt_has_ended() -> None:
    backlog = backlog_of(entry("a"))
    take_one(backlog)
    backlog.saw(entry("a", NOW + 500), NOW, told=True)
    known = fail(backlog, "a", NOW)
    assert (due_at(backlog, "a"), known.due_at) == (NOW + 500, NOW + 500)
    backlog.set_frequency(10, NOW)
    assert due_at(backlog, "a") == NOW + 500
    scan(backlog, [entry("a", NOW + 500)])
    assert due_at(backlog, "a") == NOW + 500


def test_a_touch_of_a_running_task_that_is_taken_back_does_not_count() -> None:
    backlog = backlog_of(entry("a"))
    take_one(backlog)
    backlog.saw(entry("a", NOW + 500), NOW, told=True)
    backlog.saw(entry("a"), NOW, told=True)
    fail(backlog, "a", NOW)
    assert due_at(backlog, "a") == NOW + 30


def test_a_touch_of_a_task_in_hand_counts_when_it_comes_back_unrun() -> None:
    backlog = backlog_of(entry("a"))
    take_one(backlog)
    backlog.saw(entry("a", NOW + 500), NOW, told=True)
    running = backlog.ended("a")
    assert running is not None
    backlog.put_back(running, NOW)
    assert due_at(backlog, "a") == NOW + 500


@pytest.mark.parametrize("at", [NOW - 10, NOW + 7])
def test_a_running_task_that_is_moved_waits_in_its_new_place_when_its_attempt_has_ended(at: float) -> None:
    backlog = backlog_of(entry("a"))
    take_one(backlog)
    backlog.gone("a")
    backlog.saw(entry("a", at, priority=5), NOW, told=True)
    known = fail(backlog, "a", NOW)
    assert known.due_at == (NOW + 30 if at < NOW else at)
    assert [item.entry.ref for item in waiting_in(backlog)] == ["5/a"]
    assert (due_at(backlog, "a"), backlog.retrying) == (known.due_at, 1)
    assert scan(backlog, [entry("a", at, priority=5)]) == []
    assert take_one(backlog, NOW + 30).attempt == 2


def test_a_task_in_hand_that_is_moved_and_comes_back_unrun_waits_in_its_new_place() -> None:
    backlog = backlog_of(entry("a"))
    running = take_one(backlog)
    backlog.saw(entry("a", priority=5), NOW, told=True)
    backlog.ended("a")
    backlog.put_back(running, NOW)
    assert take(backlog, NOW) == ["5/a"]


def test_put_back_keeps_due_time_attempt_and_place_in_the_order() -> None:
    backlog = backlog_of(entry("a", number=1), entry("b", number=2))
    running = take_one(backlog)
    backlog.ended("a")
    backlog.put_back(running, NOW + 5)
    assert backlog.schedule.oldest_ready_at() == NOW - 10
    assert take(backlog, NOW + 5) == ["a", "b"]
    assert backlog.running["a"].attempt == 1


def test_put_back_of_a_retry_is_still_a_retry() -> None:
    backlog = backlog_of(entry("a"))
    take_one(backlog)
    fail(backlog, "a", NOW)
    running = take_one(backlog, NOW + 40)
    backlog.ended("a")
    backlog.put_back(running, NOW + 40)
    assert backlog.retrying == 1
    assert take_one(backlog, NOW + 40).attempt == 2


def test_what_is_locked_is_due_when_it_is_closed_but_not_before_a_second_is_over() -> None:
    backlog = backlog_of(entry("a"))
    running = take_one(backlog)
    backlog.ended("a")
    backlog.put_back(running, NOW, at=NOW + FREQUENCY, locked=True)
    assert due_at(backlog, "a") == NOW + FREQUENCY
    # Its own worker has closed it after it had found it locked: for all we know that was the other one.
    backlog.saw(entry("a"), NOW + 0.001, told=True)
    assert due_at(backlog, "a") == NOW + SETTLE_SECONDS
    backlog.saw(entry("a"), NOW + 5, told=True)
    assert take(backlog, NOW + 5) == ["a"]


def test_what_is_locked_and_then_touched_is_due_at_its_new_time() -> None:
    backlog = backlog_of(entry("a"))
    running = take_one(backlog)
    backlog.ended("a")
    backlog.put_back(running, NOW, at=NOW + FREQUENCY, locked=True)
    for _ in range(2):
        backlog.saw(entry("a", NOW - 1), NOW, told=True)
        assert due_at(backlog, "a") == NOW - 1


def test_what_is_locked_and_then_closed_keeps_its_back_off() -> None:
    backlog = backlog_of(entry("a"))
    take_one(backlog)
    fail(backlog, "a", NOW, after=100)
    # A person has moved it while it ran, and a worker has found it locked.
    scan(backlog, [entry("a", priority=5)])
    running = take_one(backlog, NOW + 100)
    backlog.ended("5/a")
    backlog.put_back(running, NOW + 100, at=NOW + 130, locked=True)
    backlog.saw(entry("a", priority=5), NOW + 110, told=True)
    assert due_at(backlog, "a") == NOW + 101


def test_what_is_fresh_waits_until_it_has_settled() -> None:
    backlog = Backlog(FREQUENCY)
    backlog.saw(entry("a", fresh=True), NOW, told=True)
    assert take(backlog, NOW + 0.99) == []
    assert take(backlog, NOW + 1) == ["a"]


def test_what_is_fresh_runs_at_once_when_its_writer_has_closed_it() -> None:
    backlog = Backlog(FREQUENCY)
    backlog.saw(entry("a", fresh=True), NOW, told=True)
    backlog.saw(entry("a"), NOW + 0.1, told=True)
    assert take(backlog, NOW + 0.1) == ["a"]


def test_what_is_fresh_and_still_being_written_is_not_hurried_by_a_scan() -> None:
    backlog = Backlog(FREQUENCY)
    backlog.saw(entry("a", NOW, fresh=True), NOW, told=True)
    scan(backlog, [entry("a", NOW + 0.5, fresh=True)], NOW + 0.6)
    assert due_at(backlog, "a") == NOW + 1.6


def test_what_is_fresh_and_for_later_is_due_at_its_time() -> None:
    backlog = Backlog(FREQUENCY)
    backlog.saw(entry("a", NOW + 50, fresh=True), NOW, told=True)
    assert due_at(backlog, "a") == NOW + 50
    scan(backlog, [entry("a", NOW + 50)], NOW + 30)
    # It has settled long since: a touch means now.
    backlog.saw(entry("a", NOW + 31, fresh=True), NOW + 31, told=True)
    assert take(backlog, NOW + 31) == ["a"]


def test_what_a_scan_does_not_see_is_gone() -> None:
    backlog = backlog_of(entry("a"), entry("b"), entry("c", NOW + 9))
    scan(backlog, [entry("b")])
    assert (backlog.ready, backlog.scheduled) == (1, 0)
    assert take(backlog, NOW) == ["b"]


def test_what_came_during_a_scan_that_has_passed_it_stays() -> None:
    backlog = backlog_of(entry("old"))
    backlog.scan_begins()
    backlog.added(entry("ours"), NOW)
    backlog.saw(entry("theirs"), NOW, told=True)
    running = take_one(backlog)
    backlog.ended(running.entry.ref)
    backlog.put_back(running, NOW)
    end_scan(backlog)
    assert sorted(take(backlog, NOW)) == ["old", "ours", "theirs"]


def test_what_was_told_since_a_scan_began_counts_more_than_what_it_saw() -> None:
    backlog = backlog_of(entry("a", NOW + 9))
    backlog.scan_begins()
    backlog.saw(entry("a", NOW + 1), NOW, told=True)
    backlog.saw(entry("a", NOW + 9), NOW)
    end_scan(backlog)
    assert due_at(backlog, "a") == NOW + 1
    scan(backlog, [entry("a", NOW + 9)])
    assert due_at(backlog, "a") == NOW + 9


def test_what_was_taken_out_since_a_scan_began_is_not_brought_back_by_it() -> None:
    backlog = backlog_of(entry("a"))
    backlog.scan_begins()
    backlog.taken_out("a")
    assert not backlog.saw(entry("a"), NOW)
    assert backlog.find("a") is None
    backlog.saw(entry("a"), NOW, told=True)  # somebody has put it there again
    assert backlog.find("a") is not None
    end_scan(backlog)
    backlog.taken_out("a")
    scan(backlog, [entry("a")])  # this one began later, so it is there
    assert backlog.find("a") is not None


def test_what_is_taken_out_between_two_scans_is_not_noted_until_the_next() -> None:
    backlog = backlog_of(entry("a"), entry("b"))
    backlog.taken_out("a")
    backlog.scan_begins()
    backlog.taken_out("b")
    backlog.saw(entry("b"), NOW)
    backlog.saw(entry("a"), NOW)  # it has been put back
    assert [waiting.entry.ref for waiting in waiting_in(backlog)] == ["a"]


@pytest.mark.parametrize("is_running", [False, True])
def test_many_that_a_scan_came_across_are_seen_as_each_by_itself(is_running: bool) -> None:
    known = {"had attempts": Retrying("had attempts", 2, NOW + 20, False, NOW - 10, "no")}
    seen = [
        entry("due", number=3),
        entry("due too", priority=5, number=2),
        entry("later", NOW + 5),
        entry("fresh", fresh=True),
        entry("fresh and later", NOW + 0.5, fresh=True),
        entry("had attempts"),
        entry("waits", NOW + 9),
        entry("waits", NOW + 9),
        entry("moved", NOW + 7),
        entry("taken out"),
        entry("twice"),
        entry("twice"),
        # Made in the future: the clock has been set back.
        entry("from the future", NOW + 9999, number=int(NOW + 9999) * 1_000_000),
    ]
    backlogs = []
    for together in (False, True):
        backlog = backlog_of(remembered=known)
        if is_running:
            backlog.added(entry("runs"), NOW)
            take_one(backlog)
        backlog.added(entry("waits", NOW + 9), NOW)
        backlog.added(entry("moved", NOW + 8), NOW)
        backlog.scan_begins()
        backlog.taken_out("taken out")
        each = backlog.saw_all(seen, NOW) if together else [item for item in seen if backlog.saw(item, NOW)]
        new = sorted(item.ref for item in each)
        assert end_scan(backlog) == []
        order = [running.entry.ref for running in backlog.take(99, NOW + 10, PID)]
        backlogs.append((new, sorted(waiting_in(backlog)), order, backlog.find("due too")))
    assert backlogs[0][0] == sorted({item.ref for item in seen} - {"waits", "moved", "taken out"})
    assert backlogs[0] == backlogs[1]


def test_attempts_survive_a_move_to_another_directory() -> None:
    backlog = backlog_of(entry("a"))
    take_one(backlog)
    fail(backlog, "a", NOW)
    backlog.gone("a")
    assert (backlog.retrying, backlog.ready, backlog.scheduled) == (0, 0, 0)
    backlog.saw(entry("a", priority=5), NOW + 1, told=True)
    assert (backlog.retrying, due_at(backlog, "a")) == (1, NOW + 30)
    assert take_one(backlog, NOW + 30).attempt == 2


def test_attempts_survive_a_move_that_a_worker_was_first_to_see() -> None:
    backlog = backlog_of(entry("a"))
    take_one(backlog)
    fail(backlog, "a", NOW)
    running = take_one(backlog, NOW + 30)
    backlog.ended("a")
    backlog.vanished(running)
    backlog.saw(entry("a", priority=5), NOW + 30, told=True)
    assert take_one(backlog, NOW + 30).attempt == 2


def test_attempts_are_forgotten_when_a_whole_scan_has_not_found_the_task() -> None:
    backlog = backlog_of(entry("a"), entry("b"))
    for running in backlog.take(2, NOW, PID):
        fail(backlog, running.entry.ref, NOW)
    backlog.scan_begins()
    backlog.saw(entry("b"), NOW)
    backlog.gone("a")  # this scan may have passed the directory to which it is being moved
    assert end_scan(backlog) == []
    assert backlog.attempts("a") == 1
    assert scan(backlog, [entry("b")]) == ["a"]
    assert (backlog.attempts("a"), backlog.attempts("b")) == (0, 1)
    assert scan(backlog, [entry("b")]) == []
    backlog.set_frequency(5, NOW)
    backlog.saw(entry("a"), NOW, told=True)
    assert take_one(backlog).attempt == 1


def test_attempts_of_a_running_task_are_not_forgotten() -> None:
    backlog = backlog_of(entry("a"))
    take_one(backlog)
    fail(backlog, "a", NOW)
    take_one(backlog, NOW + 30)
    assert scan(backlog, []) == []
    assert scan(backlog, []) == []
    assert fail(backlog, "a", NOW + 30).attempts == 2


def test_a_scan_by_names_asks_only_for_what_is_not_known_and_finds_what_is_gone() -> None:
    backlog = backlog_of(entry("runs"), entry("waits", NOW + 50), entry("gone", NOW + 50))
    take_one(backlog)
    backlog.saw(entry("fresh", NOW + 50, fresh=True), NOW, told=True)
    backlog.scan_begins()
    there = ["runs", "waits", "new", "fresh", "5/waits"]
    assert backlog.unknown(there) == ["new", "fresh", "5/waits"]
    backlog.saw(entry("new", NOW + 50), NOW)
    assert end_scan(backlog) == []
    assert {waiting.entry.ref for waiting in waiting_in(backlog)} == {"waits", "fresh", "new"}


def test_it_misses_a_task_that_had_attempts_and_vanished_until_a_scan_has_begun() -> None:
    backlog = backlog_of(entry("a"), entry("b"), entry("c"))
    for _ in range(3):
        take_one(backlog)
    third = backlog.ended("c")
    assert third is not None
    backlog.vanished(third)
    assert not backlog.is_missing_any, "a task without attempts leaves nothing behind"
    fail(backlog, "a", NOW)
    fail(backlog, "b", NOW)
    backlog.gone("a")
    assert backlog.is_missing_any
    backlog.saw(entry("a", NOW, priority=5), NOW, told=True)
    assert not backlog.is_missing_any, "it has come elsewhere"
    backlog.gone("b")
    assert backlog.finished("b")
    assert not backlog.is_missing_any, "nobody wants to know any more"
    backlog.gone("5/a")
    backlog.scan_begins()
    assert not backlog.is_missing_any
    assert end_scan(backlog) == ["a"]


def test_remembered_attempts_go_on_after_a_restart() -> None:
    remembered = {
        "a": Retrying("a", 2, NOW + 20, True, NOW - 10, "no"),
        "b": Retrying("b", 3, NOW + 77, False, NOW - 10, "no"),
        "lost": Retrying("lost", 3, NOW + 77, False, NOW - 10, "no"),
    }
    backlog = Backlog(FREQUENCY, remembered)
    assert backlog.retrying == 0
    assert scan(backlog, [entry("a"), entry("b", priority=4)]) == ["lost"]
    assert (backlog.retrying, due_at(backlog, "a"), due_at(backlog, "b")) == (2, NOW + 20, NOW + 77)
    assert take_one(backlog, NOW + 20).attempt == 3
    assert take_one(backlog, NOW + 77).attempt == 4


def test_remembered_attempts_follow_a_frequency_that_was_changed_meanwhile() -> None:
    backlog = Backlog(5.0, {"a": Retrying("a", 2, NOW + 20, True, NOW - 10, "no")})
    scan(backlog, [entry("a")])
    assert due_at(backlog, "a") == NOW - 5


def test_a_change_of_frequency_moves_what_waits_because_of_it_and_nothing_else() -> None:
    backlog = backlog_of(entry("a"), entry("b"), entry("c", NOW + 10))
    take(backlog, NOW)
    fail(backlog, "a", NOW)
    fail(backlog, "b", NOW, by_frequency=False)
    backlog.set_frequency(5, NOW + 1)
    assert (due_at(backlog, "a"), due_at(backlog, "b"), due_at(backlog, "c")) == (NOW + 5, NOW + 30, NOW + 10)
    backlog.set_frequency(500, NOW + 2)
    assert due_at(backlog, "a") == NOW + 500
    backlog.set_frequency(1, NOW + 2)
    assert take(backlog, NOW + 2) == ["a"]


def test_a_change_of_frequency_leaves_running_tasks_alone() -> None:
    backlog = backlog_of(entry("a"))
    take_one(backlog)
    fail(backlog, "a", NOW)
    take_one(backlog, NOW + 30)
    backlog.set_frequency(5, NOW + 31)
    assert (backlog.ready, backlog.scheduled, list(backlog.running)) == (0, 0, ["a"])


def test_a_copy_under_another_priority_does_not_disturb() -> None:
    backlog = backlog_of(entry("a"), entry("a", priority=5))
    first, second = backlog.take(2, NOW, PID)
    backlog.ended(second.entry.ref)
    backlog.wait_again(second, RunAgain(NOW + 30, 1, by_frequency=True), NOW, "no")
    backlog.ended(first.entry.ref)
    backlog.finished("a")
    backlog.set_frequency(5, NOW)
    assert due_at(backlog, "a") == NOW + 30
    backlog.gone(second.entry.ref)
    assert (backlog.ready, backlog.scheduled, backlog.retrying, len(backlog.running)) == (0, 0, 0, 0)
    assert scan(backlog, []) == []


# What people, programs and workers do, in any order, against a model that is as simple as can be.

NAMES = st.sampled_from(["t1", "t2", "t3", "t4"])
FOLDERS = st.sampled_from([None, 1, 5])
STEPS = st.sampled_from([0.0, 0.25, 1.0, 7.0, 40.0])
AGES = st.sampled_from([-20.0, -1.0, 0.0, 2.0, 40.0])


@dataclass
class Expected:
    """What the backlog should hold of a task: the `at` it knows, when it is due, and what it was last told."""

    at: float
    due_at: float
    fresh: bool = False
    locked_at: float | None = None
    told: bool = False


@dataclass
class Past:
    attempts: int
    due_at: float
    by_frequency: bool
    ended_at: float


class Machine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.backlog = Backlog(FREQUENCY)
        self.frequency = FREQUENCY
        self.now = NOW
        self.disk: dict[str, float] = {}
        self.waiting: dict[str, Expected] = {}
        self.running: dict[str, tuple[float, float | None]] = {}  # at when it was taken, at since
        self.moved: dict[str, str] = {}  # where what runs has been found since
        self.past: dict[str, Past] = {}
        self.looked: dict[str, float] | None = None  # what the scan under way has seen
        self.missing: set[str] = set()  # ids with a past that were nowhere when it began

    # The model

    @staticmethod
    def ref(name: str, folder: int | None) -> str:
        return name if folder is None else f"{folder}/{name}"

    @staticmethod
    def name(ref: str) -> str:
        return ref.rpartition("/")[2]

    def entry_of(self, ref: str, at: float, *, fresh: bool = False) -> Entry:
        name = self.name(ref)
        folder = ref.rpartition("/")[0]
        return Entry(name, ref, at, int(folder) if folder else None, (int(name[1:]), 0), fresh)

    def put(self, ref: str, at: float, due_at: float, *, fresh: bool = False) -> None:
        self.waiting[ref] = Expected(at, due_at, fresh, told=True)
        self.missing.discard(self.name(ref))

    def found(self, ref: str, at: float) -> float:
        past = self.past.get(self.name(ref))
        return at if past is None else max(at, past.due_at)

    def tell(self, ref: str, *, fresh: bool = False) -> None:
        """inotify: something has happened to this file."""
        at = self.disk.get(ref)
        if at is None:
            self.backlog.gone(ref)
            self.waiting.pop(ref, None)
        else:
            self.backlog.saw(self.entry_of(ref, at, fresh=fresh), self.now, told=True)
            self.see(ref, at, fresh=fresh, told=True)

    def see(self, ref: str, at: float, *, fresh: bool, told: bool) -> None:
        if ref in self.running:
            taken_at = self.running[ref][0]
            self.running[ref] = taken_at, at if at != taken_at else None
            return
        known = self.waiting.get(ref)
        settled = self.now + SETTLE_SECONDS if fresh else 0.0
        if known is None:
            for other in self.running:
                if self.name(other) == self.name(ref):
                    self.moved[other] = ref
            self.put(ref, at, max(self.found(ref, at), settled), fresh=fresh)
        elif known.told and not told:
            pass
        elif at != known.at:
            self.put(ref, at, max(at, settled) if known.fresh else at, fresh=fresh)
        elif known.fresh and not fresh:
            self.put(ref, at, self.found(ref, at))
        elif told and not fresh and known.locked_at is not None:
            self.put(ref, at, max(self.found(ref, at), known.locked_at + SETTLE_SECONDS))

    # People and programs

    @initialize()
    def start(self) -> None:
        self.scan_begins()
        self.scan_ends(by_name=False)

    @rule(seconds=STEPS)
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(name=NAMES, folder=FOLDERS, age=AGES)
    def we_enqueue(self, name: str, folder: int | None, age: float) -> None:
        if any(self.name(ref) == name for ref in [*self.disk, *self.waiting, *self.running]) or name in self.past:
            return
        ref = self.ref(name, folder)
        self.disk[ref] = self.now + age
        self.backlog.added(self.entry_of(ref, self.now + age), self.now)
        self.put(ref, self.now + age, self.now + age)

    @rule(name=NAMES, folder=FOLDERS, age=AGES, told=st.booleans(), fresh=st.booleans())
    def somebody_writes(self, name: str, folder: int | None, age: float, told: bool, fresh: bool) -> None:
        ref = self.ref(name, folder)
        if ref not in self.disk and not any(self.name(other) == name for other in self.disk):
            self.disk[ref] = self.now + age
            if told:
                self.tell(ref, fresh=fresh)

    @precondition(lambda self: self.disk)
    @rule(data=st.data(), told=st.booleans())
    def somebody_closes(self, data: st.DataObject, told: bool) -> None:
        if told:
            self.tell(data.draw(st.sampled_from(sorted(self.disk))))

    @precondition(lambda self: self.disk)
    @rule(data=st.data(), age=AGES, told=st.booleans(), fresh=st.booleans())
    def somebody_touches(self, data: st.DataObject, age: float, told: bool, fresh: bool) -> None:
        ref = data.draw(st.sampled_from(sorted(self.disk)))
        self.disk[ref] = self.now + age
        if told:
            self.tell(ref, fresh=fresh)

    @precondition(lambda self: self.disk)
    @rule(data=st.data(), told=st.booleans())
    def somebody_removes(self, data: st.DataObject, told: bool) -> None:
        ref = data.draw(st.sampled_from(sorted(self.disk)))
        del self.disk[ref]
        if told:
            self.tell(ref)

    @precondition(lambda self: self.disk)
    @rule(data=st.data(), folder=FOLDERS, told=st.booleans())
    def somebody_moves(self, data: st.DataObject, folder: int | None, told: bool) -> None:
        ref = data.draw(st.sampled_from(sorted(self.disk)))
        target = self.ref(self.name(ref), folder)
        if target != ref and target not in self.running:
            self.disk[target] = self.disk.pop(ref)
            if told:
                self.tell(ref)
                self.tell(target)

    @rule(seconds=st.sampled_from([1.0, 5.0, 30.0, 100.0]))
    def an_operator_sets_the_frequency(self, seconds: float) -> None:
        if len({self.name(ref) for ref in self.waiting}) < len(self.waiting):
            return  # which of the two is moved does not matter
        self.backlog.set_frequency(seconds, self.now)
        self.frequency = seconds
        for ref, known in self.waiting.items():
            past = self.past.get(self.name(ref))
            if past and past.by_frequency and known.due_at == past.due_at:
                past.due_at = known.due_at = max(known.at, past.ended_at + seconds)
                known.told = True

    # The scanner

    @precondition(lambda self: self.looked is None)
    @rule()
    def scan_begins(self) -> None:
        self.backlog.scan_begins()
        self.looked = dict(self.disk)
        for known in self.waiting.values():
            known.told = False
        there = {self.name(ref) for ref in [*self.waiting, *self.running]}
        self.missing = {name for name in self.past if name not in there}

    @precondition(lambda self: self.looked is not None)
    @rule(by_name=st.booleans())
    def scan_ends(self, by_name: bool) -> None:
        assert self.looked is not None
        if not by_name:
            self.backlog.saw_all([self.entry_of(ref, at) for ref, at in self.looked.items()], self.now)
        for ref, at in self.looked.items():
            if by_name:
                known = self.waiting.get(ref)
                is_known = ref in self.running or (known is not None and not known.fresh)
                assert self.backlog.unknown([ref]) == ([] if is_known else [ref])
                if is_known:
                    continue
                self.backlog.saw(self.entry_of(ref, at), self.now)
            self.see(ref, at, fresh=False, told=False)
        lost = end_scan(self.backlog)
        for ref in [ref for ref, known in self.waiting.items() if ref not in self.looked and not known.told]:
            del self.waiting[ref]
        assert sorted(lost) == sorted(self.missing)
        for name in lost:
            del self.past[name]
        self.looked = None

    @precondition(lambda self: self.looked is None)
    @rule()
    def a_quiet_scan(self) -> None:
        self.scan_begins()
        self.scan_ends(by_name=False)
        unfinished = set(self.waiting) | set(self.running)
        assert unfinished == set(self.disk) | set(self.running)
        assert all(known.at == self.disk[ref] for ref, known in self.waiting.items())

    # The workers

    @rule(limit=st.integers(1, 4))
    def workers_are_given(self, limit: int) -> None:
        due = [self.entry_of(ref, known.at) for ref, known in self.waiting.items() if known.due_at <= self.now]
        due.sort(key=lambda item: (99 if item.priority is None else item.priority, item.order))
        taken = self.backlog.take(limit, self.now, PID)
        assert [running.entry for running in taken] == due[:limit]
        for running in taken:
            past = self.past.get(running.entry.id)
            assert running.attempt == (past.attempts if past else 0) + 1
            assert running.due_at == self.waiting.pop(running.entry.ref).due_at
            self.running[running.entry.ref] = running.entry.at, None

    @precondition(lambda self: self.running)
    @rule(data=st.data(), outcome=st.sampled_from(["ok", "retry", "later", "returned", "locked"]))
    def a_worker_reports(self, data: st.DataObject, outcome: str) -> None:
        ref = data.draw(st.sampled_from(sorted(self.running)))
        name = self.name(ref)
        if any(self.name(other) == name for other in self.running if other != ref):
            return  # it has been moved, and is running twice
        elsewhere = self.moved.pop(ref, None)
        if elsewhere not in self.waiting:
            elsewhere = None
        running = self.backlog.ended(ref)
        assert running is not None
        taken_at, since = self.running.pop(ref)
        at = taken_at if since is None else since
        if ref not in self.disk and outcome != "retry":
            self.backlog.vanished(running)
        elif outcome == "ok":
            assert self.backlog.finished(name) is (name in self.past)
            self.past.pop(name, None)
            self.missing.discard(name)
            del self.disk[ref]
        elif outcome in ("retry", "later"):
            by_frequency = outcome == "retry"
            due_at = self.now + (self.frequency if by_frequency else 11.0)
            self.backlog.wait_again(running, RunAgain(due_at, running.attempt, by_frequency), self.now, "no")
            if elsewhere is not None:
                ref, at = elsewhere, self.waiting[elsewhere].at
            if at != taken_at:
                due_at, by_frequency = at, False
            self.past[name] = Past(running.attempt, due_at, by_frequency, self.now)
            self.put(ref, at, due_at)
        else:
            if elsewhere is not None:
                ref, at = elsewhere, self.waiting[elsewhere].at
            if outcome == "returned":
                self.backlog.put_back(running, self.now)
                self.put(ref, at, running.due_at if at == taken_at else at)
            else:
                self.backlog.put_back(running, self.now, at=self.now + self.frequency, locked=True)
                self.put(ref, at, self.now + self.frequency)
                self.waiting[ref].locked_at = self.now

    # What always holds

    @invariant()
    def nothing_is_lost_and_nothing_is_in_both_places(self) -> None:
        backlog = self.backlog
        assert set(backlog.running) == set(self.running)
        assert set(backlog._locked) <= set(self.waiting)
        waiting = {item.entry.ref: item for item in waiting_in(backlog)}
        assert not waiting.keys() & backlog.running.keys()
        assert {ref: (item.entry.at, item.due_at) for ref, item in waiting.items()} == {
            ref: (known.at, known.due_at) for ref, known in self.waiting.items()
        }
        names = [self.name(ref) for ref in [*self.waiting, *self.running]]
        if len(names) == len(set(names)):
            assert backlog.retrying == len({self.name(ref) for ref in self.waiting} & self.past.keys())
        assert {name: backlog.attempts(name) for name in self.past} == {
            name: past.attempts for name, past in self.past.items()
        }
        assert backlog.look(self.now) == sum(known.due_at <= self.now for known in self.waiting.values())


TestBacklogAgainstAModel = Machine.TestCase
TestBacklogAgainstAModel.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
