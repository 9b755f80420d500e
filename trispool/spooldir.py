"""A spool directory: the blocking file work, shared by the service, its workers and producers in any process.

The rules it keeps:

1. A spool file appears whole or not at all. It is written under `.trispool/tmp` and renamed into place, so whoever sees
   its name (we, or a real uWSGI) can run it.
2. Who runs a task holds a write lock on its file. Ours are open-file-description locks: they conflict with the POSIX
   record locks of uWSGI (`core/lock.c`, `uwsgi_fcntl_is_locked`) but, unlike those, survive a handler that opens and
   closes its own spool file.
3. Nothing is deleted but what ran well. What cannot be read is moved to `.trispool/dead`.
4. `at` is the file's mtime (`core/spooler.c`, `uwsgi_spool_request`), with its fraction, which uWSGI drops.

    <directory>/uwsgi_spoolfile_on_…          waiting, without priority
    <directory>/<digits>/uwsgi_spoolfile_on_… waiting, with priority
    <directory>/.trispool/tmp/                being written
    <directory>/.trispool/dead/               set aside for a person; moving a file back runs it again

A task is known by its `ref`, the path below the directory, and by its id, the file's name.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import os
import random
import socket
import stat
import struct
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from trispool import spoolfile
from trispool.errors import MalformedSpoolFile, SpoolUnavailable, TaskRefused, TrispoolError
from trispool.task import NewTask

__all__ = [
    "ClaimedFile",
    "Found",
    "Gone",
    "Locked",
    "NotDue",
    "Settling",
    "SpoolDirectory",
    "Unclaimable",
    "Unreadable",
]

SETTLE_SECONDS: Final = 1.0
"""A file that appeared by itself and was not closed by its writer is left alone this long (a link, a slow copy)."""

GRACE_SECONDS: Final = 5.0
"""A short or empty file may still be in the making until it has not changed for this long; then it is set aside."""

STALE_TMP_SECONDS: Final = 3600.0
"""What lies this long under `.trispool/tmp` was left by a process that died; nobody was told that it is kept."""

SCAN_CHUNK: Final = 256
"""Files looked at (about 3 µs each) before a scan hands over what it found."""

_WRITE_LOCK: Final = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
_OPEN_CLAIM: Final = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_STATE_DIR: Final = ".trispool"


class Unclaimable(TrispoolError):
    """The task cannot be run now."""


class Gone(Unclaimable):
    """The file is no longer there."""


class Locked(Unclaimable):
    """Somebody else is at work on the file."""


class Settling(Unclaimable):
    """The file is incomplete, but young: its writer may not have finished."""


class NotDue(Unclaimable):
    """The task is for later.

    Args:
        at: Unix seconds from which on it may run.
    """

    def __init__(self, at: float) -> None:
        super().__init__()
        self.at = at


class Unreadable(Unclaimable):
    """The file is no spool file.

    Args:
        reason: What is wrong with it.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Found:
    """A spool file as a look at the directory shows it.

    Attributes:
        ref: Its path below the spool directory.
        at: Its mtime, Unix seconds.
        priority: The number of its priority directory, or None.
        changed_at: Its ctime, Unix seconds.
    """

    ref: str
    at: float
    priority: int | None
    changed_at: float

    @property
    def id(self) -> str:
        """The task's id: the file's name."""
        return self.ref.rpartition("/")[2]

    @property
    def order(self) -> tuple[int, int]:
        """When it was enqueued: microseconds since 1970, and the writer's counter."""
        return spoolfile.order_of(self.id, self.at)


class ClaimedFile:
    """A spool file that is ours to run until it is closed.

    Attributes:
        ref: Its path below the spool directory.
        vars: The task's vars.
        body: The task's body.
        at: Its mtime, Unix seconds.
    """

    __slots__ = ("_directory", "_fd", "at", "body", "ref", "vars")

    def __init__(
        self, directory: SpoolDirectory, fd: int, ref: str, vars: Mapping[bytes, bytes], body: bytes, at: float
    ) -> None:
        self._directory = directory
        self._fd = fd
        self.ref = ref
        self.vars = vars
        self.body = body
        self.at = at

    def remove(self) -> None:
        """The task is done: delete its file and let go of it.

        A person may have moved the file while it ran. It is then looked for in the other places where it would run
        again; one that was taken out of the spool is left where it is.

        Raises:
            OSError: The file could not be deleted; it is let go of all the same.
        """
        try:
            os.unlink(self.ref, dir_fd=self._directory.fd)
        except FileNotFoundError:
            self._directory._unlink_moved(self.ref.rpartition("/")[2], os.fstat(self._fd))
        finally:
            os.close(self._fd)

    def close(self) -> None:
        """Let go of the file; it waits again."""
        os.close(self._fd)


