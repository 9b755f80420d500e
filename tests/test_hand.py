"""What a worker has in hand, with a board that the test writes as a worker would."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from trispool import hand as hand_module
from trispool.hand import Hand
from trispool.store import Claim
from trispool.worker.board import BEGUN, HELD, MARKS, Board
from trispool.workerlink import Report

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def hand() -> Iterator[Hand]:
    fd = Board.create_memory(256)
    made = Hand()
    made.board = Board(fd, 256)
    os.close(fd)
    yield made
    made.board.close()


def _claims(count: int, size: int | None = None) -> list[Claim]:
    content = None if size is None else (b"", bytes(size))
    return [Claim(f"t{number}", f"t{number}", content) for number in range(count)]


def _put(hand: Hand, count: int) -> list[int]:
    """Hand over `count` tasks; their numbers."""
    return [
        number for first, items in hand.put(_claims(count), [1] * count) for number in range(first, first + len(items))
    ]


def _answer(hand: Hand, *numbers: int) -> list[Report]:
    return hand.answered([Report(number, "ok") for number in numbers])


def test_tasks_have_numbers_in_order_when_put(hand: Hand) -> None:
    assert _put(hand, 3) == [1, 2, 3]
    assert _put(hand, 2) == [4, 5]
    assert (hand.unanswered, hand.batches, len(hand.tasks)) == (5, 2, 5)


def test_batch_is_over_when_its_last_task_is_answered(hand: Hand) -> None:
    _put(hand, 3)
    _put(hand, 2)
    _answer(hand, 1, 2)
    assert (hand.unanswered, hand.batches) == (3, 2)
    _answer(hand, 3, 4)
    assert (hand.unanswered, hand.batches) == (1, 1)
    _answer(hand, 5)
    assert (hand.unanswered, hand.batches) == (0, 0)


def test_frames_stay_small_when_tasks_carry_much(hand: Hand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hand_module, "CONTENT_PER_FRAME", 100)
    parts = list(hand.put(_claims(5, 60), [1, 2, 3, 4, 5]))
    assert [(first, [attempt for _, attempt in items]) for first, items in parts] == [
        (1, [1, 2]),
        (3, [3, 4]),
        (5, [5]),
    ]
    assert sorted(hand.tasks) == [1, 2, 3, 4, 5]


def test_answer_is_dropped_when_the_task_was_taken_back(hand: Hand) -> None:
    _put(hand, 3)
    hand.board.begin(1, 0.0, 0.0)
    hand.recall()
    assert [(report.number, report.code) for report in hand.take_unbegun()] == [(2, "returned"), (3, "returned")]
    assert (len(hand.tasks), hand.unanswered) == (1, 3)
    known = hand.answered([Report(1, "ok"), Report(2, "returned"), Report(3, "returned")])
    assert [report.claim.id for report in known] == ["t0"]
    assert hand.unanswered == 0


def test_only_what_was_recalled_is_taken_when_more_has_been_put_since(hand: Hand) -> None:
    _put(hand, 2)
    hand.board.begin(1, 0.0, 0.0)
    hand.recall()
    _put(hand, 2)
    assert [report.number for report in hand.take_unbegun()] == [2]
    assert sorted(hand.tasks) == [1, 3, 4]


def test_something_waits_only_when_it_is_not_begun(hand: Hand) -> None:
    first, second, third = _put(hand, 3)
    hand.board.begin(first, 0.0, 0.0)
    assert hand.has_unbegun()
    hand.board.mark(second, HELD)
    assert hand.has_unbegun()
    hand.board.mark(third, BEGUN)
    assert not hand.has_unbegun()


def test_finished_tasks_are_taken_when_the_board_shows_that_they_went_well(hand: Hand) -> None:
    _put(hand, 3)
    hand.board.mark(1, MARKS["ok"])
    hand.board.mark(2, MARKS["failed"])
    assert [(report.number, report.code, report.started_at) for report in hand.take_finished(5.0)] == [(1, "ok", 5.0)]
    assert sorted(hand.tasks) == [2, 3]


def test_marks_of_a_long_task_are_left_alone_when_an_async_worker_runs_many_others(hand: Hand) -> None:
    hand.is_async = True
    (long,) = _put(hand, 1)
    hand.board.mark(long, BEGUN)
    used = set()
    for _ in range(20):
        numbers = _put(hand, 50)
        assert len(numbers) == len(set(numbers)) == 50
        assert hand.board.is_begun(long)
        for number in numbers:
            assert not hand.board.is_taken(number)
            hand.board.mark(number, MARKS["ok"])
        used.update(numbers)
        _answer(hand, *numbers)
    assert len(used) == 1000
    assert not {number & 255 for number in used} & {long & 255}
    assert hand.take_all(blameless=False)[2] == [Claim("t0", "t0")]


def test_numbers_are_found_when_nearly_all_marks_are_in_use(hand: Hand) -> None:
    hand.is_async = True
    numbers = _put(hand, 256)
    odd = [number for number in numbers if number % 2]
    _answer(hand, *odd)
    again = _put(hand, 128)
    assert {number & 255 for number in again} == {number & 255 for number in odd}


# The worker is dead


def _ids(claims: list[Claim]) -> list[str]:
    return [claim.id for claim in claims]


def test_the_running_task_is_suspect_when_a_sync_worker_died(hand: Hand) -> None:
    _put(hand, 5)
    hand.board.mark(1, MARKS["ok"])
    hand.board.mark(2, MARKS["retry"])
    hand.board.mark(3, MARKS["not_due"])
    hand.board.begin(4, 0.0, 0.0)
    reports, returned, suspects = hand.take_all(blameless=False)
    assert [(report.claim.id, report.code, bool(report.error)) for report in reports] == [
        ("t0", "ok", False),
        ("t1", "retry", True),
    ]
    assert _ids(returned) == ["t2", "t4"]
    assert _ids(suspects) == ["t3"]
    assert not hand.tasks


def test_nobody_is_suspect_when_the_worker_died_between_two_tasks(hand: Hand) -> None:
    _put(hand, 2)
    hand.board.begin(1, 0.0, 0.0)
    hand.board.mark(1, MARKS["ok"])
    reports, returned, suspects = hand.take_all(blameless=False)
    assert ([report.code for report in reports], _ids(returned), suspects) == (["ok"], ["t1"], [])


def test_nobody_is_suspect_when_the_worker_was_killed_by_our_wish(hand: Hand) -> None:
    _put(hand, 2)
    hand.board.begin(1, 0.0, 0.0)
    assert hand.take_all(blameless=True) == ([], _claims(2), [])


def test_only_one_is_suspect_when_the_worker_was_killed_for_it(hand: Hand) -> None:
    hand.is_async = True
    _put(hand, 3)
    for number in (1, 2, 3):
        hand.board.mark(number, BEGUN)
    reports, returned, suspects = hand.take_all(blameless=True, cancelled=2)
    assert (reports, _ids(returned), _ids(suspects)) == ([], ["t0", "t2"], ["t1"])


def test_task_is_not_suspect_when_it_was_given_back_before_the_worker_was_killed_for_it(hand: Hand) -> None:
    _put(hand, 1)
    hand.board.mark(1, MARKS["returned"])
    assert hand.take_all(blameless=False, cancelled=1) == ([], _claims(1), [])


def test_number_is_found_when_the_task_is_in_hand(hand: Hand) -> None:
    _put(hand, 3)
    assert hand.number_of("t1") == 2
    _answer(hand, 1, 2)
    assert hand.number_of("t1") is None


def test_all_that_ran_are_suspect_when_an_async_worker_died(hand: Hand) -> None:
    hand.is_async = True
    _put(hand, 4)
    hand.board.mark(1, BEGUN)
    hand.board.mark(2, HELD)
    hand.board.mark(3, BEGUN)
    _, returned, suspects = hand.take_all(blameless=False)
    assert (_ids(returned), _ids(suspects)) == (["t1", "t3"], ["t0", "t2"])


def test_the_one_that_held_the_loop_is_suspect_when_an_async_worker_died(hand: Hand) -> None:
    hand.is_async = True
    _put(hand, 3)
    hand.board.mark(1, BEGUN)
    hand.board.mark(2, BEGUN)
    hand.board.begin(2, 0.0, 0.0)
    _, returned, suspects = hand.take_all(blameless=False)
    assert (_ids(returned), _ids(suspects)) == (["t0", "t2"], ["t1"])
