"""Folders that no power cut takes: the disk has their names when something is put into them. Blocking."""

from __future__ import annotations

import contextlib
import os

__all__ = ["make_folder", "sync_folder"]


def make_folder(path: str | os.PathLike[str], mode: int, *, fsync: bool = True) -> None:
    """Make a folder if it is not there.

    Args:
        path: Where.
        mode: Its permissions; what has to be made for it has those of the umask.
        fsync: Whether it, and what had to be made for it, has to be on disk.

    Raises:
        OSError: It cannot be made, or may not have reached the disk.
    """
    above = os.path.dirname(os.path.abspath(path))
    first = above
    while not os.path.isdir(first):
        first = os.path.dirname(first)
    os.makedirs(path, mode=mode, exist_ok=True)
    # Also if it was there: whoever made it need not have seen to it that it reaches the disk.
    while fsync:
        with contextlib.suppress(PermissionError):  # who may not read a folder can still use what is in it
            sync_folder(above)
        if above == first:
            break
        above = os.path.dirname(above)


def sync_folder(path: str, above: int | None = None) -> None:
    """Have the names in a folder reach the disk.

    Args:
        path: The folder.
        above: A descriptor of the folder that `path` begins at.

    Raises:
        OSError: They may not have.
    """
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=above)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
