"""Some seconds of the soak; `make faults` makes an hour. And that growing is seen, where it is and where it is not."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

import pytest

from tests.faults import lives
from tests.faults.lives import Life
from tests.faults.soak import OF_THE_HISTORY, SCENARIO, Bound, Operator, Samples

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def sampled(value: Callable[[float], float], every: float = 1.0, if_short: float | None = 4.0) -> Samples:
    """A hundred samples, a second or more between two."""
    samples = Samples(Bound("memory, MB", 4.0, if_short, lambda path: 0.0))
    for at in range(101):
        samples.add(1000.0 + at * every, value(at))
    return samples


@pytest.mark.parametrize(
    ("value", "growth"),
    [
        (lambda at: 50.0, 0.0),
        (lambda at: 50.0 + at, 60.0),  # of a hundred, less the warm-up
        (lambda at: min(90.0, 50.0 + at), 0.0),  # within the warm-up
        (lambda at: 50.0 - at, -60.0),
    ],
)
def test_growth_is_what_comes_after_the_warm_up(value: Callable[[float], float], growth: float) -> None:
    assert sampled(value).growth() == pytest.approx(growth)


def test_a_single_peak_is_no_growth() -> None:
    assert abs(sampled(lambda at: 90.0 if at == 70 else 50.0).growth()) < 1


def test_more_growth_than_may_be_is_told() -> None:
    outcome = sampled(lambda at: 50.0 + at / 10).outcome("service")
    assert outcome.name == "service: memory, MB"
    assert outcome.violations == ["grew by 6.00, which is more than 4"]
    assert sampled(lambda at: 50.0 + at / 20).outcome("service").violations == []


def test_a_short_run_may_grow_more() -> None:
    def grows(at: float) -> float:
        return 50.0 + at / 10

    assert sampled(grows, if_short=40.0).outcome("service").violations == []
    assert sampled(grows, if_short=None).outcome("service").violations == []
    assert sampled(grows, every=36.0, if_short=None).outcome("service").violations


def test_the_history_is_measured_whole(tmp_path: Path) -> None:
    (tmp_path / ".trispool").mkdir()
    (tmp_path / ".trispool/spool.db").write_bytes(b"x" * 1_000_000)
    (tmp_path / ".trispool/spool.db-wal").write_bytes(b"x" * 500_000)
    assert OF_THE_HISTORY.read(tmp_path) == 1.5


def test_a_service_that_does_not_answer_its_operator_is_seen(tmp_path: Path) -> None:
    parent = lives.Plain()
    operator = Operator(Life(parent, tmp_path / "spool", "os", with_async=False))
    operator.start()
    while not operator.problems:
        operator.join(0.01)
    operator.stop()
    assert operator.asked == 0


def test_nothing_grows_in_some_seconds(tmp_path: Path) -> None:
    outcomes = SCENARIO.run(0.001, tmp_path, Random(1))
    assert [outcome for outcome in outcomes if outcome.violations] == []
    tried = {outcome.name: outcome.tried for outcome in outcomes}
    assert {"service: memory, MB", "worker 2: descriptors", "history: on disk, MB"} <= tried.keys()
    assert tried["service: memory, MB"] > 10
    assert tried["tasks"] > 100
    assert tried["operator's questions"] > 2
