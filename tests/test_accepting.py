"""What is accepted becomes a client, unless it has left or may not come in."""

from __future__ import annotations

import contextlib
import itertools
import socket
from typing import TYPE_CHECKING

import pytest
import trio

from trispool.admin import ServerLimits
from trispool.admin.accepting import accept_all
from trispool.admin.crowd import Crowd

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Door:
    """A socket that listens, and what has come through."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self._stack = stack
        self.listening = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        self.listening.setblocking(False)
        self.crowd = Crowd(ServerLimits(max_connections=2))
        self.served: list[bytes] = []
        self.refused: list[bytes] = []

    def come(self, said: bytes = b"", *, leaves: bool = False) -> None:
        """One client."""
        client = self._stack.enter_context(socket.create_connection(self.listening.getsockname()))
        client.sendall(said)
        if leaves:
            client.close()

    def serve(self, sock: socket.socket) -> None:
        self.crowd.enter()
        self._note(sock, self.served)

    def refuse(self, sock: socket.socket) -> None:
        self._note(sock, self.refused)

    def _note(self, sock: socket.socket, seen: list[bytes]) -> None:
        sock.setblocking(False)
        with self._stack.enter_context(sock), contextlib.suppress(BlockingIOError):
            seen.append(sock.recv(10))

    async def open(self, may_connect: Callable[[str], bool] | None = None) -> None:
        """Accept all that have come."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(accept_all, self.listening, self.crowd, may_connect, self.serve, self.refuse)
            await trio.testing.wait_all_tasks_blocked(0.05)
            nursery.cancel_scope.cancel()


@pytest.fixture
def door() -> Iterator[Door]:
    with contextlib.ExitStack() as stack:
        yield Door(stack)


async def test_who_has_left_without_a_word_is_not_served(door: Door) -> None:
    door.come(leaves=True)
    door.come(b"fire and forget", leaves=True)
    door.come(b"here")
    await door.open()
    assert door.served == [b"fire and f", b"here"]


async def test_addresses_that_may_not_connect_are_closed(door: Door) -> None:
    door.come(b"here")
    await door.open(lambda address: address != "127.0.0.1")
    assert door.served == door.refused == []


async def test_who_finds_no_room_is_refused(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trispool.admin.crowd.FULL_SECONDS", 0.0)
    for said in (b"1", b"2", b"3"):
        door.come(said)
    await door.open()
    assert (door.served, door.refused) == ([b"1", b"2"], [b"3"])


async def test_others_have_their_turn_while_very_many_come(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trispool.admin.accepting.BEGUN_AT_ONCE", 2)
    door.crowd = Crowd(ServerLimits(max_connections=100))
    for _ in range(10):
        door.come(b"x")
    seen: list[int] = []

    async def other() -> None:
        while len(door.served) < 10:
            seen.append(len(door.served))
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        nursery.start_soon(door.open)
    assert all(after - before <= 4 for before, after in itertools.pairwise(seen))  # who is first in a turn is chance
    assert len(set(seen)) > 2
