"""Schedule: pure, so every case is exact."""

from __future__ import annotations

import gc
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trispool.schedule import Schedule, Waiting
from trispool.task import Entry


def task(ref: str, priority: int | None = None, order: tuple[int, int] = (0, 0)) -> Entry:
    return Entry(ref, ref, 0.0, priority, order)


def refs(schedule: Schedule, limit: int, now: float) -> list[str]:
    return [waiting.entry.ref for waiting in schedule.take(limit, now)]


def test_take_gives_nothing_before_its_time() -> None:
    schedule = Schedule()
    schedule.put(task("a"), due_at=10.5, now=0)
    assert refs(schedule, 9, now=10.499) == []
    assert refs(schedule, 9, now=10.5) == ["a"]
    assert refs(schedule, 9, now=99) == []


def test_take_orders_by_priority_then_time_of_enqueuing() -> None:
    schedule = Schedule()
    entries = [
        task("p2", 2, (1, 0)),
        task("none-first", None, (1, 0)),
        task("none-second", None, (1, 1)),
        task("p0-late", 0, (9, 0)),
        task("p0-early", 0, (3, 0)),
        task("p10", 10, (0, 0)),
        task("p-huge", 2**63 - 1, (0, 0)),
    ]
    for entry in random.Random(1).sample(entries, len(entries)):
        schedule.put(entry, due_at=0, now=1)
    assert refs(schedule, 99, now=1) == ["p0-early", "p0-late", "p2", "p10", "p-huge", "none-first", "none-second"]


ODD = [
    Entry("id", "another", 0.0, None, (5, 0)),
    Entry("y", f"{'5' * 70_000}/y", 0.0, 5, (6, 0)),
    task("counted high", None, (7, 2**80)),
]


@pytest.mark.parametrize("odd", [[], ODD], ids=["plain", "odd"])
@pytest.mark.parametrize("freed", [False, True])
def test_many_new_tasks_wait_as_if_each_had_been_put(odd: list[Entry], freed: bool) -> None:
    entries = [task(f"{number}", number % 3 or None, (99 - number, number)) for number in range(9)]
    entries += [Entry("x", "7/x", 1.5, 7, (3, 4), True), *odd]
    due_ats = [float(number % 4) for number in range(len(entries))]
    seen = []
    for together in (False, True):
        schedule = Schedule()
        if freed:
            schedule.put(task("earlier"), due_at=0, now=1)
            schedule.discard("earlier")
        with schedule.noting() as noted:
            if together:
                _, left = schedule.put_new(entries, due_ats, 1, 7)
                assert left == (entries if freed else odd)
            for entry, due_at in zip(entries, due_ats, strict=True):
                if not together or entry in left:
                    schedule.put(entry, due_at, 1, 7)
        marks = [schedule.mark_of(entry.ref) for entry in entries]
        waiting = [schedule.get(entry.ref) for entry in entries]
        counts = schedule.ready, schedule.scheduled, schedule.oldest_ready_at(), schedule.next_due()
        seen.append((noted, marks, waiting, counts, schedule.take(99, 3)))
    assert seen[0] == seen[1]


def test_of_many_new_tasks_those_that_wait_are_left_as_they_are() -> None:
    schedule = Schedule()
    schedule.put(task("a"), due_at=5, now=1)
    put, left = schedule.put_new([task("b"), task("a"), task("b"), task("c")], [1, 1, 1, 9], 1)
    assert [entry.ref for entry in put] == ["b", "c"]
    assert [entry.ref for entry in left] == ["a", "b"]
    assert (schedule.ready, schedule.scheduled) == (1, 2)
    assert refs(schedule, 9, now=5) == ["a", "b"]


def test_take_counts_what_it_leaves() -> None:
    schedule = Schedule()
    for number in range(5):
        schedule.put(task(f"now{number}", order=(number, 0)), due_at=0, now=1)
    schedule.put(task("later"), due_at=50, now=1)
    assert (schedule.ready, schedule.scheduled, len(schedule)) == (5, 1, 6)
    assert refs(schedule, 2, now=1) == ["now0", "now1"]
    assert (schedule.ready, schedule.scheduled, len(schedule)) == (3, 1, 4)
    assert schedule.next_due() == 50
    assert schedule.look(50) == 4
    assert schedule.next_due() is None


