"""What handlers print, from the worker's streams to the service's lines."""

from __future__ import annotations

import io
import os
import threading
from typing import TYPE_CHECKING, BinaryIO, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trispool.worker.output import MAX_LINE, LineReader, TaskStream

if TYPE_CHECKING:
    from collections.abc import Iterator


class _Pipe:
    """A task stream into a pipe, and what arrives at its other end."""

    def __init__(self) -> None:
        self.task: str | None = None
        self.reader, self.writer = os.pipe()
        os.set_blocking(self.reader, False)
        self.stream = TaskStream(self.writer, lambda: self.task)
        self.text = io.TextIOWrapper(cast("BinaryIO", self.stream), encoding="utf-8", newline="\n", write_through=True)
        self.lines = LineReader()

    def bytes(self) -> bytes:
        try:
            return os.read(self.reader, 1 << 20)
        except BlockingIOError:
            return b""

    def read(self) -> list[tuple[str | None, str]]:
        return self.lines.feed(self.bytes())


@pytest.fixture
def pipe() -> Iterator[_Pipe]:
    made = _Pipe()
    yield made
    os.close(made.reader)
    os.close(made.writer)
    os.close(made.stream._copy)


def test_line_carries_the_id_when_a_task_prints(pipe: _Pipe) -> None:
    pipe.task = "t1"
    print("one", 2, file=pipe.text)
    assert pipe.bytes() == b"\x1et1\x1fone 2\n"


def test_each_line_is_marked_when_several_are_written_at_once(pipe: _Pipe) -> None:
    pipe.task = "t1"
    pipe.text.write("a\nb\nc")
    assert pipe.bytes() == b"\x1et1\x1fa\n\x1et1\x1fb\n"
    pipe.stream.end_line("t1")
    assert pipe.bytes() == b"\x1et1\x1fc\n"


def test_line_is_not_marked_when_no_task_runs(pipe: _Pipe) -> None:
    print("import", file=pipe.text)
    assert pipe.read() == [(None, "import")]


def test_lines_of_two_tasks_stay_apart_when_they_print_in_turns(pipe: _Pipe) -> None:
    for task, text in [("a", "a1 "), ("b", "b1 "), ("a", "a2\n"), ("b", "b2\n")]:
        pipe.task = task
        pipe.text.write(text)
    assert pipe.read() == [("a", "a1 a2"), ("b", "b1 b2")]


def test_line_comes_in_one_when_its_beginning_was_flushed(pipe: _Pipe) -> None:
    pipe.task = "t"
    print("half", end="", file=pipe.text, flush=True)
    assert pipe.read() == []
    print(" whole", file=pipe.text)
    assert pipe.read() == [("t", "half whole")]


def test_flushed_text_is_kept_when_the_worker_then_dies(pipe: _Pipe) -> None:
    pipe.task = "t"
    print("last words", end="", file=pipe.text, flush=True)
    assert pipe.read() == []
    assert pipe.lines.end() == [("t", "last words")]
    assert pipe.lines.end() == []


def test_text_without_an_end_is_told_once_when_the_task_ends(pipe: _Pipe) -> None:
    pipe.task = "t"
    print("x", end="", file=pipe.text)
    pipe.text.flush()
    pipe.stream.end_line("t")
    pipe.stream.end_line("t")
    assert pipe.read() == [("t", "x")]
    assert not pipe.stream.unended


def test_id_cannot_be_forged_when_a_handler_prints_a_mark(pipe: _Pipe) -> None:
    pipe.task = "t"
    print("\x1eother\x1fhello", file=pipe.text)
    assert pipe.read() == [("t", "\\x1eother\x1fhello")]


def test_line_is_cut_when_it_never_ends(pipe: _Pipe) -> None:
    pipe.task = "t"
    writer = threading.Thread(target=pipe.text.write, args=("x" * (2 * MAX_LINE),))
    writer.start()
    lines: list[tuple[str | None, str]] = []
    while sum(len(line) for _, line in lines) < 2 * MAX_LINE:
        lines += pipe.read()
    writer.join()
    assert lines == [("t", "x" * MAX_LINE)] * 2


def test_long_lines_are_cut_when_others_stand_between_them(pipe: _Pipe) -> None:
    pipe.task = "t"
    text = "a" * (MAX_LINE + 1) + "\n\n" + "b" * 10 + "\n"
    writer = threading.Thread(target=pipe.text.write, args=(text,))
    writer.start()
    lines: list[tuple[str | None, str]] = []
    while len(lines) < 4:
        lines += pipe.read()
    writer.join()
    assert lines == [("t", "a" * MAX_LINE), ("t", "a"), ("t", ""), ("t", "b" * 10)]


def test_stream_works_on_when_a_handler_closes_it(pipe: _Pipe) -> None:
    pipe.text.close()
    pipe.task = "t"
    print("still here", file=pipe.text)
    assert pipe.read() == [("t", "still here")]


def test_surrogates_are_escaped_when_they_are_in_bytes() -> None:
    assert LineReader().feed(b"\xff\xc3\xa9\r\n") == [(None, "\\xffé")]


@pytest.mark.parametrize(
    ("data", "lines"),
    [
        (b"plain\n\x1et\x1fmarked\n", [(None, "plain"), ("t", "marked")]),
        (b"raw \x1et\x1fmarked\nrest\n", [("t", "marked"), (None, "raw rest")]),
        (b"\x1et\x1fhalf\x1eu\x1fother\n\x1et\x1f whole\n", [("u", "other"), ("t", "half whole")]),
        (b"\x1eno end of mark\n", [(None, "\x1eno end of mark")]),
        (b"\x1e\x1fempty\n", [(None, "\x1e\x1fempty")]),
        (b"\x1e" + b"i" * 300 + b"\x1fx\n", [(None, "\x1e" + "i" * 300 + "\x1fx")]),
        (b"\n\n", [(None, ""), (None, "")]),
    ],
)
def test_lines_are_these_when_read(data: bytes, lines: list[tuple[str | None, str]]) -> None:
    assert LineReader().feed(data) == lines
    reader = LineReader()
    one_by_one = [line for number in range(len(data)) for line in reader.feed(data[number : number + 1])]
    assert one_by_one == lines


@given(st.lists(st.binary(max_size=50)))
def test_no_bytes_are_lost_when_output_is_garbage(pieces: list[bytes]) -> None:
    reader = LineReader()
    lines = [line for piece in pieces for line in reader.feed(piece)] + reader.end()
    whole = b"".join(pieces)
    if b"\x1e" not in whole:
        expected = [line.removesuffix(b"\r").decode(errors="backslashreplace") for line in whole.split(b"\n")]
        if not expected[-1] and whole[-1:] != b"\r":
            expected.pop()
        assert lines == [(None, line) for line in expected]
