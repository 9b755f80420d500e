"""From outside: what an operator does with HTTP, on the real service with real tasks."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest

from tests.acceptance.harness import HANDLERS, LONG, Service, Telling, is_alive

if TYPE_CHECKING:
    import http.client
    from collections.abc import Callable

DATA = Path(__file__).parents[1] / "data"
HOUR = 3600.0


def state_of(service: Service, task_id: str) -> str:
    return str(service.get(f"/tasks/{quote(task_id)}")["state"])


def until_state(service: Service, task_id: str, state: str) -> None:
    service.wait_until(lambda: state_of(service, task_id) == state, state)


def cli(service: Service, *arguments: str) -> Any:
    """What a `trispool` command prints as JSON."""
    done = subprocess.run(
        [sys.executable, "-c", "from trispool.cli import main; main()", *arguments, "--json"],
        cwd=service.folder,
        capture_output=True,
        text=True,
        timeout=LONG,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


# One task


def test_a_held_task_waits_over_a_restart_until_it_is_released(
    make: Callable[..., Service], service: Service, telling: Telling
) -> None:
    task = service.put({"n": "held"}, at=time.time() + HOUR)
    assert service.ask("POST", f"/tasks/{task}/hold")["state"] == "held"
    assert not list(service.spool.glob("uwsgi_spoolfile_on_*"))  # a real uWSGI beside us must not run it
    assert service.stop() == 0
    service.start()
    assert state_of(service, task) == "held"
    assert service.get("/spools/default")["held"] == 1
    assert service.ask("POST", f"/tasks/{task}/release")["state"] == "scheduled"
    assert service.ask("POST", f"/tasks/{task}/run")["state"] in ("ready", "running", "done")
    telling.next(event="note", n="held")
    until_state(service, task, "done")
    outcomes = [attempt["outcome"] for attempt in service.get(f"/tasks/{task}")["history"]]
    assert outcomes == ["held", "released", "hurried", "ok"]


def test_a_rescheduled_task_runs_at_its_new_time_and_not_before(service: Service, telling: Telling) -> None:
    task = service.put({"n": "moved"}, at=time.time() + HOUR)
    at = time.time() + 0.7
    assert service.ask("POST", f"/tasks/{task}/reschedule", {"at": at})["at"] == pytest.approx(at, abs=1e-5)
    assert telling.next(event="note", n="moved")["at"] >= at - 1e-5


def test_a_cancelled_task_never_runs_and_is_still_known(service: Service, telling: Telling) -> None:
    task = service.put({"n": "cancelled", "colour": "green"}, at=time.time() + HOUR)
    assert service.ask("POST", f"/tasks/{task}/cancel")["state"] == "cancelled"
    assert not list(service.spool.rglob("uwsgi_spoolfile_on_*"))
    known = service.get(f"/tasks/{task}")
    assert (known["state"], known["vars"]["colour"]) == ("cancelled", "green")
    assert known["history"][-1]["outcome"] == "cancelled"
    assert "operator" in known["history"][-1]["error"]
    assert service.ask("POST", f"/tasks/{task}/run", status=409)["detail"]


@pytest.mark.parametrize("handler", ["wait", "sleep"])
def test_a_running_task_is_cancelled_and_not_run_again(
    make: Callable[..., Service], telling: Telling, tmp_path: Path, handler: str
) -> None:
    imports = [str(HANDLERS)] if handler == "wait" else [str(HANDLERS), str(HANDLERS.with_name("async_handlers.py"))]
    service = make(**{"import": imports}).start()
    vars_ = {"do": "wait", "n": str(tmp_path / "never")} if handler == "wait" else {"handler": "sleep", "n": "asleep"}
    task = service.put(vars_)
    pid = telling.next(event=handler)["pid"]
    service.ask("POST", f"/tasks/{task}/cancel")
    until_state(service, task, "cancelled")
    service.put({"n": "after"})
    telling.next(event="note", n="after")
    assert is_alive(pid) == (handler == "sleep")  # an async handler shares its process with others
    if handler == "sleep":
        telling.next(event="sleep was cancelled")
    assert state_of(service, task) == "cancelled"
    service.wait_until(lambda: service.get("/spools/default")["running"] == 0, "idle")


def test_a_dead_task_is_retried_with_its_attempts_forgotten(make: Callable[..., Service], telling: Telling) -> None:
    service = make(max_attempts=1).start()
    task = service.put({"do": "fail", "n": "again"})
    until_state(service, task, "dead")
    telling.next(event="fail")
    assert service.ask("POST", f"/tasks/{task}/retry")["state"] in ("ready", "running", "dead")
    telling.next(event="fail")
    until_state(service, task, "dead")
    history = service.get(f"/tasks/{task}")["history"]
    assert [attempt["outcome"] for attempt in history] == ["failed", "retried", "failed"]
    assert (history[0]["number"], history[2]["number"]) == (1, 1)


def test_an_unknown_task_is_not_found_and_an_unfit_state_is_a_conflict(service: Service, telling: Telling) -> None:
    assert service.ask("POST", "/tasks/no-such-task/hold", status=404)["title"] == "Not Found"
    task = service.put({"n": "1"})
    until_state(service, task, "done")
    for action in ("cancel", "hold", "release", "run", "retry"):
        assert "done" in service.ask("POST", f"/tasks/{task}/{action}", status=409)["detail"]


# Many tasks


def test_bulk_shows_its_number_first_and_then_acts_on_just_these(service: Service, telling: Telling) -> None:
    wanted = [service.put({"n": str(n), "customer": "acme"}, at=time.time() + HOUR) for n in range(30)]
    others = [service.put({"n": str(n), "customer": "umbrella"}, at=time.time() + HOUR) for n in range(5)]
    request = {"action": "cancel", "filter": {"state": "scheduled", "q": "acme"}}
    preview = service.ask("POST", "/tasks/bulk", {**request, "dry_run": True})
    assert (preview["matched"], preview["by_state"]) == (30, {"scheduled": 30})
    assert service.get("/spools/default")["scheduled"] == 35
    began = service.ask("POST", "/tasks/bulk", request)
    service.wait_until(lambda: service.get(f"/tasks/bulk/{began['id']}")["state"] == "finished", "finished")
    finished = service.get(f"/tasks/bulk/{began['id']}")
    assert (finished["total"], finished["done"], finished["refused"]) == (30, 30, 0)
    assert {result["id"] for result in finished["results"]} == set(wanted)
    assert {state_of(service, task) for task in others} == {"scheduled"}
    assert [row["action"] for row in service.get("/audit")["rows"]].count("tasks.cancel") == 1


def test_bulk_on_ids_tells_what_became_of_each(service: Service, telling: Telling) -> None:
    waiting = service.put({"n": "w"}, at=time.time() + HOUR)
    done = service.put({"n": "d"})
    until_state(service, done, "done")
    answer = service.ask("POST", "/tasks/bulk", {"action": "hold", "ids": [waiting, done, "unknown"]})
    assert [(result["id"], result["status"]) for result in answer["results"]] == [
        (waiting, 200),
        (done, 409),
        ("unknown", 404),
    ]


def test_lists_find_tasks_by_their_vars_also_when_they_are_done(service: Service, telling: Telling) -> None:
    waiting = service.put({"n": "1", "film": "Stalker"}, at=time.time() + HOUR)
    done = service.put({"n": "2", "film": "Stalker"})
    service.put({"n": "3", "film": "Solaris"})
    until_state(service, done, "done")
    found, cursor = [], ""
    while cursor is not None:
        page = service.get(f"/tasks?q=Stalker&limit=1{cursor and f'&cursor={cursor}'}")
        found += [task["id"] for task in page["tasks"]]
        cursor = page["cursor"]
    assert found == [waiting, done]


# Once, and in one transaction


def test_a_key_gives_the_same_task_over_a_kill_and_a_restart(service: Service, telling: Telling) -> None:
    body, headers = {"vars": {"n": "once"}}, {"Idempotency_Key": "order-4711"}
    first = service.ask("POST", "/spools/default/tasks", body, status=201, **headers)
    assert service.ask("POST", "/spools/default/tasks", body, status=201, **headers) == first
    telling.next(event="note", n="once")
    until_state(service, first["id"], "done")
    service.stop(signal.SIGKILL)
    service.start()
    assert service.ask("POST", "/spools/default/tasks", body, status=201, **headers) == first
    assert service.ask("POST", "/spools/default/tasks", {"vars": {"n": "other"}}, status=422, **headers)
    service.put({"n": "last"})
    telling.next(event="note", n="last")
    assert [told for told in telling.all_so_far() if told.get("n") in ("once", "other")] == []


def test_a_batch_has_a_result_for_each_line_and_all_of_it_runs(make: Callable[..., Service], telling: Telling) -> None:
    service = make(durability="fsync").start()
    lines = b"\n".join(json.dumps({"vars": {"n": f"line{n}"}}).encode() for n in range(500))
    status, content = service.request(
        "POST", "/api/v1/spools/default/tasks", lines, {"Content-Type": "application/x-ndjson"}
    )
    assert status == 201, content
    ids = json.loads(content)["ids"]
    assert len(set(ids)) == 500
    for number in (0, 250, 499):
        assert telling.next(event="note", n=f"line{number}")["task"] == ids[number]


# Watching


class Stream:
    """The events as a browser would read them."""

    def __init__(self, service: Service, after: str | None = None) -> None:
        self._connection = service.connect()
        headers = {"Authorization": f"Bearer {service.token}"} | ({"Last-Event-ID": after} if after else {})
        self._connection.request("GET", "/api/v1/events", headers=headers)
        self._answer = self._connection.getresponse()
        assert self._answer.status == 200
        assert self._answer.headers["Content-Type"].startswith("text/event-stream")
        self.last: str | None = None

    def until(self, holds: Callable[[str, Any], object]) -> Any:
        """Read up to an event that fits."""
        event: dict[str, str] = {}
        while line := self._answer.readline():
            text = line.decode().rstrip("\r\n")
            if text:
                name, _, value = text.partition(":")
                event[name] = value.removeprefix(" ")
            elif "data" in event:
                self.last = event.get("id", self.last)
                data = json.loads(event["data"])
                if holds(event["event"], data):
                    return data
                event = {}
        raise EOFError

    def close(self) -> None:
        self._answer.close()
        self._connection.close()


def test_events_tell_of_tasks_spools_and_settings_as_they_change(service: Service, telling: Telling) -> None:
    stream = Stream(service)
    task = service.put({"n": "seen"})
    stream.until(lambda name, data: name == "tasks" and {"id": task, "state": "done"} in _pairs(data))
    service.ask("PATCH", "/spools/default", {"frequency": 7})
    stream.until(lambda name, data: name == "settings" and "7" in json.dumps(data))
    last = stream.last
    stream.close()
    late = service.put({"n": "missed"})
    until_state(service, late, "done")
    stream = Stream(service, after=last)
    stream.until(lambda name, data: name == "tasks" and {"id": late, "state": "done"} in _pairs(data))
    service.stop(signal.SIGKILL)
    service.start()
    again = Stream(service, after=stream.last)
    again.until(lambda name, _: name == "reset")
    again.close()
    stream.close()


def _pairs(data: dict[str, Any]) -> list[dict[str, str]]:
    return [{"id": item["id"], "state": item["state"]} for item in data["changed"]]


def test_readers_that_do_not_read_delay_neither_tasks_nor_the_stop(service: Service, telling: Telling) -> None:
    streams = [Stream(service) for _ in range(20)]
    for number in range(200):
        service.send({"n": str(number)})
    telling.next(event="note", n="199")
    began = time.monotonic()
    assert service.stop() == 0
    assert time.monotonic() - began < 8
    for stream in streams:
        stream.close()


def test_metrics_and_health_tell_what_is_the_matter(make: Callable[..., Service], telling: Telling) -> None:
    service = make().start()
    done = service.put({"n": "1"})
    until_state(service, done, "done")
    status, content = service.request("GET", "/metrics")
    assert status == 200
    assert b'outcome="ok"' in content
    assert b"trispool_oldest_ready_seconds" in content
    assert service.request("GET", "/metrics", token=False)[0] == 401
    for path in ("/healthz", "/readyz"):
        assert service.request("GET", path, token=False)[0] == 200
    stats = service.get("/stats")
    assert json.dumps(stats)


def test_workers_are_restarted_and_their_number_changed(service: Service, telling: Telling) -> None:
    before = {worker["pid"] for worker in service.get("/workers")["workers"]}
    assert len(before) == 2
    pid = min(before)
    service.ask("POST", f"/workers/{pid}/restart")
    service.wait_until(lambda: not is_alive(pid), "restarted")
    assert service.ask("POST", f"/workers/{pid}/restart", status=404)
    changed = service.ask("PATCH", "/spools/default", {"processes": 3})
    assert (changed["processes"], changed["configured"]["processes"]) == (3, 2)
    service.wait_until(lambda: len(service.get("/workers")["workers"]) == 3, "three")


def test_the_audit_log_tells_who_did_what_before_and_after(service: Service, telling: Telling) -> None:
    service.ask("PATCH", "/spools/default", {"frequency": 5, "paused": True})
    task = service.put({"n": "1"}, at=time.time() + HOUR)
    service.ask("POST", f"/tasks/{task}/hold")
    service.ask("POST", "/tasks/none/hold", status=404)
    rows = service.get("/audit")["rows"]
    assert [(row["action"], row["target"], row["outcome"] == "ok") for row in rows[:3]] == [
        ("task.hold", "none", False),
        ("task.hold", task, True),
        ("spool.change", "default", True),
    ]
    assert rows[2]["before"] == {"frequency": 30.0, "paused": False}
    assert rows[2]["after"] == {"frequency": 5.0, "paused": True}
    assert rows[1]["before"] == {"state": "scheduled"}
    assert (rows[1]["actor"], rows[1]["role"], rows[1]["address"]) == ("operator", "operate", "127.0.0.1")


# Who may


def test_a_token_works_within_a_second_of_its_making_and_no_longer_than_it_is_there(
    service: Service, telling: Telling
) -> None:
    made = cli(service, "token", "create", "grafana", "--role", "view")
    bearer = {"Authorization": f"Bearer {made['token']}"}

    def status(method: str, path: str, body: bytes | None = None) -> int:
        return service.request(method, path, body, bearer)[0]

    service.wait_until(lambda: status("GET", "/api/v1/spools") == 200, "known")
    assert status("POST", "/api/v1/spools/default/scan") == 403
    assert status("POST", "/api/v1/spools/default/tasks", b"x") == 403
    listed = cli(service, "token", "list")
    assert made["token"] not in json.dumps(listed)
    cli(service, "token", "revoke", "grafana")
    service.wait_until(lambda: status("GET", "/api/v1/spools") == 401, "forgotten")


def test_a_browser_logs_in_and_only_its_own_page_may_change_things(service: Service, telling: Telling) -> None:
    def ask(method: str, path: str, document: object = None, **headers: str) -> tuple[int, http.client.HTTPMessage]:
        connection = service.connect()
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if document is not None:
            sent["Content-Type"] = "application/json"
        body = None if document is None else json.dumps(document)
        connection.request(method, f"/api/v1{path}", body, sent)
        answer = connection.getresponse()
        answer.read()
        connection.close()
        return answer.status, answer.headers

    same = {"Sec_Fetch_Site": "same-origin"}
    assert ask("POST", "/session", {"token": "wrong" * 8}, **same)[0] == 401
    status, headers = ask("POST", "/session", {"token": service.token}, **same)
    assert status in (200, 201)
    cookie = headers["Set-Cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    mine = {"Cookie": cookie.partition(";")[0]}
    assert ask("GET", "/spools", **mine)[0] == 200
    assert ask("POST", "/spools/default/scan", **mine, **same)[0] == 200
    assert ask("POST", "/spools/default/scan", **mine)[0] == 403
    assert ask("POST", "/spools/default/scan", **mine, Sec_Fetch_Site="cross-site")[0] == 403
    assert ask("GET", "/spools", Host="evil.example", **mine)[0] == 421


def test_who_does_not_come_from_an_allowed_network_is_not_even_answered(
    make: Callable[..., Service], telling: Telling
) -> None:
    service = make(http={"allow_networks": ["127.0.0.1/32"]}).start()
    connection = socket.create_connection(("127.0.0.1", service.http_port), LONG, source_address=("127.0.0.2", 0))
    with connection, contextlib.suppress(ConnectionError):
        connection.sendall(b"GET /healthz HTTP/1.0\r\nHost: localhost\r\n\r\n")
        assert connection.recv(1) == b""


def test_guessing_is_slowed_down_and_those_who_are_known_stay_in(service: Service, telling: Telling) -> None:
    assert service.request("GET", "/api/v1/spools")[0] == 200
    statuses = [
        service.request("GET", "/api/v1/spools", None, {"Authorization": f"Bearer {'guess' * 5}{number}"})[0]
        for number in range(60)
    ]
    assert statuses[0] == 401
    assert statuses[-1] == 429
    assert service.request("GET", "/api/v1/spools")[0] == 200


# Every way to it


def test_it_works_on_a_unix_socket_for_its_group_only(make: Callable[..., Service], telling: Telling) -> None:
    service = make(http={"bind": "unix:admin.sock"}).start()
    assert os.stat(service.folder / "admin.sock").st_mode & 0o777 == 0o660
    task = service.put({"n": "unix"})
    telling.next(event="note", task=task)
    service.ask("PATCH", "/spools/default", {"paused": True})
    assert service.get("/audit")["rows"][0]["address"] == "unix"


def test_it_works_with_tls_and_the_cookie_is_then_secure(make: Callable[..., Service], telling: Telling) -> None:
    service = make(http={"certfile": str(DATA / "tls.pem")}).start()
    task = service.put({"n": "tls"})
    telling.next(event="note", task=task)
    connection = service.connect()
    headers = {"Content-Type": "application/json", "Sec-Fetch-Site": "same-origin"}
    connection.request("POST", "/api/v1/session", json.dumps({"token": service.token}), headers)
    assert "Secure" in connection.getresponse().headers["Set-Cookie"]
    connection.close()


def test_a_hundred_clients_at_once_are_all_served(service: Service, telling: Telling) -> None:
    statuses: list[int] = []
    threads = [
        threading.Thread(target=lambda: statuses.append(service.request("GET", "/api/v1/tasks?limit=5")[0]))
        for _ in range(100)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == [200] * 100
