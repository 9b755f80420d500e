"""The service is killed in the middle of everything: what it acknowledged runs, and hardly anything runs twice."""

from __future__ import annotations

import contextlib
import random
import signal
import socket
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from tests.acceptance.harness import LONG, Service, Telling, packet

if TYPE_CHECKING:
    from pathlib import Path

SPOOLED = b"\xff\x00\x00\x01"
KILLS = 4

IN_FLIGHT_SECONDS = 0.5
"""What was run so shortly before a kill may not have been recorded: some 20 ms, on a machine with other work to do."""


class Client(threading.Thread):
    """Enqueues over one connection, as fast as it can, and connects anew when that breaks."""

    def __init__(self, service: Service, name: str, stop: threading.Event) -> None:
        super().__init__()
        self.acknowledged: set[str] = set()
        self._service = service
        self._prefix = name
        self._ended = stop

    def run(self) -> None:
        number = 0
        while not self._ended.is_set():
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as client:
                client.settimeout(LONG)
                client.connect(str(self._service.socket))
                while not self._ended.is_set():
                    number += 1
                    n = f"{self._prefix}{number}"
                    options = {"at": f"{time.time() + 0.4:.3f}"} if number % 10 == 0 else {}
                    client.sendall(packet({"n": n, **options}))
                    answer = b""
                    while len(answer) < 4:
                        received = client.recv(4 - len(answer))
                        if not received:
                            raise ConnectionResetError
                        answer += received
                    if answer == SPOOLED:
                        self.acknowledged.add(n)
            time.sleep(0.005)  # until it is there again


@pytest.mark.parametrize("durability", ["os", "fsync"])
def test_nothing_acknowledged_is_lost_when_the_service_is_killed_under_load(
    durability: str, tmp_path: Path, telling: Telling
) -> None:
    dice = random.Random(1)
    service = Service(tmp_path, telling, durability=durability, frequency=0.2).start()
    stop = threading.Event()
    clients = [Client(service, name, stop) for name in "abcdefgh"]
    kills: list[float] = []
    try:
        for client in clients:
            client.start()
        for _ in range(KILLS):
            time.sleep(0.2 + dice.random() * 0.6)  # the moment is the point
            service.stop(signal.SIGKILL)
            kills.append(time.time())
            service.start()
        time.sleep(0.3)
    finally:
        stop.set()
        for client in clients:
            client.join()
    try:
        service.wait_until(lambda: _is_idle(service), "idle")
        ran = [message for message in telling.all_so_far() if message["event"] == "note"]
        counts = Counter(message["n"] for message in ran)
        acknowledged = set().union(*(client.acknowledged for client in clients))
        assert len(acknowledged) > 500
        assert acknowledged - set(counts) == set()
        for n in (n for n, count in counts.items() if count > 1):
            first = min(message["at"] for message in ran if message["n"] == n)
            assert any(0 <= kill - first < IN_FLIGHT_SECONDS for kill in kills), n
        assert service.stop() == 0
    finally:
        service.close()


def _is_idle(service: Service) -> bool:
    status = service.status()
    return not (status["ready"] or status["scheduled"] or status["running"])
