"""Figures: what is counted, how long it is remembered, what it costs. The clock is set by the tests."""

from __future__ import annotations

import math
import random
import time
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trispool.backlog import Running
from trispool.figures import MAX_HANDLERS, OTHER, SERIES_SLOTS, Figures
from trispool.histogram import BOUNDS, PERCENTILE_ERROR, Histogram
from trispool.tally import Flow
from trispool.task import AttemptRow, Entry, TaskState

NOON = 1_700_006_400.0
"""A Unix time that begins a slot, and a long one."""


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def figures(clock: Clock) -> Figures:
    return Figures(clock)


def row(
    task: str = "t", outcome: str = "ok", handler: str | None = "app:h", queue: float = 0.01, run: float = 0.1
) -> AttemptRow:
    return AttemptRow(task, 1, outcome, None, NOON, queue, run, 7, handler, None, None, NOON, None, NOON)


def entry(task: str = "t", at: float = NOON) -> Entry:
    return Entry(task, task, at, None, (0, 0))


def running(task: str = "t") -> Running:
    return Running(entry(task), NOON, 1, NOON, 7)


def end(figures: Figures, outcome: str = "ok", times: int = 1, handler: str | None = "app:h") -> None:
    for _ in range(times):
        figures.ended([row(outcome=outcome, handler=handler)], TaskState.DONE)


# Histograms


@given(st.lists(st.floats(1e-5, 9e5), min_size=1), st.sampled_from([0.01, 0.5, 0.95, 0.99, 1.0]))
def test_a_percentile_is_as_near_to_the_true_one_as_it_is_said_to_be(values: list[float], part: float) -> None:
    histogram = Histogram()
    for value in values:
        histogram.observe(value)
    true = sorted(values)[math.ceil(part * len(values)) - 1]
    [told] = histogram.percentiles(part)
    assert told == pytest.approx(true, rel=PERCENTILE_ERROR)


def test_there_are_no_percentiles_of_nothing() -> None:
    assert Histogram().percentiles(0.5, 0.99) == [None, None]


@pytest.mark.parametrize(("value", "told"), [(0.0, BOUNDS[0]), (-1.0, BOUNDS[0]), (1e9, BOUNDS[-1])])
def test_what_is_beyond_the_buckets_is_told_as_their_end(value: float, told: float) -> None:
    histogram = Histogram()
    histogram.observe(value)
    assert histogram.percentiles(0.5) == [told]


@given(st.lists(st.sampled_from([0.001, 0.0011, 0.5, 1.0, 29.0, 30.0, 31.0, 1e9])))
def test_counts_up_to_a_bound_are_exact(values: list[float]) -> None:
    histogram = Histogram()
    for value in values:
        histogram.observe(value)
    bounds = (0.001, 0.5, 1, 30, 3600)
    assert histogram.at_most(bounds) == [sum(value <= bound for value in values) for bound in bounds]


@given(st.lists(st.floats(0, 1000)))
def test_many_are_counted_as_one_by_one(values: list[float]) -> None:
    one_by_one, at_once = Histogram(), Histogram()
    for value in values:
        one_by_one.observe(value)
    at_once.observe_all(values)
    assert at_once.counts == one_by_one.counts
    assert at_once.sum == pytest.approx(one_by_one.sum)


@given(st.lists(st.floats(0, 1000)), st.lists(st.floats(0, 1000)))
def test_what_was_added_can_be_subtracted(kept: list[float], gone: list[float]) -> None:
    alone, both, other = Histogram(), Histogram(), Histogram()
    for value in kept:
        alone.observe(value)
        both.observe(value)
    for value in gone:
        other.observe(value)
    both.add(other)
    assert both.count == len(kept) + len(gone)
    both.subtract(other)
    assert both.counts == alone.counts, "no bucket is left with nothing in it"
    assert both.sum == pytest.approx(alone.sum, abs=1e-6)


# What is counted


def test_attempts_that_end_together_are_counted_by_handler_and_outcome(figures: Figures) -> None:
    rows = [row(), row(), row(handler="app:g"), row(outcome="failed"), row()]
    figures.ended(rows, TaskState.DONE)
    snapshot = figures.snapshot()
    assert {handler.name: dict(handler.total.outcomes) for handler in snapshot.handlers} == {
        "app:g": {"ok": 1},
        "app:h": {"ok": 3, "failed": 1},
    }
    assert snapshot.all.total.queue.count == 5


