"""Whether the service does its work, and whether tasks that come now are kept and run; if not, why. Pure.

Anybody may ask this, so of tracebacks only the last line is told: they show paths and code. `SpoolStatus.problem` has
them whole, for those with a token.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from trispool.control import Health

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from trispool.control import SpoolStatus

__all__ = ["Refusals", "healthiness", "readiness"]

LATELY_SECONDS: Final = 60.0
"""For so long a spool is told to have kept nothing, unless it has kept something since."""

_AT_WORK: Final = frozenset({"idle", "busy", "quitting"})
"""States of workers that have imported their handlers. One that quits has, mostly, a successor that is importing."""


class Refusals:
    """Remembers why a spool kept nothing lately."""

    def __init__(self) -> None:
        self._reason = ""
        self._until = 0.0
        self._where = 0

    def refused(self, reason: str, now: float, where: int = 0) -> bool:
        """Something was not kept.

        Args:
            reason: Why.
            now: Unix seconds.
            where: In which of the directories that the spool has had; it says nothing of the next one.

        Returns:
            Whether that is news.
        """
        is_new = self.reason(now, where) is None
        self._reason = reason
        self._until = now + LATELY_SECONDS
        self._where = where
        return is_new

    def kept(self) -> bool:
        """Something was kept. Returns whether that is news."""
        is_new = bool(self._reason)
        self._reason = ""
        return is_new

    def reason(self, now: float, where: int = 0) -> str | None:
        """Why the spool keeps nothing, as far as is known at that time (Unix seconds), or None."""
        if not self._reason or where != self._where:
            return None
        # The clock may have been set back.
        return self._reason if 0 < self._until - now <= LATELY_SECONDS else None


def healthiness(statuses: Iterable[SpoolStatus]) -> Health:
    """Whether every spool does its work."""
    problems = [
        f"{status.name}: {_brief(problem)}"
        for status in statuses
        for problem in dict.fromkeys((status.problem, status.refusing))
        if problem
    ]
    return Health(not problems, problems)


def readiness(statuses: Sequence[SpoolStatus], *, stopping: bool = False) -> Health:
    """Whether tasks that come now are kept and run. A spool that an operator has paused is ready, as it keeps them.

    Args:
        statuses: All spools.
        stopping: Whether the service has been told to stop.
    """
    problems = ["the service is stopping"] if stopping else []
    for status in statuses:
        problems += [f"{status.name}: {_brief(problem)}" for problem in _unready(status)]
    return Health(not problems, problems)


def _unready(status: SpoolStatus) -> Iterable[str]:
    if not status.scanned:
        yield "the first scan is not over"
    if status.refusing:
        yield status.refusing
    if status.processes and not any(worker.state in _AT_WORK for worker in status.workers):
        yield f"no worker is ready: {status.problem}" if status.problem else "no worker is ready"


def _brief(problem: str) -> str:
    """A problem without the middle of its traceback."""
    before, traceback, rest = problem.partition("Traceback (most recent call last):")
    lines = rest.strip().splitlines()
    return f"{before}{lines[-1]}" if traceback and lines else problem
