"""What requests ask for, and what they are answered: between a connection's reader and `enqueue`. No IO but logging."""

from __future__ import annotations

import time
from collections import Counter
from http import HTTPStatus
from itertools import islice
from typing import TYPE_CHECKING, Final

import structlog

from trispool.connection import FEW_BYTES, Connection, Pending, Turn
from trispool.errors import MalformedPacket, SpoolUnavailable, TaskRefused, TrispoolError
from trispool.packet import (
    ANSWER_REFUSED,
    ANSWER_SPOOLED,
    PING_MODIFIER,
    PONG,
    http_answer,
    is_plain,
    task_from_vars,
)
from trispool.reader import NEED_DATA, PacketReader, Request, UnacceptedModifier, names_length
from trispool.task import NewTask

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trispool.settings import ListenSettings
    from trispool.task import Accepted

__all__ = ["Intake"]

TURN_REQUESTS: Final = 256
"""Of one connection, so many requests are kept together; a client that sends more has the others served in between."""

COMPLAINT_SECONDS: Final = 10.0
"""Of one kind of refusal, one in so many seconds is logged. A line costs as much as taking a task."""

_log = structlog.get_logger()


class Intake:
    """The requests of one listener.

    Attributes:
        requests: How many came, pings included.
        spooled: How many tasks were kept.
        refused: How many requests and connections were refused, by reason.
    """

    def __init__(self, settings: ListenSettings) -> None:
        self._settings = settings
        self._modifiers = frozenset(settings.accept_modifiers)
        self._always_http = settings.reply == "http"
        self._never_http = settings.reply == "uwsgi"
        self._most_plain = min(settings.max_packet, FEW_BYTES)  # `is_plain` takes 130 µs for 60 KB, `decode_vars` 2
        self._quiet_until: dict[str, float] = {}
        self._unlogged: Counter[str] = Counter()
        self.requests = 0
        self.spooled = 0
        self.refused: Counter[str] = Counter()

    def new_reader(self) -> PacketReader:
        """A reader with the limits of this listener."""
        settings = self._settings
        return PacketReader(max_packet=settings.max_packet, max_body=settings.max_body, modifiers=self._modifiers)

    def plain_turn(self, connection: Connection, data: bytes) -> Turn | None:
        """What most clients send: whole packets, whose vars need not be looked at; None if it is not so.

        Args:
            connection: Whose.
            data: All that has come from it and was not looked at.
        """
        if self._always_http:
            return None
        # All headers first: what is a body and no packet is not worth a look at the packet before it.
        payloads: list[bytes] = []
        end, position = len(data), 0
        while position < end:
            start = position + 4
            if start > end or data[position] not in self._modifiers or len(payloads) == TURN_REQUESTS:
                return None
            size = data[position + 1] | data[position + 2] << 8
            position = start + size
            if position > end or size > self._most_plain:
                return None
            payloads.append(data[start:position])
        if not all(map(is_plain, payloads)):
            return None
        self.requests += len(payloads)
        return Turn(connection, None, list(map(NewTask, payloads)), end)

    def next_turn(self, connection: Connection) -> Turn | None:
        """The whole requests that a connection has sent, up to a limit; None if there is none.

        Sets the connection's `last` when no further request of it will be looked at, and `broken` when what it sends
        from now on cannot be one.
        """
        replies: list[bytes | Pending] = []
        tasks: list[NewTask] = []
        reader = connection.reader
        try:
            while not connection.last and len(replies) < TURN_REQUESTS:
                request = reader.next_event()
                if not isinstance(request, Request):
                    assert request is NEED_DATA
                    break
                self.requests += 1
                self._take(request, connection, replies, tasks)
                if not reader.buffered:
                    break
        except TaskRefused as error:
            connection.last = connection.broken = True
            replies.append(self.refuse(connection, error))
        if not replies:
            return None
        return Turn(connection, replies, tasks, sum(len(task.payload) + len(task.body) for task in tasks))

    def _take(
        self, request: Request, connection: Connection, replies: list[bytes | Pending], tasks: list[NewTask]
    ) -> None:
        if request.modifier1 not in self._modifiers:
            if request.modifier1 != PING_MODIFIER:
                raise UnacceptedModifier(
                    f"modifier1 is {request.modifier1}, accepted here: {', '.join(map(str, sorted(self._modifiers)))}"
                )
            replies.append(PONG)
            return
        http = self._wants_http(connection)
        if http:
            connection.last = True  # as the answer says
            if connection.reader.buffered and not names_length(request.vars):
                raise TaskRefused("bytes follow the request, which names no CONTENT_LENGTH for them", status=411)
        try:
            tasks.append(task_from_vars(request.payload, request.vars, request.body))
        except TaskRefused as error:
            replies.append(self.refuse(connection, error))
        else:
            replies.append(Pending.HTTP if http else Pending.UWSGI)

    def _wants_http(self, connection: Connection) -> bool:
        """Whether who sent the packet read last waits for an HTTP answer."""
        return self._always_http or (not self._never_http and connection.reader.from_web)

    def answer(self, turn: Turn, results: Iterator[Accepted | TrispoolError]) -> bytes:
        """The answers of a turn, once its tasks are kept or not.

        Args:
            turn: The turn.
            results: Gives what became of each of its tasks; may go on with those of the next turn.
        """
        if turn.replies is None:
            answers = [
                self.refuse(turn.connection, result, http=False)
                if isinstance(result, TrispoolError)
                else ANSWER_SPOOLED
                for result in islice(results, len(turn.tasks))
            ]
            self.spooled += answers.count(ANSWER_SPOOLED)
            return b"".join(answers)
        answers = []
        for reply in turn.replies:
            if isinstance(reply, bytes):
                answers.append(reply)
                continue
            result = next(results)
            if isinstance(result, TrispoolError):
                answers.append(self.refuse(turn.connection, result, http=reply is Pending.HTTP))
                continue
            self.spooled += 1
            if reply is Pending.UWSGI:
                answers.append(ANSWER_SPOOLED)
            else:
                answers.append(http_answer(202, {"id": result.id, "spool": result.spool, "at": result.at}))
        return b"".join(answers)

    def refuse(
        self, connection: Connection, error: TrispoolError, *, reason: str = "", http: bool | None = None
    ) -> bytes:
        """The answer to what is refused; counts it and says so in the log.

        Args:
            connection: Whose request it is.
            error: Why.
            reason: A word for the statistics; empty: by the error.
            http: Whether a web server waits for it; None: by the packet read last.
        """
        self.count(reason or _reason(error), connection.peer, str(error))
        if http is None:
            http = self._wants_http(connection)
        if not http:
            return ANSWER_REFUSED
        status = error.status if isinstance(error, TaskRefused) else 503
        return http_answer(status, {"title": HTTPStatus(status).phrase, "detail": str(error)})

    def count(self, reason: str, peer: str, detail: str) -> None:
        """Count a refusal, and log it unless one like it has just been logged."""
        self.refused[reason] += 1
        now = time.monotonic()
        if now < self._quiet_until.get(reason, 0.0):
            self._unlogged[reason] += 1
            return
        self._quiet_until[reason] = now + COMPLAINT_SECONDS
        _log.warning(
            "refused",
            listener=self._settings.bind,
            reason=reason,
            peer=peer,
            detail=detail,
            unlogged_before=self._unlogged.pop(reason, 0),
        )


def _reason(error: TrispoolError) -> str:
    if isinstance(error, UnacceptedModifier):
        return "modifier"
    if isinstance(error, MalformedPacket):
        return "malformed"
    if isinstance(error, TaskRefused):
        return {404: "no_spool", 408: "timeout", 411: "no_length", 413: "too_large"}.get(error.status, "invalid")
    return "unavailable" if isinstance(error, SpoolUnavailable) else "failed"
