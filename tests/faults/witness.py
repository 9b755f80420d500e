"""What clients were told and what handlers did, held against each other; and a service that is watched so.

Names of tasks (`n`) are never used twice. A handler tells whether the task was as it was sent: the client sends a
checksum along.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import signal
import socket
import time
import zlib
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tests.acceptance.harness import LONG, Service, Telling, packet

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

__all__ = ["ANSWER_SECONDS", "Watched", "Witness"]

HANDLERS: Final = Path(__file__).parent / "workers" / "told.py"
SPOOLED: Final = b"\xff\x00\x00\x01"
REFUSED: Final = b"\xff\x00\x00\x00"

ANSWER_SECONDS: Final = 15.0
"""Who has no answer after this has none: the service answers within milliseconds, or when the fault is over."""

SETTLE_SECONDS: Final = 20.0
"""For all that was acknowledged to have run once nothing fails any more. It takes some tenths of a second."""

SILENT: Final = "it does not answer"

LOOK_SECONDS: Final = 0.02
ACT_SECONDS: Final = 0.3


class Witness:
    """See the module.

    Attributes:
        sent: All tasks that a client tried to enqueue.
        acknowledged: Those of which it was told that they are kept.
        refused: Those of which it was told that they are not.
        unsure: Those of these that may run all the same; see `killed`.
        cancelled: Those of which it was told that they have been cancelled.
        dishonest: Answers that were none, in words.
        ran: How often each ran to its end.
        altered: Those that ran with other vars, or another body, than were sent.
    """

    def __init__(self) -> None:
        self.sent: set[str] = set()
        self.acknowledged: set[str] = set()
        self.refused: set[str] = set()
        self.unsure: set[str] = set()
        self.cancelled: set[str] = set()
        self.dishonest: list[str] = []
        self.ran: Counter[str] = Counter()
        self.altered: set[str] = set()

    def heard(self, messages: Iterable[dict[str, Any]]) -> None:
        """What handlers have told."""
        for message in messages:
            if message["event"] == "ran":
                self.ran[message["n"]] += 1
                if not message["good"]:
                    self.altered.add(message["n"])

    def killed(self) -> None:
        """The service was killed.

        Answers that did not come are no lies. And what a disk that fails has been told to keep, and then to forget, it
        may have kept.
        """
        self.dishonest.clear()
        self.unsure |= self.refused

    @property
    def missing(self) -> set[str]:
        """What has to run still."""
        return self.acknowledged - set(self.ran) - self.cancelled

    @property
    def again(self) -> int:
        """How many runs there were beyond the first ones."""
        return self.ran.total() - len(self.ran)

    def violations(self) -> list[str]:
        """Broken promises, in words; `missing` is taken for lost."""
        ran = set(self.ran)
        kinds = {
            "was acknowledged and is lost": self.missing,
            "ran, and nobody had sent it": ran - self.sent,
            "ran with other vars or another body than were sent": self.altered,
            "was refused and ran": ran & self.refused - self.unsure,
            "was cancelled and ran": ran & self.cancelled,
        }
        return self.dishonest + [f"{n} {what}" for what, names in kinds.items() for n in sorted(names)]


class Watched(Service):
    """The real service, with a witness. Its clients tell the witness what they are told.

    Attributes:
        doom: While there is this file, tasks for `doomed` fail.
        ids: Of tasks that something is going to be done to.
        torn: What was in files that were put into the spool and cannot be parsed.
    """

    def __init__(self, folder: Path, telling: Telling, **spool: object) -> None:
        super().__init__(folder, telling, **{"import": [str(HANDLERS)], "processes": 1, "frequency": 0.2, **spool})
        self.witness = Witness()
        self.doom = folder / "doom"
        self.ids: list[str] = []
        self.torn: list[bytes] = []
        self._said_from = 0

    # Clients

    def spool_task(self, n: str, *, handler: str = "told", body: bytes = b"", **vars: str) -> None:
        """Enqueue by the uwsgi socket."""
        self.witness.sent.add(n)
        try:
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(ANSWER_SECONDS)
                client.connect(str(self.socket))
                vars = {**self.vars_of(n, handler, body), **vars}
                client.sendall(packet({**vars, **({"CONTENT_LENGTH": str(len(body))} if body else {})}) + body)
                answer = client.recv(4)
        except OSError as error:
            answer = str(error).encode()
        if answer == SPOOLED:
            self.witness.acknowledged.add(n)
        elif answer == REFUSED:
            self.witness.refused.add(n)
        else:
            self.witness.dishonest.append(f"{n} was answered {answer!r}")

    def post_task(self, n: str, *, handler: str = "told", body: bytes = b"", key: bool = False, **members: Any) -> str:
        """Enqueue by HTTP, with a key if told to; gives the id, or nothing."""
        self.witness.sent.add(n)
        document = {"vars": self.vars_of(n, handler, body), "body": base64.b64encode(body).decode(), **members}
        headers = {"Content-Type": "application/json", **({"Idempotency-Key": n} if key else {})}
        status, content = self._asked("POST", "/spools/default/tasks", json.dumps(document).encode(), headers)
        if status == 201:
            self.witness.acknowledged.add(n)
            return str(json.loads(content)["id"])
        if status == 503:
            self.witness.refused.add(n)
        else:
            self.witness.dishonest.append(f"{n} was answered {status} {content[:200]!r}")
        return ""

    def act(self, task_id: str, action: str, document: object = None) -> bool:
        """Do something to a task. Returns whether it has been done, as far as was told."""
        body = None if document is None else json.dumps(document).encode()
        headers = {"Content-Type": "application/json"} if body is not None else {}
        status, content = self._asked("POST", f"/tasks/{task_id}/{action}", body, headers)
        if status not in (200, 404, 409, 503):
            self.witness.dishonest.append(f"{action} was answered {status} {content[:200]!r}")
        return status == 200

    def pause(self, *, paused: bool) -> bool:
        """Let no more tasks start, or again."""
        body = json.dumps({"paused": paused}).encode()
        status, content = self._asked("PATCH", "/spools/default", body, {"Content-Type": "application/json"})
        if status not in (200, 503):
            self.witness.dishonest.append(f"paused={paused} was answered {status} {content[:200]!r}")
        return status == 200

    def _asked(self, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> tuple[int, bytes]:
        try:
            return self.request(method, f"/api/v1{path}", body, headers)
        except (OSError, http.client.HTTPException) as error:
            return 0, repr(error).encode()

    def vars_of(self, n: str, handler: str = "told", body: bytes = b"") -> dict[str, str]:
        """What the handler is given."""
        doom = {"doom": str(self.doom)} if handler == "doomed" else {}
        return {"handler": handler, "n": n, "check": str(zlib.crc32(n.encode() + body)), **doom}

    # Looking

    def hear(self) -> None:
        """Let the witness know what handlers have told until now."""
        self.witness.heard(self.telling.all_so_far())

    def await_that(self, holds: Callable[[], bool], seconds: float) -> bool:
        """Whether something comes to hold in a time."""
        end = time.monotonic() + seconds
        while not holds():
            if time.monotonic() > end:
                return False
            time.sleep(LOOK_SECONDS)
        return True

    def all_ran(self, seconds: float) -> bool:
        """Whether all that was acknowledged has run in that time."""

        def none_missing() -> bool:
            self.hear()
            return not self.witness.missing

        return self.await_that(none_missing, seconds)

    @property
    def files(self) -> list[Path]:
        """The spool files that wait."""
        return list(self.spool.glob("uwsgi_spoolfile_*"))

    def take_torn(self) -> int:
        """Take away the files that could not be parsed, which would be tried again whenever others are.

        Returns:
            How many were neither where they had been put nor set aside.
        """
        lying = {path: path.read_bytes() for path in (*self.files, *self.spool.glob(".trispool/dead/*"))}
        missing = sum(content not in lying.values() for content in self.torn)
        for path, content in lying.items():
            if content in self.torn:
                path.unlink(missing_ok=True)
        self.torn.clear()
        return missing

    @property
    def problem(self) -> str:
        """What the service says is wrong, or nothing."""
        with contextlib.suppress(OSError, http.client.HTTPException, AssertionError):
            status = self.status()
            return str(status["problem"] or status["refusing"] or "")
        return SILENT

    def pid_of_worker(self) -> int:
        """The worker's."""
        return int(self.status()["workers"][0]["pid"])

    # While a fault goes on, and after it

    def start(self, limits: Callable[[], None] | None = None) -> Watched:
        """See `Service.start`."""
        try:
            super().start(limits)
        except AssertionError as error:
            raise AssertionError(f"it does not start: {error}\n{self.log.read_text()[-5000:]}") from None
        return self

    def attempt(self, under: Sequence[str] = ()) -> int | None:
        """Start it, see `launch`, where it may not be able to. Returns its exit code, or None: it answers.

        What it says meanwhile is in `said`.
        """
        self._said_from = self.log.stat().st_size if self.log.exists() else 0
        self.launch(under=under)
        assert self.process is not None

        def is_over() -> bool:
            assert self.process is not None
            with contextlib.suppress(FileNotFoundError):  # the socket needs a file, too
                return self.process.poll() is not None or (self.problem != SILENT and self._listens())
            return False

        self.await_that(is_over, LONG)
        return self.process.poll()

    @property
    def said(self) -> str:
        """What it has said since `attempt`."""
        with self.log.open() as log:
            log.seek(self._said_from)
            return log.read()

    def settle(self, seconds: float = SETTLE_SECONDS) -> float | None:
        """Do what an operator does, and wait until all that was acknowledged has run and a new task runs, too.

        Returns:
            Seconds, or None if that does not happen, or the service says that it has to be restarted.
        """
        self.doom.unlink(missing_ok=True)
        began = time.monotonic()
        act_at = began
        probes = 0
        while time.monotonic() - began < seconds:
            self.hear()
            problem = self.problem
            if not problem and not self.witness.missing and probes and self._is_idle():
                return time.monotonic() - began
            if "restart" in problem:
                return None
            if time.monotonic() >= act_at:
                act_at = time.monotonic() + ACT_SECONDS
                self._operate()
                if not self.witness.missing:
                    # Whatever the problem: what refused the last task is told until the next one is kept.
                    probes += 1
                    self.spool_task(f"probe {time.monotonic_ns()}")
                    continue
            time.sleep(LOOK_SECONDS)
        return None

    def _is_idle(self) -> bool:
        # What has run may wait to be run again.
        with contextlib.suppress(OSError, http.client.HTTPException, AssertionError):
            status = self.status()
            return not (status["ready"] or status["scheduled"] or status["running"])
        return False

    def _operate(self) -> None:
        with contextlib.suppress(OSError, http.client.HTTPException, AssertionError):
            if self.status()["paused"]:
                self.pause(paused=False)
            actions = [("scheduled", "run")]
            if self.witness.missing:
                actions += [("held", "release"), ("dead", "retry")]
            for state, action in actions:
                for task in self.get(f"/tasks?state={state}&limit=100")["tasks"]:
                    self.act(task["id"], action)

    def restart(self) -> bool:
        """Stop it in order, and start it. Returns whether it stopped with exit code 0."""
        code = self.stop()
        self.hear()
        self.start()
        return code == 0

    def kill(self) -> None:
        """Kill it, as a crash does."""
        self.stop(signal.SIGKILL)
        self.hear()
