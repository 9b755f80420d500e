"""Events: who is told what and when, on Trio's virtual clock; the spools are values."""

from __future__ import annotations

import gc
import tracemalloc
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import trio

from trispool import events
from trispool.control import SpoolStatus, WorkerStatus
from trispool.events import HEARTBEAT_SECONDS, LINGER_SECONDS, MAX_TASKS, TICK_SECONDS, EventHub
from trispool.figures import Figures
from trispool.task import TaskState

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Sequence

    from trio.testing import MockClock

    from trispool.operating import Event


def document(status: SpoolStatus) -> dict[str, object]:
    return {
        "name": status.name,
        "ready": status.ready,
        "workers": [{"pid": worker.pid, "state": worker.state} for worker in status.workers],
    }


class Spools:
    """Spools as they are at this moment, and how often that was asked."""

    def __init__(self, *names: str) -> None:
        self.figures = {name: Figures(trio.current_time) for name in names or ("default",)}
        self.statuses = [SpoolStatus(name, None, 30, 1, False, "os") for name in self.figures]
        self.samples = 0

    def __call__(self) -> Sequence[SpoolStatus]:
        self.samples += 1
        return list(self.statuses)

    def set(self, number: int = 0, **changes: Any) -> None:
        self.statuses[number] = replace(self.statuses[number], **changes)


@asynccontextmanager
async def running(spools: Spools) -> AsyncIterator[EventHub]:
    hub = EventHub(spools.figures, document)
    with trio.fail_after(3600):
        async with trio.open_nursery() as nursery:
            await nursery.start(hub.run_events, spools)
            yield hub
            nursery.cancel_scope.cancel()


async def next_of(reader: AsyncGenerator[Event | None, None], name: str) -> Event:
    async for event in reader:
        if event is not None and event.name == name:
            return event
    raise EOFError


async def test_a_reader_is_told_of_what_happens_from_the_moment_it_asked(autojump_clock: MockClock) -> None:
    spools = Spools()
    async with running(spools) as hub:
        hub.publish("settings", "default", {"frequency": 1})
        async with aclosing(hub.read()) as reader:
            hub.publish("settings", "default", {"frequency": 2})
            spools.figures["default"].changed("t", TaskState.HELD)
            assert (await next_of(reader, "tasks")).data == {
                "changed": [{"id": "t", "spool": "default", "state": "held"}],
                "more": 0,
            }
            assert (await next_of(reader, "settings")).data == {"frequency": 2}


async def test_what_changes_often_is_told_once_a_tick_as_it_is_then(autojump_clock: MockClock) -> None:
    spools = Spools()
    async with running(spools) as hub, aclosing(hub.read()) as reader:
        await next_of(reader, "spools")
        began = trio.current_time()
        for number in range(100):
            spools.set(ready=number)
            spools.figures["default"].changed("t", TaskState.HELD if number % 2 else TaskState.READY)
            hub.publish("bulk", "b1", {"done": number})
            hub.publish("bulk", "b2", {"done": -number})
            await trio.sleep(0.002)
        seen = [await anext(reader) for _ in range(4)]
        assert [event and event.name for event in seen] == ["tasks", "spools", "bulk", "bulk"]
        tasks, spool, first, second = [event.data for event in seen if event is not None]
        assert tasks["changed"] == [{"id": "t", "spool": "default", "state": "held"}]
        [told] = spool["spools"]  # type: ignore[misc] # a list of documents
        assert told["ready"] == 99
        assert (first, second) == ({"done": 99}, {"done": -99})
        assert trio.current_time() - began < 2 * TICK_SECONDS


async def test_only_spools_and_workers_that_changed_are_told(autojump_clock: MockClock) -> None:
    spools = Spools("one", "two")
    spools.set(0, workers=(WorkerStatus(1, "idle"), WorkerStatus(2, "idle"), WorkerStatus(0, "down")))
    async with running(spools) as hub, aclosing(hub.read()) as reader:
        told = (await next_of(reader, "spools")).data
        assert [spool["name"] for spool in told["spools"]] == ["one", "two"]  # type: ignore[attr-defined]
        assert "workers" not in told["spools"][0]  # type: ignore[index]
        assert told["spools"][0]["rates"]["ended"] == 0  # type: ignore[index]
        assert (await next_of(reader, "workers")).data == {
            "changed": [{"spool": "one", "pid": 1, "state": "idle"}, {"spool": "one", "pid": 2, "state": "idle"}],
            "gone": [],
        }
        spools.set(1, ready=5)
        event = await next_of(reader, "spools")
        assert [spool["name"] for spool in event.data["spools"]] == ["two"]  # type: ignore[attr-defined]
        spools.set(0, workers=(WorkerStatus(2, "busy"), WorkerStatus(3, "starting")))
        assert await anext(reader) == replace(
            event,
            id=_after(event, 1),
            name="workers",
            data={
                "changed": [
                    {"spool": "one", "pid": 2, "state": "busy"},
                    {"spool": "one", "pid": 3, "state": "starting"},
                ],
                "gone": [1],
            },
        )
        before = trio.current_time()
        assert await anext(reader) is None, "nothing else has changed"
        assert trio.current_time() - before == pytest.approx(HEARTBEAT_SECONDS)


