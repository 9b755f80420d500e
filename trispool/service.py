"""The whole service: what is built from the configuration, and in which order it starts and stops.

    HTTP ── spools (ledger ── dispatcher ── workers) ── faces (listeners, scanners)

Stopping is leaving the nest, from the right: the faces end, the spools drain, HTTP closes last, so that an operator can
watch. The first SIGTERM (or SIGINT) does this and lets running tasks go on for `grace_seconds`; a second one ends them
at once. SIGHUP imports the handlers afresh.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import os
import resource
import signal
import sys
from dataclasses import dataclass
from ipaddress import ip_network
from typing import TYPE_CHECKING, Final, TypeVar

import structlog
import trio

from trispool.controller import Controller
from trispool.errors import ConfigError
from trispool.events import EventHub
from trispool.httpbind import http_listeners
from trispool.httpcounts import HttpCounts
from trispool.listener import Listener, serve_listener
from trispool.livespool import LiveSpool, open_spool
from trispool.reports import Reports
from trispool.room import Room
from trispool.state import open_state
from trispool.tokenfile import TokenFiles

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from trispool.config import Config
    from trispool.control import Control, SpoolStatus
    from trispool.httpbind import HttpListeners
    from trispool.tokenfile import Stored

__all__ = ["run", "serve"]

MAX_BODIES: Final = 4
"""Of the largest size, in memory at once."""

TASKS_FIRST_SECONDS: Final = 1.0
"""For so long, at most, what waited for the service to start has the processors to itself before HTTP is loaded."""

HTTP_GRACE_SECONDS: Final = 2.0
"""For answers that are under way when everything else has ended."""

ONE_STOP_SECONDS: Final = 0.5
"""A second signal this soon is the same stop: `timeout` and init systems signal a process and its group."""

SWITCH_SECONDS: Final = 0.0005
"""The interpreter's default of 5 ms lets a thread that scans or writes history keep the loop from running so long."""

_log = structlog.get_logger()

E = TypeVar("E", bound=BaseException)


@dataclass(frozen=True, slots=True)
class Bound:
    """Where the service can be reached.

    Attributes:
        urls: Of the HTTP API.
        sockets: Of the uwsgi listeners.
    """

    urls: Sequence[str]
    sockets: Sequence[str]


def run(config: Config) -> int:
    """Run the service until a signal ends it.

    Returns:
        The exit code: 0, after an orderly stop.

    Raises:
        ConfigError: It could not start as configured.
    """
    sys.setswitchinterval(SWITCH_SECONDS)
    _raise_descriptor_limit()
    try:
        trio.run(serve, config)
    except BaseExceptionGroup as group:  # not except*: what is raised in that comes out in a group again in 3.11.2
        known, others = group.split(ConfigError)
        if known is None or others is not None:
            raise
        raise ConfigError([problem for error in _leaves(known) for problem in error.problems]) from None
    return 0


async def serve(config: Config, *, task_status: trio.TaskStatus[Bound] = trio.TASK_STATUS_IGNORED) -> None:
    """`run` inside a Trio loop. Started when every address is bound; the first scan may still be under way."""
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
        async with contextlib.AsyncExitStack() as stack:
            state = await stack.enter_async_context(open_state(config.state_dir))
            spools = await _open_spools(config, stack)
            # What may be amiss with these is found before the first task runs.
            tokens = await trio.to_thread.run_sync(TokenFiles(config.state_dir).load)
            listening = await stack.enter_async_context(
                http_listeners(config.http.bind, config.http.certfile, config.http.keyfile)
            )
            figures = {spool.name: spool.figures for spool in spools}
            requests = HttpCounts()
            hub = EventHub(figures, _spool_document)
            ledgers = {spool.name: spool.ledger for spool in spools}
            reports = Reports(lambda: control.spools(), figures, ledgers, requests, lambda: hub.readers)
            control = Controller(spools, state, hub, reports)
            async with trio.open_nursery() as outermost:
                stop_http = trio.Event()
                async with trio.open_nursery() as working:
                    for spool in spools:
                        await working.start(spool.run)
                    async with trio.open_nursery() as faces:
                        await faces.start(control.bulk_runs.run_bulk)
                        sockets = await _start_faces(config, control, reports, spools, faces)
                        with trio.move_on_after(TASKS_FIRST_SECONDS):
                            for spool in spools:
                                await spool.wait_caught_up()
                        await trio.to_thread.run_sync(_import_admin)
                        serve_http = functools.partial(
                            _serve_http, config, control, requests, tokens, listening, stop_http
                        )
                        bound = Bound(await outermost.start(serve_http), sockets)
                        await outermost.start(hub.run_events, control.spools)
                        for url in bound.urls:
                            _log.info("http_ready", url=url)
                        # What is there now stays. Looked through by every full collection it took 25 ms, and 75 ms with
                        # a million scheduled tasks, during which nobody is served.
                        gc.collect()
                        gc.freeze()
                        gc.enable()
                        task_status.started(bound)
                        await _wait_for_stop(signals, spools)
                        control.is_stopping = True
                        faces.cancel_scope.cancel()
                    await _drain(signals, spools, config.grace_seconds)
                    working.cancel_scope.cancel()
                hub.close()
                stop_http.set()
    _log.info("stopped")


