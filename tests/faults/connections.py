"""Clients that do not behave, by thousands, and one that does beside them: it is answered as if it was alone.

The rude ones are a process of their own (`rudeness`). The well-behaved one makes one request after another, each on a
new connection: a packet to the Unix socket, one by TCP, a POST of a task over HTTP. All share one machine, so a flood
also costs it the processor's time; that it is answered at all, and in time, is the promise, and how fast is shown.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import resource
import socket
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.acceptance.harness import Service, free_port, packet, telling_in
from tests.faults.figures import Outcome
from tests.faults.rudeness import Order, Target

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from random import Random

ROOT: Final = Path(__file__).parents[2]
NOTING: Final = Path(__file__).with_name("noting.py")

SECONDS: Final = 20.0
"""Of each case in the long run."""

LATE_SECONDS: Final = 2.0
"""An answer after so long is a broken promise. On an idle machine it takes a millisecond."""

RETURN_SECONDS: Final = 60.0
"""By then descriptors and memory have to be back. An HTTP connection whose client has vanished is closed after 30 s."""

MORE_DESCRIPTORS: Final = 8
"""So many more than before are no leak: SQLite and threads open some as they are needed."""

MORE_MB: Final = 64
"""So many MB more than before are no leak: the allocators keep what has been scattered."""

FACES: Final = ("uwsgi, Unix", "uwsgi, TCP", "HTTP")


@dataclass(frozen=True, slots=True)
class Case:
    """One kind of rudeness.

    Attributes:
        name: For the table.
        face: Towards whom: `uwsgi`, `roomy` (a uwsgi socket that has room for all of them), `HTTP` (strangers) or
            `known` (HTTP with a token).
        attack: What they do (`rudeness.ATTACKS`).
        stage: Where in their request they begin to.
        clients: How many.
        pages: Whether they ask for a large page instead of sending a task.
    """

    name: str
    face: str
    attack: str
    stage: str
    clients: int
    pages: bool = False


CASES: Final = (
    Case("10,000 idle", "roomy", "wait", "nothing", 10_000),
    Case("10,000 idle, room for 4,096", "uwsgi", "wait", "nothing", 10_000),
    Case("slow header", "uwsgi", "slow", "header", 1000),
    Case("slow vars", "uwsgi", "slow", "vars", 1000),
    Case("slow body", "uwsgi", "slow", "body", 1000),
    Case("half closed in the vars", "uwsgi", "half_closed", "vars", 100),
    Case("half open in the header", "roomy", "vanish", "header", 1000),
    Case("half open in the vars", "roomy", "vanish", "vars", 1000),
    Case("RST in the header", "uwsgi", "reset", "header", 20),
    Case("RST in the vars", "uwsgi", "reset", "vars", 20),
    Case("RST in the body", "uwsgi", "reset", "body", 20),
    Case("RST before the answer", "uwsgi", "reset", "whole", 20),
    Case("never read answers", "uwsgi", "deaf", "whole", 200),
    Case("flood of one client", "uwsgi", "flood", "whole", 1),
    Case("flood of connections", "uwsgi", "leave", "nothing", 20),
    Case("10,000 idle, room for 256", "HTTP", "wait", "nothing", 10_000),
    Case("slow headers", "HTTP", "slow", "header", 1000),
    Case("slow body, strangers", "HTTP", "slow", "body", 1000),
    Case("slow body, with a token", "known", "slow", "body", 200),
    Case("half closed in the body", "HTTP", "half_closed", "body", 100),
    Case("half open in the headers", "HTTP", "vanish", "header", 1000),
    Case("half open in the body", "known", "vanish", "body", 200),
    Case("RST in the headers", "HTTP", "reset", "header", 20),
    Case("RST in the body", "known", "reset", "body", 20),
    Case("RST before the answer", "known", "reset", "whole", 20),
    Case("never read answers", "known", "deaf", "whole", 200, pages=True),
    Case("flood of one client", "known", "flood", "whole", 1),
    Case("flood of connections", "HTTP", "leave", "nothing", 20),
)


@dataclass(slots=True)
class Seen:
    """What the well-behaved client saw, and what became of the service.

    Attributes:
        latencies: Seconds of each answer, by face.
        failed: What it was told instead of yes, or that it was told nothing.
        seconds: How long it asked.
        acknowledged: The numbers of the tasks of which it was told yes.
        descriptors: How many more the service has than before.
        megabytes: The same for its resident memory, MB.
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
    if seen.megabytes > MORE_MB:
        broken.append(f"{seen.megabytes:.0f} MB more than before")
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
        "MB more after": round(seen.megabytes),
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


