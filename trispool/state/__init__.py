"""What belongs to the service and to no spool: which idempotency keys were used, and the audit log.

It lies in `<state_dir>/state.db` (`trispool.statefile`). Several services may share one: a key is then the same key at
all of them.
"""

from __future__ import annotations

import functools
import os
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import structlog
import trio

from trispool.errors import ConfigError
from trispool.state.audit import Audit
from trispool.state.keylocks import KeyLocks
from trispool.state.once import Once
from trispool.state.writer import StateWriter
from trispool.statefile import StateFile
from trispool.staterows import prune_action, prune_audit, prune_keys

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

__all__ = ["Audit", "Once", "State", "open_state"]

PRUNE_SECONDS: Final = 600.0
"""How often old rows are looked for."""

KEEP_KEYS_SECONDS: Final = 86400.0
"""A day: longer than anybody tries again."""

KEEP_AUDIT_SECONDS: Final = 365 * 86400.0

KEEP_AUDIT_ROWS: Final = 1_000_000
"""Some 300 MB."""

KEEP_LOGINS: Final = 100_000
"""And as many logouts: any token makes them, and they must not crowd out what operators did."""

_log = structlog.get_logger()


class State:
    """See the module. Made by `open_state`.

    Attributes:
        once: Idempotency keys.
        audit: The audit log.
    """

    def __init__(self, writer: StateWriter, locks: KeyLocks, clock: Callable[[], float]) -> None:
        self.once = Once(writer, locks, clock, KEEP_KEYS_SECONDS)
        self.audit = Audit(writer, clock)
        self._writer = writer
        self._clock = clock

    @property
    def problem(self) -> str | None:
        """Why nothing can be remembered now, or None."""
        return self._writer.problem

    async def run_pruning(self) -> None:
        """Delete what is old, now and then, until cancelled."""
        while True:
            await self.prune()
            await trio.sleep(PRUNE_SECONDS)

    async def prune(self) -> None:
        """Delete what is old."""
        now = self._clock()
        keys = functools.partial(prune_keys, before=now - KEEP_KEYS_SECONDS)
        logins = [
            functools.partial(prune_action, action=action, max_rows=KEEP_LOGINS) for action in ("login", "logout")
        ]
        rows = functools.partial(prune_audit, before=now - KEEP_AUDIT_SECONDS, max_rows=KEEP_AUDIT_ROWS)
        try:
            for some in (keys, *logins, rows):
                while await self._writer.write(some):
                    pass
        except OSError as error:
            await trio.lowlevel.checkpoint_if_cancelled()  # with the writer: it has only been quicker
            _log.error("state_not_pruned", error=str(error))


@asynccontextmanager
async def open_state(
    state_dir: str | os.PathLike[str], *, clock: Callable[[], float] = time.time
) -> AsyncIterator[State]:
    """The state of a service, while it is open; what is under way at the end is written still.

    Args:
        state_dir: The directory; made if it is missing.
        clock: Unix seconds.

    Raises:
        ConfigError: It cannot be used.
    """
    folder = os.fspath(state_dir)
    file = StateFile(f"{folder}/state.db")
    try:
        aside = await trio.to_thread.run_sync(file.open)
        locks = await trio.to_thread.run_sync(KeyLocks, f"{folder}/state.lock")
    except OSError as error:
        file.close()
        raise ConfigError([f"state_dir = {folder!r}: {error}"]) from error
    if aside is not None:
        _log.error("state_damaged", path=file.path, set_aside=aside)
    try:
        async with trio.open_nursery() as nursery:
            writer = StateWriter(file)
            await nursery.start(writer.run_writer)
            state = State(writer, locks, clock)
            nursery.start_soon(state.run_pruning)
            try:
                yield state
            finally:
                nursery.cancel_scope.cancel()
    finally:
        locks.close()
        file.close()
