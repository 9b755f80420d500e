"""Starts and stops the servers under comparison, each in a folder of its own with the same handler.

Both have two processes that run handlers; uWSGI has two more for its sockets, trispool does that in its main process.
uWSGI is run at its best: it logs neither requests nor tasks.
"""

from __future__ import annotations

import contextlib
import enum
import os
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from benchmarks.client import exchange
from benchmarks.processes import cpu_seconds, end, family, free_port, resident_bytes, start
from benchmarks.records import Records

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["ROOT", "Kind", "Server", "ServerFailed", "prepare", "running", "token", "uwsgi_binary"]

ROOT: Final = Path(__file__).resolve().parent.parent
HANDLERS: Final = ROOT / "benchmarks" / "handler.py"

START_SECONDS: Final = 60.0
STOP_SECONDS: Final = 15.0
STOP_SECONDS_UWSGI: Final = 0.5
"""Before it is killed. uWSGI often waits for a worker that has long gone, and has nothing to lose here."""

_PING: Final = bytes([100, 0, 0, 0])


class ServerFailed(Exception):
    """A server did not start, ended, or did not do what it was asked; the end of its log is in the message."""


class Kind(enum.Enum):
    """The servers under comparison."""

    UWSGI = "uWSGI"
    OS = "trispool"
    FSYNC = 'trispool, "fsync"'


@dataclass(frozen=True, slots=True)
class Server:
    """One that runs.

    Attributes:
        process: Its main process.
        unix: Its Unix socket.
        tcp: Its TCP socket.
        records: What its handlers have recorded.
        log: Its output.
    """

    process: subprocess.Popen[bytes]
    unix: str
    tcp: tuple[str, int]
    records: Records
    log: Path

    def wait_for(self, count: int, seconds: float, *, poll: float = 0.002) -> None:
        """Until so many tasks have started.

        Args:
            count: How many, since the server was started.
            seconds: How long to wait.
            poll: Seconds between two looks.

        Raises:
            ServerFailed: They have not.
        """
        deadline = time.monotonic() + seconds
        while (now := self.records.count()) < count:
            self.check()
            if time.monotonic() > deadline:
                raise ServerFailed(f"{now} of {count} tasks have started in {seconds} s\n{self.log_end()}")
            time.sleep(poll)

    def check(self) -> None:
        """Raise `ServerFailed` if it has ended."""
        if self.process.poll() is not None:
            raise ServerFailed(f"it ended with {self.process.returncode}\n{self.log_end()}")

    def cpu_seconds(self) -> float:
        """What all its processes have used since they were started; exact to 0.01 s a process."""
        return cpu_seconds(family(self.process.pid))

    def resident_bytes(self) -> int:
        """The memory of all its processes."""
        return resident_bytes(family(self.process.pid))

    def log_end(self) -> str:
        """The end of its output."""
        return self.log.read_text(errors="replace")[-2000:]


def uwsgi_binary() -> str | None:
    """The uWSGI beside this interpreter, else the one on PATH."""
    beside = Path(sys.executable).with_name("uwsgi")
    return os.fspath(beside) if beside.exists() else shutil.which("uwsgi")


def prepare(folder: Path) -> Path:
    """Make a folder for a server.

    Returns:
        The spool directory in it.
    """
    spool = folder / "spool"
    spool.mkdir(parents=True)
    return spool


def token(folder: Path) -> str:
    """The operator's token of a trispool that runs, once its HTTP side is there: the sockets may be earlier.

    Args:
        folder: Its folder.

    Raises:
        ServerFailed: It does not come.
    """
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.connect(os.fspath(folder / "http"))
            return (folder / "var" / "token").read_text().strip()
        time.sleep(0.005)
    raise ServerFailed(f"its HTTP side does not answer after {START_SECONDS} s\n{(folder / 'log').read_text()[-2000:]}")


@contextlib.contextmanager
def running(kind: Kind, folder: Path, *, frequency: int = 30, handlers: Path = HANDLERS) -> Iterator[Server]:
    """A server, from when its sockets answer. Leaving the block ends it.

    Args:
        kind: Which.
        folder: As `prepare` has made it.
        frequency: Seconds between its scans.
        handlers: A file with handlers.

    Raises:
        ServerFailed: It does not start, or has ended within the block.
    """
    unix, tcp = os.fspath(folder / "sock"), ("127.0.0.1", free_port())
    if kind is Kind.UWSGI:
        command = _uwsgi_command(folder, unix, tcp, frequency, handlers)
    else:
        command = _trispool_command(kind, folder, unix, tcp, frequency, handlers)
    log, seen = folder / "log", folder / "records"
    # A folder may serve several servers in turn.
    shutil.rmtree(seen, ignore_errors=True)
    seen.mkdir()
    log.unlink(missing_ok=True)
    environment = {"PYTHONPATH": os.fspath(ROOT), "BENCHMARK_RECORDS": os.fspath(seen)}
    process = start(command, folder, log, environment)
    records = Records(seen)
    server = Server(process, unix, tcp, records, log)
    try:
        _wait_until_it_answers(server)
        try:
            yield server
        except OSError:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(1)
            server.check()  # that it has ended is the better news
            raise
    finally:
        records.close()
        end(process, STOP_SECONDS_UWSGI if kind is Kind.UWSGI else STOP_SECONDS)


def _uwsgi_command(folder: Path, unix: str, tcp: tuple[str, int], frequency: int, handlers: Path) -> Sequence[str]:
    binary = uwsgi_binary()
    if binary is None:
        raise ServerFailed("there is no uwsgi, neither beside the interpreter nor on PATH: pip install uwsgi==2.0.31")
    return [
        binary,
        *("--master", "--die-on-term", "--processes", "2", "--listen", "1024"),
        *("--socket", unix, "--socket", f"{tcp[0]}:{tcp[1]}"),
        *("--spooler", os.fspath(folder / "spool"), "--spooler-processes", "2"),
        *("--spooler-frequency", str(frequency), "--spooler-quiet", "--disable-logging"),
        *("--import", os.fspath(handlers)),
    ]


def _trispool_command(
    kind: Kind, folder: Path, unix: str, tcp: tuple[str, int], frequency: int, handlers: Path
) -> Sequence[str]:
    durability = "fsync" if kind is Kind.FSYNC else "os"
    config = folder / "config.toml"
    config.write_text(
        f"""\
state_dir = "{folder}/var"

[http]
bind = "unix:{folder}/http"

[[listen]]
bind = "unix:{unix}"

[[listen]]
bind = "{tcp[0]}:{tcp[1]}"

[[spool]]
name = "default"
directory = "{folder}/spool"
import = ["{handlers}"]
processes = 2
frequency = {frequency}
durability = "{durability}"
"""
    )
    # Not the console script: it is there only if trispool is installed, and this runs from a checkout, too.
    return [sys.executable, "-c", "from trispool.cli import main; main()", "run", os.fspath(config)]


def _wait_until_it_answers(server: Server) -> None:
    deadline = time.monotonic() + START_SECONDS
    for address in (server.unix, server.tcp):
        while True:
            server.check()
            with contextlib.suppress(OSError):
                if exchange(address, _PING):
                    break
            if time.monotonic() > deadline:
                raise ServerFailed(f"{address} does not answer after {START_SECONDS} s\n{server.log_end()}")
            time.sleep(0.005)
