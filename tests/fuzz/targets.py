"""What is fuzzed: functions of bytes that raise if what they feed breaks a promise.

A target's first bytes may be choices (how to cut, which form); the rest is what a stranger sends.
"""

from __future__ import annotations

import base64
import contextlib
import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec
from pydantic import ValidationError

from trispool import config
from trispool.admin import models
from trispool.admin.enqueue import pairs_of, parse_lines, parse_task
from trispool.admin.faults import FaultyRequest, faults_in
from trispool.admin.jsonbody import decode_object
from trispool.admin.moments import parse_moment
from trispool.arguments import ArgumentError, Plan
from trispool.cursors import Cursor
from trispool.errors import ConfigError, MalformedSpoolFile, TaskRefused
from trispool.packet import decode_vars, encode_packet, encode_vars, http_answer, task_from_vars, wants_http
from trispool.quantities import read_bytes, read_seconds
from trispool.reader import NEED_DATA, PacketReader, Request
from trispool.spoolfile import PREFIX, encode, is_priority_name, is_spool_name, order_of, parts
from trispool.task import LATEST_AT, MAX_PRIORITY
from trispool.worker import frames

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from trispool.task import NewTask

__all__ = ["TARGETS", "Target"]


@dataclass(frozen=True, slots=True)
class Target:
    """One reader.

    Attributes:
        run: Feeds it; raises if it breaks a promise.
        seeds: Good bytes to begin with.
    """

    run: Callable[[bytes], None]
    seeds: Sequence[bytes]


# Packets


def packets(data: bytes) -> None:
    """However its bytes are cut, a connection has the same requests and the same error."""
    if not data:
        return
    whole, faulty = _read([data[1:]])
    step = 1 + data[0] % 23
    cut = [data[start : start + step] for start in range(1, len(data), step)]
    assert (whole, faulty) == _read(cut)
    for request in whole:
        if request.modifier1 != 17:
            continue
        assert decode_vars(request.payload) == request.vars
        wants_http(request.vars)
        try:
            _check_task(task_from_vars(request.payload, request.vars, request.body))
        except TaskRefused as error:
            http_answer(error.status, {"detail": str(error)})


def _read(pieces: Sequence[bytes]) -> tuple[list[Request], str]:
    """The requests in what comes in pieces, and how it ends."""
    reader = PacketReader(max_packet=200, max_body=100)
    found: list[Request] = []
    fed = taken = 0
    for piece in pieces:
        reader.receive_data(piece)
        fed += len(piece)
        try:
            while (event := reader.next_event()) is not NEED_DATA:
                assert isinstance(event, Request)
                found.append(event)
                taken += 4 + len(event.payload) + len(event.body)
        except TaskRefused as error:
            return found, f"{type(error).__name__} {error.status}: {error}"
        assert reader.buffered == fed - taken
        assert reader.missing > 0 or not reader.buffered
    return found, f"{reader.buffered} bytes"


# Spool files


def spool_files(data: bytes) -> None:
    """A file is a task, or is malformed; it is called incomplete only if more bytes could make it whole."""
    try:
        payload, vars, body = parts(data)
    except MalformedSpoolFile as error:
        if not error.incomplete:
            for more in (b"\0" * 70_000, b"\1\0x\0\0" * 14_000, b"x"):
                assert _incomplete(data + more) is False, "more bytes made it whole"
        return
    assert encode(payload, body) == data
    assert decode_vars(encode_vars(vars)) == vars
    for cut in range(4 + len(payload)):
        assert _incomplete(data[:cut]) is True, cut


def _incomplete(data: bytes) -> bool | None:
    """Whether a file that is malformed is so because bytes are missing; None: it is whole."""
    try:
        parts(data)
    except MalformedSpoolFile as error:
        return error.incomplete
    return None


def spool_names(data: bytes) -> None:
    """Any name has an order, and a priority or none."""
    name = data.decode("utf-8", "surrogateescape")
    for candidate in (name, PREFIX + name):
        microseconds, counter = order_of(candidate, 1.5)
        assert 0 <= microseconds < 2**63
        assert 0 <= counter < 10**20
        is_spool_name(candidate)
        priority = is_priority_name(candidate)
        assert priority is None or 0 <= priority < 2**63


# The configuration


def configuration(data: bytes) -> None:
    """A text and an environment give settings, or problems of a line each."""
    text, *variables = data.decode("utf-8", "replace").split("\0")
    environ = dict(f"TRISPOOL_{variable}".split("=", 1) for variable in variables if "=" in variable)
    try:
        config.load(text, base="/base", environ=environ)
    except ConfigError as error:
        problems = error.problems
    else:
        return
    assert problems
    for problem in problems:
        assert problem.strip()
        problem.encode()


def quantities(data: bytes) -> None:
    """A length of time, a size or a time is a finite number from 0 up, or a ValueError."""
    text = data.decode("utf-8", "surrogateescape")
    values: list[object] = [text]
    with contextlib.suppress(ValueError, RecursionError):
        values.append(json.loads(text))
    for value in values:
        for read, largest in ((read_seconds, math.inf), (read_bytes, math.inf), (parse_moment, LATEST_AT)):
            try:
                found = read(value)
            except ValueError:
                continue
            assert 0 <= found <= largest


