"""The listener on real sockets, with an enqueue that remembers. Time is virtual wherever a test is about time."""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import socket
import struct
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import structlog.testing
import trio
import trio.lowlevel
import trio.testing

from tests.listener_support import (
    FakeEnqueue,
    connect_socket,
    connected,
    exactly,
    listening,
    packet,
    unix,
    until_end,
)
from trispool import intake, pollset, room
from trispool.connection import Connection
from trispool.errors import SpoolUnavailable, TaskRefused, TrispoolError
from trispool.listener import serve_listener
from trispool.packet import ANSWER_REFUSED, ANSWER_SPOOLED, PONG, decode_vars, encode_packet
from trispool.settings import ListenSettings
from trispool.task import Accepted, NewTask

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from trispool.listener import Listener

WEB = {"handler": "hello", "HTTP_HOST": "h"}
PING = packet({}, modifier1=100)
LARGE = packet({"CONTENT_LENGTH": "200000"}, bytes(200_000))  # more than one read


@pytest.fixture
def enqueue() -> FakeEnqueue:
    return FakeEnqueue()


@pytest.fixture(params=["tcp", "unix"])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> ListenSettings:
    return ListenSettings(bind="127.0.0.1:0" if request.param == "tcp" else unix(tmp_path))


@pytest.fixture
def tcp() -> ListenSettings:
    return ListenSettings(bind="127.0.0.1:0")


def parsed(answer: bytes) -> tuple[int, dict[str, str], Any]:
    """Status, headers and JSON of an HTTP answer."""
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = dict(line.split(": ") for line in lines)
    assert int(headers["Content-Length"]) == len(body)
    assert first.startswith("HTTP/1.1 ")
    return int(first.split()[1]), headers, json.loads(body)


# Requests and answers


async def test_a_packet_is_kept_and_answered(settings: ListenSettings, enqueue: FakeEnqueue) -> None:
    async with listening(settings, enqueue) as listener:
        with connected(listener) as client:
            await client.send_all(packet({"handler": "hello", "at": "5.5", "priority": "3", "spooler": "mail"}))
            assert await exactly(client, 4) == ANSWER_SPOOLED
    (task,) = enqueue.tasks
    assert decode_vars(task.payload)[b"handler"] == b"hello"
    assert (task.at, task.priority, task.spool, task.body) == (5.5, 3, "mail", b"")


async def test_packets_in_one_write_are_one_call_and_answered_in_turn(
    settings: ListenSettings, enqueue: FakeEnqueue
) -> None:
    sent = [
        packet({"n": "1"}),
        packet({"n": "2", "CONTENT_LENGTH": "4"}, b"body"),
        packet({}, modifier1=100),
        packet({"at": "never"}),
        packet({"n": "3"}),
    ]
    async with listening(settings, enqueue) as listener:
        with connected(listener) as client:
            await client.send_all(b"".join(sent))
            answers = await exactly(client, 20)
    assert answers == ANSWER_SPOOLED + ANSWER_SPOOLED + PONG + ANSWER_REFUSED + ANSWER_SPOOLED
    assert [[task.body for task in call] for call in enqueue.calls] == [[b"", b"body", b""]]


async def test_packets_one_after_another_are_all_answered(settings: ListenSettings, enqueue: FakeEnqueue) -> None:
    async with listening(settings, enqueue) as listener:
        with connected(listener) as client:
            for _ in range(5):
                await client.send_all(packet())
                assert await exactly(client, 4) == ANSWER_SPOOLED
            assert listener.statistics().open == 1
    assert len(enqueue.tasks) == 5


