"""The history of a spool whose directory is taken away, or replaced, while the service runs."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest
import structlog.testing
import trio

from trispool.errors import SpoolUnavailable
from trispool.ledger import Ledger
from trispool.spoolfile import PREFIX
from trispool.task import AttemptRow

if TYPE_CHECKING:
    from pathlib import Path


def row(task: str) -> AttemptRow:
    return AttemptRow(PREFIX + task, 1, "ok", "done", 1.0, 0.0, 0.0, 1, None, None, None, 0.0, None, 0.0)


async def test_history_follows_its_directory(tmp_path: Path) -> None:
    folder = tmp_path / "spool"
    folder.mkdir()
    ledger = Ledger(str(folder / "spool.db"))
    with trio.fail_after(20), structlog.testing.capture_logs() as logs:
        await ledger.open()
        ledger.record(row("a"))
        assert await ledger.history(PREFIX + "a")
        shutil.rmtree(folder)
        for _ in range(2):
            ledger.record(row("b"))
            with pytest.raises(SpoolUnavailable):
                await ledger.history(PREFIX + "b")
        folder.mkdir()
        assert await ledger.history(PREFIX + "b")
        assert await ledger.history(PREFIX + "a") is None
        assert (folder / "spool.db").exists()
        await ledger.aclose()
    assert [line["event"] for line in logs] == ["history_not_written", "history_is_written_again"]
