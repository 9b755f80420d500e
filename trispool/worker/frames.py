"""The messages between the service and one of its worker processes; sans-IO.

    length u32 big-endian | msgpack array: kind, then the fields of the class by that name, in order

The messages that go by thousands (`Run`, `Done`) are written as plain tuples and lists, which is quicker than building
objects; their classes serve for reading. Fields at the end of a report may be left out where they have their defaults.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence  # noqa: TC003 # msgspec looks it up
from typing import Final, Generic, Literal, TypeVar

import msgspec

from trispool.errors import TrispoolError

__all__ = [
    "MAX_FRAME",
    "Broken",
    "Cancel",
    "Code",
    "Done",
    "FrameReader",
    "FromWorker",
    "HandlerInfo",
    "Item",
    "MalformedFrame",
    "Pids",
    "Progress",
    "Quit",
    "Ready",
    "Recall",
    "Report",
    "Run",
    "SetFrequency",
    "Setup",
    "ToWorker",
    "encode_frame",
]

MAX_FRAME: Final = 0x7FFF_FFFF
"""The longest frame that can be written, bytes: one task with the largest body is far below it."""

_LENGTH: Final = struct.Struct(">I")
_encoder: Final = msgspec.msgpack.Encoder()

Code = (
    Literal["ok", "retry", "ignore", "failed", "timeout", "cancelled"]
    | Literal["gone", "locked", "not_due", "unreadable", "settling"]
    | Literal["returned"]
)
"""How a task ended in a worker. Those of the first line ran (`timeout`: an async handler was cancelled because it took
too long; `cancelled`: because an operator wished it); those of the second could not be claimed (`trispool.claimed`);
`returned` was not begun, because the service had recalled it."""

Item = tuple[tuple[str, str, tuple[bytes, bytes] | None], int]
"""One task to run: its claim as the store made it (id, ref, and the encoded vars and the body unless the worker claims
the file at `ref` itself), and the attempt, 1 for the first."""


class MalformedFrame(TrispoolError):
    """The other side does not speak our protocol."""


# From the service to the worker


class Setup(msgspec.Struct, array_like=True, tag="setup", frozen=True, kw_only=True):
    """The first frame: what to be.

    Attributes:
        spool: The spool's name.
        directory: Its absolute directory, in which the worker claims files, or None where claims carry their task.
        fsync: Whether tasks that handlers put there are on disk before the handler goes on.
        imports: Files or modules with handlers.
        chdir: Where handlers run, or "" (see `trispool.worker.claims`).
        concurrency: How many async handlers may run at once.
        timeout: Seconds that a handler without a timeout of its own may take; 0: no limit.
        frequency: The spool's frequency, seconds.
        spoolers: The directories of all spools, for `uwsgi.spoolers`.
        options: For `uwsgi.opt`.
        processes: How many workers the spool has.
        pids: The worker processes of this spool, as far as they have been started.
        service_pid: The process that supervises the workers (`uwsgi.masterpid`).
        slots: Marks on the board; a power of 2, at least twice the number of tasks in hand.
    """

    spool: str = "default"
    directory: str | None = None
    fsync: bool = True
    imports: tuple[str, ...] = ()
    chdir: str = ""
    concurrency: int = 100
    timeout: float = 0.0
    frequency: float = 30.0
    spoolers: tuple[str, ...] = ()
    options: Mapping[str, bytes | bool | list[bytes | bool]] = {}
    processes: int = 1
    pids: tuple[int, ...] = ()
    service_pid: int = 0
    slots: int = 256


class Run(msgspec.Struct, array_like=True, tag="run", frozen=True):
    """Run these, in order. `first` is the number of the first; every task a worker is given has the next number."""

    first: int
    items: list[Item]


class Quit(msgspec.Struct, array_like=True, tag="quit", frozen=True):
    """Finish what you have, then exit."""


class Recall(msgspec.Struct, array_like=True, tag="recall", frozen=True):
    """Return what waits for a handler's `concurrency`. What else is not begun is recalled by the board."""


class Cancel(msgspec.Struct, array_like=True, tag="cancel", frozen=True):
    """To an async worker: cancel the handler of this task; if it waits for the handler's `concurrency`, return it."""

    number: int


class Pids(msgspec.Struct, array_like=True, tag="pids", frozen=True):
    """The worker processes of this spool have changed."""

    pids: tuple[int, ...]


class SetFrequency(msgspec.Struct, array_like=True, tag="frequency", frozen=True):
    """The spool's frequency, seconds. From a worker: a handler wants it so; 0: as configured."""

    seconds: float


# From the worker to the service


