"""Services that run for a test, and what their handlers tell."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.acceptance.harness import Service, Telling, telling_in

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture
def telling(tmp_path: Path) -> Iterator[Telling]:
    """What handlers tell."""
    with telling_in(tmp_path) as opened:
        yield opened


@pytest.fixture
def make(tmp_path: Path, telling: Telling) -> Iterator[Callable[..., Service]]:
    """Makes services that are not yet started; see `Service` for the arguments."""
    made: list[Service] = []

    def make_service(**spool: object) -> Service:
        service = Service(tmp_path, telling, **spool)
        made.append(service)
        return service

    yield make_service
    for service in made:
        service.close()


@pytest.fixture
def service(make: Callable[..., Service]) -> Service:
    """One that runs, with all defaults."""
    return make().start()
