"""A real worker process, driven over its socket by the test."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import pytest

from tests.worker_support import (
    Gate,
    RawWorker,
    carried,
    is_locked,
    raw_worker,
    write_handlers,
)
from trispool.packet import new_task
from trispool.task import MAX_KEPT_VARS
from trispool.worker.frames import HandlerInfo, Ready, Setup

if TYPE_CHECKING:
    from pathlib import Path

    from trispool.spooldir import SpoolDirectory


# Importing


def test_worker_is_ready_with_what_its_handlers_say_when_they_are_imported(tmp_path: Path) -> None:
    path = write_handlers(
        tmp_path,
        """
        from trispool import handler
        @handler(retries=5, backoff=(1, 2.5), timeout=60, concurrency=3)
        def a(): ...
        @handler(default=True)
        def b(): ...
        """,
    )
    worker = RawWorker(Setup(imports=(path,)))
    try:
        assert worker.receive() == Ready(
            False,
            {
                "a": HandlerInfo(retries=5, backoff=[1, 2.5], timeout=60, concurrency=3),
                "b": HandlerInfo(default=True),
            },
        )
        assert worker.quit() == 0
    finally:
        worker.close()


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("1 / 0", "ZeroDivisionError"),
        ("import no_such_module_at_all", "ModuleNotFoundError"),
        ("def f(:", "SyntaxError"),
        ("import sys; sys.exit('not here')", "SystemExit: not here"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
    ],
)
def test_worker_tells_why_and_exits_when_handlers_do_not_import(tmp_path: Path, source: str, said: str) -> None:
    worker = RawWorker(Setup(imports=(write_handlers(tmp_path, f"print('importing')\n{source}"),)))
    try:
        assert said in worker.why_broken()
        assert worker.wait() == 1
        assert worker.output("stdout") == ([] if "def f" in source else [(None, "importing")])
    finally:
        worker.close()


def test_worker_exits_when_its_spool_is_not_there(tmp_path: Path) -> None:
    worker = RawWorker(Setup(directory=str(tmp_path / "nowhere")))
    try:
        assert "nowhere" in worker.why_broken()
        assert worker.wait() == 1
    finally:
        worker.close()


@pytest.mark.parametrize("kind", ["def", "async def"])
def test_trio_is_loaded_only_when_a_handler_is_async(tmp_path: Path, kind: str) -> None:
    path = write_handlers(
        tmp_path,
        f"""
        import sys
        from trispool import handler, Retry
        @handler
        {kind} h():
            print(sorted({{"trio", "quart", "structlog"}} & set(sys.modules)))
        """,
    )
    with raw_worker(Setup(imports=(path,))) as worker:
        worker.run(carried("t", {"handler": "h"}))
        assert worker.reports(1)[0].code == "ok"
        assert worker.read_lines(1) == [("t", "['trio']" if kind == "async def" else "[]")]


def test_modules_beside_the_program_stand_for_no_others_when_handlers_import(tmp_path: Path) -> None:
    (tmp_path / "frames.py").write_text("mine = True")
    path = write_handlers(tmp_path, "import frames\nassert frames.mine")
    with raw_worker(Setup(imports=(path,))) as worker:
        assert worker.quit() == 0


def test_modules_are_found_where_the_service_was_started_when_imported_by_name(tmp_path: Path) -> None:
    write_handlers(tmp_path, "", "app_handlers.py")
    with raw_worker(Setup(imports=("app_handlers",)), cwd=tmp_path) as worker:
        assert worker.quit() == 0


# Outcomes

OUTCOMES = """
import sys
import uwsgi
from trispool import handler, Retry, Ignore

def spooler(env):
    if env.get(b"raise"):
        raise ValueError("legacy trouble")
    return int(env[b"return"])
uwsgi.spooler = spooler

@handler
def native(what: str):
    if what == "retry":
        raise Retry("not yet", at=2e9)
    if what == "ignore":
        return Ignore("not mine")
    if what == "raise":
        raise ValueError("native trouble")
    if what == "exit":
        sys.exit("bye")
    if what == "interrupt":
        raise KeyboardInterrupt
    if what == "generator":
        raise GeneratorExit
