"""The audit log: who changed what, append-only."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import structlog

from trispool.errors import SpoolUnavailable, TaskRefused
from trispool.operating import AuditPage
from trispool.staterows import add_audit, audit_values, find_audit

if TYPE_CHECKING:
    from collections.abc import Callable

    from trispool.operating import Actor
    from trispool.state.writer import StateWriter

__all__ = ["Audit"]

_log = structlog.get_logger()


class Audit:
    """See the module. Part of `trispool.state.State`.

    Args:
        writer: Writes and reads.
        clock: Unix seconds.
    """

    def __init__(self, writer: StateWriter, clock: Callable[[], float]) -> None:
        self._writer = writer
        self._clock = clock

    async def note(
        self,
        actor: Actor,
        action: str,
        target: str,
        *,
        before: object = None,
        after: object = None,
        outcome: str = "ok",
    ) -> None:
        """Put a change into the audit log; it is on disk when this returns.

        If the disk takes nothing now, it is written later, and said in the service's log at once: the change has been
        made, and an operator must be able to make room on a full disk.

        Args:
            actor: Who.
            action: What, as `task.cancel`.
            target: On what.
            before: What it was, a JSON value.
            after: What it is now, a JSON value.
            outcome: `ok`, or why it was refused or failed.
        """
        values = audit_values(self._clock(), actor, action, target, before=before, after=after, outcome=outcome)
        if not await self._writer.tell_and_wait(functools.partial(add_audit, values=values)):
            _log.error(
                "audit_not_written",
                actor=actor.name,
                address=actor.address,
                action=action,
                target=target,
                before=before,
                after=after,
                outcome=outcome,
            )

    async def page(
        self,
        *,
        actor: str | None = None,
        action: str | None = None,
        target: str | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> AuditPage:
        """Rows, the newest first; see `Control.audit`. A page may be short though a cursor follows.

        Raises:
            TaskRefused: `cursor` is not one of ours.
            SpoolUnavailable: They cannot be read now.
        """
        if cursor is not None and not (cursor.isascii() and cursor.isdecimal() and len(cursor) < 19):
            raise TaskRefused(f"cursor={cursor!r:.60}: expected one that a page of the audit log gave")
        question = functools.partial(
            find_audit,
            actor=actor,
            action=action,
            target=target,
            limit=limit,
            below=None if cursor is None else int(cursor),
        )
        try:
            rows, below = await self._writer.read(question)
        except OSError as error:
            raise SpoolUnavailable(f"the audit log cannot be read: {error}") from error
        return AuditPage(rows, None if below is None else str(below))
