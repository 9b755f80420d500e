"""The client that behaves, beside those that do not: what it asks and sees, and whether that is what was promised.

It makes one request after another, each on a new connection: a packet to a Unix socket, one by TCP, a POST over HTTP.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from tests.acceptance.harness import packet
from tests.faults.figures import Outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

LATE_SECONDS: Final = 5.0
"""An answer after so long is a broken promise. It takes a millisecond, and some hundred where others
take the processor."""

MORE_DESCRIPTORS: Final = 8
"""So many more than before are no leak: SQLite and threads open some as they are needed."""

MOST_MB_AFTER: Final = 256
"""What the service may keep: it takes 70 MB by itself and 30 to 100 more for what it has had to do meanwhile, and
incomplete requests may have had 256."""

FACES: Final = ("uwsgi, Unix", "uwsgi, TCP", "HTTP")


@dataclass(slots=True)
class Seen:
    """What the well-behaved client saw, and what became of the service.

    Attributes:
        latencies: Seconds of each answer, by face.
        failed: What it was told instead of yes, or that it was told nothing.
        seconds: How long it asked.
        acknowledged: The numbers of the tasks of which it was told yes.
        descriptors: How many more the service has than before.
        megabytes: The resident memory it has, MB.
        most_megabytes: The most resident memory while it went on, MB.
        is_alive: Whether the service is the same process as before.
        rude: What the others saw.
    """

    latencies: dict[str, list[float]] = field(default_factory=lambda: {face: [] for face in FACES})
    failed: list[str] = field(default_factory=list)
    seconds: float = 0.0
    acknowledged: list[str] = field(default_factory=list)
    descriptors: int = 0
    megabytes: float = 0.0
    most_megabytes: float = 0.0
    is_alive: bool = True
    rude: Counter[str] = field(default_factory=Counter)


def outcome(name: str, clients: int, seen: Seen, runs: Counter[str]) -> Outcome:
    """A row, judged.

    Args:
        name: Its name.
        clients: How many were rude.
        seen: What was seen.
        runs: How often the task of each number ran.
    """
    everything = [latency for latencies in seen.latencies.values() for latency in latencies]
    broken = [f"not answered as kept: {fault}" for fault in seen.failed]
    broken += [
        f"{face}: answered after {latency:.1f} s"
        for face, latencies in seen.latencies.items()
        for latency in latencies
        if latency > LATE_SECONDS
    ]
    broken += [f"{face}: nothing was answered" for face, latencies in seen.latencies.items() if not latencies]
    broken += [f"task {number}: acknowledged and not run" for number in seen.acknowledged if not runs[number]]
    broken += [f"task {number}: run {runs[number]} times" for number in seen.acknowledged if runs[number] > 1]
    if not seen.is_alive:
        broken.append("the service has ended")
    if seen.descriptors > MORE_DESCRIPTORS:
        broken.append(f"{seen.descriptors} descriptors more than before")
    if seen.megabytes > MOST_MB_AFTER:
        broken.append(f"{seen.megabytes:.0f} MB when all had gone")
    figures: dict[str, int | float | str] = {
        "rude clients": clients,
        "connections": seen.rude["made"],
        "refused": len(seen.failed),
        "a second": len(everything) / seen.seconds if seen.seconds else 0,
    }
    for face, latencies in seen.latencies.items():
        for part in (50, 99):
            figures[f"{face} p{part} ms"] = 1000 * _percentile(latencies, part)
    figures |= {
        "longest ms": 1000 * max(everything, default=0.0),
        "MB at most": round(seen.most_megabytes),
        "MB after": round(seen.megabytes),
        "descriptors more after": seen.descriptors,
    }
    return Outcome(name, len(everything) + len(seen.failed), figures, broken)


def _percentile(values: Sequence[float], part: int) -> float:
    return sorted(values)[min(len(values) - 1, len(values) * part // 100)] if values else 0.0


class Behaved:
    """The client that behaves.

    Args:
        unix: A uwsgi socket.
        port: Another, of this machine.
        http_port: Of the API.
        token: For it.
        notes: Where its tasks are to be noted.
    """

    def __init__(self, unix: Path, port: int, http_port: int, token: str, notes: Path) -> None:
        self._unix = str(unix)
        self._port = port
        self._http_port = http_port
        self._headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        self._notes = str(notes)
        self._asked = 0

    def ask_for(self, seconds: float, seen: Seen) -> None:
        """Make requests, one after another, and note what comes of them."""
        ask: dict[str, Callable[[str], str]] = {
            "uwsgi, Unix": lambda number: self._send(socket.AF_UNIX, self._unix, number),
            "uwsgi, TCP": lambda number: self._send(socket.AF_INET, ("127.0.0.1", self._port), number),
            "HTTP": self._post,
        }
        began = time.monotonic()
        while time.monotonic() < began + seconds or not self._asked:
            for face in FACES:
                self._asked += 1
                number = f"n{self._asked}"
                sent = time.monotonic()
                try:
                    refusal = ask[face](number)
                except (OSError, http.client.HTTPException) as error:
                    refusal = repr(error)
                if refusal:
                    seen.failed.append(f"{face}: {refusal}")
                else:
                    seen.latencies[face].append(time.monotonic() - sent)
                    seen.acknowledged.append(number)
        seen.seconds = time.monotonic() - began

    def _send(self, family: socket.AddressFamily, address: str | tuple[str, int], number: str) -> str:
        with socket.socket(family) as sock:
            sock.settimeout(10)
            sock.connect(address)
            sock.sendall(packet({"n": number, "notes": self._notes}))
            answer = sock.recv(64)
        return "" if answer == b"\xff\x00\x00\x01" else repr(answer)

    def _post(self, number: str) -> str:
        body = json.dumps({"vars": {"n": number, "notes": self._notes}})
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self._http_port, timeout=10)) as connection:
            connection.request("POST", "/api/v1/spools/default/tasks", body, self._headers)
            answer = connection.getresponse()
            content = answer.read()
        return "" if answer.status == 201 else f"{answer.status} {content[:200]!r}"