def test_attempts_are_counted_by_handler_and_outcome(figures: Figures) -> None:
    end(figures, "ok", 3)
    end(figures, "failed", 2, "app:other")
    figures.ended([row(outcome="failed", handler=None)], TaskState.DEAD)
    told = figures.snapshot()
    by_name = {handler.name: handler.total for handler in told.handlers}
    assert dict(by_name["app:h"].outcomes) == {"ok": 3}
    assert dict(by_name["app:other"].outcomes) == {"failed": 2}
    assert (dict(by_name[""].outcomes), by_name[""].dead) == ({"failed": 1}, 1)
    assert dict(told.all.total.outcomes) == {"ok": 3, "failed": 3}
    assert told.all.total.dead == 1


def test_tasks_that_come_and_start_are_counted(figures: Figures) -> None:
    figures.enqueued([entry("a"), entry("b")])
    figures.started([running("a")])
    total = figures.snapshot().all.total
    assert (total.enqueued, total.started) == (2, 1)


def test_times_are_those_of_what_ran(figures: Figures) -> None:
    figures.ended([row(queue=0.02, run=0.5)], TaskState.DONE)
    figures.ended([row(outcome="set_aside", queue=99.0, run=0.0)], TaskState.DEAD)
    [handler] = figures.snapshot().handlers
    assert (handler.total.queue.count, handler.total.queue.sum) == (1, 0.02)
    assert (handler.total.run.count, handler.total.run.sum) == (1, 0.5)


def test_a_snapshot_does_not_change(figures: Figures, clock: Clock) -> None:
    end(figures)
    told = figures.snapshot()
    clock.now += 10
    end(figures)
    clock.now += 10
    figures.scans.observe(1.0)
    figures.snapshot()
    assert dict(told.all.total.outcomes) == dict(told.handlers[0].hour.outcomes) == {"ok": 1}
    assert told.scans.count == 0


def test_totals_are_kept_for_ever(figures: Figures, clock: Clock) -> None:
    for _ in range(3):
        end(figures)
        figures.enqueued([entry()])
        clock.now += 7200
    told = figures.snapshot()
    assert (told.all.total.outcomes["ok"], told.all.total.enqueued) == (3, 3)
    assert told.handlers[0].total.queue.count == 3


def test_handlers_beyond_the_limit_are_counted_together(figures: Figures, clock: Clock) -> None:
    for number in range(MAX_HANDLERS + 50):
        end(figures, handler=f"app:{number}")
    clock.now += 10
    for number in range(MAX_HANDLERS + 50):
        end(figures, handler=f"app:{number}")
    told = figures.snapshot()
    by_name = {handler.name: handler.total.outcomes["ok"] for handler in told.handlers}
    assert len(by_name) == MAX_HANDLERS + 1
    assert by_name["app:0"] == 2
    assert by_name[OTHER] == 100
    assert told.all.total.outcomes["ok"] == 2 * (MAX_HANDLERS + 50)


# How long ago


def test_rates_are_of_the_last_ten_seconds_minute_and_hour(figures: Figures, clock: Clock) -> None:
    for _ in range(720):  # two hours, one a second
        end(figures, times=10)
        clock.now += 10
    clock.now += 5  # half a slot later, so half of the last one counts
    rates = figures.snapshot().all.rates
    assert rates.ten_seconds.ended == pytest.approx(0.5)
    assert rates.minute.ended == pytest.approx(55 / 60)
    assert rates.hour.ended == pytest.approx(1.0, rel=0.01)
    assert figures.rates().ended == pytest.approx(0.5)


def test_rates_of_a_service_that_was_just_started_are_of_the_time_it_ran(figures: Figures, clock: Clock) -> None:
    end(figures, "failed", times=4)
    clock.now += 2
    rates = figures.snapshot().all.rates
    assert (rates.ten_seconds.ended, rates.minute.failed, rates.hour.ended) == (2.0, 2.0, 2.0)
    assert figures.rates() == Flow(0, 0, 2.0, 2.0)


def test_the_last_hour_forgets_what_was_longer_ago(figures: Figures, clock: Clock) -> None:
    end(figures, "failed", 5)
    clock.now += 3000
    end(figures, "failed", 1)
    assert figures.snapshot().all.hour.outcomes["failed"] == 6
    clock.now += 650
    told = figures.snapshot()
    assert dict(told.all.hour.outcomes) == dict(told.handlers[0].hour.outcomes) == {"failed": 1}
    assert told.all.hour.run.count == 1
    clock.now += 3650
    told = figures.snapshot()
    assert not told.all.hour.outcomes
    assert told.handlers[0].rates.hour == Flow(0, 0, 0, 0)


