"""What happens in a spool directory, told by inotify.

inotify says when a writer has closed its file (`IN_CLOSE_WRITE`) or renamed it into place (`IN_MOVED_TO`): then it is
whole. A name that only appeared (`IN_CREATE`) is either being written, and will be closed, or was hard-linked whole and
will not; it is passed on as fresh. Where inotify does not work (NFS sees only its own host) or its queue overflows, the
scan finds the rest.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

import inotify_simple
import structlog
import trio
from inotify_simple import flags

from trispool import spoolfile
from trispool.store import Change

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from trispool.spooldir import SpoolDirectory

__all__ = ["DirectoryWatch"]

OWN_SECONDS: Final = 10.0
"""A file that this process has written so lately is in the schedule already; an older one was moved by somebody."""

_WATCHED: Final = (
    flags.CREATE
    | flags.CLOSE_WRITE
    | flags.MOVED_TO
    | flags.MOVED_FROM
    | flags.DELETE
    | flags.ATTRIB
    # Otherwise every task that a worker unlinks and then closes would be one event more.
    | flags.EXCL_UNLINK
    | flags.ONLYDIR
)
_GONE: Final = flags.DELETE | flags.MOVED_FROM

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

    async def changes(self) -> AsyncGenerator[Sequence[Change] | None, None]:
        """See `trispool.store.SpoolStore.watch`."""
        try:
            inotify = inotify_simple.INotify(nonblocking=True)
        except OSError as error:
            # Too many instances (fs.inotify.max_user_instances): the scan alone works, only later.
            _log.warning("no_inotify", directory=self._opened.path, error=str(error))
            await trio.sleep_forever()
        with inotify:
            self._folders = {}
            try:
                self._add(inotify, "")
                for folder in await trio.to_thread.run_sync(self._opened.priorities, limiter=self._limiter):
                    self._add(inotify, folder)
                # What came before the watch was set has to be looked for.
                yield None
                while True:
                    await trio.lowlevel.wait_readable(inotify.fileno())
                    changes = await self._read(inotify)
                    if changes is None or changes:
                        yield changes
            finally:
                self._folders = {}

    def _add(self, inotify: inotify_simple.INotify, folder: str) -> None:
        try:
            watch = inotify.add_watch(os.path.join(self._opened.path, folder), _WATCHED)
        except OSError as error:
            _log.warning("not_watched", directory=self._opened.path, folder=folder, error=str(error))
        else:
            self._folders[watch] = folder

    async def _read(self, inotify: inotify_simple.INotify) -> list[Change] | None:
        seen: dict[str, int] = {}
        rescan = False
        for event in inotify.read(timeout=0):
            if event.mask & flags.Q_OVERFLOW:
                rescan = True
            elif event.mask & flags.IGNORED:
                self._folders.pop(event.wd, None)
            elif event.wd in self._folders:
                folder = self._folders[event.wd]
                if event.mask & flags.ISDIR:
                    is_new = event.mask & (flags.CREATE | flags.MOVED_TO)
                    if is_new and not folder and spoolfile.is_priority_name(event.name) is not None:
                        self._add(inotify, event.name)
                        rescan = True
                elif spoolfile.is_spool_name(event.name):
                    ref = f"{folder}/{event.name}" if folder else event.name
                    mask = event.mask & ~flags.ISDIR
                    # A name that has gone and come again is judged by what came last; one that was created and then
                    # closed is whole.
                    seen[ref] = mask if mask & _GONE or seen.get(ref, 0) & _GONE else seen.get(ref, 0) | mask
        if rescan:
            return None
        return await self._look(seen)

    async def _look(self, seen: dict[str, int]) -> list[Change]:
        changes = []
        there = []
        for ref, mask in seen.items():
            if mask & _GONE:
                changes.append(Change(ref, None))
            elif not (mask == flags.MOVED_TO and self._opened.has_just_written(ref, OWN_SECONDS)):
                there.append(ref)
        if there:
            entries = await trio.to_thread.run_sync(
                lambda: [self._opened.look(ref) for ref in there], limiter=self._limiter
            )
            for ref, entry in zip(there, entries, strict=True):
                if entry is not None:
                    entry = entry._replace(fresh=seen[ref] == flags.CREATE)
                changes.append(Change(ref, entry))
        return changes
