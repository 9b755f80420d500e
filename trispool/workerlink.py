"""A worker process as a process: start it, exchange frames with it, read what it prints, see to its end.

Whoever leaves `WorkerLink.run`, by whatever way, leaves no process behind: the worker has been killed and reaped, and
so has been killed whatever its handlers started, unless they put it into a session of its own.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections import deque
from typing import TYPE_CHECKING, Final, Literal

import msgspec
import structlog
import trio

from trispool import worker
from trispool.store import Claim
from trispool.worker import DUMP_SIGNAL, frames
from trispool.worker.board import Board
from trispool.worker.output import LineReader

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Message", "Report", "Stream", "WorkerLink"]

MAX_FRAME_FROM_WORKER: Final = 64 * 1024 * 1024
"""Bytes; a worker cuts errors and tracebacks, so this is far more than it ever has to say at once."""

DEAF_SECONDS: Final = 1.0
"""For so long a worker may live on after its connection has been closed."""

_OUTPUT_CHUNK: Final = 0x1_0000
_LAST_CHUNKS: Final = 64  # of output to read when the process is dead: pipes can be made to hold 1 MiB, and rarely are
_PROGRAM: Final = os.path.join(os.path.dirname(os.path.abspath(worker.__file__)), "__main__.py")
_NOBODY: Final = Claim("", "")

_log = structlog.get_logger()


class Report(frames.Report, array_like=True):
    """What a worker says of one task.

    Attributes:
        claim: The task, as it was given.
    """

    claim: Claim = _NOBODY


Message = frames.Ready | frames.Broken | frames.Done[Report] | frames.Progress | frames.SetFrequency
Stream = Literal["stdout", "stderr"]

_decoder: Final[msgspec.msgpack.Decoder[Message]] = msgspec.msgpack.Decoder(Message)


class WorkerLink:
    """One process. Nothing here waits for it but Trio tasks of its own.

    Args:
        setup: What it is told first.
        on_message: Called with what it says.
        on_line: Called with what it prints: the stream, the id it is marked with, the line.

    Attributes:
        pid: Its process id; kept when it has died. 0: it was never started.
        alive: Whether it can be spoken to.
        board: The shared page; open until `close`.
        cause: Why it ended or was killed, in words.
        is_quitting: Whether it may close the connection.
    """

    def __init__(
        self,
        setup: frames.Setup,
        on_message: Callable[[Message], None],
        on_line: Callable[[Stream, str | None, str], None],
    ) -> None:
        self.pid = 0
        self.alive = False
        self.cause: str | None = None
        self.is_quitting = False
        self.board: Board
        self._setup = setup
        self._on_message = on_message
        self._on_line = on_line
        self._log = _log.bind(spool=setup.spool)
        self._socket: socket.socket
        self._reader = frames.FrameReader(MAX_FRAME_FROM_WORKER)
        self._is_garbled = False
        self._unsent: deque[memoryview] = deque()
        self._more = trio.Event()
        self._ends = contextlib.ExitStack()

    def send(self, message: object) -> None:
        """Send one message, as soon as there is a process and room; if it is dead, nothing happens."""
        frame = memoryview(frames.encode_frame(message))
        if self.alive and not self._unsent:
            try:
                frame = frame[self._socket.send(frame) :]
            except BlockingIOError:
                pass
            except OSError:
                return  # It is dead or as good as dead; `_read_frames` sees to it.
        if frame:
            self._unsent.append(frame)
            self._more.set()

    def kill(self, cause: str) -> None:
        """End it, at once or as soon as it has been started; the first `cause` given is the one that counts."""
        self.cause = self.cause or cause
        if self.alive:
            self._kill_group()

    def dump_traceback(self) -> None:
        """Have it print where it is."""
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, DUMP_SIGNAL)

    def close(self) -> None:
        """Let go of all that was opened for it."""
        self.alive = False
        self._ends.close()

    async def run(self, on_start: Callable[[], None]) -> None:
        """Start the process; return when it is dead and its last words have been taken.

        Args:
            on_start: Called when there is a process.

        Raises:
            OSError: It could not be started.
        """
        process, output = await self._start()
        try:
            on_start()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._read_frames)
                nursery.start_soon(self._write_unsent)
                for reader in output:
                    nursery.start_soon(reader.run)
                await _wait_until_dead(process.pid)
                nursery.cancel_scope.cancel()
        except BaseException:
            self.kill("killed: the service ends")
            raise
        finally:
            # Not yet reaped, so its number, which is that of its process group, cannot mean anybody else.
            self._kill_group()
            self.alive = False
            with trio.CancelScope(shield=True):  # no deadline: SIGKILL has been sent
                status = await process.wait()
            self.cause = self.cause or _describe(status)
            while self._receive():
                pass
            for reader in output:
                reader.finish()

    async def _start(self) -> tuple[trio.Process, list[_OutputReader]]:
        setup, ends = self._setup, self._ends
        output: list[_OutputReader] = []
        with contextlib.ExitStack() as theirs:
            self._socket, other = socket.socketpair()
            ends.callback(self._socket.close)
            theirs.callback(other.close)
            self._socket.setblocking(False)
            # Nothing is ever written to this pipe. When we, who hold its only writing end, are gone, the kernel kills
            # the worker.
            life, ours = os.pipe()
            ends.callback(os.close, ours)
            theirs.callback(os.close, life)
            memory = Board.create_memory(setup.slots)
            theirs.callback(os.close, memory)
            self.board = Board(memory, setup.slots)
            ends.callback(self.board.close)
            streams: dict[Stream, int] = {}
            for name in _STREAMS:
                reader, streams[name] = os.pipe()
                ends.callback(os.close, reader)
                theirs.callback(os.close, streams[name])
                os.set_blocking(reader, False)
                output.append(_OutputReader(reader, name, self._on_line))
            environment = {**os.environ, "TRISPOOL_SPOOL": setup.directory or ""}
            if setup.directory is None:
                del environment["TRISPOOL_SPOOL"]
            process = await trio.lowlevel.open_process(
                [sys.executable, _PROGRAM, str(other.fileno()), str(memory), str(life)],
                stdin=subprocess.DEVNULL,
                stdout=streams["stdout"],
                stderr=streams["stderr"],
                pass_fds=(other.fileno(), memory, life),
                start_new_session=True,
                env=environment,
            )
        self.pid = process.pid
        self.alive = True
        self._unsent.appendleft(memoryview(frames.encode_frame(setup)))
        self._more.set()
        if self.cause is not None:
            self._kill_group()
        return process, output

    def _kill_group(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    async def _write_unsent(self) -> None:
        while True:
            await self._more.wait()
            self._more = trio.Event()
            while self._unsent:
                await trio.lowlevel.wait_writable(self._socket)
                frame = self._unsent[0]
                try:
                    sent = self._socket.send(frame)
                except BlockingIOError:
                    continue
                except OSError:
                    return
                if sent == len(frame):
                    self._unsent.popleft()
                else:
                    self._unsent[0] = frame[sent:]

    async def _read_frames(self) -> None:
        while self._receive() is not None:
            await trio.lowlevel.wait_readable(self._socket)
        if not self.is_quitting:
            # Most likely it is just dying. But a handler that has closed the socket may go on for long, unheard.
            await trio.sleep(DEAF_SECONDS)
            self.kill("broke its connection to the service")

    def _receive(self) -> int | None:
        """Take what has come: 0 if nothing has, None if nothing will."""
        reader = self._reader
        if self._is_garbled:
            return None
        try:
            count = self._socket.recv_into(reader.space())
        except BlockingIOError:
            return 0
        except OSError:
            return None
        if not count:
            return None
        reader.received(count)
        while True:
            try:
                frame = reader.next_frame()
                if frame is None:
                    return count
                message = _decoder.decode(frame)
            except (frames.MalformedFrame, msgspec.MsgspecError, UnicodeDecodeError) as error:
                self._is_garbled = True
                self._log.error("worker_broke_the_protocol", worker=self.pid, error=str(error))
                return None
            self._on_message(message)


_STREAMS: Final[tuple[Stream, Stream]] = ("stdout", "stderr")


class _OutputReader:
    """Reads one of the pipes that a worker prints to."""

    def __init__(self, fd: int, stream: Stream, on_line: Callable[[Stream, str | None, str], None]) -> None:
        self._fd = fd
        self._stream = stream
        self._on_line = on_line
        self._lines = LineReader()

    async def run(self) -> None:
        """Read until there will be no more."""
        while self._read() is not None:
            await trio.lowlevel.wait_readable(self._fd)

    def finish(self) -> None:
        """Read what is left. Not until its end: a process that the handler put aside may hold the pipe for ever."""
        for _ in range(_LAST_CHUNKS):
            if not self._read():
                break
        self._tell(self._lines.end())

    def _read(self) -> int | None:
        try:
            data = os.read(self._fd, _OUTPUT_CHUNK)
        except BlockingIOError:
            return 0
        if not data:
            return None
        self._tell(self._lines.feed(data))
        return len(data)

    def _tell(self, lines: list[tuple[str | None, str]]) -> None:
        for task_id, line in lines:
            self._on_line(self._stream, task_id, line)


async def _wait_until_dead(pid: int) -> None:
    """Wait for our child without reaping it."""
    fd = os.pidfd_open(pid)
    try:
        await trio.lowlevel.wait_readable(fd)
    finally:
        os.close(fd)


def _describe(status: int) -> str:
    """A process's end in words, from what `subprocess` makes of its status."""
    if status >= 0:
        return f"exited with code {status}"
    try:
        name = f" ({signal.Signals(-status).name})"
    except ValueError:
        name = ""
    return f"killed by signal {-status}{name}"
