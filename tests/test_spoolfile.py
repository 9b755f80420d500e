"""Spool files as bytes and names, against files that a real uWSGI wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trispool.errors import MalformedSpoolFile
from trispool.packet import encode_vars, task_from_vars
from trispool.spoolfile import PREFIX, decode, due_at, encode, is_priority_name, is_spool_name, new_name, order_of

FILES: list[dict[str, Any]] = json.loads((Path(__file__).parent / "data" / "golden.json").read_text())["spool_files"]

TABLE: list[tuple[dict[bytes, bytes], bytes, bytes]] = [
    ({}, b"", b"\x11\x00\x00\x00"),
    ({}, b"body", b"\x11\x00\x00\x00body"),
    ({b"a": b"sunday"}, b"", b"\x11\x0b\x00\x00\x01\x00a\x06\x00sunday"),
    (
        {b"a": b"sunday", b"b": b""},
        b"\x11\x00\x00\x00",
        b"\x11\x10\x00\x00\x01\x00a\x06\x00sunday\x01\x00b\x00\x00\x11\x00\x00\x00",
    ),
    ({b"k": b"v" * 65530}, b"x", b"\x11\xff\xff\x00\x01\x00k\xfa\xff" + b"v" * 65530 + b"x"),
]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file["case"])
def test_a_file_of_a_real_uwsgi_is_read_and_written_to_the_byte(file: dict[str, Any]) -> None:
    data = bytes.fromhex(file["hex"])
    expected = {key.encode("latin-1"): value.encode("latin-1") for key, value in file["vars"].items()}
    body = file["body"].encode("latin-1")
    assert decode(data) == (expected, body)
    assert encode(encode_vars(expected), body) == data


@pytest.mark.parametrize("file", FILES, ids=lambda file: file["case"])
def test_a_name_of_a_real_uwsgi_is_understood(file: dict[str, Any]) -> None:
    name = file["name"]
    assert is_spool_name(name)
    (microseconds, counter), number = order_of(name, 1.0), FILES.index(file) + 1
    assert counter == number
    if "at" not in file["vars"]:
        assert abs(microseconds / 1e6 - file["mtime"]) < 1
    pid, count, random, seconds, micros = map(int, name.rsplit("_", 5)[1:])
    assert new_name("golden_host", pid, count, random, seconds, micros) == name


def test_at_and_priority_are_where_a_real_uwsgi_puts_them() -> None:
    by_case = {file["case"]: file for file in FILES}
    late = by_case["at with a fraction"]
    at = task_from_vars(b"", decode(bytes.fromhex(late["hex"]))[0]).at
    assert at is not None
    assert int(at) == late["mtime"]
    urgent = by_case["priority"]
    assert is_priority_name(urgent["folder"]) == task_from_vars(b"", decode(bytes.fromhex(urgent["hex"]))[0]).priority


@pytest.mark.parametrize(("vars", "body", "data"), TABLE)
def test_a_file_has_the_bytes_of_the_table_both_ways(vars: dict[bytes, bytes], body: bytes, data: bytes) -> None:
    assert encode(encode_vars(vars), body) == data
    assert decode(data) == (vars, body)
    assert decode(data + b"more") == (vars, body + b"more")


@pytest.mark.parametrize(("vars", "body", "data"), TABLE[:4])
def test_every_beginning_of_a_file_is_incomplete_until_its_vars_are_there(
    vars: dict[bytes, bytes], body: bytes, data: bytes
) -> None:
    whole = len(data) - len(body)
    for length in range(whole):
        with pytest.raises(MalformedSpoolFile) as caught:
            decode(data[:length])
        assert caught.value.incomplete
    for length in range(whole, len(data)):
        assert decode(data[:length]) == (vars, body[: length - whole])


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\x12", "modifier1 is 18"),
        (b"hello", "modifier1 is 104"),
        (b"\x12\x00\x00\x00", "modifier1 is 18"),
        (b"\x11\x00\x00\x01", "modifier2 is 1"),
        (b"\x11\x01\x00\x00\x00", "byte 4: only 1 bytes are left for a key"),
        (b"\x11\x01\x00\x00", "byte 4: only 1 bytes are left for a key"),
        (b"\x11\x05\x00\x00\x00\x00\x00\x00\x00", "byte 4: a key is empty"),
        (b"\x11\x04\x00\x00", "byte 4: only 4 bytes are left for a key"),
        (b"\x11\x09\x00\x00\x00\x00", "byte 4: a key is empty"),
        (b"\x11\x05\x00\x00\x02\x00a\x00\x00", "byte 4: a key of 2 bytes"),
        (b"\x11\x05\x00\x00\x02\x00", "byte 4: a key of 2 bytes"),
        (b"\x11\x06\x00\x00\x01\x00a\x02\x00", "byte 7: a value of 2 bytes"),
        (b"\x11\x06\x00\x00\x01\x00a\x00\x00x", "byte 9: only 1 bytes are left for a key"),
        (b"\x11\x06\x00\x00\x01\x00a\x00\x00", "byte 9: only 1 bytes are left for a key"),
    ],
)
def test_a_file_that_no_more_bytes_can_mend_is_not_incomplete(data: bytes, words: str) -> None:
    with pytest.raises(MalformedSpoolFile, match=words) as caught:
        decode(data)
    assert not caught.value.incomplete


@given(
    st.dictionaries(st.binary(min_size=1, max_size=50), st.binary(max_size=200), max_size=8), st.binary(max_size=300)
)
def test_decode_gives_back_what_encode_was_given(vars: dict[bytes, bytes], body: bytes) -> None:
    assert decode(encode(encode_vars(vars), body)) == (vars, body)


@given(st.one_of(st.binary(max_size=50), st.binary(max_size=40).map(lambda tail: b"\x11" + tail)))
def test_any_bytes_are_a_file_or_malformed(data: bytes) -> None:
    try:
        _, body = decode(data)
    except MalformedSpoolFile:
        return
    assert data.endswith(body)
    assert data.startswith(b"\x11")


@given(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), max_size=20),
    st.integers(1, 2**22),
    st.integers(1, 2**64 - 1),
    st.integers(0, 2**31 - 1),
    st.integers(0, 10**11 - 1),
    st.integers(0, 999_999),
)
def test_a_new_name_is_a_spool_name_and_tells_its_order(
    host: str, pid: int, counter: int, random: int, seconds: int, microseconds: int
) -> None:
    name = new_name(host, pid, counter, random, seconds, microseconds)
    assert is_spool_name(name)
    assert order_of(name, 5.0) == (seconds * 1_000_000 + microseconds, counter)


@pytest.mark.parametrize(
    "name",
    [
        "",
        PREFIX,
        f"{PREFIX}host_1_2_3_4_x",
        f"{PREFIX}host_1_2_3_4_5.1",
        f"{PREFIX}host_1_2_3_4_",
        f"{PREFIX}host_1_2_3__5",
        f"{PREFIX}host_1__3_4_5",
        f"{PREFIX}host_1_2_3_4_-5",
        f"{PREFIX}host_1_2_3_4_5000000",
        f"{PREFIX}host_1_2_3_{'4' * 5000}_5",
        f"{PREFIX}host_1_{'2' * 5000}_3_4_5",
        f"{PREFIX}host_1_2_3_٤_5",
        f"{PREFIX}4_5",
    ],
)
def test_the_mtime_tells_the_order_when_the_name_does_not(name: str) -> None:
    assert order_of(name, 1_700_000_000.25) == (1_700_000_000_250_000, 0)


@given(st.text(max_size=60), st.floats(0, 1e10))
def test_any_name_has_an_order(name: str, mtime: float) -> None:
    for candidate in (name, PREFIX + name):
        microseconds, counter = order_of(candidate, mtime)
        assert microseconds >= 0
        assert counter >= 0


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        (f"{PREFIX}x", True),
        (f"{PREFIX}hôst_1_2_3_4_5", True),
        (PREFIX, True),
        (f"{PREFIX}\udcff", False),
        (PREFIX[:-1], False),
        (f".{PREFIX}x", False),
        ("", False),
        ("README", False),
    ],
)
def test_a_spool_name_has_the_prefix_and_is_text(name: str, is_one: bool) -> None:
    assert is_spool_name(name) is is_one


@pytest.mark.parametrize(
    ("name", "priority"),
    [
        ("0", 0),
        ("7", 7),
        ("007", 7),
        ("999999999", 999_999_999),
        ("9223372036854775807", 2**63 - 1),
        ("9223372036854775808", 2**63 - 1),
        ("9" * 250, 2**63 - 1),
        ("0" * 5000, 0),
        ("9" * 5000, 2**63 - 1),
        ("", None),
        ("abc", None),
        ("1.5", None),
        ("-1", None),
        (" 1", None),
        ("1_0", None),
        ("٣", None),
        ("²", None),
        (".trispool", None),
    ],
)
def test_a_priority_directory_is_one_of_digits(name: str, priority: int | None) -> None:
    assert is_priority_name(name) == priority


@pytest.mark.parametrize(
    ("at", "made_at", "now", "expected"),
    [
        (50.0, 50, 100.0, 50.0),
        (100.5, 100, 100.0, 100.5),  # asked for so, or it will have been made by then
        (3700.0, 100, 100.0, 3700.0),
        (3700.2, 3700, 100.0, 100.0),
        (3701.0, 3700, 100.0, 100.0),
        (3701.1, 3700, 100.0, 3701.1),
        (3699.0, 3700, 100.0, 100.0),
        (101.0, 101, 100.0, 101.0),
        (50.0, 3700, 100.0, 50.0),
    ],
)
def test_a_file_of_the_future_is_due_unless_it_was_asked_for_later(
    at: float, made_at: int, now: float, expected: float
) -> None:
    assert due_at(at, (made_at * 1_000_000, 1), now) == expected
