"""Actions on many tasks at once: what they would touch, their start, how far they are, their end."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote

from trispool.admin.auth import Role
from trispool.admin.documents import bulk_document, bulk_page_document, preview_document
from trispool.admin.exchange import actor, answer, paging, read_json, read_nothing, read_query
from trispool.admin.models import BulkListing, BulkOrder
from trispool.admin.routes import Route

if TYPE_CHECKING:
    from collections.abc import Sequence

    from quart import Response

    from trispool.control import Control

__all__ = ["BulkViews"]


class BulkViews:
    """The views.

    Args:
        control: The service.
    """

    def __init__(self, control: Control) -> None:
        self._control = control

    def routes(self) -> Sequence[Route]:
        """Their addresses."""
        return (
            Route("start_bulk", "POST", "/tasks/bulk", self.start, Role.OPERATE),
            Route("show_bulk", "GET", "/tasks/bulk/<bulk_id>", self.show, Role.VIEW),
            Route("stop_bulk", "DELETE", "/tasks/bulk/<bulk_id>", self.stop, Role.OPERATE),
        )

    async def start(self) -> Response:
        """Begin, or only tell which tasks it would be; 202 if it goes on."""
        asked = await read_json(BulkOrder)
        if asked.dry_run:
            return answer(preview_document(await self._control.preview(asked.request())))
        status = await self._control.start_bulk(asked.request(), actor())
        page = self._control.bulk(status.id)
        location = {"Location": f"bulk/{quote(status.id, safe='')}"}
        return answer(bulk_page_document(page), 202 if page.status.state == "running" else 200, location)

    async def show(self, bulk_id: str) -> Response:
        """How far it is, and a part of its results."""
        asked = read_query(BulkListing)
        with paging(asked.cursor):
            page = self._control.bulk(bulk_id, limit=asked.limit, cursor=asked.cursor)
        return answer(bulk_page_document(page))

    async def stop(self, bulk_id: str) -> Response:
        """Do nothing more of it."""
        await read_nothing()
        return answer(bulk_document(await self._control.stop_bulk(bulk_id, actor())))
