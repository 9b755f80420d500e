"""How much of request bodies may be in memory at once, of all requests together.

A body is in memory as soon as it comes, before a view asks for it: so it is asked for its length when the guard has let
the request in, and refused if that is too much for now.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from quart import Quart, g, request

from trispool.admin.problems import Problem

if TYPE_CHECKING:
    from trispool.admin.settings import AdminSettings

__all__ = ["limit_bodies"]

SMALL: Final = 256 * 1024
"""A body of so many bytes is not counted: as many as there may be connections, 1,024, are 256 MiB."""


def limit_bodies(app: Quart, settings: AdminSettings) -> None:
    """Refuse requests of `app` while their bodies would be too much; to be called after `install_guard`."""
    in_memory = 0

    async def reserve() -> None:
        nonlocal in_memory
        length = request.content_length
        if length is None:
            # One of unknown length may become as long as any.
            length = settings.max_body if "Transfer-Encoding" in request.headers else 0
        if length <= SMALL or length > settings.max_body:  # the latter is refused when it is read
            return
        if in_memory and in_memory + length > settings.max_bodies:
            raise Problem(
                503,
                f"The requests under way have as many bytes as may be, {settings.max_bodies}.",
                headers={"Retry-After": "1"},
            )
        in_memory += length
        g.reserved = length

    async def release(_: BaseException | None) -> None:
        nonlocal in_memory
        in_memory -= g.pop("reserved", 0)

    app.before_request(reserve)
    app.teardown_request(release)