# Frames between the service and its workers


def worker_frames(data: bytes) -> None:
    """However its bytes are cut, a stream has the same frames; each is a message or raises what its reader expects."""
    if not data:
        return
    whole = _frames(data[1:], len(data))
    assert whole == _frames(data[1:], 1 + data[0] % 23)
    for frame in whole[0]:
        for decoder in (_to_worker, _from_worker):
            try:
                message = decoder.decode(frame)
            except (msgspec.MsgspecError, UnicodeDecodeError):
                continue
            assert decoder.decode(bytes(frames.encode_frame(message)[4:])) == message


_to_worker: Final = msgspec.msgpack.Decoder(frames.ToWorker)
_from_worker: Final = msgspec.msgpack.Decoder(frames.FromWorker)


def _frames(data: bytes, step: int) -> tuple[list[bytes], bool]:
    reader = frames.FrameReader(max_frame=5000, room=16)
    found = []
    position = 0
    try:
        while position < len(data):
            space = reader.space()
            count = min(len(space), step, len(data) - position)
            space[:count] = data[position : position + count]
            position += count
            reader.received(count)
            while (frame := reader.next_frame()) is not None:
                found.append(bytes(frame))
    except frames.MalformedFrame:
        return found, True
    return found, False


# Requests


_FORMS: Final = ("application/json", "application/x-www-form-urlencoded", "multipart/form-data", "")


def requests(data: bytes) -> None:
    """What asks for a task gives one that a spool can keep, or faults that can be told."""
    if not data:
        return
    form = _FORMS[data[0] % len(_FORMS)]
    query, _separator, body = data[1:].partition(b"\0") if data[0] & 0x80 else (b"", b"", data[1:])
    try:
        task = parse_task(form, {"boundary": "b"}, query, body)
    except FaultyRequest as error:
        _check_faults(error)
        return
    _check_task(task)
    if form == "application/json":
        # What a strict reader does not take shall not be taken either, nor be understood in another way.
        document = decode_object(body)
        texts = {key: value for key, value in document.get("vars", {}).items() if isinstance(value, str)}
        vars = decode_vars(task.payload)
        special = {"at", "priority"}
        assert {key: vars[key.encode()].decode() for key in texts if key not in special} == {
            key: value for key, value in texts.items() if key not in special
        }


def batches(data: bytes) -> None:
    """Each line that is not blank gives a task or its faults, whatever its neighbours are."""
    found = list(parse_lines(data))
    lines = data.split(b"\n")
    assert [number for number, _ in found] == [
        number for number, line in enumerate(lines, 1) if line and not line.isspace()
    ]
    for number, result in found:
        if isinstance(result, FaultyRequest):
            _check_faults(result, number)
        else:
            _check_task(result)


_BODIES: Final[tuple[type[models.Request], ...]] = (
    *(models.BulkOrder, models.SpoolSettings, models.Reschedule, models.Restart, models.Nothing),
)
_QUERIES: Final[tuple[type[models.Request], ...]] = (
    *(models.TaskListing, models.BulkListing, models.AuditListing, models.EventsFrom),
)


def orders(data: bytes) -> None:
    """What asks for anything else, in a body or a query, is an order or has faults that can be told."""
    try:
        body = decode_object(data)
    except FaultyRequest as error:
        _check_faults(error)
    else:
        for model in _BODIES:
            _validate(model, body, in_query=False)
    try:
        pairs = pairs_of(data)
        query = {key.decode(): value.decode() for key, value in pairs}
    except (FaultyRequest, UnicodeDecodeError):
        return
    for model in _QUERIES:
        _validate(model, query, in_query=True)


def _validate(model: type[models.Request], data: dict[str, Any], *, in_query: bool) -> None:
    try:
        asked = model.model_validate(data)
    except ValidationError as error:
        _check_faults(FaultyRequest(list(faults_in(error, model, data, in_query=in_query))))
        return
    for name in ("query", "request", "change"):
        getattr(asked, name, lambda: None)()


def cursors(data: bytes) -> None:
    """A cursor is a place that gives the same cursor again, or is refused."""
    sorts: tuple[Literal["enqueued", "due"], ...] = ("enqueued", "due")
    for sort in sorts:
        for text in (data.decode("latin-1"), _base64(data)):
            try:
                cursor = Cursor.decode(text, sort)
            except TaskRefused:
                continue
            assert cursor.sort == sort
            assert Cursor.decode(cursor.encode(), cursor.sort) == cursor


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


# Handlers


def _wants(
    a: int,
    b: float = 0.0,
    c: bool = False,
    d: str = "",
    e: bytes = b"",
    f: list[int] | None = None,
    g: dict[str, int] | int | None = None,
    h: set[str] | None = None,
    body: str = "",
    **rest: object,
) -> None:
    """A handler that wants one of everything."""


