"""Load of all kinds, and what its senders were told: by Unix and TCP sockets, by HTTP, and as files that others write.

Senders know nothing of the service's insides. They remember what they sent before they send it, and what was answered
when they have read it.
"""

from __future__ import annotations

import base64
import contextlib
import enum
import fcntl
import http.client
import itertools
import json
import os
import random as chance
import socket
import struct
import threading
import time
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tests.acceptance.harness import UnixConnection, packet

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ANSWER_SECONDS: Final = 20.0
"""A client waits so long for an answer, and then counts it as none."""

PAUSE_SECONDS: Final = 0.08
"""The longest pause of a sender between two bursts: some 200 tasks a second of all senders together."""

MAX_BURST: Final = 6
"""Tasks that a sender sends before it reads the answers."""

BURSTS: Final = 50
"""After so many, on average, a sender goes and connects anew."""

SPOOLED: Final = b"\xff\x00\x00\x01"


class Answer(enum.Enum):
    """What a sender was told of a task."""

    NONE = "none"
    ACKNOWLEDGED = "acknowledged"
    REFUSED = "refused"


@dataclass(slots=True)
class Sent:
    """A task that was sent, or was about to be.

    Attributes:
        at: When it is due at the earliest, Unix seconds; 0: at once.
        way: How it was sent.
        answer: What its sender was told.
    """

    at: float
    way: str
    answer: Answer = Answer.NONE


@dataclass(frozen=True, slots=True)
class Place:
    """Where a service can be reached.

    Attributes:
        folder: Its own: the spool, `spool.sock`, `http.sock` and `var` are in it.
        port: Of its uwsgi socket on the loopback interface.
    """

    folder: Path
    port: int

    @property
    def spool(self) -> Path:
        """Its spool directory."""
        return self.folder / "spool"

    @property
    def socket(self) -> str:
        """Its uwsgi socket."""
        return os.fspath(self.folder / "spool.sock")


class Load:
    """Senders that run until `stop`.

    Args:
        place: Where the service is, or will be.
        random: What is sent, and when.
        with_async: Whether the handlers have async ones.
        pause: The longest time between two bursts of a sender, seconds.

    Attributes:
        sent: Every task by its number. The senders add to it; read it when they have stopped.
    """

    def __init__(self, place: Place, random: chance.Random, *, with_async: bool, pause: float = PAUSE_SECONDS) -> None:
        self.longest_pause = pause
        self.sent: dict[int, Sent] = {}
        self._numbers = itertools.count(1)
        self._stopped = threading.Event()
        kinds = _UnixSender, _TcpSender, _HttpSender, _FileSender
        self._senders = [kind(self, place, chance.Random(random.random()), with_async) for kind in kinds]

    def start(self) -> None:
        """Start the senders."""
        for sender in self._senders:
            sender.start()

    def stop(self) -> None:
        """Stop them; what is under way comes to its end.

        Raises:
            RuntimeError: One has failed, which says nothing about the service.
        """
        self._stopped.set()
        for sender in self._senders:
            sender.join()
        for sender in self._senders:
            if sender.problem is not None:
                raise RuntimeError("a sender failed") from sender.problem

    @property
    def is_stopped(self) -> bool:
        """Whether they shall stop."""
        return self._stopped.is_set()

    def pause(self, seconds: float) -> None:
        """Wait, unless they shall stop."""
        self._stopped.wait(seconds)

    def new(self, at: float, way: str) -> int:
        """Another task; gives its number."""
        number = next(self._numbers)
        self.sent[number] = Sent(at, way)
        return number


class _Task:
    """One that is to be sent."""

    def __init__(self, load: Load, random: chance.Random, way: str, with_async: bool) -> None:
        dice = random.random()
        self.at = round(time.time() + random.random() * 0.8, 3) if random.random() < 0.08 else 0.0
        self.number = load.new(self.at, way)
        self.body = random.randbytes(_size(random))
        self.priority = random.randrange(1, 4) if random.random() < 0.03 else None
        self.vars = {"n": str(self.number), "size": str(len(self.body)), "sum": str(zlib.crc32(self.body))}
        if dice < 0.05:
            self.vars |= {"handler": "again", "times": str(random.randrange(1, 3))}
        elif dice < 0.07:
            self.vars["until"] = f"{time.time() + random.random() * 0.3:.3f}"
        elif dice < 0.15:
            self.vars["seconds"] = f"{random.random() * 0.01:.4f}"
            if with_async:
                self.vars["handler"] = "slow"

    def packet(self) -> bytes:
        """As the uwsgi protocol has it, the body behind."""
        vars = dict(self.vars)
        if self.at:
            vars["at"] = f"{self.at:.3f}"
        if self.priority is not None:
            vars["priority"] = str(self.priority)
        if self.body:
            vars["CONTENT_LENGTH"] = str(len(self.body))
        return packet(vars) + self.body


def _size(random: chance.Random) -> int:
    """How large a body: mostly none, some small, few so large that they are kept in another way."""
    dice = random.random()
    if dice < 0.9:
        return 0
    return random.randrange(3000) if dice < 0.998 else random.randrange(65_000, 200_000)


