"""Ready queue: what is taken, in any order of coming and taking, is always the least."""

from __future__ import annotations

import heapq
import random

from hypothesis import given
from hypothesis import strategies as st

from trispool import readyqueue
from trispool.readyqueue import ReadyQueue

NUMBERS = st.integers(0, 50) | st.integers(0, 2**191)


@given(st.lists(st.tuples(st.lists(NUMBERS, max_size=40), st.integers(1, 30)), max_size=20), st.integers(1, 9))
def test_it_gives_what_a_heap_gives(turns: list[tuple[list[int], int]], size: int) -> None:
    queue, heap = ReadyQueue(), list[int]()
    was = readyqueue.MAX_UNSORTED, readyqueue.MAX_RUN
    readyqueue.MAX_UNSORTED, readyqueue.MAX_RUN = size, 3 * size  # type: ignore[misc]
    try:
        for numbers, limit in [*turns, ([], 1000)]:
            for number in numbers:
                queue.push(number)
                heapq.heappush(heap, number)
            assert (len(queue), sorted(queue)) == (len(heap), sorted(heap))
            assert queue.pop(limit) == [heapq.heappop(heap) for _ in range(min(limit, len(heap)))]
    finally:
        readyqueue.MAX_UNSORTED, readyqueue.MAX_RUN = was  # type: ignore[misc]
    assert queue.pop(1) == []


def test_equal_numbers_are_given_as_the_objects_that_came() -> None:
    queue = ReadyQueue()
    equal = [int(str(2**100)) for _ in range(3 * readyqueue.MAX_UNSORTED)]
    for number in equal:
        queue.push(number)
    assert sorted(map(id, queue.pop(len(equal)))) == sorted(map(id, equal))


def test_those_that_are_not_wanted_are_dropped_and_the_others_keep_their_order() -> None:
    dice = random.Random(1)
    numbers = [dice.randrange(2**191) for _ in range(20_000)]
    queue = ReadyQueue()
    for number in numbers:
        queue.push(number)
    first = queue.pop(100)
    queue.keep(lambda number: number % 2 == 1)
    odd = sorted(number for number in numbers if number % 2 == 1 and number not in first)
    assert len(queue) == len(odd)
    assert queue.pop(len(odd)) == odd
