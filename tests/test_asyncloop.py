"""A real worker process with async handlers, driven over its socket by the test."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from tests.worker_support import (
    Gate,
    RawWorker,
    carried,
    raw_worker,
    write_handlers,
)
from trispool.worker.frames import Done, Progress, Setup

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


# Async handlers

ASYNC = """
import os, time
import trio
from trispool import handler, Task

gate = os.environ["GATE"]

async def wait():
    await trio.lowlevel.wait_readable(fd := os.open(gate, os.O_RDONLY | os.O_NONBLOCK))
    os.read(fd, 1)
    os.close(fd)

@handler
async def waits():
    print("begun")
    await wait()

@handler
async def shielded():
    print("begun")
    with trio.CancelScope(shield=True):
        await wait()

@handler(concurrency=1)
async def alone(task: Task):
    print("begun")
    await wait()
    print("ended")

@handler(timeout=0.05)
async def too_long():
    await trio.sleep_forever()

@handler(timeout=0.05)
async def cleans_up():
    try:
        await trio.sleep_forever()
    finally:
        raise ValueError("while cleaning up")

@handler
async def progress(task: Task):
    await task.progress(0.5, "half way")

@handler
async def nursery():
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.sleep_forever)
        raise ValueError("inside")

@handler
async def exits():
    raise SystemExit("bye")

@handler
def inline():
    print("inline")

@handler(timeout=300)
def inline_waits():
    print("begun")
    wait_for(gate)
