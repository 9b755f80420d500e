"""Metrics: what Prometheus reads, by prometheus-client's own parser; how often they are made."""

from __future__ import annotations

import re
import threading
from typing import TYPE_CHECKING, Any

import pytest
import trio
from prometheus_client.parser import text_string_to_metric_families

from trispool.control import SpoolStatus, WorkerStatus
from trispool.figures import MAX_HANDLERS, OTHER, Figures
from trispool.httpcounts import HttpCounts
from trispool.ledger import Ledger
from trispool.listener import ListenerStatistics
from trispool.metrics import Readings, render_metrics
from trispool.reports import FRESH_SECONDS, Reports
from trispool.tally import LedgerStatistics
from trispool.task import AttemptRow, TaskState

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from trio.testing import MockClock

NOW = 1_700_000_000.0

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def status(name: str = "default", **fields: Any) -> SpoolStatus:
    return SpoolStatus(name, None, 30, 2, False, "os", **fields)


def row(outcome: str, handler: str | None, queue: float = 0.02, run: float = 0.3) -> AttemptRow:
    return AttemptRow("t", 1, outcome, None, NOW, queue, run, 7, handler, None, None, NOW, None, NOW)


def busy() -> Figures:
    figures = Figures(lambda: NOW)
    for outcome in ("ok", "ok", "retry", "failed"):
        figures.ended([row(outcome, "app:h")], TaskState.DONE)
    figures.ended([row("lost", None)], TaskState.DEAD)
    figures.scans.observe(0.004)
    figures.commits.observe(0.0004)
    return figures


def render(figures: Figures | None = None, spool: SpoolStatus | None = None, **fields: Any) -> bytes:
    figures = figures or busy()
    return render_metrics(Readings(NOW, "1.2", [spool or status()], {"default": figures.snapshot()}, **fields))


def parse(text: bytes) -> Samples:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples[name, frozenset(labels.items())]


def test_attempts_are_told_by_spool_handler_and_outcome() -> None:
    samples = parse(render())
    name = "trispool_attempts_total"
    assert value(samples, name, spool="default", handler="app:h", outcome="ok") == 2
    assert value(samples, name, spool="default", handler="app:h", outcome="failed") == 1
    assert value(samples, name, spool="default", handler="", outcome="lost") == 1
    assert value(samples, "trispool_tasks_given_up_total", spool="default", handler="") == 1
    assert value(samples, "trispool_tasks_given_up_total", spool="default", handler="app:h") == 0


def test_what_waits_is_told_by_state_with_the_age_of_the_oldest() -> None:
    samples = parse(render(spool=status(ready=1, scheduled=2, held=3, running=4, dead=5, oldest_ready_at=NOW - 9)))
    told = {
        state: value(samples, "trispool_tasks", spool="default", state=state)
        for state in ("ready", "scheduled", "held", "running", "dead")
    }
    assert told == {"ready": 1, "scheduled": 2, "held": 3, "running": 4, "dead": 5}
    assert value(samples, "trispool_oldest_ready_seconds", spool="default") == 9
    assert value(parse(render()), "trispool_oldest_ready_seconds", spool="default") == 0


def test_times_are_histograms() -> None:
    samples = parse(render())
    labels = {"spool": "default", "handler": "app:h"}
    name = "trispool_task_queue_seconds"
    assert value(samples, f"{name}_bucket", le="0.01", **labels) == 0
    assert value(samples, f"{name}_bucket", le="0.025", **labels) == 4
    assert value(samples, f"{name}_bucket", le="+Inf", **labels) == value(samples, f"{name}_count", **labels) == 4
    assert value(samples, f"{name}_sum", **labels) == pytest.approx(0.08)
    assert value(samples, "trispool_task_run_seconds_bucket", le="0.25", **labels) == 0
    assert value(samples, "trispool_task_run_seconds_bucket", le="0.5", **labels) == 4
    assert value(samples, "trispool_scan_seconds_bucket", spool="default", le="0.005") == 1
    assert value(samples, "trispool_commit_seconds_bucket", spool="default", le="0.0005") == 1


def test_workers_are_told_by_state() -> None:
    workers = (WorkerStatus(1, "busy"), WorkerStatus(2, "busy"), WorkerStatus(0, "down"))
    samples = parse(render(spool=status(workers=workers)))
    states = {
        state: value(samples, "trispool_workers", spool="default", state=state)
        for state in ("starting", "idle", "busy", "quitting", "down")
    }
    assert states == {"starting": 0, "idle": 0, "busy": 2, "quitting": 0, "down": 1}
    assert value(samples, "trispool_worker_processes", spool="default") == 2


@pytest.mark.parametrize(
    ("name", "fields", "expected"),
    [
        ("trispool_spool_paused", {}, 0),
        ("trispool_spool_problem", {"problem": "read-only"}, 1),
        ("trispool_spool_refusing", {"refusing": "no space"}, 1),
        ("trispool_spool_scanned", {"scanned": False}, 0),
        ("trispool_tasks_retrying", {"retrying": 7}, 7),
        ("trispool_scan_frequency_seconds", {}, 30),
    ],
)
def test_the_state_of_a_spool_is_told(name: str, fields: Mapping[str, Any], expected: float) -> None:
    assert value(parse(render(spool=status(**fields))), name, spool="default") == expected


