"""The incremental reader of a connection: whole, byte by byte, several packets, bodies, limits, anything."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trispool.errors import MalformedPacket, TaskRefused
from trispool.packet import decode_vars, encode_packet, encode_vars
from trispool.reader import NEED_DATA, PacketReader, Request, UnacceptedModifier

PACKETS: list[dict[str, Any]] = json.loads((Path(__file__).parent / "data" / "golden.json").read_text())["packets"]


def packet(vars: dict[str, str], body: bytes = b"", modifier1: int = 17, modifier2: int = 0) -> bytes:
    return encode_packet(encode_vars(vars), modifier1, modifier2) + body


def request(vars: dict[str, str], body: bytes = b"", modifier1: int = 17, modifier2: int = 0) -> Request:
    payload = encode_vars(vars)
    return Request(modifier1, modifier2, payload, decode_vars(payload), body)


def events(reader: PacketReader) -> list[Request]:
    found = []
    while (event := reader.next_event()) is not NEED_DATA:
        assert isinstance(event, Request)
        found.append(event)
    return found


TABLE: list[tuple[bytes, list[Request]]] = [
    (packet({}), [request({})]),
    (packet({"a": "sunday"}), [request({"a": "sunday"})]),
    (packet({"a": "1"}) + packet({}) + packet({"b": "2"}), [request({"a": "1"}), request({}), request({"b": "2"})]),
    (packet({"CONTENT_LENGTH": "3"}, b"xyz"), [request({"CONTENT_LENGTH": "3"}, b"xyz")]),
    (packet({"HTTP_CONTENT_LENGTH": "3"}, b"xyz"), [request({"HTTP_CONTENT_LENGTH": "3"}, b"xyz")]),
    (
        packet({"CONTENT_LENGTH": "3", "HTTP_CONTENT_LENGTH": "3"}, b"xyz") + packet({"a": "1"}),
        [request({"CONTENT_LENGTH": "3", "HTTP_CONTENT_LENGTH": "3"}, b"xyz"), request({"a": "1"})],
    ),
    (
        packet({"CONTENT_LENGTH": "", "HTTP_TRANSFER_ENCODING": ""}) + packet({"CONTENT_LENGTH": "0"}),
        [request({"CONTENT_LENGTH": "", "HTTP_TRANSFER_ENCODING": ""}), request({"CONTENT_LENGTH": "0"})],
    ),
    (
        packet({"CONTENT_LENGTH": "5", "HTTP_TRANSFER_ENCODING": "chunked"}, b"\x11\x00\x00\x00\x11"),
        [request({"CONTENT_LENGTH": "5", "HTTP_TRANSFER_ENCODING": "chunked"}, b"\x11\x00\x00\x00\x11")],
    ),
    (packet({"x": "CONTENT_LENGTH"}), [request({"x": "CONTENT_LENGTH"})]),
    (packet({}, modifier1=100) + packet({"a": "1"}), [request({}, modifier1=100), request({"a": "1"})]),
    (packet({"a": "1"}, modifier1=0, modifier2=9), [request({"a": "1"}, modifier1=0, modifier2=9)]),
    (
        b"\x64\x03\x00\x00\xff\xff\xff" + packet({}),
        [Request(100, 0, b"\xff\xff\xff", {}, b""), request({})],
    ),
]


@pytest.mark.parametrize(("data", "expected"), TABLE)
def test_requests_come_out_when_all_bytes_come_at_once(data: bytes, expected: list[Request]) -> None:
    reader = PacketReader()
    reader.receive_data(data)
    assert events(reader) == expected
    assert reader.buffered == 0


@pytest.mark.parametrize(("data", "expected"), TABLE)
def test_requests_come_out_when_the_bytes_come_one_by_one(data: bytes, expected: list[Request]) -> None:
    reader = PacketReader()
    found: list[Request] = []
    for position in range(len(data)):
        reader.receive_data(data[position : position + 1])
        before = len(found)
        found += events(reader)
        assert (reader.missing > 0) or len(found) > before
    assert found == expected
    assert reader.buffered == 0


@pytest.mark.parametrize(("data", "expected"), TABLE)
@pytest.mark.parametrize("tail", [b"\x11", b"\x11\x05\x00", b"\x11\x05\x00\x00\x01\x00"])
def test_the_beginning_of_a_next_packet_waits(data: bytes, expected: list[Request], tail: bytes) -> None:
    reader = PacketReader()
    reader.receive_data(data + tail)
    assert events(reader) == expected
    assert reader.buffered == len(tail)
    assert reader.missing == (4 - len(tail) if len(tail) < 4 else 5 + 4 - len(tail))


@given(
    st.lists(
        st.tuples(st.dictionaries(st.text("abc", min_size=1), st.text("xyz", max_size=40)), st.binary(max_size=300))
    ),
    st.lists(st.integers(1, 50)),
)
def test_requests_do_not_depend_on_how_the_bytes_are_cut(
    requests: list[tuple[dict[str, str], bytes]], cuts: list[int]
) -> None:
    sent = [(vars | {"CONTENT_LENGTH": str(len(body))}, body) for vars, body in requests]
    data = b"".join(packet(vars, body) for vars, body in sent)
    reader = PacketReader()
    found: list[Request] = []
    for cut in cuts:
        reader.receive_data(data[:cut])
        data = data[cut:]
        found += events(reader)
    reader.receive_data(data)
    found += events(reader)
    assert found == [request(vars, body) for vars, body in sent]
    assert reader.buffered == 0


@given(st.lists(st.binary(max_size=30), max_size=5))
def test_any_bytes_give_requests_or_a_declared_error(pieces: list[bytes]) -> None:
    reader = PacketReader(max_packet=20, max_body=20)
    taken = 0
    try:
        for piece in pieces:
            reader.receive_data(piece)
            for event in events(reader):
                taken += 4 + len(event.payload) + len(event.body)
        assert taken + reader.buffered >= sum(map(len, pieces))
    except TaskRefused:  # MalformedPacket is one
        return


@pytest.mark.parametrize("golden", PACKETS, ids=lambda golden: golden["case"])
def test_packets_of_real_web_servers_are_read_with_their_body(golden: dict[str, Any]) -> None:
    reader = PacketReader()
    reader.receive_data(bytes.fromhex(golden["hex"]))
    if golden["case"] in ("nginx /bare chunked POST", "uWSGI / chunked POST"):
        with pytest.raises(TaskRefused, match="CONTENT_LENGTH") as caught:
            reader.next_event()
        assert caught.value.status == 411
        return
    (event,) = events(reader)
    assert event.body == (b"" if golden["case"].endswith("GET") else b"0123456789")
    assert reader.buffered == 0


def test_what_is_held_is_told_while_a_body_comes() -> None:
    head = packet({"CONTENT_LENGTH": "1000"})
    reader = PacketReader()
    reader.receive_data(head + b"x" * 10)
    assert reader.next_event() is NEED_DATA
    assert (reader.buffered, reader.missing) == (len(head) + 10, 990)
    assert not reader.from_web
    reader.receive_data(b"y" * 500)
    assert reader.next_event() is NEED_DATA
    assert (reader.buffered, reader.missing) == (len(head) + 510, 490)
    reader.receive_data(b"z" * 490 + b"\x11")
    assert reader.next_event() == request({"CONTENT_LENGTH": "1000"}, b"x" * 10 + b"y" * 500 + b"z" * 490)
    assert reader.next_event() is NEED_DATA
    assert (reader.buffered, reader.missing) == (1, 3)


def test_order_is_kept_when_data_is_received_twice_before_the_next_event() -> None:
    reader = PacketReader()
    reader.receive_data(packet({"CONTENT_LENGTH": "4"}))
    assert reader.next_event() is NEED_DATA
    for piece in (b"abcd" + packet({"a": "1"})[:5], packet({"a": "1"})[5:7], packet({"a": "1"})[7:]):
        reader.receive_data(piece)
    assert events(reader) == [request({"CONTENT_LENGTH": "4"}, b"abcd"), request({"a": "1"})]


def test_a_packet_of_the_largest_size_is_taken_when_it_is_allowed() -> None:
    data = encode_packet(encode_vars({"HTTP_K": "v" * 65525}))
    reader = PacketReader()
    reader.receive_data(data)
    assert [len(event.payload) for event in events(reader)] == [65535]
    small = PacketReader(max_packet=65534)
    small.receive_data(data)
    with pytest.raises(TaskRefused, match=r"65535 bytes, at most 65534") as caught:
        small.next_event()
    assert caught.value.status == 413
    assert small.from_web


@pytest.mark.parametrize("key", ["CONTENT_LENGTH", "HTTP_CONTENT_LENGTH"])
def test_a_body_is_refused_before_it_comes_when_it_is_too_large(key: str) -> None:
    for length in ("11", "9" * 17, "9" * 5000):
        reader = PacketReader(max_body=10)
        reader.receive_data(packet({key: length, "HTTP_HOST": "h"}))
        with pytest.raises(TaskRefused, match="at most 10") as caught:
            reader.next_event()
        assert caught.value.status == 413
        assert reader.from_web
        assert len(str(caught.value)) < 200
    reader = PacketReader(max_body=10)
    reader.receive_data(packet({key: "0010"}, b"0123456789"))
    assert [event.body for event in events(reader)] == [b"0123456789"]


@pytest.mark.parametrize("length", ["-1", "abc", "1.5", "1e3", " 1", "+1", "0x10", "1 ", "\0"])
def test_a_length_that_is_not_digits_is_malformed(length: str) -> None:
    reader = PacketReader()
    reader.receive_data(packet({"CONTENT_LENGTH": length}))
    with pytest.raises(MalformedPacket, match="CONTENT_LENGTH"):
        reader.next_event()


def test_two_lengths_that_disagree_are_malformed() -> None:
    reader = PacketReader()
    reader.receive_data(packet({"CONTENT_LENGTH": "1", "HTTP_CONTENT_LENGTH": "2"}, b"ab"))
    with pytest.raises(MalformedPacket, match="disagree"):
        reader.next_event()


def test_vars_that_do_not_tile_are_malformed_with_their_offset_in_the_packet() -> None:
    reader = PacketReader()
    reader.receive_data(packet({}) + b"\x11\x06\x00\x00\x01\x00a\xff\xff\x00")
    assert reader.next_event() == request({})
    with pytest.raises(MalformedPacket, match="byte 7") as caught:
        reader.next_event()
    assert caught.value.offset == 7


@pytest.mark.parametrize("data", [b"G", b"GET / HTTP/1.1\r\n", b"\x05", b"\x05\x00\x00\x00", b"\xff\xff\xff\xff"])
def test_another_modifier_is_refused_as_soon_as_it_is_seen(data: bytes) -> None:
    reader = PacketReader()
    reader.receive_data(data)
    with pytest.raises(UnacceptedModifier, match=f"modifier1 is {data[0]}"):
        reader.next_event()


def test_modifiers_are_those_that_it_is_told() -> None:
    reader = PacketReader(modifiers=(0, 31, 100))
    data = packet({"a": "1"}, modifier1=31) + packet({"a": "1"}, modifier1=100)
    reader.receive_data(data)
    assert events(reader) == [request({"a": "1"}, modifier1=31), request({"a": "1"}, modifier1=100)]
    reader.receive_data(packet({}))
    with pytest.raises(UnacceptedModifier, match="modifier1 is 17"):
        reader.next_event()


@pytest.mark.parametrize("vars", [{"a": "x" * 60_000}, {f"{number:x}": "" for number in range(8000)}])
def test_a_body_that_is_slow_to_come_holds_nothing_twice(vars: dict[str, str]) -> None:
    reader = PacketReader()
    vars = {**vars, "CONTENT_LENGTH": "100000"}
    data = packet(vars, b"begun")
    tracemalloc.start()
    try:
        reader.receive_data(data)
        assert reader.next_event() is NEED_DATA
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 1.1 * len(data)
    reader.receive_data(b"x" * 99_995)
    assert reader.next_event() == request(vars, b"begun" + b"x" * 99_995)
