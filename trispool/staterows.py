"""The rows of `state.db`: idempotency keys and the audit log. Each function is a part of a transaction. Blocking."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from trispool.operating import AuditRow

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Sequence

    from trispool.operating import Actor

__all__ = [
    "SCHEMA",
    "Reservation",
    "add_audit",
    "audit_values",
    "confirm",
    "find_audit",
    "prune_action",
    "prune_audit",
    "prune_keys",
    "reserve",
]

LOOKED_AT: Final = 20_000
"""Rows of the audit log that are looked at for one page, some 10 ms."""

PRUNE_ROWS: Final = 5_000
"""Rows deleted in one transaction, some 20 ms: others wait no longer."""

MAX_SEQ: Final = 2**63 - 1

SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS audit (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    at REAL NOT NULL,
    actor TEXT NOT NULL,
    role TEXT NOT NULL,
    address TEXT NOT NULL,
    action TEXT NOT NULL,
    target TEXT NOT NULL,
    before TEXT NOT NULL,         -- JSON
    after TEXT NOT NULL,          -- JSON
    outcome TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS audit_actor ON audit (actor);
CREATE INDEX IF NOT EXISTS audit_action ON audit (action);
CREATE INDEX IF NOT EXISTS audit_target ON audit (target);
CREATE TABLE IF NOT EXISTS once (
    owner TEXT NOT NULL,
    key TEXT NOT NULL,
    fingerprint BLOB NOT NULL,
    created_at REAL NOT NULL,
    first TEXT NOT NULL,
    count INTEGER NOT NULL,
    spools TEXT NOT NULL,         -- JSON
    missing TEXT,                 -- JSON
    PRIMARY KEY (owner, key)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS once_created_at ON once (created_at);
"""


@dataclass(frozen=True, slots=True)
class Reservation:
    """What is remembered of an idempotency key.

    Attributes:
        fingerprint: Of the request.
        created_at: Unix seconds.
        first: The id of the first of its tasks; the others follow (`spoolfile.following_name`).
        count: How many tasks.
        spools: Where each of them is meant to go: one name for all of them, or one for each; None: nowhere.
        missing: The numbers of those that were not kept; None: that is not known.
    """

    fingerprint: bytes
    created_at: float
    first: str
    count: int
    spools: str | Sequence[str | None]
    missing: Sequence[int] | None = None


# Idempotency keys


def reserve(
    connection: sqlite3.Connection, owner: str, key: str, new: Reservation, oldest: float
) -> tuple[Reservation, bool]:
    """Remember a key.

    Args:
        connection: In a transaction.
        owner: Whose key it is.
        key: The key.
        new: What to remember of it.
        oldest: What was remembered before this time, Unix seconds, counts as forgotten.

    Returns:
        What is remembered, and whether that is `new`.
    """
    row = connection.execute(
        "SELECT fingerprint, created_at, first, count, spools, missing FROM once"
        " WHERE owner = ? AND key = ? AND created_at >= ?",
        (owner, key, oldest),
    ).fetchone()
    if row is not None:
        fingerprint, created_at, first, count, spools, missing = row
        known = Reservation(
            fingerprint, created_at, first, count, json.loads(spools), None if missing is None else json.loads(missing)
        )
        return known, False
    connection.execute(
        "INSERT OR REPLACE INTO once VALUES (?, ?, ?, ?, ?, ?, ?, NULL)",
        (owner, key, new.fingerprint, new.created_at, new.first, new.count, json.dumps(new.spools)),
    )
    return new, True


def confirm(connection: sqlite3.Connection, owner: str, key: str, known: Reservation) -> None:
    """Remember what became of the tasks of a key: `known.spools` and `known.missing`."""
    connection.execute(
        "UPDATE once SET spools = ?, missing = ? WHERE owner = ? AND key = ? AND first = ?",
        (json.dumps(known.spools), json.dumps(known.missing), owner, key, known.first),
    )


def prune_keys(connection: sqlite3.Connection, before: float) -> bool:
    """Forget some of the keys of before a time, Unix seconds; whether there may be more."""
    cursor = connection.execute(
        "DELETE FROM once WHERE (owner, key) IN (SELECT owner, key FROM once WHERE created_at < ? LIMIT ?)",
        (before, PRUNE_ROWS),
    )
    return cursor.rowcount == PRUNE_ROWS


