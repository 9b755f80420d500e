"""The wire codec: tables, properties, and bytes made by a real uWSGI."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from trispool.errors import MalformedPacket, TaskRefused
from trispool.packet import (
    ANSWER_SPOOLED,
    PONG,
    decode_vars,
    encode_packet,
    encode_vars,
    fault_in_vars,
    http_answer,
    is_plain,
    new_task,
    task_from_vars,
    wants_http,
)
from trispool.reader import names_length
from trispool.task import LATEST_AT, MAX_PRIORITY, MAX_VARS, NewTask

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parent / "data" / "golden.json").read_text())

VARS_TABLE: list[tuple[dict[bytes, bytes], bytes]] = [
    ({}, b""),
    ({b"a": b""}, b"\x01\x00a\x00\x00"),
    ({b"a": b"sunday"}, b"\x01\x00a\x06\x00sunday"),
    ({b"handler": b"hello", b"at": b"5"}, b"\x07\x00handler\x05\x00hello\x02\x00at\x01\x005"),
    ({b"\x00\xff": b"\x00\xfe"}, b"\x02\x00\x00\xff\x02\x00\x00\xfe"),
    ({b"k": b"v" * 256}, b"\x01\x00k\x00\x01" + b"v" * 256),
    ({b"k": b"v" * 65530}, b"\x01\x00k\xfa\xff" + b"v" * 65530),
    ({b"k" * 65531: b""}, b"\xfb\xff" + b"k" * 65531 + b"\x00\x00"),
]

vars_strategy = st.dictionaries(st.binary(min_size=1, max_size=300), st.binary(max_size=600), max_size=12)


@pytest.mark.parametrize(("vars", "payload"), VARS_TABLE)
def test_vars_have_the_bytes_of_the_table_both_ways(vars: dict[bytes, bytes], payload: bytes) -> None:
    assert encode_vars(vars) == payload
    assert decode_vars(payload) == vars
    assert decode_vars(memoryview(payload)) == vars
    assert decode_vars(bytearray(payload)) == vars
    assert fault_in_vars(payload, len(payload)) is None


@pytest.mark.parametrize(("vars", "payload"), VARS_TABLE[:6])
def test_vars_cut_short_are_malformed_unless_a_var_ends_there(vars: dict[bytes, bytes], payload: bytes) -> None:
    ends, at = {0}, 0
    for key, value in vars.items():
        at += 4 + len(key) + len(value)
        ends.add(at)
    for length in range(len(payload)):
        if length not in ends:
            with pytest.raises(MalformedPacket):
                decode_vars(payload[:length])
        assert fault_in_vars(payload[:length], len(payload)) is None


@pytest.mark.parametrize(("_vars", "payload"), VARS_TABLE)
@pytest.mark.parametrize(
    "tail", [b"\x00", b"\x01", b"\x00\x00", b"\x01\x00", b"\x01\x00a", b"\x01\x00a\x00", b"\x09\x00a\x00\x00"]
)
def test_vars_with_trailing_bytes_are_malformed_and_say_where(
    _vars: dict[bytes, bytes], payload: bytes, tail: bytes
) -> None:
    with pytest.raises(MalformedPacket) as caught:
        decode_vars(payload + tail)
    assert caught.value.offset in (len(payload), len(payload) + 3)
    assert caught.value.status == 400


def test_a_later_value_counts_when_a_key_comes_twice() -> None:
    assert decode_vars(b"\x01\x00a\x01\x001\x01\x00a\x01\x002") == {b"a": b"2"}


@given(vars_strategy)
def test_decode_gives_back_what_encode_was_given(vars: dict[bytes, bytes]) -> None:
    assert decode_vars(encode_vars(vars)) == vars
    assert encode_vars(vars.items()) == encode_vars(vars)


@given(st.binary(max_size=60))
@example(b"\x01\x00a\xff\xff")
@example(b"\x00\x00\x00\x00")
def test_any_bytes_are_vars_or_malformed_at_an_offset_among_them(data: bytes) -> None:
    fault = fault_in_vars(data, len(data))
    if fault is None:
        assert sum(4 + len(key) + len(value) for key, value in decode_vars(data).items()) <= len(data)
    else:
        with pytest.raises(MalformedPacket) as caught:
            decode_vars(data)
        assert caught.value.offset == fault[0] < len(data)


@given(vars_strategy, st.integers(0))
def test_the_beginning_of_vars_has_no_fault(vars: dict[bytes, bytes], cut: int) -> None:
    payload = encode_vars(vars)
    assert fault_in_vars(payload[: cut % (len(payload) + 1)], len(payload)) is None


@given(st.binary(max_size=40), st.integers(0, 60), st.binary(min_size=60, max_size=60))
def test_a_beginning_with_a_fault_is_malformed_whatever_follows(data: bytes, size: int, rest: bytes) -> None:
    data = data[:size]
    if fault_in_vars(data, size) is not None:
        for filler in (rest, bytes(60), b"\x01\x00" * 30):
            with pytest.raises(MalformedPacket):
                decode_vars((data + filler)[:size])


def test_text_is_encoded_as_utf8() -> None:
    assert encode_vars({"ä": "ö"}) == encode_vars({"ä".encode(): "ö".encode()})
    assert encode_vars([("a", b"1"), (b"b", "2")]) == encode_vars({"a": "1", "b": "2"})


@pytest.mark.parametrize(
    ("vars", "words", "status"),
    [
        ({"picture": b"x" * 65536}, ["picture", "65536"], 413),
        ({"picture": b"x" * 70000}, ["picture", "70000"], 413),
        ({b"k" * 65536: b""}, ["kkkk", "65536"], 413),
        ({"a": b"x" * 40000, "b": b"x" * 40000}, ["80010", "65535"], 413),
        ({"k": b"v" * 65531}, ["65536"], 413),
        ({"": "v"}, ["empty"], 400),
        ({"name": "\ud800"}, ["name", "UTF-8"], 400),
    ],
)
def test_vars_that_do_not_fit_are_refused_naming_key_and_size(
    vars: dict[Any, Any], words: list[str], status: int
) -> None:
    with pytest.raises(TaskRefused) as caught:
        encode_vars(vars)
    assert all(word in str(caught.value) for word in words)
    assert caught.value.status == status
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("value", [1, None, 1.5, ["x"]])
def test_other_types_are_a_type_error(value: object) -> None:
    with pytest.raises(TypeError, match=r"'key'.*not "):
        encode_vars([("key", value)])  # type: ignore[list-item]
    with pytest.raises(TypeError):
        encode_vars([(value, b"")])  # type: ignore[list-item]


def test_a_packet_has_its_header_in_front() -> None:
    assert encode_packet(b"\x01\x00a\x06\x00sunday") == b"\x11\x0b\x00\x00\x01\x00a\x06\x00sunday"
    assert encode_packet(b"", 100, 3) == b"\x64\x00\x00\x03"
    assert encode_packet(b"x" * MAX_VARS)[:4] == b"\x11\xff\xff\x00"


def test_our_answers_are_those_of_a_real_uwsgi() -> None:
    spool, ping = GOLDEN["answers"].items()
    assert bytes.fromhex(spool[1]) == ANSWER_SPOOLED
    assert decode_vars(bytes.fromhex(spool[0])[4:]) == {b"a": b"sunday"}
    assert (ping[0], bytes.fromhex(ping[1])) == ("64000000", PONG)


# Tasks


@pytest.mark.parametrize(
    ("value", "at"),
    [
        (b"", None),
        (b"0", None),
        (b"0.0", None),
        (b"5", 5.0),
        (b"1700000000", 1_700_000_000.0),
        (b"1700000000.75", 1_700_000_000.75),
        (b"1700000000.", 1_700_000_000.0),
        (b"15000000000", LATEST_AT),
    ],
)
def test_at_is_a_time_when_it_is_a_number(value: bytes, at: float | None) -> None:
    assert task_from_vars(b"p", {b"at": value}) == NewTask(b"p", at=at)


@pytest.mark.parametrize(
    "value",
    [
        b"abc",
        b"-1",
        b"+5",
        b" 5",
        b"5 ",
        b"5\n",
        b"1e5",
        b"1_0",
        b"inf",
        b"nan",
        b"0x10",
        b".5",
        b".",
        b"5\0",
        b"15000000000.5",
        b"1" * 400,
        "٣".encode(),
        b"\xff",
    ],
)
def test_at_is_refused_when_it_is_no_number(value: bytes) -> None:
    with pytest.raises(TaskRefused, match="at=") as caught:
        task_from_vars(b"", {b"at": value})
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("value", "priority"),
    [(b"", None), (b"0", 0), (b"7", 7), (b"007", 7), (b"999999999", MAX_PRIORITY), (b"0" * 5000, 0)],
)
def test_priority_is_a_number_when_it_is_digits(value: bytes, priority: int | None) -> None:
    assert task_from_vars(b"", {b"priority": value}).priority == priority


@pytest.mark.parametrize(
    "value",
    [b"../x", b"-1", b"1.5", b"abc", b"1/2", b"1\0", b" 1", b"1\n", b"1000000000", b"9" * 5000, "٣".encode(), b"\xff"],
)
def test_priority_is_refused_when_it_is_not_digits(value: bytes) -> None:
    with pytest.raises(TaskRefused, match="priority="):
        task_from_vars(b"", {b"priority": value})


def test_spooler_is_a_name_or_none() -> None:
    assert task_from_vars(b"", {b"spooler": "/var/spöol".encode()}).spool == "/var/spöol"
    assert task_from_vars(b"", {b"spooler": b""}).spool is None
    for value in (b"\xff", b"/a\0b"):
        with pytest.raises(TaskRefused, match="spooler="):
            task_from_vars(b"", {b"spooler": value})


def test_a_body_var_stays_a_var() -> None:
    vars = {b"body": b"b", b"at": b"5"}
    assert task_from_vars(encode_vars(vars), vars, b"body") == NewTask(encode_vars(vars), b"body", 5.0)


def test_new_task_puts_what_it_is_told_among_the_vars() -> None:
    task = new_task({"handler": "x", "priority": "9"}, b"body", at=5, priority=7, spool="mail")
    vars = {b"handler": b"x", b"priority": b"7", b"at": b"5", b"spooler": b"mail"}
    assert decode_vars(task.payload) == vars
    assert task == NewTask(task.payload, b"body", 5.0, 7, "mail")


def test_new_task_reads_the_vars_when_it_is_told_nothing() -> None:
    task = new_task([("at", "6.5"), ("priority", "3"), (b"spooler", "x")])
    assert (task.at, task.priority, task.spool, task.body) == (6.5, 3, "x", b"")


@given(st.floats(0, LATEST_AT))
@example(1_700_000_000.1234567)
@example(5e-324)
@example(1e-5)
def test_new_task_at_is_written_without_exponent_and_read_back(at: float) -> None:
    task = new_task({}, at=at)
    written = decode_vars(task.payload)[b"at"]
    assert written.replace(b".", b"", 1).isdigit()
    assert task.at == at if at >= 1 else math.isclose(task.at or 0.0, at, abs_tol=1e-9)


@pytest.mark.parametrize(
    "wrong",
    [
        {"at": -1},
        {"at": math.inf},
        {"at": math.nan},
        {"at": 2e10},
        {"priority": -1},
        {"priority": 10**9},
        {"spool": "a\0b"},
        {"spool": "\ud800"},
    ],
)
def test_new_task_is_refused_when_a_part_is_out_of_bounds(wrong: dict[str, Any]) -> None:
    with pytest.raises(TaskRefused):
        new_task({"a": "b"}, **wrong)


# Answers


@pytest.mark.parametrize(
    ("vars", "web"),
    [
        ({}, False),
        ({b"handler": b"x", b"XHTTP_HOST": b"x"}, False),
        ({b"REQUEST_METHOD": b"GET"}, True),
        ({b"SERVER_PROTOCOL": b""}, True),
        ({b"handler": b"x", b"HTTP_HOST": b"h"}, True),
    ],
)
def test_an_http_answer_is_wanted_when_a_web_server_asks(vars: dict[bytes, bytes], web: bool) -> None:
    assert wants_http(vars) is web


def test_every_golden_web_packet_wants_http() -> None:
    for packet in GOLDEN["packets"]:
        data = bytes.fromhex(packet["hex"])
        assert wants_http(decode_vars(data[4 : 4 + int.from_bytes(data[1:3], "little")])), packet["case"]


@pytest.mark.parametrize(
    ("status", "line", "kind"),
    [
        (202, "HTTP/1.1 202 Accepted", "application/json"),
        (400, "HTTP/1.1 400 Bad Request", "application/problem+json"),
        (411, "HTTP/1.1 411 Length Required", "application/problem+json"),
        (413, "HTTP/1.1 413 Request Entity Too Large", "application/problem+json"),
        (503, "HTTP/1.1 503 Service Unavailable", "application/problem+json"),
    ],
)
def test_an_http_answer_is_whole_and_closes(status: int, line: str, kind: str) -> None:
    head, _, body = http_answer(status, {"detail": "ü \r\n"}).partition(b"\r\n\r\n")
    lines = head.decode("ascii").split("\r\n")
    assert lines[0] == line
    assert set(lines[1:]) == {f"Content-Type: {kind}", f"Content-Length: {len(body)}", "Connection: close"}
    assert json.loads(body) == {"detail": "ü \r\n"}


SPECIAL = (b"at", b"priority", b"spooler", b"CONTENT_LENGTH", b"HTTP_HOST", b"REQUEST_METHOD", b"SERVER_PROTOCOL", b"x")


@given(
    st.one_of(
        st.binary(max_size=40),
        st.dictionaries(st.one_of(st.sampled_from(SPECIAL), st.binary(min_size=1, max_size=9)), st.binary(max_size=9))
        .map(encode_vars)
        .flatmap(lambda payload: st.sampled_from([payload, payload[:-1], payload + b"\0", payload + b"\0\0\0\0"])),
    )
)
def test_what_is_plain_needs_nothing_but_to_be_kept(payload: bytes) -> None:
    if is_plain(payload):
        vars = decode_vars(payload)
        assert task_from_vars(payload, vars) == NewTask(payload)
        assert not wants_http(vars)
        assert not names_length(vars)
        assert b"HTTP_TRANSFER_ENCODING" not in vars


@pytest.mark.parametrize(
    "vars", [{}, {b"k": b"v"}, {b"path": b"/a.mov", b"preset": b"", b"handler": b"h" * 300}, {b"what": b"at priority"}]
)
def test_ordinary_vars_are_plain(vars: dict[bytes, bytes]) -> None:
    assert is_plain(encode_vars(vars))


@pytest.mark.parametrize("key", SPECIAL[:-1])
def test_vars_that_say_something_to_the_receiver_are_not_plain(key: bytes) -> None:
    assert not is_plain(encode_vars({b"k": b"v", key: b"1", b"l": b"w"}))


@pytest.mark.parametrize("payload", [b"\0\0\0\0", b"\1\0", b"\1\0k", b"\1\0k\0", b"\1\0k\1\0", b"\1\0k\0\0\0", b"\1"])
def test_malformed_vars_are_not_plain(payload: bytes) -> None:
    with pytest.raises(MalformedPacket):
        decode_vars(payload)
    assert not is_plain(payload)
