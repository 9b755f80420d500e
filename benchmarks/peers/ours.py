"""trispool and uWSGI in that contest, with each of the ways in."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from benchmarks.peers.clients import by_socket, in_batches, send_by
from benchmarks.peers.contenders import Running
from benchmarks.servers import ROOT, Kind, prepare, running, uwsgi_binary
from benchmarks.tasks import best_frequency

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from benchmarks.peers.clients import Way
    from benchmarks.servers import Server

__all__ = ["COUNTED", "OURS", "Ours"]

_TASKS: Final = "benchmarks.peers.trispool_tasks"
_HANDLERS: Final = ROOT.joinpath(*_TASKS.split(".")).with_suffix(".py")


@dataclass(frozen=True, slots=True)
class Ours:
    """One server with one way in.

    Attributes:
        name: In the table.
        kind: The server.
        way: Makes the way from a server that runs, its folder.
        setup: What is to be known of it.
        survives: What a task that waits survives.
        share: It has one in so many of the tasks.
    """

    name: str
    kind: Kind
    way: Callable[[Server, Path, Kind], Way]
    setup: str
    survives: str
    share: int = 1

    @property
    def installed(self) -> bool:
        """Whether it is there."""
        return self.kind is not Kind.UWSGI or uwsgi_binary() is not None

    @contextlib.contextmanager
    def running(self, folder: Path) -> Iterator[Running]:
        """Run it in a folder.

        Raises:
            ServerFailed: It does not start.
        """
        prepare(folder)
        # Under uWSGI the same handler as elsewhere; in trispool one with a decorator, for which `.spool()` works, too.
        handlers = {} if self.kind is Kind.UWSGI else {"handlers": _HANDLERS}
        with running(self.kind, folder, frequency=best_frequency(self.kind), **handlers) as server:
            yield Running(self.way(server, folder, self.kind), server.records, [server.process.pid], server.check)


def _socket(server: Server, _folder: Path, kind: Kind) -> Way:
    return by_socket(server.unix, {} if kind is Kind.UWSGI else {"handler": "handle"})


def _batches(_server: Server, folder: Path, _kind: Kind) -> Way:
    return in_batches(folder, {"handler": "handle"})


def _spool(_server: Server, folder: Path, kind: Kind) -> Way:
    return send_by(
        _TASKS,
        {
            "TRISPOOL_SPOOL": os.fspath(folder / "spool"),
            "TRISPOOL_DURABILITY": "fsync" if kind is Kind.FSYNC else "os",
            "BENCHMARK_RECORDS": os.fspath(folder / "records"),
        },
    )


_KILL: Final = "a kill"
_CUT: Final = "a power cut"

COUNTED: Final = 'trispool, "fsync", by socket'
"""The line that the other queues are held against: nothing that has been acknowledged is lost in a power cut."""

OURS: Final = (
    Ours("uWSGI, by socket", Kind.UWSGI, _socket, "packets by a Unix socket", _KILL),
    Ours('trispool, "os", `handler.spool()`', Kind.OS, _spool, "clients write files, the service finds them", _KILL),
    Ours('trispool, "fsync", `handler.spool()`', Kind.FSYNC, _spool, "the same, each file synced by its client", _CUT),
    Ours('trispool, "os", by socket', Kind.OS, _socket, "packets by a Unix socket", _KILL),
    Ours(COUNTED, Kind.FSYNC, _socket, "the same", _CUT),
    Ours('trispool, "fsync", in batches', Kind.FSYNC, _batches, "1,000 tasks a request, by HTTP", _CUT),
)
