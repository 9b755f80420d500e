"""Watching the service: figures, the audit log, health and metrics."""

from __future__ import annotations

from typing import TYPE_CHECKING

from quart import Response

from trispool.admin.auth import Role
from trispool.admin.documents import audit_document
from trispool.admin.exchange import answer, paging, read_query
from trispool.admin.models import AuditListing, Nothing
from trispool.admin.problems import Problem
from trispool.admin.routes import Route

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trispool.control import Control, Health

__all__ = ["WatchViews"]


class WatchViews:
    """The views.

    Args:
        control: The service.
    """

    def __init__(self, control: Control) -> None:
        self._control = control

    def routes(self) -> Sequence[Route]:
        """Their addresses below the API."""
        return (
            Route("stats", "GET", "/stats", self.stats, Role.VIEW),
            Route("audit", "GET", "/audit", self.audit, Role.VIEW),
        )

    def probes(self) -> Sequence[Route]:
        """The addresses where other programs expect them."""
        return (
            Route("healthz", "GET", "/healthz", self.healthz, None),
            Route("readyz", "GET", "/readyz", self.readyz, None),
            Route("metrics", "GET", "/metrics", self.metrics, Role.VIEW),
        )

    async def stats(self) -> Response:
        """Counts, rates and times."""
        read_query(Nothing)
        return answer(await self._control.stats())

    async def audit(self) -> Response:
        """What operators have changed."""
        asked = read_query(AuditListing)
        with paging(asked.cursor):
            page = await self._control.audit(
                actor=asked.actor, action=asked.action, target=asked.target, limit=asked.limit, cursor=asked.cursor
            )
        return answer(audit_document(page))

    async def healthz(self) -> Response:
        """Whether every part of the service does its work."""
        return _health(self._control.health())

    async def readyz(self) -> Response:
        """Whether tasks that come now are kept and run."""
        return _health(self._control.readiness())

    async def metrics(self) -> Response:
        """Prometheus' text format."""
        return Response(await self._control.metrics(), content_type="text/plain; version=0.0.4; charset=utf-8")


def _health(health: Health) -> Response:
    problems = list(health.problems)
    if not health.ok:
        raise Problem(503, "; ".join(problems), ok=False, problems=problems)
    return answer({"ok": True, "problems": problems})
