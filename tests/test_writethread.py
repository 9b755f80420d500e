"""The thread of a database's writer: what it is given, in order, and who waits for it."""

from __future__ import annotations

import errno
import os
import socket
import threading
from typing import NoReturn

import pytest
import trio
import trio.testing

from trispool.writethread import WriteThread


def without_descriptors() -> NoReturn:
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


async def test_jobs_are_done_in_one_thread_and_in_order() -> None:
    thread = WriteThread("writes")
    done: list[tuple[int, int]] = []

    async def give(number: int) -> None:
        await thread.run_sync(lambda: done.append((number, threading.get_ident())))

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(give, number)
                await trio.testing.wait_all_tasks_blocked(0.001)
    assert [number for number, _ in done] == list(range(20))
    assert len({ident for _, ident in done}) == 1
    assert done[0][1] != threading.get_ident()
    thread.close()


async def test_what_a_job_returns_or_raises_is_its_callers() -> None:
    thread = WriteThread("writes")
    with trio.fail_after(10):
        assert await thread.run_sync(lambda: 4711) == 4711
        with pytest.raises(ZeroDivisionError):
            await thread.run_sync(lambda: 1 // 0)
        assert await thread.run_sync(lambda: 17) == 17
    thread.close()


async def test_a_caller_that_is_cancelled_waits_for_the_end_of_its_job() -> None:
    thread, go_on, done = WriteThread("writes"), threading.Event(), threading.Event()

    def work() -> None:
        go_on.wait(10)
        done.set()

    with trio.move_on_after(0.01):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(thread.run_sync, work)
            await trio.testing.wait_all_tasks_blocked(0.001)
            threading.Timer(0.05, go_on.set).start()
    assert done.is_set()
    thread.close()


async def test_a_caller_that_abandons_its_job_goes_at_once_and_the_next_job_waits() -> None:
    thread, go_on = WriteThread("writes"), threading.Event()
    order: list[str] = []

    def slow() -> None:
        go_on.wait(10)
        order.append("slow")

    with trio.move_on_after(0.01) as scope:
        await thread.run_sync(slow, abandon=True)
    assert scope.cancelled_caught
    assert order == []
    go_on.set()
    with trio.fail_after(10):
        await thread.run_sync(lambda: order.append("next"))
    assert order == ["slow", "next"]
    thread.close()


async def test_what_finds_no_descriptor_is_not_done_and_the_caller_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    thread = WriteThread("writes")
    done: list[int] = []
    with monkeypatch.context() as patched, trio.fail_after(10):
        patched.setattr(socket, "socketpair", without_descriptors)
        with pytest.raises(OSError, match="Too many open files"):
            await thread.run_sync(lambda: done.append(1))
    with trio.fail_after(10):
        await thread.run_sync(lambda: done.append(2))
    assert done == [2]
    thread.close()


async def test_who_has_been_cancelled_before_gives_no_job() -> None:
    thread = WriteThread("writes")
    done: list[int] = []
    with trio.CancelScope() as scope:
        scope.cancel()
        await thread.run_sync(lambda: done.append(1))
    with trio.fail_after(10):
        await thread.run_sync(lambda: done.append(2))
    assert done == [2]
    thread.close()


async def test_the_thread_ends_when_it_is_closed_and_another_job_begins_another_one() -> None:
    thread = WriteThread("writes")
    with trio.fail_after(10):
        first = await thread.run_sync(threading.current_thread)
        thread.close()
        await trio.to_thread.run_sync(first.join)
        assert await thread.run_sync(threading.current_thread) is not first
    thread.close()


def test_a_job_that_outlives_the_loop_is_nobodys() -> None:
    thread, go_on = WriteThread("writes"), threading.Event()

    async def abandon() -> threading.Thread:
        running = await thread.run_sync(threading.current_thread)
        with trio.move_on_after(0.01):
            await thread.run_sync(lambda: go_on.wait(10), abandon=True)
        return running

    running = trio.run(abandon)
    go_on.set()
    thread.close()
    running.join(10)
    assert not running.is_alive()
