"""The metrics in Prometheus' text format.

Every name of ours begins with `trispool_`; lengths of time are in seconds, sizes in bytes, what only grows ends in
`_total`. How many series there are is bounded: spools and listeners are as configured, handlers are `MAX_HANDLERS` of a
spool and `other`; reasons, routes, outcomes and states are of the program. Beside ours stand those of the process, as
prometheus-client has them.

Loading it takes 0.1 s, so it is loaded when metrics are asked for.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4, ProcessCollector, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    SummaryMetricFamily,
)
from prometheus_client.registry import Collector

from trispool.httpcounts import HttpCounts

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from prometheus_client.core import Metric

    from trispool.control import SpoolStatus
    from trispool.figures import SpoolFigures
    from trispool.histogram import Histogram
    from trispool.listener import ListenerStatistics
    from trispool.tally import LedgerStatistics

__all__ = ["CONTENT_TYPE_PLAIN_0_0_4", "Readings", "render_metrics"]

TASK_TIMES: Final = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 3600)
"""Upper bounds of the buckets of the times of tasks, seconds."""

DISK_TIMES: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5, 10)
"""Those of what the disk does, seconds."""

_STATES: Final = ("ready", "scheduled", "held", "running", "dead")
_WORKER_STATES: Final = ("starting", "idle", "busy", "quitting", "down")


@dataclass(frozen=True, slots=True)
class Readings:
    """What is shown, as it was at a moment; nothing of it changes while it is rendered.

    Attributes:
        at: That moment, Unix seconds.
        version: Of trispool.
        statuses: The spools.
        figures: What was counted of each, by name.
        history: What was written of the history of each, by name.
        listeners: The uwsgi sockets, by address.
        requests: What was asked by HTTP.
        readers: How many read the events.
    """

    at: float
    version: str
    statuses: Sequence[SpoolStatus]
    figures: Mapping[str, SpoolFigures]
    history: Mapping[str, LedgerStatistics] = field(default_factory=dict)
    listeners: Mapping[str, ListenerStatistics] = field(default_factory=dict)
    requests: HttpCounts = field(default_factory=HttpCounts)
    readers: int = 0


def render_metrics(readings: Readings) -> bytes:
    """The text, in the format 0.0.4. Takes some 0.3 ms a handler; may be called in any thread."""
    return generate_latest(_Readings(readings))


class _Readings(Collector):
    def __init__(self, readings: Readings) -> None:
        self._readings = readings

    def collect(self) -> Iterator[Metric]:
        yield InfoMetricFamily("trispool_build", "The version of trispool.", value={"version": self._readings.version})
        yield from self._spools()
        yield from self._workers()
        yield from self._tasks()
        yield from self._disk()
        yield from self._listeners()
        yield from self._http()
        yield from ProcessCollector(registry=None).collect()

    def _spools(self) -> Iterator[Metric]:
        states = GaugeMetricFamily("trispool_tasks", "Unfinished tasks, and dead ones.", labels=["spool", "state"])
        retrying = _gauge("trispool_tasks_retrying", "Scheduled tasks that have failed before.")
        oldest = _gauge("trispool_oldest_ready_seconds", "How long the oldest due task has been due; 0: none is.")
        paused = _gauge("trispool_spool_paused", "1 if an operator has paused the spool.")
        problem = _gauge("trispool_spool_problem", "1 if something is wrong with the spool; /healthz tells what.")
        refusing = _gauge("trispool_spool_refusing", "1 if the spool keeps no tasks that come now.")
        scanned = _gauge("trispool_spool_scanned", "1 when the first scan is over.")
        frequency = _gauge("trispool_scan_frequency_seconds", "From the end of a scan to the next.")
        for status in self._readings.statuses:
            spool = [status.name]
            for state in _STATES:
                states.add_metric([status.name, state], getattr(status, state))
            since = status.oldest_ready_at
            retrying.add_metric(spool, status.retrying)
            oldest.add_metric(spool, 0.0 if since is None else max(0.0, self._readings.at - since))
            paused.add_metric(spool, status.paused)
            problem.add_metric(spool, status.problem is not None)
            refusing.add_metric(spool, status.refusing is not None)
            scanned.add_metric(spool, status.scanned)
            frequency.add_metric(spool, status.frequency)
        yield from (states, retrying, oldest, paused, problem, refusing, scanned, frequency)

    def _workers(self) -> Iterator[Metric]:
        wanted = _gauge("trispool_worker_processes", "How many worker processes there shall be.")
        workers = GaugeMetricFamily("trispool_workers", "Worker processes by what they do.", labels=["spool", "state"])
        for status in self._readings.statuses:
            wanted.add_metric([status.name], status.processes)
            states = [worker.state for worker in status.workers]
            for state in _WORKER_STATES:
                workers.add_metric([status.name, state], states.count(state))
        yield from (wanted, workers)

    def _tasks(self) -> Iterator[Metric]:
        labels = ["spool", "handler"]
        enqueued = _counter("trispool_tasks_enqueued", "Tasks that came, in whichever way.")
        started = _counter("trispool_tasks_started", "Tasks that were handed to a worker.")
        attempts = CounterMetricFamily("trispool_attempts", "Attempts, by how they ended.", labels=[*labels, "outcome"])
        given_up = CounterMetricFamily("trispool_tasks_given_up", "Tasks that were set aside as dead.", labels=labels)
        queue = HistogramMetricFamily(
            "trispool_task_queue_seconds", "From the moment a task was due to its start.", labels=labels
        )
        run = HistogramMetricFamily("trispool_task_run_seconds", "How long attempts ran.", labels=labels)
        for name, figures in self._readings.figures.items():
            enqueued.add_metric([name], figures.all.total.enqueued)
            started.add_metric([name], figures.all.total.started)
            for handler in figures.handlers:
                values = [name, handler.name]
                total = handler.total
                for outcome, count in total.outcomes.items():
                    attempts.add_metric([*values, outcome], count)
                given_up.add_metric(values, total.dead)
                _add_histogram(queue, values, total.queue, TASK_TIMES)
                _add_histogram(run, values, total.run, TASK_TIMES)
        yield from (enqueued, started, attempts, given_up, queue, run)

    def _disk(self) -> Iterator[Metric]:
        scans = HistogramMetricFamily("trispool_scan_seconds", "How long full scans took.", labels=["spool"])
        commits = HistogramMetricFamily(
            "trispool_commit_seconds", "From an enqueue to its answer, as durable as configured.", labels=["spool"]
        )
        for name, figures in self._readings.figures.items():
            _add_histogram(scans, [name], figures.scans, DISK_TIMES)
            _add_histogram(commits, [name], figures.commits, DISK_TIMES)
        history = HistogramMetricFamily(
            "trispool_history_commit_seconds", "How long writing a part of the history took.", labels=["spool"]
        )
        rows = _counter("trispool_history_rows", "Rows of the history that were written.")
        dropped = _counter("trispool_history_rows_dropped", "Rows of the history that were lost.")
        failed = _counter("trispool_history_commit_failures", "How often the disk did not take the history.")
        for name, statistics in self._readings.history.items():
            _add_histogram(history, [name], statistics.commits, DISK_TIMES)
            rows.add_metric([name], statistics.written)
            dropped.add_metric([name], statistics.dropped)
            failed.add_metric([name], statistics.failed_commits)
        yield from (scans, commits, history, rows, dropped, failed)

    def _listeners(self) -> Iterator[Metric]:
        label = ["listener"]
        open_ = GaugeMetricFamily("trispool_listener_open_connections", "Connections that are open.", labels=label)
        held = GaugeMetricFamily("trispool_listener_held_bytes", "Bytes of incomplete requests.", labels=label)
        accepted = CounterMetricFamily("trispool_listener_connections", "Connections that came.", labels=label)
        requests = CounterMetricFamily("trispool_listener_requests", "Whole requests that came.", labels=label)
        spooled = CounterMetricFamily("trispool_listener_tasks", "Tasks that were kept.", labels=label)
        timeouts = CounterMetricFamily(
            "trispool_listener_timeouts", "Connections closed because they were silent or too slow.", labels=label
        )
        refused = CounterMetricFamily(
            "trispool_listener_refusals", "Requests and connections that were refused.", labels=[*label, "reason"]
        )
        for address, statistics in self._readings.listeners.items():
            open_.add_metric([address], statistics.open)
            held.add_metric([address], statistics.held)
            accepted.add_metric([address], statistics.accepted)
            requests.add_metric([address], statistics.requests)
            spooled.add_metric([address], statistics.spooled)
            timeouts.add_metric([address], statistics.timeouts)
            for reason, count in statistics.refused.items():
                refused.add_metric([address, reason], count)
        yield from (open_, held, accepted, requests, spooled, timeouts, refused)

    def _http(self) -> Iterator[Metric]:
        requests = CounterMetricFamily(
            "trispool_http_requests", "HTTP requests that were answered.", labels=["method", "route", "status"]
        )
        seconds = SummaryMetricFamily("trispool_http_request_seconds", "How long they took.", labels=["route"])
        sent = CounterMetricFamily("trispool_http_sent_bytes", "Bytes of their answers.", labels=["route"])
        counts: dict[str, int] = {}
        asked = self._readings.requests
        for (method, route, status), count in asked.requests.items():
            requests.add_metric([method, route, status], count)
            counts[route] = counts.get(route, 0) + count
        for route, count in counts.items():
            seconds.add_metric([route], count, asked.seconds[route])
            sent.add_metric([route], asked.sent[route])
        readers = GaugeMetricFamily("trispool_event_readers", "Who reads the events.", value=self._readings.readers)
        yield from (requests, seconds, sent, readers)


def _gauge(name: str, text: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, labels=["spool"])


def _counter(name: str, text: str) -> CounterMetricFamily:
    return CounterMetricFamily(name, text, labels=["spool"])


def _add_histogram(
    family: HistogramMetricFamily, labels: Sequence[str], histogram: Histogram, bounds: Sequence[float]
) -> None:
    counts = zip(bounds, histogram.at_most(bounds), strict=True)
    buckets = [(str(float(bound)), float(count)) for bound, count in counts]
    family.add_metric(labels, [*buckets, ("+Inf", float(histogram.count))], histogram.sum)
