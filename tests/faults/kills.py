"""kill -9 of the service and of workers at random moments, under load of all kinds.

A round is a fresh spool, some tens of kills, and a peaceful end, after which it is judged. The service is forked from a
zygote, so that it answers after 50 ms and runs tasks after 200. A quarter of its lives end before that.
"""

from __future__ import annotations

import contextlib
import enum
import itertools
import os
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from random import Random
from typing import TYPE_CHECKING, Final

from tests.faults import zygote
from tests.faults.figures import Outcome
from tests.faults.judge import Evidence, Verdict, judge
from tests.faults.lives import Life
from tests.faults.load import Answer, Load

if TYPE_CHECKING:
    from pathlib import Path

LIFE_SECONDS: Final = 0.1
"""How long a service lives on average once tasks run."""

WORKERS_LIFE_SECONDS: Final = 0.1
"""How long until the next of two workers is killed, on average; its successor takes as much to start."""

EARLY: Final = 0.25
"""How many of the services are killed while they start. The others are killed when tasks run, however slow the machine
is: it is then that there is something to lose."""

EARLY_WORKERS: Final = 0.1
"""The same of workers. The service waits longer and longer before it starts another one that may break so soon."""


class Target(enum.Enum):
    """Who is killed."""

    SERVICE = "the service"
    WORKER = "a worker"
    ALL = "service and workers at once"


SHARES: Final = {Target.SERVICE: 1500, Target.WORKER: 3250, Target.ALL: 250}
"""Moments at scale 1, for each durability: 10,000 in all."""

ROUNDS_AT_ONCE: Final = os.cpu_count() or 1
"""Each has a spool of its own, and waits for much of its time."""

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
        rows = [
            (durability, target, max(1, round(SHARES[target] * scale)))
            for durability in ("os", "fsync")
            for target in Target
        ]
        with contextlib.ExitStack() as stack, ThreadPoolExecutor(ROUNDS_AT_ONCE) as pool:
            parents = [stack.enter_context(zygote.opened()) for _ in range(ROUNDS_AT_ONCE)]
            numbers = itertools.count(1)

            def play_one(number: int, durability: str, target: Target, kills: int, chance: Random) -> Verdict:
                parent = parents.pop()
                try:
                    # Both of the loops that a worker may have.
                    life = Life(parent, folder / str(number), durability, with_async=number % 2 == 0)
                    verdict = play(life, target, kills, chance)
                    # One that broke a promise is left to be looked at.
                    if not verdict.violations:
                        shutil.rmtree(life.place.folder)
                    return verdict
                finally:
                    parents.append(parent)

            rounds = [
                [
                    pool.submit(play_one, next(numbers), durability, target, kills, Random(random.random()))
                    for kills in _rounds(moments, A_ROUND[target])
                ]
                for durability, target, moments in rows
            ]
            outcomes = []
            for (durability, target, moments), played in zip(rows, rounds, strict=True):
                verdict = Verdict()
                for one in played:
                    try:
                        verdict.add(one.result())
                    except BaseException:
                        pool.shutdown(cancel_futures=True)
                        raise
                name = f"{target.value}, durability {durability}"
                print(f"{name}: {verdict.figures()}", file=sys.stderr)
                outcomes.append(Outcome(name, moments, verdict.figures(), verdict.violations))
        return outcomes


def _rounds(moments: int, most: int) -> list[int]:
    return [min(most, moments - start) for start in range(0, moments, most)]


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
    life.wait_until_it_answers()
    load.start()
    try:
        starting = life.wait_until_it_runs_tasks()
        for _ in range(kills):
            if target is Target.WORKER:
                time.sleep(random.expovariate(1 / WORKERS_LIFE_SECONDS))
                early = random.random() < EARLY_WORKERS
                while not life.kill_a_worker(random, early=early):
                    time.sleep(random.random() * 0.01)
            else:
                if random.random() < EARLY:
                    time.sleep(random.random() * starting)
                else:
                    starting = life.wait_until_it_runs_tasks()
                    time.sleep(random.expovariate(1 / LIFE_SECONDS))
                life.kill(workers=target is Target.ALL)
                life.start()
    finally:
        load.stop()
    life.end({number for number, task in load.sent.items() if task.answer is Answer.ACKNOWLEDGED})
    verdict = judge(Evidence(load.sent, life.runs().read(), life.kills, life.history(), life.left()))
    verdict.violations += life.problems
    return verdict


SCENARIO = Kills()
