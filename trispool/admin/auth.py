"""Who a request comes from: tokens and sessions, as they are at this moment.

Tokens are made and revoked by the command line, which writes files (`trispool.tokenfile`); `run_accounts` follows
these, so that a revoked token, with all its sessions, is out within a second.
"""

from __future__ import annotations

import hmac
import math
import secrets
import time
from typing import TYPE_CHECKING, Final

import structlog
import trio

from trispool.admin.problems import Problem
from trispool.admin.session import Session, name_in, read_cookie, write_cookie
from trispool.admin.throttle import Throttle
from trispool.errors import ConfigError
from trispool.operating import Actor
from trispool.tokenfile import (
    KEY_BYTES,
    OPERATOR,
    Role,
    Stored,
    StoredToken,
    Token,
    TokenFiles,
    digest_of,
    is_generated,
)

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping, Sequence

__all__ = ["Accounts", "Role", "accounts_of", "bearer_token", "load_accounts"]

FOLLOW_SECONDS: Final = 0.5
"""How often to look whether the files have changed: three calls of stat."""

NOTE_SECONDS: Final = 60.0
"""How often to write down which tokens were used."""

USED_SECONDS: Final = 3600.0
"""To the hour is enough to see which tokens nobody needs."""

_NAMES: Final = {Role.OPERATE: OPERATOR, Role.VIEW: "viewer", Role.ENQUEUE: "producer"}

_log = structlog.get_logger()


