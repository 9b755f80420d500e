"""Stats: the document, from figures that the tests made."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from trispool.control import SpoolStatus, WorkerStatus
from trispool.figures import SERIES_SLOTS, Figures
from trispool.histogram import PERCENTILE_ERROR
from trispool.stats import stats_document
from trispool.task import AttemptRow, Entry, TaskState

NOON = 1_700_006_400.0


class Clock:
    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def status(name: str = "default", **fields: Any) -> SpoolStatus:
    return SpoolStatus(name, None, 30, 1, False, "os", **fields)


def end(figures: Figures, outcome: str, handler: str | None = "app:h", queue: float = 0.01, run: float = 0.1) -> None:
    state = TaskState.DEAD if outcome == "lost" else TaskState.DONE
    ended = AttemptRow("t", 1, outcome, None, NOON, queue, run, 7, handler, None, None, NOON, None, NOON)
    figures.ended([ended], state)


def enqueue(figures: Figures, count: int) -> None:
    figures.enqueued([Entry(str(number), str(number), NOON, None, (0, 0)) for number in range(count)])


def make(clock: Clock, *spools: tuple[SpoolStatus, Figures]) -> Any:
    """The document as a client reads it."""
    figures = {item.name: counted.snapshot() for item, counted in spools}
    document = stats_document([item for item, _ in spools], figures, clock.now)
    return msgspec.json.decode(msgspec.json.encode(document))


def test_it_tells_what_waits_and_how_long_the_oldest_is_due(clock: Clock) -> None:
    one = status(ready=1, scheduled=2, held=3, running=4, retrying=1, dead=5, oldest_ready_at=NOON - 7)
    two = status("two", ready=10, workers=(WorkerStatus(1, "busy"), WorkerStatus(2, "busy"), WorkerStatus(3, "idle")))
    document = make(clock, (one, Figures(clock)), (two, Figures(clock)))
    first, second = document["spools"]
    assert first["counts"] == {"ready": 1, "scheduled": 2, "held": 3, "running": 4, "retrying": 1, "dead": 5}
    assert (first["oldest_ready_seconds"], second["oldest_ready_seconds"]) == (7, None)
    assert (first["workers"], second["workers"]) == ({}, {"busy": 2, "idle": 1})
    assert document["totals"]["counts"]["ready"] == 11
    assert document["totals"]["oldest_ready_seconds"] == 7
    assert document["at"] == NOON


def test_what_is_due_only_by_a_clock_that_was_set_has_not_waited(clock: Clock) -> None:
    document = make(clock, (status(oldest_ready_at=NOON + 9), Figures(clock)))
    assert document["totals"]["oldest_ready_seconds"] == 0


def test_it_tells_rates_and_outcomes_of_the_spool_and_of_each_handler(clock: Clock) -> None:
    figures = Figures(clock)
    enqueue(figures, 40)
    for _ in range(20):
        end(figures, "ok")
    end(figures, "failed")
    end(figures, "retry")
    end(figures, "lost", None)
    clock.now += 10
    [spool] = make(clock, (status(), figures))["spools"]
    assert spool["rates"]["10s"] == {"enqueued": 4, "started": 0, "ended": 2.3, "failed": 0.2}
    assert set(spool["rates"]) == {"10s", "1m", "1h"}
    assert spool["outcomes"] == {"ok": 20, "failed": 1, "retry": 1, "lost": 1}
    assert (spool["given_up"], spool["last_hour"]["failed"], spool["last_hour"]["ended"]) == (1, 2, 23)
    unknown, known = spool["handlers"]
    assert (unknown["name"], unknown["outcomes"], unknown["given_up"]) == (None, {"lost": 1}, 1)
    assert (known["name"], known["rates"]["10s"]) == ("app:h", {"ended": 2.2, "failed": 0.1})
    assert known["last_hour"]["outcomes"] == {"ok": 20, "failed": 1, "retry": 1}


def test_it_tells_percentiles_of_the_last_hour_and_how_far_they_may_be_off(clock: Clock) -> None:
    figures = Figures(clock)
    for number in range(1, 101):
        end(figures, "ok", queue=number / 1000, run=number)
    document = make(clock, (status(), figures))
    error = document["percentile_error"]
    assert error == PERCENTILE_ERROR
    for place in (document["totals"], document["spools"][0], document["spools"][0]["handlers"][0]):
        assert place["last_hour"]["queue_seconds"] == {
            "p50": pytest.approx(0.05, rel=error),
            "p95": pytest.approx(0.095, rel=error),
            "p99": pytest.approx(0.099, rel=error),
        }
        assert place["last_hour"]["run_seconds"]["p50"] == pytest.approx(50, rel=error)
    clock.now += 7200
    document = make(clock, (status(), figures))
    assert document["totals"]["last_hour"]["queue_seconds"] == {"p50": None, "p95": None, "p99": None}
    assert document["totals"]["outcomes"] == {"ok": 100}


def test_the_series_has_ten_seconds_in_each_place_up_to_now(clock: Clock) -> None:
    figures = Figures(clock)
    end(figures, "ok", run=2.0)
    clock.now += 20
    end(figures, "failed")
    enqueue(figures, 3)
    clock.now += 15
    [spool] = make(clock, (status(), figures))["spools"]
    series = spool["series"]
    assert (series["begin"], series["slot_seconds"]) == (NOON, 10)
    assert (series["ended"], series["failed"], series["enqueued"]) == ([1, 0, 1], [0, 0, 1], [0, 0, 3])
    assert series["run_p50"] == [pytest.approx(2.0, rel=PERCENTILE_ERROR), None, pytest.approx(0.1, rel=0.07)]
    clock.now = NOON + 7200
    [spool] = make(clock, (status(), figures))["spools"]
    series = spool["series"]
    assert series["begin"] == NOON + 3600
    assert all(len(series[name]) == SERIES_SLOTS for name in series if name not in ("begin", "slot_seconds"))
    assert not any(series["ended"])


def test_the_totals_are_those_of_all_spools(clock: Clock) -> None:
    one, two = Figures(clock), Figures(clock)
    end(one, "ok")
    end(two, "ok")
    end(two, "failed")
    clock.now += 10
    totals = make(clock, (status("one"), one), (status("two"), two))["totals"]
    assert totals["outcomes"] == {"ok": 2, "failed": 1}
    assert totals["rates"]["10s"]["ended"] == pytest.approx(0.3)
    assert totals["last_hour"]["failed"] == 1
    assert (totals["series"]["ended"], totals["series"]["failed"]) == ([3], [1])
    assert totals["since"] == NOON
