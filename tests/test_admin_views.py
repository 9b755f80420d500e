"""What an operator does with the HTTP API, before a fake service: actions, bulk, keys, watching."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin

import pytest

from tests.api_support import (
    API,
    AUTHORIZED,
    OPERATOR,
    TASKS,
    client_of,
    get,
    patch,
    post,
    post_json,
    problem,
)
from tests.fake_control import FakeControl
from trispool.admin.enqueue import parse_document
from trispool.admin.faults import FaultyRequest
from trispool.control import Health, WorkerStatus
from trispool.errors import SpoolUnavailable, TaskRefused
from trispool.operating import Action, ActionResult, AuditRow, BulkPage, BulkRequest, TaskFilter, TaskQuery
from trispool.task import MAX_VALUE, TaskState

if TYPE_CHECKING:
    from quart.testing import QuartClient

HELD, READY = TaskState.HELD, TaskState.READY


@pytest.fixture
def control() -> FakeControl:
    return FakeControl()


@pytest.fixture
def client(control: FakeControl) -> QuartClient:
    return client_of(control)


# Lists


async def test_list_takes_every_filter(client: QuartClient, control: FakeControl) -> None:
    query = (
        "spool=mail&state=ready&handler=app.encode&q=%26a&enqueued_after=1700000000.5&enqueued_before=2030-03-17T17:46:40Z"
        "&due_after=0&due_before=1.5e9&sort=due&order=desc&limit=1&cursor=x"
    )
    assert (await get(client, f"{API}/tasks?{query}")).status_code == 200
    wanted = TaskFilter("mail", READY, "app.encode", "&a", 1700000000.5, 1.9e9, 0.0, 1.5e9)
    assert control.calls == [("tasks", TaskQuery(wanted, "due", "desc", 1, "x"))]


async def test_every_fault_of_a_query_is_named_with_its_value_and_what_was_expected(
    client: QuartClient, control: FakeControl
) -> None:
    query = f"limit=0&limit=1&stat=x&state=gone&q=%00&due_after=nan&%ff=1&handler={'h' * 2000}&order="
    document = await problem(await get(client, f"{API}/tasks?{query}"), 400)
    faults = {fault["parameter"]: fault for fault in document["errors"]}
    assert {"limit", "stat", "state", "q", "due_after", "\ufffd", "handler", "order"} == faults.keys()
    assert faults["state"] == {
        "detail": "state=gone: expected one of scheduled, ready, running, held, done, dead, cancelled",
        "parameter": "state",
        "value": "gone",
        "expected": "one of scheduled, ready, running, held, done, dead, cancelled",
    }
    assert faults["handler"]["value"] == "h" * 59 + "…"
    assert "unknown field" in faults["stat"]["detail"]
    assert "due_before" in faults["stat"]["expected"]
    assert "2031-05-04T12:00:00Z" in faults["due_after"]["expected"]
    assert document["detail"].count("expected") == len(document["errors"])
    assert control.calls == []


async def test_refusal_of_the_service_is_passed_on(client: QuartClient, control: FakeControl) -> None:
    control.refusal = TaskRefused("There is no spool 'x'.", status=404)
    assert "no spool" in (await problem(await get(client, f"{API}/tasks?spool=x&cursor=y"), 404))["detail"]


@pytest.mark.parametrize("path", ["/tasks", "/audit", "/tasks/bulk/b"])
async def test_cursor_of_somebody_else_leads_nowhere(client: QuartClient, control: FakeControl, path: str) -> None:
    control.refusal = TaskRefused("cursor: not one of ours")
    [fault] = (await problem(await get(client, f"{API}{path}?cursor=x"), 404))["errors"]
    assert (fault["parameter"], fault["value"]) == ("cursor", "x")


@pytest.mark.parametrize("state", ["", "&state=running", "&state=done", "&state=dead", "&state=cancelled"])
async def test_what_has_no_time_is_not_sorted_by_it(client: QuartClient, control: FakeControl, state: str) -> None:
    [fault] = (await problem(await get(client, f"{API}/tasks?sort=due{state}"), 409))["errors"]
    assert fault["parameter"] == "state"
    assert "scheduled, ready, held" in fault["expected"]
    assert control.calls == []


# One task


@pytest.mark.parametrize("action", [action for action in Action if action is not Action.RESCHEDULE])
@pytest.mark.parametrize(("body", "kind"), [(b"", None), (b"{}", "application/json"), (b"", "text/plain")])
async def test_action_is_done_and_answered_with_the_task(
    client: QuartClient, control: FakeControl, action: Action, body: bytes, kind: str | None
) -> None:
    control.add_detail("a b", {}, b"")
    response = await post(client, body, kind, f"{API}/tasks/a%20b/{action}")
    assert response.status_code == 200
    document = await response.get_json()
    assert document["id"] == "a b"
    assert document["state"] == control.details["a b"].summary.state
    assert "vars" not in document
    assert control.calls == [("act", "a b", action, OPERATOR, None)]


@pytest.mark.parametrize("at", [1900000000.5, "1900000000.5", "2030-03-17T17:46:40.5Z"])
async def test_task_is_rescheduled(client: QuartClient, control: FakeControl, at: object) -> None:
    control.add_detail("t", {}, b"")
    response = await post_json(client, {"at": at}, f"{API}/tasks/t/reschedule")
    assert (await response.get_json())["at"] == 1900000000.5
    assert control.calls == [("act", "t", Action.RESCHEDULE, OPERATOR, 1900000000.5)]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"", "Not JSON"),
        (b"{}", "at: missing"),
        (b'{"at": null}', "at=null"),
        (b'{"at": true}', "at=true"),
        (b'{"at": -1}', "at=-1"),
        (b'{"at": 1e400}', "at=Infinity"),
        (b'{"at": NaN}', "NaN"),
        (b'{"at": "2030-01-01T00:00:00"}', "offset"),
        (b'{"at": 1, "when": 2}', "when=2: unknown member; expected one of at"),
        (b'{"at": 1, "at": 2}', "at: given twice"),
        (b'{"at": "\\ud800"}', "at=\\ud800"),
        (b'{"\\ud800": 1, "at": 1}', "\\ud800"),
        (b'"\xff"', "UTF-8"),
        (b"[1]", "a JSON object"),
        (b"[" * 100_000, "nested"),
        (b'{"at": ' + b"9" * 5000 + b"}", "digits"),
    ],
)
async def test_time_that_is_none_is_refused(
    client: QuartClient, control: FakeControl, body: bytes, expected: str
) -> None:
    document = await problem(await post(client, body, "application/json", f"{API}/tasks/t/reschedule"), 400)
    assert expected in document["detail"]
    assert document["errors"]
    assert control.calls == []


async def test_action_takes_no_further_words(client: QuartClient, control: FakeControl) -> None:
    control.add_detail("t", {}, b"")
    for body, kind, path, status in (
        (b'{"at": 5}', "application/json", "run", 400),
        (b"at=5", "application/x-www-form-urlencoded", "run", 415),
        (b"", None, "run?at=5", 400),
        (b"x", None, "hold", 415),
        (b'{"at": 5}', None, "reschedule", 415),
        (b'{"at": 5}', "application/json", "reschedule?at=5", 400),
    ):
        await problem(await post(client, body, kind, f"{API}/tasks/t/{path}"), status)
    assert control.calls == []


async def test_action_that_does_not_fit_says_why(client: QuartClient, control: FakeControl) -> None:
    await problem(await post(client, b"", None, f"{API}/tasks/none/hold"), 404)
    await problem(await post(client, b"", None, f"{API}/tasks/none/explode"), 404)
    control.refusal = TaskRefused("t is done: it cannot be held", status=409)
    assert "done" in (await problem(await post(client, b"", None, f"{API}/tasks/t/hold"), 409))["detail"]
    control.refusal = SpoolUnavailable("read-only")
    response = await post(client, b"", None, f"{API}/tasks/t/hold")
    await problem(response, 503)
    assert response.headers["Retry-After"]


# Many tasks


async def test_bulk_tells_what_became_of_each(client: QuartClient, control: FakeControl) -> None:
    control.add_detail("t", {}, b"")
    response = await post_json(client, {"action": "hold", "ids": ["t", "none", "t"]}, f"{API}/tasks/bulk")
    assert response.status_code == 200
    document = await response.get_json()
    assert urljoin(f"{API}/tasks/bulk", response.headers["Location"]) == f"{API}/tasks/bulk/{document['id']}"
    assert document["results"] == [
        {"id": "t", "state": "held", "status": 200, "detail": ""},
        {"id": "none", "state": None, "status": 404, "detail": "There is no task 'none'."},
    ]
    assert (document["total"], document["done"], document["refused"], document["state"]) == (2, 1, 1, "finished")
    assert await (await get(client, f"{API}/tasks/bulk/{document['id']}")).get_json() == document
    assert control.calls[0] == ("start_bulk", BulkRequest(Action.HOLD, ["t", "none"]), OPERATOR)


async def test_bulk_that_goes_on_is_followed_and_stopped(client: QuartClient, control: FakeControl) -> None:
    control.bulk_state = "running"
    for number in range(3):
        control.add_detail(f"t{number}", {}, b"")
    asked = {"action": "reschedule", "at": "1900000000", "filter": {"state": "scheduled", "due_before": 5}}
    response = await post_json(client, asked, f"{API}/tasks/bulk")
    assert response.status_code == 202
    wanted = TaskFilter(state=TaskState.SCHEDULED, due_before=5.0)
    assert control.calls[0] == ("start_bulk", BulkRequest(Action.RESCHEDULE, None, wanted, 1.9e9), OPERATOR)
    path = urljoin(f"{API}/tasks/bulk", response.headers["Location"])
    first = await (await get(client, f"{path}?limit=2")).get_json()
    rest = await (await get(client, f"{path}?limit=2&cursor={first['cursor']}")).get_json()
    assert [result["id"] for result in first["results"] + rest["results"]] == ["t0", "t1", "t2"]
    assert rest["cursor"] is None
    stopped = await client.delete(path, headers=AUTHORIZED)
    assert (await stopped.get_json())["state"] == "stopped"
    assert ("stop_bulk", "bulk-0", OPERATOR) in control.calls
    await problem(await client.delete(f"{path}x", headers=AUTHORIZED), 404)
    await problem(await get(client, f"{path}x"), 404)


async def test_bulk_shows_what_it_would_do(client: QuartClient, control: FakeControl) -> None:
    control.add_detail("t", {}, b"")
    asked = {"action": "cancel", "ids": ["t", "none"], "dry_run": True}
    response = await post_json(client, asked, f"{API}/tasks/bulk")
    assert await response.get_json() == {"matched": 1, "refused": 1, "by_state": {"ready": 1}, "sample": ["t"]}
    assert [call[0] for call in control.calls] == ["preview"]


@pytest.mark.parametrize(
    ("document", "pointers"),
    [
        ({}, ["/action"]),
        ({"action": "explode", "ids": ["a"]}, ["/action"]),
        ({"action": "hold"}, [""]),
        ({"action": "hold", "ids": ["a"], "filter": {"state": "ready"}}, [""]),
        ({"action": "hold", "filter": {}}, ["/filter"]),
        ({"action": "hold", "filter": {"stat": "ready"}}, ["/filter/stat"]),
        ({"action": "hold", "filter": {"state": None, "q": ""}}, ["/filter/state", "/filter/q"]),
        ({"action": "hold", "ids": []}, ["/ids"]),
        ({"action": "hold", "ids": ["a"] * 10_001}, ["/ids"]),
        ({"action": "hold", "ids": ["a", "", 5, "x" * 256]}, ["/ids/1", "/ids/2", "/ids/3"]),
        ({"action": "hold", "ids": None}, ["/ids"]),
        ({"action": "hold", "ids": ["a"], "at": 5}, [""]),
        ({"action": "reschedule", "ids": ["a"]}, [""]),
        ({"action": "hold", "ids": ["a"], "dry_run": 1}, ["/dry_run"]),
        ({"action": "hold", "ids": ["a"], "dryrun": True}, ["/dryrun"]),
    ],
)
async def test_bulk_that_is_not_clear_does_nothing(
    client: QuartClient, control: FakeControl, document: object, pointers: list[str]
) -> None:
    answer = await problem(await post_json(client, document, f"{API}/tasks/bulk"), 400)
    assert [error["pointer"] for error in answer["errors"]] == pointers
    assert all(error["expected"] for error in answer["errors"])
    assert control.calls == []


async def test_bulk_of_ten_thousand_long_ids_fits_and_more_bytes_do_not(
    client: QuartClient, control: FakeControl
) -> None:
    ids = [f"{number:0255}" for number in range(10_000)]
    response = await post_json(client, {"action": "hold", "ids": ids, "dry_run": True}, f"{API}/tasks/bulk")
    assert (await response.get_json())["refused"] == 10_000
    await problem(await post(client, b" " * (4 * 1024 * 1024 + 1), "application/json", f"{API}/tasks/bulk"), 413)


async def test_too_many_bulk_actions_may_be_tried_again(client: QuartClient, control: FakeControl) -> None:
    control.refusal = TaskRefused("4 bulk actions are running", status=429)
    response = await post_json(client, {"action": "hold", "ids": ["a"]}, f"{API}/tasks/bulk")
    await problem(response, 429)
    assert response.headers["Retry-After"]


# Keys


async def test_key_gives_the_same_answer_and_no_second_task(client: QuartClient, control: FakeControl) -> None:
    first = await post_json(client, {"vars": {"n": 1}}, Idempotency_Key="order-4711")
    again = await post_json(client, {"vars": {"n": 1}}, Idempotency_Key="order-4711")
    assert (first.status_code, again.status_code) == (201, 201)
    assert await first.get_json() == await again.get_json()
    assert first.headers["Location"] == again.headers["Location"]
    assert "Idempotent-Replayed" not in first.headers
    assert again.headers["Idempotent-Replayed"] == "true"
    assert len(control.kept) == 1
    await post_json(client, {"vars": {"n": 1}}, Idempotency_Key="order-4712")
    assert len(control.kept) == 2


async def test_key_of_a_batch_gives_the_same_ids(client: QuartClient, control: FakeControl) -> None:
    answers = [
        await post(client, '{"vars": {"n": 1}}\n{}', "application/x-ndjson", Idempotency_Key="batch") for _ in range(2)
    ]
    assert [await answer.get_json() for answer in answers] == [{"count": 2, "ids": ["task-0", "task-1"]}] * 2
    assert answers[1].headers["Idempotent-Replayed"] == "true"
    assert len(control.kept) == 2


@pytest.mark.parametrize(
    ("body", "kind", "path"),
    [
        (b"a=2", "application/x-www-form-urlencoded", TASKS),
        (b"a=1", "text/plain", TASKS),
        (b"a=1", "application/x-www-form-urlencoded", f"{API}/spools/mail/tasks"),
        (b"", None, f"{TASKS}?a=1"),
    ],
)
async def test_key_for_another_request_is_refused(
    client: QuartClient, control: FakeControl, body: bytes, kind: str | None, path: str
) -> None:
    await post(client, b"a=1", "application/x-www-form-urlencoded", Idempotency_Key="k")
    await problem(await post(client, body, kind, path, Idempotency_Key="k"), 422)
    assert len(control.kept) == 1


@pytest.mark.parametrize("key", ["", "two words", "ä", "x" * 256, "tab\t"])
async def test_key_has_1_to_255_visible_characters(client: QuartClient, control: FakeControl, key: str) -> None:
    document = await problem(await post_json(client, {}, Idempotency_Key=key), 400)
    assert document["errors"][0]["parameter"] == "Idempotency-Key"
    assert control.kept == []
    assert (await post_json(client, {}, Idempotency_Key="x" * 255)).status_code == 201


# Every fault of a task


async def test_every_fault_of_a_json_task_is_named(client: QuartClient, control: FakeControl) -> None:
    vars = {"a": None, "big": "x" * (MAX_VALUE + 1), "priority": "../x", "raw": {"base64": "?"}, "ok": 1, "at": "soon"}
    document = {"vars": vars, "at": "tomorrow", "priority": 1.5, "body": 5, "spool": "mail"}
    answer = await problem(await post_json(client, document), 400)
    faults = {fault["pointer"]: fault for fault in answer["errors"]}
    assert faults.keys() == {
        *("/vars/a", "/vars/big", "/vars/priority", "/vars/raw/base64", "/vars/at"),
        *("/at", "/priority", "/body", "/spool"),
    }
    assert faults["/vars/a"]["value"] == "null"
    assert faults["/vars/big"]["value"] == "x" * 59 + "…"
    assert "65536" in faults["/vars/big"]["detail"]
    assert faults["/priority"] == {
        "detail": "priority=1.5: expected a whole number from 0 to 999999999",
        "pointer": "/priority",
        "value": "1.5",
        "expected": "a whole number from 0 to 999999999",
    }
    assert control.batches == []


async def test_every_fault_of_a_form_is_named(client: QuartClient, control: FakeControl) -> None:
    body = b"a=1&a=2&at=soon&priority=%ff&=x"
    answer = await problem(await post(client, body, "application/x-www-form-urlencoded"), 400)
    assert [fault["parameter"] for fault in answer["errors"]] == ["a", "at", "priority", ""]
    assert answer["errors"][2]["value"] == "\\xff"


async def test_every_fault_of_a_batch_is_named_with_its_line(client: QuartClient, control: FakeControl) -> None:
    answer = await problem(await post(client, '{}\n{"at": "x", "b": 1}\n{', "application/x-ndjson"), 400)
    assert [(fault["line"], fault.get("pointer")) for fault in answer["errors"]] == [(2, "/at"), (2, "/b"), (3, None)]


async def test_batch_with_very_many_faults_names_some(client: QuartClient, control: FakeControl) -> None:
    answer = await problem(await post(client, "{\n" * 9000, "application/x-ndjson"), 400)
    assert len(answer["errors"]) == 100
    assert "no further" in answer["detail"]


async def test_task_that_is_too_large_as_a_whole_has_one_fault(client: QuartClient, control: FakeControl) -> None:
    answer = await problem(await post_json(client, {"vars": {str(n): "x" * 1000 for n in range(70)}}), 413)
    assert len(answer["errors"]) == 1


async def test_spooler_that_is_not_the_address_names_its_place(client: QuartClient) -> None:
    answer = await problem(await post_json(client, {"vars": {"spooler": "mail"}}), 400)
    assert (answer["errors"][0]["pointer"], answer["errors"][0]["value"]) == ("/vars/spooler", "mail")
    answer = await problem(await post(client, b"", None, f"{TASKS}?spooler=mail"), 400)
    assert answer["errors"][0]["parameter"] == "spooler"


@pytest.mark.parametrize(
    ("document", "pointers"),
    [
        (b'{"vars": {"a": 1, "a": 2}}', ["/vars/a"]),
        (b'{"vars": {"a" :1, "a":2}}', ["/vars/a"]),
        (b'{"vars": {"a"\n:1, "a":2, "b": ":"}}', ["/vars/a"]),
        (b'{"vars": {"a": 1}, "vars": {"a": 1}}', ["/vars"]),
        (b'{"at": 1, "at": 1}', ["/at"]),
        (b'{"at": null, "at": null}', ["/at"]),
        (b'{"vars": {"a": {"base64": "", "base64": ""}}}', ["/vars/a/base64"]),
        (b'{"vars": {"a": "", "\\u0061": ""}}', ["/vars/a"]),
        (b'{"vars": {"u": "http://x/", "a": "1", "a": "2"}}', ["/vars/a"]),
        (b'{"vars": {"u": "\\":", "a": "1", "a": "2", "u": 5}}', ["/vars/u", "/vars/a"]),
        (b'{"a": 1, "a": 1}', ["/a"]),
        (b'{"vars": {"u": "http://x/", ":": ":", "v": "\\": :", "w": {"base64": ""}}, "body": "", "at": 0}', []),
        (b'{"vars" : {"u" : "http://x/"}}', []),
        (b"{}", []),
    ],
)
def test_key_that_comes_twice_is_found_however_it_is_written(document: bytes, pointers: list[str]) -> None:
    found: list[str | None] = []
    try:
        parse_document(document)
    except FaultyRequest as error:
        found = [fault.pointer for fault in error.faults]
    assert found == pointers


# Workers


async def test_workers_are_listed_with_their_spools_and_restarted(client: QuartClient, control: FakeControl) -> None:
    control.status["mail"] = replace(control.status["mail"], workers=[WorkerStatus(4711, "busy", "t", 1.5)])
    [worker] = (await (await get(client, f"{API}/workers")).get_json())["workers"]
    assert (worker["pid"], worker["spool"], worker["task_id"]) == (4711, "mail", "t")
    for body, kind, kill in ((b"", None, False), (b'{"kill": true}', "application/json", True)):
        response = await post(client, body, kind, f"{API}/workers/4711/restart")
        assert (await response.get_json())["pid"] == 4711
        assert control.calls[-1] == ("restart_worker", 4711, OPERATOR, kill)
    await problem(await post(client, b"", None, f"{API}/workers/1/restart"), 404)
    await problem(await post(client, b"", None, f"{API}/workers/x/restart"), 404)
    await problem(await post(client, b"", None, f"{API}/workers/{10**30}/restart"), 404)
    await problem(await post(client, b"kill=1", None, f"{API}/workers/4711/restart"), 415)
    await problem(await post(client, b'{"kill": 1}', "application/json", f"{API}/workers/4711/restart"), 400)
    await problem(await post(client, b"", None, f"{API}/workers/4711/restart?kill=1"), 400)
    assert len(control.calls) == 3


# Watching


async def test_audit_log_is_shown_in_pages(client: QuartClient, control: FakeControl) -> None:
    control.rows = [
        AuditRow(n, 1700000000.5, "operator", "operate", "127.0.0.1", "task.hold", "t", {"state": "ready"}, None, "ok")
        for n in (2, 1)
    ]
    page = await (
        await get(client, f"{API}/audit?limit=1&actor=operator&action=task.hold&target=t&cursor=c")
    ).get_json()
    assert page["rows"] == [
        {
            "seq": 2,
            "at": 1700000000.5,
            "actor": "operator",
            "role": "operate",
            "address": "127.0.0.1",
            "action": "task.hold",
            "target": "t",
            "before": {"state": "ready"},
            "after": None,
            "outcome": "ok",
        }
    ]
    assert page["cursor"] == "next"
    assert control.calls == [("audit", "operator", "task.hold", "t", 1, "c")]
    await problem(await get(client, f"{API}/audit?who=me"), 400)


async def test_stats_are_passed_on(client: QuartClient, control: FakeControl) -> None:
    assert await (await get(client, f"{API}/stats")).get_json() == await control.stats()
    await problem(await get(client, f"{API}/stats?days=9"), 400)


async def test_readiness_needs_no_token_and_says_why_not(client: QuartClient, control: FakeControl) -> None:
    assert (await client.get("/readyz")).status_code == 200
    control.state_of_readiness = Health(False, ["default: the first scan is not over"])
    document = await problem(await client.get("/readyz"), 503)
    assert (document["ok"], document["problems"]) == (False, ["default: the first scan is not over"])
    assert (await client.get("/healthz")).status_code == 200


async def test_metrics_are_text_and_need_a_token(client: QuartClient, control: FakeControl) -> None:
    response = await get(client, "/metrics")
    assert response.content_type == "text/plain; version=0.0.4; charset=utf-8"
    assert await response.get_data() == await control.metrics()
    await problem(await client.get("/metrics"), 401)


@pytest.mark.parametrize(
    "path", ["/tasks/t", "/tasks/t/body", "/spools", "/spools/default", "/workers", "/stats", "/tasks/bulk/b"]
)
async def test_what_takes_no_query_refuses_one(client: QuartClient, control: FakeControl, path: str) -> None:
    control.add_detail("t", {}, b"")
    answer = await problem(await get(client, f"{API}{path}?verbose=1"), 400)
    assert answer["errors"][0]["parameter"] == "verbose"


async def test_change_that_changes_nothing_is_fine(client: QuartClient) -> None:
    assert (await patch(client, {})).status_code == 200


async def test_result_of_a_bulk_action_may_be_any_state(client: QuartClient, control: FakeControl) -> None:
    await post_json(client, {"action": "hold", "ids": ["t"]}, f"{API}/tasks/bulk")
    page = control.bulks["bulk-0"]
    control.bulks["bulk-0"] = BulkPage(
        replace(page.status, total=None, problem="too many"), [ActionResult("t", HELD)], None
    )
    document: dict[str, Any] = json.loads(await (await get(client, f"{API}/tasks/bulk/bulk-0")).get_data())
    assert (document["total"], document["problem"], document["results"][0]["state"]) == (None, "too many", "held")
