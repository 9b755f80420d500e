"""Services for power cuts: one that is traced while clients use it, and one that is started on what is left."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import inf
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, Final

from tests.acceptance.harness import free_port
from tests.faults.disk import CHOICES, History, lay
from tests.faults.powerjudge import Found, look
from tests.faults.powerload import Sent, post_tasks, spool_tasks
from tests.faults.tracing import Call, calls, traced

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from tests.faults.disk import Laid

__all__ = ["Disk", "Trace", "replayed", "take_trace"]

HANDLERS: Final = Path(__file__).parent / "workers" / "power_cut.py"
COMMAND: Final = [sys.executable, "-c", "from trispool.cli import main; main()", "run", "config.toml"]

SECONDS: Final = 60.0
"""For anything that should take a few."""

RUNS_SECONDS: Final = 30.0
"""For all that has to run on a disk. It takes a second."""

LOOK_SECONDS: Final = 0.05


@dataclass(frozen=True, slots=True)
class Trace:
    """What a service did, and what clients know of it.

    Attributes:
        calls: Its system calls.
        sent: What it acknowledged.
        root: The folder that its spool was made in.
    """

    calls: Sequence[Call]
    sent: Sequence[Sent]
    root: Path


@dataclass(frozen=True, slots=True)
class Disk:
    """A disk that a service is to be started on.

    Attributes:
        content: All that is there.
        awaited: The tasks that have to run.
    """

    content: Iterable[Laid]
    awaited: set[str]


class _Place:
    """A folder with a configuration, and how to reach the service that it is of."""

    def __init__(self, folder: Path, spools: Sequence[dict[str, object]], *, listens: bool = False) -> None:
        self.folder = folder
        self.http_port, self.port = free_port(), free_port()
        lines = ['state_dir = "var"', "grace_seconds = 10", "[http]", f'bind = "127.0.0.1:{self.http_port}"']
        if listens:
            lines += ["[[listen]]", f'bind = "127.0.0.1:{self.port}"']
        for spool in spools:
            both = {"import": [str(HANDLERS)], "durability": "fsync", "max_attempts": 2, "backoff": "1s", **spool}
            lines += ["[[spool]]", *(f"{key} = {json.dumps(value)}" for key, value in both.items())]
        (folder / "config.toml").write_text("\n".join(lines))

    @property
    def token(self) -> str:
        return (self.folder / "var/token").read_text().strip()

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.http_port, timeout=SECONDS)

    def get(self, path: str) -> tuple[int, Any]:
        with contextlib.closing(self.connect()) as connection:
            connection.request("GET", path, headers={"Authorization": f"Bearer {self.token}"})
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())

    def wait_until(self, holds: Callable[[], bool], process: subprocess.Popen[bytes], seconds: float) -> bool:
        """Whether that comes to be."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and process.poll() is None:
            with contextlib.suppress(OSError, http.client.HTTPException):
                if holds():
                    return True
            time.sleep(LOOK_SECONDS)
        return False

    def is_ready(self) -> bool:
        return self.get("/readyz")[0] == 200

    def is_idle(self) -> bool:
        return not any(spool["ready"] or spool["running"] for spool in self.get("/api/v1/spools")[1]["spools"])

    @property
    def log(self) -> Path:
        return self.folder / "service.log"