class _Sender(threading.Thread):
    way = ""

    def __init__(self, load: Load, place: Place, random: chance.Random, with_async: bool) -> None:
        super().__init__(name=self.way)
        self.problem: Exception | None = None
        self._load = load
        self._place = place
        self._random = random
        self._with_async = with_async

    def run(self) -> None:
        try:
            while not self._load.is_stopped:
                # The service may not be there, or have gone.
                with contextlib.suppress(OSError, http.client.HTTPException):
                    self._send()
                self._load.pause(0.01)
        except Exception as error:
            self.problem = error

    def _send(self) -> None:
        """Send until the connection breaks."""
        raise NotImplementedError

    def _new(self) -> _Task:
        return _Task(self._load, self._random, self.way, self._with_async)

    def _burst(self) -> list[_Task]:
        return [self._new() for _ in range(self._random.randrange(1, MAX_BURST + 1))]

    def _pause(self) -> None:
        self._load.pause(self._random.random() * self._load.longest_pause)

    def _goes_on(self) -> bool:
        return not self._load.is_stopped and self._random.random() > 1 / BURSTS

    def _answered(self, task: _Task, answer: Answer) -> None:
        self._load.sent[task.number].answer = answer


class _UnixSender(_Sender):
    way = "Unix socket"

    def _connect(self) -> socket.socket:
        client = socket.socket(socket.AF_UNIX)
        try:
            client.settimeout(ANSWER_SECONDS)
            client.connect(self._place.socket)
        except OSError:
            client.close()
            raise
        return client

    def _send(self) -> None:
        with contextlib.closing(self._connect()) as client, client.makefile("rb") as answers:
            while self._goes_on():
                tasks = self._burst()
                client.sendall(b"".join(task.packet() for task in tasks))
                for task in tasks:
                    answer = answers.read(4)
                    if len(answer) < 4:
                        return
                    self._answered(task, Answer.ACKNOWLEDGED if answer == SPOOLED else Answer.REFUSED)
                self._pause()


class _TcpSender(_UnixSender):
    way = "TCP socket"

    def _connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self._place.port), ANSWER_SECONDS)


class _HttpSender(_Sender):
    """Single tasks and batches, each with a key, and sent again until there is an answer."""

    way = "HTTP"

    def _send(self) -> None:
        tasks = self._burst()
        body = b"\n".join(map(_json_of, tasks))
        key = f"{tasks[0].number}"
        while not self._load.is_stopped:
            with contextlib.suppress(OSError, http.client.HTTPException):
                token = (self._place.folder / "var/token").read_text().strip()
                with contextlib.closing(
                    UnixConnection(os.fspath(self._place.folder / "http.sock"), ANSWER_SECONDS)
                ) as client:
                    while self._goes_on():
                        client.request("POST", "/api/v1/spools/default/tasks", body, _headers(tasks, token, key))
                        status = client.getresponse()
                        status.read()
                        self._take(tasks, status.status)
                        self._pause()
                        tasks = self._burst()
                        body = b"\n".join(map(_json_of, tasks))
                        key = f"{tasks[0].number}"
            self._load.pause(0.01)

    def _take(self, tasks: list[_Task], status: int) -> None:
        for task in tasks:
            self._answered(task, Answer.ACKNOWLEDGED if status == 201 else Answer.REFUSED)


def _headers(tasks: list[_Task], token: str, key: str) -> dict[str, str]:
    kind = "application/x-ndjson" if len(tasks) > 1 else "application/json"
    return {"Authorization": f"Bearer {token}", "Content-Type": kind, "Idempotency-Key": key}


def _json_of(task: _Task) -> bytes:
    document: dict[str, object] = {"vars": task.vars}
    if task.body:
        document["body"] = base64.b64encode(task.body).decode()
    if task.at:
        document["at"] = task.at
    if task.priority is not None:
        document["priority"] = task.priority
    return json.dumps(document).encode()


class _FileSender(_Sender):
    """Writes spool files in place, as uWSGI does: made under its final name, locked, written, let go."""

    way = "file"

    def _send(self) -> None:
        for counter in itertools.count():
            if self._load.is_stopped:
                return
            task = self._new()
            now = time.time_ns() // 1000
            name = f"uwsgi_spoolfile_on_other_{os.getpid()}_{counter}_{self._random.randrange(1 << 31)}"
            folder = self._place.spool / str(task.priority or "")
            folder.mkdir(exist_ok=True)
            with _made(folder / f"{name}_{now // 1_000_000}_{now % 1_000_000}") as fd:
                fcntl.lockf(fd, fcntl.LOCK_EX)
                content = packet(task.vars) + task.body
                # It writes header, vars and body one by one.
                for part in content[:4], content[4 : -len(task.body) or None], content[len(content) - len(task.body) :]:
                    os.write(fd, part)
                if task.at:
                    os.utime(fd, (task.at, task.at))
            self._answered(task, Answer.ACKNOWLEDGED)
            self._pause()


@contextlib.contextmanager
def _made(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        yield fd
    finally:
        os.close(fd)


def answers(place: Place) -> bool:
    """Whether the service answers at its Unix socket."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as client:
        client.settimeout(ANSWER_SECONDS)
        client.connect(place.socket)
        client.sendall(struct.pack("<BHB", 100, 0, 0))
        return len(client.recv(4)) == 4
    return False


def free_port() -> int:
    """A port that no client gets by chance: one that connects to itself would keep the service from it."""
    for port in chance.sample(range(20_000, 32_000), 100):
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port
    raise OSError("no port is free")
