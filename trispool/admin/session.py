"""Browser sessions: whoever sends a token once gets a signed cookie in its place.

| request | needs | answer |
| --- | --- | --- |
| `POST /api/v1/session` | `{"token": "…"}` | 201, the cookie, `{"name", "role", "expires_at"}` |
| `GET /api/v1/session` | any token or session | the same of who asks |
| `DELETE /api/v1/session` | any token or session | 204; the session is over, also for who has copied its cookie |

The cookie is `HttpOnly` (no script can read it), `SameSite=Strict` (no other site can make use of it), `Secure` if the
browser speaks TLS to us or to a proxy before us, and has no path, so that it is valid below the path at which a proxy
shows us. Its content:

    <name of the token>.<begun>.<expires>.<id>.<s or ->.<HMAC-SHA256 of all this and of the token's digest>

so it is worth nothing as soon as that token is gone, also if another one has its name. It expires `IDLE_SECONDS` after
it was last used, and `LONGEST_SECONDS` after it was begun.
"""

from __future__ import annotations

import base64
import hmac
import secrets
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import msgspec
from quart import Blueprint, Response, g, request

from trispool.admin.exchange import read_body
from trispool.admin.problems import Problem
from trispool.errors import ConfigError

if TYPE_CHECKING:
    from trispool.admin.auth import Accounts
    from trispool.admin.guard import Needs
    from trispool.control import Control
    from trispool.tokenfile import Token

__all__ = ["COOKIE", "Session", "SessionApi", "name_in", "read_cookie", "set_cookie", "write_cookie"]

COOKIE: Final = "trispool_session"

IDLE_SECONDS: Final = 12 * 3600.0
"""A working day: who comes back the next morning logs in again."""

LONGEST_SECONDS: Final = 7 * 86400.0
"""Otherwise a cookie that was stolen could be kept alive for ever."""

RENEW_SECONDS: Final = 600.0
"""A session that is used gets a new cookie so often at most."""

MAX_LOGIN: Final = 4096
"""Bytes of the body: whoever sends it is not known yet."""

_PURPOSE: Final = "trispool session 1"


@dataclass(frozen=True, slots=True)
class Session:
    """What a cookie says. Times are Unix seconds.

    Attributes:
        name: Of the token it was begun with.
        id: Its own.
        is_secure: Whether the browser sends it over TLS only.
    """

    name: str
    begun_at: float
    expires_at: float
    id: str
    is_secure: bool

    @classmethod
    def begin(cls, name: str, now: float, *, is_secure: bool) -> Session:
        """A new one."""
        return cls(name, now, now + IDLE_SECONDS, secrets.token_urlsafe(12), is_secure)

    @property
    def ends_at(self) -> float:
        """When it is over, however much it is used."""
        return self.begun_at + LONGEST_SECONDS

    def renewed(self, now: float) -> Session | None:
        """The same with a later end, or None if it is too soon for that."""
        expires_at = min(now + IDLE_SECONDS, self.ends_at)
        return replace(self, expires_at=expires_at) if expires_at >= self.expires_at + RENEW_SECONDS else None


def write_cookie(session: Session, key: bytes, digest: bytes) -> str:
    """The content of a session's cookie.

    Args:
        session: The session.
        key: Signs it.
        digest: Of the token it was begun with.
    """
    flag = "s" if session.is_secure else "-"
    text = f"{session.name}.{session.begun_at:.0f}.{session.expires_at:.0f}.{session.id}.{flag}"
    return f"{text}.{_signature(text, key, digest)}"


def name_in(cookie: str) -> str:
    """The name of the token that a cookie claims to come from."""
    return cookie.rsplit(".", 5)[0]


