"""Scanner: when it looks, on Trio's virtual clock; the store is in memory, the observer takes notes."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio

from tests.fakes import MemoryStore
from trispool.histogram import Histogram
from trispool.packet import new_task
from trispool.scanner import LONGEST_SECONDS, RETRY_SECONDS, WATCH_SECONDS, Scanner

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence

    from trio.testing import MockClock

    from trispool.store import Change
    from trispool.task import Entry

FREQUENCY = 30.0


class Notes:
    """What an observer was told, and when."""

    def __init__(self) -> None:
        self.begun: list[float] = []
        self.ended: list[float] = []
        self.seen: list[str] = []
        self.changes: list[Change] = []
        self.changed_at: list[float] = []
        self.looked_at: list[str] = []
        self.known: set[str] = set()
        self.misses = True

    def scan_begins(self) -> None:
        self.begun.append(trio.current_time())
        self.seen = []
        self.looked_at = []

    def scan_saw(self, entries: Sequence[Entry]) -> None:
        self.seen += [entry.id for entry in entries]
        self.looked_at += [entry.id for entry in entries]

    def scan_unknown(self, refs: Sequence[str]) -> Sequence[str]:
        self.seen += [ref for ref in refs if ref in self.known]
        return [ref for ref in refs if ref not in self.known]

    @property
    def is_missing_any(self) -> bool:
        return self.misses

    async def scan_ended(self) -> None:
        await trio.lowlevel.checkpoint()
        self.ended.append(trio.current_time())

    def changed(self, changes: Sequence[Change]) -> None:
        self.changes += changes
        self.changed_at.append(trio.current_time())


class SlowStore(MemoryStore):
    """A scan takes so many seconds; the task list is read at its beginning, as a directory's first part is."""

    seconds = 0.0

    async def scan(
        self, unknown: Callable[[Sequence[str]], Sequence[str]] | None = None
    ) -> AsyncGenerator[Sequence[Entry], None]:
        async for entries in super().scan(unknown):
            yield entries
        await trio.sleep(self.seconds)


@asynccontextmanager
async def scanning(store: MemoryStore, frequency: float = FREQUENCY) -> AsyncIterator[tuple[Scanner, Notes]]:
    notes = Notes()
    scanner = Scanner(store, notes, frequency)
    async with trio.open_nursery() as nursery:
        await nursery.start(scanner.run_scanner)
        yield scanner, notes
        nursery.cancel_scope.cancel()


async def test_started_means_that_the_first_scan_has_been_made(autojump_clock: MockClock) -> None:
    store = SlowStore()
    store.seconds = 7
    entries = [store.put(new_task({"n": str(number)})) for number in range(7)]
    async with scanning(store) as (_, notes):
        assert (notes.begun, notes.ended) == ([0], [7])
        assert notes.seen == [entry.id for entry in entries]


async def test_it_scans_a_period_after_the_end_of_the_last_scan(autojump_clock: MockClock) -> None:
    store = SlowStore()
    store.seconds = 4
    async with scanning(store) as (scanner, notes):
        assert scanner.frequency == FREQUENCY
        await trio.sleep(70)
        assert notes.begun == [0, 34, 68]


@pytest.mark.parametrize(
    ("frequency", "next_scans"),
    [(5.0, [20, 25, 30]), (25.0, [25, 50, 75]), (50.0, [50, 100, 150])],
    ids=["at-once", "shorter", "longer"],
)
async def test_a_new_frequency_counts_for_a_wait_that_is_under_way(
    frequency: float, next_scans: list[float], autojump_clock: MockClock
) -> None:
    async with scanning(MemoryStore()) as (scanner, notes):
        await trio.sleep(20)
        scanner.set_frequency(frequency)
        await trio.sleep(3 * frequency + 1)
        assert notes.begun[1:4] == next_scans


async def test_a_new_frequency_during_a_scan_counts_from_its_end(autojump_clock: MockClock) -> None:
    store = SlowStore()
    store.seconds = 10
    async with scanning(store) as (scanner, notes):
        await trio.sleep(35)
        assert notes.begun == [0, 40]
        scanner.set_frequency(3)
        await trio.sleep(12)
        assert notes.begun == [0, 40, 53]