async def test_what_is_left_of_an_answer_follows_and_nothing_comes_twice(
    settings: ListenSettings, enqueue: FakeEnqueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, cut = Connection.send, [True]

    def send(self: Connection, data: bytes) -> bool:
        if not cut or not cut.pop():
            return real(self, data)
        real(self, data[:1])
        self.unsent = data[1:]
        return False

    monkeypatch.setattr(Connection, "send", send)
    async with listening(settings, enqueue) as listener:
        with connected(listener) as client:
            await client.send_all(packet({"n": "1"}) + packet({"n": "2"}))
            await client.send_eof()
            assert await until_end(client) == 2 * ANSWER_SPOOLED
    assert not cut


async def test_a_packet_that_comes_byte_by_byte_is_kept(settings: ListenSettings, enqueue: FakeEnqueue) -> None:
    async with listening(settings, enqueue) as listener:
        with connected(listener) as client:
            for byte in packet({"n": "1", "CONTENT_LENGTH": "3"}, b"xyz"):
                await client.send_all(bytes([byte]))
                await trio.testing.wait_all_tasks_blocked()
            assert await exactly(client, 4) == ANSWER_SPOOLED
    assert [task.body for task in enqueue.tasks] == [b"xyz"]


async def test_a_large_body_arrives_whole(settings: ListenSettings, enqueue: FakeEnqueue) -> None:
    body = random.Random(1).randbytes(3_000_000)
    async with listening(settings, enqueue) as listener:
        with connected(listener) as client:
            await client.send_all(packet({"HTTP_CONTENT_LENGTH": str(len(body))}, body) + packet())
            status, _, answer = parsed(await until_end(client))
    assert (status, answer) == (202, {"id": "task-0", "spool": "default", "at": None})
    assert [task.body for task in enqueue.tasks] == [body]


async def test_a_half_closed_client_gets_its_answers(settings: ListenSettings, enqueue: FakeEnqueue) -> None:
    enqueue.gate = trio.Event()
    async with listening(settings, enqueue) as listener:
        with connected(listener) as client:
            await client.send_all(packet() + packet())
            await client.send_eof()
            await enqueue.wait_for_tasks(2)
            enqueue.gate.set()
            assert await until_end(client) == ANSWER_SPOOLED * 2
        await _until_closed(listener)


async def test_a_half_closed_client_is_refused_when_its_packet_is_incomplete(
    settings: ListenSettings, enqueue: FakeEnqueue
) -> None:
    async with listening(settings, enqueue) as listener:
        with connected(listener) as client:
            await client.send_all(packet()[:-1])
            await client.send_eof()
            assert await until_end(client) == ANSWER_REFUSED
        assert listener.statistics().refused == {"incomplete": 1}
    assert enqueue.tasks == []


async def test_tasks_are_kept_when_the_client_has_gone_before_the_answer(
    settings: ListenSettings, enqueue: FakeEnqueue
) -> None:
    enqueue.gate = trio.Event()
    async with listening(settings, enqueue) as listener:
        for number in range(20):
            client = connect_socket(listener, packet({"n": str(number)}) + packet({"n": "again"}))
            if client.family == socket.AF_INET and number % 2:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                await enqueue.wait_for_tasks(2 * number + 2)  # a reset may overtake data that nobody has read
            client.close()
        await enqueue.wait_for_tasks(40)
        enqueue.gate.set()
        await _until_closed(listener)
        assert listener.statistics().spooled == 40


async def test_more_packets_than_a_turn_takes_are_kept_when_the_client_has_gone(
    settings: ListenSettings, enqueue: FakeEnqueue
) -> None:
    async with listening(settings, enqueue) as listener:
        with connect_socket(listener, packet({}) * 1000):
            pass
        await enqueue.wait_for_tasks(1000)
        await _until_closed(listener)
    assert max(len(call) for call in enqueue.calls) <= intake.TURN_REQUESTS


async def test_requests_of_many_clients_at_once_are_one_call(
    settings: ListenSettings, enqueue: FakeEnqueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pollset, "LOOK_SECONDS", 60)
    async with listening(settings, enqueue) as listener:
        with contextlib.ExitStack() as stack:
            # Without an await: the listener sees all of them in its next look.
            clients = [stack.enter_context(connected(listener, packet())) for _ in range(40)]
            assert [await exactly(client, 4) for client in clients] == [ANSWER_SPOOLED] * 40
    assert len(enqueue.calls) == 1


async def test_the_next_burst_is_read_while_one_waits_for_its_commit(
    settings: ListenSettings, enqueue: FakeEnqueue
) -> None:
    enqueue.gate = trio.Event()
    async with listening(settings, enqueue) as listener:
        with connected(listener) as first, connected(listener) as second:
            await first.send_all(packet())
            await enqueue.wait_for_tasks(1)
            await second.send_all(packet())
            await enqueue.wait_for_tasks(2)
            assert len(enqueue.calls) == 2
            enqueue.gate.set()
            assert await exactly(first, 4) == await exactly(second, 4) == ANSWER_SPOOLED


async def test_no_more_is_read_when_too_many_bursts_wait(
    settings: ListenSettings, enqueue: FakeEnqueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trispool.listener.MAX_BURSTS", 2)
    monkeypatch.setattr("trispool.listener.GIVE_WAY_SECONDS", 0)
    enqueue.gate = trio.Event()
    async with listening(settings, enqueue) as listener:
        with contextlib.ExitStack() as stack:
            clients = []
            for _ in range(4):
                clients.append(stack.enter_context(connected(listener, packet())))
                await trio.testing.wait_all_tasks_blocked()
            assert len(enqueue.calls) == 2
            enqueue.gate.set()
            assert [await exactly(client, 4) for client in clients] == [ANSWER_SPOOLED] * 4


# What enqueue says


async def test_each_task_has_its_own_result(settings: ListenSettings, enqueue: FakeEnqueue) -> None:
    def verdict(task: NewTask) -> Accepted | TrispoolError:
        return {
            b"good": Accepted("id", "default"),
            b"full": SpoolUnavailable("disk full"),
            b"lost": TaskRefused("no such spool", status=404),
        }[decode_vars(task.payload)[b"n"]]

    enqueue.verdict = verdict
    async with listening(settings, enqueue) as listener:
        with connected(listener) as client:
            await client.send_all(b"".join(packet({"n": name}) for name in ("full", "good", "lost", "good")))
            assert await exactly(client, 16) == (ANSWER_REFUSED + ANSWER_SPOOLED) * 2
        statistics = listener.statistics()
    assert statistics.refused == {"unavailable": 1, "no_spool": 1}
    assert (statistics.requests, statistics.spooled) == (4, 2)


async def test_a_flood_of_refused_tasks_lets_others_have_their_turn(settings: ListenSettings) -> None:
    async def refuse(tasks: Sequence[NewTask]) -> list[TrispoolError]:
        return [TaskRefused("no")] * len(tasks)  # without any checkpoint

    turns: list[int] = []

    async def count() -> None:
        while True:
            turns.append(1)
            await trio.lowlevel.checkpoint()

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            listener = await nursery.start(serve_listener, settings, refuse)
            with contextlib.ExitStack() as stack:
                clients = [stack.enter_context(connected(listener, packet() * 400)) for _ in range(20)]
                nursery.start_soon(count)
                for client in clients:
                    await exactly(client, 4 * 400)
            assert len(turns) > 20
            nursery.cancel_scope.cancel()


async def test_a_listener_that_is_always_busy_can_be_stopped(settings: ListenSettings) -> None:
    kept = 0

    async def keep(tasks: Sequence[NewTask]) -> list[Accepted]:
        nonlocal kept
        kept += len(tasks)
        with trio.CancelScope(shield=True):
            await trio.lowlevel.checkpoint()
        return [Accepted("x", "default", None)] * len(tasks)

    async def flood(listener: Listener) -> None:
        with contextlib.suppress(trio.BrokenResourceError, AssertionError), connected(listener) as client:
            while kept < 100_000:
                await client.send_all(packet() * 100)
                await exactly(client, 4 * 100)

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            async with trio.open_nursery() as serving:
                listener = await serving.start(serve_listener, settings, keep)
                for _ in range(30):
                    nursery.start_soon(flood, listener)
                while kept < 5_000:
                    await trio.lowlevel.checkpoint()
                serving.cancel_scope.cancel()
            at_stop = kept
            nursery.cancel_scope.cancel()
    assert at_stop < 50_000


async def test_a_burst_is_refused_when_enqueue_refuses_it_as_a_whole(
    settings: ListenSettings, enqueue: FakeEnqueue
) -> None:
    enqueue.error = SpoolUnavailable("stopping")
    async with listening(settings, enqueue) as listener:
        with connected(listener) as client, connected(listener) as browser:
            await client.send_all(packet() + packet())
            assert await exactly(client, 8) == ANSWER_REFUSED * 2
            await browser.send_all(packet(WEB))
            status, _, problem = parsed(await until_end(browser))
            assert (status, problem) == (503, {"title": "Service Unavailable", "detail": "stopping"})


async def test_an_unexpected_error_of_enqueue_ends_the_listener(settings: ListenSettings, enqueue: FakeEnqueue) -> None:
    enqueue.error = ZeroDivisionError()
    with pytest.RaisesGroup(pytest.RaisesGroup(ZeroDivisionError)):
        async with listening(settings, enqueue) as listener:
            with connected(listener) as client:
                await client.send_all(packet())
                assert await until_end(client) == b""
                await trio.sleep_forever()


# Web servers


@pytest.mark.parametrize(
    ("reply", "vars", "http"),
    [
        ("auto", {"handler": "hello"}, False),
        ("auto", {"REQUEST_METHOD": "GET"}, True),
        ("auto", {"SERVER_PROTOCOL": "HTTP/1.1"}, True),
        ("auto", {"HTTP_HOST": "h"}, True),
        ("uwsgi", {"HTTP_HOST": "h", "REQUEST_METHOD": "GET"}, False),
        ("http", {"handler": "hello"}, True),
    ],
)
async def test_the_answer_is_what_reply_and_packet_ask_for(
    tcp: ListenSettings, enqueue: FakeEnqueue, reply: str, vars: dict[str, str], http: bool
) -> None:
    async with listening(replace(tcp, reply=reply), enqueue) as listener:
        with connected(listener) as client:
            await client.send_all(packet(vars | {"at": "7"}))
            await client.send_eof()
            answer = await until_end(client)
    if http:
        status, headers, body = parsed(answer)
        assert (status, body) == (202, {"id": "task-0", "spool": "default", "at": 7.0})
        assert headers["Content-Type"] == "application/json"
    else:
        assert answer == ANSWER_SPOOLED


@pytest.mark.parametrize(
    ("sent", "status", "words"),
    [
        (packet(WEB | {"at": "soon"}), 400, "at=b'soon'"),
        (packet(WEB | {"CONTENT_LENGTH": "x"}), 400, "CONTENT_LENGTH"),
        (packet(WEB | {"CONTENT_LENGTH": "2000"}), 413, "2000 bytes, at most 1000"),
        (packet(WEB | {"big": "x" * 600}), 413, "at most 500"),
        (packet(WEB | {"HTTP_TRANSFER_ENCODING": "chunked"}, b"5\r\nhello\r\n"), 411, "CONTENT_LENGTH"),
        (packet(WEB, b"a body that nothing announces"), 411, "bytes follow"),
        (packet(WEB, modifier1=0), 400, "modifier1 is 0, accepted here: 17"),
    ],
)
async def test_a_web_server_is_told_what_is_wrong(
    settings: ListenSettings, enqueue: FakeEnqueue, sent: bytes, status: int, words: str
) -> None:
    async with listening(replace(settings, max_body=1000, max_packet=500), enqueue) as listener:
        with connected(listener) as client:
            await client.send_all(sent)
            answer = parsed(await until_end(client))
        assert answer[0] == status
        assert words in answer[2]["detail"]
        assert set(answer[2]) == {"title", "detail"}
        assert answer[1]["Content-Type"] == "application/problem+json"
        assert sum(listener.statistics().refused.values()) == 1
    assert enqueue.tasks == []


async def test_an_answer_survives_the_body_that_it_refuses(settings: ListenSettings, enqueue: FakeEnqueue) -> None:
    async with listening(replace(settings, max_body=1000), enqueue) as listener:
        with connected(listener) as client:
            await client.send_all(packet(WEB | {"CONTENT_LENGTH": "5000000"}, bytes(5_000_000)))
            assert parsed(await until_end(client))[0] == 413
            assert listener.statistics().held == 0
        with connected(listener) as client:
            await client.send_all(packet({"CONTENT_LENGTH": "5000000"}, bytes(5_000_000)))
            assert await until_end(client) == ANSWER_REFUSED
        await _until_closed(listener)
    assert enqueue.tasks == []


# Modifiers


async def test_a_ping_is_answered_whatever_the_reply(settings: ListenSettings, enqueue: FakeEnqueue) -> None:
    for reply in ("auto", "uwsgi", "http"):
        async with listening(replace(settings, reply=reply), enqueue) as listener:
            with connected(listener) as client:
                await client.send_all(b"\x64\x00\x00\x00")
                assert await exactly(client, 4) == PONG
                await client.send_all(b"\x64\x05\x00\x00hello" + b"\x64\x00\x00\x00")
                assert await exactly(client, 8) == PONG * 2


async def test_a_foreign_modifier_is_refused_and_logged(settings: ListenSettings, enqueue: FakeEnqueue) -> None:
    with structlog.testing.capture_logs() as logs:
        async with listening(settings, enqueue) as listener:
            for sent in (packet(modifier1=5), packet(modifier1=0), b"GET / HTTP/1.1\r\n\r\n", b"\x05"):
                with connected(listener) as client:
                    await client.send_all(sent)
                    assert await until_end(client) == ANSWER_REFUSED
            assert listener.statistics().refused == {"modifier": 4}
    (line,) = [log for log in logs if log["event"] == "refused"]
    assert (line["reason"], line["log_level"]) == ("modifier", "warning")
    assert "modifier1 is 5" in line["detail"]


async def test_other_modifiers_are_kept_when_they_are_accepted(tcp: ListenSettings, enqueue: FakeEnqueue) -> None:
    async with listening(replace(tcp, accept_modifiers=(0, 17)), enqueue) as listener:
        with connected(listener) as client:
            await client.send_all(packet(modifier1=0) + packet(modifier1=17))
            assert await exactly(client, 8) == ANSWER_SPOOLED * 2


async def test_logging_is_limited_by_reason(
    settings: ListenSettings, enqueue: FakeEnqueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    with structlog.testing.capture_logs() as logs:
        async with listening(settings, enqueue) as listener:
            with connected(listener) as client:
                await client.send_all(packet({"at": "x"}) * 50)
                assert await exactly(client, 200) == ANSWER_REFUSED * 50
                now += intake.COMPLAINT_SECONDS
                await client.send_all(packet({"at": "x"}))
                assert await exactly(client, 4) == ANSWER_REFUSED
    assert [log["unlogged_before"] for log in logs if log["event"] == "refused"] == [0, 49]


# Bad clients


async def test_garbage_disturbs_nobody_else(settings: ListenSettings, enqueue: FakeEnqueue) -> None:
    chance = random.Random(7)
    async with listening(settings, enqueue) as listener:
        with connected(listener) as good:
            for number in range(150):
                noise = chance.randbytes(chance.choice([1, 3, 4, 5, 60, 3000]))
                if number % 3 == 0:
                    noise = b"\x11" + noise
                with connect_socket(listener, noise):
                    if number % 10 == 0:
                        await good.send_all(packet())
                        assert await exactly(good, 4) == ANSWER_SPOOLED
            await trio.testing.wait_all_tasks_blocked()
            await _until_open(listener, 1)
            await good.send_all(packet())
            assert await exactly(good, 4) == ANSWER_SPOOLED
    assert {task.payload for task in enqueue.tasks} >= {packet()[4:]}


async def test_a_client_that_floods_has_the_others_served_in_between(
    settings: ListenSettings, enqueue: FakeEnqueue
) -> None:
    async with listening(settings, enqueue) as listener:
        with connected(listener, packet({"n": "flood"}) * 2000), connected(listener) as other:
            await enqueue.wait_for_tasks(1)
            await other.send_all(packet({"n": "other"}))
            assert await exactly(other, 4) == ANSWER_SPOOLED
            await enqueue.wait_for_tasks(2001)
    names = [decode_vars(task.payload)[b"n"] for task in enqueue.tasks]
    assert names.index(b"other") <= 3 * intake.TURN_REQUESTS


async def test_one_with_a_single_task_goes_before_all_that_flood(
    settings: ListenSettings, enqueue: FakeEnqueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake, "TURN_REQUESTS", 1)
    monkeypatch.setattr(pollset, "LOOK_SECONDS", 0)
    floods = 50
    names: list[bytes] = []
    async with listening(settings, enqueue) as listener:
        with contextlib.ExitStack() as stack:

            def verdict(task: NewTask) -> Accepted:
                names.append(decode_vars(task.payload)[b"n"])
                if len(names) == 3 * floods:  # all others have had a turn, and wait for their next one
                    stack.enter_context(connect_socket(listener, packet({"n": "single"})))
                return Accepted("id", "default", None)

            enqueue.verdict = verdict
            for _ in range(floods):
                stack.enter_context(connect_socket(listener, packet({"n": "flood"}) * 5))
            await enqueue.wait_for_tasks(5 * floods + 1)
            await trio.testing.wait_all_tasks_blocked()
    assert names.count(b"flood") == 5 * floods
    assert names.index(b"single") <= 3 * floods + 5


async def test_a_client_that_does_not_read_its_answers_is_closed_and_disturbs_nobody(
    tmp_path: Path, enqueue: FakeEnqueue, mock_clock: trio.testing.MockClock
) -> None:
    async with listening(ListenSettings(bind=unix(tmp_path), timeout=5), enqueue) as listener:
        with connect_socket(listener) as deaf, connected(listener) as other:
            deaf.setblocking(False)
            while True:  # until nothing more goes in: its answers fill its own buffer, then it is read no more
                try:
                    deaf.send(packet({}, modifier1=100) * 1000)
                except BlockingIOError:
                    requests = listener.statistics().requests
                    await trio.testing.wait_all_tasks_blocked()
                    if listener.statistics().requests == requests:
                        break
            await other.send_all(packet())
            assert await exactly(other, 4) == ANSWER_SPOOLED
            mock_clock.jump(5)
            await trio.testing.wait_all_tasks_blocked()
            assert listener.statistics().timeouts == 1


async def test_a_slow_reader_gets_all_its_answers(tmp_path: Path, enqueue: FakeEnqueue) -> None:
    async with listening(ListenSettings(bind=unix(tmp_path)), enqueue) as listener:
        with connected(listener) as client:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(client.send_all, packet({}, modifier1=100) * 200_000)
                await trio.testing.wait_all_tasks_blocked()
                assert await exactly(client, 800_000) == PONG * 200_000


async def test_a_silent_client_is_closed_after_the_timeout(
    tmp_path: Path, enqueue: FakeEnqueue, mock_clock: trio.testing.MockClock
) -> None:
    async with listening(ListenSettings(bind=unix(tmp_path), timeout=5), enqueue) as listener:
        with connected(listener) as silent, connected(listener) as begun:
            await begun.send_all(packet()[:3])
            await trio.testing.wait_all_tasks_blocked()
            mock_clock.jump(4.99)
            await trio.testing.wait_all_tasks_blocked()
            assert listener.statistics().open == 2
            mock_clock.jump(0.01)
            assert await until_end(silent) == b""
            assert await until_end(begun) == ANSWER_REFUSED
            statistics = listener.statistics()
            assert (statistics.open, statistics.timeouts, statistics.refused) == (0, 2, {"timeout": 1})


async def test_a_silent_client_is_closed_though_an_older_one_is_busy(
    tmp_path: Path, enqueue: FakeEnqueue, mock_clock: trio.testing.MockClock
) -> None:
    async with listening(ListenSettings(bind=unix(tmp_path), timeout=5), enqueue) as listener:
        with connected(listener) as busy, connected(listener) as silent:
            await trio.testing.wait_all_tasks_blocked()
            for _ in range(5):
                mock_clock.jump(1)
                await busy.send_all(packet())
                assert await exactly(busy, 4) == ANSWER_SPOOLED
            assert await until_end(silent) == b""
            await busy.send_all(packet())
            assert await exactly(busy, 4) == ANSWER_SPOOLED


async def test_a_connection_that_is_quiet_after_its_answer_is_closed_without_blame(
    tmp_path: Path, enqueue: FakeEnqueue, mock_clock: trio.testing.MockClock
) -> None:
    async with listening(ListenSettings(bind=unix(tmp_path), timeout=5), enqueue) as listener:
        with connected(listener) as client:
            await client.send_all(packet())
            assert await exactly(client, 4) == ANSWER_SPOOLED
            mock_clock.jump(5)
            assert await until_end(client) == b""
            assert listener.statistics().timeouts == 0


async def test_progress_gives_more_time_but_not_for_ever(
    tmp_path: Path, enqueue: FakeEnqueue, mock_clock: trio.testing.MockClock
) -> None:
    async with listening(ListenSettings(bind=unix(tmp_path), timeout=5), enqueue) as listener:
        with connected(listener) as client:
            await trio.testing.wait_all_tasks_blocked()
            seconds = 0
            for byte in packet({"k": "v" * 100}):
                try:
                    await client.send_all(bytes([byte]))
                except trio.BrokenResourceError:
                    break
                await trio.testing.wait_all_tasks_blocked()
                mock_clock.jump(4)
                seconds += 4
                await trio.testing.wait_all_tasks_blocked()
            assert await until_end(client) == ANSWER_REFUSED
            assert listener.statistics().refused == {"timeout": 1}
    # Four times the timeout, and at most one interval of the client later.
    assert 20 <= seconds <= 28
    assert enqueue.tasks == []


async def test_a_commit_that_takes_long_is_no_fault_of_the_client(
    tmp_path: Path, enqueue: FakeEnqueue, mock_clock: trio.testing.MockClock
) -> None:
    enqueue.gate = trio.Event()
    async with listening(ListenSettings(bind=unix(tmp_path), timeout=5), enqueue) as listener:
        with connected(listener) as client:
            await client.send_all(packet())
            await enqueue.wait_for_tasks(1)
            for _ in range(10):
                mock_clock.jump(5)
                await trio.testing.wait_all_tasks_blocked()
            enqueue.gate.set()
            assert await exactly(client, 4) == ANSWER_SPOOLED


async def test_what_was_not_read_because_commits_take_long_does_not_time_out(
    tmp_path: Path, enqueue: FakeEnqueue, mock_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trispool.listener.MAX_BURSTS", 1)
    enqueue.gate = trio.Event()
    async with listening(ListenSettings(bind=unix(tmp_path), timeout=5), enqueue) as listener:
        with connected(listener) as first, connected(listener) as second:
            await trio.testing.wait_all_tasks_blocked()
            await first.send_all(packet())
            await enqueue.wait_for_tasks(1)
            await second.send_all(packet())
            for _ in range(3):
                await trio.testing.wait_all_tasks_blocked()
                mock_clock.jump(5)
            await trio.testing.wait_all_tasks_blocked()
            assert len(enqueue.tasks) == 1
            enqueue.gate.set()
            assert await exactly(first, 4) == await exactly(second, 4) == ANSWER_SPOOLED


async def test_everybody_is_served_when_a_look_has_time_for_one_only(
    settings: ListenSettings, enqueue: FakeEnqueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pollset, "LOOK_SECONDS", 0)
    async with listening(settings, enqueue) as listener:
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(connected(listener, packet())) for _ in range(10)]
            for client in clients:
                assert await exactly(client, 4) == ANSWER_SPOOLED
            for client in clients:
                await client.send_all(packet() * 2)
            for client in clients:
                assert await exactly(client, 8) == ANSWER_SPOOLED * 2
            for client in clients:
                await client.send_all(packet(modifier1=100))
            for client in clients:
                assert await exactly(client, 4) == PONG
    assert len(enqueue.tasks) == 30
    assert max(len(call) for call in enqueue.calls) <= 2


async def test_memory_for_incomplete_requests_is_bounded(
    tmp_path: Path, enqueue: FakeEnqueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "HELD_BYTES", 1_000_000)
    async with listening(ListenSettings(bind=unix(tmp_path), max_body=250_000), enqueue) as listener:
        head = packet(WEB | {"CONTENT_LENGTH": "250000"})
        with contextlib.ExitStack() as stack:
            first, *others = clients = [stack.enter_context(connected(listener)) for _ in range(5)]
            for client in clients:
                await client.send_all(head + bytes(240_000))
                await trio.testing.wait_all_tasks_blocked()
            assert listener.statistics().refused == {"memory": 1}
            assert 900_000 < listener.statistics().held <= 1_000_000
            assert parsed(await until_end(first))[0] == 503
            for client in others:
                await client.send_all(bytes(10_000))
                assert parsed(await until_end(client))[0] == 202
            assert listener.statistics().held == 0
    assert len(enqueue.tasks) == 4


async def test_memory_is_bounded_for_all_listeners_and_who_holds_most_pays(
    tmp_path: Path, enqueue: FakeEnqueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "HELD_BYTES", 1_000_000)
    settings = ListenSettings(bind=unix(tmp_path), max_body=250_000)
    shared = room.Room(settings.max_body)
    head = packet({"CONTENT_LENGTH": "250000"})
    async with (
        listening(settings, enqueue, shared) as greedy,
        listening(replace(settings, bind="127.0.0.1:0"), enqueue, shared) as modest,
    ):
        with contextlib.ExitStack() as stack:
            first, *others = clients = [stack.enter_context(connected(greedy)) for _ in range(4)]
            for client in clients:
                await client.send_all(head + bytes(240_000))
                await trio.testing.wait_all_tasks_blocked()
            late = stack.enter_context(connected(modest, head))
            await late.send_all(bytes(240_000))
            assert await until_end(first) == ANSWER_REFUSED
            await late.send_all(bytes(10_000))
            assert await exactly(late, 4) == ANSWER_SPOOLED
            for client in others:
                await client.send_all(bytes(10_000))
                assert await exactly(client, 4) == ANSWER_SPOOLED
        assert (greedy.statistics().refused, modest.statistics().refused) == ({"memory": 1}, {})
        assert (shared.held, shared.under_way) == (0, 0)


async def test_large_requests_wait_while_much_is_being_kept_and_small_ones_do_not(
    settings: ListenSettings, tmp_path: Path, enqueue: FakeEnqueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "UNDER_WAY_BYTES", 300_000)
    large = packet({"n": "x" * 60_000, "CONTENT_LENGTH": "200000"}, bytes(200_000))
    shared = room.Room(settings.max_body)
    enqueue.gate = gate = trio.Event()
    (tmp_path / "another").mkdir()
    async with (
        listening(settings, enqueue, shared) as listener,
        listening(ListenSettings(bind=unix(tmp_path / "another")), enqueue, shared) as another,
        trio.open_nursery() as nursery,
    ):

        async def ask(which: Listener, data: bytes) -> None:
            with connected(which) as client:
                await client.send_all(data)
                assert await exactly(client, 4) == ANSWER_SPOOLED

        for which in (listener, another) * 5:
            nursery.start_soon(ask, which, large)
        await enqueue.wait_for_tasks(2)
        for which in (listener, another):
            nursery.start_soon(ask, which, packet())
        await enqueue.wait_for_tasks(4)
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert sorted(len(task.body) for task in enqueue.tasks) == [0, 0, 200_000, 200_000]
        enqueue.gate = None
        gate.set()
    assert len(enqueue.tasks) == 12
    assert (shared.held, shared.under_way) == (0, 0)


async def test_a_request_that_waits_for_others_to_be_kept_is_not_slow(
    tmp_path: Path, enqueue: FakeEnqueue, mock_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "UNDER_WAY_BYTES", 1)
    enqueue.gate = trio.Event()
    async with listening(ListenSettings(bind=unix(tmp_path), timeout=5), enqueue) as listener:
        with connected(listener) as first:
            await first.send_all(LARGE)
            await enqueue.wait_for_tasks(1)
            with connected(listener) as second:
                await second.send_all(LARGE[:150_000])
                for _ in range(10):
                    await trio.testing.wait_all_tasks_blocked()
                    mock_clock.jump(5)
                await trio.testing.wait_all_tasks_blocked()
                assert 0 < listener.statistics().held < 5000
                enqueue.gate.set()
                assert await exactly(first, 4) == ANSWER_SPOOLED
                await second.send_all(LARGE[150_000:])
                assert await exactly(second, 4) == ANSWER_SPOOLED


async def test_large_requests_have_their_turn_however_many_small_ones_are_being_kept(
    settings: ListenSettings, enqueue: FakeEnqueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "UNDER_WAY_BYTES", 1)
    enqueue.gate = trio.Event()
    async with listening(settings, enqueue) as listener:
        with connected(listener, packet()) as small:
            await enqueue.wait_for_tasks(1)
            with connected(listener) as first, connected(listener) as second:
                await first.send_all(LARGE)
                await enqueue.wait_for_tasks(2)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(second.send_all, LARGE)
                    await trio.testing.wait_all_tasks_blocked(0.01)
                    assert len(enqueue.tasks) == 2  # one at a time
                    enqueue.gate.set()
                assert [await exactly(client, 4) for client in (small, first, second)] == [ANSWER_SPOOLED] * 3


@pytest.mark.parametrize("alone_bytes", [30_000, pollset.ALONE_BYTES])
async def test_small_and_large_requests_wait_only_for_their_own_kind(
    settings: ListenSettings, enqueue: FakeEnqueue, monkeypatch: pytest.MonkeyPatch, alone_bytes: int
) -> None:
    monkeypatch.setattr(pollset, "ALONE_BYTES", alone_bytes)
    monkeypatch.setattr(pollset, "LOOK_SECONDS", 0)
    head, rest = packet({"CONTENT_LENGTH": "30000"}, bytes(1000)), bytes(29_000)
    async with listening(settings, enqueue) as listener:
        with contextlib.ExitStack() as stack:
            large = [stack.enter_context(connect_socket(listener, head)) for _ in range(20)]
            await trio.testing.wait_all_tasks_blocked(0.01)
            # Without an await: the listener sees all of them in its next look.
            for client in large:
                client.sendall(rest)
            for _ in range(20):
                stack.enter_context(connect_socket(listener, packet()))
            await enqueue.wait_for_tasks(40)
    is_large = [len(task.body) > 0 for task in enqueue.tasks]
    assert sum(is_large[:10]) in range(3, 7)
    assert sum(is_large[:30]) in range(9, 18)


def break_off(client: socket.socket) -> None:
    """Be gone at once, whatever has not been read."""
    if client.family == socket.AF_INET:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


async def test_a_large_request_that_cannot_become_whole_is_dropped_while_it_waits(
    settings: ListenSettings, enqueue: FakeEnqueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "UNDER_WAY_BYTES", 1)
    enqueue.gate = trio.Event()
    async with listening(settings, enqueue) as listener:
        with connected(listener) as first:
            await first.send_all(LARGE)
            await enqueue.wait_for_tasks(1)
            gone = connect_socket(listener, LARGE[:50_000])
            ended = connect_socket(listener, LARGE[:50_000])
            with ended:
                await trio.testing.wait_all_tasks_blocked(0.01)
                assert listener.statistics().open == 3
                break_off(gone)
                ended.shutdown(socket.SHUT_WR)
                await _until_open(listener, 1)
                assert ended.recv(4) == ANSWER_REFUSED
            assert listener.statistics().refused == {"incomplete": 2}
            # That it has ended may be known before it waits.
            break_off(connect_socket(listener, LARGE[:50_000]))
            await trio.testing.wait_all_tasks_blocked(0.01)
            await _until_open(listener, 1)
            enqueue.gate.set()
            assert await exactly(first, 4) == ANSWER_SPOOLED


@pytest.mark.parametrize("is_full", [True, False])
async def test_a_large_request_whose_client_has_gone_is_kept_if_nobody_needs_its_place(
    settings: ListenSettings, enqueue: FakeEnqueue, monkeypatch: pytest.MonkeyPatch, is_full: bool
) -> None:
    monkeypatch.setattr(room, "UNDER_WAY_BYTES", 1)
    enqueue.gate = trio.Event()
    async with listening(replace(settings, max_connections=2), enqueue) as listener:
        with connected(listener) as first:
            await first.send_all(LARGE)
            await enqueue.wait_for_tasks(1)
            gone = connect_socket(listener, packet({"CONTENT_LENGTH": "30000"}, bytes(30_000)))
            await trio.testing.wait_all_tasks_blocked(0.01)
            break_off(gone)
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert listener.statistics().open == 2
            if is_full:
                with connected(listener, packet()) as small:
                    await enqueue.wait_for_tasks(2)
                    enqueue.gate.set()
                    assert await exactly(small, 4) == ANSWER_SPOOLED
                assert listener.statistics().refused == {"connections": 1}
            enqueue.gate.set()
            await enqueue.wait_for_tasks(2)
            assert await exactly(first, 4) == ANSWER_SPOOLED
    assert [len(task.body) for task in enqueue.tasks] == [200_000, 0 if is_full else 30_000]


async def test_much_is_not_searched_for_what_a_look_at_its_vars_tells(
    settings: ListenSettings, enqueue: FakeEnqueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched: list[int] = []

    def is_plain(payload: bytes) -> bool:
        searched.append(len(payload))
        return True

    monkeypatch.setattr(intake, "is_plain", is_plain)
    async with listening(settings, enqueue) as listener:
        for sent in (packet({"n": "x" * 60_000}), packet({"CONTENT_LENGTH": "5"}, b"bytes")):
            with connected(listener, sent) as client:
                assert await exactly(client, 4) == ANSWER_SPOOLED
    assert searched == []


async def test_nobody_waits_for_a_very_large_request(
    settings: ListenSettings, enqueue: FakeEnqueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pollset, "ALONE_BYTES", 30_000)
    monkeypatch.setattr(pollset, "LOOK_SECONDS", 60)
    head = packet({"CONTENT_LENGTH": "60000"}, bytes(1000))
    async with listening(settings, enqueue) as listener:
        with contextlib.ExitStack() as stack:
            sockets = [stack.enter_context(connect_socket(listener, data)) for data in (head, head, b"\x11", head)]
            await trio.testing.wait_all_tasks_blocked(0.01)
            # Without an await: the listener sees all of them in its next look.
            for client, data in zip(sockets, (bytes(59_000), bytes(59_000), packet()[1:], bytes(59_000)), strict=True):
                client.sendall(data)
            await enqueue.wait_for_tasks(4)
            assert [await trio.to_thread.run_sync(client.recv, 4) for client in sockets] == [ANSWER_SPOOLED] * 4
    assert sorted([len(task.body) for task in call] for call in enqueue.calls) == [[0], [60_000], [60_000], [60_000]]


async def test_connections_over_the_limit_are_refused(settings: ListenSettings, enqueue: FakeEnqueue) -> None:
    enqueue.gate = trio.Event()
    async with (
        listening(replace(settings, max_connections=3), enqueue) as listener,
        contextlib.AsyncExitStack() as astack,
    ):
        stack = astack.enter_context(contextlib.ExitStack())
        clients = [stack.enter_context(connected(listener, packet())) for _ in range(3)]
        await enqueue.wait_for_tasks(3)
        with connected(listener, packet()) as fourth, connected(listener, packet(WEB)) as browser:
            assert await until_end(fourth) == ANSWER_REFUSED
            assert parsed(await until_end(browser))[0] == 503
        assert listener.statistics().refused == {"connections": 2}
        enqueue.gate.set()
        assert [await exactly(client, 4) for client in clients] == [ANSWER_SPOOLED] * 3
        stack.close()
        await _until_closed(listener)
        with connected(listener) as again:
            await again.send_all(packet())
            assert await exactly(again, 4) == ANSWER_SPOOLED


async def test_a_new_connection_takes_the_place_of_one_long_silent(
    tmp_path: Path, enqueue: FakeEnqueue, mock_clock: trio.testing.MockClock
) -> None:
    async with listening(ListenSettings(bind=unix(tmp_path), timeout=5, max_connections=2), enqueue) as listener:
        with connected(listener) as oldest, connected(listener) as older:
            await trio.testing.wait_all_tasks_blocked()
            mock_clock.jump(1.5)
            with connected(listener) as new:
                await new.send_all(packet())
                assert await exactly(new, 4) == ANSWER_SPOOLED
                assert await until_end(oldest) == b""
                await older.send_all(packet())
                assert await exactly(older, 4) == ANSWER_SPOOLED


async def test_one_that_asks_at_once_takes_the_place_of_an_idle_one_however_new_that_is(
    settings: ListenSettings, enqueue: FakeEnqueue
) -> None:
    enqueue.gate = trio.Event()
    async with listening(replace(settings, max_connections=3), enqueue) as listener:
        with contextlib.ExitStack() as stack:
            # The first is no idle one: it waits for its answer.
            waits = stack.enter_context(connected(listener, packet()))
            await enqueue.wait_for_tasks(1)
            has_heard = stack.enter_context(connected(listener))
            await has_heard.send_all(PING)
            assert await exactly(has_heard, 4) == PONG
            asks = stack.enter_context(connect_socket(listener, PING))
            assert await trio.to_thread.run_sync(asks.recv, 4) == PONG
            await trio.testing.wait_all_tasks_blocked(0.01)
            asks.sendall(packet()[:-1])
            await trio.testing.wait_all_tasks_blocked(0.01)
            new = stack.enter_context(connected(listener, packet()))
            await enqueue.wait_for_tasks(2)
            assert await until_end(has_heard) == b""
            with connected(listener, packet()) as one_more:
                assert await until_end(one_more) == ANSWER_REFUSED
            asks.sendall(packet()[-1:])
            await enqueue.wait_for_tasks(3)
            enqueue.gate.set()
            assert await exactly(waits, 4) == await exactly(new, 4) == ANSWER_SPOOLED
            assert await trio.to_thread.run_sync(asks.recv, 4) == ANSWER_SPOOLED


async def test_what_is_not_read_soon_is_not_accepted_and_so_not_refused(
    settings: ListenSettings, enqueue: FakeEnqueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pollset, "LOOK_SECONDS", 0)
    async with listening(replace(settings, max_connections=pollset.MAX_EVENTS + 10), enqueue) as listener:
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(connect_socket(listener, packet())) for _ in range(3 * pollset.MAX_EVENTS)]
            for client in clients:
                assert await trio.to_thread.run_sync(client.recv, 4) == ANSWER_SPOOLED
                client.close()


async def test_who_has_asked_and_was_not_read_yet_is_not_silent(
    tmp_path: Path, enqueue: FakeEnqueue, mock_clock: trio.testing.MockClock
) -> None:
    settings = ListenSettings(bind=unix(tmp_path), timeout=5, max_connections=1)
    async with listening(settings, enqueue) as listener:
        with connect_socket(listener) as first:
            await trio.testing.wait_all_tasks_blocked()
            assert listener.statistics().open == 1
            mock_clock.jump(2)
            # Between two looks; connections are accepted before anything is read.
            first.sendall(packet())
            with connected(listener, packet()) as second:
                assert await exactly(second, 4) == ANSWER_REFUSED
            await enqueue.wait_for_tasks(1)
            await trio.testing.wait_all_tasks_blocked()
            assert first.recv(4) == ANSWER_SPOOLED


async def test_accepting_pauses_and_goes_on_when_descriptors_run_out(
    settings: ListenSettings, enqueue: FakeEnqueue
) -> None:
    async with listening(settings, enqueue) as listener:
        with contextlib.ExitStack() as stack, connected(listener) as early:
            await early.send_all(packet())
            assert await exactly(early, 4) == ANSWER_SPOOLED
            address = listener.addresses[0]
            family = socket.AF_UNIX if address.startswith("unix:") else socket.AF_INET
            late = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
            lowest_free = os.dup(0)
            os.close(lowest_free)
            limits = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, limits[1]))
            try:
                if family == socket.AF_UNIX:
                    late.connect(address.removeprefix("unix:"))
                else:
                    late.connect(("127.0.0.1", int(address.rpartition(":")[2])))
                late.sendall(packet())
                while not listener.statistics().refused:
                    await trio.lowlevel.checkpoint()
                for _ in range(200):  # who is there already is served, and meanwhile accepting is not tried each time
                    await early.send_all(packet())
                    assert await exactly(early, 4) == ANSWER_SPOOLED
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            await enqueue.wait_for_tasks(202)
            assert await trio.to_thread.run_sync(late.recv, 4) == ANSWER_SPOOLED
            assert set(listener.statistics().refused) == {"resources"}
            assert listener.statistics().refused["resources"] < 50


@pytest.mark.parametrize(
    ("networks", "allowed"),
    [((), True), (("127.0.0.0/8",), True), (("10.0.0.0/8", "127.0.0.1/32"), True), (("10.0.0.0/8", "::1/128"), False)],
)
async def test_only_allowed_networks_may_connect(
    tcp: ListenSettings, enqueue: FakeEnqueue, networks: tuple[str, ...], allowed: bool
) -> None:
    async with listening(replace(tcp, allow_networks=networks), enqueue) as listener:
        with connected(listener, packet()) as client:
            answer = await (exactly(client, 4) if allowed else until_end(client))
            assert answer == (ANSWER_SPOOLED if allowed else b"")
        assert listener.statistics().refused == ({} if allowed else {"network": 1})


# Stopping


async def test_what_is_being_committed_is_answered_when_the_listener_stops(
    settings: ListenSettings, enqueue: FakeEnqueue
) -> None:
    enqueue.gate = trio.Event()
    async with trio.open_nursery() as nursery:

        async def serve(*, task_status: trio.TaskStatus[Any]) -> None:
            async with listening(settings, enqueue) as listener:
                task_status.started(listener)
                await trio.sleep_forever()

        listener = await nursery.start(serve)
        with connected(listener) as client, connected(listener) as begun:
            await begun.send_all(packet()[:5])
            await client.send_all(packet())
            await enqueue.wait_for_tasks(1)
            nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True):
                await trio.testing.wait_all_tasks_blocked()
                with pytest.raises(OSError, match=r"refused|No such file"):
                    connect_socket(listener)
                enqueue.gate.set()
                assert await until_end(client) == ANSWER_SPOOLED
                assert await until_end(begun) == b""


