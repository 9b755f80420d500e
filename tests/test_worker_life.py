"""What a real worker process prints and tells, and how it ends; driven over its socket by the test."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from tests.worker_support import (
    PROGRAM,
    Gate,
    carried,
    is_running,
    raw_worker,
    wait_until_gone,
    write_handlers,
)
from trispool.packet import new_task
from trispool.worker.frames import Progress, SetFrequency, Setup

if TYPE_CHECKING:
    from pathlib import Path

    from trispool.spooldir import SpoolDirectory


# What it prints

PRINTING = """
import os, subprocess, sys
from trispool import handler
print("at import")
print("to stderr at import", file=sys.stderr)

@handler
def printing():
    print("to stdout")
    print("to stderr", file=sys.stderr)
    print("no end", end="")

@handler
def raw():
    os.write(1, b"raw one\\n")
    subprocess.run(["echo", "of a child"], check=True)

@handler
def garbage():
    for fd in (1, 2):
        os.write(fd, bytes(range(256)) * 20)
    sys.stdout.buffer.write(b"\\xff\\n")

@handler
def closing():
    sys.stdout.close()
    os.close(1)
    os.close(0)
"""


def test_lines_carry_the_id_when_handlers_print(tmp_path: Path) -> None:
    with raw_worker(Setup(imports=(write_handlers(tmp_path, PRINTING),))) as worker:
        assert worker.read_lines(1) == [(None, "at import")]
        assert worker.read_lines(1, "stderr") == [(None, "to stderr at import")]
        worker.run(carried("t1", {"handler": "printing"}), carried("t2", {"handler": "printing"}))
        worker.reports(2)
        assert worker.read_lines(4) == [("t1", "to stdout"), ("t1", "no end"), ("t2", "to stdout"), ("t2", "no end")]
        assert worker.read_lines(2, "stderr") == [("t1", "to stderr"), ("t2", "to stderr")]


def test_protocol_goes_on_when_handlers_write_past_their_streams(tmp_path: Path) -> None:
    with raw_worker(Setup(imports=(write_handlers(tmp_path, PRINTING),))) as worker:
        worker.read_lines(1)
        worker.run(carried("t1", {"handler": "raw"}))
        assert worker.reports(1)[0].code == "ok"
        assert worker.read_lines(2) == [(None, "raw one"), (None, "of a child")]
        worker.run(*(carried(name, {"handler": name}) for name in ("garbage", "closing", "printing")))
        assert [report.code for report in worker.reports(3)] == ["ok"] * 3
        assert ("printing", "to stdout") in worker.output("stdout")
        assert worker.quit() == 0


def test_traceback_is_printed_when_a_handler_crashes_the_interpreter(tmp_path: Path) -> None:
    path = write_handlers(
        tmp_path,
        """
        import ctypes
        from trispool import handler
        @handler(default=True)
        def crash():
            ctypes.string_at(0)
        """,
    )
    with raw_worker(Setup(imports=(path,))) as worker:
        number = worker.run(carried("t"))
        assert worker.wait() == -signal.SIGSEGV
        assert worker.board.running[0] == number
        assert worker.board.code(number) is None
        assert any("in crash" in line for _, line in worker.output("stderr"))


# Telling


def test_progress_is_told_when_a_handler_reports_it(tmp_path: Path) -> None:
    path = write_handlers(
        tmp_path,
        """
        from trispool import handler, Task
        @handler
        def h(task: Task):
            task.report_progress(0.5, "half way")
        @handler
        def flood(task: Task):
            for number in range(100_000):
                task.report_progress(0.25)
        """,
    )
    with raw_worker(Setup(imports=(path,))) as worker:
        worker.run(carried("t", {"handler": "h"}))
        assert worker.receive() == Progress("t", 0.5, "half way")
        worker.reports(1)
        worker.run(carried("t", {"handler": "flood"}))
        count = 0
        while isinstance(worker.receive(), Progress):
            count += 1
        assert 10 < count < 10_000


def test_frequency_is_told_when_a_handler_sets_it(tmp_path: Path) -> None:
    path = write_handlers(
        tmp_path,
        """
        import uwsgi
        def spooler(env):
            assert uwsgi.set_spooler_frequency(7) is True
            return -2
        uwsgi.spooler = spooler
        """,
    )
    with raw_worker(Setup(imports=(path,))) as worker:
        worker.run(carried("t"))
        assert worker.receive() == SetFrequency(7.0)
        assert worker.reports(1)[0].code == "ok"


def test_uwsgi_knows_the_process_and_the_spool_when_told(tmp_path: Path, spool: SpoolDirectory) -> None:
    path = write_handlers(
        tmp_path,
        """
        import uwsgi
        def spooler(env):
            print(uwsgi.spooler_pids(), uwsgi.masterpid(), uwsgi.i_am_the_spooler())
            print(uwsgi.spoolers, uwsgi.spooler_dir(), uwsgi.opt["x"], uwsgi.opt["spooler-processes"])
            return -2
        uwsgi.spooler = spooler
        """,
    )
    setup = Setup(
        directory=spool.path,
        imports=(path,),
        spoolers=(spool.path,),
        options={"x": b"1"},
        processes=3,
        pids=(1, 2),
        service_pid=99,
    )
    with raw_worker(setup) as worker:
        worker.send(("pids", (4, 5, 6)))
        worker.run(carried("t"))
        worker.reports(1)
        directory = spool.path.encode()
        assert [line for _, line in worker.read_lines(2)] == [
            "[4, 5, 6] 99 True",
            f"{(directory,)} {directory!r} b'1' b'3'",
        ]


# When reports come


def test_reports_do_not_wait_when_a_handler_is_not_known_to_be_quick(tmp_path: Path, gate: Gate) -> None:
    path = write_handlers(
        tmp_path,
        f"""
        from trispool import handler
        @handler
        def quick(): ...
        @handler
        def slow():
            wait_for({str(gate.path)!r})
        """,
    )
    with raw_worker(Setup(imports=(path,))) as worker:
        worker.run(*[carried("t", {"handler": "quick"})] * 5, carried("u", {"handler": "slow"}))
        assert len(worker.reports(5)) == 5
        gate.open()
        worker.reports(1)


def test_what_could_not_be_run_is_told_before_the_next_handler_is_called(
    tmp_path: Path, spool: SpoolDirectory, gate: Gate
) -> None:
    path = write_handlers(
        tmp_path,
        f"""
        from trispool import handler
        @handler(default=True)
        def h(wait: bool = False):
            if wait:
                wait_for({str(gate.path)!r})
        """,
    )
    with raw_worker(Setup(directory=spool.path, imports=(path,))) as worker:
        worker.run(*[carried("t")] * 3)  # it is known to be quick
        worker.reports(3)
        gone = "uwsgi_spoolfile_on_h_1_1_1_1_1"
        worker.run(((gone, gone, None), 1), carried("t", {"wait": "true"}))
        assert [report.code for report in worker.reports(1)] == ["gone"]
        gate.open()
        assert [report.code for report in worker.reports(1)] == ["ok"]


def test_board_shows_what_ended_when_a_quick_handler_is_suddenly_slow(tmp_path: Path, gate: Gate) -> None:
    path = write_handlers(
        tmp_path,
        f"""
        from trispool import handler
        @handler(default=True)
        def h(wait: bool = False):
            if wait:
                print("waiting")
                wait_for({str(gate.path)!r})
        """,
    )
    with raw_worker(Setup(imports=(path,))) as worker:
        worker.run(*[carried("t")] * 3)
        worker.reports(3)
        first = worker.run(carried("t"), carried("u", {"wait": "true"}), carried("v"))
        worker.read_lines(1)
        board = worker.board
        assert board.running[0] == first + 1
        assert [board.code(first + number) for number in range(3)] == ["ok", None, None]
        worker.board.recall(first + 3)
        gate.open()
        assert [report.code for report in worker.reports(3)] == ["ok", "ok", "returned"]


def test_tasks_are_returned_when_they_are_recalled_before_they_begin(tmp_path: Path, gate: Gate) -> None:
    path = write_handlers(
        tmp_path,
        f"""
        from trispool import handler
        @handler(default=True)
        def h():
            print("running")
            wait_for({str(gate.path)!r})
        """,
    )
    with raw_worker(Setup(imports=(path,))) as worker:
        worker.run(carried("a"), carried("b"))
        second = worker.run(carried("c"))
        worker.read_lines(1)
        worker.board.recall(second + 1)
        worker.run(carried("d"))
        gate.open(2)
        reports = worker.reports(4)
        assert [(report.number, report.code) for report in reports] == [
            (1, "ok"),
            (2, "returned"),
            (3, "returned"),
            (4, "ok"),
        ]
        assert worker.read_lines(1) == [("d", "running")]


def test_board_shows_the_deadline_when_a_task_has_a_timeout(tmp_path: Path, gate: Gate) -> None:
    path = write_handlers(
        tmp_path,
        f"""
        from trispool import handler
        @handler
        def own(): print("x"); wait_for({str(gate.path)!r})
        @handler
        def spools(): print("x"); wait_for({str(gate.path)!r})
        own.timeout = 1000.0
        """,
    )
    with raw_worker(Setup(imports=(path,), timeout=500.0)) as worker:
        for name, seconds in (("own", 1000.0), ("spools", 500.0)):
            worker.run(carried("t", {"handler": name}))
            worker.read_lines(1)
            number, started, deadline = worker.board.running
            assert number == worker.next - 1
            assert deadline == pytest.approx(started + seconds, abs=1.0)
            assert started == pytest.approx(time.monotonic(), abs=10)
            gate.open()
            worker.reports(1)
            assert worker.board.running[0] in (0, number)


# Life and death


def test_worker_goes_on_when_signals_meant_for_the_service_reach_it(tmp_path: Path, gate: Gate) -> None:
    path = write_handlers(
        tmp_path,
        f"""
        import signal, subprocess, sys
        from trispool import handler
        @handler(default=True)
        def h():
            child = subprocess.Popen(["sleep", "1000"])
            print(child.pid)
            child.wait()
            print(child.returncode)
            wait_for({str(gate.path)!r})
        """,
    )
    with raw_worker(Setup(imports=(path,))) as worker:
        worker.run(carried("t"))
        ((_, child),) = worker.read_lines(1)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            os.kill(worker.process.pid, number)
        os.kill(int(child), signal.SIGTERM)  # a program that a handler starts dies of it as it should
        assert worker.read_lines(1) == [("t", f"-{signal.SIGTERM.value}")]
        gate.open()
        assert worker.reports(1)[0].code == "ok"


def test_worker_leads_a_session_of_its_own_when_started(tmp_path: Path) -> None:
    with raw_worker(Setup(imports=(write_handlers(tmp_path, ""),))) as worker:
        assert os.getsid(worker.process.pid) == os.getpgid(worker.process.pid) == worker.process.pid


BUSY = """
import subprocess
from trispool import handler
@handler(default=True)
def busy():
    print(subprocess.Popen(["sleep", "1000"]).pid)
    pow(7, 10**10)  # minutes in C, without a look at signals