async def test_scan_now_scans_and_returns_when_that_is_done(autojump_clock: MockClock) -> None:
    store = SlowStore()
    store.seconds = 2
    async with scanning(store) as (scanner, notes):
        await trio.sleep(8)
        entry = store.put(new_task({"n": "1"}))
        await scanner.scan_now()
        assert trio.current_time() == 12
        assert notes.seen == [entry.id]
        assert notes.begun == [0, 10]
        await trio.sleep(31)
        assert notes.begun == [0, 10, 42]


async def test_scan_now_during_a_scan_runs_one_more_for_all_who_ask(autojump_clock: MockClock) -> None:
    store = SlowStore()
    store.seconds = 10
    returned: list[tuple[float, list[str]]] = []
    async with scanning(store) as (scanner, notes):

        async def ask(seconds: float) -> None:
            await trio.sleep(seconds)
            await scanner.scan_now()
            returned.append((trio.current_time(), notes.seen))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, 32)  # at 42: the second scan has begun at 40, and has passed the new task
            nursery.start_soon(ask, 35)
            await trio.sleep(31)
            entry = store.put(new_task({"n": "1"}))
        assert notes.begun == [0, 40, 50]
        assert returned == [(60, [entry.id])] * 2
        await trio.sleep(31)
        assert notes.begun == [0, 40, 50, 90]


async def test_what_the_watch_tells_is_passed_on_at_once(autojump_clock: MockClock) -> None:
    store = MemoryStore()
    async with scanning(store) as (_, notes):
        await trio.sleep(10)
        entry = store.put_by_other(new_task({"n": "1"}))
        await trio.testing.wait_all_tasks_blocked()
        assert [change.entry for change in notes.changes] == [entry]
        assert notes.changed_at == [10]
        assert notes.begun == [0]


async def test_lost_events_cause_a_scan(autojump_clock: MockClock) -> None:
    store = MemoryStore()
    async with scanning(store) as (_, notes):
        await trio.sleep(10)
        store.lose_events()
        await trio.sleep(1)
        assert notes.begun == [0, 10]


async def test_lost_events_during_a_scan_cause_another(autojump_clock: MockClock) -> None:
    store = SlowStore()
    store.seconds = 10
    async with scanning(store) as (_, notes):
        await trio.sleep(35)
        store.lose_events()
        await trio.sleep(60)
        assert notes.begun == [0, 40, 50, 90]


async def test_the_first_scan_comes_when_the_watch_is_set(autojump_clock: MockClock) -> None:
    class Slowly(MemoryStore):
        async def watch(self) -> AsyncGenerator[Sequence[Change] | None, None]:
            await trio.sleep(WATCH_SECONDS / 2)
            async for changes in super().watch():
                yield changes

    async with scanning(Slowly()) as (_, notes):
        await trio.sleep(5)
        assert notes.begun == [WATCH_SECONDS / 2]


async def test_a_watch_that_takes_too_long_costs_a_second_scan(autojump_clock: MockClock) -> None:
    class TooSlowly(MemoryStore):
        async def watch(self) -> AsyncGenerator[Sequence[Change] | None, None]:
            await trio.sleep(9)
            async for changes in super().watch():
                yield changes

    async with scanning(TooSlowly()) as (_, notes):
        await trio.sleep(20)
        assert notes.begun == [WATCH_SECONDS, 9]


@pytest.mark.parametrize(("frequency", "pause"), [(FREQUENCY, RETRY_SECONDS), (2.0, 2.0)])
async def test_a_store_that_fails_is_tried_again_soon_and_recovers(
    frequency: float, pause: float, autojump_clock: MockClock
) -> None:
    store = MemoryStore()
    store.put(new_task({"n": "1"}))
    store.unavailable = "unmounted"
    async with scanning(store, frequency) as (scanner, notes):
        assert scanner.problem == "unmounted"
        await trio.sleep(1.5 * pause)
        assert (notes.begun, notes.ended) == ([0, pause], [])
        store.unavailable = None
        await trio.sleep(pause)
        assert scanner.problem is None
        assert (notes.ended, len(notes.seen)) == ([2 * pause], 1)
        await trio.sleep(frequency)
        assert notes.begun == [0, pause, 2 * pause, 2 * pause + frequency]


