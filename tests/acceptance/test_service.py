"""From outside: the real service, real sockets, real files, real signals."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import socket
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

from tests.acceptance.harness import LONG, Service, Telling, is_alive, packet

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SPOOLED = b"\xff\x00\x00\x01"
REFUSED = b"\xff\x00\x00\x00"


def waiting_files(service: Service) -> list[Path]:
    return [path for path in service.spool.rglob("uwsgi_spoolfile_on_*") if ".trispool" not in path.parts]


def is_idle(service: Service) -> bool:
    status = service.status()
    return not (status["ready"] or status["scheduled"] or status["running"] or waiting_files(service))


# Every way in


@pytest.mark.parametrize("tcp", [False, True], ids=["unix", "tcp"])
@pytest.mark.parametrize("durability", ["os", "fsync"])
def test_a_packet_runs_the_handler_and_its_file_is_removed(
    make: Callable[..., Service], telling: Telling, tcp: bool, durability: str
) -> None:
    service = make(durability=durability).start()
    assert service.send({"n": "1"}, tcp=tcp) == SPOOLED
    told = telling.next(event="note", n="1")
    service.wait_until(lambda: service.get(f"/tasks/{told['task']}")["state"] == "done", "done")
    assert waiting_files(service) == []
    (attempt,) = service.get(f"/tasks/{told['task']}")["history"]
    assert attempt["outcome"] == "ok"


def test_an_http_post_runs_the_handler(service: Service, telling: Telling) -> None:
    status, content = service.request(
        "POST",
        "/api/v1/spools/default/tasks",
        json.dumps({"vars": {"n": "2"}, "body": "aGFsbG8="}).encode(),
        {"Content-Type": "application/json"},
    )
    assert status == 201, content
    told = telling.next(event="note", n="2")
    assert told["size"] == 5
    assert told["task"] == json.loads(content)["id"]


def test_a_file_dropped_into_the_directory_runs_the_handler(service: Service, telling: Telling) -> None:
    vars_ = packet({"n": "3"})
    for folder, way in ((service.spool, "write"), (service.spool / "5", "rename")):
        folder.mkdir(exist_ok=True)
        path = folder / f"uwsgi_spoolfile_on_elsewhere_1_1_1_1700000000_{len(way)}"
        if way == "write":
            path.write_bytes(vars_ + b"body")
        else:
            (service.folder / "made").write_bytes(vars_ + b"body")
            os.rename(service.folder / "made", path)
        assert telling.next(event="note", n="3", task=path.name)["size"] == 4
        service.wait_until(lambda path=path: not path.exists(), "removed")


def test_a_file_that_is_still_being_written_is_not_run(service: Service, telling: Telling) -> None:
    path = service.spool / "uwsgi_spoolfile_on_elsewhere_1_1_1_1700000000_1"
    with path.open("wb") as file:
        file.write(packet({"n": "slow"}))
        file.flush()
        service.request("POST", "/api/v1/spools/default/scan")
        # A task that came later has run: whoever wanted to run the half one would have.
        service.send({"n": "quick"})
        telling.next(event="note", n="quick")
        file.write(b"the rest")
    assert telling.next(event="note", n="slow")["size"] == 8


def test_several_packets_on_one_connection_are_all_answered(service: Service, telling: Telling) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(LONG)
        client.connect(str(service.socket))
        client.sendall(packet({"n": "a"}) + packet({"n": "b", "CONTENT_LENGTH": "3"}) + b"xyz" + packet({"n": "c"}))
        answers = b""
        while len(answers) < 12:
            answers += client.recv(100)
    # CONTENT_LENGTH alone does not make a web server; all three are answered in uwsgi's way.
    assert answers == SPOOLED * 3
    assert [telling.next(event="note", n=n)["size"] for n in "abc"] == [0, 3, 0]


def test_a_client_that_is_gone_before_the_answer_has_spooled_its_task(service: Service, telling: Telling) -> None:
    for number in range(20):
        client = socket.socket(socket.AF_UNIX)
        client.connect(str(service.socket))
        client.sendall(packet({"n": f"gone{number}"}))
        client.close()
    for number in range(20):
        telling.next(event="note", n=f"gone{number}")


@pytest.mark.parametrize(
    "vars_",
    [{"at": "soon"}, {"priority": "../x"}, {"priority": "-1"}, {"spooler": "/etc"}, {"spooler": "nowhere"}],
)
def test_what_cannot_be_kept_is_refused(service: Service, vars_: dict[str, str]) -> None:
    assert service.send({"n": "1", **vars_}) == REFUSED
    assert waiting_files(service) == []


# Time


def test_at_starts_a_task_at_its_moment_and_not_at_the_next_scan(service: Service, telling: Telling) -> None:
    at = time.time() + 1.5
    assert service.send({"n": "later", "at": f"{at:.6f}"}) == SPOOLED
    # It waits long enough to be given a file.
    service.wait_until(lambda: waiting_files(service), "written out")
    (path,) = waiting_files(service)
    assert path.stat().st_mtime == pytest.approx(at, abs=1e-5)
    assert service.status()["scheduled"] == 1
    told = telling.next(event="note", n="later")
    assert told["at"] >= round(at, 6) - 1e-6


def test_priorities_run_first_then_the_order_of_enqueuing(make: Callable[..., Service], telling: Telling) -> None:
    service = make(processes=1).start()
    gate = service.folder / "gate"
    service.send({"do": "wait", "n": str(gate)})
    telling.next(event="wait")
    for n, priority in [("c", ""), ("d", ""), ("b", "10"), ("a", "9")]:
        assert service.send({"n": n, "priority": priority}) == SPOOLED
    gate.touch()
    assert [telling.next(event="note")["n"] for _ in range(4)] == ["a", "b", "c", "d"]


def test_a_changed_frequency_moves_the_next_attempt(service: Service, telling: Telling) -> None:
    service.send({"do": "retry", "n": "r"})
    telling.next(event="retry")
    status, _ = service.request("PATCH", "/api/v1/spools/default", b'{"frequency": 0.05}', JSON)
    assert status == 200
    for _ in range(3):
        telling.next(event="retry", timeout=10)
    assert not is_idle(service)


def test_a_paused_spool_takes_tasks_and_runs_none(service: Service, telling: Telling) -> None:
    service.request("PATCH", "/api/v1/spools/default", b'{"paused": true}', JSON)
    assert service.send({"n": "p"}) == SPOOLED
    service.request("POST", "/api/v1/spools/default/scan")
    assert service.status()["ready"] == 1
    assert telling.all_so_far() == [] or all(item["event"] == "loaded" for item in telling.all_so_far())
    service.request("PATCH", "/api/v1/spools/default", b'{"paused": false}', JSON)
    telling.next(event="note", n="p")


JSON = {"Content-Type": "application/json"}


# Failures


def test_what_cannot_be_parsed_is_set_aside_and_runs_when_it_is_mended(service: Service, telling: Telling) -> None:
    name = "uwsgi_spoolfile_on_elsewhere_1_1_1_1700000000_1"
    (service.spool / name).write_bytes(b"this is no packet")
    dead = service.spool / ".trispool/dead" / name
    service.wait_until(dead.exists, "set aside")
    assert dead.read_bytes() == b"this is no packet"
    service.wait_until(lambda: service.get(f"/tasks/{name}")["last_error"], "recorded")
    task = service.get(f"/tasks/{name}")
    assert task["state"] == "dead"
    assert "modifier1" in task["last_error"]
    dead.write_bytes(packet({"n": "mended"}))
    os.rename(dead, service.spool / name)
    telling.next(event="note", n="mended", task=name)


@pytest.mark.parametrize("what", ["", ".trispool", ".trispool/dead"])
def test_what_is_removed_from_under_the_service_comes_back(
    make: Callable[..., Service], telling: Telling, what: str
) -> None:
    service = make(frequency=0.2).start()
    service.send({"n": "before"})
    task = telling.next(event="note", n="before")["task"]
    service.wait_until(lambda: service.get(f"/tasks/{task}")["state"] == "done", "done")
    subprocess.run(["rm", "-rf", service.spool / what], check=True)
    if not what:
        assert service.send({"n": "nowhere"}) == REFUSED
        service.wait_until(lambda: service.request("GET", "/healthz")[0] == 503, "ill")
        service.spool.mkdir()
        service.wait_until(lambda: service.request("GET", "/healthz")[0] == 200, "well")
    assert service.send({"n": "after"}) == SPOOLED
    task = telling.next(event="note", n="after")["task"]
    service.wait_until(lambda: service.get(f"/tasks/{task}")["state"] == "done", "in the history")
    assert service.stop() == 0


def test_links_and_pipes_are_left_alone(service: Service, telling: Telling) -> None:
    target = service.folder / "target"
    target.write_bytes(packet({"n": "never"}))
    os.symlink(target, service.spool / "uwsgi_spoolfile_on_link")
    os.mkfifo(service.spool / "uwsgi_spoolfile_on_pipe")
    (service.spool / "notes.txt").write_text("mine")
    service.request("POST", "/api/v1/spools/default/scan")
    service.send({"n": "after"})
    telling.next(event="note", n="after")
    service.wait_until(lambda: len(waiting_files(service)) == 2, "left with these two")
    service.wait_until(lambda: service.log.read_text().count("foreign_file") >= 3, "reported")


def test_a_killed_worker_costs_one_attempt_and_the_task_runs_again(
    make: Callable[..., Service], telling: Telling
) -> None:
    service = make(frequency=0.2).start()
    gate = service.folder / "gate"
    service.send({"do": "wait", "n": str(gate)})
    first = telling.next(event="wait")
    os.kill(first["pid"], signal.SIGKILL)
    second = telling.next(event="wait")
    assert second["task"] == first["task"]
    assert second["pid"] != first["pid"]
    gate.touch()
    telling.next(event="waited")
    service.wait_until(lambda: service.get(f"/tasks/{first['task']}")["state"] == "done", "done")
    lost, ok = service.get(f"/tasks/{first['task']}")["history"]
    assert (lost["outcome"], ok["outcome"]) == ("lost", "ok")
    assert "SIGKILL" in lost["error"]


def test_a_killed_service_takes_its_workers_with_it_and_the_task_runs_again(service: Service, telling: Telling) -> None:
    gate = service.folder / "gate"
    service.send({"do": "wait", "n": str(gate)})
    service.send({"n": "later", "at": str(time.time() + 10_000)})
    first = telling.next(event="wait")
    workers = [worker["pid"] for worker in service.status()["workers"]]
    assert first["pid"] in workers
    assert service.stop(signal.SIGKILL) == -signal.SIGKILL
    for pid in workers:
        for _ in range(2000):
            if not is_alive(pid):
                break
            time.sleep(0.005)
        assert not is_alive(pid)
    service.start()
    again = telling.next(event="wait")
    assert again["task"] == first["task"]
    gate.touch()
    telling.next(event="waited")
    assert service.status()["scheduled"] == 1


def test_no_acknowledged_task_is_lost_when_workers_and_service_are_killed_over_and_over(
    make: Callable[..., Service], telling: Telling
) -> None:
    service = make(frequency=0.1).start()
    acknowledged = set()
    for number in range(400):
        if number % 40 == 20:
            for worker in service.status()["workers"][:1]:
                if worker["pid"]:
                    with contextlib.suppress(ProcessLookupError):  # it was about to be replaced
                        os.kill(worker["pid"], signal.SIGKILL)
        if number % 100 == 50:
            service.stop(signal.SIGKILL)
            service.start()
        if service.send({"n": str(number)}) == SPOOLED:
            acknowledged.add(str(number))
    assert len(acknowledged) == 400
    service.wait_until(lambda: is_idle(service), "all run")
    ran = {message["n"] for message in telling.all_so_far() if message["event"] == "note"}
    assert ran == acknowledged


def test_a_handler_that_fails_or_exits_is_dead_after_its_attempts(make: Callable[..., Service]) -> None:
    service = make(frequency=0.05, max_attempts=2).start()
    service.send({"do": "fail"})
    service.send({"do": "exit"})
    service.wait_until(lambda: service.status()["dead"] == 2, "dead")
    tasks = service.get("/tasks?state=dead")["tasks"]
    assert sorted(task["last_error"] for task in tasks) == ["ValueError: on purpose", "exited with code 7"]
    assert [len(service.get(f"/tasks/{task['id']}")["history"]) for task in tasks] == [2, 2]
    assert waiting_files(service) == []


def test_what_a_handler_prints_is_logged_with_the_tasks_id(service: Service, telling: Telling) -> None:
    service.send({"do": "print", "n": "poetry"})
    told = telling.next(event="print")
    service.wait_until(
        lambda: any(
            "a line of poetry" in line and told["task"] in line for line in service.log.read_text().splitlines()
        ),
        "logged",
    )


# Starting


def test_tasks_run_before_http_is_there(
    make: Callable[..., Service], telling: Telling, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    slow = tmp_path / "slow"
    slow.mkdir()
    (slow / "quart.py").write_text(
        f"""
