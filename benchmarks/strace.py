"""System calls of processes, counted by strace while they go on."""

from __future__ import annotations

import contextlib
import re
import shutil
import signal
import subprocess
import time
from typing import TYPE_CHECKING, Final

from benchmarks.servers import ServerFailed

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

__all__ = ["available", "counted"]

ATTACH_SECONDS: Final = 10.0

_LINE: Final = re.compile(r"^\s*[\d.]+\s+[\d.]+\s+\d+\s+(\d+)\s+(?:\d+\s+)?(\w+)$", re.MULTILINE)
"""Share of the time, seconds, microseconds a call, calls, errors or nothing, name."""


def available() -> bool:
    """Whether there is an strace."""
    return shutil.which("strace") is not None


@contextlib.contextmanager
def counted(pids: Sequence[int], output: Path) -> Iterator[dict[str, int]]:
    """Count the calls of processes, all their threads included.

    Args:
        pids: Which.
        output: A file for strace.

    Yields:
        The calls by name, which is filled when the block is left.
    """
    attached = [part for pid in pids for part in ("--attach", str(pid))]
    command = ["strace", "--follow-forks", "--summary-only", "--output", str(output), *attached]
    calls: dict[str, int] = {}
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as process:
        assert process.stderr is not None
        try:
            _wait_until_attached(process, pids)
            yield calls
        finally:
            process.send_signal(signal.SIGINT)
            told = process.stderr.read().decode(errors="replace")
    found = _LINE.findall(output.read_text())
    if not found:
        raise ServerFailed(f"strace has counted nothing: {told[-2000:]}")
    calls.update({name: int(count) for count, name in found if name != "total"})


def _wait_until_attached(process: subprocess.Popen[bytes], pids: Sequence[int]) -> None:
    deadline = time.monotonic() + ATTACH_SECONDS
    while not all(_traced(pid) for pid in pids):
        if process.poll() is not None or time.monotonic() > deadline:
            raise ServerFailed("strace does not attach; may it trace processes here?")
        time.sleep(0.02)


def _traced(pid: int) -> bool:
    with open(f"/proc/{pid}/status", encoding="utf-8") as status:
        return "TracerPid:\t0\n" not in status.read()
