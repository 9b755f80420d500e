"""A spool of a scenario, and the services that live on it in turn."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from tests.acceptance.harness import UnixConnection, is_alive
from tests.faults import zygote
from tests.faults.judge import Kill
from tests.faults.load import ANSWER_SECONDS, Place, answers, free_port
from tests.faults.runs import End, Runs

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from collections.abc import Set as AbstractSet
    from random import Random

HANDLERS: Final = Path(__file__).with_name("recording_handlers.py")

START_SECONDS: Final = 30.0
"""A service that does nothing after this does not start."""

END_SECONDS: Final = 60.0
"""What waits has to have run so long after the load has ended."""


class Parent(Protocol):
    """Starts services; see `tests.faults.zygote.Zygote`."""

    def start(self, arguments: Sequence[str], folder: Path, log: Path, environment: Mapping[str, str]) -> int:
        """Start one; gives its process id."""

    def wait(self, pid: int) -> int:
        """Wait for its end; gives its exit code."""


class Plain:
    """Starts services as anybody would, each in a process of its own."""

    def __init__(self) -> None:
        self._processes: dict[int, subprocess.Popen[bytes]] = {}

    def start(self, arguments: Sequence[str], folder: Path, log: Path, environment: Mapping[str, str]) -> int:
        """See `Parent`."""
        with log.open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-c", "from trispool.cli import main; main()", *arguments],
                cwd=folder,
                env={**os.environ, "PYTHONPATH": os.fspath(zygote.ROOT), **environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        self._processes[process.pid] = process
        return process.pid

    def wait(self, pid: int) -> int:
        """See `Parent`."""
        return self._processes.pop(pid).wait()

    def close(self) -> None:
        """Kill those that nobody has waited for."""
        for process in self._processes.values():
            process.kill()
            process.wait()


class Life:
    """A spool, and the services that live on it in turn.

    Args:
        parent: Who starts them.
        folder: For all that they make; it is created.
        durability: As in the configuration.
        keep_history: The same.
        with_async: Whether handlers are async, too.

    Attributes:
        pid: The service's process id; 0: there has been none.
        kills: Whom it has killed.
        problems: What should not have happened.
    """

    def __init__(
        self, parent: Parent, folder: Path, durability: str, *, with_async: bool, keep_history: str = "30d"
    ) -> None:
        self.place = Place(folder, free_port())
        self.with_async = with_async
        self.kills: list[Kill] = []
        self.problems: list[str] = []
        self._parent = parent
        self._number = 0
        self.pid = 0
        self._started = 0.0
        self._runs = folder / "runs"
        self._log = folder / "service.log"
        self._runs.mkdir(parents=True)
        self.place.spool.mkdir()
        (folder / "config.toml").write_text(
            f"""\
state_dir = "var"

[http]
bind = "unix:http.sock"

[[listen]]
bind = "unix:spool.sock"

[[listen]]
bind = "127.0.0.1:{self.place.port}"