"""

SERVICE = f"""
import sys
sys.path[:0] = {sys.path!r}
from tests.worker_support import RawWorker, carried
from trispool.worker.frames import Setup
worker = RawWorker(Setup(imports=(sys.argv[1],)))
worker.receive()
worker.run(carried("t"))
print(worker.process.pid, worker.read_lines(1)[0][1], flush=True)
worker.receive()
"""


def test_worker_and_its_children_die_when_the_service_is_killed_in_mid_task(tmp_path: Path) -> None:
    service = subprocess.Popen(
        [sys.executable, "-c", SERVICE, write_handlers(tmp_path, BUSY)], stdout=subprocess.PIPE, text=True
    )
    assert service.stdout is not None
    with service.stdout:
        worker, child = map(int, service.stdout.readline().split())
    assert is_running(worker)
    assert is_running(child)
    service.kill()
    service.wait()
    wait_until_gone(worker)
    wait_until_gone(child)


def test_worker_exits_when_the_service_is_gone_before_it_starts(tmp_path: Path) -> None:
    life, ours = os.pipe()
    os.close(ours)
    process = subprocess.Popen([sys.executable, PROGRAM, "0", "0", str(life)], pass_fds=(life,), start_new_session=True)
    os.close(life)
    assert process.wait() in (1, -signal.SIGKILL)


def test_descriptors_are_not_inherited_when_a_handler_starts_a_program(tmp_path: Path) -> None:
    path = write_handlers(
        tmp_path,
        """
        import os
        from trispool import handler
        @handler(default=True)
        def h():
            os.system("ls /proc/self/fd | tr '\\\\n' ' '; echo")
        """,
    )
    with raw_worker(Setup(imports=(path,))) as worker:
        worker.run(carried("t"))
        worker.reports(1)
        ((_, line),) = worker.read_lines(1)
        assert line.split()[:3] == ["0", "1", "2"]
        assert len(line.split()) == 4  # and what ls itself opens


FORKING = """
import os
from trispool import handler, Task
@handler
def returns():
    pid = os.fork()
    if pid:
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    else:
        print("in the child")
