"""Where the other queues keep their tasks: a Redis and a PostgreSQL of their own, which end with the benchmark."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from benchmarks.processes import end, free_port, start
from benchmarks.servers import ServerFailed

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator

__all__ = ["Store", "StoreMissing", "file", "postgresql", "redis", "redis_always"]

START_SECONDS: Final = 30.0
STOP_SECONDS: Final = 10.0


class StoreMissing(ServerFailed):
    """The program that keeps the tasks is not installed; the message says which Debian package has it."""


class Store(NamedTuple):
    """One that runs.

    Attributes:
        url: How clients and workers find it.
        pids: Its processes, without those that they start.
    """

    url: str
    pids: list[int]


@contextlib.contextmanager
def file(folder: Path) -> Iterator[Store]:
    """A file, which clients and workers open themselves."""
    yield Store(os.fspath(folder / "tasks.db"), [])


@contextlib.contextmanager
def redis(folder: Path, fsync: str = "everysec") -> Iterator[Store]:
    """Redis as its documentation advises for data that is to last: with an append-only file, synced every second.

    Args:
        folder: For its files.
        fsync: When the file is synced.
    """
    program = shutil.which("redis-server")
    if program is None:
        raise StoreMissing("there is no redis-server: apt-get install redis-server")
    port, user = free_port(), _user("redis")
    home = _home(folder / "redis", user)
    options = ["--bind", "127.0.0.1", "--port", str(port), "--dir", os.fspath(home)]
    options += ["--appendonly", "yes", "--appendfsync", fsync]
    process = start([program, *options], home, folder / "redis.log", user=user)
    try:
        _wait(process, "127.0.0.1", port, folder / "redis.log")
        yield Store(f"redis://127.0.0.1:{port}/0", [process.pid])
    finally:
        end(process, STOP_SECONDS)


@contextlib.contextmanager
def redis_always(folder: Path) -> Iterator[Store]:
    """Redis that syncs its file before it answers."""
    with redis(folder, "always") as store:
        yield store


@contextlib.contextmanager
def postgresql(folder: Path) -> Iterator[Store]:
    """PostgreSQL as it comes: a transaction is on disk before it is answered."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
    if not folders:
        raise StoreMissing("there is no PostgreSQL: apt-get install postgresql")
    port, user = free_port(), _user("postgres")
    home, log = _home(folder / "postgresql", user), folder / "postgresql.log"
    # What initdb writes need not be synced, what the server writes is.
    prepare = [os.fspath(folders[-1] / "initdb"), "--auth=trust", "--username=postgres", "--encoding=UTF8", "--no-sync"]
    prepared = start([*prepare, "--pgdata", os.fspath(home / "data")], home, log, user=user)
    if prepared.wait():
        raise ServerFailed(f"initdb: {log.read_text(errors='replace')[-2000:]}")
    options = ["-D", os.fspath(home / "data"), "-p", str(port), "-k", os.fspath(home), "-h", "127.0.0.1"]
    process = start([os.fspath(folders[-1] / "postgres"), *options], home, log, user=user)
    try:
        _wait(process, "127.0.0.1", port, log)
        yield Store(f"host={home} port={port} user=postgres dbname=postgres", [process.pid])
    finally:
        end(process, STOP_SECONDS)


def _user(name: str) -> str | None:
    """PostgreSQL does not run as root, and Redis need not: root takes the users of Debian's packages. These have to be
    let through all directories above."""
    if os.getuid():
        return None
    try:
        pwd.getpwnam(name)
    except KeyError:
        raise StoreMissing(f"there is no user {name}, as Debian's package makes one") from None
    return name


def _home(folder: Path, user: str | None) -> Path:
    folder.mkdir()
    if user is not None:
        shutil.chown(folder, user, user)
    return folder


def _wait(process: subprocess.Popen[bytes], host: str, port: int, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection((host, port), 1.0):
            return
        time.sleep(0.02)
    raise ServerFailed(f"{process.args!r} does not answer\n{log.read_text(errors='replace')[-2000:]}")