async def _open_spools(config: Config, stack: contextlib.AsyncExitStack) -> list[LiveSpool]:
    directories = await trio.to_thread.run_sync(lambda: [os.path.realpath(item.directory) for item in config.spools])
    spools = []
    for settings in config.spools:
        try:
            spools.append(await stack.enter_async_context(open_spool(settings, directories)))
        except (OSError, BaseExceptionGroup) as error:
            # What its history says comes through a nursery of its store.
            group = error if isinstance(error, BaseExceptionGroup) else BaseExceptionGroup("", [error])
            known, others = group.split(OSError)
            if known is None or others is not None:
                raise
            where = f"spool {settings.name!r}: directory = {settings.directory!r}"
            raise ConfigError([f"{where}: {leaf}" for leaf in _leaves(known)]) from error
    return spools


def _import_admin() -> None:
    """Load what HTTP needs, a third of all imports."""
    import trispool.admin  # noqa: F401


def _spool_document(status: SpoolStatus) -> dict[str, object]:
    from trispool.admin.documents import spool_document

    return spool_document(status)


async def _serve_http(
    config: Config,
    control: Control,
    requests: HttpCounts,
    tokens: Stored,
    listening: HttpListeners,
    stop: trio.Event,
    *,
    task_status: trio.TaskStatus[list[str]],
) -> None:
    from trispool.admin import AdminSettings, ServerLimits, accounts_of, allowed_hosts, create_app, serve_admin

    http = config.http
    accounts = accounts_of(tokens)
    token = accounts.operator
    if token is not None and token.created:
        # Not through the log, which is kept and read by others.
        print(f"The operator's token, shown this once and kept in {token.path}: {token.token}", flush=True)
    app = create_app(
        control,
        accounts=accounts,
        settings=AdminSettings(
            max_body=http.max_body,
            max_bodies=MAX_BODIES * http.max_body,
            hosts=allowed_hosts(http.bind, http.hosts),
        ),
    )
    networks = [ip_network(network) for network in http.allow_networks]
    async with trio.open_nursery() as following:
        following.start_soon(accounts.run_accounts)
        await serve_admin(
            app,
            listening,
            stop=stop,
            grace=HTTP_GRACE_SECONDS,
            limits=ServerLimits(networks=networks or None),
            counts=requests,
            task_status=task_status,
        )
        following.cancel_scope.cancel()


async def _start_faces(
    config: Config,
    control: Control,
    reports: Reports,
    spools: Sequence[LiveSpool],
    nursery: trio.Nursery,
) -> list[str]:
    for spool in spools:
        nursery.start_soon(spool.find)
    sockets: list[str] = []
    room = Room(max((settings.max_body for settings in config.listen), default=0))
    for settings in config.listen:
        enqueue = functools.partial(control.enqueue, default_spool=settings.spool)
        listener: Listener = await nursery.start(functools.partial(serve_listener, settings, enqueue, room))
        reports.add_listener(listener)
        sockets += listener.addresses
    return sockets


async def _wait_for_stop(signals: AsyncIterator[int], spools: Sequence[LiveSpool]) -> None:
    async for number in signals:
        if number != signal.SIGHUP:
            _log.info("stopping", signal=signal.Signals(number).name)
            return
        _log.info("reloading")
        for spool in spools:
            spool.reload()


async def _drain(signals: AsyncIterator[int], spools: Sequence[LiveSpool], grace_seconds: float) -> None:
    """Give running tasks their grace, or until a second signal."""
    deadline = trio.current_time() + grace_seconds
    async with trio.open_nursery() as hurrying:
        hurrying.start_soon(_cancel_on_stop, signals, hurrying.cancel_scope)
        async with trio.open_nursery() as draining:
            for spool in spools:
                draining.start_soon(spool.drain, deadline)
        hurrying.cancel_scope.cancel()


async def _cancel_on_stop(signals: AsyncIterator[int], scope: trio.CancelScope) -> None:
    one_stop_until = trio.current_time() + ONE_STOP_SECONDS
    async for number in signals:
        if number != signal.SIGHUP and trio.current_time() > one_stop_until:
            _log.warning("stopping_at_once", signal=signal.Signals(number).name)
            scope.cancel()


def _raise_descriptor_limit() -> None:
    # The soft limit of 1,024 is for programs that use select(2); connections and workers need more.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _leaves(group: BaseExceptionGroup[E]) -> list[E]:
    leaves: list[E] = []
    for error in group.exceptions:
        leaves += _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return leaves
