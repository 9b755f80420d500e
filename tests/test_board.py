"""The page that a worker and the service share, seen from both sides in one process."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trispool.worker.board import BEGUN, HELD, MARKS, Board

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def sides() -> Iterator[tuple[Board, Board]]:
    """The service's and the worker's view."""
    fd = Board.create_memory(256)
    service, worker = Board(fd, 256), Board(fd, 256)
    os.close(fd)
    yield service, worker
    service.close()
    worker.close()


def test_service_sees_what_runs_when_the_worker_has_begun(sides: tuple[Board, Board]) -> None:
    service, worker = sides
    assert service.running == (0, 0.0, 0.0)
    worker.begin(2**40, 1.5, 9.25)
    assert service.running == (2**40, 1.5, 9.25)
    worker.end()
    assert service.running[0] == 0


@pytest.mark.parametrize("code", list(MARKS))
def test_service_sees_the_code_when_a_task_has_ended(sides: tuple[Board, Board], code: str) -> None:
    service, worker = sides
    assert service.code(300) is None
    assert not service.is_taken(300)
    worker.mark(300, MARKS[code])  # type: ignore[index] # parametrized
    assert service.code(300) == code
    assert service.is_taken(300)
    assert not service.is_begun(300)


def test_task_has_not_ended_when_it_is_only_begun_or_held(sides: tuple[Board, Board]) -> None:
    service, worker = sides
    worker.mark(1, BEGUN)
    worker.mark(2, HELD)
    assert (service.code(1), service.is_taken(1), service.is_begun(1)) == (None, True, True)
    assert (service.code(2), service.is_taken(2), service.is_begun(2)) == (None, True, False)


def test_worker_sees_the_recall_when_the_service_has_written_it(sides: tuple[Board, Board]) -> None:
    service, worker = sides
    assert not worker.is_recalled(1)
    service.recall(5)
    assert [number for number in range(1, 9) if worker.is_recalled(number)] == [1, 2, 3, 4]


def test_loop_deadline_is_seen_when_set(sides: tuple[Board, Board]) -> None:
    service, worker = sides
    worker.set_loop_deadline(12.5)
    assert service.loop_deadline == 12.5


@given(st.integers(0, 10_000), st.integers(0, 128))
def test_only_the_marks_to_come_are_cleared_when_tasks_are_sent(first: int, count: int) -> None:
    fd = Board.create_memory(256)
    board = Board(fd, 256)
    os.close(fd)
    for number in range(first, first + 256):
        board.mark(number, BEGUN)
    board.clear(first, count)
    cleared = [number for number in range(first, first + 256) if not board.is_taken(number)]
    assert cleared == list(range(first, first + count))
    board.close()


def test_memory_keeps_its_size_when_somebody_truncates_it() -> None:
    fd = Board.create_memory(256)
    with pytest.raises(PermissionError):
        os.ftruncate(fd, 0)
    with pytest.raises(PermissionError):
        os.ftruncate(fd, 1 << 20)
    os.close(fd)
