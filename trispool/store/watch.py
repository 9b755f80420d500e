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
from trispool.mounts import is_local
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
        self._has_all = False  # the folders, on a file system that tells of everything

    @property
    def sees_all(self) -> bool:
        """Whether nobody can put a task there, or take one away, without a change or a None being told of it."""
        return self._has_all and self._inotify is not None and not self._inotify.closed

    async def changes(self) -> AsyncGenerator[Sequence[Change] | None, None]:
        """See `trispool.store.SpoolStore.watch`."""
        try:
            inotify = inotify_simple.INotify(nonblocking=True)
        except OSError as error:
            # Too many instances (fs.inotify.max_user_instances): the scan alone works, only later.
            _log.warning("no_inotify", directory=self._opened.path, error=str(error))
            yield None
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
                data = os.read(inotify.fileno(), READ_BYTES)
                seen, lost = self._digest(inotify, data)
                if seen:
                    yield await self._look(seen)
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
        for watch in self._folders:
            with contextlib.suppress(OSError):  # of what has been deleted
                inotify.rm_watch(watch)
        self._folders = {}
        self._has_all = is_local(self._opened.fd)
        self._add(inotify, "")
        self._opened.watched()
        try:
            folders = await trio.to_thread.run_sync(self._opened.priorities, limiter=self._limiter)
        except OSError as error:
            _log.warning("not_watched", directory=self._opened.path, folder="*", error=str(error))
            self._has_all = False
            folders = []
        for folder in folders:
            if not inotify.closed:
                self._add(inotify, folder)

    def _add(self, inotify: inotify_simple.INotify, folder: str) -> None:
        try:
            watch = inotify.add_watch(os.path.join(self._opened.path, folder), _WATCHED)
        except OSError as error:
            _log.warning("not_watched", directory=self._opened.path, folder=folder, error=str(error))
            self._has_all = False
        else:
            self._folders[watch] = folder

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
                    lost = True
                    self._has_all = False  # a priority directory may have come, which is then not watched
                    self._opened.watched()
            elif not name:
                # About the folder itself. A spool that was moved has to be looked for. (Of one that was removed nothing
                # is told, as we have it open.)
                lost |= not folder
                if mask & _IGNORED:
                    del self._folders[watch]
            elif mask & _ISDIR:
                came_or_left = mask & (_CREATE | _MOVED_TO | _MOVED_FROM)
                if came_or_left and not folder and spoolfile.is_priority_name(name) is not None:
                    if mask & (_CREATE | _MOVED_TO):
                        self._add(inotify, name)
                    lost = True  # what was put there before, or has gone with it
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
