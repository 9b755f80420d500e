"""Where the next page of a list of tasks begins, as text that a client hands back; pure.

A client may hand back anything. So a cursor holds nothing but a place in a list, which says what is left out of an
answer and never what is in it, and is looked at closely.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from typing import Final, Literal, NamedTuple

from trispool.errors import TaskRefused

__all__ = ["Cursor", "Key"]

Key = tuple[float, int, int, str, str]
"""What the unfinished tasks of a list are sorted by: due time (0 unless they are sorted by it), the order of enqueuing
(microseconds and counter), spool, id."""

_LONGEST: Final = 100_000
"""Characters; a cursor names all spools of the service."""

_LARGEST: Final = 10**20
"""No part of an order is larger; see `trispool.spoolfile.order_of`."""


_LAST_ROW: Final = 2**63 - 1


class Cursor(NamedTuple):
    """A place in a list.

    Attributes:
        sort: How the list is sorted.
        key: Behind the unfinished task of this key; None: behind all of them.
        rows: If `key` is None, behind these rows of the history of each spool.
    """

    sort: Literal["enqueued", "due"]
    key: Key | None
    rows: dict[str, int]

    def encode(self) -> str:
        """The text for the client."""
        text = json.dumps(self, separators=(",", ":"))
        return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")

    @classmethod
    def decode(cls, text: str, sort: Literal["enqueued", "due"]) -> Cursor:
        """The place that a text stands for.

        Args:
            text: As the client sent it.
            sort: How the list is sorted that it is for.

        Raises:
            TaskRefused: It is not one of ours, or of a list that is sorted otherwise.
        """
        try:
            if len(text) > _LONGEST:
                raise ValueError
            known, key, rows = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
            cursor = cls(
                known,
                None if key is None else _key(*key),
                {name: _number(row, _LAST_ROW) for name, row in rows.items()},
            )
        except (binascii.Error, ValueError, TypeError, AttributeError, OverflowError, RecursionError):
            raise TaskRefused("cursor: not one that this service has given") from None
        if known != sort:
            raise TaskRefused("cursor: not one of a list that is sorted like this")
        return cursor


def _key(due: object, microseconds: object, counter: object, spool: object, task_id: object) -> Key:
    if isinstance(due, int | float) and math.isfinite(due) and isinstance(spool, str) and isinstance(task_id, str):
        return due, _number(microseconds, _LARGEST), _number(counter, _LARGEST), spool, task_id
    raise ValueError


def _number(value: object, largest: int) -> int:
    if isinstance(value, int) and abs(value) <= largest:
        return value
    raise ValueError
