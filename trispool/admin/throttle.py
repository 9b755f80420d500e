"""Guessing is slowed down by address; who has been let in before is let in again. Pure: told the time.

An address may be wrong `BURST` times, then once in `REFILL_SECONDS`. While it may not, the right token among many
guesses is refused too, so that it is not found out: but for those that came from there before and those that nobody can
guess (`tokenfile.is_generated`), or one program that guesses would lock out all others behind the same proxy.

Nothing grows without end: of too many addresses, those that have been quiet longest are forgotten.
"""

from __future__ import annotations

import functools
import time
from collections import OrderedDict
from ipaddress import IPv6Address, ip_address
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Throttle"]

BURST: Final = 10
"""Wrong tokens in a row: a few windows and scripts with a token that has been replaced."""

REFILL_SECONDS: Final = 10.0
"""8,640 guesses a day and address, of 2**256."""

MAX_ADDRESSES: Final = 10_000
MAX_KNOWN: Final = 10_000


class Throttle:
    """See the module.

    Args:
        clock: Seconds, of a clock that is never set.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        # Of each address when all its wrong tokens are forgiven; the one that was wrong longest ago is first.
        self._forgiven_at: OrderedDict[str, float] = OrderedDict()
        self._known: OrderedDict[tuple[str, bytes], None] = OrderedDict()

    def wait_seconds(self, address: str) -> float:
        """How long this address has to wait before it may send a token that it has not sent before; 0: it may."""
        forgiven_at = self._forgiven_at.get(_network_of(address), 0.0)
        return max(0.0, forgiven_at - self._clock() - (BURST - 1) * REFILL_SECONDS)

    def was_wrong(self, address: str) -> None:
        """A token from there was not one of ours."""
        network, now = _network_of(address), self._clock()
        self._forgiven_at[network] = max(self._forgiven_at.get(network, 0.0), now) + REFILL_SECONDS
        self._forgiven_at.move_to_end(network)
        if len(self._forgiven_at) > MAX_ADDRESSES:
            self._forgiven_at.popitem(last=False)

    def was_right(self, address: str, digest: bytes) -> None:
        """This token came from there and was let in."""
        known = _network_of(address), digest
        self._known[known] = None
        self._known.move_to_end(known)
        if len(self._known) > MAX_KNOWN:
            self._known.popitem(last=False)

    def knows(self, address: str, digest: bytes) -> bool:
        """Whether this token came from there before and was let in."""
        return (_network_of(address), digest) in self._known


@functools.lru_cache(maxsize=1024)  # every request asks
def _network_of(address: str) -> str:
    """What one guesser has: an IPv4 address, or as a rule 2**64 IPv6 addresses."""
    try:
        parsed = ip_address(address)
    except ValueError:
        return address  # a Unix socket
    if not isinstance(parsed, IPv6Address):
        return address
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(IPv6Address(int(parsed) >> 64 << 64))
