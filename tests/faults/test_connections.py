"""Clients that do not behave, for some seconds; and that it would be seen if the one that does was not served."""

from __future__ import annotations

import socket
import threading
import time
from collections import Counter
from random import Random
from typing import TYPE_CHECKING

import pytest

from tests.faults.beside import LATE_SECONDS, MORE_DESCRIPTORS, MOST_MB_AFTER, Behaved, Seen, outcome
from tests.faults.connections import CASES, Connections, rude_clients
from tests.faults.rudeness import ATTACKS, Order, Target

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# What it costs is one service, and half a second a case.
QUICK = [case for case in CASES if case.attack != "vanish"][::3]  # these are waited for for half a minute


def test_one_that_behaves_is_served_beside_those_that_do_not(tmp_path: Path) -> None:
    outcomes = Connections(QUICK).run(0.01, tmp_path, Random(1))
    assert [outcome.name for outcome in outcomes if outcome.violations] == []
    assert len(outcomes) == len(QUICK) + 2
    assert all(outcome.tried > 0 for outcome in outcomes)
    assert all(outcome.figures["connections"] for outcome in outcomes[1:-1])


def served() -> Seen:
    """What is seen when all is well."""
    seen = Seen(seconds=1.0, acknowledged=["n1", "n2"], descriptors=1, megabytes=60)
    for latencies in seen.latencies.values():
        latencies.append(0.001)
    return seen


def test_nothing_is_broken_when_all_is_well() -> None:
    assert outcome("x", 1, served(), Counter(["n1", "n2", "rude", "rude"])).violations == []


@pytest.mark.parametrize(
    ("members", "runs", "broken"),
    [
        ({}, ["n1"], "task n2: acknowledged and not run"),
        ({}, ["n1", "n2", "n2"], "task n2: run 2 times"),
        ({"failed": ["HTTP: 503"]}, ["n1", "n2"], "not answered as kept: HTTP: 503"),
        ({"latencies": {"HTTP": [LATE_SECONDS + 1]}}, ["n1", "n2"], "HTTP: answered after 6.0 s"),
        ({"latencies": {"HTTP": []}}, ["n1", "n2"], "HTTP: nothing was answered"),
        ({"is_alive": False}, ["n1", "n2"], "the service has ended"),
        ({"descriptors": MORE_DESCRIPTORS + 1}, ["n1", "n2"], "9 descriptors more than before"),
        ({"megabytes": MOST_MB_AFTER + 1}, ["n1", "n2"], "257 MB when all had gone"),
    ],
)
def test_every_broken_promise_is_seen(members: dict[str, object], runs: list[str], broken: str) -> None:
    seen = served()
    for name, value in members.items():
        setattr(seen, name, value)
    assert outcome("x", 1, seen, Counter(runs)).violations == [broken]


class Server(threading.Thread):
    """Takes connections, and gives each the same answer, or none."""

    def __init__(self, answer: bytes) -> None:
        super().__init__()
        self.answer = answer
        self.heard: list[bytes] = []
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listening.getsockname()[1]

    def run(self) -> None:
        while True:
            connection, _ = self.listening.accept()
            with connection:
                try:
                    self.heard.append(connection.recv(65536))
                    connection.sendall(self.answer)
                except OSError:
                    self.heard.append(b"broken")
            if self.heard[-1] == b"end":
                return

    def close(self) -> None:
        with socket.create_connection(("127.0.0.1", self.port)) as last:
            last.sendall(b"end")
        self.join()
        self.listening.close()


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    running = Server(request.param)
    running.start()
    yield running
    running.close()


@pytest.mark.parametrize(
    "server", [b"", b"\xff\x00\x00\x00", b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n"], indirect=True
)
def test_a_refusal_and_silence_are_noticed(server: Server, tmp_path: Path) -> None:
    seen = Seen()
    Behaved(tmp_path / "none.sock", server.port, server.port, "token", tmp_path / "notes").ask_for(0, seen)
    assert [fault.partition(":")[0] for fault in seen.failed] == ["uwsgi, Unix", "uwsgi, TCP", "HTTP"]
    assert not seen.acknowledged


@pytest.mark.parametrize("attack", [name for name in ATTACKS if name != "vanish"])
@pytest.mark.parametrize("server", [b"answer"], indirect=True)
def test_rude_clients_come_as_far_as_they_shall(server: Server, attack: str) -> None:
    seen: Counter[str] = Counter()
    target = Target([["127.0.0.1", server.port]], "request", {"stage": 3})
    expected = b"requestrequest" if attack in ("deaf", "flood") else b"req"
    with rude_clients(Order(attack, "stage", 3, target), seen):
        give_up_at = time.monotonic() + 20
        while not any(heard.startswith(expected) for heard in server.heard):
            assert time.monotonic() < give_up_at, server.heard
            time.sleep(0.01)
    assert seen["made"] >= 3
