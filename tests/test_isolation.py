"""Whatever a handler does costs the one attempt that it was in: with real workers."""

from __future__ import annotations

import itertools
import os
import signal
import time
from typing import TYPE_CHECKING

import pytest
import structlog
import trio

from tests.pool_support import Recorder, claim, gate, no_process_left, recorder, serving
from tests.worker_support import PATIENCE, Gate, is_running, wait_until_gone, write_handlers
from trispool import pool as pool_module
from trispool import workerlink, workerproc
from trispool.pool import Pool
from trispool.worker.frames import Setup

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["gate", "no_process_left", "recorder"]

HANDLERS = """
import ctypes, os, signal, socket, stat, subprocess, sys, time
from trispool import handler, Retry

@handler
def fine():
    pass

@handler
def segfault():
    ctypes.string_at(0)

@handler
def abort():
    os.abort()

@handler
def leave(code: int):
    os._exit(code)

@handler
def suicide():
    os.kill(os.getpid(), signal.SIGKILL)

@handler
def exits():
    sys.exit(7)

@handler
def raises():
    raise ValueError("trouble")

@handler
def hang():
    print("hanging", subprocess.Popen(["sleep", "1000"]).pid)
    time.sleep(1000)

@handler
def busy():
    print("busy", subprocess.Popen(["sleep", "1000"]).pid)
    pow(7, 10**10)

@handler(timeout=0.1)
def own_timeout():
    time.sleep(1000)

@handler
def close_all():
    print("closing")
    os.closerange(3, 1000)
    time.sleep(1000)

def write_to_sockets(data):
    for fd in range(3, 100):
        try:
            if stat.S_ISSOCK(os.fstat(fd).st_mode):
                os.write(fd, data)
        except OSError:
            pass
    time.sleep(1000)

@handler
def garble():
    write_to_sockets(b"\\0\\0\\0\\4junk")

@handler
def garble_text():
    write_to_sockets(b"\\0\\0\\0\\x13\\x94\\xa8progress\\xa1\\xff\\xca\\0\\0\\0\\0\\xa1x")

@handler
def garble_length():
    write_to_sockets(b"\\xff" * 100)

@handler
def raw():
    os.write(1, b"raw\\n")
    subprocess.run(["sh", "-c", "echo from a child; echo and its stderr >&2"])
    wait_for(os.environ["GATE"])

@handler
def flood():
    for _ in range(20_000):
        os.write(1, b"x" * 400 + b"\\n")

@handler
def waits():
    print("begun")
    wait_for(os.environ["GATE"])
"""

ASYNC = """
import trio

@handler
async def sleeps():
    print("sleeping")
    await trio.sleep_forever()

@handler(timeout=0.05)
async def shielded():
    print("shielded")
    with trio.CancelScope(shield=True):
        await trio.sleep_forever()

@handler
async def breaks_trio():
    raise_in_system_task = trio.lowlevel.spawn_system_task
    async def bad():
        raise ValueError("in a system task")
    raise_in_system_task(bad)
    await trio.sleep_forever()
"""