async def test_of_very_many_tasks_only_some_are_told(autojump_clock: MockClock) -> None:
    spools = Spools()
    async with running(spools) as hub, aclosing(hub.read()) as reader:
        for number in range(MAX_TASKS + 50):
            spools.figures["default"].changed(str(number), TaskState.HELD)
        told = (await next_of(reader, "tasks")).data
        assert len(told["changed"]) == MAX_TASKS  # type: ignore[arg-type]
        assert told["more"] == 50


async def test_a_reader_that_comes_back_is_told_what_it_has_missed_and_nothing_twice(autojump_clock: MockClock) -> None:
    spools = Spools()
    async with running(spools) as hub:
        async with aclosing(hub.read()) as reader:
            hub.publish("settings", "a", {"n": 1})
            last = (await next_of(reader, "settings")).id
        await trio.sleep(LINGER_SECONDS / 2)
        hub.publish("settings", "b", {"n": 2})
        await trio.sleep(TICK_SECONDS * 2)
        hub.publish("settings", "b", {"n": 3})
        async with aclosing(hub.read(last)) as reader:
            assert [(await next_of(reader, "settings")).data["n"] for _ in range(2)] == [2, 3]
        async with aclosing(hub.read(last)) as reader:
            event = await anext(reader)
            assert event is not None
            assert event.data["n"] == 2


@pytest.mark.parametrize(
    "after", ["", "x", "-", "0-1", "{run}-", "{run}--1", "{run}-99999", "{run}-" + "9" * 30, "{run}-²"]
)
async def test_an_unknown_id_is_told_to_look_afresh_and_goes_on_from_there(
    after: str, autojump_clock: MockClock
) -> None:
    spools = Spools()
    async with running(spools) as hub:
        async with aclosing(hub.read()) as reader:
            run = (await next_of(reader, "spools")).id.partition("-")[0]
        async with aclosing(hub.read(after.replace("{run}", run))) as reader:
            event = await anext(reader)
            assert event is not None
            assert (event.name, event.data) == ("reset", {})
            hub.publish("settings", "a", {"n": 1})
            assert (await next_of(reader, "settings")).data == {"n": 1}
        async with aclosing(hub.read(event.id)) as reader:
            assert (await next_of(reader, "settings")).data == {"n": 1}, "its own id is a known one"


async def test_ids_of_another_run_are_unknown(autojump_clock: MockClock) -> None:
    spools = Spools()
    async with running(spools) as hub, aclosing(hub.read()) as reader:
        last = (await next_of(reader, "spools")).id
    async with running(Spools()) as hub, aclosing(hub.read()) as reader:
        await next_of(reader, "spools")
        async with aclosing(hub.read(last)) as again:
            event = await anext(again)
            assert event is not None
            assert event.name == "reset"


async def test_nothing_is_gathered_while_nobody_reads(autojump_clock: MockClock) -> None:
    spools = Spools()
    figures = spools.figures["default"]
    async with running(spools) as hub:
        await trio.sleep(100)
        figures.changed("t", TaskState.HELD)
        assert spools.samples == 0
        assert figures.take_changes() == ({}, 0)
        async with aclosing(hub.read()) as reader:
            last = (await next_of(reader, "spools")).id
            assert spools.samples
        await trio.sleep(LINGER_SECONDS + 1)
        sampled = spools.samples
        figures.changed("t", TaskState.HELD)
        hub.publish("settings", "a", {"n": 1})
        await trio.sleep(100)
        assert spools.samples == sampled
        assert figures.take_changes() == ({}, 0)
        async with aclosing(hub.read(last)) as reader:
            event = await anext(reader)
            assert event is not None
            assert event.name == "reset", "it has missed something"
            assert (await next_of(reader, "spools")).data["spools"], "gathering begins anew"


