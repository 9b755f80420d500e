"""Health and readiness: what counts as a problem, and how it is told."""

from __future__ import annotations

import traceback
from typing import Any

import pytest

from trispool.control import SpoolStatus, WorkerStatus
from trispool.health import LATELY_SECONDS, Refusals, healthiness, readiness

NOW = 1_700_000_000.0


def status(*states: Any, **fields: Any) -> SpoolStatus:
    workers = tuple(WorkerStatus(number + 1, state) for number, state in enumerate(states))
    return SpoolStatus("default", None, 30, fields.pop("processes", 1), False, "os", workers=workers, **fields)


@pytest.mark.parametrize("state", ["idle", "busy", "quitting"])
def test_a_service_that_has_scanned_and_has_workers_is_ready(state: str) -> None:
    health = readiness([status(state, "starting", "down")])
    assert (health.ok, health.problems) == (True, [])


@pytest.mark.parametrize(
    ("unready", "told"),
    [
        (status("idle", scanned=False), ["default: the first scan is not over"]),
        (status("starting", "down"), ["default: no worker is ready"]),
        (status(), ["default: no worker is ready"]),
        (
            status("down", problem="handlers do not import: ImportError"),
            ["default: no worker is ready: handlers do not import: ImportError"],
        ),
        (status("idle", refusing="no space left on device"), ["default: no space left on device"]),
    ],
)
def test_what_is_missing_is_told(unready: SpoolStatus, told: list[str]) -> None:
    health = readiness([status("idle"), unready])
    assert (health.ok, health.problems) == (False, told)


def test_a_service_that_stops_is_not_ready() -> None:
    assert readiness([status("idle")], stopping=True).problems == ["the service is stopping"]


def test_a_spool_that_others_run_needs_no_workers() -> None:
    assert readiness([status(processes=0)]).ok


def test_a_spool_whose_reload_failed_is_ready_but_not_well() -> None:
    spool = status("idle", problem="handlers do not import: ImportError")
    assert readiness([spool]).ok
    assert healthiness([spool]).problems == ["default: handlers do not import: ImportError"]


def test_a_spool_that_has_kept_nothing_lately_is_not_well() -> None:
    assert healthiness([status(refusing="no space")]).problems == ["default: no space"]
    assert healthiness([status(refusing="read-only", problem="read-only")]).problems == ["default: read-only"]
    assert healthiness([status(), status()]).ok


def test_what_was_refused_is_told_until_something_is_kept_or_a_while_has_gone() -> None:
    refusals = Refusals()
    assert refusals.reason(NOW) is None
    assert not refusals.kept()
    assert refusals.refused("no space", NOW)
    assert not refusals.refused("no space", NOW), "it is no news"
    assert refusals.reason(NOW) == "no space"
    assert refusals.reason(NOW + LATELY_SECONDS - 1) == "no space"
    assert refusals.reason(NOW + LATELY_SECONDS) is None
    assert refusals.reason(NOW - 3600) is None, "the clock was set back"
    assert refusals.refused("no space", NOW + LATELY_SECONDS)
    assert refusals.kept()
    assert not refusals.kept(), "it is no news"
    assert refusals.reason(NOW) is None


def test_what_one_directory_refused_says_nothing_of_the_next() -> None:
    refusals = Refusals()
    refusals.refused("it is gone", NOW, where=0)
    assert refusals.reason(NOW, where=0) == "it is gone"
    assert refusals.reason(NOW, where=1) is None


def test_a_traceback_is_shown_to_those_with_a_token_only() -> None:
    try:
        raise ValueError("no such key")
    except ValueError:
        problem = f"unmounted; handlers do not import: {traceback.format_exc()}"
    told = ["default: unmounted; handlers do not import: ValueError: no such key"]
    assert healthiness([status(problem=problem)]).problems == told
    assert readiness([status("down", problem=problem)]).problems == [
        "default: no worker is ready: unmounted; handlers do not import: ValueError: no such key"
    ]
