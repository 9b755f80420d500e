"""Processes that a benchmark starts: their descendants, what these use, and their end."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["cpu_seconds", "cpu_times", "end", "family", "free_port", "resident_bytes", "start"]

_TICKS: Final = os.sysconf("SC_CLK_TCK")


def start(
    command: Sequence[str],
    folder: Path,
    log: Path,
    environment: Mapping[str, str] | None = None,
    user: str | None = None,
) -> subprocess.Popen[bytes]:
    """Start a program in a session of its own.

    Args:
        command: Program and arguments.
        folder: Where it runs.
        log: Where its output goes, at the end.
        environment: In addition to ours.
        user: As whom; None: as ourselves.
    """
    with log.open("ab") as output:
        return subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            user=user,
            group=user,
            extra_groups=None if user is None else [],
        )


def end(process: subprocess.Popen[bytes], seconds: float) -> None:
    """End a program that `start` has started, and all that it has started.

    Args:
        process: The program.
        seconds: How long it may take, before it is killed.
    """
    # A copy, since those whose parent has died are nobody's children any more.
    members = family(process.pid)
    process.terminate()
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for pid in members:
        # Still ours and not a stranger with the same number: the session is the one that was made for it.
        with contextlib.suppress(OSError):
            if os.getsid(pid) == process.pid:
                os.kill(pid, signal.SIGKILL)


def family(pid: int) -> list[int]:
    """A process and all that it has started."""
    children: dict[int, list[int]] = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                children.setdefault(int(_stat(int(entry.name))[1]), []).append(int(entry.name))
    members = [pid]
    for member in members:
        members += children.get(member, [])
    return members


def cpu_seconds(pids: Sequence[int]) -> float:
    """What processes have used since they were started, children that have ended included; exact to 0.01 s each."""
    return sum(cpu_times(pids))


def cpu_times(pids: Sequence[int]) -> tuple[float, float]:
    """The same, in user mode and in the system."""
    user = system = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            times = list(map(int, _stat(pid)[11:15]))
            user += times[0] + times[2]
            system += times[1] + times[3]
    return user / _TICKS, system / _TICKS


def resident_bytes(pids: Sequence[int]) -> int:
    """The memory of processes that is in use; what they share counts for each."""
    pages = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            pages += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def free_port() -> int:
    """A TCP port of this machine that nobody listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on: 1 is the parent, 11 to 14 are the user and the system time of the
    process, and the same of its children that it has waited for."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
