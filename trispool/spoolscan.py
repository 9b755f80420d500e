"""Looking through a spool directory: what lies there, without opening it."""

from __future__ import annotations

import contextlib
import math
import os
import stat
import time
from typing import TYPE_CHECKING, Final, TypeAlias

from trispool import spoolfile
from trispool.spoolwriter import NANO
from trispool.task import Entry

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Mapping

__all__ = [
    "DEAD",
    "HELD",
    "SETTLE_SECONDS",
    "STATE_DIR",
    "TMP",
    "Stamps",
    "entry_of",
    "has_changed",
    "lying_in",
    "priorities",
    "refs",
    "scan",
]

SETTLE_SECONDS: Final = 1.0
"""A file that appeared by itself and was not closed by its writer is left alone this long (a link, a slow copy)."""

SCAN_CHUNK: Final = 1024
"""Files looked at (about 5 µs each) before a scan hands over what it found; to take that in costs the loop 1.6 µs each.
To hand over costs 0.3 ms."""

NAMES_CHUNK: Final = 512
"""Files of which only the names are read (about 0.6 µs each)."""

STATE_DIR: Final = ".trispool"
TMP: Final = f"{STATE_DIR}/tmp"
DEAD: Final = f"{STATE_DIR}/dead"
HELD: Final = f"{STATE_DIR}/held"

_TICK: Final = 50_000_000
"""The kernel's clock for files ticks every 10 ms at the slowest; in nanoseconds, and plenty."""

_State: TypeAlias = tuple[int, int, int, int]
"""Of a folder: which it is, and when its names, and it itself, have changed."""

_tuple: Final = tuple.__new__

_MISSING: Final = -1
_TOO_YOUNG: Final = -2


def entry_of(name: str, ref: str, status: os.stat_result, priority: int | None, now: float) -> Entry:
    """The task that a file is.

    Args:
        name: The file's name.
        ref: Its path below the spool directory.
        status: Its lstat.
        priority: That of its directory.
        now: Unix seconds.
    """
    at = status.st_mtime_ns / NANO
    fresh = now - status.st_ctime_ns / NANO < SETTLE_SECONDS
    # As Entry(...) does, in half the time.
    return _tuple(Entry, (name, ref, at, priority, spoolfile.order_of(name, at), fresh))


def scan(path: str, foreign: dict[str, str], stamps: Stamps | None = None) -> Generator[list[Entry], None, None]:
    """All spool files of a directory, in its order, in chunks.

    Args:
        path: The spool directory.
        foreign: Filled with what else lies in the spool: name to what it is.
        stamps: Told of the reading.

    Raises:
        OSError: The directory cannot be read.
    """
    stamps = stamps or Stamps(path)
    stamps.begin()
    others: list[os.DirEntry[str]] = []
    stamps.reading("")
    yield from _scan_folder(path, "", None, foreign, others)
    for priority, folder in sorted(_priority_folders(others)):
        # It may have been removed since.
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            stamps.reading(folder)
            yield from _scan_folder(path, folder, priority, foreign, others)
    for entry in others:
        if entry.name != STATE_DIR and not _is_priority_folder(entry):
            shown = os.fsencode(os.path.relpath(entry.path, path)).decode(errors="replace")
            foreign[shown] = "not a spool file"
    stamps.end()


def _scan_folder(
    path: str, folder: str, priority: int | None, foreign: dict[str, str], others: list[os.DirEntry[str]]
) -> Generator[list[Entry], None, None]:
    chunk: list[Entry] = []
    now = time.time()
    prefix = f"{folder}/" if folder else ""
    # By path, since what else lies there is looked at when this is over; the files by descriptor, since a path is gone
    # along for each of them anew.
    with os.scandir(f"{path}/{folder}") as entries, _opened(f"{path}/{folder}") as fd:
        for entry in entries:
            name = entry.name
            if not spoolfile.is_spool_name(name):
                others.append(entry)
                continue
            try:
                status = os.stat(name, dir_fd=fd, follow_symlinks=False)
            except FileNotFoundError:
                continue
            if not stat.S_ISREG(status.st_mode):
                foreign[prefix + name] = "not a regular file"
                continue
            chunk.append(entry_of(name, prefix + name, status, priority, now))
            if len(chunk) >= SCAN_CHUNK:
                yield chunk
                chunk = []
    if chunk:
        yield chunk


@contextlib.contextmanager
def _opened(folder: str) -> Generator[int, None, None]:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def refs(path: str, stamps: Stamps | None = None) -> Generator[list[str], None, None]:
    """The paths below the spool directory of all that `scan` would look at; in an eighth of the time. Raises as it."""
    stamps = stamps or Stamps(path)
    stamps.begin()
    others: list[os.DirEntry[str]] = []
    stamps.reading("")
    yield from _refs_in(path, "", others)
    for _, folder in sorted(_priority_folders(others)):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            stamps.reading(folder)
            yield from _refs_in(path, folder, [])
    stamps.end()


def _refs_in(path: str, folder: str, others: list[os.DirEntry[str]]) -> Generator[list[str], None, None]:
    chunk: list[str] = []
    prefix = f"{folder}/" if folder else ""
    with os.scandir(f"{path}/{folder}") as entries:
        for entry in entries:
            if not spoolfile.is_spool_name(entry.name):
                others.append(entry)
                continue
            chunk.append(prefix + entry.name)
            if len(chunk) >= NAMES_CHUNK:
                yield chunk
                chunk = []
    if chunk:
        yield chunk


class Stamps:
    """Whether anything can have come to a spool's folders, or gone from them, since they were read. Blocking.

    A folder's times change with each name that comes or goes. They have ticks, though, and a name that comes in the
    tick of the reading, but after it, would not show. So a folder counts as unchanged only if it was in the same state
    more than a tick before it was read. No clock is compared with that of the files, which may be another machine's.

    Args:
        path: The spool directory.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._is_sure = False
        # By folder: its state, and since when (time.monotonic()) it has been known to be in it.
        self._known: dict[str, tuple[_State, float]] = {}
        self._now: dict[str, tuple[_State, float]] = {}
        self._now_sure = False

    def begin(self) -> None:
        """All folders are going to be read, after a call of `reading` for each."""
        self._is_sure = False
        self._now, self._now_sure = {}, True

    def reading(self, folder: str) -> None:
        """This one is read next. Raises `OSError` if it cannot be looked at."""
        state, now = self._state(folder), time.monotonic()
        before, since = self._known.get(folder, (None, now))
        if state != before:
            since = now
        self._now_sure &= now - since > _TICK / NANO
        self._now[folder] = state, since

    def end(self) -> None:
        """All have been read."""
        self._known, self._is_sure = self._now, self._now_sure

    def are_unchanged(self) -> bool:
        """Whether all folders are as they were read. Raises as `reading`."""
        return self._is_sure and all(self._state(folder) == state for folder, (state, _) in self._known.items())

    def _state(self, folder: str) -> _State:
        status = os.stat(f"{self._path}/{folder}")
        return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns


def priorities(path: str) -> list[str]:
    """The names of a spool's priority directories, the most urgent first.

    Raises:
        OSError: The directory cannot be read.
    """
    # On most file systems each folder in it has a link to it: with two of its own and one from ours there can be no
    # other. Reading a million names takes a second. (Other file systems say 1, or 2, whatever there is.)
    if os.stat(path).st_nlink == 3 and os.path.isdir(f"{path}/{STATE_DIR}"):
        return []
    with os.scandir(path) as entries:
        return [folder for _, folder in sorted(_priority_folders(entries))]


def lying_in(path: str, shelf: str) -> tuple[list[Entry], dict[str, int]]:
    """The tasks that lie on a shelf of a spool; `ref` is then the path below the spool directory, too.

    Args:
        path: The spool directory.
        shelf: `HELD` or `DEAD`.

    Returns:
        The tasks, and the state of the folders they lie in, for `has_changed`.

    Raises:
        OSError: They cannot be read.
    """
    found: list[Entry] = []
    stamps = {"": _stamp(f"{path}/{shelf}")}
    others: list[os.DirEntry[str]] = []
    # It is made when it is first needed.
    with contextlib.suppress(FileNotFoundError):
        _lying_in_folder(path, shelf, None, found, others)
    for priority, folder in sorted(_priority_folders(others)):
        stamps[folder] = _stamp(f"{path}/{shelf}/{folder}")
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            _lying_in_folder(path, f"{shelf}/{folder}", priority, found, [])
    return found, stamps


def _lying_in_folder(
    path: str, folder: str, priority: int | None, found: list[Entry], others: list[os.DirEntry[str]]
) -> None:
    with os.scandir(f"{path}/{folder}") as entries:
        for entry in entries:
            if spoolfile.is_spool_name(entry.name):
                with contextlib.suppress(FileNotFoundError):
                    status = entry.stat(follow_symlinks=False)
                    found.append(entry_of(entry.name, f"{folder}/{entry.name}", status, priority, math.inf))
            else:
                others.append(entry)


def has_changed(path: str, shelf: str, stamps: Mapping[str, int]) -> bool:
    """Whether something has come to, or gone from, a shelf since `lying_in` gave these stamps."""
    return any(stamp == _TOO_YOUNG or _stamp(f"{path}/{shelf}/{folder}") != stamp for folder, stamp in stamps.items())


def _stamp(folder: str) -> int:
    try:
        changed_at = os.stat(folder).st_mtime_ns
    except FileNotFoundError:
        return _MISSING
    # A second change in the same tick of the kernel's clock would not show.
    return _TOO_YOUNG if abs(time.time_ns() - changed_at) < _TICK else changed_at


def _is_priority_folder(entry: os.DirEntry[str]) -> bool:
    return spoolfile.is_priority_name(entry.name) is not None and entry.is_dir(follow_symlinks=False)


def _priority_folders(entries: Iterable[os.DirEntry[str]]) -> list[tuple[int, str]]:
    return [
        (spoolfile.is_priority_name(entry.name) or 0, entry.name) for entry in entries if _is_priority_folder(entry)
    ]
