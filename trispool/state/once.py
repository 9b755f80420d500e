"""Idempotency keys: the same key gives the same tasks, never further ones, also across restarts and kill -9.

    reserve ──────────────► enqueue ─────────────► confirm
    the ids of the tasks,   the tasks, under       which of them were kept;
    on disk                 these ids              on disk soon after

Whoever dies on the way leaves a key that is reserved and not confirmed. The next call with that key then looks which of
the tasks there are (waiting, running, held, dead or in the history), and enqueues the others under the ids they had.
So there is never a second task. What a task does may still happen twice, as always after a crash that came before its
end was recorded.

Of a batch only its first id is kept, as the others follow from it: a key takes some 200 bytes.
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final, TypeAlias

import trio

from trispool.errors import SpoolUnavailable, TaskRefused, TrispoolError
from trispool.spoolfile import following_name
from trispool.spoolwriter import new_name
from trispool.staterows import Reservation, confirm, reserve
from trispool.task import Accepted, NewTask

if TYPE_CHECKING:
    from trispool.operating import OnceKey
    from trispool.state.keylocks import KeyLocks
    from trispool.state.writer import StateWriter

__all__ = ["Once"]

Enqueue: TypeAlias = Callable[[Sequence[NewTask]], Awaitable[Sequence[Accepted | TrispoolError]]]
"""Keeps tasks, each of which has its `id` and the name of its `spool`; one result for each, in order. A `TaskRefused`
with status 409 says that there is a task of that id."""

Exists: TypeAlias = Callable[[str, Sequence[str]], Awaitable[Collection[str]]]
"""Of ids, in the spool of that name, those of which there is or was a task."""

MAX_KEY: Final = 255
"""Characters."""

SLICE: Final = 500
"""Tasks of a batch between two looks at the rest of the service: a millisecond."""


class Once:
    """See the module. Part of `trispool.state.State`.

    Args:
        writer: Writes.
        locks: Let one at a time work on a key.
        clock: Unix seconds.
        keep_seconds: How long a key is remembered.
    """

    def __init__(self, writer: StateWriter, locks: KeyLocks, clock: Callable[[], float], keep_seconds: float) -> None:
        self._writer = writer
        self._locks = locks
        self._clock = clock
        self._keep_seconds = keep_seconds

    async def enqueue(
        self,
        key: OnceKey,
        tasks: Sequence[NewTask],
        *,
        spool_of: Callable[[NewTask], str],
        enqueue: Enqueue,
        exists: Exists,
    ) -> tuple[Sequence[Accepted | TrispoolError], bool]:
        """Keep tasks unless that was done before under this key; see `Control.enqueue_once`.

        Args:
            key: The key.
            tasks: The tasks; the same ones for the same fingerprint.
            spool_of: The name of the spool that a task is for; raises `TaskRefused` if there is none.
            enqueue: Keeps tasks.
            exists: Looks for tasks.

        Returns:
            For each task, in order, what it has become; and whether all are of earlier calls.

        Raises:
            TaskRefused: The key is of no use (status 400), or was used for another request (status 422).
            SpoolUnavailable: Keys cannot be remembered now; nothing was enqueued.
        """
        if not (0 < len(key.key) <= MAX_KEY and all("!" <= character <= "~" for character in key.key)):
            raise TaskRefused(f"Idempotency-Key: expected 1 to {MAX_KEY} visible ASCII characters")
        routes: list[str | TaskRefused] = []
        for number, task in enumerate(tasks):
            routes.append(_route(task, spool_of))
            if number % SLICE == SLICE - 1:
                await trio.lowlevel.checkpoint()
        async with self._locks.locked(key.owner, key.key):
            known, is_new = await self._reserve(key, [route if isinstance(route, str) else None for route in routes])
            if known.fingerprint != key.fingerprint or known.count != len(tasks):
                raise TaskRefused("this Idempotency-Key was used for another request", status=422)
            work = _Work(known, tasks, routes)
            if not is_new:
                await work.look(exists)
            await work.keep(enqueue)
            if work.outcome != known:
                self._writer.tell(functools.partial(confirm, owner=key.owner, key=key.key, known=work.outcome))
            return work.results, not is_new and not work.has_enqueued

    async def _reserve(self, key: OnceKey, spools: Sequence[str | None]) -> tuple[Reservation, bool]:
        """What is known of a key, and whether it is new. The ids of its tasks are on disk now."""
        now = self._clock()
        first, _ = new_name()
        all_the_same = spools[0] if len(set(spools)) == 1 else None
        new = Reservation(key.fingerprint, now, first, len(spools), all_the_same or spools)
        change = functools.partial(reserve, owner=key.owner, key=key.key, new=new, oldest=now - self._keep_seconds)
        try:
            known: tuple[Reservation, bool] = await self._writer.write(change)
        except OSError as error:
            raise SpoolUnavailable(f"idempotency keys cannot be remembered now: {error}") from error
        return known


class _Work:
    """One call: from what is known of a key to a result for each of its tasks.

    Args:
        known: What is known.
        tasks: The tasks.
        routes: For each its spool now, or why there is none.

    Attributes:
        outcome: What is known then.
        results: For each task what it has become.
        has_enqueued: Whether tasks were enqueued.
    """

    def __init__(self, known: Reservation, tasks: Sequence[NewTask], routes: Sequence[str | TaskRefused]) -> None:
        self.outcome = known
        self.results: list[Accepted | TrispoolError] = []
        self.has_enqueued = False
        self._known = known
        self._tasks = tasks
        self._routes = routes
        before = [known.spools] * known.count if isinstance(known.spools, str) else known.spools
        # Once meant for a spool, always: that is where to look for it.
        self._spools = [
            spool or (route if isinstance(route, str) else None) for spool, route in zip(before, routes, strict=True)
        ]
        # Those of which it is not known that they were kept.
        self._open = dict.fromkeys(range(known.count) if known.missing is None else known.missing)

    def _id(self, number: int) -> str:
        return following_name(self._known.first, number)

    async def look(self, exists: Exists) -> None:
        """Find those tasks that there are."""
        by_spool: dict[str, dict[str, int]] = {}
        for number in self._open:
            spool = self._spools[number]
            if spool is not None:
                by_spool.setdefault(spool, {})[self._id(number)] = number
        for spool, numbers in by_spool.items():
            for task_id in await exists(spool, list(numbers)):
                del self._open[numbers[task_id]]

    async def keep(self, enqueue: Enqueue) -> None:
        """Enqueue those that are not known to be kept."""
        numbers = [number for number in self._open if self._spools[number] is not None]
        wanted: list[NewTask] = []
        for number in numbers:
            task = self._tasks[number]
            wanted.append(
                NewTask(task.payload, task.body, task.at, task.priority, self._spools[number], self._id(number))
            )
            if len(wanted) % SLICE == 0:
                await trio.lowlevel.checkpoint()
        self.has_enqueued = bool(wanted)
        new: dict[int, Accepted | TrispoolError] = {}
        if wanted:
            new = dict(zip(numbers, await enqueue(wanted), strict=True))
        missing: list[int] = []
        for number, task in enumerate(self._tasks):
            result, spool, route = new.get(number), self._spools[number], self._routes[number]
            if spool is None and isinstance(route, TaskRefused):
                result = route
            elif spool is not None and (result is None or (isinstance(result, TaskRefused) and result.status == 409)):
                result = Accepted(self._id(number), spool, task.at)  # it was there before
            assert result is not None
            if not isinstance(result, Accepted):
                missing.append(number)
            self.results.append(result)
            if number % SLICE == SLICE - 1:
                await trio.lowlevel.checkpoint()
        spools = self._known.spools if isinstance(self._known.spools, str) else self._spools
        self.outcome = replace(self._known, spools=spools, missing=missing)


def _route(task: NewTask, spool_of: Callable[[NewTask], str]) -> str | TaskRefused:
    try:
        return spool_of(task)
    except TaskRefused as error:
        return error
