"""The benchmarks, at sizes at which they say nothing: that they run through, and that their tables are true.

The servers are real ones; nothing here is about how quick they are.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.client import run_load, trivial_responder
from benchmarks.records import Recorder, Records
from benchmarks.report import CREATE_COST, Measure, Table, percentile
from benchmarks.servers import Kind, uwsgi_binary

ROOT = Path(__file__).parent.parent


def test_run_load_sends_every_packet_once_when_connections_do_not_divide_them(tmp_path):
    with trivial_responder(tmp_path / "sock") as addresses:
        for address in addresses:
            load = run_load(address, [b"packet"] * 101, processes=2, connections=7)
            assert len(load.latencies) == 101
            assert load.latencies == sorted(load.latencies)
            assert load.refused == 0


def test_records_are_merged_in_the_order_of_time_when_several_processes_write(tmp_path):
    for keys in ([3.0, 1.0], [2.0]):
        child = os.fork()
        if not child:
            recorder = Recorder(os.fspath(tmp_path))
            for key in keys:
                recorder.add(key)
            os._exit(0)
        os.waitpid(child, 0)
    records = Records(tmp_path)
    assert records.count() == 3
    assert [record.key for record in records.read()] == [3.0, 1.0, 2.0]
    assert [record.key for record in records.read(skip=1)] == [1.0, 2.0]
    records.close()


def test_a_table_shows_medians_and_who_is_better_when_there_are_rounds():
    table = Table("title")
    rate, delay = Measure("rate", "/s", more_is_better=True), Measure("delay", "ms")
    for theirs, ours in ((100, 250), (300, 50), (200, 150)):
        table.add(Kind.UWSGI, {rate: theirs, delay: theirs, CREATE_COST: 10})
        table.add(Kind.OS, {rate: ours, delay: ours, CREATE_COST: 15})
    lines = table.lines()
    cells = {
        line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[3:-1]] for line in lines if "|" in line
    }
    assert cells["rate"] == ["200 (100-300)", "150 (50-250)", "0.75"]
    assert cells["delay"] == ["200 (100-300)", "150 (50-250)", "1.33"]
    assert cells[CREATE_COST.name][-1] == ""
    assert not any("NOT COMPARABLE" in line for line in lines)


def test_a_table_warns_when_the_disk_was_not_the_same():
    table = Table("title")
    table.add(Kind.UWSGI, {CREATE_COST: 10})
    table.add(Kind.OS, {CREATE_COST: 21})
    assert any("NOT COMPARABLE" in line for line in table.lines())


@pytest.mark.parametrize(("percent", "expected"), [(0, 1), (50, 3), (99, 4), (100, 4)])
def test_percentile_is_one_of_the_values(percent, expected):
    assert percentile([1, 2, 3, 4], percent) == expected


@pytest.mark.skipif(uwsgi_binary() is None, reason="there is no uwsgi to compare with")
def test_all_rows_are_there_and_nothing_is_left_when_the_sizes_are_tiny(tmp_path):
    command = [sys.executable, "-m", "benchmarks", "enqueue", "--rounds", "1", "--directory", os.fspath(tmp_path)]
    command += ["--enqueue", "50", "--processes", "1", "--connections", "4"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.split("|")[1].strip() for line in done.stdout.splitlines() if line.startswith("| ")]
    assert rows == [
        "",
        CREATE_COST.name,
        *(
            f"{name} socket: {what}"
            for name in ("Unix", "TCP")
            for what in ("enqueued", "answer, p50", "answer, p99", "enqueued and run", "CPU a task, run too")
        ),
    ]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(uwsgi_binary() is None, reason="there is no uwsgi to compare with")
def test_http_tasks_are_all_run_when_they_come_one_by_one_and_in_batches(tmp_path):
    command = [sys.executable, "-m", "benchmarks", "http", "--rounds", "1", "--directory", os.fspath(tmp_path)]
    command += ["--http", "20", "--http-batches", "2", "--enqueue", "50", "--processes", "1", "--connections", "4"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    # The scenario itself fails if the tasks that have run are not those that were acknowledged.
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1,000 a request: enqueued and run" in done.stdout


def test_pages_are_asked_for_when_all_tasks_are_known(tmp_path):
    command = [sys.executable, "-m", "benchmarks", "pages", "--rounds", "1", "--directory", os.fspath(tmp_path)]
    command += ["--waiting", "60", "--finished", "200", "--asked", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.split("|")[1].strip() for line in done.stdout.splitlines() if line.startswith("| ")]
    assert {"scheduled: first, p50", "all states: middle, longest", "done, text of none, p50"} <= set(rows)
    assert list(tmp_path.iterdir()) == []
