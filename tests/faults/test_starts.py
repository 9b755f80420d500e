"""Starts while calls fail: one that cannot be, one that can, and that a crash is seen."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.faults.injection import Call, why_not
from tests.faults.starts import Case, prepared, tried
from tests.faults.witness import Watched

if TYPE_CHECKING:
    from pathlib import Path

REASON = why_not()


@pytest.mark.skipif(REASON is not None, reason=REASON or "")
def test_a_start_that_fails_is_told_in_a_line_and_costs_no_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with prepared(tmp_path) as service:
        database = f"{service.spool}/.trispool/spool.db"
        fails = Case(Call("openat", "spool/.trispool/spool.db", database), "EMFILE")
        outcome = tried(service, [fails], kinds=1)
        assert outcome.violations == []
        assert (outcome.figures["refused to start"], outcome.figures["not hit"]) == (1, 0)
        assert outcome.figures["acknowledged"] == 4  # with the one that tries whether it works again
        monkeypatch.setattr(Watched, "said", "Traceback (most recent call last):\nOSError: no\n")
        (told,) = tried(service, [fails], kinds=1).violations
        assert told.endswith("it ended with exit code 2: ['OSError: no']")