def take_trace(folder: Path, random: Random, *, external: bool, tasks: int, times: int = 2) -> Trace:
    """Trace a service while clients enqueue, its orderly end, and the same again on the same spool.

    Args:
        folder: An empty one.
        random: Chooses the tasks.
        external: Whether tasks are files at once, and are not run.
        tasks: About how many there are, each time.
        times: How often it is started.

    Raises:
        AssertionError: The model of the disk, with all of it there, is not what is there.
    """
    folder = folder.resolve()
    root = folder / "disk"
    root.mkdir()
    place = _Place(
        folder,
        [{"name": "default", "directory": "disk/spool", "external": external}],
        listens=True,
    )
    sent: list[Sent] = []
    traces = []
    for part in "ab"[:times]:
        traces.append(folder / f"trace.{part}")
        process = traced(
            COMMAND, traces[-1], environment={**os.environ, "POWER": "traced"}, folder=folder, log=place.log
        )
        try:
            if not place.wait_until(place.is_ready, process.process, SECONDS):
                raise AssertionError(place.log.read_text())
            sent += _use(place, part, random, tasks // 3)
            if not external and not place.wait_until(place.is_idle, process.process, SECONDS):
                raise AssertionError(f"what was enqueued does not run: {place.log.read_text()}")
        finally:
            process.process.send_signal(signal.SIGTERM)
            process.wait(SECONDS)
    found = calls(traces, str(root))
    _check(History(found, root), root)
    return Trace(found, sent, root)


def _use(place: _Place, part: str, random: Random, count: int) -> list[Sent]:
    seeds = [random.getrandbits(64) for _ in range(3)]

    def spool(number: int) -> list[Sent]:
        return spool_tasks(place.port, f"{part}{number}-", count, Random(seeds[number]))

    def post() -> list[Sent]:
        with contextlib.closing(place.connect()) as connection:
            return post_tasks(connection, place.token, f"{part}h", count // 2, Random(seeds[2]))

    with ThreadPoolExecutor() as pool:
        clients = [pool.submit(spool, 0), pool.submit(spool, 1), pool.submit(post)]
        return [one for client in clients for one in client.result()]


def _check(history: History, root: Path) -> None:
    """See that the model knows all that was done."""
    disk = {laid.path: laid for laid in history.disk(inf, CHOICES[1], Random())}
    there = {str(path.relative_to(root)): path for path in root.rglob("*")}
    for path in sorted(disk.keys() | there.keys()):
        if path not in disk or path not in there:
            raise AssertionError(f"{path}: only {'there' if path in there else 'in the model'}")
        _, content, mtime, _ = disk[path]
        if content is not None and not path.endswith("-shm") and content != there[path].read_bytes():
            raise AssertionError(f"{path}: its content is not that of the model")
        if mtime is not None and mtime != there[path].stat().st_mtime_ns:
            raise AssertionError(f"{path}: its time is not that of the model")


def replayed(folder: Path, disks: Sequence[Disk]) -> list[Found | str]:
    """Start a service on disks, let it run what is there, and end it.

    Args:
        folder: An empty one; what is made in it is removed.
        disks: The disks.

    Returns:
        Of each disk what it had come to, or why no service can run on it.
    """
    names = [f"disk{number}" for number in range(len(disks))]
    for name, disk in zip(names, disks, strict=True):
        (folder / name).mkdir()
        lay(disk.content, folder / name)
    spools = [
        {"name": name, "directory": f"{name}/spool", "chdir": str(folder / name), "processes": 1} for name in names
    ]
    place = _Place(folder, spools)
    try:
        with place.log.open("wb") as log:
            process = subprocess.Popen(
                COMMAND,
                cwd=folder,
                env={**os.environ, "POWER": "replayed"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        try:
            is_ready = place.wait_until(place.is_ready, process, SECONDS)
            if is_ready:
                waited = [(folder / name, disk.awaited) for name, disk in zip(names, disks, strict=True)]
                place.wait_until(
                    lambda: all(_ran(path).keys() >= names for path, names in waited), process, RUNS_SECONDS
                )
                place.wait_until(place.is_idle, process, RUNS_SECONDS)
                process.terminate()
            code = process.wait(SECONDS)
        finally:
            process.kill()
            process.wait()
        log_lines = place.log.read_text().splitlines()
        if not is_ready or code:
            return [f"the service does not run, or not to its end: {log_lines[-20:]}"] * len(disks)
        return [_found(folder / name, log_lines) for name in names]
    finally:
        for path in folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _ran(folder: Path) -> dict[str, list[str]]:
    ran: dict[str, list[str]] = {}
    with contextlib.suppress(FileNotFoundError):
        for line in (folder / "ran").read_text().splitlines():
            n, _, told = line.partition(" ")
            ran.setdefault(n, []).append(told)
    return ran


def _found(folder: Path, log: Sequence[str]) -> Found:
    damaged = any('"history_damaged"' in line and f"/{folder.name}/" in line for line in log)
    return Found([(n, told) for n, each in _ran(folder).items() for told in each], look(folder / "spool"), damaged)
