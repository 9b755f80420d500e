"""How many tasks to hand over at once."""

from __future__ import annotations

import pytest

from trispool.pace import MAX_AHEAD, MAX_FEWEST, Pace


def test_one_task_is_handed_over_when_nothing_is_known() -> None:
    assert Pace().ahead == 1


@pytest.mark.parametrize(
    ("seconds", "ahead"),
    [(0.0, MAX_AHEAD), (1e-6, MAX_AHEAD), (0.0001, 20), (0.0005, 4), (0.0011, 1), (0.002, 1), (60.0, 1)],
)
def test_two_milliseconds_of_work_are_handed_over_when_the_time_is_known(seconds: float, ahead: int) -> None:
    pace = Pace()
    pace.measured(seconds * 10, 10)
    assert pace.ahead == ahead


@pytest.mark.parametrize(
    ("seconds", "fewest"), [(0.0, MAX_FEWEST), (1e-6, MAX_FEWEST), (2e-5, 25), (0.0003, 1), (60.0, 1)]
)
def test_half_a_millisecond_of_work_is_worth_a_frame(seconds: float, fewest: int) -> None:
    pace = Pace()
    assert pace.fewest == 1
    pace.measured(seconds * 10, 10)
    assert pace.fewest == fewest


def test_one_task_is_handed_over_when_one_in_a_thousand_takes_long() -> None:
    pace = Pace()
    pace.measured(999e-6, 999)
    assert pace.ahead == MAX_AHEAD
    pace.measured(1.0, 1)
    assert pace.ahead == 1


def test_batches_grow_again_when_tasks_are_quick_again() -> None:
    pace = Pace()
    pace.measured(1.0, 1)
    rounds = 0
    while pace.ahead < MAX_AHEAD:
        pace.measured(1e-6 * pace.ahead, pace.ahead)
        rounds += 1
    assert 10 < rounds < 100
