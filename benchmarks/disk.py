"""A fresh ext4 with a journal, so that a run does not depend on what others have done to the disk before."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["fresh"]

BYTES: Final = 24 << 30
"""The file is sparse: it takes what is written, some 8 GB of a run with a million tasks, each in a block of 4 KB."""

INODES: Final = 4_000_000


@contextlib.contextmanager
def fresh() -> Iterator[Path]:
    """A directory on one; where none can be mounted, the system's temporary directory."""
    folder = Path(tempfile.mkdtemp(prefix="bench-disk-"))
    folder.chmod(0o711)  # Redis and PostgreSQL run as users of their own
    image, point = folder / "image", folder / "mounted"
    point.mkdir()
    try:
        if _mounted(image, point):
            try:
                yield point
            finally:
                # Lazily: whoever still has a file open there keeps it, and not the mount.
                subprocess.run(["umount", "--lazy", os.fspath(point)], check=True)
        else:
            yield folder
    finally:
        shutil.rmtree(folder)


def _mounted(image: Path, point: Path) -> bool:
    if os.getuid():
        return False
    with image.open("wb") as file:
        file.truncate(BYTES)
    # The inodes' tables are zeros already; else the kernel would write them while something is measured.
    make = ["mkfs.ext4", "-q", "-F", "-N", str(INODES), "-E", "assume_storage_prezeroed=1", os.fspath(image)]
    try:
        for command in (make, ["mount", "-o", "loop", os.fspath(image), os.fspath(point)]):
            subprocess.run(command, check=True, capture_output=True, env={**os.environ, "PATH": f"{os.defpath}:/sbin"})
    except (OSError, subprocess.CalledProcessError):
        image.unlink()
        return False
    return True
