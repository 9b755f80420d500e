"""What an operator does to a task, and in which states.

| action | in which states | the task is then |
| --- | --- | --- |
| `cancel` | scheduled, ready, running, held, dead | cancelled |
| `hold` | scheduled, ready | held |
| `release` | held | scheduled or ready, due when it was |
| `run` | scheduled, ready, held | ready, due now |
| `retry` | dead; scheduled if it waits for another attempt | ready; a dead one as if it had had no attempts |
| `reschedule` | scheduled, ready, held | due then |

Rules that `Actions` keeps:

1. What is done to a task is done by its store under the task's lock, so never to one that has just been started or that
   another process has taken; then the task is looked for anew, and is what it is by then.
2. What the store has done is in the backlog and in the history before anything else happens.
3. Of what a task is already nothing is done again, and nothing recorded.
"""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

import trio

from trispool.backlog import Running
from trispool.errors import SpoolUnavailable, TaskRefused
from trispool.operating import Action
from trispool.store import Aside
from trispool.task import LATEST_AT, Entry, TaskState
from trispool.unfinished import summary_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from trispool.control import TaskSummary
    from trispool.dispatcher import Dispatcher
    from trispool.ledgersearch import History
    from trispool.schedule import Waiting
    from trispool.unfinished import Listable

__all__ = ["PERMITTED", "Actions", "Canceller", "Found", "permits", "possible"]

TRIES: Final = 3
"""How often a task is looked for anew that was no longer what it had been found to be."""

AGAIN_SECONDS: Final = 0.02
"""Before that. The lock on its file may be one that we had: a worker that is being started holds what was locked then
until it has its own program."""

CANCEL_SECONDS: Final = 10.0
"""How long to wait until a running task has ended: a handler is given five to clean up, then its worker is killed."""

STORE_SECONDS: Final = 30.0
"""For so long an action is seen to its end for a caller that has been cancelled, seconds."""

_WAITING: Final = frozenset({TaskState.SCHEDULED, TaskState.READY, TaskState.HELD})

PERMITTED: Final[Mapping[Action, frozenset[TaskState]]] = {
    Action.CANCEL: _WAITING | {TaskState.RUNNING, TaskState.DEAD},
    Action.HOLD: _WAITING - {TaskState.HELD},
    Action.RELEASE: frozenset({TaskState.HELD}),
    Action.RUN: _WAITING,
    Action.RETRY: frozenset({TaskState.DEAD, TaskState.SCHEDULED}),
    Action.RESCHEDULE: _WAITING,
}
"""The states in which an action changes something."""

_THERE: Final[Mapping[Action, frozenset[TaskState]]] = {
    Action.CANCEL: frozenset({TaskState.CANCELLED}),
    Action.HOLD: frozenset({TaskState.HELD}),
    Action.RELEASE: frozenset({TaskState.SCHEDULED, TaskState.READY}),
    Action.RUN: frozenset({TaskState.READY}),
    Action.RETRY: frozenset({TaskState.READY}),
    Action.RESCHEDULE: frozenset(),
}
"""The states which are what an action is to bring about."""

_FINISHED: Final = frozenset({TaskState.DONE, TaskState.CANCELLED})


def permits(action: Action, state: TaskState, attempts: int) -> bool:
    """Whether an action changes something of a task in this state that has had so many attempts."""
    if action is Action.RETRY and state is TaskState.SCHEDULED:
        return attempts > 0  # it waits for another
    return state in PERMITTED[action]


def possible(state: TaskState, attempts: int) -> list[Action]:
    """The actions that change something of a task in this state that has had so many attempts."""
    return [action for action in Action if permits(action, state, attempts)]


class Canceller(Protocol):
    """Who has the workers; see `trispool.pool.Pool`."""

    def cancel(self, task_id: str) -> bool:
        """See to it that a task which a worker has ends. False: no worker has it."""
        ...


class Found(NamedTuple):
    """A task of a spool.

    Attributes:
        summary: What is known of it without asking the history, if it is not in the history only.
        item: It, where it is; None: in the history only.
        history: What the history has of it, if that was asked.
    """

    summary: TaskSummary
    item: Waiting | Running | Aside | None
    history: History | None = None

    @property
    def entry(self) -> Entry | None:
        """It, for its store; None: in the history only."""
        return None if self.item is None else self.item.entry


