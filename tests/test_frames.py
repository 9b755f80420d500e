"""The frames between service and worker: tables of bytes, and properties."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trispool.worker import frames
from trispool.worker.frames import FrameReader, MalformedFrame, encode_frame

_to_worker = msgspec.msgpack.Decoder(frames.ToWorker)
_from_worker = msgspec.msgpack.Decoder(frames.FromWorker)


def _feed(reader: FrameReader, data: bytes, step: int | None = None) -> list[bytes]:
    """What comes out when the bytes come in pieces of `step`."""
    out = []
    while data:
        space = reader.space()
        count = min(len(space), len(data), step or len(data))
        space[:count] = data[:count]
        reader.received(count)
        data = data[count:]
        while (frame := reader.next_frame()) is not None:
            out.append(bytes(frame))
    return out


@pytest.mark.parametrize(
    ("message", "wire"),
    [
        (("quit",), b"\0\0\0\6\x91\xa4quit"),
        (frames.Quit(), b"\0\0\0\6\x91\xa4quit"),
        (("pids", (1, 2)), b"\0\0\0\x09\x92\xa4pids\x92\1\2"),
        (("run", 7, [(("i", "r", None), 1)]), b"\0\0\0\x0f\x93\xa3run\7\x91\x92\x93\xa1i\xa1r\xc0\1"),
        (
            ("run", 7, [(("i", "r", (b"v", b"b")), 1)]),
            b"\0\0\0\x15\x93\xa3run\7\x91\x92\x93\xa1i\xa1r\x92\xc4\1v\xc4\1b\1",
        ),
        (("done", [(7, "ok")]), b"\0\0\0\x0c\x92\xa4done\x91\x92\7\xa2ok"),
    ],
)
def test_frame_is_these_bytes_when_encoded(message: object, wire: bytes) -> None:
    assert bytes(encode_frame(message)) == wire
    assert _feed(FrameReader(), wire) == [wire[4:]]
    assert _feed(FrameReader(), wire, 1) == [wire[4:]]


@pytest.mark.parametrize(
    "message",
    [
        frames.Setup(spool="s", directory="/d", imports=("a", "b"), options={"x": True, "y": b"1"}, pids=(4, 5)),
        frames.Run(3, [(("id", "ref", None), 1), (("id", "ref", (b"vars", b"body")), 2)]),
        frames.Recall(),
        frames.Pids((1, 2, 3)),
        frames.SetFrequency(2.5),
    ],
)
def test_message_to_a_worker_comes_back_equal_when_decoded(message: frames.ToWorker) -> None:
    assert _to_worker.decode(encode_frame(message)[4:]) == message


@pytest.mark.parametrize(
    "message",
    [
        frames.Ready(True, {"h": frames.HandlerInfo(retries=3, backoff=[1.0, 2.0], timeout=4.5)}),
        frames.Broken("Traceback …"),
        frames.Done([frames.Report(1, "ok", vars=b"\xff")]),
        frames.Done([frames.Report(1, "ok"), frames.Report(2, "failed", 1.5, 0.5, "h", "e", "t", 9.0, "d")]),
        frames.Progress("id", 0.5, "half"),
    ],
)
def test_message_of_a_worker_comes_back_equal_when_decoded(message: frames.FromWorker) -> None:
    assert _from_worker.decode(encode_frame(message)[4:]) == message


def test_report_has_its_defaults_when_the_rest_is_left_out() -> None:
    frame = encode_frame(("done", [(1, "ok", 2.0, 0.25)]))
    assert _from_worker.decode(frame[4:]) == frames.Done([frames.Report(1, "ok", 2.0, 0.25)])


@pytest.mark.parametrize(
    "wire", [b"\x91\xa4nope", b"\x92\xa4done\x91\x92\7\xa5hello", b"\x93\xa3run\7\7", b"\xc1", b""]
)
def test_decoding_fails_when_it_is_no_message(wire: bytes) -> None:
    with pytest.raises(msgspec.MsgspecError):
        _from_worker.decode(wire)


@given(st.lists(st.binary(max_size=300), max_size=20), st.integers(1, 700), st.integers(1, 64))
def test_frames_come_out_whole_and_in_order_however_they_come_in(payloads: list[bytes], step: int, room: int) -> None:
    wire = b"".join(len(payload).to_bytes(4, "big") + payload for payload in payloads)
    assert _feed(FrameReader(room=room), wire, step) == payloads


def test_nothing_comes_out_when_the_last_byte_is_missing() -> None:
    reader = FrameReader()
    wire = bytes(encode_frame(("quit",)))
    assert _feed(reader, wire[:-1]) == []
    assert _feed(reader, wire[-1:]) == [wire[4:]]


def test_reader_raises_when_a_frame_is_said_to_be_too_long() -> None:
    reader = FrameReader(max_frame=100)
    assert _feed(reader, b"\0\0\0\x64" + bytes(100)) == [bytes(100)]
    with pytest.raises(MalformedFrame, match="101 bytes"):
        _feed(reader, b"\0\0\0\x65")


def test_space_is_not_made_when_the_length_is_absurd() -> None:
    reader = FrameReader(max_frame=1000)
    reader.space()[:4] = b"\xff\xff\xff\xff"
    reader.received(4)
    with pytest.raises(MalformedFrame):
        reader.next_frame()
    assert len(reader.space()) < 1_000_000


def test_memory_of_a_huge_frame_is_given_back_when_it_has_been_read() -> None:
    reader = FrameReader(room=1024)
    wire = (1_000_000).to_bytes(4, "big") + bytes(1_000_000)
    assert [len(frame) for frame in _feed(reader, wire)] == [1_000_000]
    assert len(reader.space()) < 100_000


def test_encoding_fails_when_the_frame_would_be_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "MAX_FRAME", 10)
    assert encode_frame(("quit",))
    with pytest.raises(ValueError, match="at most 10"):
        encode_frame(("quit", b"x" * 20))
