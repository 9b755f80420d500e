"""Cancelling tasks that a worker has, and restarting workers; with real worker processes."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
import trio

from tests.pool_support import Recorder, claim, gate, no_process_left, recorder, serving
from tests.worker_support import PATIENCE, Gate, wait_until_gone, write_handlers
from trispool import pool as pool_module
from trispool import workerproc
from trispool.packet import new_task
from trispool.pool import Pool
from trispool.spooldir import SpoolDirectory
from trispool.store import Claim
from trispool.worker.frames import Setup

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from trispool.store import Claim as ClaimType

__all__ = ["gate", "no_process_left", "recorder"]

SYNC = """
import os, signal
from trispool import handler, Task
gate = {gate!r}

@handler
def quick(): ...

@handler
def waits(task: Task):
    print("begun")
    wait_for(gate)

@handler
def crashes():
    print("begun")
    wait_for(gate)
    os.kill(os.getpid(), signal.SIGKILL)
"""

ASYNC = """
import os
import trio
from trispool import handler
gate = {gate!r}

async def opened():
    fd = os.open(gate, os.O_RDONLY | os.O_NONBLOCK)
    try:
        await trio.lowlevel.wait_readable(fd)
        os.read(fd, 1)
    finally:
        os.close(fd)

@handler
async def waits():
    print("begun")
    await opened()

@handler(concurrency=1)
async def alone():
    print("begun")
    await opened()

@handler
async def cleans_up():
    print("begun")
    try:
        await trio.sleep_forever()
    finally:
        print("cleaned up")

@handler
async def swallows():
    print("begun")
    try:
        await trio.sleep_forever()
    except trio.Cancelled:
        print("swallowed")

@handler
async def fails():
    print("begun")
    try:
        await trio.sleep_forever()
    finally:
        raise ValueError("while cleaning up")

@handler
async def ignores():
    print("begun")
    with trio.CancelScope(shield=True):
        await trio.sleep_forever()

@handler
async def blocks():
    print("begun")
    wait_for(gate)

@handler
def inline_waits():
    print("begun")
    wait_for(gate)
"""


@pytest.fixture
def sync_pool(tmp_path: Path, recorder: Recorder, gate: Gate) -> Pool:
    path = write_handlers(tmp_path, SYNC.format(gate=str(gate.path)))
    return Pool(Setup(imports=(path,)), recorder, processes=1)


@pytest.fixture
def async_pool(tmp_path: Path, recorder: Recorder, gate: Gate) -> Pool:
    path = write_handlers(tmp_path, ASYNC.format(gate=str(gate.path)))
    return Pool(Setup(imports=(path,), concurrency=10), recorder, processes=1)


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What has to give way does so at once or not at all."""
    monkeypatch.setattr(workerproc, "GIVE_WAY_SECONDS", 0.1)
    return None


async def begin(recorder: Recorder, worker: workerproc.WorkerProcess, *claims: ClaimType, begun: int = 1) -> None:
    """Hand over tasks; wait until so many have said that they are begun."""
    before = len(recorder.log)
    recorder.give(worker, *claims)
    await recorder.until(lambda: len(recorder.log) == before + begun)


# Sync workers


async def test_worker_is_killed_for_a_running_task_and_others_come_back(sync_pool: Pool, recorder: Recorder) -> None:
    async with serving(sync_pool):
        worker = await recorder.worker()
        await begin(recorder, worker, claim("w", handler="waits"), claim("b", handler="waits"))
        assert sync_pool.cancel("w")
        await recorder.until(lambda: recorder.lost)
        assert recorder.lost == [(worker, workerproc.CANCELLED)]
        assert recorder.suspects == ["w"]
        assert recorder.back() == ["b"]
        assert recorder.ended() == {}


async def test_successor_starts_at_once_when_a_worker_was_killed_for_a_cancelled_task(
    sync_pool: Pool, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_module, "FIRST_PAUSE", 1000.0)
    async with serving(sync_pool):
        for number in range(1, 4):
            worker = await recorder.worker(number)
            await begin(recorder, worker, claim(f"w{number}", handler="waits"))
            assert sync_pool.cancel(f"w{number}")
        await recorder.worker(4)
        assert sync_pool.statistics().lost == 0


