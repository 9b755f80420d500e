"""The OpenAPI document: it is whole, its examples work, and schemathesis finds nothing that contradicts it.

Schemathesis calls every operation in ways that the document allows and in ways that it forbids, on a real port, and
looks at the answers with all of its checks: no 5xx, declared statuses, content types and headers, documents as
described, good requests accepted and bad ones refused, no way in without a token, 405 for other methods.
"""

from __future__ import annotations

import functools
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import trio

from tests.api_support import AUTHORIZED, TOKEN, VIEWER
from tests.fake_control import FakeControl
from trispool.admin import Accounts, Role, create_app, serve_admin
from trispool.admin.operations import TASK_ID
from trispool.admin.throttle import Throttle
from trispool.control import Page, WorkerStatus
from trispool.operating import AuditRow
from trispool.task import TaskState

if TYPE_CHECKING:
    from collections.abc import Iterator

NET = 60.0
ROOT = Path(__file__).parents[1]


class _Patience(Throttle):
    """Schemathesis tries very many tokens."""

    def wait_seconds(self, address: str) -> float:
        return 0.0


class Api:
    """The API on a port, in a thread, before a fake service that has one of everything."""

    def __init__(self) -> None:
        self.url = ""
        self._ready = threading.Event()
        self._token: trio.lowlevel.TrioToken
        self._stop: trio.Event
        self._thread = threading.Thread(target=trio.run, args=(self._serve,))

    def __enter__(self) -> Api:
        self._thread.start()
        assert self._ready.wait(NET)
        return self

    def __exit__(self, *exc: object) -> None:
        self._token.run_sync_soon(self._stop.set)
        self._thread.join(NET)
        assert not self._thread.is_alive()

    async def _serve(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._stop = trio.Event()
        app = create_app(
            furnished(), accounts=Accounts.of({TOKEN: Role.OPERATE, VIEWER: Role.VIEW}, throttle=_Patience())
        )
        async with trio.open_nursery() as nursery:
            serve = functools.partial(serve_admin, stop=self._stop, grace=1)
            [self.url] = await nursery.start(serve, app, "127.0.0.1:0")
            self._ready.set()


def furnished() -> FakeControl:
    """A fake service with one of everything that the examples name."""
    control = FakeControl()
    control.add_detail(TASK_ID, {b"name": b"\xff", b"path": b"/a"}, b"body")
    control.page = Page(
        [
            control.details[TASK_ID].summary,
            replace(
                control.details[TASK_ID].summary,
                id="done",
                state=TaskState.DONE,
                progress=(0.5, "half"),
                handler="encode",
            ),
        ],
        "next",
    )
    worker = WorkerStatus(4711, "busy", TASK_ID, 1700000000.5)
    control.status["default"] = replace(control.status["default"], workers=[worker])
    row = AuditRow(1, 1700000000.5, "operator", "operate", "unix", "task.hold", TASK_ID, {"state": "ready"}, None, "ok")
    control.rows = [row]
    return control


@pytest.fixture(scope="module")
def api() -> Iterator[Api]:
    with Api() as running:
        yield running


@pytest.fixture(scope="module")
def document(api: Api) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(f"{api.url}/openapi.json", timeout=NET, trust_env=False).json()
    return found


def test_schemathesis_finds_nothing(api: Api) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-c", "from schemathesis.cli import schemathesis; schemathesis()"),
            *("--config-file", str(ROOT / "tests/data/schemathesis.toml")),
            *("run", f"{api.url}/openapi.json", "--header", f"Authorization: {AUTHORIZED['Authorization']}"),
            *("--seed", "1", "--suppress-health-check", "all", "--warnings", "off"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-5000:]
