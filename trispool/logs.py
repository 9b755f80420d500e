"""Where log lines go and what they look like: for people on a terminal, JSON everywhere else, always on stderr.

    13:05:09.250 info    http_ready  url=http://127.0.0.1:8080
    {"time":1794139509.25,"level":"info","event":"http_ready","url":"http://127.0.0.1:8080"}

A log that nobody takes any more (its reader has gone, its disk is full) loses lines; it never stops the service.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import time
import traceback
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import msgspec
import structlog

from trispool.printable import printable

if TYPE_CHECKING:
    from collections.abc import MutableMapping
    from typing import TextIO

    from structlog.typing import EventDict, ExcInfo, WrappedLogger

__all__ = ["LEVELS", "LogFormat", "configure"]

LEVELS: Final = ("debug", "info", "warning", "error")

LogFormat: TypeAlias = Literal["auto", "console", "json"]

_COLOURS: Final = {
    "debug": "\33[2m",
    "info": "\33[36m",
    "warning": "\33[33m",
    "error": "\33[31m",
    "critical": "\33[31m",
}
_DIM: Final = "\33[2m"
_BOLD: Final = "\33[1m"
_PLAIN: Final = "\33[0m"


def configure(stream: TextIO | None = None, *, level: str = "info", format: LogFormat = "auto") -> None:
    """Set up the log of this process.

    Args:
        stream: Where it goes; None: stderr.
        level: One of `LEVELS`; what is less urgent is left out.
        format: `console` for people, `json` for machines; `auto`: by whether it goes to a terminal.
    """
    stream = stream or sys.stderr
    is_terminal = stream.isatty()
    number = logging.getLevelNamesMapping()[level.upper()]
    for_people = format == "console" or (format == "auto" and is_terminal)
    renderer = _Console(colours=is_terminal) if for_people else _json
    structlog.configure(
        processors=[structlog.stdlib.add_log_level, _add_time, _add_exception, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=lambda *args: _Lines(stream),
        cache_logger_on_first_use=True,
    )
    # What libraries have to say. Below a warning it is about their insides.
    root = logging.getLogger()
    root.handlers[:] = [_FromLibraries()]
    root.setLevel(max(number, logging.WARNING))
    logging.captureWarnings(True)


class _Lines:
    """Writes lines whole, one at a time."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def msg(self, line: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # a closed stream is a ValueError
            self._stream.write(line + "\n")
            self._stream.flush()

    log = debug = info = warning = error = critical = exception = msg


class _FromLibraries(logging.Handler):
    """Passes records of `logging` on to structlog."""

    def emit(self, record: logging.LogRecord) -> None:
        say = getattr(structlog.get_logger(), record.levelname.lower(), structlog.get_logger().warning)
        say(record.getMessage().rstrip(), logger=record.name, exc_info=record.exc_info)


def _add_time(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    event["time"] = round(time.time(), 6)
    return event


def _add_exception(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    """The traceback as text: without the local variables, which may be secret."""
    given: ExcInfo | BaseException | bool | None = event.pop("exc_info", None)
    if given is True:
        given = sys.exception()
    elif isinstance(given, tuple):
        given = given[1]
    if isinstance(given, BaseException):
        event["exception"] = "".join(traceback.format_exception(given))
    return event


def _json(logger: WrappedLogger, method: str, event: EventDict) -> str:
    line = {"time": event.pop("time"), "level": event.pop("level"), "event": event.pop("event"), **event}
    try:
        return _encode(line).decode()
    except UnicodeEncodeError:  # a file name that is not UTF-8
        return json.dumps(line, default=repr)


_encode: Final = msgspec.json.Encoder(enc_hook=repr).encode


class _Console:
    """A line for people; what has several lines follows, indented."""

    def __init__(self, *, colours: bool) -> None:
        self._colours = colours

    def __call__(self, logger: WrappedLogger, method: str, event: MutableMapping[str, Any]) -> str:
        now = float(event.pop("time"))
        level = str(event.pop("level"))
        title = printable(str(event.pop("event")))
        clock = time.strftime("%H:%M:%S", time.localtime(now)) + f".{int(now % 1 * 1000):03}"
        parts = [self._in(_DIM, clock), self._in(_COLOURS.get(level, ""), f"{level:7}"), self._in(_BOLD, title)]
        blocks = []
        for key, value in event.items():
            text = str(value)
            if "\n" in text:
                blocks += [
                    f"    {self._in(_DIM, f'{key}:')}",
                    *(f"    {printable(line)}" for line in text.splitlines()),
                ]
            elif value is not None:
                parts.append(f"{self._in(_DIM, f'{key}=')}{printable(text)}")
        return "\n".join(["  ".join(parts), *blocks])

    def _in(self, colour: str, text: str) -> str:
        return f"{colour}{text}{_PLAIN}" if self._colours and colour else text
