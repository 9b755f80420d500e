"""What the requests of all uwsgi listeners may take together: memory, and the disk's time. Knows no Trio.

Who is slow takes memory: of incomplete requests that are too many, the oldest are refused. Who is fast with large ones
takes the disk's time: while much is being kept, large requests are read no further, which their clients feel, and small
ones still are. However many small ones that are, one large request at a time goes on.

What has come by sockets and is not kept has in memory, at the most: `HELD_BYTES`, or four of the largest bodies; an
eighth of it more, which Python keeps ready for bytes that grow; and `TRIM_BYTES` or so that have not been given back.
2,000 slow clients with bodies of 200 KB, half of them sent, took 350 MB, which came back when they had gone.
"""

from __future__ import annotations

from typing import Final, Protocol

from trispool import memory

__all__ = ["Member", "Room"]

HELD_BYTES: Final = 256 * 1024 * 1024
"""Of requests that are incomplete or not yet kept, or four of the largest if that is more. A guess."""

UNDER_WAY_BYTES: Final = 4 * 1024 * 1024
"""Of whole requests that are not yet kept. A small one waits for the commit before its own, and for its own: 1.2 s on a
disk that writes 20 MB/s, and every task three times (log, database, file). A fast disk has this much in 12 ms, beside
which it costs little that there are more commits."""

TRIM_BYTES: Final = 32 * 1024 * 1024
"""When so much more or less is held than was, memory that is not used is given back."""


class Member(Protocol):
    """The connections of one listener."""

    @property
    def held(self) -> int:
        """Bytes of their incomplete requests."""

    def refuse_oldest(self) -> bool:
        """Refuse the incomplete request that has waited for its bytes for longest; False if there is none."""

    def wake(self) -> None:
        """Read large requests again."""


class Room:
    """See the module. It changes only between two awaits.

    Args:
        largest_body: The largest `max_body` of the listeners, bytes.

    Attributes:
        held: Bytes of incomplete requests.
        under_way: Bytes of whole requests that are not yet kept.
    """

    def __init__(self, largest_body: int) -> None:
        self._large_under_way = 0
        self._most = max(HELD_BYTES, 4 * largest_body)
        self._members: list[Member] = []
        self._trimmed_at = 0
        self.held = 0
        self.under_way = 0

    @property
    def is_busy(self) -> bool:
        """Whether so much is under way that little is read of each connection."""
        return self.under_way >= UNDER_WAY_BYTES

    @property
    def lets_large_wait(self) -> bool:
        """Whether large requests are read no further. Small ones alone keep none from its turn."""
        return self._large_under_way > 0 and self.is_busy

    def enter(self, member: Member) -> None:
        """One more listener."""
        self._members.append(member)

    def leave(self, member: Member) -> None:
        """One less, which holds nothing."""
        self._members.remove(member)

    def hold(self, more: int) -> None:
        """So many bytes more of incomplete requests are held; negative: less."""
        self.held += more
        if abs(self.held - self._trimmed_at) > TRIM_BYTES:
            self._trimmed_at = self.held
            memory.trim()

    def free(self) -> None:
        """Refuse incomplete requests until no more is held than may be. The listener that holds most begins."""
        while self.held + self.under_way > self._most:
            members = sorted(self._members, key=lambda member: member.held, reverse=True)
            if not any(member.refuse_oldest() for member in members):
                return

    def take(self, size: int, large: int) -> None:
        """So many bytes are whole, and to be kept; so many large requests are among them."""
        self.under_way += size
        self._large_under_way += large

    def give_back(self, size: int, large: int) -> None:
        """What was taken is kept, or will not be."""
        let_large_wait = self.lets_large_wait
        self.under_way -= size
        self._large_under_way -= large
        if let_large_wait and not self.lets_large_wait:
            for member in self._members:
                member.wake()
