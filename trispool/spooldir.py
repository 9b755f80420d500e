"""A spool directory: the blocking file work, shared by the service, its workers and producers in any process.

The rules it keeps:

1. A spool file appears whole or not at all. It is written under `.trispool/tmp` and renamed into place, so whoever sees
   its name (we, or a real uWSGI) can run it.
2. Who runs a task holds a write lock on its file (`trispool.claimed`).
3. Nothing is deleted but what ran well, or what an operator has cancelled. What cannot be read is moved to
   `.trispool/dead`.
4. `at` is the file's mtime (`core/spooler.c`, `uwsgi_spool_request`), with its fraction, which uWSGI drops.

    <directory>/uwsgi_spoolfile_on_…          waiting, without priority
    <directory>/<digits>/uwsgi_spoolfile_on_… waiting, with priority
    <directory>/.trispool/tmp/                being written
    <directory>/.trispool/dead/               set aside for a person; moving a file back runs it again
    <directory>/.trispool/held/[<digits>/]    told to wait by an operator; the same

A task is known by its `ref`, the path below the directory, and by its id, the file's name.

The directory is the one that its path leads to: one that a person has put in the place of another is gone over to
(`SpoolDirectory.follow`), and while there is none no task is taken. Nobody would find it where the old one has gone.
"""

from __future__ import annotations

import contextlib
import os
import stat
import threading
import time
from typing import TYPE_CHECKING, Final

from trispool import spoolfile, spoolshelves
from trispool.claimed import ClaimedFile, Gone, NotDue, Settling, Unreadable, open_locked, read_task
from trispool.errors import MalformedSpoolFile, TrispoolError
from trispool.folders import make_folder
from trispool.spoolscan import DEAD, HELD, STATE_DIR, TMP, entry_of, lying_in, priorities, scan
from trispool.spoolwriter import NANO, SpoolWriter, unavailable

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Mapping, Sequence

    from trispool.spoolscan import Stamps
    from trispool.task import Entry, NewTask

__all__ = ["GRACE_SECONDS", "SpoolDirectory"]


GRACE_SECONDS: Final = 5.0
"""A short or empty file may still be in the making until it has not changed for this long; then it is set aside."""

STALE_TMP_SECONDS: Final = 3600.0
"""What lies this long under `.trispool/tmp` was left by a process that died; nobody was told that it is kept."""

