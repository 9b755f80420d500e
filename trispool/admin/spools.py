"""Spools and their worker processes: what they are, and the settings that can be changed while they run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trispool.admin.auth import Role
from trispool.admin.documents import spool_document, worker_document
from trispool.admin.exchange import actor, answer, read_json, read_nothing, read_optional_json, read_query
from trispool.admin.models import Nothing, Restart, SpoolSettings
from trispool.admin.routes import Route

if TYPE_CHECKING:
    from collections.abc import Sequence

    from quart import Response

    from trispool.control import Control

__all__ = ["SpoolViews"]


class SpoolViews:
    """The views.

    Args:
        control: The service.
    """

    def __init__(self, control: Control) -> None:
        self._control = control

    def routes(self) -> Sequence[Route]:
        """Their addresses."""
        return (
            Route("list_spools", "GET", "/spools", self.list, Role.VIEW),
            Route("show_spool", "GET", "/spools/<name>", self.show, Role.VIEW),
            Route("change_spool", "PATCH", "/spools/<name>", self.change, Role.OPERATE),
            Route("scan_spool", "POST", "/spools/<name>/scan", self.scan, Role.OPERATE),
            Route("list_workers", "GET", "/workers", self.workers, Role.VIEW),
            Route("restart_worker", "POST", "/workers/<int(max=4194304):pid>/restart", self.restart, Role.OPERATE),
        )

    async def list(self) -> Response:
        """All spools."""
        read_query(Nothing)
        return answer({"spools": [spool_document(status) for status in self._control.spools()]})

    async def show(self, name: str) -> Response:
        """One spool."""
        read_query(Nothing)
        return answer(spool_document(self._control.spool(name)))

    async def change(self, name: str) -> Response:
        """Change settings of a spool, all or none of those that are given."""
        asked = await read_json(SpoolSettings)
        return answer(spool_document(await self._control.change_spool(name, asked.change(), actor())))

    async def scan(self, name: str) -> Response:
        """Look through a spool now."""
        await read_nothing()
        return answer(spool_document(await self._control.scan(name, actor())))

    async def workers(self) -> Response:
        """The workers of all spools."""
        read_query(Nothing)
        return answer(
            {
                "workers": [
                    worker_document(worker, spool.name) for spool in self._control.spools() for worker in spool.workers
                ]
            }
        )

    async def restart(self, pid: int) -> Response:
        """Replace a worker by a new one; tells what the old one was doing."""
        asked = await read_optional_json(Restart)
        return answer(worker_document(await self._control.restart_worker(pid, actor(), kill=asked.kill)))