"""


@pytest.mark.parametrize(
    ("vars", "code", "error", "handler"),
    [
        ({"return": -2}, "ok", None, "spooler"),
        ({"return": -1}, "retry", None, "spooler"),
        ({"return": 0}, "ignore", None, "spooler"),
        ({"raise": 1}, "failed", "ValueError: legacy trouble", "spooler"),
        ({"handler": "native", "what": "ok"}, "ok", None, "native"),
        ({"handler": "native", "what": "retry"}, "retry", "not yet", "native"),
        ({"handler": "native", "what": "ignore"}, "ignore", "not mine", "native"),
        ({"handler": "native", "what": "raise"}, "failed", "ValueError: native trouble", "native"),
        ({"handler": "native", "what": "exit"}, "failed", "SystemExit: bye", "native"),
        ({"handler": "native", "what": "interrupt"}, "failed", "KeyboardInterrupt", "native"),
        ({"handler": "native", "what": "generator"}, "failed", "GeneratorExit", "native"),
        ({"handler": "native"}, "failed", "handler native: the var what is missing", "native"),
    ],
)
@pytest.mark.parametrize("loop", ["sync", "async"])
def test_outcome_is_reported_when_a_handler_has_run(
    tmp_path: Path, loop: str, vars: dict[str, object], code: str, error: str | None, handler: str
) -> None:
    extra = "" if loop == "sync" else "\n@handler\nasync def other(): ..."
    before = time.time()
    with raw_worker(Setup(imports=(write_handlers(tmp_path, OUTCOMES + extra),))) as worker:
        worker.run(carried("t", vars), carried("u", {"return": -2}))
        report, next_one = sorted(worker.reports(2), key=lambda report: report.number)
        assert (report.number, report.code, report.handler) == (1, code, handler)
        if error is not None and "missing" in error:
            assert "what" in (report.error or "")
        else:
            assert report.error == error
        assert (report.traceback is not None) == (code == "failed" and "missing" not in (error or ""))
        assert before <= report.started_at <= time.time()
        assert 0 <= report.run_seconds < 10
        assert report.retry_at == (2e9 if error == "not yet" else None)
        assert next_one.code == "ok"
        assert worker.quit() == 0


@pytest.mark.parametrize("loop", ["sync", "async"])
def test_vars_are_told_of_a_task_that_ran_well_unless_they_are_long(tmp_path: Path, loop: str) -> None:
    extra = "" if loop == "sync" else "\n@handler\nasync def other(): ..."
    with raw_worker(Setup(imports=(write_handlers(tmp_path, OUTCOMES + extra),))) as worker:
        fits = {"return": -2, "fill": "x" * (MAX_KEPT_VARS - 4 * 2 - len("return-2fill"))}
        tasks = [
            carried("fits", fits),
            carried("long", {**fits, "fill": fits["fill"] + "x"}),
            carried("again", {"return": -1}),
        ]
        worker.run(*tasks)
        told = {report.number: report.vars for report in worker.reports(3)}
        assert told == {1: tasks[0][0][2][0], 2: None, 3: None}


def test_task_is_ignored_when_nobody_is_there_for_it(tmp_path: Path) -> None:
    with raw_worker(Setup(imports=(write_handlers(tmp_path, ""),))) as worker:
        worker.run(carried("t", {"handler": "nobody"}))
        report = worker.reports(1)[0]
        assert (report.code, report.handler) == ("ignore", None)
        assert "nobody" in (report.error or "")


def test_task_is_unreadable_when_the_vars_it_carries_are_garbage(tmp_path: Path) -> None:
    with raw_worker(Setup(imports=(write_handlers(tmp_path, OUTCOMES),))) as worker:
        worker.run((("t", "t", (b"\xff\xff\xff", b"")), 1), (("u", "u", None), 1), carried("v", {"return": -2}))
        garbage, no_content, good = worker.reports(3)
        assert garbage.code == no_content.code == "unreadable"
        assert garbage.detail
        assert good.code == "ok"


def test_handler_gets_the_task_when_it_asks_for_it(tmp_path: Path) -> None:
    path = write_handlers(
        tmp_path,
        """
        from trispool import handler, Task
        @handler
        def h(task: Task, body: bytes):
            print(task.id, task.attempt, task.spool, task.body, body, sorted(task.vars), task.at, task.priority)
        """,
    )
    with raw_worker(Setup(imports=(path,), spool="films")) as worker:
        worker.run(carried("the-id", {"handler": "h", "k": "v"}, b"B", attempt=3))
        worker.reports(1)
        assert worker.read_lines(1) == [("the-id", "the-id 3 films b'B' b'B' [b'handler', b'k'] None None")]


# Files


def test_file_is_removed_before_the_report_when_its_task_went_well(tmp_path: Path, spool: SpoolDirectory) -> None:
    (entry,) = spool.add([new_task({"return": "-2"}, b"body")])
    with raw_worker(Setup(directory=spool.path, imports=(write_handlers(tmp_path, OUTCOMES),))) as worker:
        worker.run(((entry.id, entry.ref, None), 1))  # type: ignore[union-attr] # it was kept
        assert worker.reports(1)[0].code == "ok"
        assert spool.names() == []


def test_file_stays_and_is_let_go_when_its_task_is_to_run_again(tmp_path: Path, spool: SpoolDirectory) -> None:
    (entry,) = spool.add([new_task({"return": "-1"})])
    with raw_worker(Setup(directory=spool.path, imports=(write_handlers(tmp_path, OUTCOMES),))) as worker:
        worker.run(((entry.id, entry.ref, None), 1))  # type: ignore[union-attr] # it was kept
        assert worker.reports(1)[0].code == "retry"
        (name,) = spool.names()
        assert not is_locked(tmp_path / name)


def test_file_is_locked_while_its_task_runs(tmp_path: Path, spool: SpoolDirectory, gate: Gate) -> None:
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
    (entry,) = spool.add([new_task({"a": "b"})])
    with raw_worker(Setup(directory=spool.path, imports=(path,))) as worker:
        worker.run(((entry.id, entry.ref, None), 1))  # type: ignore[union-attr] # it was kept
        worker.read_lines(1)
        assert is_locked(tmp_path / spool.names()[0])
        gate.open()
        assert worker.reports(1)[0].code == "ok"


@pytest.mark.parametrize("loop", ["sync", "async"])
def test_reason_is_reported_when_a_file_cannot_be_claimed(tmp_path: Path, spool: SpoolDirectory, loop: str) -> None:
    later, locked, good = spool.add([new_task({"a": "b"}, at=2e9), new_task({"a": "b"}), new_task({"return": "-2"})])
    (tmp_path / "spool" / "uwsgi_spoolfile_on_h_1_1_1_1_1").write_bytes(b"garbage!")
    (tmp_path / "spool" / "uwsgi_spoolfile_on_h_1_2_1_1_1").write_bytes(b"\x11")
    holder = spool.claim(locked.ref)  # type: ignore[union-attr] # it was kept
    refs = [
        "uwsgi_spoolfile_on_h_9_9_9_9_9",
        later.ref,  # type: ignore[union-attr]
        locked.ref,  # type: ignore[union-attr]
        "uwsgi_spoolfile_on_h_1_1_1_1_1",
        "uwsgi_spoolfile_on_h_1_2_1_1_1",
        good.ref,  # type: ignore[union-attr]
    ]
    extra = "" if loop == "sync" else "\n@handler\nasync def other(): ..."
    with raw_worker(Setup(directory=spool.path, imports=(write_handlers(tmp_path, OUTCOMES + extra),))) as worker:
        worker.run(*(((ref, ref, None), 1) for ref in refs))
        reports = sorted(worker.reports(6), key=lambda report: report.number)
        assert [report.code for report in reports] == ["gone", "not_due", "locked", "unreadable", "settling", "ok"]
        assert reports[1].detail == pytest.approx(2e9)
        assert reports[3].detail
        assert all(report.started_at == 0 for report in reports[:5])
    holder.close()


def test_task_is_to_run_again_when_its_file_cannot_be_removed(tmp_path: Path, spool: SpoolDirectory) -> None:
    path = write_handlers(
        tmp_path,
        """
        import os
        from trispool import handler
        @handler(default=True)
        def h():
            def unlink(*args, **kwargs):
                raise PermissionError(1, "not permitted")
            os.unlink = unlink
        """,
    )
    (entry,) = spool.add([new_task({"a": "b"})])
    with raw_worker(Setup(directory=spool.path, imports=(path,))) as worker:
        worker.run(((entry.id, entry.ref, None), 1))  # type: ignore[union-attr] # it was kept
        report = worker.reports(1)[0]
        assert report.code == "failed"
        assert "cannot be removed" in (report.error or "")


def test_handler_can_ask_for_tasks_when_it_runs_in_a_worker(tmp_path: Path, spool: SpoolDirectory) -> None:
    path = write_handlers(
        tmp_path,
        """
        import uwsgi
        from trispool import handler
        @handler
        def parent():
            child.spool(n=7)
            uwsgi.spool({b"k": b"v"})
        @handler
        def child(n: int): ...
        """,
    )
    with raw_worker(Setup(directory=spool.path, fsync=False, imports=(path,))) as worker:
        worker.run(carried("t", {"handler": "parent"}))
        assert worker.reports(1)[0].code == "ok"
        vars = [spool.read(os.path.basename(name))[0] for name in spool.names()]
        assert sorted(map(sorted, vars)) == [[b"handler", b"n"], [b"k"]]


# Where they run


def test_handlers_run_in_their_places_when_no_chdir_is_set(tmp_path: Path, spool: SpoolDirectory) -> None:
    path = write_handlers(
        tmp_path,
        """
        import os, uwsgi
        from trispool import handler
        def spooler(env):
            print(os.getcwd(), os.path.exists(env["spooler_task_name"]))
            os.chdir("/")
            return -2
        uwsgi.spooler = spooler
        @handler
        def native():
            print(os.getcwd())
            os.chdir("/")
        """,
    )
    service = tmp_path / "service"
    service.mkdir()
    plain, ordered = spool.add([new_task({"a": "b"}), new_task({"a": "b"}, priority=5)])
    with raw_worker(Setup(directory=spool.path, imports=(path,)), cwd=service) as worker:
        for item in (
            carried("n1", {"handler": "native"}),
            ((plain.id, plain.ref, None), 1),  # type: ignore[union-attr] # it was kept
            carried("n2", {"handler": "native"}),
            ((ordered.id, ordered.ref, None), 1),  # type: ignore[union-attr] # it was kept
        ):
            worker.run(item)
        assert [report.code for report in worker.reports(4)] == ["ok"] * 4
        assert [line for _, line in worker.read_lines(4)] == [
            str(service),
            f"{spool.path} True",
            str(service),
            f"{spool.path}/5 True",
        ]


def test_all_handlers_run_in_chdir_when_it_is_set(tmp_path: Path, spool: SpoolDirectory) -> None:
    path = write_handlers(
        tmp_path,
        """
        import os, uwsgi
        from trispool import handler
        print(os.getcwd())
        def spooler(env):
            print(os.getcwd())
            return -2
        uwsgi.spooler = spooler
        @handler
        def native():
            print(os.getcwd())
        """,
    )
    work = tmp_path / "work"
    work.mkdir()
    setup = Setup(directory=spool.path, chdir=str(work), imports=(path,))
    with raw_worker(setup, cwd=tmp_path) as worker:
        worker.run(carried("n", {"handler": "native"}), carried("l"))
        worker.reports(2)
        assert worker.read_lines(3) == [(None, str(tmp_path)), ("n", str(work)), ("l", str(work))]


def test_worker_tells_why_when_chdir_is_not_there(tmp_path: Path) -> None:
    worker = RawWorker(Setup(chdir=str(tmp_path / "nowhere")))
    try:
        assert "nowhere" in worker.why_broken()
    finally:
        worker.close()
