"""The log: what its lines look like, and that it stops nobody."""

from __future__ import annotations

import io
import json
import logging
import re
import warnings
from typing import TYPE_CHECKING

import pytest
import structlog
from click.testing import CliRunner

from trispool import logs
from trispool.cli import main
from trispool.printable import printable

if TYPE_CHECKING:
    from collections.abc import Iterator

SECRET = "swordfish"


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        yield
    structlog.reset_defaults()
    logging.captureWarnings(False)
    root.handlers[:] = handlers
    root.setLevel(level)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def fail() -> None:
    password = SECRET
    raise ValueError(len(password))


def test_lines_are_json_where_nobody_looks() -> None:
    stream = io.StringIO()
    logs.configure(stream)
    structlog.get_logger().info("http_ready", url="http://x", raw=b"\xff")
    [line] = stream.getvalue().splitlines()
    document = json.loads(line)
    assert list(document) == ["time", "level", "event", "url", "raw"]
    assert document["level"] == "info"
    assert document["event"] == "http_ready"
    assert document["url"] == "http://x"


def test_lines_are_text_on_a_terminal() -> None:
    stream = Terminal()
    logs.configure(stream)
    structlog.get_logger().warning("lost", spool="default", pid=7, nothing=None)
    plain = re.sub("\33\\[[0-9]*m", "", stream.getvalue())
    assert plain != stream.getvalue(), "coloured"
    assert re.fullmatch(r"\d\d:\d\d:\d\d\.\d{3}  warning  lost  spool=default  pid=7\n", plain)


def test_the_format_can_be_asked_for() -> None:
    stream = io.StringIO()
    logs.configure(stream, format="console")
    structlog.get_logger().info("event", a=1)
    assert "\33" not in stream.getvalue()
    assert stream.getvalue().endswith("info     event  a=1\n")
    stream = Terminal()
    logs.configure(stream, format="json")
    structlog.get_logger().info("event", a=1)
    assert json.loads(stream.getvalue())["a"] == 1


def test_what_is_less_urgent_than_the_level_is_left_out() -> None:
    stream = io.StringIO()
    logs.configure(stream, level="warning")
    structlog.get_logger().info("quiet")
    structlog.get_logger().error("loud")
    assert [json.loads(line)["event"] for line in stream.getvalue().splitlines()] == ["loud"]


@pytest.mark.parametrize("format", ["console", "json"])
def test_a_traceback_is_shown_without_the_values_of_variables(format: logs.LogFormat) -> None:
    stream = io.StringIO()
    logs.configure(stream, format=format)
    try:
        fail()
    except ValueError as error:
        structlog.get_logger().exception("from_the_handler")
        structlog.get_logger().error("by_hand", exc_info=error)
    shown = stream.getvalue()
    assert shown.count("ValueError: 9") == 2
    assert SECRET not in shown


def test_several_lines_of_a_value_are_indented_below_the_event() -> None:
    stream = io.StringIO()
    logs.configure(stream, format="console")
    structlog.get_logger().info("event", text="one\ntwo", a=1)
    assert stream.getvalue().splitlines()[1:] == ["    text:", "    one", "    two"]
    assert "a=1" in stream.getvalue().splitlines()[0]


def test_nothing_of_a_value_is_obeyed_by_the_terminal() -> None:
    stream = Terminal()
    logs.configure(stream)
    structlog.get_logger().info("event\33[2J", value="\33]0;x\a", lines="a\n\33[2J", name="\udcff")
    assert "\33[2J" not in stream.getvalue()
    assert "\33]" not in stream.getvalue()
    assert "\\x1b[2J" in stream.getvalue()


def test_a_name_that_is_not_utf_8_is_no_reason_not_to_log() -> None:
    stream = io.StringIO()
    logs.configure(stream)
    structlog.get_logger().info("event", name="\udcff")
    assert json.loads(stream.getvalue())["name"] == "\udcff"


def test_an_event_is_one_line_of_json_whatever_is_in_it() -> None:
    stream = io.StringIO()
    logs.configure(stream)
    try:
        fail()
    except ValueError:
        structlog.get_logger().exception("attempt_ended_badly", task="t1", error="one\ntwo\r\u2028three")
    [line] = stream.getvalue().split("\n")[:-1]
    document = json.loads(line)
    assert (document["task"], document["error"]) == ("t1", "one\ntwo\r\u2028three")


def test_what_libraries_say_is_among_the_lines() -> None:
    stream = io.StringIO()
    logs.configure(stream)
    logging.getLogger("some.library").warning("careful, %s", "friend")
    logging.getLogger("some.library").info("chatter")
    warnings.warn("old", DeprecationWarning, stacklevel=1)
    first, second = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert (first["event"], first["level"], first["logger"]) == ("careful, friend", "warning", "some.library")
    assert "DeprecationWarning: old" in second["event"]


class Broken(io.StringIO):
    def write(self, text: str) -> int:
        raise BrokenPipeError


def test_a_log_that_nobody_takes_stops_nothing() -> None:
    logs.configure(Broken())
    structlog.get_logger().error("into the void")
    closed = io.StringIO()
    logs.configure(closed)
    closed.close()
    structlog.get_logger().error("into the void")


@pytest.mark.parametrize(
    ("text", "shown"), [("plain ünïcode", "plain ünïcode"), ("a\nb", "a\\nb"), ("\x9b", "\\x9b"), ("\u202e", "\\u202e")]
)
def test_control_characters_are_written_out(text: str, shown: str) -> None:
    assert printable(text) == shown


@pytest.mark.parametrize(
    ("arguments", "environ", "expected"),
    [
        ([], {}, ("info", "auto")),
        ([], {"TRISPOOL_LOG_FORMAT": "json", "TRISPOOL_LOG_LEVEL": "debug"}, ("debug", "json")),
        (["--log-format", "console"], {"TRISPOOL_LOG_FORMAT": "json"}, ("info", "console")),
    ],
)
def test_run_takes_the_format_from_the_command_line_or_the_environment(
    arguments: list[str], environ: dict[str, str], expected: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    configured: list[tuple[str, str]] = []
    monkeypatch.setattr(logs, "configure", lambda *, level, format: configured.append((level, format)))
    monkeypatch.setattr("trispool.service.run", lambda config: 0)
    result = CliRunner().invoke(main, ["run", "--spool", "spool", *arguments], env=environ)
    assert result.exit_code == 0, result.output
    assert configured == [expected]


def test_run_refuses_a_format_that_it_does_not_know() -> None:
    result = CliRunner().invoke(main, ["run", "--spool", "spool"], env={"TRISPOOL_LOG_FORMAT": "xml"})
    assert result.exit_code == 2
    assert "'xml' is not one of" in result.output