class SpoolDirectory:
    """One spool directory, opened.

    Methods may be called from several threads. A directory that lost a write (a failed fsync) takes no more tasks:
    what the page cache then holds is unknown, and a second fsync would claim success (PostgreSQL's fsyncgate).

    Args:
        path: The directory.
        fsync: Whether `add` returns only when files and directory are on disk.
        create: Whether to make the directory if it is missing.

    Raises:
        OSError: It cannot be opened or made.
    """

    def __init__(self, path: str | os.PathLike[str], *, fsync: bool = False, create: bool = True) -> None:
        self.path = os.path.realpath(path)
        self.broken: str | None = None
        self._fsync = fsync
        if create:
            os.makedirs(self.path, mode=0o750, exist_ok=True)
        self.fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for name in (_STATE_DIR, f"{_STATE_DIR}/tmp", f"{_STATE_DIR}/dead"):
                with contextlib.suppress(FileExistsError):
                    os.mkdir(name, 0o700, dir_fd=self.fd)
            self._tmp = os.open(f"{_STATE_DIR}/tmp", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self.fd)
        except BaseException:
            os.close(self.fd)
            raise
        # The host's name is the only free part of a spool file's name; a "/" in it would be a path.
        self._hostname = socket.gethostname().replace("/", "_") or "localhost"
        self._counter = itertools.count(1)

    def close(self) -> None:
        """Close the directory. Claimed files stay claimed."""
        os.close(self._tmp)
        os.close(self.fd)

    def absolute(self, ref: str) -> str:
        """The absolute path of a task's file, as uWSGI's `spooler_task_name` is for the file's user."""
        return f"{self.path}/{ref}"

    # Taking tasks in

    def add(self, tasks: Sequence[NewTask]) -> list[Found | TrispoolError]:
        """Keep new tasks, one file each; with `fsync` all of them share the directory's.

        Returns:
            For each task, in order, its file, or why there is none.
        """
        written: list[tuple[str, Found] | TrispoolError] = [self._write_or_refuse(task) for task in tasks]
        results: list[Found | TrispoolError] = []
        touched: set[str] = set()
        for item in written:
            if isinstance(item, TrispoolError):
                results.append(item)
                continue
            temporary, found = item
            try:
                self._publish(temporary, found.ref, touched)
            except OSError as error:
                self._discard(temporary)
                results.append(_unavailable(error))
            else:
                results.append(found)
        if self._fsync and touched:
            try:
                for folder in touched:
                    self._fsync_folder(folder)
            except OSError as error:
                return self._take_back(results, error)
        return results

    def _write_or_refuse(self, task: NewTask) -> tuple[str, Found] | TrispoolError:
        if self.broken is not None:
            return SpoolUnavailable(self.broken)
        seconds, nanoseconds = divmod(time.time_ns(), 1_000_000_000)
        name = spoolfile.new_name(
            self._hostname,
            os.getpid(),
            next(self._counter),
            random.getrandbits(31),
            seconds,
            nanoseconds // 1000,
        )
        try:
            status = self._write(name, task)
        except TrispoolError as error:
            return error
        except OSError as error:
            return _unavailable(error)
        ref = name if task.priority is None else f"{task.priority}/{name}"
        return name, Found(ref, status.st_mtime_ns / 1e9, task.priority, status.st_ctime_ns / 1e9)

    def _write(self, name: str, task: NewTask) -> os.stat_result:
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC
        fd = os.open(name, flags, 0o600, dir_fd=self._tmp)
        try:
            _write_all(fd, spoolfile.encode(task.payload, task.body))
            if task.at:
                at_ns = round(task.at * 1e9)
                os.utime(fd, ns=(at_ns, at_ns))
            status = os.fstat(fd)
            if task.at and abs(status.st_mtime_ns - at_ns) > 1_000_000_000:
                # XFS without bigtime ends in 2038 and clamps silently: the task would run at the wrong time.
                raise TaskRefused(f"at={task.at}: the file system of {self.path} cannot hold a time that late")
            if self._fsync:
                self._fsync_or_break(fd)
        except BaseException:
            self._discard(name)
            raise
        finally:
            os.close(fd)
        return status

    def _publish(self, name: str, ref: str, touched: set[str]) -> None:
        folder = os.path.dirname(ref)
        if folder:
            try:
                os.mkdir(folder, 0o777, dir_fd=self.fd)
                touched.add("")
            except FileExistsError:
                # A link by that name would lead out of the spool, where nobody scans.
                if not stat.S_ISDIR(os.stat(folder, dir_fd=self.fd, follow_symlinks=False).st_mode):
                    raise
        os.rename(name, ref, src_dir_fd=self._tmp, dst_dir_fd=self.fd)
        touched.add(folder)

    def _fsync_folder(self, folder: str) -> None:
        if not folder:
            self._fsync_or_break(self.fd)
            return
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self.fd)
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
                    f"{self.path} takes no more tasks since an fsync failed ({error.strerror}): restart to retry"
                )
            raise

    def _take_back(self, results: Iterable[Found | TrispoolError], error: OSError) -> list[Found | TrispoolError]:
        """Nobody may be told that these are kept, so they had better not run either."""
        for result in results:
            if isinstance(result, Found):
                with contextlib.suppress(OSError):
                    os.unlink(result.ref, dir_fd=self.fd)
        return [result if isinstance(result, TrispoolError) else _unavailable(error) for result in results]

    def _discard(self, temporary: str) -> None:
        with contextlib.suppress(OSError):
            os.unlink(temporary, dir_fd=self._tmp)

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
            at = status.st_mtime_ns / 1e9
            if status.st_nlink == 0:
                raise Gone
            if not stat.S_ISREG(status.st_mode):
                raise Unreadable("not a regular file")
            if now is None:
                now = time.time()
            if at > now:
                raise NotDue(at)
            data = _read_all(fd, status.st_size)
            try:
                vars_, body = spoolfile.decode(data)
            except MalformedSpoolFile as error:
                if error.incomplete and now - status.st_ctime_ns / 1e9 < GRACE_SECONDS:
                    raise Settling from None
                raise Unreadable(str(error)) from None
        except BaseException:
            os.close(fd)
            raise
        return ClaimedFile(self, fd, ref, vars_, body, at)

    def _open_locked(self, ref: str) -> int:
        try:
            fd = os.open(ref, _OPEN_CLAIM, dir_fd=self.fd)
        except FileNotFoundError:
            raise Gone from None
        except OSError as error:
            raise Unreadable(error.strerror or str(error)) from error
        try:
            fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _WRITE_LOCK)
        except (BlockingIOError, PermissionError):
            os.close(fd)
            raise Locked from None
        except BaseException:
            os.close(fd)
            raise
        return fd

    def set_aside(self, ref: str) -> bool:
        """Move a file to `.trispool/dead`, whatever is in it; never over another one.

        Returns:
            False if it is gone, not a regular file, or somebody else is at work on it.

        Raises:
            OSError: It cannot be moved.
        """
        try:
            fd = self._open_locked(ref)
        except Unclaimable:
            return False
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                return False
            name = ref.rpartition("/")[2]
            for number in itertools.count():
                target = f"{_STATE_DIR}/dead/{name}{f'.{number}' if number else ''}"
                try:
                    os.link(ref, target, src_dir_fd=self.fd, dst_dir_fd=self.fd, follow_symlinks=False)
                except FileExistsError:
                    continue
                except FileNotFoundError:
                    return False
                break
            os.unlink(ref, dir_fd=self.fd)
            return True
        finally:
            os.close(fd)

    def _unlink_moved(self, name: str, status: os.stat_result) -> None:
        for folder in ("", *(f"{priority}/" for priority, _ in self._priorities())):
            with contextlib.suppress(OSError):
                there = os.stat(folder + name, dir_fd=self.fd, follow_symlinks=False)
                if (there.st_ino, there.st_dev) == (status.st_ino, status.st_dev):
                    os.unlink(folder + name, dir_fd=self.fd)

    # Looking

    def look(self, ref: str) -> Found | None:
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
        return Found(ref, status.st_mtime_ns / 1e9, priority, status.st_ctime_ns / 1e9)

    def scan(self, foreign: dict[str, str] | None = None) -> Iterator[list[Found]]:
        """All spool files, in the order of the directory, in chunks.

        Args:
            foreign: Filled with what else lies in the spool: name to what it is.

        Raises:
            OSError: The directory cannot be read.
        """
        if foreign is None:
            foreign = {}
        yield from self._scan_folder("", None, foreign)
        for folder, priority in self._priorities():
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                yield from self._scan_folder(folder, priority, foreign)

    def _scan_folder(self, folder: str, priority: int | None, foreign: dict[str, str]) -> Iterator[list[Found]]:
        chunk: list[Found] = []
        prefix = f"{folder}/" if folder else ""
        # By path, not by descriptor: os.scandir on a descriptor shares its read position with other scans.
        with os.scandir(f"{self.path}/{folder}") as entries:
            for entry in entries:
                name = entry.name
                if not spoolfile.is_spool_name(name):
                    if folder or not _is_known(entry):
                        shown = os.fsencode(prefix + name).decode(errors="replace")
                        foreign[shown] = "not a spool file"
                    continue
                try:
                    status = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                if not stat.S_ISREG(status.st_mode):
                    foreign[prefix + name] = "not a regular file"
                    continue
                chunk.append(Found(prefix + name, status.st_mtime_ns / 1e9, priority, status.st_ctime_ns / 1e9))
                if len(chunk) >= SCAN_CHUNK:
                    yield chunk
                    chunk = []
        if chunk:
            yield chunk

    def priorities(self) -> list[str]:
        """The names of the priority directories."""
        return [folder for folder, _ in self._priorities()]

    def _priorities(self) -> list[tuple[str, int]]:
        with os.scandir(self.path) as entries:
            found = [
                (entry.name, priority)
                for entry in entries
                if (priority := spoolfile.is_priority_name(entry.name)) is not None
                and entry.is_dir(follow_symlinks=False)
            ]
        return sorted(found, key=lambda item: item[1])

    def names(self) -> list[str]:
        """The absolute paths of all waiting tasks, those for later included."""
        return [self.absolute(found.ref) for chunk in self.scan() for found in chunk]

    def dead(self) -> list[Found]:
        """What has been set aside; `ref` is then the path below the spool directory, too."""
        found = []
        with os.scandir(f"{self.path}/{_STATE_DIR}/dead") as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):
                    status = entry.stat(follow_symlinks=False)
                    ref = f"{_STATE_DIR}/dead/{entry.name}"
                    found.append(Found(ref, status.st_mtime_ns / 1e9, None, status.st_ctime_ns / 1e9))
        return found

    def read(self, ref: str) -> tuple[Mapping[bytes, bytes], bytes]:
        """The vars and body of a task, without claiming it.

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
            return spoolfile.decode(_read_all(fd, os.fstat(fd).st_size))
        except (MalformedSpoolFile, OSError) as error:
            raise Unreadable(str(error)) from None
        finally:
            os.close(fd)

    def clean(self) -> int:
        """Remove what processes that died left half written.

        Returns:
            How many files that were.
        """
        removed = 0
        with os.scandir(f"{self.path}/{_STATE_DIR}/tmp") as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    if time.time() - entry.stat(follow_symlinks=False).st_ctime > STALE_TMP_SECONDS:
                        os.unlink(entry.name, dir_fd=self._tmp)
                        removed += 1
        return removed


def _is_known(entry: os.DirEntry[str]) -> bool:
    return entry.name == _STATE_DIR or (
        spoolfile.is_priority_name(entry.name) is not None and entry.is_dir(follow_symlinks=False)
    )


def _unavailable(error: OSError) -> SpoolUnavailable:
    return SpoolUnavailable(f"the task could not be written: {error.strerror or error}")


def _write_all(fd: int, data: bytes) -> None:
    written = os.write(fd, data)
    while written < len(data):  # a short write: the disk is nearly full, the next one tells
        written += os.write(fd, memoryview(data)[written:])


def _read_all(fd: int, size: int) -> bytes:
    data = os.read(fd, size)
    while len(data) < size and (more := os.read(fd, size - len(data))):  # over 2 GiB in one read
        data += more
    return data