@handler
def raises(task: Task):
    pid = os.fork()
    if pid:
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    else:
        task.report_progress(0.5)
        raise ValueError
@handler
def multiprocesses():
    import multiprocessing
    with multiprocessing.get_context("fork").Pool(1) as pool:
        print(pool.map(abs, [-1, -2]))
"""


@pytest.mark.parametrize("loop", ["sync", "async"])
@pytest.mark.filterwarnings("ignore")
def test_task_is_reported_once_when_a_handler_forks(tmp_path: Path, spool: SpoolDirectory, loop: str) -> None:
    extra = "" if loop == "sync" else "\n@handler\nasync def other(): ..."
    tasks = [new_task({"handler": name}) for name in ("returns", "raises", "multiprocesses")]
    entries = spool.add(tasks)
    setup = Setup(directory=spool.path, imports=(write_handlers(tmp_path, FORKING + extra),))
    with raw_worker(setup) as worker:
        codes = []
        for entry in entries:
            worker.run(((entry.id, entry.ref, None), 1))  # type: ignore[union-attr] # it was kept
            codes += [report.code for report in worker.reports(1)]
        assert codes == ["ok", "ok", "ok"]
        assert worker.quit() == 0
        assert sorted(line for _, line in worker.output("stdout")) == ["0", "1", "[1, 2]", "in the child"]
        with pytest.raises(EOFError):
            worker.receive()


def test_worker_exits_when_told_to_quit_behind_a_batch(tmp_path: Path) -> None:
    path = write_handlers(tmp_path, "import uwsgi; uwsgi.spooler = lambda env: -2")
    with raw_worker(Setup(imports=(path,))) as worker:
        worker.run(*[carried("t")] * 50)
        worker.send(("quit",))
        assert len(worker.reports(50)) == 50
        assert worker.wait() == 0
