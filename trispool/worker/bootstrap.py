"""From a fresh interpreter to a worker that runs tasks, and back."""

from __future__ import annotations

import faulthandler
import fcntl
import gc
import os
import select
import signal
import traceback
from typing import TYPE_CHECKING, Any, Final

from trispool import producer, task
from trispool.worker import DUMP_SIGNAL, frames, output
from trispool.worker.board import Board
from trispool.worker.link import ServiceGone, WorkerEnd

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from trispool.handlers import Handler
    from trispool.spooldir import SpoolDirectory

__all__ = ["main"]

_LOWEST_PRIORITY: Final = 19
_F_SETSIG = 10  # fcntl(2); the module `fcntl` does not name it
_MAX_TRACEBACK = 65_536
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def main(socket_fd: int, board_fd: int, life_fd: int) -> int:
    """A worker's life.

    Args:
        socket_fd: The connection to the service.
        board_fd: The memory of the board.
        life_fd: The reading end of a pipe that nobody writes to; what only the service holds is its other end.

    Returns:
        The exit code.
    """
    _die_with_service(life_fd)
    _hold_signals()
    # As uWSGI's spoolers (`core/spooler.c`, `spooler`): what waits in a queue gives way to those who put it there.
    os.setpriority(os.PRIO_PROCESS, 0, _LOWEST_PRIORITY)
    worker = _Worker(WorkerEnd(socket_fd), board_fd)
    code = 1
    try:
        code = worker.run()
    except* (ServiceGone, BrokenPipeError, ConnectionResetError):
        pass  # and so, within microseconds, shall we be
    return code


def _die_with_service(life_fd: int) -> None:
    """Have the kernel kill this process group when the service is gone, even in the middle of a call into C."""
    os.set_inheritable(life_fd, False)
    fcntl.fcntl(life_fd, fcntl.F_SETOWN, -os.getpgrp())
    fcntl.fcntl(life_fd, _F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(life_fd, fcntl.F_SETFL, fcntl.fcntl(life_fd, fcntl.F_GETFL) | os.O_ASYNC)
    poll = select.poll()  # select(2) cannot take descriptors from 1,024 up
    poll.register(life_fd, select.POLLIN)
    if poll.poll(0):  # it was gone before
        os._exit(1)


def _hold_signals() -> None:
    """Leave it to the service what a signal to all its processes means.

    Init systems stop a service by a signal to all of its processes, and would cut off running tasks. A function that
    does nothing is used, since ignoring would be inherited by the programs that handlers start.
    """
    for number in _SIGNALS:
        signal.signal(number, _do_nothing)
    os.register_at_fork(after_in_child=_release_signals)


def _do_nothing(number: int, frame: FrameType | None) -> None:
    pass


def _release_signals() -> None:
    for number in _SIGNALS:
        if signal.getsignal(number) is _do_nothing:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


class _Worker:
    """The parts of a worker, put together."""

    def __init__(self, link: WorkerEnd, board_fd: int) -> None:
        self._link = link
        self._pids: list[int] = []
        self._current: Callable[[], str | None] = _no_task
        self._streams = output.install(lambda: self._current())
        faulthandler.enable(2)
        faulthandler.register(DUMP_SIGNAL, 2)
        message = link.receive()
        if not isinstance(message, frames.Setup):
            raise frames.MalformedFrame("the first message must be a setup")
        self._setup = message
        self._board = Board(board_fd, self._setup.slots)
        os.close(board_fd)
        self._directory: SpoolDirectory | None = None

    def run(self) -> int:
        """Import the handlers, run tasks until told to quit."""
        setup, link = self._setup, self._link
        try:
            compat = self._prepare()
        except BaseException:  # whatever a handler's module does
            link.send(("broken", traceback.format_exc()[-_MAX_TRACEBACK:].encode(errors="replace").decode()))
            return 1
        finally:
            self._flush_output()
        # What the imports made is there to stay: the collector need not look at it again and again.
        gc.collect()
        gc.freeze()
        from trispool.handlers import registry
        from trispool.worker.claims import Places

        places = Places(self._directory.fd if self._directory is not None and not setup.chdir else None)
        default = registry.default if compat.get("spooler") is None else None
        handlers = {found.name: _describe(found, is_default=found is default) for found in registry}
        link.send(("ready", registry.has_async, handlers))
        parts = setup, link, self._board, self._directory, places, self._streams, compat, self._take
        if registry.has_async:
            from trispool.worker.asyncloop import AsyncLoop

            async_loop = AsyncLoop(*parts)
            self._current = async_loop.current
            async_loop.run()
        else:
            from trispool.worker.syncloop import SyncLoop

            loop = SyncLoop(*parts)
            self._current = lambda: loop.current
            loop.run()
        self._flush_output()
        return 0

    def _prepare(self) -> dict[str, Any]:
        from trispool import compat, loading
        from trispool.compat import uwsgi
        from trispool.spooldir import SpoolDirectory

        setup = self._setup
        if setup.directory is not None:
            self._directory = SpoolDirectory(setup.directory, fsync=setup.fsync, create=False)
            producer.use(setup.spool, self._directory)
        task._report = self._link.send_progress
        self._pids.extend(setup.pids)
        compat.install(
            compat.Context(
                spool=setup.spool,
                directory=self._directory,
                spoolers=setup.spoolers,
                frequency=setup.frequency,
                processes=setup.processes,
                opt=dict(setup.options),
                pids=self._pids,
                master_pid=setup.service_pid,
                set_frequency=self._link.send_frequency,
            )
        )
        for target in setup.imports:
            loading.load(target)
        if setup.chdir:
            os.chdir(setup.chdir)
        return uwsgi.__dict__

    def _take(self, message: frames.ToWorker) -> None:
        if isinstance(message, frames.Pids):
            self._pids[:] = message.pids

    def _flush_output(self) -> None:
        for stream in self._streams:
            stream.end_line(None)


def _no_task() -> None:
    return None


def _describe(found: Handler[..., Any], *, is_default: bool) -> frames.HandlerInfo:
    return frames.HandlerInfo(
        default=is_default,
        retries=found.retries,
        backoff=found.backoff,
        timeout=found.timeout,
        concurrency=found.concurrency,
    )
