"""Questions to a history: on real SQLite files, without threads."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, Any

import pytest

from trispool import ledgersearch, spoolfile
from trispool.ledgerfile import LedgerFile
from trispool.ledgersearch import Stretch, mentions, search
from trispool.operating import TaskFilter
from trispool.packet import encode_vars
from trispool.task import AttemptRow, TaskState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

NOW = 1_700_000_000.0


def row(number: int, /, **changes: Any) -> AttemptRow:
    name = spoolfile.new_name("host", 1, number, 1, int(NOW), number)
    row = AttemptRow(
        task=name,
        number=1,
        outcome="ok",
        state="done",
        started_at=NOW + number,
        queue_seconds=0.25,
        run_seconds=1.5,
        worker=77,
        handler="encode",
        error=None,
        traceback=None,
        at=NOW + number,
        priority=None,
        enqueued_at=NOW + number / 1e6,
        vars=encode_vars({"n": str(number)}),
    )
    return row._replace(**changes)


def cancelled(number: int) -> AttemptRow:
    return row(number, outcome="cancelled", state="cancelled", handler=None, error="by alice")


def failed(number: int) -> AttemptRow:
    return row(number, outcome="failed", state=None, error="OSError: no", vars=None)


class Rows:
    """A history."""

    def __init__(self, path: str) -> None:
        self._file = LedgerFile(path)
        self._file.open()
        self.connection = sqlite3.connect(path, isolation_level=None)
        self._made: list[str] = []

    def write(self, *rows: AttemptRow) -> None:
        self._file.write(rows, {})

    def search(
        self, *, descending: bool = False, limit: int = 100, after: int | None = None, rows: int = 1000, **wanted: Any
    ) -> Stretch:
        self._made.clear()
        self.connection.set_trace_callback(self._made.append)
        found = search(
            self.connection, TaskFilter(**wanted), descending=descending, limit=limit, after=after, rows=rows
        )
        self.connection.set_trace_callback(None)
        return found

    def plans(self) -> list[str]:
        """How SQLite went about the statements of the last search."""
        return [str(self.connection.execute(f"EXPLAIN QUERY PLAN {sql}").fetchall()) for sql in self._made]

    def numbers(self, **options: Any) -> list[int]:
        return numbers(self.search(**options))

    def all_numbers(self, **options: Any) -> list[int]:
        """Those of all stretches."""
        seen: list[int] = []
        after = None
        while True:
            found = self.search(after=after, **options)
            seen += numbers(found)
            if found.is_last:
                return seen
            assert found.behind != after
            after = found.behind

    def close(self) -> None:
        self.connection.close()
        self._file.close()


def numbers(found: Stretch) -> list[int]:
    return [int(task.id.split("_")[5]) for _, task in found.found]


@pytest.fixture
def history(tmp_path: Path) -> Iterator[Rows]:
    rows = Rows(str(tmp_path / "spool.db"))
    yield rows
    rows.close()


def test_an_empty_history_has_no_tasks(history: Rows) -> None:
    assert history.search() == Stretch([], 0, 0.0, is_last=True)
    assert history.search(descending=True, after=7, state=TaskState.CANCELLED) == Stretch([], 7, 0.0, is_last=True)


def test_what_is_done_or_cancelled_is_finished(history: Rows) -> None:
    history.write(row(1), failed(2), cancelled(3), row(4, outcome="failed", state="dead"), row(5))
    assert history.numbers() == [1, 3, 5]
    assert history.numbers(descending=True) == [5, 3, 1]
    assert history.numbers(state=TaskState.DONE) == [1, 5]
    assert history.numbers(state=TaskState.CANCELLED) == [3]
    (first, last) = history.search(limit=2).found
    assert (first.row, first.task.state, first.task.finished_at) == (1, TaskState.DONE, NOW + 2.5)
    assert (last.row, last.task.state, last.task.last_error) == (3, TaskState.CANCELLED, "by alice")
    assert (first.task.handler, first.task.run_seconds, first.task.at) == ("encode", 1.5, NOW + 1)


@pytest.mark.parametrize("rows", [1, 2, 3, 10, 1000])
@pytest.mark.parametrize("limit", [1, 2, 1000])
@pytest.mark.parametrize("descending", [False, True])
def test_stretches_leave_nothing_out_and_repeat_nothing(rows: int, limit: int, descending: bool, history: Rows) -> None:
    made: list[Callable[[int], AttemptRow]] = [row, failed, cancelled, row]
    history.write(*(made[number % 4](number) for number in range(40)))
    history.connection.execute("DELETE FROM attempts WHERE seq BETWEEN 9 AND 24")
    left = [number for number in range(40) if not 8 <= number < 24]
    for state, expected in (
        (None, [number for number in left if number % 4 != 1]),
        (TaskState.CANCELLED, [number for number in left if number % 4 == 2]),
        (TaskState.DONE, [number for number in left if number % 4 in (0, 3)]),
    ):
        found = history.all_numbers(state=state, rows=rows, limit=limit, descending=descending)
        assert found == expected[:: -1 if descending else 1]


@pytest.mark.parametrize("descending", [False, True])
def test_a_search_looks_at_so_many_rows(descending: bool, history: Rows) -> None:
    history.write(*(row(number) for number in range(100)))
    found = history.search(handler="nobody", rows=30, descending=descending)
    assert (found.found, found.is_last) == ([], False)
    assert found.behind == (71 if descending else 30)
    assert found.ended_at == NOW + found.behind - 1 + 1.5
    assert any("USING INTEGER PRIMARY KEY (rowid>? AND rowid<?)" in plan for plan in history.plans())


def test_rows_that_were_deleted_are_passed_over_at_once(history: Rows) -> None:
    history.write(*(row(number) for number in range(100)))
    history.connection.execute("DELETE FROM attempts WHERE seq BETWEEN 2 AND 90")
    first = history.search(rows=5, after=None)
    assert (numbers(first), first.behind, first.ended_at) == ([0], 5, NOW + 1.5)
    assert numbers(history.search(rows=5, after=first.behind)) == [90, 91, 92, 93, 94]


@pytest.mark.parametrize("descending", [False, True])
def test_what_was_cancelled_is_found_by_an_index(descending: bool, history: Rows) -> None:
    history.write(*(row(number) for number in range(500)), cancelled(500), *(row(number) for number in range(501, 900)))
    found = history.search(state=TaskState.CANCELLED, rows=40, descending=descending)
    assert (numbers(found), found.is_last) == ([500], True)
    assert "attempts_not_ok" in history.plans()[-3]


def test_a_search_for_what_was_cancelled_looks_at_so_many_rows_too(history: Rows) -> None:
    history.write(*(failed(number) for number in range(100)), cancelled(100))
    found = history.search(state=TaskState.CANCELLED, rows=10 * ledgersearch.APART)
    assert (found.found, found.behind, found.is_last) == ([], 10, False)
    assert history.all_numbers(state=TaskState.CANCELLED, rows=10 * ledgersearch.APART) == [100]


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("limit", [1, 3, 100])
def test_a_short_time_of_enqueuing_is_found_by_an_index(limit: int, descending: bool, history: Rows) -> None:
    history.write(*(row(number) for number in range(500)))
    times = {"enqueued_after": NOW + 200 / 1e6, "enqueued_before": NOW + 205 / 1e6}
    found = history.all_numbers(limit=limit, rows=10, descending=descending, **times)
    assert found == [200, 201, 202, 203, 204][:: -1 if descending else 1]
    assert any("attempts_enqueued_at" in plan and "seq" not in plan for plan in history.plans())
    assert len(history.search(rows=10, limit=100, **times).found) == 5


def test_a_long_time_of_enqueuing_is_looked_for_in_stretches(history: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledgersearch, "FEW", 50)
    history.write(*(row(number) for number in range(500)))
    found = history.search(rows=10, enqueued_after=NOW + 200 / 1e6)
    assert (found.found, found.behind) == ([], 10)
    assert history.all_numbers(rows=10, enqueued_after=NOW + 200 / 1e6) == list(range(200, 500))
    assert history.all_numbers(rows=10, enqueued_before=NOW + 200 / 1e6) == list(range(200))


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ({"handler": "encode"}, [1, 2, 5]),
        ({"handler": "encod"}, []),
        ({"due_after": NOW + 2}, [2, 3, 4, 5]),
        ({"due_before": NOW + 2}, [1]),
        ({"due_after": NOW + 2, "due_before": NOW + 4, "handler": "encode"}, [2]),
        ({"q": "_3_1_"}, [3]),
        ({"q": "by alice"}, [3]),
        ({"q": "100%"}, [4]),
        ({"q": "%"}, [4]),
        ({"q": "clip"}, [2, 5]),
        ({"q": "clip", "handler": "encode", "due_before": NOW + 5}, [2]),
        ({"q": "\udcff"}, []),
        ({"q": "é"}, [4]),
        ({"q": ""}, [1, 2, 3, 4, 5]),
    ],
)
def test_filters(wanted: dict[str, Any], found: list[int], history: Rows) -> None:
    history.write(
        row(1),
        row(2, vars=encode_vars({"path": "/clip.mov"})),
        cancelled(3),
        row(4, handler="notify", error="broken pipe at 100%", vars=encode_vars({"é": ""})),
        row(5, vars=encode_vars({"a clip": b"\xff"})),
    )
    assert history.numbers(**wanted) == found
    assert history.all_numbers(limit=1, rows=2, descending=True, **wanted) == found[::-1]


def test_what_only_looks_like_the_text_is_passed_over(history: Rows) -> None:
    # The length of a value of 112 bytes is a "p", and comes behind its key.
    history.write(row(1, vars=encode_vars({"foo": "x" * 112})), row(2, vars=b"foop"), row(3, vars=None))
    found = history.search(q="foop", limit=1)
    assert (found.found, found.behind, found.is_last) == ([], 1, False)
    assert history.all_numbers(q="foop", limit=1) == []


@pytest.mark.parametrize(
    ("q", "is_mentioned"),
    [("ta", True), ("rok", True), ("ke", True), ("alu", True), ("yv", False), ("é", True), ("x", False)],
)
def test_a_text_is_mentioned_in_id_error_or_vars(q: str, is_mentioned: bool) -> None:
    assert mentions(q, "task", "broken", {b"key": b"value", "é".encode(): b"\xff"}) is is_mentioned
    assert not mentions("x", "task", None, None)