@contextlib.contextmanager
def rude_clients(order: Order, seen: Counter[str]) -> Iterator[None]:
    """Rude clients, as long as the block takes; what they saw is added to `seen`."""
    command = [sys.executable, "-m", "tests.faults.rudeness"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(order.encode().encode() + b"\n")
            process.stdin.flush()
            said = process.stdout.readline()
            assert said == b"begun\n", said
            yield
        finally:
            process.stdin.close()
            seen.update(json.loads(process.stdout.read() or "{}"))


class _Stage:
    """A service, and who is rude to it."""

    def __init__(self, service: Service, roomy_port: int) -> None:
        self.service = service
        self.roomy_port = roomy_port
        self.notes = service.folder / "notes"
        self.behaved = Behaved(service.socket, service.tcp_port, service.http_port, service.token, self.notes)
        assert service.process is not None
        self.process = service.process

    def target(self, case: Case) -> Target:
        """Whom a case is rude to, and with what."""
        small = case.attack in ("flood", "deaf")
        if case.face in ("uwsgi", "roomy"):
            filler = {} if small else {"filler": "x" * 60_000, "CONTENT_LENGTH": "1000000"}
            head = packet({"n": "rude", "notes": str(self.notes), **filler}).decode("latin-1")
            unix_and_tcp: list[str | list[str | int]] = [str(self.service.socket), ["127.0.0.1", self.service.tcp_port]]
            addresses = [["127.0.0.1", self.roomy_port]] if case.face == "roomy" else unix_and_tcp
            header = 2
        else:
            token = f"Authorization: Bearer {self.service.token}\r\n" if case.face == "known" else ""
            addresses = [["127.0.0.1", self.service.http_port]]
            if case.pages:
                head, small = f"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n{token}\r\n", True
            else:
                size = 1_000_000
                head = "POST /api/v1/spools/default/tasks?n=rude HTTP/1.1\r\nHost: localhost\r\n" + token
                if small:
                    size = 0
                else:
                    head += f"X-Filler: {'x' * 20_000}\r\n"
                head += f"Content-Length: {size}\r\n\r\n"
            header = len(head) // 2
        stages = {"nothing": 0, "header": header, "vars": len(head) // 2}
        if small:
            return Target(addresses, head, stages | {"whole": len(head)})
        body = "b" * 1_000_000
        return Target(addresses, head + body, stages | {"body": len(head) + 500_000, "whole": len(head) + len(body)})

    def play(self, case: Case | None, seconds: float) -> Seen:
        """One case; None: nobody is rude."""
        seen = Seen()
        descriptors, megabytes = self.descriptors(), self.megabytes("VmRSS")
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")  # VmHWM begins anew
        if case is None:
            self.behaved.ask_for(seconds, seen)
        else:
            with rude_clients(Order(case.attack, case.stage, case.clients, self.target(case)), seen.rude):
                self.behaved.ask_for(seconds, seen)
        seen.is_alive = self.process.poll() is None
        if seen.is_alive:
            self._wait_for_return(descriptors, megabytes)
            seen.descriptors = self.descriptors() - descriptors
            seen.megabytes = self.megabytes("VmRSS") - megabytes
            seen.most_megabytes = self.megabytes("VmHWM")
        return seen

    def _wait_for_return(self, descriptors: int, megabytes: float) -> None:
        """Until all is as it was, or should have been."""
        give_up_at = time.monotonic() + RETURN_SECONDS
        while time.monotonic() < give_up_at:
            with contextlib.suppress(OSError, http.client.HTTPException):
                status = self.service.status()
                if (
                    not status["ready"] + status["running"]
                    and self.descriptors() <= descriptors + MORE_DESCRIPTORS
                    and self.megabytes("VmRSS") <= megabytes + MORE_MB
                ):
                    return
            time.sleep(0.1)

    def descriptors(self) -> int:
        """How many the service has."""
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))

    def megabytes(self, what: str) -> float:
        """What the kernel says of the service's memory."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            name, _, value = line.partition(":")
            if name == what:
                return int(value.split()[0]) / 1024
        raise AssertionError(f"no {what}")

    def runs(self) -> Counter[str]:
        """How often the task of each number ran."""
        return Counter(self.notes.read_text().split())


class Connections:
    """The scenario.

    Args:
        cases: What is tried.
    """

    title = "Clients that do not behave"
    promise = (
        f"Beside them one who behaves is answered as kept, within {LATE_SECONDS:.0f} s, always; its tasks run once; and"
        " when they have gone, the service's descriptors and memory are what they were."
    )

    def __init__(self, cases: Sequence[Case] = CASES) -> None:
        self._cases = cases

    def run(self, scale: float, folder: Path, random: Random) -> list[Outcome]:
        """All cases, one after another, towards one service; the well-behaved client alone before and after."""
        cases = [replace(case, clients=_possible(case.clients, scale)) for case in self._cases]
        seconds = max(0.3, SECONDS * min(1.0, scale))
        seen: dict[str, tuple[int, Seen]] = dict.fromkeys(map(_name, cases), (0, Seen()))
        with _staged(folder) as stage:
            stage.play(None, seconds)  # what a service needs for its first tasks is no leak
            before = stage.play(None, seconds)
            # What one leaves behind, another may stumble over.
            for case in random.sample(cases, len(cases)):
                seen[_name(case)] = case.clients, stage.play(case, seconds)
                if stage.process.poll() is not None:
                    break
            rows = {"nobody, before": (0, before), **seen}
            if stage.process.poll() is None:
                rows["nobody, afterwards"] = 0, stage.play(None, seconds)
            runs = stage.runs()
        return [outcome(name, *row, runs) for name, row in rows.items()]


def _name(case: Case) -> str:
    face = {"roomy": "uwsgi", "known": "HTTP"}.get(case.face, case.face)
    return f"{face}: {case.name}"


@contextlib.contextmanager
def _staged(folder: Path) -> Iterator[_Stage]:
    roomy_port = free_port()
    with telling_in(folder) as telling:
        service = Service(folder, telling, **{"import": [str(NOTING)]})
        with service.config.open("a") as config:
            config.write(f'[[listen]]\nbind = "127.0.0.1:{roomy_port}"\nmax_connections = 12000\ntimeout = 60\n')
        try:
            yield _Stage(service.start(), roomy_port)
            service.stop()
        finally:
            service.close()


def _possible(clients: int, scale: float) -> int:
    """As many as the scale wants and this machine lets one process have."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = clients if scale >= 1 else max(min(clients, 20), int(clients * scale))
    return min(wanted, hard - 1000)


SCENARIO: Final = Connections()
