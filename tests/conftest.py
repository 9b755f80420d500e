"""What all tests share."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import hypothesis
import pytest

from tests.worker_support import Gate
from trispool.spooldir import SpoolDirectory

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# How long an example takes says something of the machine, not of the code: a busy one must not fail a test.
hypothesis.settings.register_profile("trispool", deadline=None)
hypothesis.settings.load_profile("trispool")


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests are not configured by the environment of whoever runs them."""
    for name in [name for name in os.environ if name.startswith("TRISPOOL_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[SpoolDirectory]:
    """A new spool directory."""
    opened = SpoolDirectory(tmp_path / "spool")
    yield opened
    opened.close()


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is synced from now on, by path."""
    paths: list[str] = []
    real = os.fsync

    def fsync(fd: int) -> None:
        paths.append(os.readlink(f"/proc/self/fd/{fd}"))
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    return paths


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    """By which handlers tell a test where they are, and wait for it."""
    made = Gate(tmp_path / "gate")
    yield made
    made.close()