class Actions:
    """What operators do to the tasks of one spool.

    Args:
        spool: The spool.
        dispatcher: Who runs its tasks.
        canceller: Who has its workers.
        clock: Unix seconds.
    """

    def __init__(
        self, spool: Listable, dispatcher: Dispatcher, canceller: Canceller, clock: Callable[[], float] = time.time
    ) -> None:
        self._spool = spool
        self._dispatcher = dispatcher
        self._canceller = canceller
        self._clock = clock
        # One at a time, so that no two of them move the same file.
        self._acting = trio.Lock()

    async def find(self, task_id: str) -> Found | None:
        """A task, wherever it is.

        Raises:
            SpoolUnavailable: What lies aside, or the history, cannot be read now.
        """
        item = self._spool.backlog.find(task_id)
        if item is not None:
            return self._found(item)
        aside = await self._spool.store.lying(task_id)
        if aside is not None:
            return self._found(aside)
        # It may have been put back meanwhile.
        item = self._spool.backlog.find(task_id)
        if item is not None:
            return self._found(item)
        known = await self._spool.ledger.history(task_id)
        return None if known is None else Found(replace(known.last, spool=self._spool.name), None, known)

    async def act(self, task_id: str, action: Action, by: str, at: float | None = None) -> TaskSummary | None:
        """Do something to a task; see `trispool.control.Control.act`.

        Args:
            task_id: Which.
            action: What.
            by: Who wants it.
            at: For `reschedule`, Unix seconds.

        Returns:
            The task as it is now, or None if this spool does not know it.
        """
        if action is Action.RESCHEDULE and not (at is not None and math.isfinite(at) and 0 <= at <= LATEST_AT):
            raise TaskRefused(f"at={at}: Unix seconds from 0 to {LATEST_AT:.0f} are expected")
        for _ in range(TRIES):
            async with self._acting:
                found = await self.find(task_id)
                if found is None:
                    return None
                if not self._is_wanted(found, action, at):
                    return found.summary
                cancelling = None
                if isinstance(found.item, Running):
                    cancelling = self._dispatcher.cancel(found.item, by)
                    self._canceller.cancel(task_id)
                elif (done := await self._do(found, action, by, at)) is not None:
                    return done
            if cancelling is None:
                await trio.sleep(AGAIN_SECONDS)
                continue
            with trio.move_on_after(CANCEL_SECONDS) as waiting:
                await cancelling.settled.wait()
            if waiting.cancelled_caught:
                return found.summary  # it still runs, and will be cancelled all the same
            if cancelling.problem is not None:
                raise cancelling.problem
        raise TaskRefused(f"{task_id} is in use: somebody else is at work on it", status=409)

    def _is_wanted(self, found: Found, action: Action, at: float | None) -> bool:
        """Whether an action is to be carried out; False: it has been.

        Raises:
            TaskRefused: It cannot be.
        """
        state, attempts = found.summary.state, found.summary.attempts
        if found.entry is None and state not in _FINISHED:
            raise TaskRefused("its file is no longer in the spool", status=409)
        if state in _THERE[action] and (action is not Action.RUN or found.summary.at <= self._clock()):
            return False
        if not permits(action, state, attempts):
            names = ", ".join(possible(state, attempts)) or "nothing"
            raise TaskRefused(f"it is {state}, so {action} is not possible; possible is: {names}", status=409)
        waits_until_then = action is Action.RESCHEDULE and state is not TaskState.HELD and found.summary.at == at
        return not waits_until_then or found.entry is None or found.entry.at != at

    async def _do(self, found: Found, action: Action, by: str, at: float | None) -> TaskSummary | None:
        """Act on a task that is not running. None: it is no longer what it was."""
        # What the store has done must be in the backlog too, also if the caller has gone meanwhile.
        with trio.move_on_after(STORE_SECONDS, shield=True):
            return await self._in_store(found, action, by, at)
        raise SpoolUnavailable("the disk does not answer")

    async def _in_store(self, found: Found, action: Action, by: str, at: float | None) -> TaskSummary | None:
        entry, store, dispatcher = found.entry, self._spool.store, self._dispatcher
        assert entry is not None
        now = self._clock()
        if action is Action.CANCEL:
            removed = await store.remove(entry)
            if removed is None:
                return None
            dispatcher.has_cancelled(entry, by, removed)
            return replace(
                found.summary,
                state=TaskState.CANCELLED,
                priority=removed.priority,
                last_error=f"by {by}",
                finished_at=now,
                run_seconds=0.0,
            )
        if action is Action.HOLD:
            held = await store.hold(entry)
            if held is None:
                return None
            dispatcher.has_held(entry, by)
            return summary_of(self._spool, Aside(TaskState.HELD, held))
        if action in (Action.RUN, Action.RETRY):
            at = now if entry.at > now else None
        elif action is Action.RELEASE:
            at = None
        moved: Entry | None = entry
        if found.summary.state in (TaskState.HELD, TaskState.DEAD):
            moved = await store.restore(entry, at)
        elif at is not None:
            moved = await store.reschedule(entry, at)
        if moved is None:
            return None
        if found.summary.state in (TaskState.HELD, TaskState.DEAD):
            dispatcher.has_restored(moved, _OUTCOMES[action], by)
        else:
            dispatcher.has_moved(moved, now if at is None else moved.at, _OUTCOMES[action], by)
        item = self._spool.backlog.find(moved.id)
        return None if item is None else summary_of(self._spool, item)

    def _found(self, item: Waiting | Running | Aside) -> Found:
        return Found(summary_of(self._spool, item), item)


_OUTCOMES: Final[Mapping[Action, str]] = {
    Action.RELEASE: "released",
    Action.RUN: "hurried",
    Action.RETRY: "retried",
    Action.RESCHEDULE: "rescheduled",
}
