"""A directory store with write-behind, on a real database."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

from trispool.ledger import Ledger
from trispool.store.directory import DirectoryStore, open_directory_store

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

PATIENCE = 20.0


@asynccontextmanager
async def opened_behind(
    path: Path, *, fsync: bool = False, accepts: bool = True
) -> AsyncIterator[tuple[DirectoryStore, Ledger]]:
    """The store in the directory, and its ledger, at work."""
    with trio.fail_after(PATIENCE):
        async with open_directory_store(str(path), fsync=fsync) as store:
            ledger = Ledger(f"{store.directory}/.trispool/spool.db")
            await ledger.open(store.rescue)
            try:
                async with trio.open_nursery() as nursery:
                    await nursery.start(ledger.run_ledger)
                    async with store.writing_behind(ledger, accepts=accepts):
                        yield store, ledger
                    nursery.cancel_scope.cancel()
            finally:
                await ledger.aclose()
