"""What the figures were taken on, without which they say nothing."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import time
from pathlib import Path
from typing import Final

__all__ = ["commit", "create_cost", "describe", "file_system"]

PROBE_FILES: Final = 500

PROBE_ROUNDS: Final = 1_000_000


def describe(directory: Path) -> list[str]:
    """Lines for the head of a report.

    Args:
        directory: Where the spools will be.
    """
    return [
        f"{os.cpu_count()} cores ({_processor()}), Linux {platform.release()}, Python {platform.python_version()} "
        f"({_python_speed() / 1e6:.0f} million rounds a second of a simple loop)",
        f"load before the run: {os.getloadavg()[0]:.2f}",
        f"spools on {file_system(directory)}",
    ]


def _python_speed() -> float:
    """Rounds a second of a simple loop: the same version may be built so that it is half as quick."""
    best = float("inf")
    for _ in range(3):
        began = time.perf_counter()
        values: dict[int, tuple[int, int]] = {}
        for number in range(PROBE_ROUNDS):
            values[number & 255] = number, len(values)
        best = min(best, time.perf_counter() - began)
    return PROBE_ROUNDS / best


def commit(directory: Path) -> str:
    """The commit of a work tree, and whether its sources have been changed since."""
    head = _git(directory, "rev-parse", "--short", "HEAD")
    # The docs are what the benchmarks themselves write.
    changed = _git(directory, "status", "--porcelain", "--untracked-files=no", "--", "trispool", "benchmarks")
    return f"{head or 'unknown'}{' with changes' if changed else ''}"


def _git(directory: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], cwd=directory, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip() if not done.returncode else ""


def file_system(directory: Path) -> str:
    """The file system of a directory, and whether it has a journal if it is an ext4."""
    best = ("", "unknown", "")
    path = f"{directory.resolve()}/"
    with open("/proc/self/mounts", encoding="utf-8") as mounts:
        for line in mounts:
            device, point, kind, *_ = line.split()
            if path.startswith(f"{point.rstrip('/')}/") and len(point) >= len(best[0]):
                best = (point, kind, device)
    point, kind, device = best
    if kind != "ext4":
        return kind
    try:
        options = Path("/proc/fs/ext4", os.path.basename(os.path.realpath(device)), "options").read_text()
    except OSError:
        return kind
    return f"{kind} with a journal" if "data=" in options else f"{kind} without a journal"


def create_cost(directory: Path) -> float:
    """Create small files and rename each.

    After mass deletes an ext4 without a journal creates files twenty times slower for minutes, and other programs use
    the disk, too; so this is measured beside every figure. The files are left, since deleting them would do just that.

    Args:
        directory: A new directory is made in it.

    Returns:
        Seconds a file, the median: it tells of the disk, not of who else was running.
    """
    probe = directory / "probe"
    probe.mkdir()
    costs = []
    for number in range(PROBE_FILES):
        began = time.monotonic()
        fd = os.open(probe / f"new{number}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        os.write(fd, b"x" * 100)
        os.close(fd)
        os.rename(probe / f"new{number}", probe / f"{number}")
        costs.append(time.monotonic() - began)
    return statistics.median(costs)


def _processor() -> str:
    with open("/proc/cpuinfo", encoding="utf-8") as info:
        for line in info:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()
