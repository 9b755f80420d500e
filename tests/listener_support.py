"""A listener on a free port with an `enqueue` that remembers, and clients for it."""

from __future__ import annotations

import contextlib
import socket
from typing import TYPE_CHECKING

import trio

from trispool.listener import Listener, serve_listener
from trispool.packet import encode_packet, encode_vars
from trispool.task import Accepted, NewTask

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence
    from pathlib import Path

    from trispool.errors import TrispoolError
    from trispool.room import Room
    from trispool.settings import ListenSettings


class FakeEnqueue:
    """Keeps tasks in a list; a commit waits at the gate if there is one.

    Attributes:
        calls: The tasks of every call.
        started: How many calls have begun; each sets `begun` to a new event.
        gate: Set it to hold all commits up.
        verdict: Gives the result of each task.
        error: Raised by every call.
    """

    def __init__(self) -> None:
        self.calls: list[list[NewTask]] = []
        self.gate: trio.Event | None = None
        self.verdict: Callable[[NewTask], Accepted | TrispoolError] | None = None
        self.error: Exception | None = None
        self.begun = trio.Event()

    @property
    def tasks(self) -> list[NewTask]:
        return [task for call in self.calls for task in call]

    async def __call__(self, tasks: Sequence[NewTask]) -> Sequence[Accepted | TrispoolError]:
        self.calls.append(list(tasks))
        number = len(self.tasks) - len(tasks)
        self.begun.set()
        self.begun = trio.Event()
        if self.gate is not None:
            await self.gate.wait()
        else:
            await trio.lowlevel.checkpoint()
        if self.error is not None:
            raise self.error
        if self.verdict is not None:
            return [self.verdict(task) for task in tasks]
        return [Accepted(f"task-{number + index}", "default", task.at) for index, task in enumerate(tasks)]

    async def wait_for_tasks(self, count: int) -> None:
        """Until so many tasks have come."""
        while len(self.tasks) < count:
            await self.begun.wait()


@contextlib.asynccontextmanager
async def listening(
    settings: ListenSettings, enqueue: FakeEnqueue, room: Room | None = None
) -> AsyncIterator[Listener]:
    """A listener, cancelled at the end."""
    async with trio.open_nursery() as nursery:
        listener = await nursery.start(serve_listener, settings, enqueue, room)
        yield listener
        nursery.cancel_scope.cancel()


def connect_socket(listener: Listener, data: bytes = b"") -> socket.socket:
    """A blocking client that has sent `data`, so that a test does several things between two turns of the loop."""
    address = listener.addresses[0]
    is_unix = address.startswith("unix:")
    host, _, port = address.rpartition(":")
    client = socket.socket(socket.AF_UNIX if is_unix else socket.AF_INET, socket.SOCK_STREAM)
    try:
        client.connect(address.removeprefix("unix:") if is_unix else (host, int(port)))
        client.sendall(data)
    except BaseException:
        client.close()
        raise
    return client


@contextlib.contextmanager
def connected(listener: Listener, data: bytes = b"") -> Iterator[trio.SocketStream]:
    """A client that has sent `data`; the kernel has done both when the block begins."""
    with connect_socket(listener, data) as client:
        client.setblocking(False)
        yield trio.SocketStream(trio.socket.from_stdlib_socket(client))


async def exactly(stream: trio.SocketStream, size: int) -> bytes:
    """The next `size` bytes, or fewer if the other side ends."""
    data = b""
    while len(data) < size and (more := await stream.receive_some(size - len(data))):
        data += more
    return data


async def until_end(stream: trio.SocketStream) -> bytes:
    """All bytes until the other side ends, or breaks off."""
    data = b""
    with contextlib.suppress(trio.BrokenResourceError):
        while more := await stream.receive_some():
            data += more
    return data


def packet(vars: dict[str, str] | None = None, body: bytes = b"", modifier1: int = 17) -> bytes:
    """A packet and what follows it."""
    return encode_packet(encode_vars({"handler": "hello"} if vars is None else vars), modifier1) + body


def unix(folder: Path) -> str:
    """A `bind` in a test's own folder."""
    return f"unix:{folder}/trispool.sock"
