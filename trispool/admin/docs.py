"""The OpenAPI document and a page that shows it; public, since they say nothing that the source does not.

The page is three files of our own and asks nobody else for anything. Its addresses and those it asks are relative, so
it works below any path at which a proxy shows us.
"""

from __future__ import annotations

import functools
from importlib.resources import files
from typing import TYPE_CHECKING, Final

import msgspec
import trio
from quart import Response

from trispool.admin.routes import Route

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from quart import Quart

    from trispool.admin.guard import Needs

__all__ = ["DocViews"]

_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)
"""Nothing but the page's own files; what a task holds can neither run nor be sent anywhere."""

_PAGE: Final = {
    "docs": ("/docs", "docs.html", "text/html; charset=utf-8"),
    "docs_script": ("/docs/docs.js", "docs.js", "text/javascript; charset=utf-8"),
    "docs_style": ("/docs/docs.css", "docs.css", "text/css; charset=utf-8"),
}


class DocViews:
    """The views.

    Args:
        app: What is described.
        needs: What each of its endpoints needs.
    """

    def __init__(self, app: Quart, needs: Mapping[str, Needs]) -> None:
        self._app = app
        self._needs = needs
        self._document: bytes | None = None
        self._making = trio.Lock()
        self._limiter = trio.CapacityLimiter(2)

    def routes(self) -> Sequence[Route]:
        """Their addresses."""
        return (
            Route("openapi", "GET", "/openapi.json", self.openapi, None),
            *(
                Route(name, "GET", rule, functools.partial(self.page, file=file, kind=kind), None)
                for name, (rule, file, kind) in _PAGE.items()
            ),
        )

    async def openapi(self) -> Response:
        """The document."""
        async with self._making:
            if self._document is None:
                self._document = await trio.to_thread.run_sync(self._make, limiter=self._limiter)
        return Response(self._document, content_type="application/json", headers={"Cache-Control": "no-cache"})

    def _make(self) -> bytes:
        from trispool.admin.openapi import openapi_document  # takes a while, see there

        return msgspec.json.encode(openapi_document(self._app, self._needs))

    async def page(self, *, file: str, kind: str) -> Response:
        """One of the files of the page."""
        content = await trio.to_thread.run_sync(_read, file, limiter=self._limiter)
        headers = {"Cache-Control": "no-cache", "Content-Security-Policy": _POLICY}
        return Response(content, content_type=kind, headers=headers)


@functools.cache
def _read(name: str) -> bytes:
    return files("trispool.admin").joinpath("static", name).read_bytes()