_plan: Final = Plan(_wants)


def arguments(data: bytes) -> None:
    """Vars become arguments, or are said not to fit."""
    try:
        _, vars, body = parts(data)
    except MalformedSpoolFile:
        return
    try:
        _, given = _plan.arguments(vars, body, None)
    except ArgumentError as error:
        misfit = str(error)
    else:
        assert isinstance(given["a"], int)
        return
    # A name comes from a stranger, too, and is shown whole.
    assert len(misfit) < 300 + max(map(len, vars), default=0)


# Checks


def _check_task(task: NewTask) -> None:
    assert task.at is None or 0 < task.at <= LATEST_AT
    assert task.priority is None or 0 <= task.priority <= MAX_PRIORITY
    assert task.spool is None or task.spool.encode()
    decode_vars(task.payload)
    # It is a good file, and a good packet.
    assert parts(encode(task.payload, task.body))[2] == task.body


def _check_faults(error: FaultyRequest, line: int | None = None) -> None:
    assert error.faults
    assert 400 <= error.status < 500
    for fault in error.faults:
        document = msgspec.json.encode(fault.document(line))
        assert len(document) < 20_000
        msgspec.json.decode(document)


# Seeds


def _packet(body: bytes = b"", **vars: str) -> bytes:
    return encode_packet(encode_vars(vars)) + body


def _config_seeds() -> Iterator[bytes]:
    yield b'state_dir = "var"\n[http]\nbind = "127.0.0.1:0"\nmax_body = "1MiB"\nallow_networks = ["10.0.0.0/8"]\n'
    yield b'[[listen]]\nbind = "unix:a.sock"\nmode = "0660"\naccept_modifiers = [0, 17]\ntimeout = 5\nreply = "http"\n'
    yield b'[[spool]]\nname = "default"\ndirectory = "s"\nimport = ["h.py"]\nbackoff = ["1s", 60]\nkeep_history = "30d"'
    yield b'[[spool]]\ndirectory = "s"\n\0SPOOL_DEFAULT_PROCESSES=4\0HTTP_ALLOW_NETWORKS=10.0.0.0/8,::1'


_FRAMES: Final = (
    ("run", 7, [(("id", "ref", (b"vars", b"body")), 1)]),
    ("done", [(1, "ok", 1.5, 0.1, "h", None, None, None, None, b"")]),
    ("setup", "default", "/s", True, ("h.py",)),
    ("ready", True, {"h": {"default": True, "backoff": [1.0, 2.0]}}),
)

TARGETS: Final[dict[str, Target]] = {
    target.__name__: Target(target, seeds)
    for target, seeds in (
        (
            packets,
            [
                b"\0" + _packet(a="1", at="5.5", priority="3", spooler="x") + _packet(b"xyz", CONTENT_LENGTH="3"),
                b"\5" + _packet(HTTP_TRANSFER_ENCODING="chunked", REQUEST_METHOD="GET"),
                b"\x07" + encode_packet(b"", 100) + _packet(b"", HTTP_CONTENT_LENGTH="101"),
            ],
        ),
        (spool_files, [_packet(b"body", a="1"), b"\x11\0\0\0", _packet(a="")]),
        (spool_names, [b"host_1_2_3_4_5", b"007", b"99999999999999999999"]),
        (configuration, list(_config_seeds())),
        (quantities, [b"1h30m", b"1.5 GiB", b"2031-05-04T12:00:00+02:00", b"1e9", b"12"]),
        (worker_frames, [b"\3" + bytes(frames.encode_frame(message)) for message in _FRAMES]),
        (
            requests,
            [
                b'\0{"vars": {"a": "b", "n": 5, "x": {"base64": "AA=="}}, "at": "+1", "priority": 4.0, "body": "AAAA"}',
                b'\0{"vars": {"at": "2031-05-04T12:00:00Z", "a": "\\u00e9"}}',
                b"\1a=b&at=5&priority=1&%ff=%00",
                b'\2--b\r\nContent-Disposition: form-data; name="f"; filename="g"\r\n\r\nx\r\n--b--\r\n',
                b"\x83a=b&at=12\0body",
            ],
        ),
        (batches, [b'{"vars": {"a": "b"}}\n\n{"at": 5}\r\n{"body": "AA=="}']),
        (
            orders,
            [
                b'{"action": "cancel", "ids": ["a"], "dry_run": true}',
                b'{"action": "reschedule", "filter": {"state": "ready", "q": "x"}, "at": 5}',
                b'{"frequency": 5, "paused": true, "processes": 4.0}',
                b"state=ready&sort=due&order=desc&limit=5&due_after=2031-05-04T12:00:00Z&cursor=x",
            ],
        ),
        (cursors, [b'["due",[1.5,2,3,"s","i"],{"s":4}]', b'["enqueued",null,{}]']),
        (arguments, [_packet(b"body", a="1", b="2.5", c="yes", f="[1]", g="null", h='["x"]', other="z")]),
    )
}
