"""What was done to a file, and the bytes that a disk then has of it; see `tests.faults.disk`, rules 2 and 3."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator
    from random import Random

__all__ = ["Change", "Cut", "Timed", "Written", "put_together"]

SECTOR: Final = 512


@dataclass(slots=True)
class Change:
    """Something that was done to a file or a directory.

    Attributes:
        begin: When it began, as `Call` counts.
        end: When it had been done.
        safe: From when on it stays.
    """

    begin: int
    end: int
    safe: float = field(default=inf, init=False)


@dataclass(slots=True)
class Written(Change):
    """Bytes at a place."""

    offset: int
    data: bytes


@dataclass(slots=True)
class Cut(Change):
    """A file has this length."""

    size: int


@dataclass(slots=True)
class Timed(Change):
    """A file has this time, nanoseconds."""

    mtime: int


def put_together(
    changes: list[Change], cut: float, random: Random, share: float, *, torn: bool
) -> tuple[bytes, int | None]:
    """The bytes of a file, and its time, or None if that is not known.

    Args:
        changes: Those that are on the disk.
        cut: What was not safe before this moment may be torn.
        random: Chooses.
        share: Of the sectors of what is torn, those that are there.
        torn: Whether anything is.
    """
    content = bytearray()
    mtime: int | None = None
    grown = 0
    garbage = random.random() < 0.5
    for change in changes:
        match change:
            case Written(offset=offset, data=data):
                if not torn or change.safe < cut:
                    _put(content, offset, data)
                    continue
                grown = max(grown, offset + len(data))
                for start, piece in _sectors(offset, data):
                    if random.random() < share:
                        _put(content, start, piece, random if garbage else None)
            case Cut(size=size):
                grown = min(grown, size)
                del content[size:]
                content += bytes(size - len(content))
            case Timed(mtime=mtime):
                pass
    if torn and grown > len(content) and random.random() < 0.5:
        _put(content, grown, b"", random if garbage else None)
    return bytes(content), mtime


def _put(content: bytearray, offset: int, data: bytes, filler: Random | None = None) -> None:
    if (hole := offset - len(content)) > 0:
        content += filler.randbytes(hole) if filler else bytes(hole)
    content[offset : offset + len(data)] = data


def _sectors(offset: int, data: bytes) -> Iterator[tuple[int, bytes]]:
    start = offset
    while start < offset + len(data):
        end = min((start // SECTOR + 1) * SECTOR, offset + len(data))
        yield start, data[start - offset : end - offset]
        start = end
