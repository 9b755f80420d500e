"""Calls of the system that fail when told to: strace(1), attached to processes that run, and let go of again.

Rules it keeps:

1. What can fail is not guessed: `calls_of` records what a process really does to files while something is done.
2. A failure that is said to have been made was made: strace marks each, and `Tracing.hits` counts the marks.
3. close(2) is left out. strace would say that it failed *instead* of closing; the real one closes all the same.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import shutil
import signal
import subprocess
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

__all__ = ["ERRORS", "RECORDING", "Call", "Tracing", "calls_in", "inject", "injecting", "record", "under", "why_not"]

ERRORS: Final = ("ENOSPC", "EIO", "EDQUOT", "EMFILE")

RECORDING: Final = ("-y", "-s", "0", "-e", "trace=%file,%desc")
"""strace's arguments for what `calls_in` reads."""

_LEFT_OUT: Final = frozenset({"close", "execve", "exit", "exit_group", "munmap"})

_LINE: Final = re.compile(r"^(?:\d+ +)?(?P<name>\w+)\((?P<rest>.*)$")
_PLACE: Final = re.compile(r'(?P<fd>\w+)<(?P<path>/[^>]*)>|"(?P<text>[^"]*)"')
_SPOOL_FILE: Final = re.compile(r"uwsgi_spoolfile_on_[^/]*")


class Call(NamedTuple):
    """A kind of call that a process makes.

    Attributes:
        name: Of the call, as `pwrite64`.
        place: What it is about: a path below the folder, with `*` for the name of any spool file.
        path: What strace can tell it by; None: by its name only, as that of a spool file is not known beforehand.
    """

    name: str
    place: str
    path: str | None


class Tracing:
    """strace at work.

    Args:
        log: Where it writes.
        process: It.
    """

    def __init__(self, log: Path, process: subprocess.Popen[bytes]) -> None:
        self._log = log
        self.process = process

    @property
    def text(self) -> str:
        """What it has written so far."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    @property
    def hits(self) -> int:
        """How many calls it has made fail."""
        return self.text.count("(INJECTED)")


def why_not() -> str | None:
    """Why nothing can be injected here, or None."""
    if shutil.which("strace") is None:
        return "there is no strace"
    # A sandbox, or a container without the right to, lets nobody trace.
    told = subprocess.run(
        ["strace", "-qq", "-e", "trace=fsync", "-e", "inject=fsync:error=EIO", "true"], capture_output=True, check=False
    )
    return None if told.returncode == 0 else f"ptrace(2) is not allowed: {told.stderr.decode(errors='replace').strip()}"


def injecting(call: Call, error: str, when: str) -> list[str]:
    """strace's arguments that let a call fail.

    Args:
        call: The call.
        error: As `EIO`.
        when: `1`: the first of each thread; `1+`: all.
    """
    where = [] if call.path is None else ["-P", call.path]
    return [*where, "-e", f"trace={call.name}", "-e", f"inject={call.name}:error={error}:when={when}"]


def under(arguments: Sequence[str], log: Path) -> list[str]:
    """What to put before a command to run it with strace, which stays in the background."""
    return ["strace", "-D", "-f", "-qqq", "--seccomp-bpf", "-o", str(log), *arguments]


@contextlib.contextmanager
def inject(pids: Sequence[int], call: Call, error: str, when: str, log: Path) -> Iterator[Tracing]:
    """Let a call fail in some processes while this is open; see `injecting`."""
    with _attached(pids, injecting(call, error, when), log) as tracing:
        yield tracing


@contextlib.contextmanager
def record(pids: Sequence[int], log: Path) -> Iterator[Tracing]:
    """Record what some processes do to files while this is open, for `calls_in`."""
    with _attached(pids, RECORDING, log) as tracing:
        yield tracing


@contextlib.contextmanager
def _attached(pids: Sequence[int], arguments: Sequence[str], log: Path) -> Iterator[Tracing]:
    command = ["strace", "-f", "-o", str(log), *arguments, *(item for pid in pids for item in ("-p", str(pid)))]
    with subprocess.Popen(command, stderr=subprocess.PIPE, preexec_fn=_die_with_parent) as process:
        assert process.stderr is not None
        waiting = {str(pid) for pid in pids}
        told = b""
        while waiting:
            line = process.stderr.readline()
            told += line
            if not line:
                raise AssertionError(f"strace ended: {told.decode(errors='replace')}")
            if found := re.search(rb"Process (\d+) attached", line):
                waiting.discard(found[1].decode())
        try:
            yield Tracing(log, process)
        finally:
            process.send_signal(signal.SIGTERM)
            process.stderr.read()


def _die_with_parent() -> None:
    # A tracer that is left behind would go on making calls fail.
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def calls_in(text: str, folder: Path) -> list[Call]:
    """The kinds of calls in a record that are about what lies below a folder, in the order in which they came."""
    found: dict[tuple[str, str], Call] = {}
    for line in text.splitlines():
        match = _LINE.match(line)
        if match is None or match["name"] in _LEFT_OUT:
            continue
        call = _call(match["name"], match["rest"].rpartition(" = ")[0] or match["rest"], str(folder))
        if call is not None:
            found.setdefault((call.name, call.place), call)
    return list(found.values())


def _call(name: str, arguments: str, folder: str) -> Call | None:
    base: str | None = None
    for match in _PLACE.finditer(arguments):
        text = match["text"]
        if text is None:
            if base is not None and _is_below(base, folder):
                break
            base = match["path"]
            continue
        if text == "" and base is not None:
            break  # a buffer, or fstat(2) in its newer form
        path = os.path.join(base or "/", text)
        if _is_below(path, folder):
            place = _SPOOL_FILE.sub("*", os.path.relpath(path, folder))
            if base is not None and not text.startswith("/"):
                return Call(name, place, base)  # strace knows no relative paths, but the directory's descriptor
            return Call(name, place, None if "*" in place else path)
    if base is None or not _is_below(base, folder):
        return None
    place = _SPOOL_FILE.sub("*", os.path.relpath(base, folder))
    return Call(name, place, None if "*" in place else base)


def _is_below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(f"{folder}/")