def test_listeners_are_told_with_their_refusals_by_reason() -> None:
    statistics = ListenerStatistics(3, 10, 20, 15, {"too_large": 2, "malformed": 1}, 4, 5000)
    samples = parse(render(listeners={"127.0.0.1:3031": statistics}))
    listener = {"listener": "127.0.0.1:3031"}
    assert value(samples, "trispool_listener_open_connections", **listener) == 3
    assert value(samples, "trispool_listener_connections_total", **listener) == 10
    assert value(samples, "trispool_listener_requests_total", **listener) == 20
    assert value(samples, "trispool_listener_tasks_total", **listener) == 15
    assert value(samples, "trispool_listener_refusals_total", reason="too_large", **listener) == 2
    assert value(samples, "trispool_listener_timeouts_total", **listener) == 4
    assert value(samples, "trispool_listener_held_bytes", **listener) == 5000


def test_http_requests_are_told_by_route_and_status() -> None:
    counts = HttpCounts()
    counts.requests["GET", "/api/v1/tasks/<task_id>", "200"] = 3
    counts.requests["GET", "/api/v1/tasks/<task_id>", "404"] = 1
    counts.seconds["/api/v1/tasks/<task_id>"] = 0.5
    counts.sent["/api/v1/tasks/<task_id>"] = 1234
    samples = parse(render(requests=counts, readers=2))
    route = {"route": "/api/v1/tasks/<task_id>"}
    assert value(samples, "trispool_http_requests_total", method="GET", status="404", **route) == 1
    assert value(samples, "trispool_http_request_seconds_count", **route) == 4
    assert value(samples, "trispool_http_request_seconds_sum", **route) == 0.5
    assert value(samples, "trispool_http_sent_bytes_total", **route) == 1234
    assert value(samples, "trispool_event_readers") == 2


def test_the_history_is_told() -> None:
    statistics = LedgerStatistics(written=5, dropped=2, failed_commits=1)
    statistics.commits.observe(0.02)
    samples = parse(render(history={"default": statistics}))
    assert value(samples, "trispool_history_rows_total", spool="default") == 5
    assert value(samples, "trispool_history_rows_dropped_total", spool="default") == 2
    assert value(samples, "trispool_history_commit_failures_total", spool="default") == 1
    assert value(samples, "trispool_history_commit_seconds_count", spool="default") == 1


def test_names_and_texts_keep_the_conventions() -> None:
    families = list(text_string_to_metric_families(render().decode()))
    ours = [family for family in families if not family.name.startswith("process_")]
    assert len(ours) > 30
    for family in ours:
        assert re.fullmatch("trispool_[a-z]+(_[a-z]+)*", family.name), family.name
        assert family.documentation.endswith("."), family.name
        assert family.type != "unknown", family.name
        for sample in family.samples:
            assert sample.name.endswith("_total") == (family.type == "counter"), sample.name
    assert len({family.name for family in families}) == len(families)
    assert "process_resident_memory_bytes" in {family.name for family in families}


def test_a_handler_of_any_name_is_readable() -> None:
    figures = Figures(lambda: NOW)
    name = 'a"b\\c\nd\u00e9'
    figures.ended([row("ok", name)], TaskState.DONE)
    samples = parse(render(figures))
    assert value(samples, "trispool_attempts_total", spool="default", handler=name, outcome="ok") == 1


def test_the_number_of_series_is_bounded() -> None:
    figures = Figures(lambda: NOW)
    for number in range(10 * MAX_HANDLERS):
        figures.ended([row("ok", f"app:{number}")], TaskState.DONE)
    samples = parse(render(figures))
    handlers = {dict(labels)["handler"] for name, labels in samples if name == "trispool_attempts_total"}
    assert len(handlers) == MAX_HANDLERS + 1
    assert value(samples, "trispool_attempts_total", spool="default", handler=OTHER, outcome="ok") == 9 * MAX_HANDLERS


# How often


class Service:
    """What reports are made of, and how often it was looked at."""

    def __init__(self, path: Path) -> None:
        self.figures = {"default": busy()}
        self.looks = 0
        self.reports = Reports(
            self.statuses,
            self.figures,
            {"default": Ledger(str(path / "spool.db"))},
            HttpCounts(),
            lambda: 0,
            clock=lambda: NOW,
        )

    def statuses(self) -> list[SpoolStatus]:
        assert threading.current_thread() is threading.main_thread()
        self.looks += 1
        return [status()]


async def test_a_storm_of_scrapes_costs_one(tmp_path: Path, autojump_clock: MockClock) -> None:
    service = Service(tmp_path)
    answers: list[bytes] = []

    async def scrape() -> None:
        answers.append(await service.reports.metrics())

    async with trio.open_nursery() as nursery:
        for _ in range(100):
            nursery.start_soon(scrape)
    assert service.looks == 1
    assert len({id(answer) for answer in answers}) == 1
    assert value(parse(answers[0]), "trispool_attempts_total", spool="default", handler="app:h", outcome="ok") == 2


async def test_metrics_and_stats_are_a_second_old_at_most(tmp_path: Path, autojump_clock: MockClock) -> None:
    service = Service(tmp_path)
    first = await service.reports.metrics(), await service.reports.stats()
    service.figures["default"].ended([row("ok", "app:h")], TaskState.DONE)
    assert (await service.reports.metrics(), await service.reports.stats()) == first
    await trio.sleep(FRESH_SECONDS)
    samples = parse(await service.reports.metrics())
    assert value(samples, "trispool_attempts_total", spool="default", handler="app:h", outcome="ok") == 3
    stats: Any = await service.reports.stats()
    assert stats["totals"]["outcomes"]["ok"] == 3


async def test_rendering_keeps_nobody_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[threading.Thread] = []

    def slow(readings: Readings) -> bytes:
        threads.append(threading.current_thread())
        return b""

    monkeypatch.setattr("trispool.metrics.render_metrics", slow)
    await Service(tmp_path).reports.metrics()
    assert threads != [threading.main_thread()]
