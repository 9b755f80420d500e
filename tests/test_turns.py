"""Who waits before the application, and for whom."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from trispool.admin.turns import PLACES, InTurn

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

WHOLE = {"type": "http.request", "body": b"", "more_body": False}
TOKEN = (b"authorization", b"Bearer x")


class Bench:
    """An application that works on its requests until it is let, and clients that take what they like."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.begun = 0
        self.received: list[Any] = []
        self.work = trio.Event()
        self.clients = trio.Event()
        self._in_turn = InTurn(cast("Any", self._app))
        self._nursery = nursery

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        self.begun += 1
        self.received.append(await receive())
        await self.work.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def ask(self, count: int, *headers: tuple[bytes, bytes], receives: bool = True) -> None:
        async def receive() -> Any:
            if not receives:
                await trio.sleep_forever()
            return WHOLE

        async def send(event: object) -> None:
            await self.clients.wait()

        scope: Any = {"type": "http", "headers": headers}
        for _ in range(count):
            self._nursery.start_soon(self._in_turn, scope, receive, send)
        await wait_all_tasks_blocked()


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    async with trio.open_nursery() as nursery:
        yield Bench(nursery)
        nursery.cancel_scope.cancel()


async def test_few_strangers_are_worked_on_at_once_and_all_who_are_known(bench: Bench) -> None:
    await bench.ask(PLACES + 10)
    assert bench.begun == PLACES
    await bench.ask(20, TOKEN)
    await bench.ask(20, (b"cookie", b"a=b; trispool_session=x"))
    assert bench.begun == PLACES + 40
    await bench.ask(20, (b"cookie", b"a=b"))
    assert bench.begun == PLACES + 40


async def test_who_is_being_answered_keeps_no_place_however_slowly_he_reads(bench: Bench) -> None:
    bench.work.set()
    await bench.ask(PLACES + 10)
    assert bench.begun == PLACES + 10


@pytest.mark.parametrize("header", [(b"content-length", b"5"), (b"transfer-encoding", b"chunked")])
async def test_who_sends_a_body_keeps_no_place(bench: Bench, header: tuple[bytes, bytes]) -> None:
    await bench.ask(PLACES + 10, header)
    assert bench.begun == PLACES + 10
    await bench.ask(PLACES + 10, (b"content-length", b"0"))
    assert bench.begun == 2 * PLACES + 10


async def test_the_application_itself_waits_for_what_is_received(bench: Bench) -> None:
    await bench.ask(1, (b"content-length", b"5"), receives=False)
    assert bench.begun == 1
    assert bench.received == []


async def test_a_place_is_free_again_when_the_application_fails() -> None:
    async def fail(scope: object, receive: object, send: object) -> None:
        raise ValueError("on purpose")

    async def receive() -> Any:
        return WHOLE

    in_turn: Any = InTurn(cast("Any", fail))
    for _ in range(PLACES + 1):
        with trio.fail_after(5), pytest.raises(ValueError, match="on purpose"):
            await in_turn({"type": "http", "headers": []}, receive, None)
