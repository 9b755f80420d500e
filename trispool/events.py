"""What happens, for those who watch: a ring of the newest events, out of which each reader takes them at its own pace.

Rules it keeps:

1. A reader is a position in the ring. Nothing is queued for it, so one that does not read costs nothing and delays
   nobody; one that comes back too late is told `reset` and goes on with what happens then.
2. Events are made at most every `TICK_SECONDS`: what changed several times in between is told once, as it is now.
3. While nobody reads, nothing is gathered. It goes on for `LINGER_SECONDS` after the last reader has gone, so that who
   comes back after a broken connection is told what it has missed.

An event's id is `<this run of the service>-<its number>`. Ids of another run, or from before a time in which nothing
was gathered, are too old like those that have left the ring.
"""

from __future__ import annotations

import math
import secrets
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import msgspec
import trio

from trispool.operating import Event

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Mapping, Sequence

    from trispool.control import SpoolStatus
    from trispool.figures import Figures

__all__ = ["EventHub"]

TICK_SECONDS: Final = 0.25
"""Between two looks at what has changed."""

HEARTBEAT_SECONDS: Final = 15.0
"""A reader to whom nothing is told for so long is given None: it has to write something, to learn that a client has
gone, and proxies close connections on which nothing moves (nginx after 60 s)."""

LINGER_SECONDS: Final = 60.0
"""Browsers come back after some 3 s; a proxy or a laptop that sleeps takes longer."""

MAX_EVENTS: Final = 4096
"""Four ticks a second with three events each: more than five minutes."""

MAX_BYTES: Final = 8 * 1024 * 1024
"""Of all events in the ring, as JSON."""

MAX_TASKS: Final = 200
"""Of each spool, so many tasks are told of in a tick; more than that no person can follow."""

_encode: Final = msgspec.json.Encoder().encode


