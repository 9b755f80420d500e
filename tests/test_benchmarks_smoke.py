"""The benchmarks, at sizes at which they say nothing: that they run through, and that their tables are true.

The servers are real ones; nothing here is about how quick they are.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks import __main__ as command
from benchmarks import document, goals, strace
from benchmarks.client import run_clients, run_load, trivial_responder
from benchmarks.peers.contenders import PEERS
from benchmarks.peers.contest import compete
from benchmarks.peers.ours import COUNTED, OURS
from benchmarks.peers.stores import StoreMissing
from benchmarks.processes import cpu_times
from benchmarks.records import Appender, Recorder, Records
from benchmarks.report import CREATE_COST, RUN, Measure, Result, percentile
from benchmarks.scenario import Scenario
from benchmarks.scenarios import SCENARIOS
from benchmarks.servers import Kind, ServerFailed, uwsgi_binary
from benchmarks.sizes import Sizes
from benchmarks.tasks import as_sent

ROOT = Path(__file__).parent.parent
OF_UWSGI = pytest.mark.skipif(uwsgi_binary() is None, reason="there is no uwsgi to compare with")


def test_run_load_sends_every_packet_once_when_connections_do_not_divide_them(tmp_path):
    with trivial_responder(tmp_path / "sock") as addresses:
        for address in addresses:
            load = run_load(address, [b"packet"] * 101, processes=2, connections=7)
            assert len(load.latencies) == 101
            assert load.latencies == sorted(load.latencies)
            assert load.refused == 0


def test_clients_begin_when_all_of_them_are_ready():
    ready = time.monotonic() + 0.2

    def make(number):
        if number:
            time.sleep(max(0.0, ready - time.monotonic()))
        return lambda: ([time.monotonic()], number)

    load = run_clients(make, processes=2)
    assert min(load.latencies) >= ready
    assert load.began >= ready
    assert load.refused == 1


def test_records_are_merged_in_the_order_of_time_when_several_processes_write(tmp_path):
    for make, keys in ((Recorder, [3.0, 1.0]), (Recorder, [2.0]), (Appender, [5.0]), (Appender, [4.0])):
        child = os.fork()
        if not child:
            recorder = make(os.fspath(tmp_path))
            for key in keys:
                recorder.add(key)
            os._exit(0)
        os.waitpid(child, 0)
    records = Records(tmp_path)
    assert records.count() == 5
    assert [record.key for record in records.read()] == [3.0, 1.0, 2.0, 5.0, 4.0]
    assert [record.key for record in records.read(skip=1)] == [1.0, 2.0, 5.0, 4.0]
    records.close()


def test_the_time_of_a_process_includes_that_of_its_children_that_have_ended():
    before = cpu_times([os.getpid()])
    subprocess.run([sys.executable, "-c", "import time\nwhile time.process_time() < 0.2: pass"], check=True)
    assert sum(cpu_times([os.getpid()])) - sum(before) >= 0.15


def test_others_than_were_sent_are_noticed(tmp_path):
    recorder = Recorder(os.fspath(tmp_path))
    for key in (0.0, 1.0):
        recorder.add(key)
    records = Records(tmp_path)
    as_sent(records.read(), 2)
    with pytest.raises(ServerFailed, match="others have run"):
        as_sent(records.read(), 3)
    recorder.add(1.0)
    with pytest.raises(ServerFailed, match="twice"):
        as_sent(records.read(), 2)
    records.close()


def test_a_table_shows_medians_and_who_is_better_when_there_are_rounds():
    table = Result("title")
    rate, delay = Measure("rate", "/s", more_is_better=True), Measure("delay", "ms")
    for theirs, ours in ((100, 250), (300, 50), (200, 150)):
        table.add(Kind.UWSGI.value, {rate: theirs, delay: theirs, CREATE_COST: 10})
        table.add(Kind.OS.value, {rate: ours, delay: ours, CREATE_COST: 15})
    cells = {line[0]: line[2:] for line in _cells(table.lines())}
    assert cells["rate"] == ["200 (100-300)", "150 (50-250)", "0.75"]
    assert cells["delay"] == ["200 (100-300)", "150 (50-250)", "1.33"]
    assert cells[CREATE_COST.name][-1] == ""
    assert not any("NOT COMPARABLE" in line for line in table.lines())


def test_a_table_warns_when_the_disk_was_not_the_same():
    table = Result("title")
    table.add(Kind.UWSGI.value, {CREATE_COST: 10})
    table.add(Kind.OS.value, {CREATE_COST: 21})
    assert any("NOT COMPARABLE" in line for line in table.lines())


def test_rows_of_one_subject_stand_together_whenever_they_were_measured():
    table = Result("title")
    for name in ("service: read", "workers: read", "service: write", "other"):
        table.add("a", {Measure(name, ""): 1})
    assert [row.name for row in table.rows] == ["service: read", "service: write", "workers: read", "other"]


def test_a_ranking_has_the_best_last_and_says_how_much_better_it_is():
    table = Result("title", ranked=True)
    for who, rate in (("quick", 300), ("slow", 100), ("middling", 200)):
        table.add(who, {Measure("other", "/s", more_is_better=True): -rate, RUN: rate})
    assert _cells(table.lines()) == [
        ["", "enqueued and run, /s", "other, /s", "the last is so many times as good"],
        ["slow", "100", "-100", "3"],
        ["middling", "200", "-200", "1.50"],
        ["quick", "300", "-300", "1"],
    ]


@pytest.mark.parametrize(("percent", "expected"), [(0, 1), (50, 3), (99, 4), (100, 4)])
def test_percentile_is_one_of_the_values(percent, expected):
    assert percentile([1, 2, 3, 4], percent) == expected


def test_figures_are_the_same_when_they_have_been_kept(tmp_path):
    result = Result("title", ["note"], ["today"])
    result.add("a", {Measure("rate", "/s", more_is_better=True): 1.25, CREATE_COST: 3})
    assert document.kept(tmp_path / "figures") == {}
    document.keep(tmp_path / "figures", {"one": result})
    assert document.kept(tmp_path / "figures") == {"one": result}


def test_only_the_section_of_a_benchmark_is_replaced():
    page = "a\n<!-- x: begin -->\nold\n<!-- x: end -->\nb\n<!-- y: begin -->\nold\n<!-- y: end -->\n"
    new = document.replaced(page, "x", "new")
    assert new == "a\n<!-- x: begin -->\n\nnew\n\n<!-- x: end -->\nb\n<!-- y: begin -->\nold\n<!-- y: end -->\n"
    assert document.replaced(new, "x", "new") == new
    with pytest.raises(ValueError, match="z: begin"):
        document.replaced(page, "z", "new")


def test_the_page_has_a_place_for_every_benchmark():
    page = (document.DOCS / document.PAGE).read_text()
    for name in ("goals", *SCENARIOS):
        assert name in document.replaced(page, name, name)


def test_a_goal_says_so_when_nothing_has_been_measured():
    for goal in goals.GOALS:
        assert "| not measured |" in goal.line({})
        assert "| not measured |" in goal.line({goal.benchmark: Result("title")})


def test_a_goal_is_reached_when_the_figure_is_at_its_limit():
    drain = next(goal for goal in goals.GOALS if goal.benchmark == "drain")
    for ours, verdict in ((99, "**no**"), (100, "yes"), (101, "yes")):
        result = Result("title")
        rate = Measure("first to last start", "/s", more_is_better=True)
        result.add(Kind.UWSGI.value, {rate: 100})
        result.add(Kind.OS.value, {rate: ours})
        assert _cells([drain.line({"drain": result})])[0][-1] == verdict


def test_the_peers_goal_is_held_against_the_best_of_them():
    both, synced = (goal for goal in goals.GOALS if goal.benchmark == "peers")
    result = Result("title", ranked=True)
    for number, peer in enumerate(PEERS):
        result.add(peer.name, {RUN: 100 + number if peer.synced else 200 + number})
    result.add(COUNTED, {RUN: 1000})
    assert both.reached(result) == 1000 / max(200 + n for n, peer in enumerate(PEERS) if not peer.synced)
    assert synced.reached(result) == 1000 / max(100 + n for n, peer in enumerate(PEERS) if peer.synced)


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="matplotlib is of the extra `bench`")
def test_a_picture_is_the_same_when_the_figures_are(tmp_path):
    from benchmarks import plots

    result = Result("title", ranked=True)
    for who, rate in (("quick", 3000), ("trispool `slow`", 100)):
        result.add(who, {RUN: rate})
    plots.draw(tmp_path, {"peers": result})
    (picture,) = tmp_path.iterdir()
    first = picture.read_bytes()
    assert b"3,000" in first
    assert b"trispool slow" in first
    plots.draw(tmp_path, {"peers": result})
    assert picture.read_bytes() == first


def test_who_fails_does_not_take_others_with_it(tmp_path, monkeypatch):
    def fails(folder, sizes):
        raise ServerFailed("it has ended")

    def works(folder, sizes):
        return {Measure("rate", "/s"): 77}

    scenarios = {
        "first": Scenario(lambda sizes: "First", {"a": fails}),
        "second": Scenario(lambda sizes: "Second", {"b": works, "a": fails}, rounds=1, ranked=True),
    }
    monkeypatch.setattr(command, "SCENARIOS", scenarios)
    done = CliRunner().invoke(command.main, ["--directory", os.fspath(tmp_path)])
    assert done.exit_code == 1
    assert "first, round 1, a failed: it has ended" in done.stderr
    assert "### First" not in done.stdout
    assert "- a failed in round 1." in done.stdout
    assert [cells[:2] for cells in _cells(done.stdout.splitlines())] == [["", "rate, /s"], ["b", "77"]]
    assert list(tmp_path.iterdir()) == []


@OF_UWSGI
def test_all_rows_are_there_and_nothing_is_left_when_the_sizes_are_tiny(tmp_path):
    rows = _run(tmp_path, "enqueue", "--enqueue", "50")
    assert rows == [
        "",
        CREATE_COST.name,
        *(
            f"{name}: {what}"
            for name in ("Unix socket", "TCP socket", "Unix socket, kept open")
            for what in ("enqueued", "answer, p50", "answer, p99", "enqueued and run", "CPU a task, run too")
        ),
    ]


@OF_UWSGI
def test_http_tasks_are_all_run_when_they_come_one_by_one_and_in_batches(tmp_path):
    # The scenario itself fails if the tasks that have run are not those that were acknowledged.
    assert "1,000 a request: enqueued and run" in _run(
        tmp_path, "http", "--http", "20", "--http-batches", "2", "--enqueue", "50"
    )


@OF_UWSGI
def test_idle_servers_are_timed_alone_and_beside_tasks_for_later(tmp_path):
    sizes = ["--latency", "100", "--scheduled", "50", "--scheduled-latency", "100", "--rest", "1", "--million", "60"]
    rows = _run(tmp_path, "latency", "scheduled", "rest", "million", *sizes)
    assert rows.count("sent to started, p99") == 3
    assert "memory of all processes" in rows


@OF_UWSGI
def test_files_are_drained_and_times_are_kept(tmp_path):
    rows = _run(tmp_path, "drain", "at", "--drain", "50", "--at", "20", "--at-seconds", "1")
    assert {"first to last start", "lateness, p99"} <= set(rows)


def test_pages_are_asked_for_when_all_tasks_are_known(tmp_path):
    rows = _run(tmp_path, "pages", "--waiting", "60", "--finished", "200", "--asked", "1")
    assert {"scheduled: first, p50", "the slowest single page of all", "done, text of none, p50"} <= set(rows)


@pytest.mark.skipif(not strace.available(), reason="there is no strace")
def test_system_calls_of_each_way_in_are_counted(tmp_path):
    rows = _run(tmp_path, "cost", "--cost", "400")
    # Other workers than these make no call that each load needs, but all of them tell the service what they have done.
    assert {"service: user time", "workers: system time", "service: `recvfrom`", "workers: `sendto`"} <= set(rows)


def test_counted_calls_are_those_of_the_process(tmp_path):
    if not strace.available():
        pytest.skip("there is no strace")
    code = (
        "import os, sys\nsys.stdin.readline()\nfor _ in range(77): os.getppid()\nprint(1, flush=True)\nsys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        with strace.counted([child.pid], tmp_path / "counts") as calls:
            assert child.stdin is not None
            assert child.stdout is not None
            child.stdin.write("\n")
            child.stdin.flush()
            child.stdout.readline()
        assert calls["getppid"] == 77
        child.stdin.close()


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_a_queue_of_others_runs_all_tasks(peer):
    if not peer.installed:
        pytest.skip(f"{peer.package} is of the extra `bench`")
    _compete(peer)


@pytest.mark.parametrize("ours", [ours for ours in OURS if ours.kind is Kind.FSYNC], ids=lambda ours: ours.name)
def test_each_way_in_runs_all_tasks(ours):
    _compete(ours)


def _compete(contender):
    # Redis and PostgreSQL run as other users, which `tmp_path` does not let in.
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o711)
        try:
            figures = compete(contender, Path(folder, "run"), Sizes(peers=40))
        except StoreMissing as missing:
            pytest.skip(str(missing))
    assert all(figure > 0 for figure in figures.values())


def _run(tmp_path, *arguments):
    """Run benchmarks once and put what they find into a page; returns the first cells of all lines of the tables."""
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / document.PAGE).write_text((document.DOCS / document.PAGE).read_text())
    line = [sys.executable, "-m", "benchmarks", "--rounds", "1", "--processes", "1", "--connections", "4"]
    line += arguments
    if importlib.util.find_spec("matplotlib") is not None:
        line += ["--write", "--docs", os.fspath(docs)]
    # The path of a Unix socket has at most 107 bytes, too few for one in `tmp_path`.
    with tempfile.TemporaryDirectory() as spools:
        line += ["--directory", spools]
        done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert os.listdir(spools) == []
    tables = done.stdout.partition("\n| aim |")[0]
    if "--write" in line:
        written = re.sub(r"<!-- .* -->", "", (docs / document.PAGE).read_text())
        assert all(row in written for row in tables.splitlines() if row.startswith("| "))
        results = document.kept(docs / document.FIGURES)
        judged = [goal.line(results) for goal in goals.GOALS if goal.benchmark in results]
        assert all(row in written and "not measured" not in row for row in judged)
    return [cells[0] for cells in _cells(tables.splitlines())]


def _cells(lines):
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("| ")]
