"""How clients send tasks: by a queue's own Python function, by a uwsgi socket, by HTTP in batches."""

from __future__ import annotations

import importlib
import os
import time
from typing import TYPE_CHECKING, TypeAlias

from benchmarks.batches import BATCH_CONNECTIONS, TASKS_PATH
from benchmarks.client import run_clients, run_load
from benchmarks.httpload import post, post_all
from benchmarks.servers import token
from benchmarks.tasks import BATCH, lines, packet

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from benchmarks.client import Client, Load

__all__ = ["Way", "by_socket", "in_batches", "send_by"]

Way: TypeAlias = "Callable[[range, int, int], Load]"
"""Sends tasks with these numbers from so many client processes, with so many connections each where that matters."""


def send_by(module: str, environment: Mapping[str, str]) -> Way:
    """Clients that import the module of tasks and call its `send` once for each task, one after the other.

    Args:
        module: Has `send(key)`.
        environment: What the module needs to know.
    """

    def way(numbers: range, processes: int, _: int) -> Load:
        def make(process: int) -> Client:
            os.environ.update(environment)
            send = importlib.import_module(module).send
            mine = numbers[process::processes]

            def client() -> tuple[list[float], int]:
                latencies = []
                for number in mine:
                    began = time.monotonic()
                    send(float(number))
                    latencies.append(time.monotonic() - began)
                return latencies, 0

            return client

        return run_clients(make, processes)

    return way


def by_socket(address: str, vars_: Mapping[str, str]) -> Way:
    """Clients that send uwsgi packets.

    Args:
        address: A Unix socket.
        vars_: What is in all of them.
    """

    def way(numbers: range, processes: int, connections: int) -> Load:
        return run_load(address, [packet(number, None, **vars_) for number in numbers], processes, connections)

    return way


def in_batches(folder: Path, vars_: Mapping[str, str]) -> Way:
    """Clients that send batches by HTTP.

    Args:
        folder: Of a trispool that runs.
        vars_: What is in all tasks.
    """

    def way(numbers: range, processes: int, _: int) -> Load:
        word = token(folder)
        bodies = [lines(numbers[first : first + BATCH], **vars_) for first in range(0, len(numbers), BATCH)]
        requests = [post(TASKS_PATH, word, "application/x-ndjson", body) for body in bodies]
        return run_load(os.fspath(folder / "http"), requests, processes, BATCH_CONNECTIONS, post_all)

    return way