@pytest.fixture
def handlers(tmp_path: Path, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("GATE", str(gate.path))
    return write_handlers(tmp_path, HANDLERS)


# Crashes


@pytest.mark.parametrize(
    ("name", "vars", "cause"),
    [
        ("segfault", {}, "killed by signal 11 (SIGSEGV)"),
        ("abort", {}, "killed by signal 6 (SIGABRT)"),
        ("suicide", {}, "killed by signal 9 (SIGKILL)"),
        ("leave", {"code": 3}, "exited with code 3"),
        ("leave", {"code": 0}, "exited with code 0"),
    ],
)
async def test_one_attempt_is_lost_when_a_handler_kills_its_process(
    handlers: str, recorder: Recorder, name: str, vars: dict[str, int], cause: str
) -> None:
    pool = Pool(Setup(imports=(handlers,)), recorder, processes=1)
    async with serving(pool):
        worker = await recorder.worker()
        recorder.give(
            worker,
            claim("before", handler="fine"),
            claim("bad", b"", handler=name, **vars),
            claim("behind", handler="fine"),
        )
        await recorder.until(lambda: recorder.lost)
        assert recorder.lost == [(worker, cause)]
        assert recorder.ended() == {"before": "ok"}
        assert (recorder.back(), recorder.suspects) == (["behind"], ["bad"])
        successor = await recorder.worker(2)
        assert successor.pid != worker.pid
        recorder.give(successor, claim("behind", handler="fine"))
        await recorder.until(lambda: recorder.codes().get("behind") == "ok")
        assert (pool.statistics().started, pool.statistics().lost) == (2, 1)


async def test_traceback_is_logged_with_the_id_when_the_interpreter_crashes(handlers: str, recorder: Recorder) -> None:
    async with serving(Pool(Setup(imports=(handlers,)), recorder, processes=1)):
        recorder.give(await recorder.worker(), claim("bad", handler="segfault"))
        await recorder.until(lambda: recorder.lost)
        assert ("bad", "Fatal Python error: Segmentation fault") in recorder.log
        assert any(task == "bad" and "in segfault" in line for task, line in recorder.log)


@pytest.mark.parametrize("name", ["exits", "raises"])
async def test_worker_stays_when_a_handler_exits_or_raises(handlers: str, recorder: Recorder, name: str) -> None:
    async with serving(Pool(Setup(imports=(handlers,)), recorder, processes=1)):
        worker = await recorder.worker()
        recorder.give(worker, claim("bad", handler=name), claim("behind", handler="fine"))
        await recorder.until(lambda: not recorder.out)
        assert recorder.codes()["bad"] == "failed"
        assert recorder.codes()["behind"] in ("ok", "returned")
        assert not recorder.lost
        recorder.give(worker, claim("next", handler="fine"))
        await recorder.until(lambda: recorder.codes().get("next") == "ok")


async def test_one_attempt_is_lost_when_somebody_kills_the_worker(handlers: str, recorder: Recorder) -> None:
    async with serving(Pool(Setup(imports=(handlers,)), recorder, processes=2)):
        worker, other = await recorder.worker(1), await recorder.worker(2)
        recorder.give(worker, claim("w", handler="waits"), claim("b", handler="fine"))
        recorder.give(other, claim("o", handler="waits"))
        await recorder.until(lambda: len(recorder.log) == 2)
        os.kill(worker.pid, signal.SIGKILL)
        await recorder.until(lambda: recorder.lost)
        assert recorder.lost == [(worker, "killed by signal 9 (SIGKILL)")]
        assert (recorder.suspects, recorder.back()) == (["w"], ["b"])
        assert other.in_hand == 1


async def test_nobody_is_to_blame_when_an_idle_worker_is_killed(handlers: str, recorder: Recorder) -> None:
    async with serving(Pool(Setup(imports=(handlers,)), recorder, processes=1)):
        worker = await recorder.worker()
        os.kill(worker.pid, signal.SIGKILL)
        await recorder.worker(2)
        assert recorder.lost == [(worker, "killed by signal 9 (SIGKILL)")]
        assert (recorder.returned, recorder.suspects) == ([], [])


@pytest.mark.parametrize("name", ["close_all", "garble", "garble_text", "garble_length"])
async def test_worker_is_killed_when_a_handler_spoils_its_connection(
    handlers: str, recorder: Recorder, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(workerlink, "DEAF_SECONDS", 0.05)
    async with serving(Pool(Setup(imports=(handlers,)), recorder, processes=1)):
        worker = await recorder.worker()
        recorder.give(worker, claim("bad", handler=name), claim("behind", handler="fine"))
        await recorder.until(lambda: recorder.lost)
        assert recorder.lost == [(worker, "broke its connection to the service")]
        assert recorder.suspects == ["bad"]
        await recorder.worker(2)


# Hangs


@pytest.mark.parametrize("name", ["hang", "busy"])
async def test_worker_and_its_children_are_killed_when_a_task_takes_too_long(
    handlers: str, recorder: Recorder, name: str
) -> None:
    pool = Pool(Setup(imports=(handlers,), timeout=0.3), recorder, processes=1)
    async with serving(pool):
        worker = await recorder.worker()
        recorder.give(worker, claim("bad", handler=name), claim("behind", handler="fine"))
        await recorder.until(lambda: recorder.log)
        child = int(recorder.log[0][1].split()[1])
        assert is_running(child)
        await recorder.until(lambda: recorder.lost)
        assert recorder.lost == [(worker, "harakiri: ran longer than 0.3 s")]
        assert recorder.suspects == ["bad"]
        assert recorder.back() == ["behind"]
        assert any(task == "bad" and f"in {name}" in line for task, line in recorder.log)  # where it hung
        assert not is_running(worker.pid)
        wait_until_gone(child)
        await recorder.worker(2)


async def test_a_handlers_own_timeout_counts_when_it_has_one(handlers: str, recorder: Recorder) -> None:
    async with serving(Pool(Setup(imports=(handlers,), timeout=1000), recorder, processes=1)):
        worker = await recorder.worker()
        began = time.monotonic()
        recorder.give(worker, claim("bad", handler="own_timeout"))
        await recorder.until(lambda: recorder.lost)
        assert recorder.lost == [(worker, "harakiri: ran longer than 0.1 s")]
        assert time.monotonic() - began >= 0.1


async def test_worker_lives_when_tasks_are_shorter_than_the_timeout(handlers: str, recorder: Recorder) -> None:
    async with serving(Pool(Setup(imports=(handlers,), timeout=0.3), recorder, processes=1)):
        worker = await recorder.worker()
        until = time.monotonic() + 0.5
        number = 0
        while time.monotonic() < until:
            number += 1
            recorder.give(worker, claim(f"t{number}", handler="fine"))
            await recorder.until(lambda: not recorder.out)
        assert not recorder.lost


# Async handlers


@pytest.fixture
def async_setup(tmp_path: Path, handlers: str) -> Setup:
    return Setup(imports=(write_handlers(tmp_path, HANDLERS + ASYNC, "async_handlers.py"),), concurrency=10)


async def test_the_one_that_held_the_loop_is_to_blame_when_an_async_worker_crashes(
    async_setup: Setup, recorder: Recorder
) -> None:
    async with serving(Pool(async_setup, recorder, processes=1)):
        worker = await recorder.worker()
        recorder.give(worker, claim("s1", handler="sleeps"), claim("s2", handler="sleeps"))
        await recorder.until(lambda: len(recorder.log) == 2)
        recorder.give(worker, claim("bad", handler="segfault"), claim("behind", handler="fine"))
        await recorder.until(lambda: recorder.lost)
        assert recorder.suspects == ["bad"]
        assert recorder.back() == ["behind", "s1", "s2"]


async def test_all_that_ran_are_to_blame_when_no_one_held_the_loop(async_setup: Setup, recorder: Recorder) -> None:
    async with serving(Pool(async_setup, recorder, processes=1)):
        worker = await recorder.worker()
        recorder.give(worker, claim("s", handler="sleeps"), claim("bad", handler="breaks_trio"))
        await recorder.until(lambda: recorder.lost)
        assert recorder.lost == [(worker, "exited with code 1")]
        assert sorted(recorder.suspects) == ["bad", "s"]


async def test_worker_is_killed_when_a_sync_handler_holds_the_loop_too_long(
    async_setup: Setup, recorder: Recorder
) -> None:
    async with serving(Pool(async_setup, recorder, processes=1)):
        worker = await recorder.worker()
        recorder.give(worker, claim("s", handler="sleeps"))
        await recorder.until(lambda: recorder.log)
        recorder.give(worker, claim("bad", handler="own_timeout"), claim("behind", handler="sleeps"))
        await recorder.until(lambda: recorder.lost)
        assert recorder.lost == [(worker, "harakiri: ran longer than 0.1 s")]
        assert (recorder.suspects, recorder.back()) == (["bad"], ["behind", "s"])


async def test_worker_is_killed_when_an_async_handler_does_not_let_itself_be_cancelled(
    async_setup: Setup, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workerproc, "OVERDUE_SECONDS", 0.1)
    async with serving(Pool(async_setup, recorder, processes=1)):
        worker = await recorder.worker()
        recorder.give(worker, claim("bad", handler="shielded"), claim("s", handler="sleeps"))
        await recorder.until(lambda: recorder.lost)
        assert recorder.lost[0][1].startswith("harakiri: ")
        assert sorted(recorder.suspects) == ["bad", "s"]


# Workers that do not get far


async def test_problem_is_told_once_and_ends_when_handlers_do_not_import(tmp_path: Path, recorder: Recorder) -> None:
    path = write_handlers(tmp_path, "raise ValueError('broken handlers')")
    pool = Pool(Setup(imports=(path,)), recorder, processes=2)
    with structlog.testing.capture_logs() as logs:
        async with serving(pool):
            with trio.fail_after(PATIENCE):
                while pool.statistics().started < 6:  # noqa: ASYNC110 # the pool has no event for it
                    await trio.sleep(0.001)
            assert "ValueError: broken handlers" in str(pool.statistics().problem)
            write_handlers(tmp_path, "print('mended')")
            await recorder.worker()
            assert pool.statistics().problem is None
    assert len([line for line in logs if line["event"] == "handlers_do_not_import"]) == 1


async def test_problem_is_told_when_workers_die_while_they_import(tmp_path: Path, recorder: Recorder) -> None:
    path = write_handlers(tmp_path, "import os\nos._exit(3)")
    pool = Pool(Setup(imports=(path,)), recorder, processes=1)
    async with serving(pool):
        while pool.statistics().problem is None:  # noqa: ASYNC110 # the pool has no event for it
            await trio.sleep(0.001)
        assert "exited with code 3" in str(pool.statistics().problem)
        write_handlers(tmp_path, "print('mended')")
        await recorder.worker()
        assert pool.statistics().problem is None


async def test_pauses_grow_when_workers_die_at_once(tmp_path: Path, recorder: Recorder) -> None:
    # It dies by itself, a few milliseconds after it was ready.
    path = write_handlers(
        tmp_path,
        """
        import os, threading, time
        def die():
            time.sleep(0.05)
            os._exit(9)
        threading.Thread(target=die, daemon=True).start()
        """,
    )
    ready_at: list[float] = []
    pool = Pool(Setup(imports=(path,)), recorder, processes=1)
    async with serving(pool):
        for number in range(1, 5):
            await recorder.worker(number)
            ready_at.append(time.monotonic())
        pauses = [later - earlier for earlier, later in itertools.pairwise(ready_at)]
        assert [pause >= at_least for pause, at_least in zip(pauses, (0.1, 0.2, 0.4), strict=True)] == [True] * 3
        await recorder.until(lambda: len(recorder.lost) == 4)
        assert {cause for _, cause in recorder.lost} == {"exited with code 9"}


async def test_pauses_stay_short_when_it_is_tasks_that_kill_workers(
    handlers: str, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_module, "LONGEST_PAUSE_AT_WORK", 0.01)
    monkeypatch.setattr(pool_module, "FIRST_PAUSE", 1000.0)
    async with serving(Pool(Setup(imports=(handlers,)), recorder, processes=1)):
        for number in range(1, 4):
            recorder.give(await recorder.worker(number), claim(f"t{number}", handler="leave", code=1))
        await recorder.worker(4)
        assert recorder.suspects == ["t1", "t2", "t3"]


async def test_pause_is_cut_short_when_the_pool_is_reloaded_or_drained(
    tmp_path: Path, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_module, "FIRST_PAUSE", 1000.0)
    monkeypatch.setattr(pool_module, "LONGEST_PAUSE", 1000.0)
    path = write_handlers(tmp_path, "1 / 0")
    pool = Pool(Setup(imports=(path,)), recorder, processes=1)
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            await nursery.start(pool.serve_pool)
            for started in (1, 2):
                while pool.statistics().workers or not pool.statistics().problem:  # noqa: ASYNC110 # no event for it
                    await trio.sleep(0.001)
                assert pool.statistics().started == started
                pool.reload()
                await trio.testing.wait_all_tasks_blocked()
            await pool.drain(trio.current_time() + 1000)


# Output


async def test_worker_goes_on_printing_when_a_program_makes_its_pipe_non_blocking(
    tmp_path: Path, recorder: Recorder
) -> None:
    path = write_handlers(
        tmp_path,
        """
        import subprocess, sys
        from trispool import handler
        @handler
        def sets():
            subprocess.run([sys.executable, "-c", "import os; os.set_blocking(1, False)"], check=True)
        @handler
        def prints():
            for _ in range(2000):
                print("x" * 400)
        """,
    )
    async with serving(Pool(Setup(imports=(path,)), recorder, processes=1)):
        worker = await recorder.worker()
        for task_id, name in (("s", "sets"), ("p", "prints")):
            recorder.give(worker, claim(task_id, handler=name))
            await recorder.until(lambda: not recorder.out)
        await recorder.until(lambda: len(recorder.log) == 2000)
        assert set(recorder.log) == {("p", "x" * 400)}
        assert recorder.codes() == {"s": "ok", "p": "ok"}


async def test_lines_carry_the_id_when_they_are_written_past_the_streams(
    handlers: str, recorder: Recorder, gate: Gate
) -> None:
    async with serving(Pool(Setup(imports=(handlers,)), recorder, processes=1)):
        recorder.give(await recorder.worker(), claim("t", handler="raw"))
        await recorder.until(lambda: len(recorder.log) == 3)
        assert sorted(recorder.log) == [("t", "and its stderr"), ("t", "from a child"), ("t", "raw")]
        gate.open()
        await recorder.until(lambda: not recorder.out)


async def test_other_workers_are_served_when_one_floods_the_log(handlers: str, recorder: Recorder) -> None:
    async with serving(Pool(Setup(imports=(handlers,)), recorder, processes=2)):
        flooding, other = await recorder.worker(1), await recorder.worker(2)
        recorder.give(flooding, claim("f", handler="flood"))
        await recorder.until(lambda: recorder.log)
        recorder.give(other, claim("o", handler="fine"))
        await recorder.until(lambda: not recorder.out)
        assert [report.claim.id for report in recorder.reports] == ["o", "f"]
        await recorder.until(lambda: len(recorder.log) == 20_000)
        assert {len(line) for _, line in recorder.log} == {400}


async def test_descriptors_are_closed_when_workers_have_gone(handlers: str, recorder: Recorder) -> None:
    before = set(os.listdir("/proc/self/fd"))
    for _ in range(2):
        async with serving(Pool(Setup(imports=(handlers,)), recorder, processes=2)):
            count = len(recorder.ready)
            await recorder.worker(count + 2)
    assert set(os.listdir("/proc/self/fd")) == before
