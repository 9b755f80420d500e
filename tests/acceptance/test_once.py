"""The real service, killed with SIGKILL in the midst of a request with an idempotency key: no task twice, none lost."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.acceptance.harness import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

LONG = 30.0
KEY = {"Idempotency-Key": "order-17", "Content-Type": "application/x-ndjson"}
BATCH = "".join(json.dumps({"vars": {"n": n}}) + "\n" for n in range(3))

HANDLERS = """
import os
from trispool import Task, handler

@handler(default=True)
def note(task: Task) -> None:
    fd = os.open(os.environ["RAN"], os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.write(fd, task.id.encode() + b"\\n")
    os.close(fd)
"""

SERVICE = """
import os, signal, sys
import trio
from trispool.cli import main
from trispool.task import TaskState
from trispool.routing import Router
from trispool.state.once import Once

die_at = sys.argv.pop(1)
reserve, enqueue = Once._reserve, Router.enqueue

async def reserve_and_die(self, key, spools):
    if die_at == "before reserve":
        os.kill(os.getpid(), signal.SIGKILL)
    return await reserve(self, key, spools)

async def enqueue_and_die(self, tasks, **where):
    if die_at == "reserved":
        os.kill(os.getpid(), signal.SIGKILL)
    results = list(await enqueue(self, tasks[:1], **where))
    if die_at == "half enqueued":
        os.kill(os.getpid(), signal.SIGKILL)
    results += await enqueue(self, tasks[1:], **where)
    if die_at == "run":
        for result in results:
            while True:
                found = await self.named("default").find_task(result.id)
                if found is not None and found.summary.state == TaskState.DONE:
                    break
                await trio.sleep(0.01)
    if die_at in ("enqueued", "run"):
        os.kill(os.getpid(), signal.SIGKILL)
    return results

Once._reserve, Router.enqueue = reserve_and_die, enqueue_and_die
main()
"""


class Killed:
    """A service that kills itself at a step."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.ran = folder / "ran"
        self.process: subprocess.Popen[str] | None = None
        (folder / "handlers.py").write_text(HANDLERS)
        (folder / "config.toml").write_text(
            f'[http]\nbind = "127.0.0.1:{self.port}"\n'
            '[[spool]]\ndirectory = "spool"\nimport = ["handlers.py"]\nprocesses = 1\n'
        )

    def start(self, die_at: str) -> None:
        """Return when it can be asked."""
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVICE, die_at, "run", "config.toml", "--log-format", "json"],
            cwd=self.folder,
            env={**os.environ, "RAN": str(self.ran), "PYTHONPATH": str(Path(__file__).parents[2])},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stderr is not None
        seen = []
        for line in self.process.stderr:
            seen.append(line)
            if "http_ready" in line:
                return
        raise AssertionError("".join(seen))

    def end(self, number: int) -> None:
        """End it by a signal."""
        if self.process is not None:
            self.process.send_signal(number)
            self.process.communicate(timeout=LONG)

    def ask(
        self, method: str, path: str, content: str | None = None, **headers: str
    ) -> tuple[http.client.HTTPMessage, Any]:
        """Headers and document of an answer.

        Raises:
            ConnectionError: It was killed.
        """
        token = (self.folder / "var" / "token").read_text().strip()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=LONG)
        try:
            connection.request(method, f"/api/v1{path}", content, {"Authorization": f"Bearer {token}", **headers})
            response = connection.getresponse()
            document = json.loads(response.read())
            assert response.status < 300, document
            return response.headers, document
        finally:
            connection.close()

    def enqueue(self) -> tuple[bool, list[str]]:
        """Whether the answer is that of an earlier request, and the ids."""
        headers, document = self.ask("POST", "/spools/default/tasks", BATCH, **KEY)
        return headers.get("Idempotent-Replayed") == "true", document["ids"]

    def wait_until_done(self, ids: list[str]) -> None:
        """Ask until these tasks have run."""
        for task_id in ids:
            until = time.monotonic() + LONG
            while self.ask("GET", f"/tasks/{task_id}")[1]["state"] != "done":
                assert time.monotonic() < until
                time.sleep(0.02)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Killed]:
    service = Killed(tmp_path)
    try:
        yield service
    finally:
        if service.process is not None and service.process.poll() is None:
            service.end(signal.SIGKILL)


@pytest.mark.parametrize("die_at", ["before reserve", "reserved", "half enqueued", "enqueued", "run", "answered"])
def test_a_key_gives_each_task_once_whenever_the_service_is_killed(service: Killed, die_at: str) -> None:
    service.start(die_at)
    before: list[str] = []
    if die_at == "answered":
        _, before = service.enqueue()
        service.end(signal.SIGKILL)
    else:
        with pytest.raises((ConnectionError, http.client.HTTPException)):
            service.enqueue()
        service.end(signal.SIGKILL)
    service.start("never")
    replayed, ids = service.enqueue()
    assert len(set(ids)) == 3
    assert before in ([], ids)
    assert replayed is (die_at in ("enqueued", "run", "answered"))
    service.wait_until_done(ids)
    assert service.enqueue() == (True, ids)
    service.end(signal.SIGTERM)
    ran = service.ran.read_text().split()
    assert set(ran) == set(ids)
    # One that was in the midst of its run runs again, as after any crash; one whose run was recorded does not.
    assert len(ran) == 3 or die_at in ("half enqueued", "enqueued", "answered")