class EventHub:
    """See the module. It has one owner and changes only between two awaits, so it needs no lock.

    Args:
        figures: What counts the spools, by their names.
        document: A spool as a JSON document, with its workers as documents with a `pid` under `workers`.
    """

    def __init__(self, figures: Mapping[str, Figures], document: Callable[[SpoolStatus], Mapping[str, object]]) -> None:
        self._figures = figures
        self._document = document
        self._run = secrets.token_hex(4)
        # The ring holds the events from number `_first` up to, but not including, `_next`.
        self._ring: deque[tuple[Event, int]] = deque()
        self._size = 0
        self._first = self._next = 1
        self._pending: dict[tuple[str, str], tuple[str, Mapping[str, object]]] = {}
        self._readers = 0
        self._wanted_until = -math.inf
        self._gathers = False
        self._wanted = trio.Event()
        self._news = trio.Event()
        self._closed = False
        self._spools: dict[str, Mapping[str, object]] = {}
        self._workers: dict[str, dict[int, Mapping[str, Any]]] = {}

    def publish(self, name: str, key: str, data: Mapping[str, object]) -> None:
        """Tell something with the next tick.

        Args:
            name: The event's name.
            key: What it is about. Of events of one name and key in a tick only the last is told.
            data: A JSON document, which must not be changed any more.
        """
        if self._gathers:
            self._pending.pop((name, key), None)  # it stands where it happened last
            self._pending[name, key] = (name, data)

    def read(self, after: str | None = None) -> AsyncGenerator[Event | None, None]:
        """What happens from now on, or after the event of that id; None every `HEARTBEAT_SECONDS`.

        It ends when the hub is closed. To be closed (`contextlib.aclosing`) by who no longer reads it.
        """
        # Now, and not when the first event is asked for: what happens in between shall not be missed.
        self._want()
        return self._read(self._next if after is None else self._position(after))

    async def run_events(
        self,
        sample: Callable[[], Sequence[SpoolStatus]],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Make events while somebody reads, until the hub is closed. If cancelled, it closes the hub.

        Args:
            sample: The spools at this moment.
            task_status: For `nursery.start`.
        """
        task_status.started()
        try:
            while not self._closed:
                await self._wanted.wait()
                while self._is_wanted():
                    await trio.sleep(TICK_SECONDS)
                    self._tick(sample())
                self._stop_gathering()
        finally:
            self.close()

    def close(self) -> None:
        """End `run_events` and, once they have read what is there, all readers."""
        self._closed = True
        self._stop_gathering()
        self._wanted.set()
        self._news.set()

    @property
    def readers(self) -> int:
        """How many read."""
        return self._readers

    # Readers

    def _position(self, after: str) -> int | None:
        """The number of the event that comes after the one of that id; None: nobody knows any more."""
        run, _, number = after.partition("-")
        if run == self._run and number.isascii() and number.isdigit() and len(number) < 19:
            position = int(number) + 1
            if self._first <= position <= self._next:
                return position
        return None

    async def _read(self, position: int | None) -> AsyncGenerator[Event | None, None]:
        self._readers += 1
        try:
            while True:
                if position is None or position < self._first:
                    position = self._next
                    yield Event(f"{self._run}-{position - 1}", "reset", {})
                elif position < self._next:
                    event, _ = self._ring[position - self._first]
                    position += 1
                    yield event
                elif self._closed:
                    return
                else:
                    with trio.move_on_after(HEARTBEAT_SECONDS) as waiting:
                        await self._news.wait()
                    if waiting.cancelled_caught:
                        yield None
        finally:
            self._readers -= 1
            # Not the clock of a loop that has ended: a reader may be collected as garbage then.
            with suppress(RuntimeError):
                self._wanted_until = trio.current_time() + LINGER_SECONDS

    def _want(self) -> None:
        self._wanted_until = trio.current_time() + LINGER_SECONDS
        if not self._gathers and not self._closed:
            self._gathers = True
            for figures in self._figures.values():
                figures.watch(MAX_TASKS)
            self._wanted.set()

    def _is_wanted(self) -> bool:
        return not self._closed and (self._readers > 0 or trio.current_time() < self._wanted_until)

    def _stop_gathering(self) -> None:
        self._gathers = False
        for figures in self._figures.values():
            figures.stop_watching()
        if self._closed:
            return
        # Whoever comes back has missed something.
        self._wanted = trio.Event()
        self._pending.clear()
        self._spools.clear()
        self._workers.clear()
        self._ring.clear()
        self._size = 0
        self._next += 1
        self._first = self._next

    # Events

    def _tick(self, statuses: Sequence[SpoolStatus]) -> None:
        before = self._next
        self._append_tasks()
        self._append_spools(statuses)
        pending, self._pending = self._pending, {}
        for name, data in pending.values():
            self._append(name, data)
        if self._next > before:
            self._news.set()
            self._news = trio.Event()

    def _append_tasks(self) -> None:
        changed = []
        untold = 0
        for spool, figures in self._figures.items():
            changes, more = figures.take_changes()
            changed += [{"id": task_id, "spool": spool, "state": state.value} for task_id, state in changes.items()]
            untold += more
        if changed:
            self._append("tasks", {"changed": changed, "more": untold})

    def _append_spools(self, statuses: Sequence[SpoolStatus]) -> None:
        spools, workers, gone = [], [], []
        for status in statuses:
            name = status.name
            document = dict(self._document(status))
            present = _workers(document)
            rates = self._figures[name].rates()
            document["rates"] = {key: round(rate, 3) for key, rate in rates._asdict().items()}
            if document != self._spools.get(name):
                self._spools[name] = document
                spools.append(document)
            known = self._workers.get(name, {})
            if present != known:
                self._workers[name] = present
                workers += [{"spool": name, **item} for pid, item in present.items() if item != known.get(pid)]
                gone += [pid for pid in known if pid not in present]
        if spools:
            self._append("spools", {"spools": spools})
        if workers or gone:
            self._append("workers", {"changed": workers, "gone": gone})

    def _append(self, name: str, data: Mapping[str, object]) -> None:
        size = len(_encode(data))
        self._ring.append((Event(f"{self._run}-{self._next}", name, data), size))
        self._next += 1
        self._size += size
        while len(self._ring) > MAX_EVENTS or (self._size > MAX_BYTES and len(self._ring) > 1):
            _, size = self._ring.popleft()
            self._size -= size
            self._first += 1


def _workers(document: dict[str, Any]) -> dict[int, Mapping[str, Any]]:
    """The worker processes of a spool's document, taken out of it: they have events of their own."""
    workers: Sequence[Mapping[str, Any]] = document.pop("workers", ())
    return {item["pid"]: item for item in workers if item["pid"]}