_FOLDER_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class SpoolDirectory:
    """One spool directory, opened.

    Methods may be called from several threads.

    Args:
        path: The directory.
        fsync: Whether `add` returns only when files and directory are on disk.
        create: Whether to make the directory if it is missing.

    Attributes:
        path: The directory, absolute.
        fd: A descriptor of it, the same for good.
        replaced: How often it was found to be another one.

    Raises:
        OSError: It cannot be opened or made.
    """

    def __init__(self, path: str | os.PathLike[str], *, fsync: bool = False, create: bool = True) -> None:
        self.path = os.path.realpath(path)
        self._fsync = fsync
        self._writer: SpoolWriter | None = None
        self._following = threading.Lock()
        self.replaced = 0
        if create:
            make_folder(self.path, 0o750, fsync=fsync)
        self.fd = os.open(self.path, _FOLDER_FLAGS)
        if create:
            try:
                self._ensure_writer()
            except BaseException:
                os.close(self.fd)
                raise

    def _ensure_writer(self) -> SpoolWriter:
        """Make our own folders in the spool. Whoever only looks leaves nothing behind."""
        if self._writer is None:
            self._writer = SpoolWriter(self.path, self.fd, self._open_temporary(), fsync=self._fsync)
        return self._writer

    def _open_temporary(self) -> int:
        self._make_folders()
        return os.open(TMP, _FOLDER_FLAGS, dir_fd=self.fd)

    def _make_folders(self) -> None:
        for name in (STATE_DIR, TMP, DEAD, HELD):
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, 0o700, dir_fd=self.fd)

    def follow(self) -> None:
        """Go over to the directory that the path leads to now, if it is another one, or has lost our folders.

        Raises:
            OSError: There is none, or it cannot be used.
        """
        # One look at the deepest of them tells of all.
        if self._writer is not None and _is_at(self._writer.temporary, f"{self.path}/{TMP}"):
            return
        with self._following:
            if not _is_at(self.fd, self.path):
                there = os.open(self.path, _FOLDER_FLAGS)
                try:
                    # In place, since others hold the descriptor's number.
                    os.dup2(there, self.fd, inheritable=False)
                finally:
                    os.close(there)
                self.replaced += 1
            if self._writer is not None and not _is_at(self._writer.temporary, f"{self.path}/{TMP}"):
                self._writer.move(self._open_temporary())

    def close(self) -> None:
        """Close the directory. Claimed files stay claimed."""
        if self._writer is not None:
            self._writer.close()
        os.close(self.fd)

    def absolute(self, ref: str) -> str:
        """The absolute path of a task's file."""
        return f"{self.path}/{ref}"

    @property
    def broken(self) -> str | None:
        """Why it takes no more tasks, or None."""
        return self._writer.broken if self._writer else None

    def add(self, tasks: Sequence[NewTask]) -> list[Entry | TrispoolError]:
        """Keep new tasks; see `SpoolWriter.add`."""
        try:
            writer = self.writer()
        except OSError as error:
            return [unavailable(error)] * len(tasks)
        return writer.add(tasks)

    def writer(self) -> SpoolWriter:
        """Who writes files into the directory that is there now.

        Raises:
            OSError: There is none, or it cannot be used.
        """
        self.follow()
        return self._ensure_writer()

    def watched(self) -> None:
        """Somebody watches the directory and will ask `was_published` of what appears there."""
        self._ensure_writer().watched()

    def was_published(self, ref: str) -> bool:
        """Whether `add` put this file there; said once of each, and only of those since `watched`."""
        return self._writer is not None and self._writer.was_published(ref)

    def was_let_go(self, ref: str) -> bool:
        """See `SpoolWriter.was_let_go`."""
        return self._writer is not None and self._writer.was_let_go(ref)

    # Running tasks

    def claim(self, ref: str, now: float | None = None) -> ClaimedFile:
        """Take a task to run it.

        Args:
            ref: The task.
            now: Unix seconds; None: the system's clock.

        Raises:
            Gone: There is no such file.
            Locked: Somebody else runs it.
            NotDue: It is for later.
            Settling: It is incomplete but young.
            Unreadable: It is no spool file.
        """
        fd = self._open_locked(ref)
        try:
            status = os.fstat(fd)
            at = status.st_mtime_ns / NANO
            if status.st_nlink == 0:
                raise Gone
            if not stat.S_ISREG(status.st_mode):
                raise Unreadable("not a regular file")
            if now is None:
                now = time.time()
            is_early = at > now
            if is_early and spoolfile.due_at(at, spoolfile.order_of(ref.rpartition("/")[2], at), now) > now:
                raise NotDue(at)
            try:
                payload, vars_, body = read_task(fd, status.st_size)
                if is_early and b"at" in vars_:
                    raise NotDue(at)
            except MalformedSpoolFile as error:
                if error.incomplete and now - status.st_ctime_ns / NANO < GRACE_SECONDS:
                    raise Settling from None
                raise Unreadable(str(error)) from None
        except BaseException:
            os.close(fd)
            raise
        return ClaimedFile(fd, ref, payload, vars_, body, at, self._unlink)

    def _open_locked(self, ref: str) -> int:
        try:
            return open_locked(self.fd, ref)
        except Gone:
            before = self.replaced
            with contextlib.suppress(OSError):
                self.follow()
            if self.replaced == before:
                raise
            return open_locked(self.fd, ref)

    # Out of the way, and back: see `trispool.spoolshelves`. None: it is gone, or somebody else is at work on it.

    def set_aside(self, ref: str) -> Entry | None:
        """Move a file to `.trispool/dead`, whatever is in it."""
        self.follow()
        return spoolshelves.set_aside(self.fd, ref, fsync=self._fsync)

    def hold(self, ref: str) -> Entry | None:
        """Move a file to `.trispool/held`."""
        self.follow()
        return spoolshelves.hold(self.fd, ref, fsync=self._fsync)

    def restore(self, ref: str, at: float | None = None) -> Entry | None:
        """Move a file back from there; due at a time, Unix seconds, or when it was."""
        self.follow()
        return spoolshelves.restore(self.fd, ref, at, fsync=self._fsync)

    def reschedule(self, ref: str, at: float) -> Entry | None:
        """Make a task due at a time, Unix seconds."""
        self.follow()
        return spoolshelves.reschedule(self.fd, ref, at)

    def remove(self, ref: str) -> Mapping[bytes, bytes] | None:
        """Delete a task, and tell its vars."""
        self.follow()
        return spoolshelves.remove(self.fd, ref)

    def _unlink(self, ref: str, fd: int) -> None:
        try:
            os.unlink(ref, dir_fd=self.fd)
        except FileNotFoundError:
            status = os.fstat(fd)
            name = ref.rpartition("/")[2]
            for folder in ("", *(f"{folder}/" for folder in self.priorities())):
                with contextlib.suppress(OSError):
                    there = os.stat(folder + name, dir_fd=self.fd, follow_symlinks=False)
                    if (there.st_ino, there.st_dev) == (status.st_ino, status.st_dev):
                        os.unlink(folder + name, dir_fd=self.fd)

    # Looking

    def look(self, ref: str) -> Entry | None:
        """One file as it is now, or None if it is no spool file or gone."""
        folder, _, name = ref.rpartition("/")
        priority = spoolfile.is_priority_name(folder) if folder else None
        if not spoolfile.is_spool_name(name) or (folder and priority is None):
            return None
        try:
            status = os.stat(ref, dir_fd=self.fd, follow_symlinks=False)
        except OSError:
            return None
        if not stat.S_ISREG(status.st_mode):
            return None
        return entry_of(name, ref, status, priority, time.time())

    def present(self, names: Iterable[str]) -> set[str]:
        """Those of some tasks that have a file: waiting, held or set aside."""
        folders = [""]
        for place in ("", HELD, DEAD):
            with contextlib.suppress(FileNotFoundError):
                prefix = place and f"{place}/"
                folders += [prefix, *(f"{prefix}{folder}/" for folder in priorities(f"{self.path}/{place}"))]
        return {name for name in names if any(self._is_there(folder + name) for folder in folders)}

    def _is_there(self, ref: str) -> bool:
        try:
            os.stat(ref, dir_fd=self.fd, follow_symlinks=False)
        except OSError:
            return False
        return True

    def scan(
        self, foreign: dict[str, str] | None = None, stamps: Stamps | None = None
    ) -> Generator[list[Entry], None, None]:
        """All spool files; see `trispool.spoolscan.scan`."""
        return scan(self.path, {} if foreign is None else foreign, stamps)

    def priorities(self) -> list[str]:
        """The names of the priority directories, the most urgent first."""
        return priorities(self.path)

    def names(self) -> list[str]:
        """The absolute paths of all waiting tasks, those for later included."""
        return [self.absolute(entry.ref) for chunk in self.scan() for entry in chunk]

    def dead(self) -> list[Entry]:
        """What has been set aside; `ref` is then the path below the spool directory, too.

        Raises:
            OSError: It cannot be read.
        """
        return lying_in(self.path, DEAD)[0]

    def held(self) -> list[Entry]:
        """What an operator has told to wait; the same."""
        return lying_in(self.path, HELD)[0]

    def read(self, ref: str, body_limit: int | None = None) -> tuple[Mapping[bytes, bytes], bytes]:
        """The vars and body of a task, without claiming it.

        Args:
            ref: The task.
            body_limit: Read so many bytes of the body at most.

        Raises:
            Gone: There is no such file.
            Unreadable: It is no spool file, or not yet.
        """
        try:
            fd = os.open(ref, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=self.fd)
        except FileNotFoundError:
            raise Gone from None
        except OSError as error:
            raise Unreadable(error.strerror or str(error)) from error
        try:
            _, vars_, body = read_task(fd, os.fstat(fd).st_size, body_limit)
            return vars_, body
        except (MalformedSpoolFile, OSError) as error:
            raise Unreadable(str(error)) from None
        finally:
            os.close(fd)

    def clean(self) -> int:
        """Remove what processes that died left half written, or half moved.

        Returns:
            How many files that were.
        """
        aside = [entry.ref for entry in (*self.dead(), *self.held())]
        removed = spoolshelves.mend(self.fd, aside, self.priorities()) if aside else 0
        with os.scandir(f"{self.path}/{TMP}") as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    if time.time() - entry.stat(follow_symlinks=False).st_ctime > STALE_TMP_SECONDS:
                        os.unlink(f"{TMP}/{entry.name}", dir_fd=self.fd)
                        removed += 1
        return removed


def _is_at(fd: int, path: str) -> bool:
    """Whether a path leads to what a descriptor is of."""
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except FileNotFoundError:
        return False
