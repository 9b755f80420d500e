"""What becomes of a task after an attempt: pure rules.

| the attempt | the task |
| --- | --- |
| `ok` | is done |
| `retry` | runs again: when the handler said, else after the back-off |
| `failed`, `lost`, `timeout` | runs again after the back-off |
| `ignore` (no handler for it) | is looked at again after `frequency`, and is not counted as an attempt |

With `max_attempts` the last of them is followed by giving up. uWSGI knows only "again at the next scan, for ever",
which is what the defaults here are, but for one difference: a scan that comes early, because a task arrived, does not
run the failing ones again (`core/spooler.c` runs all that it finds).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

__all__ = ["Backoff", "Decision", "Done", "GiveUp", "RetryPolicy", "RunAgain", "decide"]

Backoff = Literal["frequency", "exponential"] | float | Sequence[float]
"""How long to wait after a failed attempt: the spool's frequency; 1 s doubling; so many seconds; so many after the
first, second, … attempt, the last number for all further ones."""

LONGEST_BACKOFF: Final = 3600.0
"""Exponential back-off stops growing here, seconds: a service that was down for a day is retried within the hour."""

JITTER: Final = 0.25
"""Exponential back-off is shortened at random by up to this share, so that what failed together is spread out."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """When to try again, and when to stop.

    Attributes:
        max_attempts: Attempts after which the task is given up; 0: never, as uWSGI.
        backoff: See `Backoff`.
    """

    max_attempts: int = 0
    backoff: Backoff = "frequency"

    def delay(self, attempts: int, frequency: float, jitter: float) -> float:
        """Seconds to wait after so many attempts.

        Args:
            attempts: How many there were, 1 or more.
            frequency: The spool's frequency, seconds.
            jitter: A random number from 0 to 1.
        """
        if self.backoff == "frequency":
            return frequency
        if self.backoff == "exponential":
            # 2**12 s is over the limit; a larger exponent would only make a large number.
            return min(float(2 ** min(attempts - 1, 12)), LONGEST_BACKOFF) * (1 - JITTER * jitter)
        if isinstance(self.backoff, int | float):
            return float(self.backoff)
        return float(self.backoff[min(attempts, len(self.backoff)) - 1])


@dataclass(frozen=True, slots=True)
class Done:
    """The task has run well."""


@dataclass(frozen=True, slots=True)
class RunAgain:
    """The task waits for another attempt.

    Attributes:
        due_at: Unix seconds.
        attempts: How many it has had.
        by_frequency: Whether a change of the frequency moves `due_at`.
    """

    due_at: float
    attempts: int
    by_frequency: bool


@dataclass(frozen=True, slots=True)
class GiveUp:
    """The task is for a person now.

    Attributes:
        reason: Why.
    """

    reason: str


Decision = Done | RunAgain | GiveUp


def decide(
    outcome: str,
    attempt: int,
    now: float,
    *,
    policy: RetryPolicy,
    frequency: float,
    jitter: float,
    retry_at: float | None = None,
) -> Decision:
    """What becomes of the task.

    Args:
        outcome: `ok`, `retry`, `ignore`, `failed`, `lost` or `timeout`.
        attempt: The number of this attempt, from 1.
        now: Unix seconds.
        policy: The handler's, else the spool's.
        frequency: The spool's, seconds.
        jitter: A random number from 0 to 1.
        retry_at: When the handler wants to be run again, Unix seconds.
    """
    if outcome == "ok":
        return Done()
    if outcome == "ignore":
        return RunAgain(now + frequency, attempt - 1, by_frequency=True)
    if policy.max_attempts and attempt >= policy.max_attempts:
        return GiveUp(
            f"gave up after {attempt} attempt{'s' if attempt > 1 else ''}, the last one ended with: {outcome}"
        )
    if outcome == "retry" and retry_at is not None:
        return RunAgain(retry_at, attempt, by_frequency=False)
    return RunAgain(now + policy.delay(attempt, frequency, jitter), attempt, by_frequency=policy.backoff == "frequency")