def read_cookie(cookie: str, key: bytes, digest: bytes) -> Session | None:
    """The session of a cookie, or None if it was not signed by us and for this token.

    Args:
        cookie: Its content.
        key: Signs it.
        digest: Of the token that it claims to come from.
    """
    text, _, signature = cookie.rpartition(".")
    if not hmac.compare_digest(_signature(text, key, digest).encode(), signature.encode("utf-8", "surrogateescape")):
        return None
    name, begun, expires, session_id, flag = text.rsplit(".", 4)
    return Session(name, float(begun), float(expires), session_id, flag == "s")


def _signature(text: str, key: bytes, digest: bytes) -> str:
    message = f"{_PURPOSE}\n{digest.hex()}\n{text}".encode("utf-8", "surrogateescape")
    return base64.urlsafe_b64encode(hmac.digest(key, message, "sha256")).decode().rstrip("=")


def set_cookie(response: Response, content: str, session: Session, now: float) -> None:
    """Send a browser its cookie."""
    response.set_cookie(
        COOKIE,
        content,
        max_age=int(session.expires_at - now),
        path=None,
        secure=session.is_secure,
        httponly=True,
        samesite="Strict",
    )


class SessionApi:
    """The views.

    Args:
        control: The service, for its audit log.
        accounts: The tokens and sessions.
    """

    def __init__(self, control: Control, accounts: Accounts) -> None:
        self._control = control
        self._accounts = accounts

    def blueprint(self, prefix: str = "/api/v1") -> Blueprint:
        """The routes."""
        blueprint = Blueprint("session", __name__, url_prefix=prefix)
        for method, view in (("POST", self.log_in), ("GET", self.show), ("DELETE", self.log_out)):
            blueprint.add_url_rule("/session", view.__name__, view, methods=[method])
        return blueprint

    def roles(self) -> dict[str, Needs]:
        """Endpoint to what it needs."""
        return {"session.log_in": None, "session.show": "known", "session.log_out": "known"}

    async def log_in(self) -> Response:
        """Begin a session."""
        token = self._accounts.enter(await _read_token(), address())
        session, cookie = self._accounts.begin_session(token, is_secure=_is_secure())
        await self._control.note(self._accounts.actor(token, address()), "login", token.name)
        response = _answer(token, session.expires_at, 201)
        set_cookie(response, cookie, session, self._accounts.now())
        return response

    async def show(self) -> Response:
        """Who asks."""
        token: Token = g.token
        session: Session | None = g.session
        return _answer(token, session.expires_at if session else token.expires_at, 200)

    async def log_out(self) -> Response:
        """End the session; a bearer token has none, and stays what it was."""
        response = Response(b"", status=204)
        session: Session | None = g.session
        if session is not None:
            try:
                await self._accounts.end_session(session)
            except (OSError, ConfigError) as error:
                raise Problem(503, f"The session could not be ended for good: {error}") from error
            await self._control.note(g.actor, "logout", session.name)
            g.session = None  # it is not to be renewed
            response.delete_cookie(COOKIE, path=None, secure=session.is_secure, httponly=True, samesite="Strict")
        return response


def address() -> str:
    """Where the request comes from; `unix` for a Unix socket."""
    client = request.scope.get("client")
    return str(client[0]) if client else "unix"


def _answer(token: Token, expires_at: float | None, status: int) -> Response:
    document = {"name": token.name, "role": token.role.value, "expires_at": expires_at}
    return Response(msgspec.json.encode(document), status=status, content_type="application/json")


async def _read_token() -> str:
    if request.mimetype != "application/json":
        raise Problem(415, "Expected application/json.")
    try:
        document: Any = msgspec.json.decode(await read_body(MAX_LOGIN))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Problem(400, f"Not JSON: {error}") from None
    match document:
        case {"token": str(token)} if len(document) == 1:
            return token
    raise Problem(
        400,
        'Expected {"token": "…"}, and nothing else.',
        errors=[{"pointer": "/token", "detail": "expected a text"}],
    )


def _is_secure() -> bool:
    """Whether the browser speaks TLS, to us or to a proxy before us: a page says so in the `Origin` that it sends."""
    return request.scheme == "https" or urlsplit(request.headers.get("Origin", "")).scheme == "https"
