"""Putting new files into a spool directory: whole or not at all, and on disk before anybody is told."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import random
import socket
import stat
import time
from typing import TYPE_CHECKING, Final

from trispool import spoolfile
from trispool.errors import SpoolUnavailable, TaskRefused, TrispoolError
from trispool.task import Entry, NewTask

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["NANO", "SpoolWriter", "nanoseconds", "new_name", "new_names", "unavailable", "write_all"]

NANO: Final = 1_000_000_000
"""Nanoseconds in a second. An int: `ns / NANO` is then rounded once, and an `at` comes back as it was given."""


MAX_PUBLISHED: Final = 100_000
"""Files whose event has not come; more means that events are lost, and forgetting costs a needless look each."""


# The host's name is the only free part of a spool file's name; a "/" in it would be a path.
_HOSTNAME: Final = socket.gethostname().replace("/", "_") or "localhost"
_counter = itertools.count(1)


def new_name() -> tuple[str, tuple[int, int]]:
    """A name for a spool file of this process, like no other anywhere, and its `Entry.order`."""
    return new_names(1)[0]


def new_names(count: int) -> list[tuple[str, tuple[int, int]]]:
    """So many names as of `new_name`, for tasks that come together."""
    seconds, microseconds = divmod(time.time_ns() // 1000, 1_000_000)
    at = seconds * 1_000_000 + microseconds
    counters = list(itertools.islice(_counter, count))
    names = spoolfile.new_names(_HOSTNAME, os.getpid(), counters, random.getrandbits(31), seconds, microseconds)
    return [(name, (at, counter)) for name, counter in zip(names, counters, strict=True)]


class SpoolWriter:
    """Writes tasks as spool files.

    After a failed fsync it takes no more tasks: what the page cache then holds is unknown, and a second fsync would
    claim success for what is lost.

    Args:
        path: The spool directory, for messages.
        folder: A descriptor of it.
        temporary: A descriptor, owned from now on, of a directory on the same file system, for files in the making.
        fsync: Whether `add` returns only when files and directory are on disk.

    Attributes:
        broken: Why it takes no more tasks, or None.
        temporary: The descriptor for files in the making.
        fsync: As given.
    """

    def __init__(self, path: str, folder: int, temporary: int, *, fsync: bool) -> None:
        self.broken: str | None = None
        self._path = path
        self._folder = folder
        self.temporary = temporary
        self.fsync = fsync
        self._on_disk = {""}  # priority directories that are known to be
        self._published: set[str] | None = None
        self._let_go: set[str] = set()

    def close(self) -> None:
        """Take no more tasks."""
        os.close(self.temporary)

    def move(self, temporary: int) -> None:
        """Make files elsewhere from now on: in a directory whose descriptor is owned from now on."""
        self._on_disk = {""}
        os.dup2(temporary, self.temporary, inheritable=False)
        os.close(temporary)

    def was_published(self, ref: str) -> bool:
        """Whether this writer put a file there, said once of each; False if nobody had `watched` then."""
        if self._published is None or ref not in self._published:
            return False
        self._published.discard(ref)
        return True

    def watched(self) -> None:
        """Remember what is published from now on, until `was_published` is asked. What was remembered is forgotten."""
        self._published = set()
        self._let_go = set()

    def lets_go(self, ref: str) -> None:
        """A file that has been published is about to be closed, which can be seen."""
        if self._published is not None and len(self._let_go) < MAX_PUBLISHED:
            self._let_go.add(ref)

    def was_let_go(self, ref: str) -> bool:
        """Whether this writer closed a file that it had published; said once of each."""
        if ref not in self._let_go:
            return False
        self._let_go.discard(ref)
        return True

    def add(self, tasks: Sequence[NewTask]) -> list[Entry | TrispoolError]:
        """Keep new tasks, one file each; with `fsync` all of them share the directory's.

        Returns:
            For each task, in order, its file, or why there is none.
        """
        written: list[tuple[str, Entry] | TrispoolError] = [self._write_or_refuse(task) for task in tasks]
        results: list[Entry | TrispoolError] = []
        touched: set[str] = set()
        for item in written:
            if isinstance(item, TrispoolError):
                results.append(item)
                continue
            temporary, entry = item
            try:
                self.publish(temporary, entry, touched)
            except TaskRefused as error:
                self.discard(temporary)
                results.append(error)
            except OSError as error:
                self.discard(temporary)
                results.append(unavailable(error))
            else:
                results.append(entry)
        if self.fsync and touched:
            try:
                self.sync_folders(touched)
            except OSError as error:
                return self._take_back(results, error)
        return results

    def _write_or_refuse(self, task: NewTask) -> tuple[str, Entry] | TrispoolError:
        if self.broken is not None:
            return SpoolUnavailable(self.broken)
        # While it is written it has a name of its own: an earlier try with the given one may have left a file.
        temporary, order = new_name()
        try:
            status = self._write(temporary, task)
        except TrispoolError as error:
            return error
        except OSError as error:
            return unavailable(error)
        name, at = temporary, status.st_mtime_ns / NANO
        if task.id is not None:
            name, order = task.id, spoolfile.order_of(task.id, at)
        ref = name if task.priority is None else f"{task.priority}/{name}"
        return temporary, Entry(name, ref, at, task.priority, order)

    def _write(self, name: str, task: NewTask) -> os.stat_result:
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC
        fd = os.open(name, flags, 0o600, dir_fd=self.temporary)
        try:
            write_all(fd, spoolfile.encode(task.payload, task.body))
            if task.at:
                at_ns = nanoseconds(task.at)
                os.utime(fd, ns=(at_ns, at_ns))
            status = os.fstat(fd)
            if task.at and abs(status.st_mtime_ns - at_ns) > NANO:
                # XFS without bigtime ends in 2038 and clamps silently: the task would run at the wrong time.
                raise TaskRefused(f"at={task.at}: the file system of {self._path} cannot hold a time that late")
            if self.fsync:
                self._fsync_or_break(fd)
        except BaseException:
            self.discard(name)
            raise
        finally:
            os.close(fd)
        return status

    def publish(self, temporary: str, entry: Entry, touched: set[str]) -> None:
        """Put a file that has been made into its place.

        Args:
            temporary: Its name now.
            entry: The task.
            touched: The folders that have to reach the disk; what has changed is added.

        Raises:
            TaskRefused: The name was given, and is taken.
            OSError: It is not possible.
        """
        ref = entry.ref
        folder = os.path.dirname(ref)
        if folder:
            try:
                os.mkdir(folder, 0o777, dir_fd=self._folder)
                touched.add("")
            except FileExistsError:
                # A link by that name would lead out of the spool, where nobody scans.
                if not stat.S_ISDIR(os.stat(folder, dir_fd=self._folder, follow_symlinks=False).st_mode):
                    raise
                # Whoever made it, a worker or a uWSGI, need not have seen to it that it reaches the disk.
                if folder not in self._on_disk:
                    touched.add("")
        if self._published is not None:
            if len(self._published) >= MAX_PUBLISHED:
                self._published.clear()
            self._published.add(ref)  # before anybody can see the file
        if entry.id == temporary:
            os.rename(temporary, ref, src_dir_fd=self.temporary, dst_dir_fd=self._folder)
        else:
            # A name that was given may be taken, and a rename would overwrite what is there.
            try:
                os.link(temporary, ref, src_dir_fd=self.temporary, dst_dir_fd=self._folder, follow_symlinks=False)
            except FileExistsError:
                raise TaskRefused(f"there is a task {entry.id!r} already", status=409) from None
            self.discard(temporary)
        touched.add(folder)

    def sync_folders(self, touched: Iterable[str]) -> None:
        """Have what `publish` touched reach the disk.

        Raises:
            OSError: It may not have.
        """
        for folder in touched:
            self._fsync_folder(folder)
        self._on_disk |= set(touched)

    def _fsync_folder(self, folder: str) -> None:
        if not folder:
            self._fsync_or_break(self._folder)
            return
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._folder)
        try:
            self._fsync_or_break(fd)
        finally:
            os.close(fd)

    def _fsync_or_break(self, fd: int) -> None:
        try:
            os.fsync(fd)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                self.broken = (
                    f"{self._path} takes no more tasks since an fsync failed ({error.strerror}): restart to retry"
                )
            raise

    def _take_back(self, results: Iterable[Entry | TrispoolError], error: OSError) -> list[Entry | TrispoolError]:
        """Nobody may be told that these are kept, so they had better not run either."""
        for result in results:
            if isinstance(result, Entry):
                with contextlib.suppress(OSError):
                    self.take_back(result.ref)
        return [result if isinstance(result, TrispoolError) else unavailable(error) for result in results]

    def take_back(self, ref: str) -> None:
        """Remove a file that has been published."""
        os.unlink(ref, dir_fd=self._folder)

    def discard(self, temporary: str) -> None:
        """Remove a file that has been made and not been published."""
        with contextlib.suppress(OSError):
            os.unlink(temporary, dir_fd=self.temporary)


def nanoseconds(at: float) -> int:
    """An `at`, Unix seconds, as an mtime."""
    return int(at) * NANO + round(at % 1 * NANO)


def unavailable(error: OSError) -> SpoolUnavailable:
    """The refusal that follows from an error of the system."""
    return SpoolUnavailable(f"the task could not be written: {error.strerror or error}")


def write_all(fd: int, data: bytes) -> None:
    """Write all of it, or raise an OSError."""
    written = os.write(fd, data)
    while written < len(data):  # a short write: the disk is nearly full, the next one tells
        written += os.write(fd, memoryview(data)[written:])
