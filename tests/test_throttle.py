"""Throttle: how often an address may be wrong. On a clock of its own."""

from __future__ import annotations

import pytest

from trispool.admin import throttle
from trispool.admin.throttle import BURST, REFILL_SECONDS, Throttle


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def throttled(clock: Clock) -> Throttle:
    return Throttle(clock)


def be_wrong(throttled: Throttle, address: str, times: int) -> None:
    for _ in range(times):
        throttled.was_wrong(address)


def test_an_address_may_be_wrong_some_times_and_then_has_to_wait(throttled: Throttle, clock: Clock) -> None:
    be_wrong(throttled, "10.0.0.1", BURST - 1)
    assert throttled.wait_seconds("10.0.0.1") == 0
    be_wrong(throttled, "10.0.0.1", 1)
    assert throttled.wait_seconds("10.0.0.1") == REFILL_SECONDS
    clock.now += REFILL_SECONDS - 1
    assert throttled.wait_seconds("10.0.0.1") == 1
    clock.now += 1
    assert throttled.wait_seconds("10.0.0.1") == 0
    be_wrong(throttled, "10.0.0.1", 1)
    assert throttled.wait_seconds("10.0.0.1") == REFILL_SECONDS


def test_all_is_forgiven_in_time(throttled: Throttle, clock: Clock) -> None:
    be_wrong(throttled, "10.0.0.1", BURST)
    clock.now += BURST * REFILL_SECONDS
    be_wrong(throttled, "10.0.0.1", BURST - 1)
    assert throttled.wait_seconds("10.0.0.1") == 0


def test_others_do_not_wait(throttled: Throttle) -> None:
    be_wrong(throttled, "10.0.0.1", BURST)
    assert throttled.wait_seconds("10.0.0.2") == 0
    assert throttled.wait_seconds("unix") == 0


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("2001:db8::1", "2001:db8::ffff:2", True),
        ("2001:db8:0:0:1::", "2001:db8:0:1::", False),
        ("::ffff:10.0.0.1", "10.0.0.1", True),
        ("::ffff:10.0.0.1", "::ffff:10.0.0.2", False),
        ("unix", "unix", True),
    ],
)
def test_who_has_a_network_of_ipv6_is_one_person(throttled: Throttle, first: str, second: str, same: bool) -> None:
    be_wrong(throttled, first, BURST)
    throttled.was_right(first, b"digest")
    assert (throttled.wait_seconds(second) > 0) is same
    assert throttled.knows(second, b"digest") is same


def test_who_was_let_in_is_known_by_address_and_token(throttled: Throttle) -> None:
    throttled.was_right("10.0.0.1", b"digest")
    assert throttled.knows("10.0.0.1", b"digest")
    assert not throttled.knows("10.0.0.1", b"other")
    assert not throttled.knows("10.0.0.2", b"digest")


def test_what_is_remembered_is_bounded(throttled: Throttle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throttle, "MAX_ADDRESSES", 3)
    monkeypatch.setattr(throttle, "MAX_KNOWN", 3)
    for number in range(4):
        be_wrong(throttled, f"10.0.0.{number}", BURST)
        throttled.was_right(f"10.0.0.{number}", b"digest")
        throttled.was_right("10.0.0.0", b"digest")  # used all the time
    assert [throttled.wait_seconds(f"10.0.0.{number}") > 0 for number in range(4)] == [False, True, True, True]
    assert [throttled.knows(f"10.0.0.{number}", b"digest") for number in range(4)] == [True, False, True, True]
