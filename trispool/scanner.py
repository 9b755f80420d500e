"""Finds tasks that others put into, or took out of, a spool.

Two ways, because neither is enough: the store's watch tells at once but may miss things, and a scan every `frequency`
seconds comes late. What a scan costs depends on what can have happened:

- Nothing can have come or gone unseen, says the store, and the observer misses nothing: nothing is looked at. On a
  local file system, where the watch misses nothing, that is the rule.
- Else what is there is compared with what is known, by its names: on NFS a file is found within `frequency`.
- The full look misses nothing: not even that somebody has changed the time of a task, of which neither names nor, on
  some file systems, the watch can tell. A million files take it five seconds. It is always made where it takes less
  than a `FULL_SHARE`th of the time, when somebody asks for a scan, and when the watch has missed something.
"""

from __future__ import annotations

import math
from contextlib import aclosing
from typing import TYPE_CHECKING, Final, Protocol

import structlog
import trio

from trispool.errors import SpoolUnavailable
from trispool.histogram import Histogram

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from trispool.store import Change, SpoolStore
    from trispool.task import Entry

__all__ = ["Observer", "Scanner"]

RETRY_SECONDS: Final = 5.0
"""After a scan that failed (directory unmounted, no descriptors) the next one comes this soon at the latest."""

FULL_SHARE: Final = 200
"""After a full look the next one comes when so many times as long has passed as it took: half a percent of a core."""

LONGEST_SECONDS: Final = 600.0
"""But so soon in any case."""

WATCH_SECONDS: Final = 1.0
"""For so long the first scan waits for the watch to be set, so that no second one is needed for what came between."""

_log = structlog.get_logger()


class Observer(Protocol):
    """Who is told what was found. The dispatcher is one."""

    def scan_begins(self) -> None:
        """What is not seen to be there from now until `scan_ended` is gone."""
        ...

    def scan_saw(self, entries: Sequence[Entry]) -> None:
        """These wait."""
        ...

    def scan_unknown(self, refs: Sequence[str]) -> Sequence[str]:
        """These wait; returns those of which it has to be told more, with `scan_saw`."""
        ...

    async def scan_ended(self) -> None:
        """All has been seen."""
        ...

    @property
    def is_missing_any(self) -> bool:
        """Whether a task has vanished since the last scan began, and the next one has to say if it is elsewhere."""
        ...

    def changed(self, changes: Sequence[Change]) -> None:
        """These came, went, or are not what they were."""
        ...


class Scanner:
    """Scans one spool and watches it.

    Args:
        store: The spool's store.
        observer: Who is told.
        frequency: Seconds from the end of one scan to the next.
        times: How long scans take is counted there.

    Attributes:
        problem: Why the last scan failed, or None.
    """

    def __init__(self, store: SpoolStore, observer: Observer, frequency: float, times: Histogram | None = None) -> None:
        self._store = store
        self._observer = observer
        self._frequency = frequency
        self._scanned_at = -math.inf
        self._full_at = -math.inf
        self._wait = trio.CancelScope()
        self._finished = trio.Event()
        self._again = False
        self._watching = trio.Event()
        self._times = times or Histogram()
        self.problem: str | None = None

    @property
    def frequency(self) -> float:
        """Seconds from the end of one scan to the next."""
        return self._frequency

    def set_frequency(self, seconds: float) -> None:
        """Scan every `seconds` from now on; a wait that is under way ends accordingly."""
        self._frequency = seconds
        self._wait.deadline = self._scanned_at + self._pause()

    async def scan_now(self) -> None:
        """Look at everything, and return when that is done, or the scanner has ended."""
        # One that is under way may have passed a file by already.
        await self._request().wait()

    def _request(self) -> trio.Event:
        self._again = True
        self._wait.cancel()
        return self._finished

    async def run_scanner(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Scan and watch until cancelled. Started once the first scan has been made."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch)
                with trio.move_on_after(WATCH_SECONDS):
                    await self._watching.wait()
                await self._scan()
                task_status.started()
                while True:
                    if not self._again:
                        with trio.CancelScope(deadline=self._scanned_at + self._pause()) as self._wait:
                            await trio.sleep_forever()
                    await self._scan()
        finally:
            self._finished.set()

    async def _watch(self) -> None:
        async with aclosing(self._store.watch()) as watch:
            async for changes in watch:
                if changes is None:
                    self._watching.set()
                    self._request()
                else:
                    self._observer.changed(changes)

    async def _scan(self) -> None:
        began = trio.current_time()
        is_full = self._again or self.problem is not None or began >= self._full_at
        self._again = False
        # Whoever asks while this scan is under way waits for the next one.
        finished, self._finished = self._finished, trio.Event()
        try:
            if is_full:
                await self._scan_or_tell(self._store.scan())
                seconds = trio.current_time() - began
                self._full_at = began + min(LONGEST_SECONDS, FULL_SHARE * seconds)
                if self.problem is None:
                    self._times.observe(seconds)
            elif self._observer.is_missing_any or not await self._store.is_unchanged():
                await self._scan_or_tell(self._store.scan(self._observer.scan_unknown))
        finally:
            self._scanned_at = trio.current_time()
            finished.set()

    async def _scan_or_tell(self, scan: AsyncGenerator[Sequence[Entry], None]) -> None:
        self._observer.scan_begins()
        try:
            async with aclosing(scan) as chunks:
                async for entries in chunks:
                    self._observer.scan_saw(entries)
        except SpoolUnavailable as error:
            if self.problem is None:
                _log.error("scan_failed", error=str(error))
            self.problem = str(error)
        else:
            if self.problem is not None:
                _log.info("scan_works_again")
            self.problem = None
            await self._observer.scan_ended()

    def _pause(self) -> float:
        return self._frequency if self.problem is None else min(self._frequency, RETRY_SECONDS)
