"""Schedule: pure, so every case is exact."""

from __future__ import annotations

import random
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from trispool.schedule import Schedule


@dataclass(frozen=True)
class Entry:
    ref: str
    priority: int | None = None
    order: tuple[int, int] = (0, 0)


def refs(schedule: Schedule[Entry], limit: int, now: float) -> list[str]:
    return [waiting.entry.ref for waiting in schedule.take(limit, now)]


def test_take_gives_nothing_before_its_time() -> None:
    schedule = Schedule[Entry]()
    schedule.put(Entry("a"), due_at=10.5, now=0)
    assert refs(schedule, 9, now=10.499) == []
    assert refs(schedule, 9, now=10.5) == ["a"]
    assert refs(schedule, 9, now=99) == []


def test_take_orders_by_priority_then_time_of_enqueuing() -> None:
    schedule = Schedule[Entry]()
    entries = [
        Entry("p2", 2, (1, 0)),
        Entry("none-first", None, (1, 0)),
        Entry("none-second", None, (1, 1)),
        Entry("p0-late", 0, (9, 0)),
        Entry("p0-early", 0, (3, 0)),
        Entry("p10", 10, (0, 0)),
    ]
    for entry in random.Random(1).sample(entries, len(entries)):
        schedule.put(entry, due_at=0, now=1)
    assert refs(schedule, 99, now=1) == ["p0-early", "p0-late", "p2", "p10", "none-first", "none-second"]


def test_take_counts_what_it_leaves() -> None:
    schedule = Schedule[Entry]()
    for number in range(5):
        schedule.put(Entry(f"now{number}", order=(number, 0)), due_at=0, now=1)
    schedule.put(Entry("later"), due_at=50, now=1)
    assert (schedule.ready, schedule.scheduled, len(schedule)) == (5, 1, 6)
    assert refs(schedule, 2, now=1) == ["now0", "now1"]
    assert (schedule.ready, schedule.scheduled, len(schedule)) == (3, 1, 4)
    assert schedule.next_due() == 50
    assert schedule.look(50) == 4
    assert schedule.next_due() is None


def test_put_moves_a_task_that_waits() -> None:
    schedule = Schedule[Entry]()
    schedule.put(Entry("a"), due_at=0, now=1)
    schedule.put(Entry("a"), due_at=20, now=1)
    assert refs(schedule, 9, now=1) == []
    assert schedule.next_due() == 20
    schedule.put(Entry("a"), due_at=10, now=1)
    assert schedule.next_due() == 10
    assert refs(schedule, 9, now=10) == ["a"]
    assert refs(schedule, 9, now=30) == []


def test_discard_forgets_ready_and_later_tasks() -> None:
    schedule = Schedule[Entry]()
    schedule.put(Entry("a"), due_at=0, now=1)
    schedule.put(Entry("b"), due_at=9, now=1)
    assert schedule.discard("a") is not None
    assert schedule.discard("b") is not None
    assert schedule.discard("b") is None
    assert (len(schedule), schedule.ready, schedule.next_due(), schedule.oldest_ready_at()) == (0, 0, None, None)
    assert refs(schedule, 9, now=99) == []


def test_oldest_ready_at_is_the_due_time_of_the_longest_waiting() -> None:
    schedule = Schedule[Entry]()
    schedule.put(Entry("b"), due_at=7, now=1)
    schedule.put(Entry("a"), due_at=5, now=1)
    assert schedule.oldest_ready_at() is None
    schedule.look(8)
    assert schedule.oldest_ready_at() == 5
    schedule.discard("a")
    assert schedule.oldest_ready_at() == 7


def test_stale_slots_do_not_pile_up_when_a_task_is_moved_over_and_over() -> None:
    schedule = Schedule[Entry]()
    for number in range(20_000):
        schedule.put(Entry("a"), due_at=10 + number, now=1)
        schedule.put(Entry("b"), due_at=0, now=1)
    assert len(schedule._later) + len(schedule._ready) + len(schedule._by_age) < 5_000
    assert sorted(refs(schedule, 9, now=30_000)) == ["a", "b"]


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["put", "discard", "take", "look"]),
            st.integers(0, 5),
            st.integers(0, 20),
            st.one_of(st.none(), st.integers(0, 3)),
        )
    )
)
def test_schedule_agrees_with_a_sorted_list(steps: list[tuple[str, int, int, int | None]]) -> None:
    schedule = Schedule[Entry]()
    model: dict[str, tuple[Entry, float]] = {}
    now = 0.0
    for step, (verb, key, number, priority) in enumerate(steps):
        now += number / 7
        if verb == "put":
            entry = Entry(str(key), priority, (number, step))
            schedule.put(entry, due_at=float(number), now=now)
            model[entry.ref] = (entry, float(number))
        elif verb == "discard":
            schedule.discard(str(key))
            model.pop(str(key), None)
        elif verb == "take":
            due = [entry for entry, due_at in model.values() if due_at <= now]
            due.sort(key=lambda entry: (99 if entry.priority is None else entry.priority, entry.order))
            expected = [entry.ref for entry in due[:key]]
            assert refs(schedule, key, now) == expected
            for ref in expected:
                del model[ref]
        else:
            assert schedule.look(now) == sum(due_at <= now for _, due_at in model.values())
        assert len(schedule) == len(model)
    schedule.look(now)
    later = [due_at for _, due_at in model.values() if due_at > now]
    assert schedule.next_due() == (min(later) if later else None)