async def test_task_comes_back_when_it_is_cancelled_before_it_is_begun(
    sync_pool: Pool, recorder: Recorder, gate: Gate
) -> None:
    async with serving(sync_pool):
        worker = await recorder.worker()
        recorder.give(worker, claim("w", handler="waits"), claim("b", handler="waits"))
        assert sync_pool.cancel("b")  # before or after the worker has read of it
        await recorder.until(lambda: recorder.codes().get("b") == "returned")
        gate.open(2)
        await recorder.until(lambda: not recorder.out)
        assert recorder.ended() == ({"w": "ok"} if "w" not in recorder.back() else {})
        assert not recorder.lost


async def test_task_comes_back_when_it_is_cancelled_while_it_is_in_the_socket(
    sync_pool: Pool, recorder: Recorder, gate: Gate
) -> None:
    async with serving(sync_pool):
        worker = await recorder.worker()
        await begin(recorder, worker, claim("w", handler="waits"))
        recorder.give(worker, claim("b", os.urandom(1_000_000), handler="quick"))
        assert sync_pool.cancel("b")
        await recorder.until(lambda: recorder.codes() == {"b": "returned"})
        assert worker.in_hand == 1
        gate.open()
        await recorder.until(lambda: recorder.codes() == {"b": "returned", "w": "ok"})


async def test_no_task_is_begun_in_a_worker_that_is_about_to_be_killed(sync_pool: Pool, recorder: Recorder) -> None:
    async with serving(sync_pool):
        worker = await recorder.worker()
        sync_pool._pace.measured(0.001, 1000)
        await begin(recorder, worker, claim("w", handler="waits"))
        assert sync_pool.cancel("w")
        assert worker.room == 0
        recorder.give(worker, claim("late", handler="waits"))
        assert recorder.codes() == {"late": "returned"}
        await recorder.until(lambda: recorder.lost)
        assert recorder.suspects == ["w"]


