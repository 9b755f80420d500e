"""What a process tells the kernel about files, in order, by strace: for `tests.faults.disk` to make disks of it.

Everything that can change a file is traced, of all its threads and children. What would change one unseen (a shared
writable mapping, io_uring, a descriptor opened for synchronous writes) is an error: then the trace would be no truth.
"""

from __future__ import annotations

import itertools
import re
import subprocess
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

__all__ = ["Call", "Traced", "calls", "traced", "unquoted"]

_NAMES: Final = ("open", "openat", "openat2", "creat", "mkdir", "mkdirat", "rmdir", "unlink", "unlinkat")
_MOVES: Final = ("rename", "renameat", "renameat2", "link", "linkat", "symlink", "symlinkat")
_WRITES: Final = ("write", "pwrite64", "writev", "pwritev", "pwritev2", "truncate", "ftruncate", "fallocate")
_BEHIND: Final = ("copy_file_range", "sendfile", "splice", "mmap", "io_uring_setup")
_TIMES: Final = ("utime", "utimes", "futimesat", "utimensat")
_SYNCS: Final = ("fsync", "fdatasync", "syncfs", "sync", "sync_file_range", "msync")
_TELLING: Final = ("sendto", "sendmsg", "readlink", "readlinkat")
"""Answers to clients; and the reading of links that do not exist, by which a handler says where it is."""

_TRACED: Final = (*_NAMES, *_MOVES, *_WRITES, *_BEHIND, *_TIMES, *_SYNCS, *_TELLING)

_LONGEST: Final = 1 << 24
"""Bytes of one argument that are told: more than any write."""

_ENDS_SECONDS: Final = 30.0
"""For the tracer to write its last lines."""

_WHOLE: Final = re.compile(r"(\d+) +(\w+)\((.*)\) += (-?\d+|\?).*\n")
_BEGUN: Final = re.compile(r"(\d+) +(\w+)\((.*?) *<unfinished \.\.\.>\n")
_ENDED: Final = re.compile(r"(\d+) +<\.\.\. (\w+) resumed>(.*)\) += (-?\d+|\?).*\n")
_QUOTED: Final = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')


@dataclass(slots=True)
class Call:
    """One system call.

    Attributes:
        name: Its name.
        arguments: As strace writes them.
        result: What it returned; -1: it failed.
        begin: Where in the order of all begins and ends it began.
        end: And where it ended.
    """

    name: str
    arguments: str
    result: int
    begin: int
    end: int

    @property
    def file(self) -> str:
        """The path of the descriptor that comes first, as it was at that moment; empty if it has none (any more)."""
        described, found, rest = self.arguments.partition("<")
        path, _, rest = rest.partition(">")
        return unquoted(path) if found and described.isdecimal() and not rest.startswith("(deleted)") else ""

    @property
    def strings(self) -> list[bytes]:
        """Its quoted arguments."""
        return [_bytes(text) for text in _QUOTED.findall(self.arguments)]


def _bytes(text: str) -> bytes:
    return bytes.fromhex(text.replace("\\x", ""))


def unquoted(text: str) -> str:
    """A path as strace writes it for a descriptor: bytes in hexadecimal, other kinds of files in plain letters."""
    return _bytes(text).decode(errors="surrogateescape") if text.startswith("\\x") else text


class Traced:
    """A process that is traced. Made by `traced`."""

    def __init__(self, process: subprocess.Popen[bytes], path: Path) -> None:
        self.process = process
        self.path = path

    def wait(self, seconds: float) -> int:
        """Wait for its end, and for the last line about it; gives its exit code."""
        code = self.process.wait(seconds)
        end = time.monotonic() + _ENDS_SECONDS
        last = re.compile(rb"^%d +\+\+\+ " % self.process.pid, re.MULTILINE)
        while not last.search(self._tail()):
            if time.monotonic() > end:
                raise AssertionError(f"{self.path} does not come to its end")
            time.sleep(0.02)
        return code

    def _tail(self) -> bytes:
        with self.path.open("rb") as trace:
            size = trace.seek(0, 2)
            trace.seek(max(0, size - 4096))
            return trace.read()


def traced(command: Sequence[str], trace: Path, *, environment: Mapping[str, str], folder: Path, log: Path) -> Traced:
    """Start a command that is traced from its first instruction. It is a child of ours, and its tracer is not."""
    strace = ["strace", "-D", "-f", "-q", "--seccomp-bpf", "-yy", "-xx", "-s", str(_LONGEST)]
    with log.open("ab") as output:
        process = subprocess.Popen(
            [*strace, "-o", str(trace), "-e", f"trace={','.join(_TRACED)}", *command],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    return Traced(process, trace)


def calls(paths: Iterable[Path], root: str) -> list[Call]:
    """The calls of traces, one after the other, in the order of their ends.

    Args:
        paths: The traces.
        root: The folder that matters.

    Raises:
        ValueError: A file in it could have been changed unseen.
    """
    counter = itertools.count()
    found: list[Call] = []
    for path in paths:
        with path.open() as lines:
            found += _calls(lines, counter)
    hidden = _hexadecimal(root)
    for call in found:
        if hidden in call.arguments and _is_unseen(call):
            raise ValueError(f"a file can be changed unseen: {call.name}({call.arguments[:1000]})")
    return found


def _calls(lines: Iterable[str], counter: Iterator[int]) -> Iterator[Call]:
    begun: dict[str, tuple[str, str, int]] = {}
    for line in lines:
        begin = next(counter)
        if match := _WHOLE.fullmatch(line):
            _, name, arguments, result = match.groups()
            yield Call(name, arguments, _result(result), begin, next(counter))
        elif match := _BEGUN.fullmatch(line):
            process, name, arguments = match.groups()
            begun[process] = (name, arguments, begin)
        elif match := _ENDED.fullmatch(line):
            process, name, rest, result = match.groups()
            began, arguments, since = begun.pop(process)
            if began != name:
                raise ValueError(f"{began} ended as {name}")
            yield Call(name, arguments + rest, _result(result), since, begin)
    # Calls of a process that was killed in them have no end.
    for name, arguments, since in begun.values():
        yield Call(name, arguments, 0, since, next(counter))


def _result(text: str) -> int:
    # A process that ended in a call has no result. What it did may have been done.
    return 0 if text == "?" else int(text)


def _hexadecimal(text: str) -> str:
    return "".join(f"\\x{byte:02x}" for byte in text.encode())


def _is_unseen(call: Call) -> bool:
    if call.result < 0:
        return False
    match call.name:
        case "mmap":
            # The index of SQLite's log is shared memory; whoever opens the database first makes it anew.
            return "PROT_WRITE" in call.arguments and "MAP_SHARED" in call.arguments and not _is_of_shm(call)
        case "open" | "openat":
            return "SYNC" in call.arguments or "O_DIRECT," in call.arguments
        case "openat2" | "copy_file_range" | "sendfile" | "splice" | "fallocate" | "writev" | "pwritev" | "pwritev2":
            return True
        case "symlink" | "symlinkat" | "utime" | "utimes" | "futimesat" | "truncate" | "msync":
            return True
    return False


def _is_of_shm(call: Call) -> bool:
    """Whether a mapping is of the index of SQLite's log."""
    return _hexadecimal("-shm") + ">" in call.arguments
