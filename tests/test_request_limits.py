"""Requests that would cost far more than a right one can: refused early, with few words."""

from __future__ import annotations

import json
import time

import pytest

from tests.api_support import API, client_of, get, post, problem
from tests.fake_control import FakeControl
from trispool.admin.faults import MAX_FAULTS

FORM = "application/x-www-form-urlencoded"
JSON = "application/json"
MULTIPART = "multipart/form-data; boundary=b"
MANY = 200_000


def members(count: int) -> bytes:
    return b",".join(b'"k%d":1' % number for number in range(count))


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        (FORM, b"a&" * MANY),
        (JSON, b"{" + members(MANY) + b"}"),
        (JSON, b'{"vars":{' + members(MANY) + b"}}"),
        (JSON, b'{"vars":{"a":[' + b"1," * MANY + b"1]}}"),
        (JSON, b'{"vars":{' + members(MANY // 4) + b"}}"),
        ("application/x-ndjson", b"{}\n{" + members(MANY) + b"}"),
        (FORM, b"a=" + b"%41" * 2_000_000),
        (MULTIPART, b"--b\r\n" + b"A: b\r\n" * MANY * 2 + b"\r\n--b--"),
        (MULTIPART, (b"--b\r\n" + b"A: b\r\n" * 300 + b"\r\n\r\n") * 2000 + b"--b--"),
    ],
)
async def test_more_members_than_a_task_can_have_are_not_even_looked_at(content_type: str, body: bytes) -> None:
    control = FakeControl()
    began = time.process_time()
    response = await post(client_of(control), body, content_type)
    assert time.process_time() - began < 1  # it was 4 s and more, and 50 MB of errors
    assert response.status_code in (400, 413)
    assert len(await response.get_data()) < 1000
    assert not control.batches


async def test_a_long_key_is_not_repeated_as_it_is() -> None:
    document = await problem(await post(client_of(FakeControl()), b'{"' + b"k" * 100_000 + b'":1}', JSON), 400)
    assert len(json.dumps(document)) < 2000


async def test_more_members_than_an_order_can_have_are_not_even_looked_at() -> None:
    body = b'{"action":"cancel","filter":{' + members(MANY) + b"}}"
    document = await problem(await post(client_of(FakeControl()), body, JSON, f"{API}/tasks/bulk"), 413)
    assert "too many members" in document["detail"]


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        (FORM, b"a&" * 1000),
        (JSON, b"{" + members(1000) + b"}"),
        (JSON, b'{"vars":{' + b",".join(b'"k%d":null' % number for number in range(1000)) + b"}}"),
        (JSON, b"{" + b'"vars":{},' * 1000 + b'"at":0}'),
    ],
)
async def test_an_answer_does_not_name_more_faults_than_anybody_reads(content_type: str, body: bytes) -> None:
    document = await problem(await post(client_of(FakeControl()), body, content_type), 400)
    assert 0 < len(document["errors"]) <= MAX_FAULTS


async def test_as_many_unknown_fields_as_fit_into_a_query_are_answered_with_few_words() -> None:
    response = await get(client_of(FakeControl()), f"{API}/tasks?" + "&".join(f"k{number}" for number in range(2000)))
    assert len((await problem(response, 400))["errors"]) == MAX_FAULTS


async def test_what_is_large_and_right_is_kept() -> None:
    control = FakeControl()
    document = {"vars": {f"k{number}": "" for number in range(4000)} | {"urls": ":" * 8000}, "body": "QUJD" * 200_000}
    assert (await post(client_of(control), json.dumps(document), JSON)).status_code == 201
    assert len(control.batches) == 1


@pytest.mark.parametrize("length", [4097, None])
async def test_who_is_not_known_yet_may_not_send_much(length: int | None) -> None:
    client = client_of(FakeControl())
    headers = {"Content-Type": JSON} | ({} if length is None else {"Content-Length": str(length)})
    async with client.request(f"{API}/session", method="POST", headers=headers) as connection:
        if length is None:  # as it is sent in chunks, only what came tells; and its end is not waited for
            await connection.send(b" " * 4097)
        response = await connection.as_response()
    await problem(response, 413)
