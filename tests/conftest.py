"""What all tests share."""

from __future__ import annotations

import os

import hypothesis
import pytest

# How long an example takes says something of the machine, not of the code: a busy one must not fail a test.
hypothesis.settings.register_profile("trispool", deadline=None)
hypothesis.settings.load_profile("trispool")


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests are not configured by the environment of whoever runs them."""
    for name in [name for name in os.environ if name.startswith("TRISPOOL_")]:
        monkeypatch.delenv(name)
