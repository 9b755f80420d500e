"""Who is ended for whom, when there are as many connections as there may be; in Trio's time."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import trio

from trispool import memory
from trispool.admin import ServerLimits
from trispool.admin import crowd as crowds
from trispool.admin.crowd import FULL_SECONDS, HELD_BYTES, SPARE_NEW_SECONDS, SPARE_SECONDS, Crowd

if TYPE_CHECKING:
    import pytest
    from trio.testing import MockClock

PATIENT = ServerLimits(max_connections=2, linger_seconds=3600, stall_seconds=3600)


def silent() -> bool:
    return False


def test_memory_is_given_back_when_half_of_many_have_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    trimmed: list[int] = []
    monkeypatch.setattr(memory, "trim", lambda: trimmed.append(1))
    monkeypatch.setattr(crowds, "TRIM_FROM", 4)
    crowd = Crowd(ServerLimits())
    for change in (crowd.enter, crowd.enter, crowd.enter, crowd.leave, crowd.leave, crowd.leave):
        change()
    assert not trimmed
    for _ in range(4):
        crowd.enter()
    crowd.leave()
    assert not trimmed
    for _ in range(3):
        crowd.leave()
    assert len(trimmed) == 1


async def test_one_connection_too_many_ends_the_one_that_was_idle_the_longest(autojump_clock: MockClock) -> None:
    crowd = Crowd(PATIENT)
    readings = [trio.CancelScope() for _ in range(3)]
    for reading in readings:
        crowd.set_idle(reading, True, silent)
    assert not crowd.make_room()  # they may be about to ask
    await trio.sleep(SPARE_SECONDS)
    crowd.set_idle(readings[0], False, silent)  # this one asks
    crowd.set_idle(readings[0], True, silent)  # and has been answered
    assert [crowd.make_room(), crowd.make_room(), crowd.make_room()] == [True, True, False]
    assert [reading.cancel_called for reading in readings] == [False, True, True]


async def test_one_connection_too_many_ends_first_what_is_the_least_loss(autojump_clock: MockClock) -> None:
    crowd = Crowd(PATIENT)
    idle, new, refused = trio.CancelScope(), trio.CancelScope(), trio.CancelScope()
    with crowd.sending(1) as sending:
        crowd.set_idle(idle, True, silent)
        crowd.set_new(new, 3600, silent)
        crowd.set_idle(refused, False, silent)
        crowd.set_refused(refused)
        assert not crowd.make_room()
        await trio.sleep(SPARE_NEW_SECONDS)
        assert [crowd.make_room(), refused.cancel_called, new.cancel_called] == [True, True, False]
        assert [crowd.make_room(), new.cancel_called] == [True, True]
        assert not crowd.make_room()  # clients between two requests, and those that read, have more time
        await trio.sleep(SPARE_SECONDS / 2)
        crowd.extend(sending)  # it has taken something
        await trio.sleep(SPARE_SECONDS / 2)
        assert [crowd.make_room(), idle.cancel_called, crowd.make_room()] == [True, True, False]
        await trio.sleep(SPARE_SECONDS / 2)
        assert [crowd.make_room(), sending.cancel_called, crowd.make_room()] == [True, True, False]


async def test_who_takes_nothing_of_an_answer_is_ended_before_all_others(autojump_clock: MockClock) -> None:
    crowd = Crowd(PATIENT)
    others = [trio.CancelScope() for _ in range(3)]
    crowd.set_idle(others[0], True, silent)
    crowd.set_new(others[1], 3600, silent)
    crowd.set_refused(others[2])
    with crowd.sending(1) as sending:
        await trio.sleep(SPARE_SECONDS)
        assert [crowd.make_room(), sending.cancel_called] == [True, True]
        assert not any(scope.cancel_called for scope in others)


async def test_who_has_sent_what_was_not_read_yet_is_not_ended(autojump_clock: MockClock) -> None:
    crowd = Crowd(PATIENT)
    new, idle = trio.CancelScope(), trio.CancelScope()
    has_sent = True
    crowd.set_new(new, 3600, lambda: has_sent)
    crowd.set_idle(idle, True, lambda: has_sent)
    await trio.sleep(SPARE_SECONDS)
    assert not crowd.make_room()
    has_sent = False
    assert not crowd.make_room()  # it has been spared as if it had come just now
    await trio.sleep(SPARE_SECONDS)
    assert [crowd.make_room(), crowd.make_room(), crowd.make_room()] == [True, True, False]


async def test_one_too_many_waits_for_room_for_a_while(autojump_clock: MockClock) -> None:
    crowd = Crowd(PATIENT)
    assert await crowd.wait_for_room()
    crowd.enter()
    crowd.enter()
    began = trio.current_time()
    assert not await crowd.wait_for_room()
    assert trio.current_time() - began >= FULL_SECONDS
    began = trio.current_time()
    assert not await crowd.wait_for_room()  # who comes now need not wait as long again
    assert trio.current_time() == began
    with crowd.sending(1) as stalled:
        await trio.sleep(SPARE_SECONDS)
        assert await crowd.wait_for_room()
        assert stalled.cancel_called
    async with trio.open_nursery() as nursery:
        nursery.start_soon(crowd.wait_for_room)
        await trio.testing.wait_all_tasks_blocked()
        crowd.leave()
    assert trio.current_time() - began == SPARE_SECONDS


async def test_when_answers_hold_too_much_those_that_nobody_takes_are_broken_off(autojump_clock: MockClock) -> None:
    crowd = Crowd(PATIENT)
    with contextlib.ExitStack() as stack:
        stalled = [stack.enter_context(crowd.sending(HELD_BYTES // 3)) for _ in range(3)]
        await trio.sleep(SPARE_SECONDS)
        crowd.extend(stalled[0])  # it has taken something
        newest = stack.enter_context(crowd.sending(HELD_BYTES // 3))
        assert [scope.cancel_called for scope in (*stalled, newest)] == [False, True, False, False]
        assert crowd.held == HELD_BYTES // 3 * 3
    assert crowd.held == 0
