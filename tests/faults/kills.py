"""kill -9 of the service and of workers at random moments, under load of all kinds.

A round is a fresh spool, some tens of kills, and a peaceful end, after which it is judged. The service is forked from a
zygote, so that it lives anew in 50 ms, and most of a round is work. A quarter of its lives end while it still starts.
"""

from __future__ import annotations

import contextlib
import enum
import json
import os
import shutil
import signal
import sqlite3
import time
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.acceptance.harness import is_alive
from tests.faults import zygote
from tests.faults.figures import Outcome
from tests.faults.judge import Evidence, Kill, Verdict, judge
from tests.faults.load import Answer, Load, Place, UnixConnection, answers, free_port
from tests.faults.runs import End, Runs

if TYPE_CHECKING:
    from collections.abc import Mapping
    from collections.abc import Set as AbstractSet
    from random import Random

    from tests.faults.zygote import Zygote

HANDLERS: Final = Path(__file__).with_name("kills_handlers.py")

START_SECONDS: Final = 30.0
"""A service that does not answer after this does not start."""

END_SECONDS: Final = 60.0
"""What waits has to have run so long after the last kill."""

LIFE_SECONDS: Final = 0.2
"""How long a service lives on average once it answers."""

WORKERS_LIFE_SECONDS: Final = 0.1
"""How long until the next of two workers is killed, on average; its successor takes as much to start."""


EARLY: Final = 0.25
"""How many of the services are killed while they start."""

EARLY_WORKERS: Final = 0.1
"""The same of workers. The service waits longer and longer before it starts another one that may break so soon."""


class Target(enum.Enum):
    """Who is killed."""

    SERVICE = "the service"
    WORKER = "a worker"
    ALL = "service and workers at once"


SHARES: Final = {Target.SERVICE: 2500, Target.WORKER: 2000, Target.ALL: 500}
"""Moments at scale 1, for each durability: 10,000 in all."""

A_ROUND: Final = {Target.SERVICE: 40, Target.WORKER: 100, Target.ALL: 40}
"""Moments in a round."""


class Kills:
    """The scenario."""

    title = "kill -9 at random moments"
    promise = (
        "What was acknowledged runs to its end, whatever is killed and when. It runs twice only if it was in flight at "
        "a kill: its handler had been called, and its end was not yet on record. Nothing runs that was not sent."
    )

    def run(self, scale: float, folder: Path, random: Random) -> list[Outcome]:
        """See `tests.faults.figures.Scenario`."""
        outcomes = []
        number = 0
        with zygote.opened() as parent:
            for durability in "os", "fsync":
                for target in Target:
                    left = moments = max(1, round(SHARES[target] * scale))
                    verdict = Verdict()
                    while left:
                        kills = min(left, A_ROUND[target])
                        left -= kills
                        number += 1
                        # Both of the loops that a worker may have.
                        life = Life(parent, folder / str(number), durability, with_async=number % 2 == 0)
                        verdict.add(play(life, target, kills, random))
                        # The last one is left to be looked at, if it broke a promise.
                        if not verdict.violations:
                            shutil.rmtree(life.place.folder)
                    outcomes.append(
                        Outcome(
                            f"{target.value}, durability {durability}", moments, verdict.figures(), verdict.violations
                        )
                    )
        return outcomes


class Life:
    """A spool, and the services that live on it in turn.

    Args:
        parent: What they are forked from.
        folder: For all that they make; it is created.
        durability: As in the configuration.
        with_async: Whether handlers are async, too.

    Attributes:
        kills: Whom it has killed.
        problems: What should not have happened.
    """

    def __init__(self, parent: Zygote, folder: Path, durability: str, *, with_async: bool) -> None:
        self.place = Place(folder, free_port())
        self.with_async = with_async
        self.kills: list[Kill] = []
        self.problems: list[str] = []
        self._parent = parent
        self._number = 0
        self._pid = 0
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
        self._pid = self._parent.start(["run", "config.toml"], self.place.folder, self._log, environment)

    def wait_until_it_answers(self) -> float:
        """Wait until its socket answers; gives the seconds that took."""
        began = time.monotonic()
        while not answers(self.place):
            if time.monotonic() - began > START_SECONDS:
                raise RuntimeError(f"the service does not answer:\n{self._end_of_log()}")
            time.sleep(0.002)
        return time.monotonic() - began

    def kill(self, *, workers: bool) -> None:
        """Kill the service, and if asked its workers at the same moment."""
        pids = [self._pid, *(zygote.children(self._pid) if workers else [])]
        self.kills.append(Kill(time.monotonic(), self._number))
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if (code := self._parent.wait(self._pid)) != -signal.SIGKILL:
            self.problems.append(f"the service ended by itself, with {code}:\n{self._end_of_log()}")

    def kill_a_worker(self, random: Random, *, early: bool) -> bool:
        """Kill one of its workers; False if there is none at this moment.

        Args:
            random: Which one.
            early: Also one that has not run a task yet.
        """
        workers = [pid for pid in zygote.children(self._pid) if is_alive(pid)]
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
                self.problems.append(f"after {END_SECONDS:g} s there is still work: {counts}\n{self._end_of_log()}")
                break
            time.sleep(0.05)
            if counts is not None and not any(counts.values()):
                missing = acknowledged - {run.number for run in self.runs().read() if run.end is End.OK}
        os.kill(self._pid, signal.SIGTERM)
        if (code := self._parent.wait(self._pid)) != 0:
            self.problems.append(f"the service did not stop in good order, but with {code}:\n{self._end_of_log()}")

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
            token = (self.place.folder / "var/token").read_text().strip()
            with contextlib.closing(UnixConnection(os.fspath(self.place.folder / "http.sock"))) as client:
                client.request("GET", "/api/v1/spools/default", headers={"Authorization": f"Bearer {token}"})
                document = json.loads(client.getresponse().read())
                return {state: document[state] for state in ("ready", "scheduled", "running", "held", "dead")}
        return None

    def _end_of_log(self) -> str:
        return self._log.read_text(errors="replace")[-3000:]


def play(life: Life, target: Target, kills: int, random: Random) -> Verdict:
    """One round.

    Args:
        life: A spool of its own.
        target: Who is killed.
        kills: How often.
        random: When.
    """
    load = Load(life.place, random, with_async=life.with_async)
    life.start()
    starting = life.wait_until_it_answers()
    load.start()
    try:
        for _ in range(kills):
            if target is Target.WORKER:
                time.sleep(random.expovariate(1 / WORKERS_LIFE_SECONDS))
                early = random.random() < EARLY_WORKERS
                while not life.kill_a_worker(random, early=early):
                    time.sleep(random.random() * 0.01)
            else:
                early = random.random() < EARLY
                time.sleep(random.random() * starting if early else starting + random.expovariate(1 / LIFE_SECONDS))
                life.kill(workers=target is Target.ALL)
                life.start()
    finally:
        load.stop()
    life.end({number for number, task in load.sent.items() if task.answer is Answer.ACKNOWLEDGED})
    verdict = judge(Evidence(load.sent, life.runs().read(), life.kills, life.history(), life.left()))
    verdict.violations += life.problems
    return verdict


SCENARIO = Kills()