def test_put_moves_a_task_that_waits() -> None:
    schedule = Schedule()
    schedule.put(task("a"), due_at=0, now=1)
    schedule.put(task("a"), due_at=20, now=1)
    assert refs(schedule, 9, now=1) == []
    assert schedule.next_due() == 20
    schedule.put(task("a"), due_at=10, now=1)
    assert schedule.next_due() == 10
    assert refs(schedule, 9, now=10) == ["a"]
    assert refs(schedule, 9, now=30) == []


def test_discard_forgets_ready_and_later_tasks() -> None:
    schedule = Schedule()
    schedule.put(task("a"), due_at=0, now=1)
    schedule.put(task("b"), due_at=9, now=1)
    assert schedule.discard("a") is not None
    assert schedule.discard("b") is not None
    assert schedule.discard("b") is None
    assert (len(schedule), schedule.ready, schedule.next_due(), schedule.oldest_ready_at()) == (0, 0, None, None)
    assert refs(schedule, 9, now=99) == []


def test_oldest_ready_at_is_the_due_time_of_the_longest_waiting() -> None:
    schedule = Schedule()
    schedule.put(task("b"), due_at=7, now=1)
    schedule.put(task("a"), due_at=5, now=1)
    assert schedule.oldest_ready_at() is None
    schedule.look(8)
    assert schedule.oldest_ready_at() == 5
    schedule.discard("a")
    assert schedule.oldest_ready_at() == 7


def test_stale_slots_do_not_pile_up_when_a_task_is_moved_over_and_over() -> None:
    schedule = Schedule()
    for number in range(20_000):
        schedule.put(task("a"), due_at=10 + number, now=1)
        schedule.put(task("b"), due_at=0, now=1)
    assert len(schedule._later) + len(schedule._ready) + len(schedule._by_age) < 5_000
    assert sorted(refs(schedule, 9, now=30_000)) == ["a", "b"]


def test_what_ran_leaves_nothing_behind() -> None:
    schedule = Schedule()
    schedule.put(task("old", priority=5), due_at=0, now=1)
    for number in range(20_000):
        schedule.put(task(f"{number}", priority=1), due_at=0, now=1)
        assert refs(schedule, 1, now=1) == [f"{number}"]
    assert len(schedule._later) + len(schedule._ready) + len(schedule._by_age) + schedule.slots < 5_000
    assert schedule.oldest_ready_at() == 0


ODD = [
    Entry("id", "elsewhere", 1.5, 3, (1, 2)),
    Entry("longer", "er", 1.5, None, (1, 2)),
    Entry("uwsgi_1", "5/uwsgi_1", 1.25, 5, (1, 2), fresh=True),
    Entry("é", "5/é", -0.5, 2**63 - 1, (-(2**60), 2**64 - 1)),
    Entry("a", "a", 1.5, None, (2**63, 1)),
    Entry("a", "a", 1.5, None, (1, 10**20 - 1)),
    Entry("a", "a", 1.5, 2**63, (1, 1)),
    Entry("a", "x" * 70_000 + "a", 1.5, 0, (0, 0)),
]


@pytest.mark.parametrize("entry", ODD)
@pytest.mark.parametrize("due_at", [0.0, 1e9 + 1 / 3])
def test_an_entry_comes_back_as_it_was(entry: Entry, due_at: float) -> None:
    schedule = Schedule()
    for _ in range(2):
        schedule.put(entry, due_at, now=1)
        assert schedule.get(entry.ref) == Waiting(entry, due_at, due_at == 0.0)
    assert schedule.discard(entry.ref) == Waiting(entry, due_at, due_at == 0.0)
    schedule.put(entry, due_at, now=1)
    assert schedule.take(9, now=due_at + 1) == [Waiting(entry, due_at, is_ready=True)]
    assert not schedule._odd


def test_due_times_are_exact() -> None:
    schedule = Schedule()
    times = [1e9 + number * 2**-22 for number in range(50)]
    for due_at in random.Random(1).sample(times, len(times)):
        schedule.put(task(str(due_at)), due_at, now=1)
    for due_at in times:
        assert schedule.next_due() == due_at
        assert refs(schedule, 9, now=due_at) == [str(due_at)]


def test_look_finds_as_many_as_it_may() -> None:
    schedule = Schedule()
    for number in range(5):
        schedule.put(task(str(number)), due_at=10, now=1)
    assert schedule.look(10, limit=2) == 2
    assert schedule.next_due() == 10
    assert schedule.look(10, limit=3) == 5
    assert schedule.next_due() is None


