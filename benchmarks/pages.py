"""How long a page of a list of tasks takes by HTTP, and how long it keeps others waiting.

There are as many tasks as the sizes say in each of four places: the directory (for tomorrow), `.trispool/held`,
`.trispool/dead` and the history. Each question is asked several times, on one connection that stays open. Meanwhile
another client pings the server: its answer takes as long as whatever else keeps the event loop.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlencode

from benchmarks.asker import Asker
from benchmarks.client import exchange
from benchmarks.report import Measure, percentile
from benchmarks.scenario import Scenario, of_servers
from benchmarks.servers import Kind, prepare, running
from benchmarks.tasks import DAY, PATIENCE
from trispool import spoolfile
from trispool.cursors import Cursor
from trispool.ledgerfile import LedgerFile
from trispool.packet import encode_vars
from trispool.task import AttemptRow

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from benchmarks.sizes import Sizes

__all__ = ["SCENARIO"]

LIMIT: Final = 50
"""Tasks on a page, as by default."""

MICROSECONDS: Final = 1_000_000
_BEGAN: Final = time.time() // 1 - DAY
"""When the first task was enqueued; a history that is older than a month would be deleted."""

_PING: Final = bytes([100, 0, 0, 0])
_PING_SECONDS: Final = 0.001
_ROWS: Final = 5_000
_HANDLERS: Final = ("encode", "notify", "thumbnail", "index")
_RARE: Final = 20_000
"""One in so many tasks has another handler, "rare"."""


def pages(kind: Kind, folder: Path, sizes: Sizes) -> Mapping[Measure, float]:
    """The time of pages: the first, one in the middle, the last, and with each filter."""
    # To make them takes longer than all the rest, and they stay what they are: the rounds share them.
    folder = folder.parent / "pages"
    if not folder.exists():
        _fill(prepare(folder), sizes)
    figures = {}
    with running(kind, folder) as server:
        asker = Asker(folder)
        asker.wait("/api/v1/spools", lambda answer: _all_is_known(answer, sizes), PATIENCE, server.check)
        with _pinging(server.unix) as pings:
            time.sleep(1.0)
            figures[Measure("pings meanwhile: nobody asks, longest", "ms")] = max(pings) * 1e3
            pings.clear()
            longest = 0.0
            for name, question in _questions(sizes):
                times = sorted(_timed(asker, question) for _ in range(sizes.asked))
                figures[Measure(f"{name}, p50", "ms")] = percentile(times, 50) * 1e3
                longest = max(longest, times[-1])
            figures[Measure("the slowest single page of all", "ms")] = longest * 1e3
            ordered = sorted(pings)
            for percent in (50, 99):
                figures[Measure(f"pings meanwhile: p{percent}", "ms")] = percentile(ordered, percent) * 1e3
            figures[Measure("pings meanwhile: longest", "ms")] = ordered[-1] * 1e3
    return figures


def _questions(sizes: Sizes) -> Iterator[tuple[str, dict[str, Any]]]:
    """Names of pages, and how to ask for them."""
    begin = _enqueued_at(sizes.waiting // 2)
    # As the pages before would give it: they are thousands.
    middle = {"cursor": Cursor("enqueued", (0, int(begin * MICROSECONDS), 0, "default", ""), {}).encode()}
    second = {"enqueued_after": begin, "enqueued_before": begin + 1}
    newest: dict[str, Any] = {"order": "desc"}
    for state in ("scheduled", "held", "dead"):
        yield f"{state}: first", {"state": state}
        yield f"{state}: middle", {"state": state, **middle}
        yield f"{state}: last", {"state": state, **newest}
    yield "scheduled, by due time: first", {"state": "scheduled", "sort": "due"}
    yield "scheduled, by due time: last", {"state": "scheduled", "sort": "due", **newest}
    yield "held, by due time: first", {"state": "held", "sort": "due"}
    yield "all states: first", {}
    yield "all states: middle", middle
    yield "done: first", {"state": "done"}
    yield (
        "done: middle",
        {
            "state": "done",
            "cursor": Cursor("enqueued", None, {"default": sizes.waiting + sizes.finished // 2}).encode(),
        },
    )
    yield "done: last", {"state": "done", **newest}
    yield "cancelled: last", {"state": "cancelled", **newest}
    for state in ("scheduled", "held", "dead", "done"):
        yield f"{state}, one handler of four", {"state": state, "handler": _HANDLERS[0]}
        yield f"{state}, a handler that nobody asks for", {"state": state, "handler": "nobody"}
        yield f"{state}, text of many", {"state": state, "q": "clip77"}
        yield f"{state}, text of none", {"state": state, "q": "no such text"}
        yield f"{state}, due on a day without any", {"state": state, "due_after": 7 * DAY, "due_before": 8 * DAY}
        yield f"{state}, enqueued within a second", {"state": state, **second}


def _timed(asker: Asker, question: Mapping[str, Any]) -> float:
    """Seconds that a page takes."""
    began = time.monotonic()
    asker.ask("/api/v1/tasks?" + urlencode({"limit": LIMIT, **question}))
    return time.monotonic() - began


@contextlib.contextmanager
def _pinging(address: str) -> Iterator[list[float]]:
    """Seconds that each of the pings took that are sent meanwhile, one after the other."""
    pings: list[float] = []
    stop = threading.Event()

    def ping() -> None:
        while not stop.wait(_PING_SECONDS):
            began = time.monotonic()
            exchange(address, _PING)
            pings.append(time.monotonic() - began)

    thread = threading.Thread(target=ping)
    thread.start()
    try:
        yield pings
    finally:
        stop.set()
        thread.join()


# Many tasks


def _all_is_known(answer: Any, sizes: Sizes) -> bool:  # noqa: ANN401 # what JSON may be
    (spool,) = answer["spools"]
    return all(spool[state] == sizes.waiting for state in ("scheduled", "held", "dead"))


def _enqueued_at(number: int) -> float:
    return _BEGAN + number / 100


def _fill(spool: Path, sizes: Sizes) -> None:
    tomorrow = time.time() + DAY
    for place in ("", ".trispool/held", ".trispool/dead"):
        (spool / place).mkdir(parents=True, exist_ok=True)
        for number in range(sizes.waiting):
            path = spool / place / _name(number, place)
            path.write_bytes(spoolfile.encode(_vars(number), b""))
            os.utime(path, (tomorrow + number % 1000, tomorrow + number % 1000))
    file = LedgerFile(os.fspath(spool / ".trispool" / "spool.db"))
    file.open()
    file.write([_died(number) for number in range(sizes.waiting)], {})
    for start in range(0, sizes.finished, _ROWS):
        file.write([_row(number) for number in range(start, min(sizes.finished, start + _ROWS))], {})
    file.close()
    os.sync()


def _name(number: int, place: str) -> str:
    seconds, microseconds = divmod(round(_enqueued_at(number) * MICROSECONDS), MICROSECONDS)
    return spoolfile.new_name(f"host{place[-4:]}", 1234, number, number * 7919 % 2**31, seconds, microseconds)


def _vars(number: int) -> bytes:
    handler = _HANDLERS[number % len(_HANDLERS)] if number % _RARE else "rare"
    path = f"/srv/media/incoming/clip{number % 777}.mov"
    return encode_vars({"handler": handler, "key": str(number), "path": path, "preset": "fast"})


def _died(number: int) -> AttemptRow:
    """What is known of a task that lies in `.trispool/dead`."""
    name, at, handler = _name(number, "dead"), _enqueued_at(number), _HANDLERS[number % len(_HANDLERS)]
    return AttemptRow(name, 3, "failed", "dead", at + 1, 0.1, 0.2, 77, handler, "OSError: no", None, at, None, at)


def _row(number: int) -> AttemptRow:
    """Of a hundred tasks one is cancelled, and one has failed once and waits."""
    name, at = _name(number, "done"), _enqueued_at(number)
    handler, vars_ = _HANDLERS[number % len(_HANDLERS)], _vars(number)
    if number % 100 == 0:
        return AttemptRow(
            name, 0, "cancelled", "cancelled", at + 1, 0.0, 0.0, 0, None, "by alice", None, at, None, at, vars_
        )
    if number % 100 == 1:
        return AttemptRow(name, 1, "failed", None, at + 1, 0.1, 0.2, 77, handler, "OSError: no", None, at, None, at)
    return AttemptRow(name, 1, "ok", "done", at + 1, 0.1, 0.2, 77, handler, None, None, at, None, at, vars_)


SCENARIO: Final = Scenario(
    lambda sizes: (
        f"Pages of lists by HTTP: {sizes.waiting:,} tasks wait, {sizes.waiting:,} are held, {sizes.waiting:,} are "
        f"dead, {sizes.finished:,} are finished"
    ),
    of_servers(pages, (Kind.OS,)),
    lambda sizes: [
        f"Each is asked for {sizes.asked} times. uWSGI has nothing like it.",
        "A page with a filter that little fits may be short, or empty, and yet not be the last.",
    ],
    rounds=1,
)