async def test_where_a_full_look_takes_long_most_scans_go_by_names(autojump_clock: MockClock) -> None:
    store = SlowStore()
    store.seconds = 1.0
    known, other = store.put(new_task({"n": "1"})), store.put(new_task({"n": "2"}))
    async with scanning(store) as (_, notes):
        assert notes.looked_at == [known.id, other.id]
        notes.known = {known.ref}
        for number in range(1, 8):
            await trio.sleep(31)
            assert notes.seen == [known.id, other.id]
            # A second is half a percent of 200, and the first scan after that is the seventh.
            assert notes.looked_at == ([known.id, other.id] if number == 7 else [other.id])


async def test_a_full_look_is_never_long_ago(autojump_clock: MockClock) -> None:
    store = SlowStore()
    store.seconds = 100.0
    known = store.put(new_task({"n": "1"}))
    async with scanning(store) as (_, notes):
        notes.known = {known.ref}
        await trio.sleep(LONGEST_SECONDS - 101)
        assert (len(notes.begun), notes.looked_at) == (5, [])
        await trio.sleep(131)
        assert (len(notes.begun), notes.looked_at) == (6, [known.id])


@pytest.mark.parametrize("why", ["asked", "lost", "failed"])
async def test_a_full_look_is_taken_at_once_when_it_is_asked_for_or_something_was_missed(
    why: str, autojump_clock: MockClock
) -> None:
    store = SlowStore()
    store.seconds = 1.0
    known = store.put(new_task({"n": "1"}))
    async with scanning(store) as (scanner, notes):
        notes.known = {known.ref}
        notes.misses, store.unchanged = False, True
        if why == "asked":
            await scanner.scan_now()
        elif why == "lost":
            store.lose_events()
            await trio.sleep(2)
        else:
            notes.misses = True
            store.unavailable = "unmounted"
            await trio.sleep(31)
            assert scanner.problem == "unmounted"
            notes.misses, store.unavailable = False, None
            await trio.sleep(RETRY_SECONDS + 1)
            assert scanner.problem is None
        assert notes.looked_at == [known.id]


@pytest.mark.parametrize(("misses", "unchanged", "scans"), [(False, True, 1), (False, False, 3), (True, True, 3)])
async def test_what_certainly_has_not_changed_is_not_looked_at(
    misses: bool, unchanged: bool, scans: int, autojump_clock: MockClock
) -> None:
    store = SlowStore()
    store.seconds = 1.0
    known = store.put(new_task({"n": "1"}))
    times = Histogram()
    notes = Notes()
    scanner = Scanner(store, notes, FREQUENCY, times)
    async with trio.open_nursery() as nursery:
        await nursery.start(scanner.run_scanner)
        notes.known = {known.ref}
        notes.misses, store.unchanged = misses, unchanged
        await trio.sleep(65)
        assert len(notes.begun) == len(notes.ended) == scans
        assert times.count == 1, "only full looks are timed"
        nursery.cancel_scope.cancel()


async def test_scan_now_returns_when_the_store_fails(autojump_clock: MockClock) -> None:
    store = MemoryStore()
    async with scanning(store) as (scanner, notes):
        store.unavailable = "unmounted"
        await scanner.scan_now()
        assert (trio.current_time(), scanner.problem) == (0, "unmounted")
        assert notes.ended == [0]


async def test_scan_now_returns_when_the_scanner_ends(autojump_clock: MockClock) -> None:
    store = SlowStore()
    store.seconds = 10
    with trio.fail_after(100):
        async with trio.open_nursery() as asking:
            async with scanning(store) as (scanner, _):
                asking.start_soon(scanner.scan_now)
                await trio.sleep(5)
                asking.start_soon(scanner.scan_now)
                await trio.sleep(1)
            await scanner.scan_now()
        assert trio.current_time() == 16


async def test_it_tells_how_long_the_scans_took_that_were_made_to_their_end(autojump_clock: MockClock) -> None:
    store = SlowStore()
    store.seconds = 2.0
    store.unavailable = "unmounted"
    times = Histogram()
    scanner = Scanner(store, Notes(), FREQUENCY, times)
    async with trio.open_nursery() as nursery:
        await nursery.start(scanner.run_scanner)
        assert times.count == 0
        store.unavailable = None
        await scanner.scan_now()
        assert times.count == 1
        assert 2.0 <= times.sum < 2.1
        nursery.cancel_scope.cancel()