[[spool]]
name = "default"
directory = "spool"
import = ["{HANDLERS}"]
processes = 2
frequency = 0.3
durability = "{durability}"
backoff = "0.1s"
keep_history = "{keep_history}"
"""
        )

    # The service

    def start(self) -> None:
        """Start the next service."""
        self._number += 1
        environment = {
            "FAULTS_RUNS": os.fspath(self._runs),
            "FAULTS_LIFE": str(self._number),
            "FAULTS_ASYNC": str(int(self.with_async)),
        }
        self._started = time.monotonic()
        self.pid = self._parent.start(["run", "config.toml"], self.place.folder, self._log, environment)

    def wait_until_it_answers(self) -> None:
        """Wait until it answers in every way."""
        self._wait_until(lambda: answers(self.place) and self._counts(), "answer")

    def wait_until_it_runs_tasks(self) -> float:
        """Wait until one of its workers has run a task; gives the seconds since it was started."""
        self._wait_until(lambda: self.runs().workers(self._number), "run tasks")
        return time.monotonic() - self._started

    def _wait_until(self, holds: Callable[[], object], what: str) -> None:
        while not holds():
            if time.monotonic() - self._started > START_SECONDS:
                raise RuntimeError(f"the service does not {what}:\n{self.end_of_log()}")
            time.sleep(0.002)

    def kill(self, *, workers: bool) -> None:
        """Kill the service, and if asked its workers at the same moment."""
        pids = [self.pid, *(zygote.children(self.pid) if workers else [])]
        self.kills.append(Kill(time.monotonic(), self._number))
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if (code := self._parent.wait(self.pid)) != -signal.SIGKILL:
            self.problems.append(f"the service ended by itself, with {code}:\n{self.end_of_log()}")

    def kill_a_worker(self, random: Random, *, early: bool) -> bool:
        """Kill one of its workers; False if there is none at this moment.

        Args:
            random: Which one.
            early: Also one that has not run a task yet.
        """
        workers = [pid for pid in zygote.children(self.pid) if is_alive(pid)]
        if not early:
            at_work = self.runs().workers(self._number)
            workers = [pid for pid in workers if pid in at_work]
        if not workers:
            return False
        pid = random.choice(workers)
        self.kills.append(Kill(time.monotonic(), self._number, pid))
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        return True

    def end(self, acknowledged: AbstractSet[int]) -> None:
        """Let all that waits run, and stop the service in good order.

        Args:
            acknowledged: What has to have run. That nothing waits is not enough: there may have been no scan yet.
        """
        deadline = time.monotonic() + END_SECONDS
        missing = acknowledged
        while (counts := self._counts()) is None or any(counts.values()) or missing:
            if time.monotonic() > deadline:
                self.problems.append(f"after {END_SECONDS:g} s there is still work: {counts}\n{self.end_of_log()}")
                break
            time.sleep(0.05)
            if counts is not None and not any(counts.values()):
                missing = acknowledged - {run.number for run in self.runs().read() if run.end is End.OK}
        os.kill(self.pid, signal.SIGTERM)
        if (code := self._parent.wait(self.pid)) != 0:
            self.problems.append(f"the service did not stop in good order, but with {code}:\n{self.end_of_log()}")

    # What is left of it

    def history(self) -> dict[str, int]:
        """How often each task is in the history as done."""
        with contextlib.closing(sqlite3.connect(self.place.spool / ".trispool/spool.db")) as database:
            return dict(database.execute("SELECT task, COUNT(*) FROM attempts WHERE outcome = 'ok' GROUP BY task"))

    def left(self) -> list[str]:
        """Files of tasks, those that were set aside included; not those that a kill has left half written."""
        paths = (path.relative_to(self.place.spool) for path in self.place.spool.rglob("uwsgi_spoolfile_*"))
        return sorted(str(path) for path in paths if path.parts[:2] != (".trispool", "tmp"))

    def runs(self) -> Runs:
        """What the handlers recorded."""
        return Runs(self._runs)

    def _counts(self) -> Mapping[str, int] | None:
        with contextlib.suppress(OSError, HTTPException, ValueError):
            document = json.loads(self.get("/api/v1/spools/default"))
            return {state: document[state] for state in ("ready", "scheduled", "running", "held", "dead")}
        return None

    def get(self, path: str, *, seconds: float | None = None) -> bytes:
        """What the service answers at `path`.

        Args:
            path: With its query.
            seconds: Go after so long, and do not wait for the end of the answer.

        Raises:
            OSError: It does not answer.
            HTTPException: It does not answer in the way of HTTP, or not with 200.
        """
        token = (self.place.folder / "var/token").read_text().strip()
        with contextlib.closing(UnixConnection(os.fspath(self.place.folder / "http.sock"), ANSWER_SECONDS)) as client:
            client.request("GET", path, headers={"Authorization": f"Bearer {token}"})
            answer = client.getresponse()
            if answer.status != 200:
                raise HTTPException(f"{path}: {answer.status}: {answer.read()!r}")
            if seconds is None:
                return answer.read()
            content = b""
            until = time.monotonic() + seconds
            while (left := until - time.monotonic()) > 0:
                client.sock.settimeout(left)
                with contextlib.suppress(TimeoutError):
                    content += answer.read1(65536)
            return content

    def end_of_log(self) -> str:
        """The last that it logged."""
        return self._log.read_text(errors="replace")[-3000:]
