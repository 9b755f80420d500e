"""Which file systems count as local, compared with what stat(1) says of them."""

from __future__ import annotations

import os
import subprocess

import pytest

from trispool import mounts

LOCAL = {"bcachefs", "btrfs", "ext2/ext3", "f2fs", "jfs", "tmpfs", "xfs", "zfs"}


@pytest.mark.parametrize("path", ["/", "/dev/shm", "/proc", "/sys", "/tmp"])
def test_a_directory_is_local_if_its_file_system_is(path: str) -> None:
    if not os.path.isdir(path):
        pytest.skip(f"there is no {path}")
    kind = subprocess.run(["stat", "-f", "-c", "%T", path], check=True, capture_output=True, text=True).stdout.strip()
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    assert mounts.is_local(fd) is (kind in LOCAL)
    os.close(fd)


def test_what_is_not_known_is_not_local() -> None:
    assert not mounts.is_local(-1)
