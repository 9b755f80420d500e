"""An async handler for the acceptance tests, to be imported beside those of `handlers`."""

from __future__ import annotations

import trio
from handlers import tell

from trispool import handler


@handler
async def sleep(n: str) -> None:
    """Until it is cancelled."""
    tell(event="sleep", n=n)
    try:
        await trio.sleep_forever()
    finally:
        tell(event="sleep was cancelled", n=n)
