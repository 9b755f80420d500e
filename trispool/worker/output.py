"""What handlers print, with the task it belongs to: the worker's streams and the service's reader of them.

File descriptors 1 and 2 of a worker are pipes to the service. `sys.stdout` and `sys.stderr` write whole lines there,
each with a mark in front that names the task:

    0x1e id 0x1f line \\n

What arrives without a mark was written past these streams, by C code or by a process that a handler started; the
service puts it down to the task that the board shows. A part of a line that was flushed is written without its end;
the next part of the same task's line continues it.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import select
import sys
import threading
from typing import TYPE_CHECKING, BinaryIO, Final, cast

if TYPE_CHECKING:
    from collections.abc import Callable

    from _typeshed import ReadableBuffer

__all__ = ["MAX_LINE", "LineReader", "TaskStream", "install"]

MAX_LINE: Final = 0x1_0000
"""A longer line is cut, bytes: what prints without ever ending a line would else fill the memory."""

_MARK: Final = b"\x1e"
_END_OF_MARK: Final = b"\x1f"
_MAX_ID: Final = 255  # bytes; ids are names of files


class TaskStream(io.RawIOBase):
    """The binary stream under a worker's `sys.stdout` or `sys.stderr`.

    It keeps a private copy of the descriptor and cannot be closed: a handler that closes its standard output must not
    take it away from the next one.

    Args:
        fd: The descriptor.
        current: Tells the id of the task that is writing, or None.
    """

    def __init__(self, fd: int, current: Callable[[], str | None]) -> None:
        super().__init__()
        self.unended: dict[str | None, bytes] = {}
        """What has been written of lines that have not been ended, by task; truthy if a task's end must end a line."""
        self._fd = fd
        self._copy = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10)
        self._current = current
        self._lock = threading.RLock()
        # A child forked while another thread was printing would wait for that thread for ever.
        os.register_at_fork(after_in_child=self._new_lock)

    def _new_lock(self) -> None:
        self._lock = threading.RLock()

    def writable(self) -> bool:
        """True."""
        return True

    def fileno(self) -> int:
        """The descriptor that child processes get."""
        return self._fd

    def close(self) -> None:
        """Does nothing."""

    def write(self, data: ReadableBuffer, /) -> int:
        """Pass on the lines that are whole; keep the rest."""
        new = bytes(data)
        with self._lock:
            task_id = self._current()
            text = self.unended.pop(task_id, b"") + new
            lines, newline, rest = text.rpartition(b"\n")
            if newline:
                self._send(task_id, lines, b"\n")
            if len(rest) >= MAX_LINE:
                self._send(task_id, rest, b"\n")
            elif rest:
                self.unended[task_id] = rest
        return len(new)

    def flush(self) -> None:
        """Pass on the parts of lines, too."""
        with self._lock:
            for task_id, rest in self.unended.items():
                if rest:
                    self._send(task_id, rest, b"")
                    self.unended[task_id] = b""

    def end_line(self, task_id: str | None) -> None:
        """The task writes no more: end its line."""
        with self._lock:
            rest = self.unended.pop(task_id, None)
            if rest is not None:
                self._send(task_id, rest, b"\n")

    def _send(self, task_id: str | None, lines: bytes, end: bytes) -> None:
        if _MARK in lines:
            lines = lines.replace(_MARK, b"\\x1e")
        if len(lines) > MAX_LINE:
            lines = b"\n".join(line[at : at + MAX_LINE] for line in lines.split(b"\n") for at in _starts(line))
        if task_id is not None:
            mark = _MARK + os.fsencode(task_id) + _END_OF_MARK
            lines = mark + lines.replace(b"\n", b"\n" + mark)
        view = memoryview(lines + end)
        # If the service is gone, so is this process within microseconds.
        with contextlib.suppress(BrokenPipeError):
            while view:
                try:
                    view = view[os.write(self._copy, view) :]
                except BlockingIOError:
                    # Some programs, run by a handler, set the pipe that they share with us to non-blocking.
                    poll = select.poll()
                    poll.register(self._copy, select.POLLOUT)
                    poll.poll()


def install(current: Callable[[], str | None]) -> tuple[TaskStream, TaskStream]:
    """Make `sys.stdout` and `sys.stderr` such streams.

    Args:
        current: Tells the id of the task that is writing, or None. Called at every write, in the writer's thread.
    """
    streams = TaskStream(1, current), TaskStream(2, current)
    for name, stream in zip(("stdout", "stderr"), streams, strict=True):
        text = io.TextIOWrapper(
            cast("BinaryIO", stream),  # unbuffered, as with `python -u`
            encoding="utf-8",
            errors="backslashreplace",
            newline="\n",
            write_through=True,
        )
        setattr(sys, name, text)
        setattr(sys, f"__{name}__", text)
    return streams


class LineReader:
    """The service's reader of one of a worker's pipes; sans-IO."""

    def __init__(self) -> None:
        self._buffer = b""
        self._unended: dict[str | None, bytes] = {}

    def feed(self, data: bytes) -> list[tuple[str | None, str]]:
        """Take bytes.

        Returns:
            The lines that are now whole: the id that they are marked with, if any, and the text.
        """
        out: list[tuple[str | None, str]] = []
        data = self._buffer + data
        position, size = 0, len(data)
        while position < size:
            newline = data.find(b"\n", position)
            mark = data.find(_MARK, position + 1, size if newline < 0 else newline)
            if mark >= 0:
                self._take(data[position:mark], False, out)
                position = mark
            elif newline >= 0:
                self._take(data[position:newline], True, out)
                position = newline + 1
            elif size - position >= MAX_LINE + _MAX_ID + 2:
                self._take(data[position:], True, out)
                position = size
            else:
                break
        self._buffer = data[position:]
        return out

    def end(self) -> list[tuple[str | None, str]]:
        """The stream has ended: what is left of lines that were not."""
        out: list[tuple[str | None, str]] = []
        if self._buffer:
            self._take(self._buffer, False, out)
            self._buffer = b""
        out += [(task_id, _text(rest)) for task_id, rest in self._unended.items() if rest]
        self._unended.clear()
        return out

    def _take(self, segment: bytes, ended: bool, out: list[tuple[str | None, str]]) -> None:
        task_id = None
        if segment[:1] == _MARK:
            name, found, text = segment[1:].partition(_END_OF_MARK)
            if found and 0 < len(name) <= _MAX_ID:
                task_id, segment = os.fsdecode(name), text
        line = self._unended.pop(task_id, b"") + segment
        if ended or len(line) >= MAX_LINE:
            out.append((task_id, _text(line)))
        elif line:
            self._unended[task_id] = line


def _starts(line: bytes) -> range:
    """Where the pieces of a line begin; an empty line is one piece."""
    return range(0, max(1, len(line)), MAX_LINE)


def _text(line: bytes) -> str:
    return line.removesuffix(b"\r").decode(errors="backslashreplace")