async def test_a_stop_waits_two_seconds_at_most_for_a_commit(
    tmp_path: Path, enqueue: FakeEnqueue, autojump_clock: trio.testing.MockClock
) -> None:
    enqueue.gate = trio.Event()
    async with listening(ListenSettings(bind=unix(tmp_path)), enqueue) as listener:
        client = connect_socket(listener, packet())
        await enqueue.wait_for_tasks(1)
        stopped_at = trio.current_time()
    assert trio.current_time() - stopped_at == 2
    with client:
        assert client.recv(4) == b""


async def test_a_snapshot_tells_what_happened(settings: ListenSettings, enqueue: FakeEnqueue) -> None:
    async with listening(settings, enqueue) as listener:
        before = listener.statistics()
        with connected(listener) as client, connected(listener) as refused:
            await client.send_all(packet() + packet({}, modifier1=100))
            await exactly(client, 8)
            await refused.send_all(encode_packet(b"\x01\x00"))
            assert await until_end(refused) == ANSWER_REFUSED
            after = listener.statistics()
    assert (before.open, before.accepted, before.requests, before.spooled, before.timeouts) == (0, 0, 0, 0, 0)
    assert before.refused == {}
    assert (after.accepted, after.requests, after.spooled, after.refused) == (2, 2, 1, {"malformed": 1})
    assert after.open in (1, 2)


async def _until_open(listener: Listener, count: int) -> None:
    while listener.statistics().open > count:
        await trio.lowlevel.checkpoint()


async def _until_closed(listener: Listener) -> None:
    await _until_open(listener, 0)
