"""What kind of file system a directory lies on."""

from __future__ import annotations

import contextlib
from typing import Final

__all__ = ["is_local", "mount_of"]

_LOCAL: Final = frozenset({"bcachefs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "jfs", "tmpfs", "xfs", "zfs"})
"""File systems that nobody writes to but through this kernel, which tells of it. On NFS or CIFS, behind FUSE, on 9p and
virtiofs others may write unseen, below an overlay as well."""


def is_local(fd: int) -> bool:
    """Whether inotify tells of all that happens to a directory; False if that is not known.

    Args:
        fd: A descriptor of the directory.
    """
    mount = mount_of(fd)
    with contextlib.suppress(OSError), open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as mounts:
        for line in mounts:  # proc(5): the mount's id comes first, the type behind a lone "-"
            if line.split(" ", 1)[0] == mount:
                return line.partition(" - ")[2].split(" ", 1)[0] in _LOCAL
    return False


def mount_of(fd: int) -> str | None:
    """Which mount something lies on, or None if that is not known."""
    with contextlib.suppress(OSError), open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as info:
        return next((line.split()[1] for line in info if line.startswith("mnt_id:")), None)
    return None
