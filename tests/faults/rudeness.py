"""Clients that do not behave: many at once, in a process of their own, until its standard input ends.

The first line of its input is an `Order`. It prints `begun` when the first connection of each client is where it shall
be, and at its end what the clients have seen, as JSON. A client whose connection has ended makes another one.
"""

from __future__ import annotations

import json
import resource
import socket
import struct
import sys
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Final, TypeAlias

import trio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

CLIENT_PAUSE: Final = 1.0
"""Seconds between two connections of a client that was sent away: those of 10,000 are a flood as it is."""

DRIBBLE_SECONDS: Final = 0.5
"""Between two bytes of a slow client."""

VANISHED_SECONDS: Final = 10.0
"""Until a client that has vanished comes back: the service keeps what it left behind, and more would be a flood."""

FLOOD_BYTES: Final = 64 * 1024
"""Of requests, in one write."""

CONNECTING_AT_ONCE: Final = 200
"""Of 10,000 clients, so that the backlog of a socket that listens, and not the service, does not decide."""

_TCP_REPAIR: Final = 19
"""linux/tcp.h. A socket that is closed while this is on tells its peer nothing, like a machine that lost its power."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where to, and what would be said by one who behaves.

    Attributes:
        addresses: Paths of Unix sockets, and `[host, port]`; clients are spread over them.
        request: A whole request, latin-1.
        stages: Where in it a client may get stuck.
    """

    addresses: list[str | list[str | int]]
    request: str
    stages: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Order:
    """What a process of rude clients is to do.

    Attributes:
        attack: One of `ATTACKS`.
        stage: One of the target's stages.
        connections: How many clients.
        target: Whom to be rude to.
    """

    attack: str
    stage: str
    connections: int
    target: Target

    def encode(self) -> str:
        """The line for the process."""
        return json.dumps(asdict(self))

    @classmethod
    def decode(cls, text: str) -> Order:
        """What `encode` has made."""
        members = json.loads(text)
        return cls(**members | {"target": Target(**members["target"])})


class Client:
    """One client: its connection, and what it would say.

    Args:
        sock: Connected.
        beginning: What it says at once.
        rest: The rest of its request.
        arrived: To be called when it is where it shall be.
    """

    def __init__(
        self, sock: trio.socket.SocketType, beginning: bytes, rest: bytes, arrived: Callable[[], None]
    ) -> None:
        self.sock = sock
        self.beginning = beginning
        self.rest = rest
        self.arrived = arrived

    async def begin(self) -> None:
        """Get stuck where it shall."""
        await self.say(self.beginning)
        self.arrived()

    async def say(self, data: bytes) -> None:
        """Send all of it."""
        with memoryview(data) as view:
            sent = 0
            while sent < len(data):
                sent += await self.sock.send(view[sent:])

    async def hear(self) -> None:
        """Read until the service has ended the connection."""
        while await self.sock.recv(65536):
            pass


Attack: TypeAlias = "Callable[[Client], Awaitable[None]]"


async def wait(client: Client) -> None:
    """Say nothing more."""
    await client.begin()
    await client.hear()


async def slow(client: Client) -> None:
    """Say the rest byte by byte."""
    await client.begin()
    async with trio.open_nursery() as nursery:

        async def dribble() -> None:
            for place in range(len(client.rest)):
                await trio.sleep(DRIBBLE_SECONDS)
                await client.say(client.rest[place : place + 1])

        nursery.start_soon(dribble)
        await client.hear()
        nursery.cancel_scope.cancel()


async def half_closed(client: Client) -> None:
    """Say that nothing more comes, and wait."""
    await client.begin()
    client.sock.shutdown(socket.SHUT_WR)
    await client.hear()


async def vanish(client: Client) -> None:
    """Be gone without a word: the connection is half open."""
    await client.begin()
    client.sock.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR, 1)
    client.sock.close()
    await trio.sleep(VANISHED_SECONDS)


async def reset(client: Client) -> None:
    """Break off: RST by TCP, and on a Unix socket a close before the answer is read."""
    await client.begin()
    client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


async def deaf(client: Client) -> None:
    """Ask and ask, and read no answer."""
    client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    request = client.beginning + client.rest
    client.arrived()
    while True:
        await client.say(request * (1 + FLOOD_BYTES // len(request)))


async def flood(client: Client) -> None:
    """Ask without waiting for answers, and read them all."""
    request = client.beginning + client.rest
    client.arrived()
    async with trio.open_nursery() as nursery:

        async def ask() -> None:
            while True:
                await client.say(request * (1 + FLOOD_BYTES // len(request)))

        nursery.start_soon(ask)
        await client.hear()
        nursery.cancel_scope.cancel()


async def leave(client: Client) -> None:
    """Connect, and close."""
    await client.begin()


ATTACKS: Final[dict[str, Attack]] = {
    attack.__name__: attack for attack in (wait, slow, half_closed, vanish, reset, deaf, flood, leave)
}

AT_ONCE_AGAIN: Final = frozenset({"reset", "leave"})
"""Those that are floods of connections: no pause between two."""


async def attack(order: Order, begun: Callable[[], None]) -> Counter[str]:
    """Be rude until cancelled.

    Args:
        order: How.
        begun: Called when all have come as far as they shall.

    Returns:
        How many connections were made, and how they ended.
    """
    seen: Counter[str] = Counter()
    request = order.target.request.encode("latin-1")
    stage = order.target.stages[order.stage]
    beginning, rest = request[:stage], request[stage:]  # once, and not for each of 10,000
    connecting = trio.CapacityLimiter(CONNECTING_AT_ONCE)
    missing = order.connections

    async def client(number: int) -> None:
        nonlocal missing
        address = order.target.addresses[number % len(order.target.addresses)]
        is_first = True

        def arrived() -> None:
            nonlocal is_first, missing
            if is_first:
                is_first = False
                missing -= 1
                if not missing:
                    begun()

        while True:
            family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
            try:
                with trio.socket.socket(family) as sock:
                    async with connecting:
                        await sock.connect(address if isinstance(address, str) else tuple(address))
                    seen["made"] += 1
                    await ATTACKS[order.attack](Client(sock, beginning, rest, arrived))
                seen["ended"] += 1
            except* OSError:
                seen["broken"] += 1
                arrived()  # it was not let
            await trio.sleep(0 if order.attack in AT_ONCE_AGAIN else CLIENT_PAUSE)

    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_until_told, scope)
            for number in range(order.connections):
                nursery.start_soon(client, number)
    return seen


async def _until_told(scope: trio.CancelScope) -> None:
    await trio.lowlevel.wait_readable(sys.stdin)
    scope.cancel()


def main() -> None:
    """What the process does."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    seen = trio.run(attack, Order.decode(sys.stdin.readline()), lambda: print("begun", flush=True))
    print(json.dumps(seen), flush=True)


if __name__ == "__main__":
    main()
