"""File systems that are full, really: small ones, in which a file takes what room there is."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from typing import TYPE_CHECKING, Final

from tests.acceptance.harness import telling_in
from tests.faults.figures import Outcome, Tally
from tests.faults.witness import Watched

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path
    from random import Random

MEGABYTES: Final = 16
"""Of the small file systems; an ext4 needs some for its journal."""

INODES: Final = 200

MOMENT: Final = 0.3
"""Longer than it takes until what waits is written out, or fails to be."""

FAR: Final = 3600.0

ENDS: Final = ("goes on", "is killed", "stops")
"""What becomes of the service on the full disk. To stop takes it ten seconds: it tries to write that tasks have run."""


class Disk:
    """A small file system.

    Args:
        place: Where it is mounted.
        fills: Makes files in it until it is full.
    """

    def __init__(self, place: Path, fills: Callable[[Path], None]) -> None:
        self.place = place
        self._ballast = place / "ballast"
        self._fills = fills

    def fill(self) -> None:
        """Take all that is free."""
        self._ballast.mkdir(exist_ok=True)
        self._fills(self._ballast)

    def leave(self, count: int) -> None:
        """Let go of some: so many KiB, or files."""
        with contextlib.suppress(FileNotFoundError):
            for path in sorted(self._ballast.iterdir())[:count]:
                path.unlink()

    def free(self) -> None:
        """Let go of what was taken."""
        shutil.rmtree(self._ballast, ignore_errors=True)


def fill_space(ballast: Path) -> None:
    """Until no byte is left: ever smaller files."""
    number = len(list(ballast.iterdir()))
    for size in (1 << 20, 1 << 16, 1 << 12, 1 << 10):
        with contextlib.suppress(OSError):
            while True:
                number += 1
                # The small ones first in the order of their names, for `Disk.leave`.
                path = ballast / f"{size:08} {number}"
                try:
                    path.write_bytes(b"\1" * size)
                except OSError:
                    path.unlink(missing_ok=True)
                    raise


def fill_inodes(ballast: Path) -> None:
    """Until there can be no more files."""
    with contextlib.suppress(OSError):
        for number in range(INODES * 2):
            (ballast / f"{number}").touch()


class Kind:
    """A kind of small file system.

    Args:
        name: As in the docs.
        command: Mounts it, given the place and an image next to it.
        fills: See `Disk`.
        made_by: Makes the image; none is needed without.
    """

    def __init__(
        self,
        name: str,
        command: tuple[str, ...],
        fills: Callable[[Path], None],
        made_by: tuple[str, ...] = (),
    ) -> None:
        self.name = name
        self._command = command
        self._fills = fills
        self._made_by = made_by

    @contextlib.contextmanager
    def mounted(self, place: Path) -> Iterator[Disk]:
        """One, while this is open.

        Raises:
            OSError: It cannot be mounted here.
        """
        place.mkdir()
        image = place.with_suffix(".image")
        if self._made_by:
            with image.open("wb") as file:
                file.truncate(MEGABYTES << 20)
            _call(*self._made_by, str(image))
        try:
            _call(*(part.format(place=place, image=image) for part in self._command))
        except OSError:
            place.rmdir()
            raise
        try:
            yield Disk(place, self._fills)
        finally:
            # Detached at once, should something still run there.
            _call("umount", "--lazy", str(place))
            place.rmdir()
            image.unlink(missing_ok=True)


def _call(*command: str) -> None:
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    found = shutil.which(command[0], path=path)
    if found is None:
        raise FileNotFoundError(f"there is no {command[0]}")
    done = subprocess.run([found, *command[1:]], capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(done.stderr.strip())


KINDS: Final = (
    Kind(
        "tmpfs, no space",
        ("mount", "-t", "tmpfs", "-o", f"size={MEGABYTES}m", "trispool", "{place}"),
        fill_space,
    ),
    Kind(
        "tmpfs, no inodes",
        ("mount", "-t", "tmpfs", "-o", f"size={MEGABYTES}m,nr_inodes={INODES}", "trispool", "{place}"),
        fill_inodes,
    ),
    Kind(
        "ext4, no space",
        ("mount", "-o", "loop", "{image}", "{place}"),
        fill_space,
        # mkfs would take blocks of 1 KiB for one so small. On these SQLite is killed by a full disk (SIGBUS): it makes
        # sure of one byte in 4,096 of the file that it maps.
        ("mkfs.ext4", "-q", "-F", "-b", "4096"),
    ),
)


def why_not(folder: Path) -> str | None:
    """Why nothing can be mounted here, or None."""
    try:
        with KINDS[0].mounted(folder / "try"):
            return None
    except OSError as error:
        return f"no file system can be mounted: {error}"


def fill_and_free(disk: Disk, service: Watched, tally: Tally, random: Random, end: str) -> None:
    """One round: tasks wait, the disk becomes full, more come, one of `ENDS` happens, and there is room again."""
    tally.tried += 1
    round = f"{disk.place.name}-{tally.tried}"
    service.pause(paused=True)
    for number in range(3):
        service.spool_task(f"{round}.before.{number}")
    service.spool_task(f"{round}.later", at=str(time.time() + FAR))
    if random.random() < 0.5:
        time.sleep(MOMENT)  # they are files
    disk.fill()
    disk.leave(random.choice((0, 0, 1, 4, 16)))
    service.spool_task(f"{round}.large", body=os.urandom(200_000))
    service.post_task(f"{round}.posted", key=True)
    for number in range(20):
        service.spool_task(f"{round}.full.{number}", body=os.urandom(random.choice((0, 500, 20_000))))
    time.sleep(MOMENT * random.random())
    service.pause(paused=False)
    service.all_ran(MOMENT)
    if end != "goes on":
        _start_when_full(service, tally, stops=end == "stops")
    disk.free()
    if service.process is None or service.process.poll() is not None:
        service.start()
    seconds = service.settle()
    if seconds is None:
        tally.violations.append(f"{round}: it did not recover when there was room: {service.problem}")
        service.restart()
        seconds = service.settle()
    tally.slowest = max(tally.slowest, seconds or 0.0)


def _start_when_full(service: Watched, tally: Tally, *, stops: bool) -> None:
    if stops:
        if service.stop() != 0:
            tally.violations.append(f"it did not stop in order: {service.said[-500:]}")
        service.hear()
    else:
        service.kill()
    # What it may say is lost, if its log is in the full file system: so that lies elsewhere.
    code = service.attempt()
    tally.figures["started when full" if code is None else "refused to start"] += 1
    if code is not None and (code != 2 or "Traceback" in service.said):
        tally.violations.append(f"it did not start, with exit code {code}: {service.said[-500:]}")


class Full:
    """See the module."""

    title = "Full file systems"
    promise = (
        "On a file system that has no room, tasks are taken or refused, and a task that is taken is kept; what waits is"
        " run; the service starts, or says in a line why it cannot; and when there is room again all goes on by itself."
    )

    def run(self, scale: float, folder: Path, random: Random) -> list[Outcome]:
        """See `Scenario.run`."""
        if reason := why_not(folder):
            return [Outcome(f"not tried: {reason}", 0)]
        ends = [ENDS[number % len(ENDS)] for number in range(max(1, round(scale * 100)))]
        return [rounds(kind, ends, folder / f"kind{n}", random) for n, kind in enumerate(KINDS)]


def rounds(kind: Kind, ends: Sequence[str], place: Path, random: Random) -> Outcome:
    """Rounds on one kind of file system."""
    tally = Tally()
    outside = place.with_suffix(".outside")
    outside.mkdir()
    try:
        with kind.mounted(place) as disk, telling_in(outside) as telling:
            service = Watched(disk.place, telling, durability=random.choice(("os", "fsync")))
            service.log = outside / "service.log"
            try:
                service.start()
                for end in ends:
                    fill_and_free(disk, service, tally, random, end)
                service.stop()
            finally:
                service.close()
    except OSError as error:
        if not tally.tried:
            return Outcome(f"{kind.name}: not tried: {error}", 0)
        raise
    witness = service.witness
    figures: dict[str, int | float | str] = {
        "acknowledged": len(witness.acknowledged),
        "refused": len(witness.refused),
        "lost": len(witness.missing),
        "run again": witness.again,
        "started when full": tally.figures["started when full"],
        "refused to start": tally.figures["refused to start"],
        "recovered in, s": tally.slowest,
    }
    return Outcome(kind.name, tally.tried, figures, [*tally.violations, *witness.violations()])


SCENARIO: Final = Full()
