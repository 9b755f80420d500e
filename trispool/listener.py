"""A uwsgi socket: packets in, tasks kept, answers out.

No Trio task per connection. One Trio task looks at a `PollSet`, which holds the sockets that listen and every
connection that must wait. All complete requests that a look yields are one burst: one call of `enqueue`. If its commit
takes long, another Trio task, which stands by, looks in its stead: the next burst is read meanwhile.

All state belongs to the `Listener` and changes only between two awaits.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

import structlog
import trio

from trispool.bind import BoundSockets, bound_sockets
from trispool.errors import TrispoolError
from trispool.intake import Intake
from trispool.pollset import PollSet
from trispool.room import Room
from trispool.task import Accepted, NewTask

if TYPE_CHECKING:
    from collections.abc import Mapping

    from trispool.connection import Turn
    from trispool.settings import ListenSettings

__all__ = ["Enqueue", "Listener", "ListenerStatistics", "serve_listener"]

Enqueue: TypeAlias = Callable[[Sequence[NewTask]], Awaitable[Sequence[Accepted | TrispoolError]]]
"""Keeps tasks; one result for each, in order, once it is as durable as promised."""

MAX_BURSTS: Final = 32
"""Bursts that wait for their commit at once. A burst has mostly up to 64 requests, so that with a slow disk, 10 ms a
commit, they still come to 200,000 requests/s. (8 halved the rate of 300 clients there.)"""

GIVE_WAY_SECONDS: Final = 0.002
"""How long a commit is waited for before the next burst is read. Threads that make system calls take the interpreter
from each other at every one (8 futex calls a task were seen), so taking turns is quicker than running at once. A commit
that takes longer waits for the disk, and needs no interpreter."""

ACCEPT_PAUSE_SECONDS: Final = 0.1
"""How long not to accept when descriptors or memory are short; as Trio's `serve_listeners`."""

STOP_SECONDS: Final = 2.0
"""What is being committed when we are stopped may take so long to be answered."""

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class ListenerStatistics:
    """A listener at this moment; numbers since it began to serve.

    Attributes:
        open: Connections that are open.
        accepted: Connections that were accepted, those refused included.
        requests: Whole requests that came.
        spooled: Tasks that were kept.
        refused: What was refused, by reason.
        timeouts: Connections closed because they were silent or too slow.
        held: Bytes of incomplete requests in memory.
    """

    open: int
    accepted: int
    requests: int
    spooled: int
    refused: Mapping[str, int]
    timeouts: int
    held: int


async def serve_listener(
    settings: ListenSettings,
    enqueue: Enqueue,
    room: Room | None = None,
    *,
    task_status: trio.TaskStatus[Listener] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve one uwsgi socket until cancelled.

    Started with the `Listener`, whose `addresses` are bound. When cancelled, it accepts and reads nothing more, gives
    what is being committed two seconds to be answered, and closes all connections.

    Args:
        settings: Where and how.
        enqueue: Keeps the tasks. What it raises but `TrispoolError` ends the listener.
        room: What it shares with other listeners.
        task_status: For `nursery.start`.

    Raises:
        ConfigError: The address cannot be bound.
    """
    async with bound_sockets(settings.bind, settings.mode) as bound:
        listener = Listener(settings, enqueue, bound, room or Room(settings.max_body))
        _log.info("listening", addresses=bound.addresses)
        await listener._serve(task_status)


class Listener:
    """A listener that serves; made by `serve_listener`.

    Attributes:
        addresses: Where it listens, each in the form of a `bind`.
    """

    def __init__(self, settings: ListenSettings, enqueue: Enqueue, bound: BoundSockets, room: Room) -> None:
        self.addresses = bound.addresses
        self._bound = bound
        self._enqueue = enqueue
        self._intake = Intake(settings)
        self._connections = PollSet(settings, self._intake, room, bound.sockets)
        self._slots = trio.Semaphore(MAX_BURSTS)
        self._commits: set[trio.CancelScope] = set()
        self._commit_deadline = math.inf  # until we are stopped

    def statistics(self) -> ListenerStatistics:
        """A snapshot."""
        intake, connections = self._intake, self._connections
        return ListenerStatistics(
            open=len(connections),
            accepted=connections.acceptor.accepted,
            requests=intake.requests,
            spooled=intake.spooled,
            refused=dict(intake.refused),
            timeouts=connections.timeouts,
            held=connections.held,
        )

    async def _serve(self, task_status: trio.TaskStatus[Listener]) -> None:
        connections = self._connections
        try:
            async with trio.open_nursery() as nursery:
                try:
                    nursery.start_soon(self._end_silent)
                    nursery.start_soon(self._look_and_commit, nursery)
                    task_status.started(self)
                    await trio.sleep_forever()
                finally:
                    for listening in self._bound.sockets:
                        listening.close()
                    self._commit_deadline = trio.current_time() + STOP_SECONDS
                    for scope in self._commits:
                        scope.deadline = self._commit_deadline
        finally:
            connections.close()

    async def _look_and_commit(self, nursery: trio.Nursery) -> None:
        """Look, and commit what came, until relieved."""
        relief = trio.CancelScope()
        nursery.start_soon(self._stand_by, nursery, relief)
        connections = self._connections
        while True:
            await trio.lowlevel.checkpoint_if_cancelled()  # a commit is shielded, and to look is no checkpoint
            # First the slot, then the reading: what has been read whole is never given up while it waits for a slot.
            try:
                self._slots.acquire_nowait()
            except trio.WouldBlock:
                await self._slots.acquire()
            burst = connections.look(trio.current_time())
            if connections.acceptor.is_short:
                connections.acceptor.is_short = False
                nursery.start_soon(self._rest)
            if burst:
                relief.deadline = trio.current_time() + GIVE_WAY_SECONDS
                await self._commit(burst)
                if relief.cancel_called:
                    return
                relief.deadline = math.inf
            else:
                self._slots.release()
                if connections.has_more():
                    await trio.lowlevel.checkpoint()
                else:
                    connections.rests = True
                    await trio.lowlevel.wait_readable(connections.fileno())
                    connections.rests = False

    async def _stand_by(self, nursery: trio.Nursery, relief: trio.CancelScope) -> None:
        """Look when the deadline of `relief` has passed."""
        with relief:
            await trio.sleep_forever()
        await self._look_and_commit(nursery)

    async def _commit(self, burst: list[Turn]) -> None:
        """Keep a burst and answer it; frees the slot that was taken for it."""
        tasks = [task for turn in burst for task in turn.tasks]
        with trio.CancelScope(shield=True, deadline=self._commit_deadline) as scope:
            self._commits.add(scope)
            try:
                try:
                    results = await self._enqueue(tasks)
                except TrispoolError as error:
                    results = [error] * len(tasks)
                self._connections.answer(burst, results, trio.current_time())
                if all(isinstance(result, TrispoolError) for result in results):
                    await trio.lowlevel.checkpoint()  # to refuse may take no turn of the loop, and more may have come
            finally:
                self._commits.discard(scope)
                self._slots.release()

    async def _end_silent(self) -> None:
        while True:
            wake_at = self._connections.end_silent(trio.current_time())
            await trio.sleep_until(wake_at)

    async def _rest(self) -> None:
        """Accept nothing for a while: descriptors or memory are short, and some may come free."""
        self._connections.accept(False)
        await trio.sleep(ACCEPT_PAUSE_SECONDS)
        self._connections.accept(True)
