"""One spool directory, two spoolers: trispool and a real uWSGI, each reading what the other wrote."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.acceptance.harness import HANDLERS, Service, Telling, packet

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

UWSGI = shutil.which("uwsgi", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
pytestmark = pytest.mark.skipif(UWSGI is None and "CI" not in os.environ, reason="uwsgi is not installed")

SPOOLED = b"\xff\x00\x00\x01"


def accepts(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(str(path)) == 0


def wait_until(holds: Callable[[], bool], what: str) -> None:
    """uWSGI tells nobody what it does: look until it is done."""
    for _ in range(2000):
        if holds():
            return
        time.sleep(0.01)
    raise AssertionError(f"never: {what}")


@contextmanager
def real_uwsgi(folder: Path, telling: Telling, *, processes: int, frequency: int = 1) -> Iterator[Path]:
    """A uWSGI on the spool directory; gives its socket. With 0 processes it only writes."""
    assert UWSGI is not None
    socket_path = folder / "uwsgi.sock"
    spooling = ["--spooler-processes", str(processes), "--spooler-frequency", str(frequency)]
    with (folder / "uwsgi.log").open("ab") as log:
        process = subprocess.Popen(
            [
                UWSGI,
                "--master",
                "--socket",
                str(socket_path),
                "--spooler",
                str(folder / "spool"),
                *spooling,
                "--import",
                str(HANDLERS),
                "--spooler-quiet",
                "--buffer-size",
                "65535",
                "--spooler-ordered",
            ],
            env={**os.environ, "TELLING": str(telling.path)},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        wait_until(lambda: accepts(socket_path), "uWSGI takes packets")
        yield socket_path
    finally:
        # Its master sometimes waits for ever for its spoolers when it is asked politely.
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(20)


def waiting(folder: Path) -> list[str]:
    return [name for name in os.listdir(folder / "spool") if name.startswith("uwsgi_spoolfile_on_")]


def test_each_task_runs_exactly_once_when_both_work_on_one_directory(tmp_path: Path, telling: Telling) -> None:
    service = Service(tmp_path, telling, frequency=1).start()
    try:
        with real_uwsgi(tmp_path, telling, processes=2) as theirs:
            ours = service.socket
            for number in range(1500):
                service.socket = theirs if number % 2 else ours
                assert service.send({"n": str(number)}) == SPOOLED
            service.wait_until(lambda: not waiting(tmp_path), "all run")
            told: list[dict[str, Any]] = []

            def all_have_told() -> bool:
                told.extend(message for message in telling.all_so_far() if message["event"] == "note")
                return len(told) >= 1500

            # What has come to us just now may have no file yet.
            service.wait_until(all_have_told, "all tell")
            service.socket = ours
            pids = {worker["pid"] for worker in service.status()["workers"]}
            assert Counter(message["n"] for message in told) == {str(number): 1 for number in range(1500)}
            by_us = sum(message["pid"] in pids for message in told)
            assert 0 < by_us < 1500, "one of the two did nothing"
        assert service.stop() == 0
    finally:
        service.close()


def test_tasks_that_uwsgi_wrote_run_here_whatever_they_wait_for(tmp_path: Path, telling: Telling) -> None:
    with real_uwsgi(tmp_path, telling, processes=1) as theirs:
        service = Service(tmp_path, telling)
        service.socket = theirs
        # A priority that uWSGI's own spooler would take is in the future too, so that it does not.
        for n in range(5):
            assert service.send({"n": str(n), "at": "4000000000", "priority": "3"}) == SPOOLED
    files = list((tmp_path / "spool/3").iterdir())
    assert len(files) == 5
    service = Service(tmp_path, telling).start()
    try:
        service.wait_until(lambda: service.status()["scheduled"] == 5, "scanned")
        for path in files:
            os.utime(path, (1_700_000_000, 1_700_000_000))
        assert sorted(telling.next(event="note")["n"] for _ in range(5)) == ["0", "1", "2", "3", "4"]
        service.wait_until(lambda: not list((tmp_path / "spool/3").iterdir()), "removed")
    finally:
        service.close()


def test_tasks_that_trispool_wrote_run_in_uwsgi(tmp_path: Path, telling: Telling) -> None:
    service = Service(tmp_path, telling).start()
    service.request("PATCH", "/api/v1/spools/default", b'{"paused": true}', {"Content-Type": "application/json"})
    for n in range(5):
        assert service.send({"n": str(n), "CONTENT_LENGTH": "4"}, b"body") == SPOOLED
    assert service.stop() == 0
    assert len(waiting(tmp_path)) == 5
    with real_uwsgi(tmp_path, telling, processes=1):
        told = [telling.next(event="note") for _ in range(5)]
        wait_until(lambda: not waiting(tmp_path), "uWSGI has removed its files")
    assert sorted(message["n"] for message in told) == ["0", "1", "2", "3", "4"]
    assert {message["size"] for message in told} == {4}


def test_a_task_that_uwsgi_runs_is_not_run_here_meanwhile(tmp_path: Path, telling: Telling) -> None:
    with real_uwsgi(tmp_path, telling, processes=1):
        gate = tmp_path / "gate"
        (tmp_path / "uwsgi_spoolfile_on_x_1_1_1_1700000000_1").write_bytes(packet({"do": "wait", "n": str(gate)}))
        os.rename(
            tmp_path / "uwsgi_spoolfile_on_x_1_1_1_1700000000_1",
            tmp_path / "spool/uwsgi_spoolfile_on_x_1_1_1_1700000000_1",
        )
        theirs = telling.next(event="wait")["pid"]
        service = Service(tmp_path, telling, frequency=0.05).start()
        try:
            for _ in range(5):
                service.request("POST", "/api/v1/spools/default/scan")
            gate.touch()
            assert telling.next(event="waited")["pid"] == theirs
            service.wait_until(lambda: not waiting(tmp_path), "removed")
            assert [message for message in telling.all_so_far() if message["event"] == "wait"] == []
        finally:
            service.close()
