"""How much of request bodies may be in memory at once."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import pytest
import structlog.testing
import trio

from tests.api_support import TASKS, client_of, get, problem
from tests.api_support import post as post_without_length
from tests.fake_control import FakeControl

if TYPE_CHECKING:
    from quart import Response
    from quart.testing import QuartClient

MIB = 1024 * 1024
LIMITS = {"max_body": 3 * MIB, "max_bodies": 4 * MIB}


async def post(client: QuartClient, body: bytes, content_type: str, path: str = TASKS) -> Response:
    """As every client on a real port, Quart's does not, this one says how long its body is."""
    return await post_without_length(client, body, content_type, path, Content_Length=str(len(body)))


class Gate:
    """A service that keeps a task only when it is told to."""

    def __init__(self) -> None:
        self.control = FakeControl()
        self.control.before_enqueue = self._wait
        self.arrived = trio.Event()
        self.opened = trio.Event()

    async def _wait(self) -> None:
        self.arrived.set()
        await self.opened.wait()


async def test_a_body_that_is_too_much_for_now_is_refused_and_taken_later() -> None:
    gate = Gate()
    client = client_of(gate.control, **LIMITS)
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(post, client, bytes(3 * MIB), "application/octet-stream")
            await gate.arrived.wait()
            refused = await post(client, bytes(2 * MIB), "application/octet-stream")
            assert (await problem(refused, 503))["detail"].endswith(f"{4 * MIB}.")
            assert refused.headers["Retry-After"] == "1"
            # Small ones, and those without a body, are not kept out.
            assert (await get(client, "/api/v1/spools")).status_code == 200
            nursery.start_soon(post, client, bytes(MIB), "application/octet-stream")
            gate.opened.set()
        assert (await post(client, bytes(3 * MIB), "application/octet-stream")).status_code == 201
    assert sorted(len(task.body) for task in gate.control.kept) == [MIB, 3 * MIB, 3 * MIB]


@pytest.mark.parametrize("status", [400, 404, 413, 500])
async def test_what_a_request_had_is_given_back_however_it_ends(status: int) -> None:
    control = FakeControl()
    client = client_of(control, **LIMITS)
    for _ in range(3):
        if status == 400:
            answer = await post(client, bytes(3 * MIB), "application/json")
        elif status == 404:
            answer = await post(client, bytes(3 * MIB), "text/plain", "/api/v1/spools/none/tasks")
        elif status == 413:
            answer = await post(client, bytes(3 * MIB + 1), "text/plain")
        else:
            control.before_enqueue = functools.partial(trio.sleep, "not a number")  # type: ignore[arg-type]
            with structlog.testing.capture_logs():
                answer = await post(client, bytes(3 * MIB), "text/plain")
        await problem(answer, status)
    control.before_enqueue = None
    assert (await post(client, bytes(3 * MIB), "text/plain")).status_code == 201


async def test_a_body_of_unknown_length_counts_as_the_largest() -> None:
    gate = Gate()
    client = client_of(gate.control, **LIMITS)
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(post, client, bytes(2 * MIB), "application/octet-stream")
            await gate.arrived.wait()
            answer = await post_without_length(client, b"x", "text/plain", Transfer_Encoding="chunked")
            await problem(answer, 503)
            gate.opened.set()


async def test_the_largest_body_is_taken_when_nothing_else_is_there() -> None:
    control = FakeControl()
    client = client_of(control, max_body=3 * MIB, max_bodies=MIB)
    assert (await post(client, bytes(3 * MIB), "text/plain")).status_code == 201
