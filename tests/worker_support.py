"""A real worker process, driven over its socket, for tests."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import socket
import subprocess
import sys
import textwrap
import time
from typing import TYPE_CHECKING

import msgspec

import trispool.worker
from trispool.packet import encode_vars
from trispool.worker import frames
from trispool.worker.board import Board
from trispool.worker.output import LineReader

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

PROGRAM = os.path.join(os.path.dirname(trispool.worker.__file__), "__main__.py")
PATIENCE = 20.0
"""Seconds after which a test is given up; a worker needs about 0.1."""

_decoder: msgspec.msgpack.Decoder[frames.FromWorker] = msgspec.msgpack.Decoder(frames.FromWorker)


class Gate:
    """Something that a handler can wait for: a fifo, opened by the test so that neither side ever waits to open it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        os.mkfifo(path)
        self._fd = os.open(path, os.O_RDWR)

    def open(self, count: int = 1) -> None:
        """Let `count` waiting handlers, now or later, go on."""
        os.write(self._fd, b"x" * count)

    def close(self) -> None:
        os.close(self._fd)


WAIT = """
def wait_for(path):
    with open(path, "rb", 0) as fifo:
        fifo.read(1)
"""
"""For handlers: waits for a `Gate`."""


def write_handlers(folder: Path, source: str, name: str = "the_handlers.py") -> str:
    """A file with handlers; its path."""
    path = folder / name
    path.write_text(WAIT + textwrap.dedent(source))
    return str(path)


def carried(task_id: str, vars: Mapping[str, object] | None = None, body: bytes = b"", attempt: int = 1) -> frames.Item:
    """An item of a `Run` that carries its task."""
    payload = encode_vars({key: str(value) for key, value in (vars or {}).items()})
    return ((task_id, task_id, (payload, body)), attempt)


class RawWorker:
    """One worker process and the service's ends of all that connects it, without the service's code."""

    def __init__(self, setup: frames.Setup, cwd: Path | None = None) -> None:
        self.socket, other = socket.socketpair()
        self.socket.settimeout(PATIENCE)
        self._reader = frames.FrameReader()
        memory = Board.create_memory(setup.slots)
        self.board = Board(memory, setup.slots)
        life, self.life = os.pipe()
        self.stdout, stdout = os.pipe()
        self.stderr, stderr = os.pipe()
        self.process = subprocess.Popen(
            [sys.executable, PROGRAM, str(other.fileno()), str(memory), str(life)],
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            pass_fds=(other.fileno(), memory, life),
            start_new_session=True,
            cwd=cwd,
        )
        for fd in (memory, life, stdout, stderr):
            os.close(fd)
        other.close()
        self.next = 1
        self._lines = {self.stdout: LineReader(), self.stderr: LineReader()}
        self.send(setup)

    def send(self, message: object) -> None:
        self.socket.sendall(frames.encode_frame(message))

    def receive(self) -> frames.FromWorker:
        """The next message."""
        while (frame := self._reader.next_frame()) is None:
            count = self.socket.recv_into(self._reader.space())
            if not count:
                raise EOFError(f"the worker is gone: {self.output()}")
            self._reader.received(count)
        return _decoder.decode(frame)

    def why_broken(self) -> str:
        """The traceback, which must be what comes next."""
        message = self.receive()
        assert isinstance(message, frames.Broken), message
        return message.traceback

    def run(self, *items: frames.Item) -> int:
        """Hand over a batch; the number of its first task."""
        first = self.next
        self.next += len(items)
        self.send(("run", first, items))
        return first

    def reports(self, count: int) -> list[frames.Report]:
        """The next reports, however they are batched."""
        out: list[frames.Report] = []
        while len(out) < count:
            message = self.receive()
            assert isinstance(message, frames.Done), message
            out += message.reports
        assert len(out) == count
        return out

    def output(self, stream: str = "stderr") -> list[tuple[str | None, str]]:
        """What has been printed since the last look."""
        fd = self.stderr if stream == "stderr" else self.stdout
        os.set_blocking(fd, False)
        lines: list[tuple[str | None, str]] = []
        with contextlib.suppress(BlockingIOError):
            while data := os.read(fd, 1 << 16):
                lines += self._lines[fd].feed(data)
        return lines

    def read_lines(self, count: int, stream: str = "stdout") -> list[tuple[str | None, str]]:
        """The next lines printed."""
        fd = self.stderr if stream == "stderr" else self.stdout
        lines: list[tuple[str | None, str]] = []
        until = time.monotonic() + PATIENCE
        while len(lines) < count:
            assert select.select([fd], [], [], until - time.monotonic())[0], lines
            data = os.read(fd, 1 << 16)
            assert data, lines
            lines += self._lines[fd].feed(data)
        return lines

    def wait(self) -> int:
        """The exit code."""
        return self.process.wait(PATIENCE)

    def quit(self) -> int:
        """Ask it to quit; the exit code."""
        self.send(("quit",))
        return self.wait()

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.socket.close()
        self.board.close()
        for fd in (self.life, self.stdout, self.stderr):
            with contextlib.suppress(OSError):
                os.close(fd)


@contextlib.contextmanager
def raw_worker(setup: frames.Setup, cwd: Path | None = None) -> Iterator[RawWorker]:
    """A worker that is ready."""
    worker = RawWorker(setup, cwd)
    try:
        ready = worker.receive()
        assert isinstance(ready, frames.Ready), ready
        yield worker
    finally:
        worker.close()


def is_locked(path: Path) -> bool:
    """Whether somebody holds a lock on a file."""
    with open(path, "rb+") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
        return False


def is_running(pid: int) -> bool:
    """Whether there is such a process, other than a dead one that nobody has reaped."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until_gone(pid: int) -> None:
    """Wait until a process, not ours, has ended."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert not is_running(pid) or select.select([fd], [], [], PATIENCE)[0], f"{pid} still runs"
    finally:
        os.close(fd)


def children() -> set[int]:
    """The processes that this one has started, dead but not reaped ones included."""
    found: set[int] = set()
    for thread in os.listdir("/proc/self/task"):
        with contextlib.suppress(FileNotFoundError), open(f"/proc/self/task/{thread}/children") as file:
            found.update(map(int, file.read().split()))
    return found
