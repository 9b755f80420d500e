"""The room that listeners share: who pays when memory is short, who is woken, when memory is given back."""

from __future__ import annotations

import pytest

from trispool import memory, room
from trispool.room import Room


class FakeMember:
    """A listener with incomplete requests of the same size."""

    def __init__(self, room: Room, requests: int, size: int) -> None:
        self._room = room
        self._size = size
        self.requests = requests
        self.woken = 0
        room.enter(self)
        room.hold(self.held)

    @property
    def held(self) -> int:
        return self.requests * self._size

    def refuse_oldest(self) -> bool:
        if self.requests:
            self.requests -= 1
            self._room.hold(-self._size)
            return True
        return False

    def wake(self) -> None:
        self.woken += 1


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Room:
    monkeypatch.setattr(room, "HELD_BYTES", 1000)
    monkeypatch.setattr(room, "UNDER_WAY_BYTES", 100)
    return Room(largest_body=10)


def test_who_holds_most_pays_until_no_more_is_held_than_may_be(small: Room) -> None:
    members = [FakeMember(small, 3, 100), FakeMember(small, 10, 100), FakeMember(small, 0, 100)]
    small.free()
    assert [member.requests for member in members] == [3, 7, 0]
    assert small.held == 1000


def test_what_is_being_kept_counts(small: Room) -> None:
    member = FakeMember(small, 10, 100)
    small.free()
    small.take(150, 1)
    small.free()
    assert member.requests == 8
    small.take(10_000, 0)
    small.free()
    assert member.requests == 0


def test_four_of_the_largest_bodies_have_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "HELD_BYTES", 1000)
    roomy = Room(largest_body=500)
    member = FakeMember(roomy, 4, 500)
    roomy.free()
    assert member.requests == 4


def test_all_are_woken_when_it_is_busy_no_more(small: Room) -> None:
    members = [FakeMember(small, 0, 1), FakeMember(small, 0, 1)]
    for _ in range(3):
        small.take(60, 1)
    assert small.lets_large_wait
    small.give_back(60, 1)
    assert small.lets_large_wait
    assert [member.woken for member in members] == [0, 0]
    small.give_back(60, 1)
    small.give_back(60, 1)
    assert not small.lets_large_wait
    assert [member.woken for member in members] == [1, 1]


def test_large_ones_wait_only_for_large_ones(small: Room) -> None:
    small.take(1000, 0)
    assert small.is_busy
    assert not small.lets_large_wait
    small.take(1, 1)
    assert small.lets_large_wait
    member = FakeMember(small, 0, 1)
    small.give_back(1, 1)
    assert small.is_busy
    assert member.woken == 1
    assert not small.lets_large_wait


def test_memory_is_given_back_when_much_has_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    trimmed: list[int] = []
    monkeypatch.setattr(memory, "trim", lambda: trimmed.append(1))
    monkeypatch.setattr(room, "TRIM_BYTES", 100)
    watched = Room(largest_body=10)
    for more, times in ((100, 0), (1, 1), (-100, 1), (100, 1), (-101, 2), (1, 2)):
        watched.hold(more)
        assert len(trimmed) == times