def test_marks_only_grow_and_tell_what_was_not_confirmed() -> None:
    schedule = Schedule()
    for number in range(4):
        schedule.put(Entry(str(number), str(number), 7.0, None, (0, 0), fresh=number == 3), 7.0, 1.0, mark=number)
    assert schedule.marked_below(2, 0, schedule.slots) == ["0", "1"]
    assert schedule.confirm("0", 7.0, 2)
    assert not schedule.confirm("1", 8.0, 2)
    assert not schedule.confirm("3", 7.0, 2)
    assert not schedule.confirm("4", 7.0, 2)
    assert [schedule.mark_of(str(number)) for number in range(4)] == [2, 2, 2, 3]
    schedule.discard("1")
    assert schedule.marked_below(9, 1, 3) == ["2"]


def test_all_that_waits_is_in_the_slots() -> None:
    schedule = Schedule()
    schedule.put(Entry("a", "5/a", 1.0, 5, (70, 1)), 1.0, now=9.0)
    schedule.put(Entry("b", "b", 20.0, None, (60, 2), fresh=True), 21.5, now=9.0)
    schedule.put(Entry("c", "elsewhere", 1.0, None, (50, 3)), 1.0, now=9.0)
    schedule.put(task("gone"), 1.0, now=9.0)
    schedule.discard("gone")
    assert [(due, order, flags & 2) for due, order, flags in schedule.briefs(0, 3)] == [
        (1.0, 70, 2),
        (21.5, 60, 0),
        (1.0, 0, 2),
    ]
    found = [schedule.at(slot) for slot in range(schedule.slots)]
    assert found == [schedule.get("5/a"), schedule.get("b"), schedule.get("elsewhere"), None]
    assert schedule.odd() == [schedule.get("elsewhere")]
    assert list(schedule.briefs(2, 99)) == list(schedule.briefs(2, 4))
    for start, stop in ((0, 3), (1, 2), (0, 99), (99, 100)):
        briefs = list(schedule.briefs(start, stop))
        assert schedule.column(start, stop, due=True) == [due for due, _, _ in briefs]
        assert schedule.column(start, stop, due=False) == [order for _, order, _ in briefs]


def test_what_is_put_meanwhile_is_noted() -> None:
    schedule = Schedule()
    schedule.put(task("a"), 1.0, now=9.0)
    with schedule.noting() as outer:
        schedule.put(task("b"), 1.0, now=9.0)
        with schedule.noting() as inner:
            schedule.put(task("c"), 1.0, now=9.0)
            schedule.put(task("a"), 2.0, now=9.0)
        schedule.put(task("d"), 1.0, now=9.0)
    schedule.put(task("e"), 1.0, now=9.0)
    assert (outer, inner) == (["b", "c", "a", "d"], ["c", "a"])


@pytest.mark.parametrize("way", ["take", "discard"])
def test_slots_are_given_back_when_nothing_waits_any_more(way: str) -> None:
    schedule = Schedule()
    for number in range(3000):
        schedule.put(task(str(number)), due_at=1.0 + number % 2 * 100, now=50.0)
    if way == "take":
        assert len(schedule.take(3000, now=200.0)) == 3000
    else:
        for number in range(3000):
            schedule.discard(str(number))
    assert (schedule.slots, len(schedule), schedule.ready, schedule.scheduled) == (0, 0, 0, 0)
    assert (schedule.next_due(), schedule.oldest_ready_at()) == (None, None)
    schedule.put(task("a"), due_at=1.0, now=50.0)
    assert refs(schedule, 9, now=50.0) == ["a"]


def test_tasks_for_later_are_no_work_for_the_garbage_collector() -> None:
    schedule = Schedule()
    gc.collect()
    before = len(gc.get_objects())
    for number in range(5_000):
        schedule.put(task(str(number)), due_at=10, now=1)
    gc.collect()
    assert len(gc.get_objects()) - before < 100


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
    schedule = Schedule()
    model: dict[str, tuple[Entry, float]] = {}
    now = 0.0
    for step, (verb, key, number, priority) in enumerate(steps):
        now += number / 7
        if verb == "put":
            entry = task(str(key), priority, (number, step))
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
