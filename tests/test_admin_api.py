"""The HTTP API without a port: Quart's test client before a fake service."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin

import pytest
import structlog.testing
import trio

from tests.api_support import (
    AUTHORIZED,
    OPERATOR,
    PRODUCER,
    TASKS,
    TOKEN,
    VIEWER,
    client_of,
    get,
    patch,
    post,
    post_json,
    problem,
)
from tests.fake_control import FakeControl
from trispool.admin import allowed_hosts
from trispool.admin.enqueue import pairs_of, parse_at, parse_lines
from trispool.control import Attempt, Health, Page, TaskSummary, WorkerStatus
from trispool.errors import SpoolUnavailable, TaskRefused
from trispool.operating import SpoolChange, TaskFilter, TaskQuery
from trispool.packet import decode_vars
from trispool.task import MAX_VALUE, TaskState

if TYPE_CHECKING:
    from quart import Response
    from quart.testing import QuartClient

    from trispool.task import NewTask

CRLF = b"\r\n"


@pytest.fixture
def control() -> FakeControl:
    return FakeControl()


@pytest.fixture
def client(control: FakeControl) -> QuartClient:
    return client_of(control)


def vars_of(task: NewTask) -> dict[bytes, bytes]:
    return decode_vars(task.payload)


def multipart(*parts: tuple[str, bytes], boundary: str = "xx") -> tuple[bytes, str]:
    """A multipart/form-data body of (parameters of Content-Disposition, content), and its content type."""
    body = b"".join(
        b"--"
        + boundary.encode()
        + CRLF
        + f"Content-Disposition: form-data; {what}".encode()
        + CRLF * 2
        + content
        + CRLF
        for what, content in parts
    )
    return body + f"--{boundary}--".encode() + CRLF, f"multipart/form-data; boundary={boundary}"


# Enqueue


async def test_key_of_a_form_with_a_file_is_for_its_content_not_for_its_boundary(
    client: QuartClient, control: FakeControl
) -> None:
    statuses = []
    for boundary, content in (("xx", b"1"), ("yy", b"1"), ("yy", b"2")):
        body, kind = multipart(('name="a"', b"1"), ('name="file"; filename="f"', content), boundary=boundary)
        statuses.append((await post(client, body, kind, Idempotency_Key="k")).status_code)
    assert statuses == [201, 201, 422]
    assert len(control.kept) == 1


async def test_json_task_is_kept_and_answered_with_its_address(client: QuartClient, control: FakeControl) -> None:
    document = {
        "vars": {"path": "/ä.mov", "n": 5, "ratio": 0.1, "yes": True, "no": False, "raw": {"base64": "/wA="}},
        "at": 1900000000.5,
        "priority": 7.0,
        "body": base64.b64encode(b"\x00\xff body").decode(),
    }
    response = await post_json(client, document)
    assert response.status_code == 201
    assert await response.get_json() == {"id": "task-0", "spool": "default", "at": 1900000000.5}
    assert urljoin(TASKS, response.headers["Location"]) == "/api/v1/tasks/task-0"
    assert urljoin(f"/behind/a/proxy{TASKS}", response.headers["Location"]) == "/behind/a/proxy/api/v1/tasks/task-0"
    [([task], spool)] = control.batches
    assert spool == "default"
    assert (task.at, task.priority, task.body) == (1900000000.5, 7, b"\x00\xff body")
    assert vars_of(task) == {
        b"path": "/ä.mov".encode(),
        b"n": b"5",
        b"ratio": b"0.1",
        b"yes": b"true",
        b"no": b"false",
        b"raw": b"\xff\x00",
        b"at": b"1900000000.5",
        b"priority": b"7",
    }


async def test_form_fields_become_vars_even_when_they_are_not_text(client: QuartClient, control: FakeControl) -> None:
    body = b"path=%2Fa+b&bin=%ff%00\xfe&empty=&flag&at=1900000000&priority=3"
    response = await post(client, body, "application/x-www-form-urlencoded; charset=utf-8")
    assert response.status_code == 201
    [task] = control.kept
    assert (task.at, task.priority, task.body) == (1900000000.0, 3, b"")
    assert vars_of(task) == {
        b"path": b"/a b",
        b"bin": b"\xff\x00\xfe",
        b"empty": b"",
        b"flag": b"",
        b"at": b"1900000000",
        b"priority": b"3",
    }


async def test_multipart_file_becomes_the_body_and_fields_the_vars(client: QuartClient, control: FakeControl) -> None:
    content = b"\x00--x\r\n--xy\xff" * 3 + b"\r\n"
    body, kind = multipart(
        ('name="path"', b"/a\xff"), ('name="f"; filename="x.bin"', content), ('name="priority"', b"2")
    )
    response = await post(client, body, kind)
    assert response.status_code == 201, await response.get_data()
    [task] = control.kept
    assert task.body == content
    assert task.priority == 2
    assert vars_of(task) == {b"path": b"/a\xff", b"priority": b"2"}


async def test_multipart_without_a_chosen_file_has_an_empty_body(client: QuartClient, control: FakeControl) -> None:
    body, kind = multipart(('name="f"; filename=""', b""), ('name="a"', b"1"), ('name="g"; filename="real"', b"z"))
    assert (await post(client, body, kind)).status_code == 201
    assert control.kept[0].body == b"z"


@pytest.mark.parametrize("content_type", ["application/octet-stream", "image/png", "text/plain; charset=x", None])
async def test_any_other_content_is_the_body_and_the_query_the_vars(
    client: QuartClient, control: FakeControl, content_type: str | None
) -> None:
    path = f"{TASKS}?path=%2fa&bin=%ff&at=2033-05-18T05:33:20%2B02:00"
    response = await post(client, b"{}\x00\xff", content_type, path)
    assert response.status_code == 201
    [task] = control.kept
    assert task.body == b"{}\x00\xff"
    assert task.at == 2_000_000_000.0
    assert vars_of(task) == {b"path": b"/a", b"bin": b"\xff", b"at": b"2000000000"}


async def test_spool_of_the_address_gets_the_task(client: QuartClient, control: FakeControl) -> None:
    response = await post(client, b"", None, "/api/v1/spools/mail/tasks?a=1")
    assert (await response.get_json())["spool"] == "mail"
    assert control.batches[0][1] == "mail"


@pytest.mark.parametrize("spooler", ["mail", "/srv/mail"])
async def test_task_may_name_the_spool_of_the_address_again(
    client: QuartClient, control: FakeControl, spooler: str
) -> None:
    response = await post(client, b"", None, f"/api/v1/spools/mail/tasks?spooler={spooler}")
    assert response.status_code == 201
    assert vars_of(control.kept[0]) == {b"spooler": spooler.encode()}


async def test_task_that_asks_for_another_spool_is_refused(client: QuartClient, control: FakeControl) -> None:
    document = await problem(await post(client, b"", None, f"{TASKS}?spooler=mail"), 400)
    assert "spooler" in document["detail"]
    assert control.batches == []


async def test_id_is_quoted_in_the_location(client: QuartClient, control: FakeControl) -> None:
    control.id_format = "a b;ü?{}"
    location = urljoin(TASKS, (await post(client, b"", None)).headers["Location"])
    assert location == "/api/v1/tasks/a%20b%3B%C3%BC%3F0"
    control.add_detail("a b;ü?0", {}, b"")
    assert (await (await get(client, location)).get_json())["id"] == "a b;ü?0"


@pytest.mark.parametrize(
    ("document", "what"),
    [
        ([], "object"),
        ({"vars": {"a": None}}, "vars.a"),
        ({"vars": {"a": [1]}}, "vars.a"),
        ({"vars": {"a": {}}}, "vars.a"),
        ({"vars": {"a": {"base64": "AA==", "x": 1}}}, "vars.a"),
        ({"vars": {"a": {"base64": 5}}}, "vars.a"),
        ({"vars": {"a": {"base64": "A"}}}, "vars.a.base64"),
        ({"vars": {"a": {"base64": "A-_="}}}, "vars.a.base64"),
        ({"vars": []}, "vars"),
        ({"vars": {"": "x"}}, "key"),
        ({"var": {}}, "var={}: unknown member"),
        ({"vars": {}, "spool": "mail"}, "spool=mail: unknown member"),
        ({"body": "not base64!"}, "body"),
        ({"body": None}, "body"),
        ({"at": True}, "at"),
        ({"at": -1}, "at"),
        ({"at": 1e300}, "at"),
        ({"at": 10**400}, "at"),
        ({"at": "tomorrow"}, "at"),
        ({"at": "2030-01-01T00:00:00"}, "offset"),
        ({"at": "2030-01-01"}, "offset"),
        ({"at": "1_000"}, "at"),
        ({"at": "nan"}, "at"),
        ({"priority": "5"}, "priority"),
        ({"priority": 1.5}, "priority"),
        ({"priority": 1e300}, "priority"),
        ({"priority": float("inf")}, "Infinity"),
        ({"priority": -1}, "priority"),
        ({"priority": 10**9}, "priority"),
        ({"priority": True}, "priority"),
        ({"at": 1, "vars": {"at": 2}}, "at: given twice"),
        ({"priority": 1, "vars": {"priority": 1}}, "priority: given twice"),
        ({"vars": {"priority": "../x"}}, "priority"),
        ({"vars": {"at": "soon"}}, "at"),
    ],
)
async def test_bad_json_task_is_refused_with_the_reason(
    client: QuartClient, control: FakeControl, document: object, what: str
) -> None:
    answer = await problem(await post_json(client, document), 400)
    assert what in answer["detail"]
    assert control.batches == []


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"vars": {}} x',
        b'{"vars": {"a": "\xff"}}',
        b'{"vars": {"a": "\\ud800"}}',
        b'{"at": NaN}',
        b'{"vars": {"a": ' + b"[" * 100_000,
        b'{"vars": {"a": ' + b"9" * 5000 + b"}}",
    ],
)
async def test_bytes_that_are_not_json_are_refused(client: QuartClient, control: FakeControl, body: bytes) -> None:
    await problem(await post(client, body, "application/json"), 400)
    assert control.batches == []


async def test_too_large_a_value_is_refused_with_its_key_and_size(client: QuartClient, control: FakeControl) -> None:
    answer = await problem(await post_json(client, {"vars": {"big": "x" * (MAX_VALUE + 1)}}), 413)
    assert "big" in answer["detail"]
    assert "65536" in answer["detail"]
    assert control.batches == []


@pytest.mark.parametrize("empty", [{}, {"at": 0}, {"at": ""}, {"at": None}, {"vars": {"at": 0}}, {"vars": {"at": ""}}])
async def test_task_without_a_time_is_for_now(client: QuartClient, control: FakeControl, empty: dict[str, Any]) -> None:
    response = await post_json(client, empty)
    assert (await response.get_json())["at"] is None
    assert control.kept[0].at is None


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"a=1&a=2", "application/x-www-form-urlencoded"),
        multipart(('name="a"', b"1"), ('name="a"', b"2")),
        multipart(('name="a"; filename="a"', b"1"), ('name="b"; filename="b"', b"2")),
        multipart(('name=""', b"1")),
        (multipart(('name="a"', b"1"))[0][:-8], multipart()[1]),
        (multipart(('name="a"', b"1"))[0], "multipart/form-data"),
        (multipart(('name="a"', b"1"))[0], "multipart/form-data; boundary=yy"),
        (b"--xx\r\nX: y\r\n\r\n1\r\n--xx--\r\n", "multipart/form-data; boundary=xx"),
        (b'--xx\r\nContent-Disposition: form-data; name="\xff"\r\n\r\n1\r\n--xx--\r\n', multipart()[1]),
    ],
)
async def test_bad_form_is_refused(client: QuartClient, control: FakeControl, body: bytes, kind: str) -> None:
    await problem(await post(client, body, kind), 400)
    assert control.batches == []


@pytest.mark.parametrize("kind", ["application/json", "application/x-www-form-urlencoded", "application/x-ndjson"])
async def test_query_beside_vars_in_the_body_is_refused(client: QuartClient, control: FakeControl, kind: str) -> None:
    await problem(await post(client, b"{}", kind, f"{TASKS}?a=1"), 400)
    assert control.batches == []


async def test_compressed_body_is_refused(client: QuartClient, control: FakeControl) -> None:
    await problem(await post(client, b"\x1f\x8b", "text/plain", Content_Encoding="gzip"), 415)
    assert control.batches == []


async def test_enqueue_says_what_went_wrong_in_the_store(client: QuartClient, control: FakeControl) -> None:
    control.failures[0] = SpoolUnavailable("The disk is full.")
    response = await post_json(client, {})
    assert (await problem(response, 503))["detail"] == "The disk is full."
    assert int(response.headers["Retry-After"]) > 0
    control.failures[0] = TaskRefused("Too large for this spool.", status=413)
    assert (await problem(await post_json(client, {}), 413))["detail"] == "Too large for this spool."


async def test_unknown_spool_is_not_found(client: QuartClient, control: FakeControl) -> None:
    await problem(await post(client, b"{}", "application/json", "/api/v1/spools/nope/tasks"), 404)
    assert control.batches == []


async def test_body_over_the_limit_is_refused(control: FakeControl) -> None:
    client = client_of(control, max_body=100)
    assert (await post(client, b"x" * 100, "text/plain")).status_code == 201
    answer = await problem(await post(client, b"x" * 101, "text/plain"), 413)
    assert "100" in answer["detail"]
    assert len(control.kept) == 1


async def test_body_of_unknown_length_over_the_limit_is_refused(control: FakeControl) -> None:
    client = client_of(control, max_body=100)
    async with client.request(TASKS, method="POST", headers=AUTHORIZED) as connection:
        await connection.send(b"x" * 60)
        await connection.send(b"x" * 60)
        response = await connection.as_response()
    await problem(response, 413)
    assert control.batches == []


async def test_body_that_never_ends_is_given_up(control: FakeControl, autojump_clock: trio.testing.MockClock) -> None:
    client = client_of(control, body_timeout=30)
    async with client.request(TASKS, method="POST", headers=AUTHORIZED) as connection:
        await connection.send(b"half")
        response = await connection.as_response()
    assert "30 s" in (await problem(response, 408))["detail"]
    assert trio.current_time() == pytest.approx(30)
    assert control.batches == []


# Batches


async def post_lines(client: QuartClient, *lines: str, **headers: str) -> Response:
    return await post(client, "\n".join(lines), "application/x-ndjson", **headers)


async def test_batch_is_one_call_in_the_order_of_its_lines(client: QuartClient, control: FakeControl) -> None:
    response = await post_lines(client, '{"vars": {"n": 0}}', "", '{"vars": {"n": 1}}\r', '{"priority": 4}', "")
    assert response.status_code == 201
    assert await response.get_json() == {"count": 3, "ids": ["task-0", "task-1", "task-2"]}
    [(tasks, spool)] = control.batches
    assert spool == "default"
    assert [vars_of(task) for task in tasks] == [{b"n": b"0"}, {b"n": b"1"}, {b"priority": b"4"}]


async def test_batch_is_answered_in_lines_when_asked_so(client: QuartClient, control: FakeControl) -> None:
    control.failures[1] = SpoolUnavailable("The disk is full.")
    response = await post_lines(client, "{}", "", "{}", '{"at": 1900000000}', Accept="application/x-ndjson")
    assert response.status_code == 207
    assert response.content_type == "application/x-ndjson"
    first, second, third, end = (await response.get_data(as_text=True)).split("\n")
    assert end == ""
    assert json.loads(first) == {"id": "task-0", "spool": "default", "at": None}
    assert json.loads(second)["status"] == 503
    assert json.loads(second)["line"] == 3
    assert json.loads(third) == {"id": "task-2", "spool": "default", "at": 1900000000.0}


async def test_nothing_of_a_batch_is_kept_when_a_line_is_bad(client: QuartClient, control: FakeControl) -> None:
    lines = ["{}", "{", "", '{"vars": {"a": null}}', '{"vars": {"spooler": "mail"}}', "{}"]
    document = await problem(await post_lines(client, *lines), 400)
    assert [error["line"] for error in document["errors"]] == [2, 4, 5]
    assert "vars.a" in document["errors"][1]["detail"]
    assert "3 of 5" in document["detail"]
    assert control.batches == []


async def test_batch_kept_in_part_names_what_is_not(client: QuartClient, control: FakeControl) -> None:
    control.failures = {0: SpoolUnavailable("The disk is full."), 2: TaskRefused("Too large.", status=413)}
    response = await post_lines(client, "", "{}", "{}", "{}")
    assert response.status_code == 207
    document = await response.get_json()
    assert (document["count"], document["ids"]) == (1, [None, "task-1", None])
    assert [(e["line"], e["status"], e["detail"]) for e in document["errors"]] == [
        (2, 503, "The disk is full."),
        (4, 413, "Too large."),
    ]


async def test_batch_of_which_nothing_is_kept_is_an_error(client: QuartClient, control: FakeControl) -> None:
    control.failures = {0: SpoolUnavailable("The disk is full."), 1: SpoolUnavailable("The disk is full.")}
    response = await post_lines(client, "{}", "{}")
    document = await problem(response, 503)
    assert "Retry-After" in response.headers
    assert [error["line"] for error in document["errors"]] == [1, 2]


@pytest.mark.parametrize("body", ["", "\n\n", " \r\n"])
async def test_empty_batch_is_refused(client: QuartClient, control: FakeControl, body: str) -> None:
    await problem(await post_lines(client, body), 400)
    assert control.batches == []


@pytest.mark.parametrize("separator", ["\n", "\n\n\n\n"])
async def test_too_long_a_batch_is_refused(control: FakeControl, separator: str) -> None:
    client = client_of(control, max_batch=10)
    assert (await post_lines(client, *["{}"] * 10)).status_code == 201
    await problem(await post(client, separator.join(["{}"] * 11), "application/x-ndjson"), 413)
    assert len(control.batches) == 1


async def test_long_batch_lets_others_run_meanwhile(client: QuartClient, control: FakeControl) -> None:
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while not control.batches:
            turns += 1
            await trio.lowlevel.checkpoint()

    body = "\n".join(["{}"] * 10_000)
    counted = 0

    async def before_enqueue() -> None:
        nonlocal counted
        counted = turns

    control.before_enqueue = before_enqueue
    async with trio.open_nursery() as nursery:
        nursery.start_soon(count_turns)
        assert (await post(client, body, "application/x-ndjson")).status_code == 201
    assert counted >= 10_000 / 200
    assert len(control.kept) == 10_000


def test_lines_keep_their_numbers() -> None:
    results = list(parse_lines(b"\n{}\n\n{\n{}"))
    assert [number for number, _ in results] == [2, 4, 5]
    assert isinstance(results[1][1], TaskRefused)


@pytest.mark.parametrize(
    ("value", "at"),
    [
        (None, None),
        (0, None),
        ("0", None),
        ("", None),
        (" ", None),
        (1.5, 1.5),
        ("1.5", 1.5),
        ("1900000000", 1.9e9),
        ("2030-03-17T17:46:40Z", 1.9e9),
        ("2030-03-17T18:46:40.25+01:00", 1900000000.25),
        ("20300317T174640Z", 1.9e9),
    ],
)
def test_times_are_unix_seconds_or_iso_8601(value: float | str | None, at: float | None) -> None:
    assert parse_at(value) == at


@pytest.mark.parametrize(
    ("data", "fields"),
    [
        (b"", []),
        (b"&&", []),
        (b"a", [(b"a", b"")]),
        (b"a=b=c", [(b"a", b"b=c")]),
        (b"a+b=%2B+%zz", [(b"a b", b"+ %zz")]),
        (b"%61=1&b=\xff", [(b"a", b"1"), (b"b", b"\xff")]),
    ],
)
def test_fields_are_bytes(data: bytes, fields: list[tuple[bytes, bytes]]) -> None:
    assert pairs_of(data) == fields


# Looking


async def test_tasks_are_listed_as_asked(client: QuartClient, control: FakeControl) -> None:
    summary = TaskSummary(
        "id-1",
        "default",
        TaskState.RUNNING,
        1700000000.25,
        5,
        1699999999.5,
        attempts=2,
        last_error="exit 3",
        run_seconds=0.5,
        progress=(0.5, "half way"),
        handler="encode",
    )
    control.page = Page([summary], "next")
    response = await get(client, "/api/v1/tasks?spool=default&state=running&q=a%20b&order=desc&limit=7&cursor=c%26")
    wanted = TaskFilter("default", TaskState.RUNNING, q="a b")
    assert control.calls == [("tasks", TaskQuery(wanted, order="desc", limit=7, cursor="c&"))]
    assert await response.get_json() == {
        "tasks": [
            {
                "id": "id-1",
                "spool": "default",
                "state": "running",
                "at": 1700000000.25,
                "priority": 5,
                "enqueued_at": 1699999999.5,
                "attempts": 2,
                "last_error": "exit 3",
                "finished_at": None,
                "run_seconds": 0.5,
                "progress": {"fraction": 0.5, "text": "half way"},
                "handler": "encode",
            }
        ],
        "cursor": "next",
    }


async def test_list_is_short_unless_asked(client: QuartClient, control: FakeControl) -> None:
    await get(client, "/api/v1/tasks")
    await get(client, "/api/v1/tasks?limit=500")
    assert control.calls == [("tasks", TaskQuery()), ("tasks", TaskQuery(limit=500))]


@pytest.mark.parametrize(
    "query",
    [
        "limit=0",
        "limit=501",
        "limit=-1",
        "limit=x",
        "limit=",
        "limit=%C2%B2",
        "limit=9999999999999",
        "order=up",
        "state=gone",
        "stat=ready",
        "state=ready&state=dead",
        "q=%ff",
    ],
)
async def test_bad_query_is_refused(client: QuartClient, control: FakeControl, query: str) -> None:
    await problem(await get(client, f"/api/v1/tasks?{query}"), 400)
    assert control.calls == []


async def test_task_shows_text_as_text_and_bytes_as_base64(client: QuartClient, control: FakeControl) -> None:
    control.add_detail("t", {b"name": "ä".encode(), b"bin": b"\xff\x00", b"k\xff": b""}, b"hello")
    attempt = Attempt(1, "failed", 1700000001.0, 0.75, 0.5, 4711, "encode", "ValueError: x", "Traceback …")
    control.details["t"] = replace(control.details["t"], attempts=[attempt])
    document = await (await get(client, "/api/v1/tasks/t")).get_json()
    assert document["vars"] == {"name": "ä", "bin": {"base64": "/wA="}, "k\\xff": ""}
    assert document["body"] == {"size": 5, "preview": "hello", "truncated": False}
    assert (document["state"], document["at"], document["enqueued_at"]) == ("ready", 1700000000.25, 1699999999.5)
    assert document["history"] == [
        {
            "number": 1,
            "outcome": "failed",
            "started_at": 1700000001.0,
            "queue_seconds": 0.75,
            "run_seconds": 0.5,
            "worker_pid": 4711,
            "handler": "encode",
            "error": "ValueError: x",
            "traceback": "Traceback …",
        }
    ]


@pytest.mark.parametrize(
    ("body", "preview"),
    [
        (b"x" * 5000, "x" * 4096),
        ("ä".encode() * 2047 + "xä".encode() + b"y", "ä" * 2047 + "x"),  # cut in the middle of the last ä
        (b"\xff" * 5000, {"base64": base64.b64encode(b"\xff" * 4096).decode()}),
    ],
)
async def test_task_shows_the_beginning_of_a_large_body(
    client: QuartClient, control: FakeControl, body: bytes, preview: object
) -> None:
    control.add_detail("t", {}, body)
    document = await (await get(client, "/api/v1/tasks/t")).get_json()
    assert document["body"] == {"size": len(body), "preview": preview, "truncated": True}
    assert await (await get(client, "/api/v1/tasks/t/body")).get_data() == body


async def test_body_is_for_download_only(client: QuartClient, control: FakeControl) -> None:
    control.add_detail("t", {}, b"<script>")
    response = await get(client, "/api/v1/tasks/t/body")
    assert response.content_type == "application/octet-stream"
    assert response.headers["Content-Disposition"].startswith("attachment")
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert "sandbox" in response.headers["Content-Security-Policy"]


async def test_finished_task_has_no_vars_and_no_body(client: QuartClient, control: FakeControl) -> None:
    control.add_detail("t", None, None, TaskState.DONE)
    document = await (await get(client, "/api/v1/tasks/t")).get_json()
    assert (document["vars"], document["body"]) == (None, None)
    await problem(await get(client, "/api/v1/tasks/t/body"), 404)


async def test_unknown_task_is_not_found(client: QuartClient) -> None:
    await problem(await get(client, "/api/v1/tasks/nope"), 404)
    await problem(await get(client, "/api/v1/tasks/nope/body"), 404)


async def test_spools_are_shown_with_their_workers(client: QuartClient, control: FakeControl) -> None:
    worker = WorkerStatus(4711, "busy", "t", 1700000000.5, 9, 1699999000.25, is_async=False)
    control.status["default"] = replace(control.status["default"], workers=[worker], finished={"ok": 9})
    document = await (await get(client, "/api/v1/spools")).get_json()
    assert [spool["name"] for spool in document["spools"]] == ["default", "mail"]
    one = await (await get(client, "/api/v1/spools/default")).get_json()
    assert one == document["spools"][0]
    assert one == {
        "name": "default",
        "directory": "/srv/spool",
        "frequency": 30.0,
        "processes": 2,
        "paused": False,
        "durability": "fsync",
        "ready": 3,
        "scheduled": 0,
        "running": 0,
        "retrying": 0,
        "held": 0,
        "dead": 0,
        "oldest_ready_at": None,
        "finished": {"ok": 9},
        "problem": None,
        "configured": {},
        "scanned": True,
        "refusing": None,
        "workers": [
            {
                "pid": 4711,
                "state": "busy",
                "task_id": "t",
                "task_since": 1700000000.5,
                "tasks_done": 9,
                "started_at": 1699999000.25,
                "is_async": False,
            }
        ],
    }
    await problem(await get(client, "/api/v1/spools/nope"), 404)


async def test_health_needs_no_token_and_names_its_problems(client: QuartClient, control: FakeControl) -> None:
    response = await client.get("/healthz")
    assert response.status_code == 200
    assert await response.get_json() == {"ok": True, "problems": []}
    control.state_of_health = Health(False, ["spool default is read-only", "handlers do not import"])
    document = await problem(await client.get("/healthz"), 503)
    assert (document["ok"], document["problems"]) == (False, ["spool default is read-only", "handlers do not import"])


async def test_root_points_to_the_api(client: QuartClient) -> None:
    response = await client.get("/")
    assert response.content_type == "text/plain; charset=utf-8"
    assert "/api/v1" in await response.get_data(as_text=True)


# Changing spools


async def test_patch_changes_what_it_names(client: QuartClient, control: FakeControl) -> None:
    document = await (await patch(client, {"frequency": 5, "paused": True})).get_json()
    assert (document["name"], document["frequency"], document["paused"]) == ("default", 5, True)
    document = await (await patch(client, {"paused": False})).get_json()
    assert (document["frequency"], document["paused"]) == (5, False)
    document = await (await patch(client, {"processes": 3})).get_json()
    assert (document["frequency"], document["processes"]) == (5, 3)
    assert control.calls == [
        ("change_spool", "default", SpoolChange(5, True), OPERATOR),
        ("change_spool", "default", SpoolChange(paused=False), OPERATOR),
        ("change_spool", "default", SpoolChange(processes=3), OPERATOR),
    ]


@pytest.mark.parametrize(
    ("document", "pointers"),
    [
        ({"frequency": 0, "paused": 1, "speed": 2, "a/b~c": 3}, ["/frequency", "/paused", "/speed", "/a~1b~0c"]),
        ({"frequency": True, "paused": True}, ["/frequency"]),
        ({"frequency": "5"}, ["/frequency"]),
        ({"frequency": None}, ["/frequency"]),
        ({"frequency": -1}, ["/frequency"]),
        ({"paused": "yes"}, ["/paused"]),
        ({"paused": True, "processes": 0}, ["/processes"]),
        ({"processes": 1.5}, ["/processes"]),
        ({"processes": 10**400}, ["/processes"]),
    ],
)
async def test_patch_applies_nothing_when_a_member_is_bad(
    client: QuartClient, control: FakeControl, document: object, pointers: list[str]
) -> None:
    answer = await problem(await patch(client, document), 400)
    assert [error["pointer"] for error in answer["errors"]] == pointers
    assert control.calls == []


async def test_patch_that_the_service_refuses_is_answered_with_its_reason(
    client: QuartClient, control: FakeControl
) -> None:
    control.refusal = TaskRefused("processes: an external spool has none")
    assert "external" in (await problem(await patch(client, {"processes": 3}), 400))["detail"]


async def test_patch_of_something_else_is_refused(client: QuartClient, control: FakeControl) -> None:
    await problem(await patch(client, {"paused": True}, "/api/v1/spools/nope"), 404)
    await problem(await patch(client, [1]), 400)
    response = await client.patch("/api/v1/spools/default", data=b"paused=1", headers=AUTHORIZED)
    await problem(response, 415)
    assert response.headers["Accept-Patch"] == "application/json"
    assert [call[:2] for call in control.calls] == [("change_spool", "nope")]


async def test_scan_is_passed_on(client: QuartClient, control: FakeControl) -> None:
    response = await post(client, b"", None, "/api/v1/spools/mail/scan")
    assert response.status_code == 200
    assert (await response.get_json())["name"] == "mail"
    assert control.calls == [("scan", "mail", OPERATOR)]
    await problem(await post(client, b"", None, "/api/v1/spools/nope/scan"), 404)


# Errors


async def test_unknown_address_and_method_are_problems(client: QuartClient) -> None:
    await problem(await get(client, "/api/v1/nope"), 404)
    await problem(await get(client, "/api/v1/tasks/"), 404)
    await problem(await get(client, "/api//v1/tasks"), 404)
    response = await client.delete("/api/v1/spools/default", headers=AUTHORIZED)
    await problem(response, 405)
    assert {"GET", "PATCH"} <= {method.strip() for method in response.headers["Allow"].split(",")}


@pytest.mark.parametrize("crash", [RuntimeError("secret"), ExceptionGroup("x", [ValueError("secret")])])
async def test_crash_is_logged_and_tells_the_client_nothing(
    client: QuartClient, control: FakeControl, crash: Exception
) -> None:
    control.crash = crash
    with structlog.testing.capture_logs() as logs:
        response = await get(client, "/api/v1/spools")
    assert "secret" not in json.dumps(await problem(response, 500))
    [log] = [line for line in logs if line["log_level"] == "error"]
    assert "secret" in repr(log["exc_info"])
    assert log["path"] == "/api/v1/spools"


# Who may


@pytest.mark.parametrize(
    "path", ["/api/v1/tasks", "/api/v1/spools", TASKS, "/api/v1/nope", "/nope", "/healthz/x", "/static/x"]
)
@pytest.mark.parametrize(
    "authorization",
    [None, "", "Bearer", "Bearer ", "Bearer wrong-token-0123456789", f"Basic {TOKEN}", TOKEN, f"Bearer {TOKEN}x"],
)
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS", "BREW"])
async def test_nothing_is_answered_without_a_token(
    client: QuartClient, control: FakeControl, path: str, authorization: str | None, method: str
) -> None:
    headers = {} if authorization is None else {"Authorization": authorization}
    response = await client.open(path, method=method, headers=headers)
    await problem(response, 401)
    assert response.headers["WWW-Authenticate"].startswith("Bearer ")
    assert "Access-Control-Allow-Origin" not in response.headers
    assert control.batches == control.calls == []


@pytest.mark.parametrize(
    ("token", "method", "path", "status"),
    [
        (VIEWER, "GET", "/api/v1/tasks", 200),
        (VIEWER, "GET", "/api/v1/spools/mail", 200),
        (VIEWER, "POST", TASKS, 403),
        (VIEWER, "PATCH", "/api/v1/spools/mail", 403),
        (VIEWER, "POST", "/api/v1/spools/mail/scan", 403),
        (VIEWER, "GET", "/nope", 404),
        (PRODUCER, "POST", TASKS, 201),
        (PRODUCER, "GET", "/api/v1/tasks", 403),
        (PRODUCER, "GET", "/api/v1/tasks/x/body", 403),
        (PRODUCER, "POST", "/api/v1/spools/mail/scan", 403),
        (TOKEN, "POST", TASKS, 201),
        (TOKEN, "GET", "/api/v1/tasks", 200),
        (TOKEN, "POST", "/api/v1/spools/mail/scan", 200),
    ],
)
async def test_role_decides_what_a_token_may(
    client: QuartClient, token: str, method: str, path: str, status: int
) -> None:
    response = await client.open(path, method=method, headers={"Authorization": f"bearer {token}"})
    assert response.status_code == status
    if status == 403:
        assert "insufficient_scope" in response.headers["WWW-Authenticate"]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 201),
        ({"Origin": "http://localhost"}, 201),
        ({"Origin": "https://localhost"}, 201),
        ({"Origin": "http://LOCALHOST", "Sec-Fetch-Site": "same-origin"}, 201),
        ({"Sec-Fetch-Site": "none"}, 201),
        ({"Origin": "http://localhost:3000"}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://["}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site", "Origin": "http://localhost"}, 403),
    ],
)
async def test_pages_of_other_origins_change_nothing(
    client: QuartClient, control: FakeControl, headers: dict[str, str], status: int
) -> None:
    response = await client.post(TASKS, data=b"", headers=AUTHORIZED | headers)
    assert response.status_code == status
    assert len(control.kept) == (status == 201)


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LocalHost:9000", 200),
        ("127.0.0.1:8080", 200),
        ("[::1]:8080", 200),
        ("[::1]", 200),
        ("evil.example", 421),
        ("evil.example:8080", 421),
        ("localhost.evil.example", 421),
        ("127.0.0.1.evil.example:8080", 421),
        ("evil.example:127.0.0.1", 421),
        ("", 421),
    ],
)
async def test_only_names_of_this_machine_are_served_on_loopback(control: FakeControl, host: str, status: int) -> None:
    client = client_of(control, hosts=allowed_hosts("127.0.0.1:8080"))
    for path in ("/healthz", "/api/v1/tasks"):
        response = await client.get(path, headers=AUTHORIZED | {"Host": host})
        assert response.status_code == status


@pytest.mark.parametrize(
    ("bind", "hosts"),
    [
        ("127.0.0.1:8080", {"localhost", "127.0.0.1", "::1"}),
        ("127.1.2.3:8080", {"localhost", "127.0.0.1", "::1", "127.1.2.3"}),
        ("[::1]:0", {"localhost", "127.0.0.1", "::1"}),
        ("localhost:80", {"localhost", "127.0.0.1", "::1"}),
        ("0.0.0.0:80", None),
        (":80", None),
        ("[::]:80", None),
        ("10.0.0.1:80", None),
        ("spool.example:80", None),
        ("unix:/run/admin.sock", None),
    ],
)
def test_hosts_are_restricted_for_loopback_only(bind: str, hosts: set[str] | None) -> None:
    assert allowed_hosts(bind) == hosts
