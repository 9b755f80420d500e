"""What an operator may do to a task in which state.

| action | in which states | the task is then |
| --- | --- | --- |
| `cancel` | scheduled, ready, running, held, dead | cancelled |
| `hold` | scheduled, ready | held |
| `release` | held | scheduled or ready, due when it was |
| `run` | scheduled, ready, held | ready, due now |
| `retry` | dead; scheduled if it waits for another attempt | ready |
| `reschedule` | scheduled, ready, held | due then |
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from trispool.operating import Action
from trispool.task import TaskState

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["PERMITTED", "permits"]

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


def permits(action: Action, state: TaskState, attempts: int) -> bool:
    """Whether an action changes something of a task in this state that has had so many attempts."""
    if action is Action.RETRY and state is TaskState.SCHEDULED:
        return attempts > 0  # it waits for another
    return state in PERMITTED[action]