async def test_task_behind_a_cancelled_one_is_not_begun_when_that_ends(
    sync_pool: Pool, recorder: Recorder, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or it might be cut off: the worker is killed a moment after it was seen at work on the other."""
    monkeypatch.setattr(workerproc, "STUCK_SECONDS", 1000.0)
    async with serving(sync_pool):
        worker = await recorder.worker()
        await begin(recorder, worker, claim("w", handler="waits"), claim("b", handler="waits"))
        assert sync_pool.cancel("w")
        gate.open(2)
        await recorder.until(lambda: not recorder.out)
        assert recorder.codes() == {"w": "ok", "b": "returned"}
        assert recorder.log == [("w", "begun")]
        assert not recorder.lost


async def test_nothing_happens_twice_when_a_task_is_cancelled_twice(sync_pool: Pool, recorder: Recorder) -> None:
    async with serving(sync_pool):
        worker = await recorder.worker()
        await begin(recorder, worker, claim("w", handler="waits"))
        assert sync_pool.cancel("w")
        assert sync_pool.cancel("w")
        await recorder.until(lambda: recorder.lost)
        assert not sync_pool.cancel("w")
        await recorder.worker(2)
        assert (recorder.suspects, recorder.returned, len(recorder.lost)) == (["w"], [], 1)


async def test_task_comes_back_once_when_it_is_cancelled_about_when_it_ends(
    sync_pool: Pool, recorder: Recorder
) -> None:
    """It is `ok`, or the only suspect, or comes back; never two of these, and no other is blamed."""
    async with serving(sync_pool):
        for number in range(40):
            worker = await recorder.worker(len(recorder.lost) + 1)
            name, behind = f"t{number}", f"u{number}"
            recorder.give(worker, claim(name, handler="quick"), claim(behind, handler="quick"))
            for _ in range(number):
                await trio.lowlevel.checkpoint()
            sync_pool.cancel(name)
            await recorder.until(lambda: not recorder.out)
            was = [recorder.ended().get(name) == "ok", name in recorder.suspects, name in recorder.back()]
            assert was.count(True) == 1
            assert behind not in recorder.suspects
            await recorder.until(lambda worker=worker: worker.room or worker in [lost for lost, _ in recorder.lost])
        assert len(recorder.suspects) <= len(recorder.lost)


async def test_task_is_suspect_when_its_worker_dies_by_itself_meanwhile(
    sync_pool: Pool, recorder: Recorder, gate: Gate
) -> None:
    async with serving(sync_pool):
        worker = await recorder.worker()
        await begin(recorder, worker, claim("w", handler="crashes"))
        gate.open()
        wait_until_gone(worker.pid)  # the pool has not seen it yet
        assert sync_pool.cancel("w")
        await recorder.until(lambda: recorder.lost)
        assert (recorder.suspects, recorder.returned) == (["w"], [])


async def test_running_task_is_cancelled_when_its_worker_is_quitting(sync_pool: Pool, recorder: Recorder) -> None:
    async with serving(sync_pool):
        worker = await recorder.worker()
        await begin(recorder, worker, claim("w", handler="waits"))
        assert sync_pool.restart(worker.pid)
        assert sync_pool.cancel("w")
        await recorder.until(lambda: recorder.lost)
        assert recorder.suspects == ["w"]
        await recorder.worker(2)


async def test_task_is_the_only_suspect_when_the_pool_ends_meanwhile(sync_pool: Pool, recorder: Recorder) -> None:
    async with serving(sync_pool):
        worker = await recorder.worker()
        await begin(recorder, worker, claim("w", handler="waits"))
        assert sync_pool.cancel("w")
        sync_pool.kill()
        await recorder.until(lambda: recorder.lost)
        assert recorder.returned + recorder.suspects == ["w"]


async def test_nobody_has_it_when_a_task_is_unknown_or_the_worker_is_starting(
    tmp_path: Path, recorder: Recorder, gate: Gate
) -> None:
    pool = Pool(Setup(imports=(write_handlers(tmp_path, f"wait_for({str(gate.path)!r})"),)), recorder, processes=1)
    assert not pool.cancel("a")
    async with serving(pool):
        assert not pool.cancel("a")


async def test_file_is_free_when_its_task_was_cancelled(
    sync_pool: Pool, tmp_path: Path, recorder: Recorder, gate: Gate
) -> None:
    spool = SpoolDirectory(tmp_path / "spool")
    (entry,) = spool.add([new_task({"handler": "waits"})])
    assert not isinstance(entry, Exception)
    path = write_handlers(tmp_path, SYNC.format(gate=str(gate.path)))
    pool = Pool(Setup(directory=spool.path, imports=(path,)), recorder, processes=1)
    async with serving(pool):
        worker = await recorder.worker()
        await begin(recorder, worker, Claim(entry.id, entry.ref))
        assert pool.cancel(entry.id)
        await recorder.until(lambda: recorder.lost)
        spool.claim(entry.ref).close()
    spool.close()


# Async workers


async def test_handler_is_cancelled_and_others_run_on_when_it_is_async(
    async_pool: Pool, recorder: Recorder, gate: Gate
) -> None:
    async with serving(async_pool):
        worker = await recorder.worker()
        await begin(recorder, worker, claim("w", handler="waits"), claim("c", handler="cleans_up"), begun=2)
        assert async_pool.cancel("c")
        await recorder.until(lambda: recorder.codes() == {"c": "cancelled"})
        await recorder.until(lambda: ("c", "cleaned up") in recorder.log)
        (report,) = recorder.reports
        assert (report.handler, report.error) == ("cleans_up", None)
        assert report.started_at > 0
        assert not async_pool.cancel("c")
        assert worker.room == 9
        gate.open()
        await recorder.until(lambda: not recorder.out)
        assert recorder.codes()["w"] == "ok"
        assert not recorder.lost


@pytest.mark.parametrize(("name", "code"), [("swallows", "ok"), ("fails", "failed")])
async def test_task_is_reported_as_it_ended_when_its_handler_does_not_let_the_cancellation_through(
    async_pool: Pool, recorder: Recorder, name: str, code: str
) -> None:
    async with serving(async_pool):
        await begin(recorder, await recorder.worker(), claim("a", handler=name))
        assert async_pool.cancel("a")
        await recorder.until(lambda: recorder.codes() == {"a": code})


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize("name", ["ignores", "blocks", "inline_waits"])
async def test_worker_is_killed_when_a_handler_does_not_give_way(
    async_pool: Pool, recorder: Recorder, name: str
) -> None:
    async with serving(async_pool):
        worker = await recorder.worker()
        await begin(recorder, worker, claim("w", handler="waits"), claim("c", handler="cleans_up"), begun=2)
        await begin(recorder, worker, claim("i", handler=name))
        assert async_pool.cancel("i")
        assert worker.room == 0
        await recorder.until(lambda: recorder.lost)
        assert recorder.lost == [(worker, workerproc.CANCELLED)]
        assert (recorder.suspects, recorder.back()) == (["i"], ["c", "w"])
        await recorder.worker(2)
        assert async_pool.statistics().lost == 0


async def test_handler_has_seconds_to_clean_up_when_it_is_cancelled(
    async_pool: Pool, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workerproc, "GIVE_WAY_SECONDS", 10 * PATIENCE)
    async with serving(async_pool):
        worker = await recorder.worker()
        await begin(recorder, worker, claim("i", handler="ignores"), claim("c", handler="cleans_up"), begun=2)
        assert async_pool.cancel("i")
        assert async_pool.cancel("c")
        await recorder.until(lambda: recorder.codes() == {"c": "cancelled"})
        assert worker.in_hand == 1
        assert not recorder.lost


async def test_task_comes_back_when_it_waits_for_its_handlers_concurrency(
    async_pool: Pool, recorder: Recorder, gate: Gate
) -> None:
    async with serving(async_pool):
        worker = await recorder.worker()
        await begin(recorder, worker, *(claim(name, handler="alone") for name in "abc"))
        assert async_pool.cancel("b")
        await recorder.until(lambda: "b" in recorder.codes())
        assert recorder.codes()["b"] == "returned"
        assert async_pool.cancel("a")
        await recorder.until(lambda: recorder.codes().get("a") == "cancelled")
        if "c" in recorder.out_ids():  # it was not begun yet when b was looked for
            gate.open()
        await recorder.until(lambda: not recorder.out)
        assert recorder.codes()["c"] in ("ok", "returned")


@pytest.mark.usefixtures("soon")
async def test_other_tasks_are_not_cut_off_when_one_holds_the_loop(
    async_pool: Pool, recorder: Recorder, gate: Gate
) -> None:
    """The cancelled handler has had no turn in which to hear of it: its time begins when it has."""
    async with serving(async_pool):
        worker = await recorder.worker()
        await begin(recorder, worker, claim("c", handler="cleans_up"))
        await begin(recorder, worker, claim("w", handler="inline_waits"))
        assert async_pool.cancel("c")
        looks = 0
        watch = worker.watch

        def look(now: float) -> None:
            nonlocal looks
            looks += 1
            watch(now)

        worker.watch = look  # type: ignore[method-assign] # to know that time has passed
        with trio.fail_after(PATIENCE):
            while looks < 10:  # noqa: ASYNC110 # of 20 ms
                await trio.sleep(0.02)
        gate.open()
        await recorder.until(lambda: not recorder.out)
        assert recorder.codes() == {"c": "cancelled", "w": "ok"}
        assert not recorder.lost


async def test_task_comes_back_when_an_async_worker_has_not_read_of_it(
    async_pool: Pool, recorder: Recorder, gate: Gate
) -> None:
    async with serving(async_pool):
        worker = await recorder.worker()
        await begin(recorder, worker, claim("w", handler="blocks"))
        recorder.give(worker, claim("b", handler="waits"))
        assert async_pool.cancel("b")
        await recorder.until(lambda: recorder.codes() == {"b": "returned"})
        gate.open()
        await recorder.until(lambda: not recorder.out)
        assert recorder.codes()["w"] == "ok"
        assert not recorder.lost


async def test_every_task_ends_once_when_many_are_cancelled_at_any_moment(
    async_pool: Pool, recorder: Recorder, gate: Gate
) -> None:
    async with serving(async_pool):
        worker = await recorder.worker()
        for number in range(30):
            names = [f"t{number}-{index}" for index in range(4)]
            recorder.give(worker, *(claim(name, handler="waits") for name in names))
            for index in range(4):
                for _ in range(number // 2):
                    await trio.lowlevel.checkpoint()
                # One that is recalled takes those with it that have not been begun either.
                assert async_pool.cancel(names[index]) or recorder.codes()[names[index]] == "returned"
            await recorder.until(lambda: not recorder.out)
            assert {recorder.codes()[name] for name in names} <= {"returned", "cancelled"}
        assert not recorder.lost
        assert worker.room == 10


async def test_cancelled_handler_is_free_to_run_again_when_it_has_given_way(
    async_pool: Pool, recorder: Recorder, gate: Gate
) -> None:
    async with serving(async_pool):
        worker = await recorder.worker()
        await begin(recorder, worker, claim("a", handler="alone"))
        assert async_pool.cancel("a")
        await recorder.until(lambda: recorder.codes() == {"a": "cancelled"})
        await begin(recorder, worker, claim("b", handler="alone"))
        gate.open()
        await recorder.until(lambda: recorder.codes().get("b") == "ok")


# Restarting


async def test_idle_worker_is_replaced_when_it_is_restarted(sync_pool: Pool, recorder: Recorder) -> None:
    async with serving(sync_pool):
        worker = await recorder.worker()
        assert sync_pool.restart(worker.pid)
        successor = await recorder.worker(2)
        await recorder.until(lambda: recorder.lost)
        assert recorder.lost == [(worker, "exited with code 0")]
        assert not sync_pool.restart(worker.pid)
        assert sync_pool.pids == (successor.pid,)
        assert sync_pool.statistics().lost == 0


@pytest.mark.parametrize("kill", [False, True])
async def test_successor_takes_tasks_when_a_busy_worker_was_restarted(
    sync_pool: Pool, recorder: Recorder, gate: Gate, monkeypatch: pytest.MonkeyPatch, kill: bool
) -> None:
    monkeypatch.setattr(pool_module, "FIRST_PAUSE", 1000.0)
    async with serving(sync_pool):
        worker = await recorder.worker()
        await begin(recorder, worker, claim("w", handler="waits"), claim("b", handler="quick"))
        assert sync_pool.restart(worker.pid, kill=kill)
        if not kill:
            await recorder.until(lambda: recorder.back() == ["b"])
            gate.open()
        successor = await recorder.worker(2)
        assert recorder.suspects == []
        assert recorder.back() == (["b", "w"] if kill else ["b"])
        assert recorder.ended() == ({} if kill else {"w": "ok"})
        recorder.give(successor, claim("n", handler="quick"))
        await recorder.until(lambda: recorder.codes().get("n") == "ok")


@pytest.mark.parametrize("kill", [False, True])
async def test_starting_worker_is_replaced_at_once_when_it_is_restarted(
    tmp_path: Path, recorder: Recorder, gate: Gate, monkeypatch: pytest.MonkeyPatch, kill: bool
) -> None:
    monkeypatch.setattr(pool_module, "FIRST_PAUSE", 1000.0)
    monkeypatch.setattr(workerproc, "QUIT_SECONDS", 1000.0)
    path = write_handlers(tmp_path, f"print('importing')\nwait_for({str(gate.path)!r})")
    pool = Pool(Setup(imports=(path,)), recorder, processes=1)
    async with serving(pool):
        await recorder.until(lambda: recorder.log)
        (status,) = pool.statistics().workers
        assert status.state == "starting"
        write_handlers(tmp_path, "from trispool import handler\n@handler\ndef mended(): ...")
        assert pool.restart(status.pid, kill=kill)
        assert list((await recorder.worker()).handlers) == ["mended"]
        await trio.to_thread.run_sync(wait_until_gone, status.pid)
        assert pool.statistics().problem is None
        assert not recorder.lost  # it never was ready


async def test_no_worker_is_restarted_when_the_pid_is_nobodys(sync_pool: Pool, recorder: Recorder) -> None:
    async with serving(sync_pool):
        while not sync_pool.statistics().workers:
            await trio.lowlevel.checkpoint()
        (status,) = sync_pool.statistics().workers
        assert (status.pid, status.state) == (0, "down")  # it is being started
        assert not sync_pool.restart(0)
        worker = await recorder.worker()
        assert not sync_pool.restart(os.getpid())
        assert sync_pool.pids == (worker.pid,)


async def test_quitting_worker_is_killed_when_it_is_restarted_again_with_force(
    sync_pool: Pool, recorder: Recorder
) -> None:
    async with serving(sync_pool):
        worker = await recorder.worker()
        await begin(recorder, worker, claim("w", handler="waits"))
        assert sync_pool.restart(worker.pid)
        assert sync_pool.restart(worker.pid)
        assert sync_pool.restart(worker.pid, kill=True)
        await recorder.until(lambda: recorder.lost)
        assert (recorder.back(), recorder.suspects) == (["w"], [])
        await recorder.worker(2)


async def test_handlers_are_imported_afresh_all_the_same_when_the_successor_is_restarted(
    tmp_path: Path, recorder: Recorder, gate: Gate
) -> None:
    path = write_handlers(tmp_path, "from trispool import handler\n@handler\ndef old(): ...")
    pool = Pool(Setup(imports=(path,)), recorder, processes=1)
    async with serving(pool):
        old = await recorder.worker()
        write_handlers(tmp_path, f"print('importing')\nwait_for({str(gate.path)!r})")
        pool.reload()
        await recorder.until(lambda: recorder.log)
        (candidate,) = set(pool.pids) - {old.pid}
        write_handlers(tmp_path, "from trispool import handler\n@handler\ndef new_name(): ...")
        assert pool.restart(candidate)
        assert list((await recorder.worker(2)).handlers) == ["new_name"]
        await recorder.until(lambda: [lost for lost, _ in recorder.lost] == [old])