"""


@pytest.fixture
def async_worker(tmp_path: Path, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> Iterator[RawWorker]:
    monkeypatch.setenv("GATE", str(gate.path))
    with raw_worker(Setup(imports=(write_handlers(tmp_path, ASYNC),))) as worker:
        yield worker


def test_async_handlers_run_at_once_when_there_are_several(async_worker: RawWorker, gate: Gate) -> None:
    worker = async_worker
    worker.run(*(carried(f"t{number}", {"handler": "waits"}) for number in range(5)))
    assert sorted(worker.read_lines(5)) == [(f"t{number}", "begun") for number in range(5)]
    assert all(worker.board.is_begun(number) for number in range(1, 6))
    gate.open(5)
    assert [report.code for report in worker.reports(5)] == ["ok"] * 5
    assert worker.quit() == 0


def test_handler_runs_alone_when_its_concurrency_is_one(async_worker: RawWorker, gate: Gate) -> None:
    worker = async_worker
    worker.run(*(carried(name, {"handler": "alone"}) for name in "abc"), carried("d", {"handler": "progress"}))
    assert worker.receive() == Progress("d", 0.5, "half way")
    assert [report.number for report in worker.reports(1)] == [4]
    lines: list[tuple[str | None, str]] = []
    for number in (1, 2, 3):
        while len(lines) < 2 * number - 1:
            lines += worker.read_lines(1)
        assert worker.board.is_begun(number)
        assert not worker.board.is_begun(number + 1)
        gate.open()
        assert [(report.number, report.code) for report in worker.reports(1)] == [(number, "ok")]
    while len(lines) < 6:
        lines += worker.read_lines(1)
    assert lines == [(name, text) for name in "abc" for text in ("begun", "ended")]


def test_waiting_tasks_are_returned_when_recalled(async_worker: RawWorker, gate: Gate) -> None:
    worker = async_worker
    worker.run(*(carried(name, {"handler": "alone"}) for name in "abc"))
    worker.read_lines(1)
    worker.board.recall(4)
    worker.send(("recall",))
    assert [(report.number, report.code) for report in worker.reports(2)] == [(2, "returned"), (3, "returned")]
    worker.run(carried("d", {"handler": "alone"}))
    gate.open(2)
    assert [report.number for report in worker.reports(2)] == [1, 4]


def test_handler_is_cancelled_when_it_takes_too_long(async_worker: RawWorker) -> None:
    worker = async_worker
    worker.run(carried("a", {"handler": "too_long"}), carried("b", {"handler": "cleans_up"}))
    timeout, failed = sorted(worker.reports(2), key=lambda report: report.number)
    assert (timeout.code, timeout.error) == ("timeout", "timed out after 0.05 s")
    assert timeout.run_seconds >= 0.05
    assert failed.code == "failed"
    assert "while cleaning up" in (failed.error or "") + (failed.traceback or "")
    assert worker.board.loop_deadline == 0


def test_handler_is_told_when_its_task_is_cancelled(async_worker: RawWorker, gate: Gate) -> None:
    worker = async_worker
    worker.run(carried("a", {"handler": "shielded"}), carried("b", {"handler": "waits"}))
    assert sorted(worker.read_lines(2)) == [("a", "begun"), ("b", "begun")]
    worker.send(("cancel", 99))
    worker.send(("cancel", 1))
    worker.send(("cancel", 2))
    report = worker.reports(1)[0]
    assert (report.number, report.code, report.handler, report.error) == (2, "cancelled", "waits", None)
    assert worker.board.code(2) == "cancelled"
    assert worker.board.is_told(1)
    assert worker.board.is_begun(1)
    gate.open()
    report = worker.reports(1)[0]
    assert (report.number, report.code) == (1, "ok")


def test_next_task_begins_when_the_one_that_waited_before_it_is_cancelled(async_worker: RawWorker, gate: Gate) -> None:
    worker = async_worker
    worker.run(*(carried(name, {"handler": "alone"}) for name in "abc"))
    worker.read_lines(1)
    worker.send(("cancel", 2))
    report = worker.reports(1)[0]
    assert (report.number, report.code) == (2, "returned")
    worker.send(("cancel", 1))
    report = worker.reports(1)[0]
    assert (report.number, report.code) == (1, "cancelled")
    assert worker.read_lines(1) == [("c", "begun")]


def test_deadline_is_on_the_board_while_an_async_handler_with_a_timeout_runs(
    tmp_path: Path, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GATE", str(gate.path))
    with raw_worker(Setup(imports=(write_handlers(tmp_path, ASYNC),), timeout=100)) as worker:
        worker.run(carried("a", {"handler": "waits"}))
        worker.read_lines(1)
        assert worker.board.loop_deadline == pytest.approx(time.monotonic() + 100, abs=10)
        gate.open()
        worker.reports(1)
        assert worker.board.loop_deadline == 0


@pytest.mark.parametrize(("name", "said"), [("nursery", "inside"), ("exits", "bye")])
def test_loop_goes_on_when_an_async_handler_fails(async_worker: RawWorker, name: str, said: str) -> None:
    worker = async_worker
    worker.run(carried("a", {"handler": name}))
    report = worker.reports(1)[0]
    assert report.code == "failed"
    assert said in (report.traceback or "")
    worker.run(carried("b", {"handler": "inline"}))
    assert worker.reports(1)[0].code == "ok"


def test_sync_handler_is_on_the_board_when_it_holds_the_loop(async_worker: RawWorker, gate: Gate) -> None:
    worker = async_worker
    worker.run(carried("a", {"handler": "waits"}))
    assert worker.read_lines(1) == [("a", "begun")]
    worker.run(carried("b", {"handler": "inline_waits"}))
    assert worker.read_lines(1) == [("b", "begun")]
    number, started, deadline = worker.board.running
    assert number == 2
    assert deadline == pytest.approx(started + 300)
    gate.open(2)
    assert {report.code for report in worker.reports(2)} == {"ok"}
    worker.run(carried("c", {"handler": "inline"}))
    worker.reports(1)
    assert worker.board.running[0] == 0


def test_tasks_begin_in_order_when_they_come_together(async_worker: RawWorker) -> None:
    worker = async_worker
    worker.run(*(carried(f"t{number}", {"handler": "inline"}) for number in range(20)))
    reports = worker.reports(20)
    assert [report.number for report in reports] == list(range(1, 21))
    assert [task_id for task_id, _ in worker.read_lines(20)] == [f"t{number}" for number in range(20)]


def test_async_worker_exits_when_the_service_closes_the_connection(async_worker: RawWorker) -> None:
    async_worker.socket.close()
    assert async_worker.wait() == 1


def test_nothing_is_said_twice_when_done_messages_arrive(async_worker: RawWorker) -> None:
    worker = async_worker
    worker.run(*[carried("t", {"handler": "inline"})] * 30, *[carried("t", {"handler": "progress"})] * 3)
    numbers: list[int] = []
    while len(numbers) < 33:
        message = worker.receive()
        if isinstance(message, Done):
            numbers += [report.number for report in message.reports]
    assert sorted(numbers) == list(range(1, 34))
