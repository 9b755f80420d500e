"""What happens in a spool directory, told by inotify.

inotify says when a writer has closed its file (`IN_CLOSE_WRITE`) or renamed it into place (`IN_MOVED_TO`): then it is
whole. A name that only appeared (`IN_CREATE`) is either being written, and will be closed, or was hard-linked whole and
will not; it is passed on as fresh. Where inotify does not work (NFS sees only its own host) or its queue overflows, the
scan finds the rest; `DirectoryWatch.sees_all` says where that cannot be.
"""

from __future__ import annotations

import contextlib
import os
import struct
from typing import TYPE_CHECKING, Final

import inotify_simple
import structlog
import trio
from inotify_simple import flags

from trispool import spoolfile
from trispool.mounts import is_local, mount_of
from trispool.store import Change

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from trispool.spooldir import SpoolDirectory

__all__ = ["DirectoryWatch"]

READ_BYTES: Final = 32 * 1024
"""Events read in one go, some 340: a queue that is full, 16,384 by default, would keep the loop for 30 ms."""

# Plain numbers: looking one up in the enumeration takes longer than all else that is done about an event.
_CREATE: Final = int(flags.CREATE)
_CLOSE_WRITE: Final = int(flags.CLOSE_WRITE)
_MOVED_TO: Final = int(flags.MOVED_TO)
_MOVED_FROM: Final = int(flags.MOVED_FROM)
_DELETE: Final = int(flags.DELETE)
_GONE: Final = int(flags.DELETE | flags.MOVED_FROM)
_WHOLE: Final = int(flags.CLOSE_WRITE | flags.MOVED_TO)
_ISDIR: Final = int(flags.ISDIR)
_Q_OVERFLOW: Final = int(flags.Q_OVERFLOW)
_IGNORED: Final = int(flags.IGNORED)
_UNMOUNT: Final = int(flags.UNMOUNT)
_WATCHED: Final = (
    _CREATE
    | _WHOLE
    | _GONE
    | int(flags.ATTRIB)
    | int(flags.MOVE_SELF)
    # Otherwise every task that a worker unlinks and then closes would be one event more.
    | int(flags.EXCL_UNLINK)
    | int(flags.ONLYDIR)
)

_HEADER: Final = struct.Struct("iIII")  # watch descriptor, mask, cookie, size of the name with its padding

GATHER_SECONDS: Final = 0.005
"""How long not to look at events after some that told nothing new: the most that a file of others then waits."""

FAILED_SECONDS: Final = 5.0
"""How long to wait after events that could not be read."""

LONG_GATHER_SECONDS: Final = 0.02
"""The same if they were so many that a new task would have to wait for others anyway."""

_tuple: Final = tuple.__new__
_log = structlog.get_logger()


