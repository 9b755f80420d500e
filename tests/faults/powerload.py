"""What clients ask of a service whose power is going to be cut, and where in its trace each was told what.

Each client keeps one connection and waits for each answer, so that the answers that the trace shows on its port are
those to its requests, one after the other.
"""

from __future__ import annotations

import base64
import json
import socket
import time
from dataclasses import dataclass, field
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final

from tests.acceptance.harness import packet

if TYPE_CHECKING:
    import http.client
    from random import Random

__all__ = ["Operated", "Sent", "digest", "post_tasks", "spool_tasks"]

LATER_SECONDS: Final = 3600.0
"""`at` of what must not run before a disk has been judged."""

KINDS: Final = {"quick": 10, "slow": 1, "soon": 2, "later": 3, "retry": 1, "fail": 1, "spawn": 1, "large": 1}
"""What tasks do, and how many of a kind there are to those of others."""

SPOOLED: Final = b"\xff\x00\x00\x01"


@dataclass(frozen=True, slots=True)
class Operated:
    """What an operator did to a task: what, and which answer on that port said so."""

    action: str
    port: int
    answer: int


@dataclass(slots=True)
class Sent:
    """A task that was answered for.

    Attributes:
        n: Its name among tasks.
        kind: What it does.
        digest: Of what it is.
        at: When it may run, Unix seconds, or None.
        port: The client's.
        answer: The number, on that port, of the answer that it is kept.
        operated: What an operator did to it then.
    """

    n: str
    kind: str
    digest: str
    at: float | None
    port: int
    answer: int
    operated: list[Operated] = field(default_factory=list)


def digest(n: bytes, pad: bytes, body: bytes) -> str:
    """Of all that makes a task what it is."""
    return sha256(b"\0".join((n, pad, body))).hexdigest()


@dataclass(frozen=True, slots=True)
class _Task:
    n: str
    kind: str
    at: float | None
    vars: dict[str, str]
    body: bytes

    def sent(self, port: int, answer: int) -> Sent:
        return Sent(
            self.n,
            self.kind,
            digest(self.n.encode(), self.vars["pad"].encode(), self.body),
            self.at,
            port,
            answer,
        )


def _task(n: str, kind: str, random: Random) -> _Task:
    at = {"soon": time.time() + 0.6, "later": time.time() + LATER_SECONDS + random.random()}.get(kind)
    vars = {"n": n, "do": kind, "pad": n * random.choice((1, 10, 300))}
    if at is not None:
        at = round(at, 3)
        vars["at"] = str(at)
    if random.random() < 0.3:
        vars["priority"] = str(random.randrange(4))
    # A large one becomes a file at once: it would be written twice.
    size = random.randrange(70_000, 200_000) if kind == "large" else random.choice((0, 0, 1, 511, 5000))
    return _Task(n, kind, at, vars, random.randbytes(size))


def _kind(random: Random) -> str:
    return random.choices([*KINDS], [*KINDS.values()])[0]


def spool_tasks(port: int, name: str, count: int, random: Random) -> list[Sent]:
    """Send tasks to a uwsgi socket."""
    sent: list[Sent] = []
    with socket.create_connection(("127.0.0.1", port)) as client:
        ours = client.getsockname()[1]
        for number in range(count):
            task = _task(f"{name}{number}", _kind(random), random)
            length = {"CONTENT_LENGTH": str(len(task.body))} if task.body else {}
            client.sendall(packet({**task.vars, **length}) + task.body)
            if (answer := client.recv(4, socket.MSG_WAITALL)) != SPOOLED:
                raise AssertionError(f"{task.n} was answered {answer!r}")
            sent.append(task.sent(ours, number))
            _pause(random)
    return sent


def post_tasks(connection: http.client.HTTPConnection, token: str, name: str, count: int, random: Random) -> list[Sent]:
    """Post tasks: one at a time, with and without a key, and in batches; and do to some what an operator may do."""
    sent: list[Sent] = []
    api = _Api(connection, token)
    for number in range(count):
        several = random.random() < 0.2
        names = (
            [f"{name}{number}-{part}" for part in range(random.randrange(2, 30))] if several else [f"{name}{number}"]
        )
        tasks = [_task(n, _kind(random), random) for n in names]
        documents = [json.dumps({"vars": task.vars, "body": base64.b64encode(task.body).decode()}) for task in tasks]
        media = "application/x-ndjson" if several else "application/json"
        headers = {"Content-Type": media, **({"Idempotency-Key": names[0]} if random.random() < 0.5 else {})}
        answer = api.ask("POST", "/spools/default/tasks", "\n".join(documents), headers)
        new = [task.sent(api.port, api.answers - 1) for task in tasks]
        sent += new
        if not several and new[0].kind == "later":
            for action in random.choice(((), ("hold",), ("hold", "release"), ("reschedule",), ("cancel",))):
                path = f"/tasks/{answer['id']}/{action}"
                document = json.dumps({"at": new[0].at + 3600}) if action == "reschedule" and new[0].at else "{}"
                api.ask("POST", path, document, {"Content-Type": "application/json"})
                new[0].operated.append(Operated(action, api.port, api.answers - 1))
        _pause(random)
    return sent


class _Api:
    def __init__(self, connection: http.client.HTTPConnection, token: str) -> None:
        self._connection = connection
        self._token = token
        connection.connect()
        self.port: int = connection.sock.getsockname()[1]
        self.answers = 0

    def ask(self, method: str, path: str, content: str, headers: dict[str, str]) -> Any:
        sent = {"Authorization": f"Bearer {self._token}", **headers}
        self._connection.request(method, f"/api/v1{path}", content, sent)
        answer = self._connection.getresponse()
        document = answer.read()
        if answer.status not in (200, 201) or answer.will_close:
            raise AssertionError(f"{path} was answered {answer.status} {document!r}")
        self.answers += 1
        return json.loads(document)


def _pause(random: Random) -> None:
    # Now and then so long that what waits is written out.
    time.sleep(random.choice((0, 0, 0, 0.002, 0.005, 0.02, 0.1)))
