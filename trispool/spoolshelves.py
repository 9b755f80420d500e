"""Taking spool files out of the way and putting them back, changing their time, removing them.

Rules it keeps:

1. Whatever is done to a file is done under its lock (`trispool.claimed`), so never to one that somebody runs.
2. A file is never put over another one: if there is one of its name, it gets `.1`, `.2`, … behind it.
3. A file that moves is linked to its new place first and then removed from the old one. After a crash between the two
   it lies in both; `mend` then removes the one that lies aside, since nobody was told that the move has been made. The
   disk may see to the removal first, so between the two the new place has to reach it.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import stat
from typing import TYPE_CHECKING

from trispool import spoolfile
from trispool.claimed import Settling, Unclaimable, open_locked, read_task
from trispool.errors import MalformedSpoolFile, TaskRefused
from trispool.folders import sync_folder
from trispool.spoolscan import DEAD, HELD, STATE_DIR, entry_of
from trispool.spoolwriter import NANO

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from trispool.task import Entry

__all__ = ["hold", "mend", "priority_of", "remove", "reschedule", "restore", "set_aside"]

# In all of them `spool` is a descriptor of the spool directory, and `ref` a file's path below it; OSError is raised if
# the system does not let it be done. None: the file is gone, or is no regular file, or somebody is at work on it.
# `fsync`: whether the file must not be lost by a power cut. (That it has been moved may be.)


def hold(spool: int, ref: str, *, fsync: bool = False) -> Entry | None:
    """Move a file that waits to `.trispool/held`, below the name of its priority directory if it is in one."""
    folder = os.path.dirname(ref)
    with _locked(spool, ref) as fd:
        return None if fd is None else _move(spool, fd, ref, f"{HELD}/{folder}" if folder else HELD, fsync=fsync)


def set_aside(spool: int, ref: str, *, fsync: bool = False) -> Entry | None:
    """Move a file that waits to `.trispool/dead`."""
    with _locked(spool, ref) as fd:
        return None if fd is None else _move(spool, fd, ref, DEAD, fsync=fsync)


def restore(spool: int, ref: str, at: float | None, *, fsync: bool = False) -> Entry | None:
    """Move a file from `.trispool/held` or `.trispool/dead` to where it is run, in the directory of its priority.

    Args:
        spool: See above.
        ref: See above.
        at: Unix seconds from which on it may run; None: as it is.
        fsync: See above.

    Raises:
        TaskRefused: The file system cannot hold a time that late.
    """
    with _locked(spool, ref) as fd:
        if fd is None:
            return None
        folder = os.path.dirname(ref)[len(HELD) + 1 :] if ref.startswith(f"{HELD}/") else _priority_of(fd)
        before = None if at is None else _set_time(fd, at)
        try:
            return _move(spool, fd, ref, folder, fsync=fsync)
        except OSError:
            if before is not None:
                os.utime(fd, ns=(before, before))
            raise


def reschedule(spool: int, ref: str, at: float) -> Entry | None:
    """Give a file that waits another time, Unix seconds. Raises as `restore`."""
    with _locked(spool, ref) as fd:
        if fd is None:
            return None
        _set_time(fd, at)
        return _entry(fd, ref)


def remove(spool: int, ref: str) -> Mapping[bytes, bytes] | None:
    """Delete a file, wherever it lies.

    Returns:
        Its vars; none if they cannot be read.
    """
    with _locked(spool, ref) as fd:
        if fd is None:
            return None
        vars: Mapping[bytes, bytes] = {}
        # Whatever is in it: it is to go.
        with contextlib.suppress(MalformedSpoolFile, OSError):
            _, vars, _ = read_task(fd, os.fstat(fd).st_size, 0)
        try:
            os.unlink(ref, dir_fd=spool)
        except FileNotFoundError:
            return None
        return vars


def mend(spool: int, refs: Sequence[str], folders: Sequence[str]) -> int:
    """Finish moves that a crash has cut short; see rule 3.

    Args:
        spool: See above.
        refs: The files that lie aside.
        folders: The priority directories.

    Returns:
        How many those were.
    """
    mended = 0
    for ref in refs:
        with contextlib.suppress(OSError):
            if os.stat(ref, dir_fd=spool, follow_symlinks=False).st_nlink < 2:
                continue
            with _locked(spool, ref) as fd:
                if fd is not None and _waits_too(spool, fd, os.path.basename(ref), folders):
                    os.unlink(ref, dir_fd=spool)
                    mended += 1
    return mended


def _waits_too(spool: int, fd: int, name: str, folders: Sequence[str]) -> bool:
    stem, _, number = name.rpartition(".")
    names = (name, stem) if number.isdecimal() else (name,)
    return any(
        _is(spool, (folder and f"{folder}/{known}") or known, fd) for folder in ("", *folders) for known in names
    )


def _is(spool: int, ref: str, fd: int) -> bool:
    """Whether a descriptor is of the file at `ref`."""
    try:
        return os.path.samestat(os.stat(ref, dir_fd=spool, follow_symlinks=False), os.fstat(fd))
    except (FileNotFoundError, NotADirectoryError):
        return False


@contextlib.contextmanager
def _locked(spool: int, ref: str) -> Iterator[int | None]:
    try:
        fd = open_locked(spool, ref)
    except Settling as error:
        raise OSError(None, str(error)) from error
    except Unclaimable:
        yield None
        return
    try:
        # Whoever had the lock before may have moved or removed it.
        yield fd if stat.S_ISREG(os.fstat(fd).st_mode) and _is(spool, ref, fd) else None
    finally:
        os.close(fd)


def _move(spool: int, fd: int, ref: str, folder: str, *, fsync: bool) -> Entry | None:
    _make_folder(spool, folder)
    name = os.path.basename(ref)
    for number in itertools.count():
        target = f"{folder and folder + '/'}{name}{f'.{number}' if number else ''}"
        try:
            os.link(ref, target, src_dir_fd=spool, dst_dir_fd=spool, follow_symlinks=False)
        except FileExistsError:
            continue
        except FileNotFoundError:
            if not _is(spool, ref, fd):
                return None
            raise
        break
    try:
        if fsync:
            # With the folders above: whoever made them need not have seen to it.
            for part in (folder, *_above(folder)):
                sync_folder(part or ".", spool)
        # A person may have been quicker.
        with contextlib.suppress(FileNotFoundError):
            os.unlink(ref, dir_fd=spool)
    except OSError:
        os.unlink(target, dir_fd=spool)
        raise
    return _entry(fd, target)


def _make_folder(spool: int, folder: str) -> None:
    made = ""
    for part in folder.split("/") if folder else ():
        made = f"{made}/{part}" if made else part
        try:
            os.mkdir(made, 0o700 if made.startswith(STATE_DIR) else 0o777, dir_fd=spool)
        except FileExistsError:
            # A link by that name would lead out of the spool, where nobody looks.
            if not stat.S_ISDIR(os.stat(made, dir_fd=spool, follow_symlinks=False).st_mode):
                raise


def _above(folder: str) -> Iterator[str]:
    while folder:
        folder = os.path.dirname(folder)
        yield folder


def _entry(fd: int, ref: str) -> Entry:
    folder, _, name = ref.rpartition("/")
    return entry_of(name, ref, os.fstat(fd), spoolfile.is_priority_name(os.path.basename(folder)), math.inf)


def _priority_of(fd: int) -> str:
    """The directory for a task that was set aside, which is told by its var; empty if it has none."""
    try:
        _, vars, _ = read_task(fd, os.fstat(fd).st_size, 0)
    except MalformedSpoolFile:
        return ""
    priority = priority_of(vars)
    return "" if priority is None else str(priority)


def priority_of(vars: Mapping[bytes, bytes]) -> int | None:
    """The priority that a task was enqueued with."""
    return spoolfile.is_priority_name(vars.get(b"priority", b"").decode(errors="replace"))


def _set_time(fd: int, at: float) -> int:
    """Set a file's time.

    Returns:
        What it was, nanoseconds.
    """
    before = os.fstat(fd).st_mtime_ns
    wanted = int(at) * NANO + round(at % 1 * NANO)
    os.utime(fd, ns=(wanted, wanted))
    if abs(os.fstat(fd).st_mtime_ns - wanted) > NANO:
        # XFS without bigtime ends in 2038 and clamps silently.
        os.utime(fd, ns=(before, before))
        raise TaskRefused(f"at={at}: the file system of the spool cannot hold a time that late")
    return before