class DirectoryWatch:
    """Watches one spool directory and its priority directories.

    Args:
        opened: The spool directory.
        limiter: For the thread that looks at files.
    """

    def __init__(self, opened: SpoolDirectory, limiter: trio.CapacityLimiter) -> None:
        self._opened = opened
        self._limiter = limiter
        self._folders: dict[int, str] = {}
        self._inotify: inotify_simple.INotify | None = None
        self._waiting = trio.CancelScope()
        self._has_missed = False
        self._has_overflowed = False
        # Folders in which something may happen that nobody tells of.
        self._blind: set[str] = set()
        # Which directories the folders are, by device and inode: a mount can come over one, of which nobody tells.
        self._places: dict[str, tuple[int, int]] = {}

    @property
    def sees_all(self) -> bool:
        """Whether nobody can put a task there, or take one away, without a change or a None being told of it."""
        return not self._blind and self._inotify is not None and not self._inotify.closed

    async def is_in_place(self) -> bool:
        """Whether what is watched is what the paths lead to; else `renew`.

        Raises:
            OSError: One of them leads nowhere.
        """
        places = tuple(self._places.items())

        def look() -> bool:
            self._opened.follow()
            return all(_place_of(os.stat(self._opened.absolute(folder))) == place for folder, place in places)

        return await trio.to_thread.run_sync(look, limiter=self._limiter)

    async def changes(self) -> AsyncGenerator[Sequence[Change] | None, None]:
        """See `trispool.store.SpoolStore.watch`."""
        try:
            inotify = inotify_simple.INotify(nonblocking=True)
        except OSError as error:
            # Too many instances (fs.inotify.max_user_instances): the scan alone works, only later.
            _log.warning("no_inotify", directory=self._opened.path, error=str(error))
            while True:
                self._has_missed = False
                yield None
                with trio.CancelScope() as self._waiting:
                    if not self._has_missed:
                        await trio.sleep_forever()
        with inotify:
            self._folders = {}
            self._inotify = inotify
            self._has_missed = False
            await self.renew()
            # What came before the watch was set has to be looked for.
            yield None
            while True:
                with trio.CancelScope() as self._waiting:
                    if not self._has_missed:
                        await trio.lowlevel.wait_readable(inotify.fileno())
                if self._has_missed:
                    self._has_missed = False
                    yield None
                    continue
                try:
                    data = os.read(inotify.fileno(), READ_BYTES)
                except OSError as error:
                    # Nothing is known to cause it, and nothing that it would have told may be lost.
                    _log.error("watch_failed", directory=self._opened.path, error=str(error))
                    yield None
                    await trio.sleep(FAILED_SECONDS)
                    continue
                seen, lost = self._digest(inotify, data)
                if seen:
                    yield await self._look(seen)
                if self._has_overflowed:
                    # A priority directory may have come that is not watched.
                    self._has_overflowed = False
                    await self.renew()
                if lost:
                    yield None
                if len(data) < READ_BYTES // 2 and not any(mask & ~_GONE for mask in seen.values()):
                    # Only our own work, it seems, each of whose tasks is two events: take more of them at once.
                    await trio.sleep(GATHER_SECONDS if len(data) < READ_BYTES // 8 else LONG_GATHER_SECONDS)

    def miss(self) -> None:
        """Something has come of which no event tells: a scan is needed."""
        self._has_missed = True
        self._waiting.cancel()

    async def renew(self) -> None:
        """Watch the directory that is there now, in place of another one. What came before has to be looked for."""
        inotify = self._inotify
        if inotify is None or inotify.closed:
            return
        for watch in [*self._folders]:
            self._unwatch(inotify, watch)
        self._places, self._blind = {}, set()
        self._add(inotify, "")
        self._opened.watched()
        try:
            folders = await trio.to_thread.run_sync(self._opened.priorities, limiter=self._limiter)
        except OSError as error:
            _log.warning("not_watched", directory=self._opened.path, folder="*", error=str(error))
            self._blind.add("")
            folders = []
        for folder in folders:
            if not inotify.closed:
                self._add(inotify, folder)

    def _add(self, inotify: inotify_simple.INotify, folder: str) -> None:
        path = self._opened.absolute(folder)
        try:
            fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                self._folders[inotify.add_watch(path, _WATCHED)] = folder
                self._places[folder] = _place_of(os.fstat(fd))
                # One on the mount of the directory is as that is; to find out takes long where there are many mounts.
                is_seen = bool(folder and mount_of(fd) == mount_of(self._opened.fd)) or is_local(fd)
            finally:
                os.close(fd)
        except OSError as error:
            _log.warning("not_watched", directory=self._opened.path, folder=folder, error=str(error))
            is_seen = False
        (self._blind.discard if is_seen else self._blind.add)(folder)

    def _drop(self, inotify: inotify_simple.INotify, folder: str) -> None:
        """It is no longer there."""
        self._blind.discard(folder)
        self._places.pop(folder, None)
        # If it was moved away, what happens in it there would be told of what takes its place.
        for watch in [watch for watch, watched in self._folders.items() if watched == folder]:
            self._unwatch(inotify, watch)

    def _unwatch(self, inotify: inotify_simple.INotify, watch: int) -> None:
        del self._folders[watch]
        with contextlib.suppress(OSError):  # of what has been deleted
            inotify.rm_watch(watch)

    def _digest(self, inotify: inotify_simple.INotify, data: bytes) -> tuple[dict[str, int], bool]:
        """Read some events.

        Returns:
            What has happened to which tasks, and whether a scan is needed.
        """
        seen: dict[str, int] = {}
        lost = False
        folders, unpack, end = self._folders, _HEADER.unpack_from, 0
        while end < len(data):
            watch, mask, _, size = unpack(data, end)
            start = end + _HEADER.size
            end = start + size
            raw = data[start:end].rstrip(b"\0")
            name = raw.decode("ascii") if raw.isascii() else os.fsdecode(raw)
            folder = folders.get(watch)
            if mask == _DELETE and folder is not None:
                # Nearly all events are of this kind: tasks that have been run.
                if name.startswith(spoolfile.PREFIX):
                    seen[f"{folder}/{name}" if folder else name] = mask
            elif folder is None:
                if mask & _Q_OVERFLOW:
                    lost = self._has_overflowed = True
                    self._blind.add("")
            elif not name:
                # About the folder itself. A spool that was moved has to be looked for. (Of one that was removed nothing
                # is told, as we have it open.)
                lost |= not folder
                if mask & _UNMOUNT and folder:
                    self._add(inotify, folder)  # what it lay over
                    lost = True
                if mask & _IGNORED:
                    del self._folders[watch]
            elif mask & _ISDIR:
                if not folder and spoolfile.is_priority_name(name) is not None:
                    if mask & _GONE:
                        self._drop(inotify, name)
                    if mask & (_CREATE | _MOVED_TO):
                        self._add(inotify, name)
                    # What was put there before, or has gone with it.
                    lost |= bool(mask & (_CREATE | _MOVED_TO | _MOVED_FROM))
            elif spoolfile.is_spool_name(name):
                ref = f"{folder}/{name}" if folder else name
                before = seen.get(ref, 0)
                if not before and self._is_our_doing(mask, ref):
                    continue
                # A name that has gone and come again is judged by what came last; one that was created and then closed
                # is whole.
                seen[ref] = mask if (mask | before) & _GONE else before | mask
        return seen, lost

    def _is_our_doing(self, mask: int, ref: str) -> bool:
        if mask & (_MOVED_TO | _CREATE):
            return self._opened.was_published(ref)
        return bool(mask & _CLOSE_WRITE) and self._opened.was_let_go(ref)

    async def _look(self, seen: dict[str, int]) -> list[Change]:
        there = [ref for ref, mask in seen.items() if not mask & _GONE]
        changes = [_tuple(Change, (ref, None)) for ref, mask in seen.items() if mask & _GONE]
        if there:
            entries = await trio.to_thread.run_sync(
                lambda: [self._opened.look(ref) for ref in there], limiter=self._limiter
            )
            for ref, entry in zip(there, entries, strict=True):
                if entry is not None and entry.fresh and seen[ref] & _WHOLE:
                    entry = entry._replace(fresh=False)
                changes.append(Change(ref, entry))
        return changes


def _place_of(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino
