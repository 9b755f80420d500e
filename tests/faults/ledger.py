"""The databases of a spool and of the service damaged, between two runs and while the service runs."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from typing import TYPE_CHECKING, Final, NamedTuple

from tests.acceptance.harness import telling_in
from tests.faults.figures import Outcome, Tally
from tests.faults.witness import ANSWER_SECONDS, Watched

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from random import Random

HISTORY: Final = 60
"""Tasks that have run before, so that there is something to be damaged."""

BLOCK: Final = 4096
"""A page of SQLite's."""

SOON: Final = 3.0
"""For what is there after a start to have run. It takes some tenths of a second."""


class Damage(NamedTuple):
    """What is done to a file.

    Attributes:
        name: As in the docs.
        do: It.
        in_place: Whether the file stays the same one.
    """

    name: str
    do: Callable[[Path, Random], None]
    in_place: bool = True


def _write_at(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def _flip(path: Path, random: Random) -> None:
    content = bytearray(path.read_bytes())
    for _ in range(random.randint(1, 8)):
        content[random.randrange(len(content))] ^= 1 << random.randrange(8)
    _write_at(path, 0, bytes(content))


def _blank(path: Path, random: Random) -> None:
    _write_at(path, random.randrange(path.stat().st_size) // BLOCK * BLOCK, bytes(BLOCK))


def _noise(path: Path, random: Random) -> None:
    size = path.stat().st_size
    offset = random.randrange(size)
    _write_at(path, offset, random.randbytes(min(BLOCK, size - offset)))


def _cut(path: Path, random: Random) -> None:
    os.truncate(path, random.randrange(path.stat().st_size))


def _empty(path: Path, random: Random) -> None:
    os.truncate(path, 0)


def _remove(path: Path, random: Random) -> None:
    path.unlink()


def _replace(path: Path, random: Random) -> None:
    other = path.with_name("other")
    other.write_bytes(random.randbytes(random.randint(1, 4 * BLOCK)))
    other.rename(path)


def _restore(path: Path, random: Random) -> None:
    # An old one, from a backup.
    copy = path.with_name(f"copy of {path.name}")
    if copy.exists():
        copy.rename(path)


DAMAGES: Final = (
    Damage("bits flipped", _flip),
    Damage("a page blanked", _blank),
    Damage("noise over a page", _noise),
    Damage("cut off", _cut),
    Damage("emptied", _empty),
    Damage("removed", _remove, in_place=False),
    Damage("replaced by noise", _replace, in_place=False),
    Damage("replaced by an old copy", _restore, in_place=False),
)

FILES: Final = tuple(
    f"{database}{ending}"
    for database in ("spool/.trispool/spool.db", "var/state.db")
    for ending in ("", "-wal", "-shm")
)


def damage_between_runs(service: Watched, name: str, damage: Damage, tally: Tally, random: Random) -> None:
    """A service is stopped, or killed with tasks that have no file yet; it is damaged, and started again."""
    service.pause(paused=True)
    for number in range(3):
        service.spool_task(f"file {number}")
    service.await_that(lambda: len(service.files) >= 3, ANSWER_SECONDS)
    rows: set[str] = set()
    if random.random() < 0.5:
        rows = {f"row {number}" for number in range(5)}
        for n in sorted(rows):
            service.spool_task(n)
        service.kill()
    else:
        service.stop()
        service.hear()
    path = service.folder / name
    if path.exists() and path.stat().st_size:
        damage.do(path, random)
        tally.tried += 1
    code = service.attempt()
    if code is not None:
        tally.violations.append(f"{damage.name}, {name}: it did not start: {service.said[-300:]}")
        return
    service.pause(paused=False)
    service.all_ran(SOON)
    # What had no file was in what has been damaged.
    lost = service.witness.missing & rows
    if "spool.db" in name:
        tally.figures["gone with the file"] += len(lost)
        service.witness.acknowledged -= lost


def damage_while_running(service: Watched, name: str, damage: Damage, tally: Tally, random: Random) -> None:
    """Tasks come and run, and in the midst of them it is damaged."""
    path = service.folder / name
    for number in range(20):
        service.spool_task(f"{number}", at=str(time.time() + random.choice((0, 0, 0.4))))
        if number == 10 and path.exists() and path.stat().st_size:
            damage.do(path, random)
            tally.tried += 1
    service.post_task("posted", key=True)
    assert service.process is not None
    service.await_that(lambda: service.process is None or service.process.poll() is not None, 0.2)
    if service.process.poll() is not None:
        tally.figures["killed by it"] += 1
        service.witness.killed()
        service.start()


def judge(service: Watched, case: str, tally: Tally) -> None:
    """What has become of the tasks, and of what was damaged."""
    seconds = service.settle()
    if seconds is None:
        tally.violations.append(f"{case}: it did not recover: {service.problem or sorted(service.witness.missing)}")
    else:
        tally.slowest = max(tally.slowest, seconds)
    status, content = service.request("GET", "/api/v1/tasks?state=done&limit=10")
    if status != 200:
        tally.violations.append(f"{case}: the history is answered with {status}: {content[:200]!r}")
    log = service.log.read_text()
    for folder, event in (("spool/.trispool", "history_damaged"), ("var", "state_damaged")):
        aside = [path for path in (service.folder / folder).glob("*.damaged-*") if "-wal" not in path.name]
        tally.figures["set aside"] += len(aside)
        if silent := [path.name for path in aside if path.name not in log]:
            tally.violations.append(f"{case}: set aside without a word ({event}): {silent}")
    tally.figures["acknowledged"] += len(service.witness.acknowledged)
    tally.figures["lost"] += len(service.witness.missing)
    tally.figures["run again"] += service.witness.again
    tally.violations += [f"{case}: {text}" for text in service.witness.violations()]


class Ledger:
    """See the module."""

    title = "Databases that are damaged"
    promise = (
        "Whatever becomes of spool.db and state.db, tasks go on: those that have a file are run in any case, those that"
        " a running service has in memory too; what is damaged is set aside, said, and begun anew. Only what was in a"
        " database alone when the service was killed (a quarter of a second's tasks) can go with it."
    )

    def run(self, scale: float, folder: Path, random: Random) -> list[Outcome]:
        """See `Scenario.run`: each kind of damage to each file, several times."""
        count = max(1, round(scale * 4 * len(FILES) * len(DAMAGES)))
        return [
            _cases("damaged between two runs", damage_between_runs, count, folder, random),
            _cases("damaged while the service runs", damage_while_running, count, folder, random),
        ]


def _cases(
    name: str,
    way: Callable[[Watched, str, Damage, Tally, Random], None],
    count: int,
    folder: Path,
    random: Random,
) -> Outcome:
    tally = Tally()
    every = [(file, damage) for file in FILES for damage in DAMAGES]
    chosen = [case for _ in range(count // len(every)) for case in every] + random.sample(every, count % len(every))
    for file, damage in chosen:
        place = folder / "case"
        place.mkdir()
        with telling_in(place) as telling:
            service = Watched(place, telling, durability=random.choice(("os", "fsync")))
            try:
                _begin(service)
                way(service, file, damage, tally, random)
                if service.process is not None and service.process.poll() is None:
                    judge(service, f"{damage.name}, {file}", tally)
            finally:
                service.close()
        shutil.rmtree(place)
    keys = ("acknowledged", "lost", "gone with the file", "run again", "set aside", "killed by it")
    return Outcome(
        name,
        tally.tried,
        {**{key: tally.figures[key] for key in keys}, "recovered in, s": tally.slowest},
        tally.violations,
    )


def _begin(service: Watched) -> None:
    service.start()
    for file in FILES:
        path = service.folder / file
        with contextlib.suppress(FileNotFoundError):
            shutil.copyfile(path, path.with_name(f"copy of {path.name}"))
    for number in range(HISTORY):
        service.spool_task(f"before {number}")
    service.post_task("before", key=True)
    service.all_ran(ANSWER_SECONDS)


SCENARIO: Final = Ledger()