# The audit log


def audit_values(
    at: float,
    actor: Actor,
    action: str,
    target: str,
    *,
    before: object = None,
    after: object = None,
    outcome: str = "ok",
) -> tuple[object, ...]:
    """A row for `add_audit`; see `AuditRow`.

    Raises:
        TypeError: `before` or `after` is no JSON.
    """
    who = (_storable(actor.name), _storable(actor.role), _storable(actor.address))
    changed = (json.dumps(before), json.dumps(after))
    return (at, *who, _storable(action), _storable(target), *changed, _storable(outcome))


def add_audit(connection: sqlite3.Connection, values: tuple[object, ...]) -> None:
    """Add a row."""
    connection.execute(
        "INSERT INTO audit (at, actor, role, address, action, target, before, after, outcome)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        values,
    )


def find_audit(
    connection: sqlite3.Connection,
    *,
    actor: str | None,
    action: str | None,
    target: str | None,
    limit: int,
    below: int | None,
) -> tuple[list[AuditRow], int | None]:
    """Rows, the newest first.

    Args:
        connection: Any.
        actor: Only of this actor.
        action: Only of this kind.
        target: Only about this.
        limit: How many at most; fewer if `LOOKED_AT` have been looked at.
        below: Only those with smaller numbers.

    Returns:
        The rows, and below which number to continue, or None if that was all.
    """
    wanted = {"target": target, "actor": actor, "action": action}
    given = [(f"{column} = ?", _storable(value)) for column, value in wanted.items() if value is not None]
    # The rows of one index are looked at; what else is asked for is looked for among them.
    (condition, value), others = (given[0], given[1:]) if given else (("seq > ?", 0), [])
    looked_at = (
        "SELECT seq, at, actor, role, address, action, target, before, after, outcome FROM audit"
        f" WHERE {condition} AND seq < ? ORDER BY seq DESC LIMIT ?"
    )
    bounds = (value, MAX_SEQ if below is None else below, LOOKED_AT)
    also = "".join(f" AND {other}" for other, _ in others)
    rows = connection.execute(
        f"SELECT * FROM ({looked_at}) WHERE true{also} LIMIT ?", (*bounds, *(value for _, value in others), limit)
    ).fetchall()
    found = [
        AuditRow(seq, at, who, role, address, what, about, json.loads(before), json.loads(after), outcome)
        for seq, at, who, role, address, what, about, before, after, outcome in rows
    ]
    if len(found) == limit:
        return found, found[-1].seq
    # Fewer: either nothing is left, or as many as may be have been looked at.
    count, last = connection.execute(f"SELECT count(*), min(seq) FROM ({looked_at})", bounds).fetchone()
    return found, last if count == LOOKED_AT else None


def prune_audit(connection: sqlite3.Connection, before: float, max_rows: int) -> bool:
    """Delete some rows that are older than a time, Unix seconds, or too many; whether there may be more."""
    # Counted, not reckoned from `seq`: `prune_action` leaves gaps.
    (count,) = connection.execute("SELECT count(*) FROM audit").fetchone()
    cursor = connection.execute(
        "DELETE FROM audit WHERE seq IN (SELECT seq FROM audit ORDER BY seq LIMIT ?)"
        " AND (at < ? OR seq IN (SELECT seq FROM audit ORDER BY seq LIMIT ?))",
        (PRUNE_ROWS, before, max(0, min(count - max_rows, PRUNE_ROWS))),
    )
    return cursor.rowcount == PRUNE_ROWS


def prune_action(connection: sqlite3.Connection, action: str, max_rows: int) -> bool:
    """Delete some of the rows of an action that come after the newest `max_rows`; whether there may be more."""
    cursor = connection.execute(
        "DELETE FROM audit WHERE seq IN (SELECT seq FROM audit WHERE action = ? ORDER BY seq DESC LIMIT ? OFFSET ?)",
        (action, PRUNE_ROWS, max_rows),
    )
    return cursor.rowcount == PRUNE_ROWS


def _storable(text: str) -> str:
    """Text without lone surrogates, which SQLite does not take."""
    return text.encode("utf-8", "backslashreplace").decode()
