"""A client that keeps a uwsgi socket busy, and one that sends a single packet.

Several processes with several connections each. A connection carries one packet, as uWSGI takes only one. The client
itself has a limit, which `trivial_responder` shows: the same exchange with a server that does nothing.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import itertools
import multiprocessing
import os
import select
import signal
import socket
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from multiprocessing.connection import Connection
    from multiprocessing.synchronize import Barrier
    from pathlib import Path

__all__ = [
    "ANSWER",
    "STALLED_SECONDS",
    "Address",
    "Client",
    "Drive",
    "Load",
    "connect",
    "exchange",
    "run_clients",
    "run_load",
    "trivial_responder",
]

Address: TypeAlias = "str | tuple[str, int]"
"""A Unix socket's path, or host and port."""

Drive: TypeAlias = "Callable[[Address, Sequence[str], Sequence[bytes], int], tuple[list[float], int]]"
"""What a client process does: with an address, its own source addresses, what to send, and how many connections to have
open at once. It returns the latencies and how much was refused."""

Client: TypeAlias = "Callable[[], tuple[list[float], int]]"
"""Sends all that one process has to send; returns the latencies and how much was refused."""

ANSWER: Final = b"\xff\x00\x00\x01"
"""What uWSGI says of a task that it has spooled."""

STALLED_SECONDS: Final = 30.0
"""Without any answer for so long, a run has failed."""

SOURCES: Final = 16
"""Addresses that a client process connects from by TCP. All connections have the server's end in common, and between
two addresses the system has only 28,000 ports, of which those of the last minute are taken."""

_fork = multiprocessing.get_context("fork")


@dataclass(frozen=True, slots=True)
class Load:
    """What came of one run.

    Attributes:
        began: When the first packet was sent, `time.monotonic()`.
        seconds: Until the last answer.
        latencies: Seconds from before the connect until the answer, one for each packet, sorted.
        refused: How many packets were not answered as spooled.
    """

    began: float
    seconds: float
    latencies: list[float]
    refused: int

    @property
    def rate(self) -> float:
        """Packets answered in a second."""
        return len(self.latencies) / self.seconds


def exchange(address: Address, packet: bytes) -> bytes:
    """Send one packet and read the answer."""
    with connect(address, None) as sock:
        sock.settimeout(STALLED_SECONDS)
        sock.sendall(packet)
        return sock.recv(64)


def run_load(
    address: Address, packets: Sequence[bytes], processes: int, connections: int, drive: Drive | None = None
) -> Load:
    """Send all packets as fast as the server takes them.

    Args:
        address: Where to.
        packets: What to send.
        processes: How many client processes.
        connections: How many connections each has open at once.
        drive: What each process does; None: makes a connection for each packet.

    Raises:
        RuntimeError: A client process failed.
    """

    def client(number: int) -> Client:
        sources = [] if isinstance(address, str) else [f"127.1.{number}.{last}" for last in range(1, SOURCES + 1)]
        return functools.partial(drive or _drive, address, sources, packets[number::processes], connections)

    return run_clients(client, processes)


def run_clients(make: Callable[[int], Client], processes: int) -> Load:
    """Run clients in processes of their own, which start to send at the same time.

    Args:
        make: Makes ready, in the process with that number, what is to run there. The time it takes is not measured.
        processes: How many.

    Raises:
        RuntimeError: A client process failed.
    """
    barrier = _fork.Barrier(processes)
    running = []
    for number in range(processes):
        receiving, sending = _fork.Pipe(duplex=False)
        process = _fork.Process(target=_client_process, args=(make, number, barrier, sending), daemon=True)
        process.start()
        sending.close()
        running.append((process, receiving))
    began, ended, latencies, refused = [], [], [], 0
    try:
        for _, receiving in running:
            result = receiving.recv()
            began.append(result[0])
            ended.append(result[1])
            latencies += result[2]
            refused += result[3]
    except EOFError:
        raise RuntimeError("a client process failed; see above") from None
    finally:
        for process, receiving in running:
            receiving.close()
            process.join(5)
            if process.is_alive():
                process.kill()
                process.join()
    latencies.sort()
    return Load(min(began), max(ended) - min(began), latencies, refused)


def _client_process(make: Callable[[int], Client], number: int, barrier: Barrier, result: Connection) -> None:
    client = make(number)
    gc.disable()
    barrier.wait(STALLED_SECONDS)
    began = time.monotonic()
    latencies, refused = client()
    result.send((began, time.monotonic(), latencies, refused))


def _drive(
    address: Address, sources: Sequence[str], packets: Sequence[bytes], connections: int
) -> tuple[list[float], int]:
    waiting: dict[int, tuple[socket.socket, float]] = {}
    latencies: list[float] = []
    refused = 0
    unsent = iter(packets)
    next_source = itertools.cycle(sources or [None])
    with select.epoll() as epoll:

        def send(packet: bytes) -> None:
            began = time.monotonic()
            sock = connect(address, next(next_source))
            sock.sendall(packet)
            waiting[sock.fileno()] = (sock, began)
            epoll.register(sock.fileno(), select.EPOLLIN)

        for packet in itertools.islice(unsent, connections):
            send(packet)
        while waiting:
            ready = epoll.poll(STALLED_SECONDS)
            if not ready:
                raise RuntimeError(f"no answer for {STALLED_SECONDS} s")
            for fd, _ in ready:
                sock, began = waiting.pop(fd)
                try:
                    answer = sock.recv(64, socket.MSG_DONTWAIT)
                except ConnectionError:
                    answer = b""
                latencies.append(time.monotonic() - began)
                sock.close()
                refused += answer != ANSWER
                if (following := next(unsent, None)) is not None:
                    send(following)
    return latencies, refused


def connect(address: Address, source: str | None) -> socket.socket:
    """A connection; by TCP from an address of the own ones, if one is given."""
    if isinstance(address, str):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    else:
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        if source is not None:
            sock.bind((source, 0))
    try:
        sock.connect(address)
    except BaseException:
        sock.close()
        raise
    return sock


@contextlib.contextmanager
def trivial_responder(path: Path, processes: int = 2) -> Iterator[tuple[str, tuple[str, int]]]:
    """Servers that read a packet and answer "spooled", nothing else.

    Args:
        path: For the Unix socket.
        processes: How many on each socket.

    Yields:
        The addresses of the Unix and of the TCP socket.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as unix, socket.socket(socket.AF_INET) as tcp:
        unix.bind(os.fspath(path))
        tcp.bind(("127.0.0.1", 0))
        children = []
        for listening in (unix, tcp):
            listening.listen(1024)
            for _ in range(processes):
                child = _fork.Process(target=_respond, args=(listening,), daemon=True)
                child.start()
                children.append(child)
        try:
            yield os.fspath(path), tcp.getsockname()
        finally:
            for child in children:
                child.kill()
                child.join()


def _respond(listening: socket.socket) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        connection, _ = listening.accept()
        with connection:
            if connection.recv(65536):
                connection.send(ANSWER)