class Accounts:
    """The tokens that are accepted, and the sessions that were begun with them. Changes only between two awaits.

    Args:
        tokens: The tokens.
        key: Signs sessions.
        files: Where they come from; None: they stay as they are.
        ended: Sessions that were logged out, and when each would have ended, Unix seconds.
        operator: The operator's token as it was read at the start, or None.
        throttle: Slows down guessing.
        clock: Unix seconds.

    Attributes:
        operator: See above; if it has just been made it is to be shown, once.
    """

    def __init__(
        self,
        tokens: Sequence[Token],
        key: bytes,
        *,
        files: TokenFiles | None = None,
        ended: Mapping[str, float] | None = None,
        operator: StoredToken | None = None,
        throttle: Throttle | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.operator = operator
        self._tokens: dict[str, Token] = {token.name: token for token in tokens}
        self._key = key
        self._files = files
        self._ended = dict(ended or {})
        self._throttle = throttle or Throttle()
        self._clock = clock
        self._used: dict[str, float] = {}
        self._noted: dict[str, float] = {}
        self._stamp: object = None
        self._complaint = ""
        self._limiter = trio.CapacityLimiter(1)

    @classmethod
    def of(
        cls, roles: Mapping[str, Role], *, throttle: Throttle | None = None, clock: Callable[[], float] = time.time
    ) -> Accounts:
        """Accounts without files: token to role. Named `operator`, `viewer` and `producer`, further ones `viewer-3`."""
        tokens: list[Token] = []
        for number, (token, role) in enumerate(roles.items()):
            taken = any(other.role is role for other in tokens)
            tokens.append(Token(f"{_NAMES[role]}-{number + 1}" if taken else _NAMES[role], role, digest_of(token)))
        return cls(tokens, secrets.token_bytes(KEY_BYTES), throttle=throttle, clock=clock)

    def now(self) -> float:
        """Unix seconds."""
        return self._clock()

    def enter(self, token: str, address: str) -> Token:
        """What a token that came from an address is.

        Raises:
            Problem: It is not known or has expired (401), or there were too many wrong ones from there (429).
        """
        found = self._find(token)
        if found is None or not (is_generated(token) or self._throttle.knows(address, found.digest)):
            wait = self._throttle.wait_seconds(address)
            if wait > 0:
                raise Problem(
                    429,
                    "There were too many wrong tokens from this address.",
                    headers={"Retry-After": str(math.ceil(wait))},
                )
        if found is None:
            self._throttle.was_wrong(address)
            _log.warning("token_refused", address=address, reason="not known")
            raise _refusal("This token is not known here.")
        if found.is_expired(self.now()):
            raise _refusal(f"This token, {found.name}, has expired.")
        self._throttle.was_right(address, found.digest)
        self._used[found.name] = self.now()
        return found

    def _find(self, token: str) -> Token | None:
        """Compares with all of them, in a time that depends on their number only."""
        found = None
        given = digest_of(token)
        for known in self._tokens.values():
            if hmac.compare_digest(given, known.digest):
                found = known
        return found

    def actor(self, token: Token, address: str) -> Actor:
        """Who acts by means of a token."""
        return Actor(token.name, token.role.value, address)

    def is_accepted(self, token: Token, session: Session | None = None) -> bool:
        """Whether who was let in would still be: for answers that go on for long, and so keep their session alive."""
        now = self.now()
        if session is not None and (session.id in self._ended or now >= session.ends_at):
            return False
        return self._tokens.get(token.name) == token and not token.is_expired(now)

    # Sessions

    def begin_session(self, token: Token, *, is_secure: bool) -> tuple[Session, str]:
        """A new session, and the content of its cookie."""
        session = Session.begin(token.name, self.now(), is_secure=is_secure)
        return session, write_cookie(session, self._key, token.digest)

    def enter_session(self, cookie: str) -> tuple[Session, Token] | None:
        """The session of a cookie and its token, or None if it is over or was none."""
        now, token = self.now(), self._tokens.get(name_in(cookie))
        if token is None or token.is_expired(now):
            return None
        session = read_cookie(cookie, self._key, token.digest)
        if session is None or now >= session.expires_at or session.id in self._ended:
            return None
        self._used[token.name] = now
        return session, token

    def renew_session(self, session: Session, token: Token) -> tuple[Session, str] | None:
        """A session that is used, with a later end, and the content of its cookie; None if it is too soon for that."""
        renewed = session.renewed(self.now())
        return (renewed, write_cookie(renewed, self._key, token.digest)) if renewed else None

    async def end_session(self, session: Session) -> None:
        """Accept a session no more, whoever has its cookie.

        Raises:
            OSError: That cannot be remembered beyond a restart.
            ConfigError: So.
        """
        now, files = self.now(), self._files
        self._ended = {name: until for name, until in self._ended.items() if until > now}
        self._ended[session.id] = session.ends_at
        if files is not None:
            await trio.to_thread.run_sync(
                lambda: files.end(session.id, session.ends_at, now=now), limiter=self._limiter
            )

    # Following the files

    async def run_accounts(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Follow the files, and write down which tokens are used, until cancelled."""
        task_status.started()
        if self._files is None:
            return
        noted_at = trio.current_time()
        while True:
            await trio.sleep(FOLLOW_SECONDS)
            await self.follow()
            if trio.current_time() >= noted_at + NOTE_SECONDS:
                noted_at = trio.current_time()
                await self.note_used()

    async def follow(self) -> None:
        """Take what the files say, if they have changed. What cannot be read changes nothing, and is said once."""
        files, before = self._files, self._stamp
        if files is None:
            return

        def read() -> tuple[object, list[Token], dict[str, float]] | None:
            stamp = files.stamp()
            return None if stamp == before else (stamp, files.tokens(), files.ended())

        try:
            read_now = await trio.to_thread.run_sync(read, limiter=self._limiter)
        except (OSError, ConfigError) as error:
            self._complain(str(error))
            return
        self._complain("")
        if read_now is None:
            return
        self._stamp, read_tokens, ended = read_now
        tokens = {token.name: token for token in read_tokens}
        if tokens != self._tokens:
            changed = sorted(
                name for name in tokens.keys() | self._tokens.keys() if tokens.get(name) != self._tokens.get(name)
            )
            self._tokens = tokens
            _log.info("tokens_changed", changed=changed)
        self._ended = ended | self._ended

    async def note_used(self) -> None:
        """Write down which tokens were used, if it is another hour than was written before."""
        files = self._files
        used = {name: at // USED_SECONDS * USED_SECONDS for name, at in self._used.items()}
        if files is None or used == self._noted:
            return
        try:
            await trio.to_thread.run_sync(files.note_used, used, limiter=self._limiter)
        except (OSError, ConfigError) as error:
            self._complain(str(error))
        else:
            self._noted = used

    def _complain(self, what: str) -> None:
        if what and what != self._complaint:
            _log.error("tokens_not_followed", error=what)
        self._complaint = what


def load_accounts(state_dir: str | os.PathLike[str]) -> Accounts:
    """The accounts of a state directory; the operator's token and the key for sessions are made if there are none.

    Blocking.

    Raises:
        ConfigError: They cannot be read or made.
    """
    return accounts_of(TokenFiles(state_dir).load())


def accounts_of(stored: Stored) -> Accounts:
    """The accounts that have been read."""
    return Accounts(stored.tokens, stored.session_key, files=stored.files, ended=stored.ended, operator=stored.operator)


def bearer_token(authorization: str | None) -> str | None:
    """The token of an `Authorization` header, or None if the header is missing or of another scheme."""
    scheme, _, token = (authorization or "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None


def _refusal(detail: str) -> Problem:
    return Problem(401, detail, headers={"WWW-Authenticate": 'Bearer realm="trispool", error="invalid_token"'})