import importlib, sys
open({str(gate)!r}).read()
sys.path.remove({str(slow)!r})
del sys.modules["quart"]
importlib.import_module("quart")
"""
    )
    monkeypatch.setenv("PYTHONPATH", str(slow), prepend=os.pathsep)
    service = make()
    service.spool.mkdir()
    path = service.spool / "uwsgi_spoolfile_on_elsewhere_1_1_1_1700000000_1"
    path.write_bytes(packet({"n": "1"}))
    service.launch()
    telling.next(event="note", n="1")
    assert service.send({"n": "2"}) == SPOOLED
    telling.next(event="note", n="2")
    assert "http_ready" not in service.log.read_text()
    gate.write_text("")
    assert service.status()["finished"]["ok"] == 2


@pytest.mark.parametrize("what", ["address", "token", "certificate"])
def test_what_is_amiss_with_http_ends_the_start_before_a_worker_is_there(
    make: Callable[..., Service], telling: Telling, what: str
) -> None:
    service = make(http={"certfile": "none.pem"} if what == "certificate" else {})
    service.spool.mkdir()
    path = service.spool / "uwsgi_spoolfile_on_elsewhere_1_1_1_1700000000_1"
    path.write_bytes(packet({"n": "1"}))
    if what == "token":
        (service.folder / "var").mkdir()
        (service.folder / "var/token").write_text("short")
    with socket.create_server(("127.0.0.1", service.http_port if what == "address" else 0)):
        service.launch()
        assert service.process is not None
        assert service.process.wait(LONG) == 2
    assert "error: " in service.log.read_text()
    assert telling.all_so_far() == []
    assert path.exists()


def test_the_api_may_be_in_the_state_directory(make: Callable[..., Service]) -> None:
    service = make(http={"bind": "unix:var/api.sock"}).start()
    assert service.status()["name"] == "default"


# Stopping


def test_a_history_that_cannot_be_opened_is_told_in_a_line(make: Callable[..., Service]) -> None:
    service = make()
    (service.spool / ".trispool/spool.db").mkdir(parents=True)
    service.launch()
    assert service.process is not None
    assert service.process.wait(LONG) == 2
    (line,) = service.log.read_text().splitlines()
    assert line.startswith("error: spool 'default': directory = ")
    assert "unable to open database file" in line


def test_sigterm_lets_a_running_task_finish(service: Service, telling: Telling) -> None:
    gate = service.folder / "gate"
    service.send({"do": "wait", "n": str(gate)})
    telling.next(event="wait")
    assert service.process is not None
    service.process.send_signal(signal.SIGTERM)
    service.wait_until(lambda: "stopping" in service.log.read_text(), "stopping")
    gate.touch()
    telling.next(event="waited")
    assert service.process.wait(LONG) == 0
    assert waiting_files(service) == []


def test_sigterm_gives_back_what_does_not_finish_in_its_grace(make: Callable[..., Service], telling: Telling) -> None:
    service = make(grace_seconds=0.3).start()
    service.send({"do": "wait", "n": str(service.folder / "never")})
    told = telling.next(event="wait")
    assert service.stop() == 0
    assert [path.name for path in waiting_files(service)] == [told["task"]]
    assert not is_alive(told["pid"])


def test_a_second_sigterm_ends_at_once(make: Callable[..., Service], telling: Telling) -> None:
    service = make(grace_seconds=1000).start()
    service.send({"do": "wait", "n": str(service.folder / "never")})
    telling.next(event="wait")
    assert service.process is not None
    service.process.send_signal(signal.SIGTERM)
    service.wait_until(lambda: "stopping" in service.log.read_text(), "stopping")
    # What comes at once with the first is the same stop.
    service.process.send_signal(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        service.process.wait(1)
    service.process.send_signal(signal.SIGTERM)
    assert service.process.wait(LONG) == 0
    assert len(waiting_files(service)) == 1


def test_sighup_imports_the_handlers_afresh(service: Service, telling: Telling) -> None:
    before = {worker["pid"] for worker in service.status()["workers"]}
    assert service.process is not None
    service.process.send_signal(signal.SIGHUP)
    service.wait_until(
        lambda: (
            len(after := service.status()["workers"]) == 2
            and before.isdisjoint(worker["pid"] for worker in after)
            and all(worker["state"] == "idle" for worker in after)
        ),
        "reloaded",
    )
    service.send({"n": "new"})
    assert telling.next(event="note", n="new")["pid"] not in before


# Being attacked


def test_a_flood_of_idle_connections_and_garbage_disturbs_nobody(service: Service, telling: Telling) -> None:
    idle = []
    for _ in range(300):
        client = socket.socket(socket.AF_UNIX)
        client.connect(str(service.socket))
        client.sendall(b"\x11")
        idle.append(client)
    for content in (b"GET / HTTP/1.1\r\n\r\n", b"\x11\xff\xff\x00" + b"x" * 100, os.urandom(1000), b"\x00" * 10):
        with socket.socket(socket.AF_UNIX) as garbage:
            garbage.connect(str(service.socket))
            garbage.sendall(content)
            assert service.send({"n": "fine"}) == SPOOLED
            telling.next(event="note", n="fine")
    for client in idle:
        client.close()


def test_running_out_of_descriptors_pauses_accepting_and_goes_on(
    make: Callable[..., Service], telling: Telling
) -> None:
    service = make().start(limits=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (120, 120)))
    held = []
    for _ in range(200):
        client = socket.socket(socket.AF_UNIX)
        client.setblocking(False)
        try:
            client.connect(str(service.socket))
        except BlockingIOError:
            client.close()
            break
        held.append(client)
    for client in held:
        client.close()
    assert service.send({"n": "after"}) == SPOOLED
    telling.next(event="note", n="after")


def test_a_value_that_uwsgi_would_store_wrong_is_refused(service: Service) -> None:
    status, content = service.request(
        "POST", "/api/v1/spools/default/tasks", json.dumps({"vars": {"k": "x" * 70_000}}).encode(), JSON
    )
    assert status in (400, 413)
    assert b"70000" in content or b"70,000" in content


def test_a_large_body_arrives_whole(service: Service, telling: Telling) -> None:
    body = os.urandom(5_000_000)
    assert service.send({"n": "big", "CONTENT_LENGTH": str(len(body))}, body) == SPOOLED
    assert telling.next(event="note", n="big")["size"] == len(body)
