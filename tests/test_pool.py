"""The pool with real worker processes: handing over, taking back, replacing, ending."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING

import pytest
import trio

from tests.pool_support import Recorder, claim, gate, no_process_left, recorder, serving
from tests.worker_support import PATIENCE, Gate, write_handlers
from trispool import workerproc
from trispool.pace import MAX_BATCH
from trispool.packet import new_task
from trispool.pool import Pool
from trispool.spooldir import SpoolDirectory
from trispool.store import Claim
from trispool.worker.frames import Setup

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["gate", "no_process_left", "recorder"]

HANDLERS = """
import os, time
from trispool import handler, Retry, Task
gate = {gate!r}

@handler
def quick(task: Task):
    if task.attempt > 1:
        print("attempt", task.attempt)

@handler
def waits(task: Task):
    print("begun")
    wait_for(gate)

@handler(default=True)
def size(body: bytes, wait: bool = False):
    if wait:
        print("begun")
        wait_for(gate)
    else:
        print(len(body), sum(body[::1000]))

@handler
def takes(seconds: float):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pass
"""


@pytest.fixture
def setup(tmp_path: Path, gate: Gate) -> Setup:
    return Setup(imports=(write_handlers(tmp_path, HANDLERS.format(gate=str(gate.path))),))


# Handing over


async def test_tasks_are_run_and_reported_when_given(setup: Setup, recorder: Recorder) -> None:
    async with serving(Pool(setup, recorder, processes=1)):
        worker = await recorder.worker()
        assert worker.room == 1
        assert worker.in_hand == 0
        before = time.time()
        recorder.give(worker, claim("a", handler="quick"), attempt=3)
        assert worker.in_hand == 1
        await recorder.until(lambda: not recorder.out)
        (report,) = recorder.reports
        assert (report.claim.id, report.code, report.handler) == ("a", "ok", "quick")
        assert before <= report.started_at <= time.time()
        await recorder.until(lambda: recorder.log == [("a", "attempt 3")])


async def test_every_task_is_reported_once_when_thousands_are_given(setup: Setup, recorder: Recorder) -> None:
    waiting = [claim(f"t{number}", handler="quick") for number in range(5000)]
    largest = seen = 0

    def fill(worker: workerproc.WorkerProcess) -> None:
        nonlocal largest, seen
        # On a busy machine, a worker that did not get on for a while is given less, and what it had is taken back.
        waiting.extend(report.claim for report in recorder.reports[seen:] if report.code == "returned")
        seen = len(recorder.reports)
        while waiting and (room := worker.room):
            batch, waiting[:room] = waiting[:room], []
            largest = max(largest, len(batch))
            recorder.give(worker, *batch)

    recorder.on_report = fill
    async with serving(Pool(setup, recorder, processes=2)) as _:
        for number in (1, 2):
            fill(await recorder.worker(number))
        await recorder.until(lambda: len(recorder.ended()) == 5000)
        assert set(recorder.codes().values()) == {"ok"}
        assert not waiting
        assert not recorder.out
        assert largest == MAX_BATCH


async def test_worker_has_room_for_two_batches_when_tasks_are_quick(setup: Setup, recorder: Recorder) -> None:
    pool = Pool(setup, recorder, processes=1)
    async with serving(pool):
        worker = await recorder.worker()
        pool._pace.measured(0.001, 1000)
        assert worker.room == MAX_BATCH
        recorder.give(worker, claim("w", handler="waits"), *(claim(f"a{number}") for number in range(MAX_BATCH - 1)))
        assert worker.room == MAX_BATCH
        recorder.give(worker, *(claim(f"b{number}") for number in range(MAX_BATCH)))
        assert worker.room == 0
        assert worker.in_hand == 2 * MAX_BATCH


async def test_worker_has_room_for_one_task_when_they_are_slow(setup: Setup, recorder: Recorder) -> None:
    async with serving(Pool(setup, recorder, processes=1)):
        worker = await recorder.worker()
        for number in range(4):
            assert worker.room == 1
            recorder.give(worker, claim(f"t{number}", handler="takes", seconds=0.005))
            assert worker.room == 0
            await recorder.until(lambda: not recorder.out)


async def test_giving_does_not_wait_when_the_socket_is_full(setup: Setup, recorder: Recorder, gate: Gate) -> None:
    body = os.urandom(9 * 1024 * 1024)
    async with serving(Pool(setup, recorder, processes=1)):
        worker = await recorder.worker()
        recorder.give(worker, claim("w", handler="waits"))
        await recorder.until(lambda: recorder.log)
        recorder.give(worker, *(claim(f"t{number}", body[number:]) for number in range(3)))
        worker.recall()
        await recorder.until(lambda: len(recorder.reports) == 3)
        gate.open()
        await recorder.until(lambda: not recorder.out)
        waiting = {f"u{number}": claim(f"u{number}", body[number:]) for number in range(3)}
        while waiting:  # on a slow machine some may come back because the one before takes long
            recorder.give(worker, *waiting.values())
            await recorder.until(lambda: not recorder.out)
            for task_id in [task_id for task_id in waiting if recorder.codes()[task_id] == "ok"]:
                del waiting[task_id]
        await recorder.until(lambda: len(recorder.log) == 4)
        assert recorder.log[1:] == [
            (f"u{number}", f"{len(body) - number} {sum(body[number::1000])}") for number in range(3)
        ]


async def test_tasks_come_back_when_given_to_a_worker_that_has_gone(setup: Setup, recorder: Recorder) -> None:
    pool = Pool(setup, recorder, processes=1)
    async with serving(pool):
        worker = await recorder.worker()
        assert pool.restart(worker.pid)
        recorder.give(worker, claim("a"), claim("b"))  # it has been told to quit
        assert recorder.codes() == {"a": "returned", "b": "returned"}
        await recorder.until(lambda: recorder.lost)
        recorder.give(worker, claim("c"))
        assert recorder.codes()["c"] == "returned"


async def test_files_are_claimed_by_the_worker_when_claims_carry_no_content(
    setup: Setup, recorder: Recorder, tmp_path: Path
) -> None:
    spool = SpoolDirectory(tmp_path / "spool")
    entries = spool.add([new_task({"handler": "quick"}) for _ in range(20)])
    claims = [Claim(entry.id, entry.ref) for entry in entries]  # type: ignore[union-attr] # they were kept
    setup = Setup(directory=spool.path, imports=setup.imports)
    async with serving(Pool(setup, recorder, processes=1)):
        recorder.give(await recorder.worker(), *claims)
        await recorder.until(lambda: not recorder.out)
        assert [report.code for report in recorder.reports] == ["ok"] * 20
        assert spool.names() == []
    spool.close()


# Taking back


async def test_tasks_behind_a_running_one_come_back_when_recalled(setup: Setup, recorder: Recorder, gate: Gate) -> None:
    async with serving(Pool(setup, recorder, processes=1)):
        worker = await recorder.worker()
        recorder.give(worker, claim("w", handler="waits"), claim("b"))
        recorder.give(worker, claim("c"))
        await recorder.until(lambda: recorder.log)
        worker.recall()
        assert worker.room == 0
        await recorder.until(lambda: len(recorder.reports) == 2)
        assert recorder.codes() == {"b": "returned", "c": "returned"}
        assert worker.in_hand == 1
        gate.open()
        await recorder.until(lambda: not recorder.out)
        # Its own word on b and c comes with that on w, or behind it; `Recorder` fails if it is passed on.
        recorder.give(worker, claim("d", handler="quick"))
        await recorder.until(lambda: recorder.codes().get("d") == "ok")
        assert ("b", "0 0") not in recorder.log


async def test_tasks_come_back_by_themselves_when_the_one_before_is_slow(
    setup: Setup, recorder: Recorder, gate: Gate
) -> None:
    async with serving(Pool(setup, recorder, processes=1)):
        worker = await recorder.worker()
        recorder.give(worker, *(claim(f"q{number}", handler="size") for number in range(3)))
        await recorder.until(lambda: len(recorder.reports) == 3)
        # Handlers of that name are known to be quick, so the first three are not reported before the fourth begins.
        recorder.give(worker, *(claim(f"a{number}") for number in range(3)), claim("w", wait="true"), claim("b"))
        await recorder.until(lambda: len(recorder.out) == 1)
        assert {report.claim.id: report.code for report in recorder.reports[3:]} == {
            "a0": "ok",
            "a1": "ok",
            "a2": "ok",
            "b": "returned",
        }
        assert all(abs(report.started_at - time.time()) < PATIENCE for report in recorder.reports[3:6])
        assert worker.room == 0
        gate.open()
        await recorder.until(lambda: not recorder.out)
        assert recorder.codes()["w"] == "ok"


async def test_waiting_async_tasks_come_back_when_recalled(tmp_path: Path, recorder: Recorder, gate: Gate) -> None:
    path = write_handlers(
        tmp_path,
        """
        import trio
        from trispool import handler
        @handler(default=True, concurrency=2)
        async def h():
            print("begun")
            await trio.sleep_forever()
        """,
    )
    pool = Pool(Setup(imports=(path,), concurrency=10), recorder, processes=1)
    async with serving(pool):
        worker = await recorder.worker()
        assert worker.is_async
        assert worker.room == 10
        recorder.give(worker, *(claim(name) for name in "abcd"))
        assert worker.room == 6
        await recorder.until(lambda: len(recorder.log) == 2)
        worker.recall()
        await recorder.until(lambda: len(recorder.reports) == 2)
        assert recorder.codes() == {"c": "returned", "d": "returned"}
        assert worker.room == 8
        assert pool.restart(worker.pid, kill=True)
        await recorder.until(lambda: recorder.lost)
        assert (sorted(recorder.returned), recorder.suspects) == (["a", "b"], [])


# Replacing


async def test_worker_is_replaced_when_it_has_run_max_tasks(setup: Setup, recorder: Recorder) -> None:
    waiting = [claim(f"t{number}", handler="quick") for number in range(25)]
    ran: dict[int, int] = {}

    def fill(worker: workerproc.WorkerProcess) -> None:
        while waiting and (room := worker.room):
            batch, waiting[:room] = waiting[:room], []
            ran[worker.pid] = ran.get(worker.pid, 0) + len(batch)
            recorder.give(worker, *batch)

    recorder.on_report = fill
    async with serving(Pool(setup, recorder, processes=1, max_tasks=10)):
        for number in (1, 2, 3):
            fill(await recorder.worker(number))
        await recorder.until(lambda: len(recorder.reports) == 25)
        assert list(ran.values()) == [10, 10, 5]
        await recorder.until(lambda: len(recorder.lost) == 2)
        assert [cause for _, cause in recorder.lost] == ["exited with code 0"] * 2
        assert (recorder.returned, recorder.suspects) == ([], [])


async def test_number_of_workers_follows_when_the_pool_is_resized(setup: Setup, recorder: Recorder, gate: Gate) -> None:
    pool = Pool(setup, recorder, processes=1)
    async with serving(pool):
        first = await recorder.worker()
        recorder.give(first, claim("w", handler="waits"))
        pool.resize(3)
        await recorder.worker(3)
        pool.resize(1)
        await recorder.until(lambda: len(recorder.lost) == 2)
        assert first not in [worker for worker, _ in recorder.lost]  # the idle ones went
        pool.resize(0)
        gate.open()
        await recorder.until(lambda: len(recorder.lost) == 3)
        assert recorder.codes() == {"w": "ok"}
        assert pool.statistics().workers == ()
        pool.resize(1)
        await recorder.worker(4)


async def test_worker_finishes_its_task_when_it_is_restarted(setup: Setup, recorder: Recorder, gate: Gate) -> None:
    pool = Pool(setup, recorder, processes=1)
    async with serving(pool):
        worker = await recorder.worker()
        recorder.give(worker, claim("w", handler="waits"), claim("b"))
        await recorder.until(lambda: recorder.log)
        assert pool.restart(worker.pid)
        assert not pool.restart(1)
        await recorder.until(lambda: recorder.codes() == {"b": "returned"})
        assert worker.room == 0
        gate.open()
        await recorder.worker(2)
        assert recorder.codes() == {"b": "returned", "w": "ok"}


async def test_handlers_are_imported_afresh_when_the_pool_is_reloaded(tmp_path: Path, recorder: Recorder) -> None:
    path = write_handlers(tmp_path, "from trispool import handler\n@handler\ndef old(): ...")
    pool = Pool(Setup(imports=(path,)), recorder, processes=2)
    async with serving(pool):
        await recorder.worker(2)
        write_handlers(tmp_path, "from trispool import handler\n@handler\ndef new_name(): ...")
        pool.reload()
        await recorder.worker(4)
        assert [list(worker.handlers) for worker in recorder.ready] == [["old"]] * 2 + [["new_name"]] * 2


async def test_workers_stay_when_handlers_no_longer_import_at_a_reload(tmp_path: Path, recorder: Recorder) -> None:
    path = write_handlers(tmp_path, "from trispool import handler\n@handler\ndef old(): ...")
    pool = Pool(Setup(imports=(path,)), recorder, processes=2)
    async with serving(pool):
        old = {await recorder.worker(1), await recorder.worker(2)}
        write_handlers(tmp_path, "1 / 0")
        pool.reload()
        with trio.fail_after(PATIENCE):
            while len(pool.statistics().workers) > 2 or pool.statistics().problem is None:  # noqa: ASYNC110 # no event
                await trio.sleep(0.001)
        assert "ZeroDivisionError" in str(pool.statistics().problem)
        assert not recorder.lost
        for worker in old:
            recorder.give(worker, claim(f"t{worker.pid}", handler="old"))
        await recorder.until(lambda: not recorder.out)
        write_handlers(tmp_path, "from trispool import handler\n@handler\ndef new_name(): ...")
        pool.reload()
        pool.reload()  # while the first is under way
        await recorder.until(lambda: len(recorder.lost) >= 2 and len(recorder.ready) - len(recorder.lost) == 2)
        assert {worker for worker, _ in recorder.lost} >= old
        assert pool.statistics().problem is None
        assert [list(worker.handlers) for worker in recorder.ready[2:]] == [["new_name"]] * (len(recorder.ready) - 2)


async def test_handlers_are_imported_afresh_when_those_of_the_last_reload_hang(
    tmp_path: Path, recorder: Recorder, gate: Gate
) -> None:
    path = write_handlers(tmp_path, "from trispool import handler\n@handler\ndef old(): ...")
    pool = Pool(Setup(imports=(path,)), recorder, processes=1)
    async with serving(pool):
        await recorder.worker(1)
        write_handlers(tmp_path, f"print('importing')\nwait_for({str(gate.path)!r})")
        pool.reload()
        await recorder.until(lambda: (None, "importing") in recorder.log)
        write_handlers(tmp_path, "from trispool import handler\n@handler\ndef new_name(): ...")
        pool.reload()
        assert list((await recorder.worker(2)).handlers) == ["new_name"]
        await recorder.until(lambda: recorder.lost)


# Telling


async def test_workers_know_each_other_when_one_is_started(tmp_path: Path, recorder: Recorder) -> None:
    path = write_handlers(
        tmp_path,
        """
        import os, uwsgi
        def spooler(env):
            print(sorted(uwsgi.spooler_pids()), uwsgi.masterpid(), os.environ["TRISPOOL_SPOOL"])
            uwsgi.set_spooler_frequency(5)
            return -2
        uwsgi.spooler = spooler
        """,
    )
    opened = SpoolDirectory(tmp_path / "spool")
    spool = opened.path
    opened.close()
    pool = Pool(Setup(directory=spool, imports=(path,)), recorder, processes=2)
    async with serving(pool):
        await recorder.worker(2)
        for number, worker in enumerate(recorder.ready):
            recorder.give(worker, claim(f"t{number}"))
        await recorder.until(lambda: len(recorder.log) == 2)
        assert [line for _, line in recorder.log] == [f"{sorted(pool.pids)} {os.getpid()} {spool}"] * 2
        await recorder.until(lambda: recorder.frequencies == [5.0, 5.0])


async def test_statistics_tell_what_workers_do(setup: Setup, recorder: Recorder, gate: Gate) -> None:
    pool = Pool(setup, recorder, processes=2)
    assert pool.statistics().workers == ()
    async with serving(pool):
        worker = await recorder.worker()
        await recorder.worker(2)
        recorder.give(worker, claim("q", handler="quick"))
        await recorder.until(lambda: not recorder.out)
        recorder.give(worker, claim("w", handler="waits"))
        await recorder.until(lambda: recorder.log)
        statistics = pool.statistics()
        assert (statistics.processes, statistics.started, statistics.lost, statistics.problem) == (2, 2, 0, None)
        by_pid = {status.pid: status for status in statistics.workers}
        busy = by_pid.pop(worker.pid)
        assert (busy.state, busy.task_id, busy.tasks_done, busy.is_async) == ("busy", "w", 1, False)
        assert busy.task_since == pytest.approx(time.time(), abs=PATIENCE)
        (idle,) = by_pid.values()
        assert (idle.state, idle.task_id, idle.task_since) == ("idle", None, None)
        pool.restart(worker.pid)
        assert {status.pid: status.state for status in pool.statistics().workers}[worker.pid] == "quitting"


# Ending


async def test_running_tasks_finish_and_others_come_back_when_drained(
    setup: Setup, recorder: Recorder, gate: Gate
) -> None:
    pool = Pool(setup, recorder, processes=2)
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            await nursery.start(pool.serve_pool)
            worker = await recorder.worker()
            await recorder.worker(2)
            recorder.give(worker, claim("w", handler="waits"), claim("b"))
            await recorder.until(lambda: recorder.log)
            nursery.start_soon(pool.drain, trio.current_time() + PATIENCE)
            await recorder.until(lambda: recorder.codes() == {"b": "returned"})
            gate.open()
    assert recorder.codes() == {"b": "returned", "w": "ok"}
    assert [cause for _, cause in recorder.lost] == ["exited with code 0"] * 2
    assert pool.statistics().workers == ()


async def test_running_tasks_come_back_when_the_drain_takes_too_long(setup: Setup, recorder: Recorder) -> None:
    pool = Pool(setup, recorder, processes=1)
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            await nursery.start(pool.serve_pool)
            worker = await recorder.worker()
            recorder.give(worker, claim("w", handler="waits"), claim("b"))
            await recorder.until(lambda: recorder.log)
            await pool.drain(trio.current_time() + 0.05)
    assert recorder.codes() == {"b": "returned"}
    assert (recorder.returned, recorder.suspects) == (["w"], [])
    assert recorder.lost == [(worker, "killed: the service ends")]


async def test_everything_comes_back_when_the_pool_is_killed(setup: Setup, recorder: Recorder) -> None:
    pool = Pool(setup, recorder, processes=2)
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            await nursery.start(pool.serve_pool)
            worker = await recorder.worker()
            recorder.give(worker, claim("w", handler="waits"), claim("b"))
            await recorder.until(lambda: recorder.log)
            pool.kill()
    assert "w" in recorder.returned
    assert recorder.suspects == []
    assert not recorder.out


async def test_drain_ends_at_once_when_workers_still_import(tmp_path: Path, recorder: Recorder, gate: Gate) -> None:
    pool = Pool(Setup(imports=(write_handlers(tmp_path, f"wait_for({str(gate.path)!r})"),)), recorder, processes=2)
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            await nursery.start(pool.serve_pool)
            assert {status.state for status in pool.statistics().workers} <= {"down", "starting"}
            await pool.drain(trio.current_time() + 1000)
    assert recorder.ready == []


async def test_worker_is_killed_when_it_does_not_exit(
    tmp_path: Path, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workerproc, "QUIT_SECONDS", 0.1)
    path = write_handlers(tmp_path, "import atexit, time\natexit.register(time.sleep, 1000)")
    pool = Pool(Setup(imports=(path,)), recorder, processes=1)
    async with serving(pool):
        await recorder.worker()
        pool.resize(0)
        await recorder.until(lambda: recorder.lost)
        assert recorder.lost[0][1] == "did not exit within 0.1 s"


async def test_tasks_come_back_when_the_pool_is_cancelled(setup: Setup, recorder: Recorder) -> None:
    async with serving(Pool(setup, recorder, processes=2)):
        worker = await recorder.worker()
        recorder.give(worker, claim("w", handler="waits"), claim("b"))
        await recorder.until(lambda: recorder.log)
    assert not recorder.out
    assert recorder.suspects == []


async def test_pool_tells_the_problem_when_no_process_can_be_started(
    setup: Setup, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    pool = Pool(setup, recorder, processes=1)
    async with serving(pool):
        with trio.fail_after(PATIENCE):
            while pool.statistics().problem is None:  # noqa: ASYNC110 # the pool has no event for it
                await trio.sleep(0.001)
        assert "/nonexistent/python" in str(pool.statistics().problem)
        monkeypatch.undo()
        await recorder.worker()
        assert pool.statistics().problem is None


class _CancelAt(trio.abc.Instrument):
    """Cancels a scope before the n-th step of any Trio task other than the test's own."""

    def __init__(self, scope: trio.CancelScope, steps: int) -> None:
        self.scope = scope
        self.left = steps
        self.own = trio.lowlevel.current_task()

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if task is not self.own:
            self.left -= 1
            if self.left == 0:
                self.scope.cancel()


async def _live(pool: Pool, recorder: Recorder) -> None:
    async with trio.open_nursery() as nursery:
        await nursery.start(pool.serve_pool)
        worker = await recorder.worker()
        recorder.give(worker, claim("a", handler="quick"), claim("b", handler="quick"))
        await recorder.until(lambda: not recorder.out)
        await pool.drain(trio.current_time() + PATIENCE)


async def test_no_process_is_left_when_the_pool_is_cancelled_at_any_step(setup: Setup) -> None:
    """One worker's whole life, cancelled at its first step, at its second, … until it gets through."""
    for steps in range(1, 10_000):
        recorder = Recorder()
        pool = Pool(setup, recorder, processes=1)
        with trio.fail_after(PATIENCE), trio.CancelScope() as scope:
            instrument = _CancelAt(scope, steps)
            trio.lowlevel.add_instrument(instrument)
            try:
                await _live(pool, recorder)
            finally:
                trio.lowlevel.remove_instrument(instrument)
        assert not recorder.out
        assert len(recorder.lost) == len(recorder.ready)
        assert pool.pids == ()
        if instrument.left > 0:
            break
    assert steps > 10