class HandlerInfo(msgspec.Struct, frozen=True):
    """What the service must know of a handler; None: as the spool has it.

    Attributes:
        default: Whether it runs the tasks that name none.
    """

    default: bool = False
    retries: int | None = None
    backoff: Literal["frequency", "exponential"] | float | Sequence[float] | None = None
    timeout: float | None = None
    concurrency: int | None = None


class Ready(msgspec.Struct, array_like=True, tag="ready", frozen=True):
    """The handlers are imported."""

    is_async: bool
    handlers: dict[str, HandlerInfo]


class Broken(msgspec.Struct, array_like=True, tag="broken", frozen=True):
    """The handlers do not import; the worker exits."""

    traceback: str


class Report(msgspec.Struct, array_like=True):
    """How one task ended.

    Attributes:
        number: Its number (`Run.first`).
        code: How it ended.
        started_at: Unix seconds; 0.0 if no handler was called.
        run_seconds: How long the handler took.
        handler: The handler's name, or None.
        error: What went wrong, one line.
        traceback: Of the handler.
        retry_at: When the handler wants it run again, Unix seconds.
        detail: Unix seconds for `not_due`, the reason for `unreadable`.
        vars: The encoded vars of a task that is `ok`, if they are not longer than `trispool.task.MAX_KEPT_VARS`.
    """

    number: int
    code: Code
    started_at: float = 0.0
    run_seconds: float = 0.0
    handler: str | None = None
    error: str | None = None
    traceback: str | None = None
    retry_at: float | None = None
    detail: float | str | None = None
    vars: bytes | None = None


R = TypeVar("R", bound=Report)


class Done(msgspec.Struct, Generic[R], array_like=True, tag="done"):
    """These tasks have ended. Each task given is reported once."""

    reports: list[R]


class Progress(msgspec.Struct, array_like=True, tag="progress", frozen=True):
    """How far a task is, 0 to 1, with a few words."""

    id: str
    fraction: float
    text: str


ToWorker = Setup | Run | Recall | Cancel | Quit | Pids | SetFrequency
FromWorker = Ready | Broken | Done[Report] | Progress | SetFrequency


def encode_frame(message: object) -> bytearray:
    """One message as it goes over the wire: an instance of a class above, or a tuple of its kind and fields.

    Raises:
        ValueError: It is longer than `MAX_FRAME`.
    """
    frame = bytearray(64)
    _encoder.encode_into(message, frame, 4)
    length = len(frame) - 4
    if length > MAX_FRAME:
        raise ValueError(f"a frame of {length} bytes; at most {MAX_FRAME} are possible")
    _LENGTH.pack_into(frame, 0, length)
    return frame


class FrameReader:
    """Cuts a byte stream into frames.

    Bytes are received right into its buffer: `n = sock.recv_into(reader.space())`, then `reader.received(n)`, then
    `next_frame` until it gives None. A frame stays valid until the next call of `space`.

    Args:
        max_frame: The longest frame to expect, bytes; more is a sign of a stream gone wrong.
        room: Bytes to receive at once, at least.
    """

    def __init__(self, max_frame: int = MAX_FRAME, room: int = 0x1_0000) -> None:
        self._max = max_frame
        self._room = room
        self._buffer = bytearray(room)
        self._view = memoryview(self._buffer)
        self._start = 0  # of the first byte not yet given out
        self._end = 0  # of what has been received

    def space(self) -> memoryview:
        """Where to receive to."""
        waiting = self._end - self._start
        wanted = self._room
        if waiting >= 4:
            length = min(self._max, _LENGTH.unpack_from(self._buffer, self._start)[0])
            wanted = max(wanted, 4 + length - waiting)
        if waiting == 0:
            self._start = self._end = 0
        if len(self._buffer) - self._end < wanted:
            # Receiving into a fresh buffer also gives the memory of a huge frame back.
            fresh = bytearray(waiting + wanted)
            fresh[:waiting] = self._view[self._start : self._end]
            self._buffer, self._view = fresh, memoryview(fresh)
            self._start, self._end = 0, waiting
        elif waiting == 0 and len(self._buffer) > 16 * self._room:
            self._buffer = bytearray(self._room)
            self._view = memoryview(self._buffer)
        return self._view[self._end :]

    def received(self, count: int) -> None:
        """So many bytes have been put into `space()`."""
        self._end += count

    def next_frame(self) -> memoryview | None:
        """The next frame without its length, or None if more bytes are needed.

        Raises:
            MalformedFrame: It is said to be longer than `max_frame`. Nothing that follows can be understood.
        """
        start = self._start + 4
        if start > self._end:
            return None
        length = _LENGTH.unpack_from(self._buffer, self._start)[0]
        if length > self._max:
            raise MalformedFrame(f"a frame of {length} bytes; at most {self._max} were expected")
        end = start + length
        if end > self._end:
            return None
        self._start = end
        return self._view[start:end]