async def test_a_reader_that_is_too_slow_is_told_to_look_afresh(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    monkeypatch.setattr(events, "MAX_EVENTS", 10)
    spools = Spools()
    async with running(spools) as hub, aclosing(hub.read()) as reader:
        await next_of(reader, "spools")
        for number in range(20):
            hub.publish("settings", str(number), {"n": number})
        await trio.sleep(TICK_SECONDS * 2)
        event = await anext(reader)
        assert event is not None
        assert event.name == "reset"
        hub.publish("settings", "a", {"n": 21})
        event = await anext(reader)
        assert event is not None
        assert event.data == {"n": 21}


async def test_what_is_kept_for_those_who_come_back_is_bounded_in_bytes(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    monkeypatch.setattr(events, "MAX_BYTES", 10_000)
    async with running(Spools()) as hub, aclosing(hub.read()) as reader:
        first = await next_of(reader, "spools")
        for number in range(20):
            hub.publish("settings", str(number), {"text": "x" * 990})
        await trio.sleep(TICK_SECONDS * 2)
        async with aclosing(hub.read(first.id)) as again:
            assert [event and event.name for event in [await anext(again)]] == ["reset"]
        async with aclosing(hub.read(_after(first, 12))) as again:
            event = await anext(again)
            assert event is not None
            assert event.name == "settings"


def _after(event: Event, count: int) -> str:
    run, _, number = event.id.partition("-")
    return f"{run}-{int(number) + count}"


async def test_readers_that_do_not_read_delay_nobody_and_cost_nothing(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    monkeypatch.setattr(events, "MAX_EVENTS", 300)
    spools = Spools()
    figures = spools.figures["default"]

    async def work(ticks: int) -> None:
        for number in range(ticks):
            spools.set(ready=number)
            for task in range(20):
                figures.changed(f"{number}-{task}", TaskState.HELD)
            await trio.sleep(TICK_SECONDS)

    async with running(spools) as hub:
        stalled = [hub.read() for _ in range(999)]
        for reader in stalled:
            await anext(reader)  # and no more
        async with aclosing(hub.read()) as reader:
            seen = 0

            async def read() -> None:
                nonlocal seen
                async for event in reader:
                    seen += event is not None and event.name == "tasks"

            async with trio.open_nursery() as nursery:
                nursery.start_soon(read)
                tracemalloc.start()
                try:
                    await work(events.MAX_EVENTS)  # the ring is full now
                    gc.collect()
                    full = tracemalloc.get_traced_memory()[0]
                    await work(events.MAX_EVENTS)
                    gc.collect()
                    assert tracemalloc.get_traced_memory()[0] < full + 100_000
                finally:
                    tracemalloc.stop()
                assert seen > events.MAX_EVENTS
                nursery.cancel_scope.cancel()
        for stalled_reader in stalled:
            event = await anext(stalled_reader)
            assert event is not None
            assert event.name == "reset"
            await stalled_reader.aclose()


async def test_readers_end_when_it_is_closed_having_read_what_is_there(autojump_clock: MockClock) -> None:
    spools = Spools()
    hub = EventHub(spools.figures, document)
    async with trio.open_nursery() as nursery:
        await nursery.start(hub.run_events, spools)
        async with aclosing(hub.read()) as reader, aclosing(hub.read()) as waiting:
            await next_of(reader, "spools")
            hub.publish("settings", "a", {"n": 1})
            await trio.sleep(TICK_SECONDS * 2)
            hub.close()
            assert [event.name async for event in reader if event] == ["settings"]
            assert "settings" in [event.name async for event in waiting if event]
    # The nursery is empty: `run_events` has ended.
    assert [event async for event in hub.read()] == []


async def test_a_reader_that_waits_ends_when_it_is_cancelled_with_the_service(autojump_clock: MockClock) -> None:
    spools = Spools()
    async with trio.open_nursery() as outer, running(spools) as hub:
        reader = hub.read()
        await next_of(reader, "spools")

        async def drain() -> None:
            async with aclosing(reader):
                async for _ in reader:
                    pass

        outer.start_soon(drain)
        await trio.sleep(1)
        assert hub.readers == 1
    assert hub.readers == 0


async def test_it_knows_how_many_read(autojump_clock: MockClock) -> None:
    spools = Spools()
    async with running(spools) as hub, aclosing(hub.read()) as one:
        await anext(one)
        async with aclosing(hub.read()) as two:
            await anext(two)
            assert hub.readers == 2
        assert hub.readers == 1