def test_the_series_has_the_slots_of_the_last_hour_that_are_over(figures: Figures, clock: Clock) -> None:
    figures.ended([row(queue=0.5, run=2.0)], TaskState.DONE)
    clock.now += 20
    end(figures, "failed", 2)
    assert [slot.number for slot in figures.snapshot().series] == [NOON // 10]
    clock.now += 10
    first, second = figures.snapshot().series
    assert first.flow == Flow(0, 0, 1, 0)
    assert first.queue_p50 == pytest.approx(0.5, rel=PERCENTILE_ERROR)
    assert first.run_p95 == pytest.approx(2.0, rel=PERCENTILE_ERROR)
    assert (second.number, second.flow) == (NOON // 10 + 2, Flow(0, 0, 2, 2))
    clock.now = NOON + 3600
    assert [slot.number for slot in figures.snapshot().series] == [first.number, second.number]
    clock.now += 10
    assert [slot.number for slot in figures.snapshot().series] == [second.number]


def test_a_clock_that_is_set_back_costs_the_history_and_no_totals(figures: Figures, clock: Clock) -> None:
    end(figures, times=3)
    clock.now += 10
    end(figures, times=3)
    clock.now -= 7200
    end(figures)
    told = figures.snapshot()
    assert told.all.total.outcomes["ok"] == 7
    assert told.series == []
    assert told.all.hour.outcomes["ok"] == 1
    clock.now += 5
    assert figures.rates().ended == pytest.approx(0.2)
    clock.now += 5
    assert [slot.flow.ended for slot in figures.snapshot().series] == [1]


def test_a_clock_that_is_set_forward_is_like_a_long_pause(figures: Figures, clock: Clock) -> None:
    end(figures)
    clock.now += 1e9
    end(figures)
    told = figures.snapshot()
    assert told.all.total.outcomes["ok"] == 2
    assert told.all.hour.outcomes["ok"] == 1


def test_memory_is_bounded(figures: Figures, clock: Clock) -> None:
    random.seed(1)

    def run_for(hours: float) -> None:
        for _ in range(int(hours * 360)):
            for number in range(20):
                figures.ended([row(handler=f"app:{number}", queue=random.expovariate(10))], TaskState.DONE)
            clock.now += 10

    run_for(1.2)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        run_for(1)
        assert tracemalloc.get_traced_memory()[0] - before < 600_000
    finally:
        tracemalloc.stop()
    assert len(figures.snapshot().series) == SERIES_SLOTS


# Single tasks


def test_nothing_is_kept_of_single_tasks_while_nobody_watches(figures: Figures) -> None:
    figures.enqueued([entry("a")])
    figures.changed("a", TaskState.HELD)
    figures.watch(10)
    assert figures.take_changes() == ({}, 0)


def test_who_watches_is_told_the_state_of_each_task_now(figures: Figures) -> None:
    figures.watch(10)
    figures.enqueued([entry("due"), entry("later", NOON + 1)])
    figures.enqueued([entry("run")])
    figures.started([running("run"), running("retried")])
    figures.ended([row("retried", "failed")], TaskState.SCHEDULED)
    figures.changed("held", TaskState.HELD)
    assert figures.take_changes() == (
        {
            "due": TaskState.READY,
            "later": TaskState.SCHEDULED,
            "run": TaskState.RUNNING,
            "retried": TaskState.SCHEDULED,
            "held": TaskState.HELD,
        },
        0,
    )
    assert figures.take_changes() == ({}, 0)
    figures.stop_watching()
    figures.changed("held", TaskState.READY)
    assert figures.take_changes() == ({}, 0)


def test_of_very_many_tasks_only_some_are_told_and_how_many_are_not(figures: Figures) -> None:
    figures.watch(3)
    figures.enqueued([entry(str(number)) for number in range(10)])
    figures.started([running("0"), running("9")])
    changes, more = figures.take_changes()
    assert changes == {"0": TaskState.RUNNING, "1": TaskState.READY, "2": TaskState.READY}
    assert more == 8
    figures.enqueued([entry("x")])
    assert figures.take_changes() == ({"x": TaskState.READY}, 0)


def test_an_attempt_costs_microseconds() -> None:
    """1 µs here; the limit is for slow and busy machines, and catches what depends on how much was counted."""
    figures = Figures(time.time)
    ended = [row()] * 10
    best = math.inf
    for _ in range(20):
        began = time.perf_counter()
        for _ in range(100):
            figures.ended(ended, TaskState.DONE)
        best = min(best, (time.perf_counter() - began) / 1000)
    assert best < 10e-6
