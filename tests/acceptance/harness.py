"""The real service as a process, and clients that know nothing of its insides.

Handlers tell the test what they do through a datagram socket, so that tests wait for events and never for time to pass.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import queue
import signal
import socket
import ssl
import struct
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

HANDLERS = Path(__file__).with_name("handlers.py")
LONG = 30.0
"""Seconds after which something that should come is not coming."""


class Telling:
    """Hears what handlers tell: in a thread, since a socket that nobody reads holds ten datagrams and then blocks."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._heard: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._kept: list[dict[str, Any]] = []
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()

    def _listen(self) -> None:
        while content := self._socket.recv(65536):
            self._heard.put(json.loads(content))

    def next(self, timeout: float = LONG, **wanted: object) -> dict[str, Any]:
        """The next message that has these values; others are kept for later calls."""
        for number, message in enumerate(self._kept):
            if wanted.items() <= message.items():
                return self._kept.pop(number)
        while True:
            try:
                message = self._heard.get(timeout=timeout)
            except queue.Empty:
                raise AssertionError(f"nobody told {wanted}; told was {self._kept[-20:]}") from None
            if wanted.items() <= message.items():
                return message
            self._kept.append(message)

    def all_so_far(self) -> list[dict[str, Any]]:
        """What has been told and not been asked for."""
        # The socket gives datagrams in order: what was sent before this one has been heard when this one has.
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.sendto(b'{"event": "now"}', str(self.path))
        self.next(event="now")
        kept, self._kept = self._kept, []
        return kept

    def close(self) -> None:
        # An empty datagram ends the thread.
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"", str(self.path))
        self._thread.join()
        self._socket.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Service:
    """`trispool run` on a configuration of its own."""

    def __init__(self, folder: Path, telling: Telling, **spool: object) -> None:
        self.folder = folder
        self.telling = telling
        self.spool = folder / "spool"
        self.socket = folder / "spool.sock"
        self.tcp_port = free_port()
        self.http_port = free_port()
        self.log = folder / "service.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.config = folder / "config.toml"
        self.grace_seconds = spool.pop("grace_seconds", 10)
        self.http = {"bind": f"127.0.0.1:{self.http_port}", **cast("dict[str, object]", spool.pop("http", {}))}
        settings: dict[str, object] = {"processes": 2, "frequency": 30, "durability": "os", **spool}
        settings.setdefault("import", [str(HANDLERS)])
        self.config.write_text(
            f'state_dir = "var"\ngrace_seconds = {self.grace_seconds}\n'
            + "[http]\n"
            + "".join(f"{key} = {json.dumps(value)}\n" for key, value in self.http.items())
            + f'[[listen]]\nbind = "unix:{self.socket}"\n'
            f'[[listen]]\nbind = "127.0.0.1:{self.tcp_port}"\n'
            '[[spool]]\nname = "default"\ndirectory = "spool"\n'
            + "".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items())
        )

    def start(self, limits: Callable[[], None] | None = None) -> Service:
        """Start it, and return when it answers and its workers are ready."""
        self.launch(limits)
        self.telling.next(event="loaded")
        self.wait_until(lambda: self.status() and self._listens(), "answering")
        return self

    def launch(self, limits: Callable[[], None] | None = None, under: Sequence[str] = ()) -> None:
        """Start it, under another command if one is given, and wait for nothing."""
        environment = {**os.environ, "TELLING": str(self.telling.path)}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*under, sys.executable, "-c", "from trispool.cli import main; main()", "run", str(self.config)],
                env=environment,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=limits,
            )

    def _listens(self) -> bool:
        # The file of a service that was killed is there, too.
        with socket.socket(socket.AF_UNIX) as unix, socket.socket() as tcp:
            return unix.connect_ex(str(self.socket)) == 0 and tcp.connect_ex(("127.0.0.1", self.tcp_port)) == 0

    def wait_until(self, holds: Callable[[], object], what: str) -> None:
        """Ask until something holds. For what only the API tells; handlers tell by themselves."""
        for _ in range(int(LONG / 0.02)):
            with contextlib.suppress(ConnectionError, FileNotFoundError):
                if holds():
                    return
            assert self.process is not None
            if self.process.poll() is not None:
                break
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(0.02)
        raise AssertionError(f"not {what}:\n{self.log.read_text()}")

    # Clients

    def request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        token: bool = True,
    ) -> tuple[int, bytes]:
        """An HTTP request to the API."""
        with contextlib.closing(self.connect()) as connection:
            sent = dict(headers or {})
            if token:
                sent.setdefault("Authorization", f"Bearer {self.token}")
            connection.request(method, path, body, sent)
            answer = connection.getresponse()
            return answer.status, answer.read()

    def connect(self) -> http.client.HTTPConnection:
        """A connection to the API, however it is configured."""
        bind = str(self.http["bind"])
        if bind.startswith("unix:"):
            return UnixConnection(str(self.folder / bind.removeprefix("unix:")))
        if "certfile" in self.http:
            context = ssl.create_default_context(cafile=str(self.http["certfile"]))
            return http.client.HTTPSConnection("localhost", self.http_port, timeout=LONG, context=context)
        return http.client.HTTPConnection("127.0.0.1", self.http_port, timeout=LONG)

    @property
    def token(self) -> str:
        """The operator's."""
        return (self.folder / "var/token").read_text().strip()

    def get(self, path: str) -> Any:
        """What the API says at `path`."""
        return self.ask("GET", path)

    def ask(self, method: str, path: str, document: object = None, *, status: int = 200, **headers: str) -> Any:
        """The JSON that the API answers, which has to be with this status. Underscores in headers are dashes."""
        body = None if document is None else json.dumps(document).encode()
        sent = {"Content-Type": "application/json"} if body is not None else {}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        answered, content = self.request(method, f"/api/v1{path}", body, sent)
        assert answered == status, content
        return json.loads(content) if content else None

    def put(self, vars: Mapping[str, object], **members: object) -> str:
        """Enqueue by HTTP; gives the id."""
        answer = self.ask("POST", "/spools/default/tasks", {"vars": vars, **members}, status=201)
        return str(answer["id"])

    def status(self) -> Any:
        """The spool's status."""
        return self.get("/spools/default")

    def send(self, vars: Mapping[str, str], body: bytes = b"", *, tcp: bool = False) -> bytes:
        """A uwsgi packet; gives the answer."""
        family, address = (socket.AF_INET, ("127.0.0.1", self.tcp_port)) if tcp else (socket.AF_UNIX, str(self.socket))
        with socket.socket(family) as client:
            client.settimeout(LONG)
            client.connect(address)
            client.sendall(packet(vars) + body)
            return client.recv(4096)

    # Ends

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal and wait for the end."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(LONG + self.grace_seconds)

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: str, timeout: float = LONG) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def packet(vars: Mapping[str, str]) -> bytes:
    """A uwsgi packet, made without trispool."""
    encoded = b"".join(struct.pack("<H", len(text.encode())) + text.encode() for item in vars.items() for text in item)
    return struct.pack("<BHB", 17, len(encoded), 0) + encoded


@contextlib.contextmanager
def telling_in(folder: Path) -> Iterator[Telling]:
    """A telling socket in a folder."""
    telling = Telling(folder / "telling.sock")
    try:
        yield telling
    finally:
        telling.close()


def is_alive(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # the latter if it ends meanwhile
        return False
