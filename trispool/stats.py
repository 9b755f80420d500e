"""Counts, rates and times of the last hour, as a JSON document for people and dashboards. Pure.

    {"at": 1794139509.25, "percentile_error": 0.07,
     "totals": {…as of a spool, without name and handlers; its series has the counts only…},
     "spools": [{
       "name": "default",
       "since": 1794130000.0,                           when counting began
       "counts": {"ready": 1, "scheduled": 2, "held": 0, "running": 2, "retrying": 1, "dead": 0},
       "workers": {"busy": 2},                          by state
       "oldest_ready_seconds": 0.2,                     how long the oldest due task has been due; null: none is
       "rates": {"10s": {"enqueued": 20.5, "started": 20.5, "ended": 20.4, "failed": 0.1}, "1m": …, "1h": …},
       "outcomes": {"ok": 12345, "failed": 2},          since then
       "given_up": 1,                                   since then: tasks that were set aside
       "last_hour": {"outcomes": …, "ended": …, "failed": …, "given_up": …,
                     "queue_seconds": {"p50": 0.0018, "p95": 0.0063, "p99": 0.013}, "run_seconds": …},
       "handlers": [{"name": "app:encode", "rates": {"10s": {"ended": 20.4, "failed": 0.1}, …}, "outcomes": …, …}],
       "series": {"begin": 1794135910, "slot_seconds": 10, "enqueued": [205, …], "started": …, "ended": …, "failed": …,
                  "queue_p50": [0.0018, …], "queue_p95": …, "run_p50": …, "run_p95": …}
     }]}

Times are Unix seconds, lengths of time seconds, rates tasks a second. `failed` are attempts that raised, ran into their
time limit, killed their worker or were of what is no task. Percentiles are null where nothing was run; they come from
histograms and are off by `percentile_error` (7 %) of themselves at most. "The last hour" of rates and times is 55 to 60
minutes, that of the series the last 360 slots that are over.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from trispool.figures import SERIES_SLOTS
from trispool.histogram import PERCENTILE_ERROR
from trispool.tally import SLOT_SECONDS, Flow, Rates, Tally

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from trispool.control import SpoolStatus
    from trispool.figures import Slot, SpoolFigures
    from trispool.histogram import Histogram
    from trispool.tally import HandlerFigures

__all__ = ["stats_document"]

_PERCENTILES: Final = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
_WINDOWS: Final = {"ten_seconds": "10s", "minute": "1m", "hour": "1h"}
_COUNTS: Final = ("ready", "scheduled", "held", "running", "retrying", "dead")
_OF_HANDLERS: Final = ("ended", "failed")


def stats_document(
    statuses: Sequence[SpoolStatus], figures: Mapping[str, SpoolFigures], now: float
) -> dict[str, object]:
    """The document that the module describes.

    Args:
        statuses: The spools at this moment; at least one.
        figures: What was counted of them, by their names.
        now: Unix seconds.
    """
    spools = [figures[status.name] for status in statuses]
    return {
        "at": now,
        "percentile_error": PERCENTILE_ERROR,
        "totals": _totals(statuses, spools, now),
        "spools": [_spool(status, spool, now) for status, spool in zip(statuses, spools, strict=True)],
    }


def _spool(status: SpoolStatus, figures: SpoolFigures, now: float) -> dict[str, object]:
    return {
        "name": status.name,
        "since": figures.since,
        **_moment([status], now),
        **_history(figures.all, Flow._fields),
        "handlers": [{"name": handler.name or None, **_history(handler, _OF_HANDLERS)} for handler in figures.handlers],
        "series": _counts_series([figures]) | _times_series(figures),
    }


def _totals(statuses: Sequence[SpoolStatus], figures: Sequence[SpoolFigures], now: float) -> dict[str, object]:
    total, hour = Tally(), Tally()
    for spool in figures:
        total.add(spool.all.total)
        hour.add(spool.all.hour)
    rates = Rates(*(_sum(flows) for flows in zip(*(spool.all.rates for spool in figures), strict=True)))
    return {
        "since": min(spool.since for spool in figures),
        **_moment(statuses, now),
        "rates": _rates(rates, Flow._fields),
        **_outcomes(total),
        "last_hour": _last_hour(hour),
        "series": _counts_series(figures),
    }


def _moment(statuses: Iterable[SpoolStatus], now: float) -> dict[str, object]:
    """What waits and who is at work."""
    counts: Counter[str] = Counter()
    workers: Counter[str] = Counter()
    ages = []
    for status in statuses:
        counts.update({name: getattr(status, name) for name in _COUNTS})
        workers.update(worker.state for worker in status.workers)
        if status.oldest_ready_at is not None:
            ages.append(max(0.0, now - status.oldest_ready_at))
    return {
        "counts": {name: counts[name] for name in _COUNTS},
        "workers": dict(workers),
        "oldest_ready_seconds": max(ages, default=None),
    }


def _history(figures: HandlerFigures, fields: Sequence[str]) -> dict[str, object]:
    return {
        "rates": _rates(figures.rates, fields),
        **_outcomes(figures.total),
        "last_hour": _last_hour(figures.hour),
    }


def _rates(rates: Rates, fields: Sequence[str]) -> dict[str, dict[str, float]]:
    return {
        _WINDOWS[window]: {field: round(getattr(flow, field), 3) for field in fields}
        for window, flow in rates._asdict().items()
    }


def _outcomes(tally: Tally) -> dict[str, object]:
    return {"outcomes": dict(tally.outcomes), "given_up": tally.dead}


def _last_hour(tally: Tally) -> dict[str, object]:
    flow = tally.flow()
    return {
        **_outcomes(tally),
        "ended": flow.ended,
        "failed": flow.failed,
        "queue_seconds": _percentiles(tally.queue),
        "run_seconds": _percentiles(tally.run),
    }


def _percentiles(histogram: Histogram) -> dict[str, float | None]:
    return {
        name: _rounded(value)
        for name, value in zip(_PERCENTILES, histogram.percentiles(*_PERCENTILES.values()), strict=True)
    }


def _rounded(value: float | None) -> float | None:
    """Three digits: more would promise what the histogram does not hold."""
    return None if value is None else float(f"{value:.3g}")


def _counts_series(spools: Sequence[SpoolFigures]) -> dict[str, Any]:
    """The counts of the last hour, of all these spools together."""
    begin, end = _span(spools)
    series: dict[str, list[float]] = {field: [0] * (end - begin) for field in Flow._fields}
    for spool in spools:
        for slot in spool.series:
            if begin <= slot.number < end:
                for field, count in zip(Flow._fields, slot.flow, strict=True):
                    series[field][slot.number - begin] += count
    return {"begin": begin * SLOT_SECONDS, "slot_seconds": SLOT_SECONDS, **series}


def _times_series(spool: SpoolFigures) -> dict[str, Any]:
    begin, end = _span([spool])
    slots: dict[int, Slot] = {slot.number: slot for slot in spool.series}
    return {
        field: [_rounded(getattr(slots[n], field)) if n in slots else None for n in range(begin, end)]
        for field in ("queue_p50", "queue_p95", "run_p50", "run_p95")
    }


def _span(spools: Sequence[SpoolFigures]) -> tuple[int, int]:
    """The numbers of the first slot, none from before counting began, and of the present one, which is left out."""
    end = int(max(spool.at for spool in spools) // SLOT_SECONDS)
    since = int(min(spool.since for spool in spools) // SLOT_SECONDS)
    return max(end - SERIES_SLOTS, min(since, end)), end


def _sum(flows: Iterable[Flow]) -> Flow:
    return Flow(*(sum(counts) for counts in zip(*flows, strict=True)))
