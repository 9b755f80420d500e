"""Retry rules: pure, one table."""

from __future__ import annotations

import pytest

from trispool.retry import Backoff, Decision, Done, GiveUp, RetryPolicy, RunAgain, decide


def after(
    outcome: str, attempt: int = 1, *, policy: RetryPolicy | None = None, retry_at: float | None = None
) -> Decision:
    return decide(
        outcome, attempt, 100.0, policy=policy or RetryPolicy(), frequency=30.0, jitter=0.0, retry_at=retry_at
    )


@pytest.mark.parametrize(
    ("outcome", "decision"),
    [
        ("ok", Done()),
        ("retry", RunAgain(130.0, 1, by_frequency=True)),
        ("failed", RunAgain(130.0, 1, by_frequency=True)),
        ("lost", RunAgain(130.0, 1, by_frequency=True)),
        ("timeout", RunAgain(130.0, 1, by_frequency=True)),
        ("ignore", RunAgain(130.0, 0, by_frequency=True)),
    ],
)
def test_defaults_are_those_of_uwsgi(outcome: str, decision: Decision) -> None:
    assert after(outcome) == decision


def test_a_handler_says_when_to_run_again() -> None:
    assert after("retry", retry_at=500.0) == RunAgain(500.0, 1, by_frequency=False)


def test_giving_up_comes_with_the_last_attempt() -> None:
    policy = RetryPolicy(max_attempts=3)
    assert isinstance(after("failed", 2, policy=policy), RunAgain)
    decision = after("failed", 3, policy=policy)
    assert isinstance(decision, GiveUp)
    assert "3 attempts" in decision.reason
    assert "failed" in decision.reason
    assert isinstance(after("retry", 3, policy=policy, retry_at=500.0), GiveUp)
    assert isinstance(after("ignore", 99, policy=policy), RunAgain)


@pytest.mark.parametrize(
    ("backoff", "delays"),
    [
        ("frequency", [30, 30, 30]),
        ("exponential", [1, 2, 4, 8]),
        (5.0, [5, 5]),
        ((10.0, 60.0, 600.0), [10, 60, 600, 600]),
    ],
)
def test_backoff_grows_as_configured(backoff: Backoff, delays: list[float]) -> None:
    policy = RetryPolicy(backoff=backoff)
    assert [policy.delay(number, 30.0, 0.0) for number in range(1, len(delays) + 1)] == delays


def test_exponential_backoff_is_bounded_and_spread() -> None:
    policy = RetryPolicy(backoff="exponential")
    assert policy.delay(10_000, 30.0, 0.0) == 3600
    assert policy.delay(3, 30.0, 1.0) == 3
