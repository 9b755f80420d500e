"""Clients that do not behave, by thousands, and one that does beside them: it is answered as if it was alone.

The rude ones are a process of their own (`rudeness`), the one that behaves is ours (`beside`). All share one machine,
so a flood also costs it the processor's time; that it is answered at all, and in time, is the promise, and how fast is
shown.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import resource
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.acceptance.harness import Service, free_port, packet, telling_in
from tests.faults.beside import LATE_SECONDS, MORE_DESCRIPTORS, Behaved, Seen, outcome
from tests.faults.rudeness import Order, Target

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from random import Random

    from tests.faults.figures import Outcome

ROOT: Final = Path(__file__).parents[2]
NOTING: Final = Path(__file__).with_name("noting.py")

SECONDS: Final = 20.0
"""Of each case in the long run."""

RETURN_SECONDS: Final = 60.0
"""By then descriptors have to be back. An HTTP connection whose client has vanished is closed after 30 s."""

BODY_BYTES: Final = 200_000
"""Of a task that comes slowly, or not to its end."""


@dataclass(frozen=True, slots=True)
class Case:
    """One kind of rudeness.

    Attributes:
        name: For the table.
        face: Towards whom: `uwsgi`, `TCP` (the half of it), `roomy` (a uwsgi socket that has room for all of them),
            `HTTP` (strangers) or `known` (HTTP with a token).
        attack: What they do (`rudeness.ATTACKS`).
        stage: Where in their request they begin to.
        clients: How many.
        pages: Whether they ask for a large page instead of sending a task.
        large: Whether a flood is one of large tasks.
    """

    name: str
    face: str
    attack: str
    stage: str
    clients: int
    pages: bool = False
    large: bool = False


CASES: Final = (
    Case("10,000 idle", "roomy", "wait", "nothing", 10_000),
    Case("10,000 idle, room for 4,096", "uwsgi", "wait", "nothing", 10_000),
    Case("slow header", "uwsgi", "slow", "header", 1000),
    Case("slow vars", "uwsgi", "slow", "vars", 1000),
    Case("slow body", "uwsgi", "slow", "body", 2000),
    Case("half closed in the vars", "uwsgi", "half_closed", "vars", 100),
    Case("half open in the header", "TCP", "vanish", "header", 1000),
    Case("half open in the vars", "TCP", "vanish", "vars", 1000),
    Case("RST in the header", "uwsgi", "reset", "header", 20),
    Case("RST in the vars", "uwsgi", "reset", "vars", 20),
    Case("RST in the body", "uwsgi", "reset", "body", 20),
    Case("RST before the answer", "uwsgi", "reset", "whole", 4),
    Case("never read answers", "uwsgi", "deaf", "whole", 200),
    Case("flood of one client", "uwsgi", "flood", "whole", 1),
    Case("flood of large requests", "TCP", "flood", "whole", 20, large=True),
    Case("flood of connections", "uwsgi", "leave", "nothing", 20),
    Case("10,000 idle, room for 1,024", "HTTP", "wait", "nothing", 10_000),
    Case("slow headers", "HTTP", "slow", "header", 2000),
    Case("slow body, strangers", "HTTP", "slow", "body", 2000),
    Case("slow body, with a token", "known", "slow", "body", 200),
    Case("half closed in the body", "HTTP", "half_closed", "body", 100),
    Case("half open in the headers", "HTTP", "vanish", "header", 2000),
    Case("half open in the body", "known", "vanish", "body", 200),
    Case("RST in the headers", "HTTP", "reset", "header", 20),
    Case("RST in the body", "known", "reset", "body", 20),
    Case("RST before the answer", "known", "reset", "whole", 4),
    Case("never read answers", "HTTP", "deaf", "whole", 2000, pages=True),
    Case("flood of one client", "known", "flood", "whole", 1),
    Case("flood of connections", "HTTP", "leave", "nothing", 20),
)


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
        small = case.attack in ("flood", "deaf") and not case.large
        unix_and_tcp: list[str | list[str | int]] = [str(self.service.socket), ["127.0.0.1", self.service.tcp_port]]
        if case.face in ("uwsgi", "TCP", "roomy"):
            large = {} if small else {"filler": "x" * 60_000, "CONTENT_LENGTH": str(BODY_BYTES)}
            head = packet({"n": "rude", "notes": str(self.notes), **large}).decode("latin-1")
            if case.attack == "deaf":
                head = "\x64\0\0\0"  # a ping: what comes after this case shall not have millions of tasks before it
            addresses = unix_and_tcp[case.face == "TCP" :]
            if case.face == "roomy":
                addresses = [["127.0.0.1", self.roomy_port]]
            header = 2
        else:
            token = f"Authorization: Bearer {self.service.token}\r\n" if case.face == "known" else ""
            addresses = [["127.0.0.1", self.service.http_port]]
            if case.pages:
                head, small = f"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n{token}\r\n", True
            else:
                head = "POST /api/v1/spools/default/tasks?n=rude HTTP/1.1\r\nHost: localhost\r\n" + token
                filler = "" if small else f"X-Filler: {'x' * 20_000}\r\n"
                head += f"{filler}Content-Length: {0 if small else BODY_BYTES}\r\n\r\n"
            header = len(head) // 2
        stages = {"nothing": 0, "header": header, "vars": len(head) // 2}
        if small:
            return Target(addresses, head, stages | {"whole": len(head)})
        body = "b" * BODY_BYTES
        return Target(
            addresses, head + body, stages | {"body": len(head) + BODY_BYTES // 2, "whole": len(head) + len(body)}
        )

    def play(self, case: Case | None, seconds: float) -> Seen:
        """One case; None: nobody is rude."""
        seen = Seen()
        descriptors = self.descriptors()
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")  # VmHWM begins anew
        if case is None:
            self.behaved.ask_for(seconds, seen)
        else:
            with rude_clients(Order(case.attack, case.stage, case.clients, self.target(case)), seen.rude):
                self.behaved.ask_for(seconds, seen)
        seen.is_alive = self.process.poll() is None
        if seen.is_alive:
            self._wait_for_return(descriptors)
            seen.descriptors = self.descriptors() - descriptors
            seen.megabytes = self.megabytes("VmRSS")
            seen.most_megabytes = self.megabytes("VmHWM")
        return seen

    def _wait_for_return(self, descriptors: int) -> None:
        """Until all is as it was, or should have been."""
        give_up_at = time.monotonic() + RETURN_SECONDS
        while time.monotonic() < give_up_at:
            with contextlib.suppress(OSError, http.client.HTTPException):
                status = self.service.status()
                if not status["ready"] + status["running"] and self.descriptors() <= descriptors + MORE_DESCRIPTORS:
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
        " when they have gone, the service's descriptors are what they were, and its memory is bounded."
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
    face = {"TCP": "uwsgi", "roomy": "uwsgi", "known": "HTTP"}.get(case.face, case.face)
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
