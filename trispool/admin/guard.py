"""What every request must pass before a view sees it: the right host, no foreign web page, somebody who may do that.

1. `Host` is one of ours, if it is known which these are (421 otherwise; see `settings.allowed_hosts`).
2. Who sends it is known by a bearer token, or by the cookie of a session (401 otherwise; an unknown address, too). An
   `Authorization` header goes before a cookie, also if it is of no use.
3. A changing request that a browser sends comes from a page of this very server (403). `Sec-Fetch-Site` decides; where
   a browser does not send it, `Origin` must be the `Host`. Other clients send neither, which is fine with a token: no
   page can have a browser add that. A cookie is added by the browser itself, so there one of them has to say so.
4. The role permits the endpoint (403). Every endpoint has to be declared; one that is not stops the application from
   being made.

Most strangers bring neither token nor cookie. The server asks a `Gate` about that as soon as it has the headers of a
request, and answers with the same 401 without the application, whose work is most of what a request costs.

`HEAD` and `OPTIONS` need what the endpoint needs. Headers that override the method are not looked at by anybody.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, TypeAlias
from urllib.parse import urlsplit

from quart import Quart, Response, g, request
from werkzeug.exceptions import HTTPException
from werkzeug.routing import RoutingException

from trispool.admin.auth import Role, bearer_token
from trispool.admin.problems import Problem
from trispool.admin.session import COOKIE, address, set_cookie
from trispool.admin.settings import host_of

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from werkzeug.routing import Map

    from trispool.admin.auth import Accounts
    from trispool.admin.session import Session
    from trispool.tokenfile import Token

__all__ = ["GATE", "Gate", "Needs", "Stranger", "install_guard", "is_stranger"]

Needs: TypeAlias = Role | Literal["known"] | None
"""What an endpoint needs: a role; `known`: any token or session; None: nothing, it is public."""

_HEADERS: Final = {
    "Cache-Control": "no-store",  # answers hold what a token protects
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'; sandbox",  # vars and bodies are hostile
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
"""Of every answer whose view does not say otherwise."""

GATE: Final = "trispool.gate"
"""Where among an application's extensions the server finds its gate."""

_STRANGE: Final = (
    "A token is needed: Authorization: Bearer <the content of the file token in the state directory, or a token "
    "made by `trispool token create`>."
)
_CHALLENGE: Final = 'Bearer realm="trispool"'

_SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})


def is_stranger(headers: Mapping[bytes, bytes]) -> bool:
    """Whether a request with these headers, by their names in lower case, says nothing about who sends it."""
    return b"authorization" not in headers and COOKIE.encode() not in headers.get(b"cookie", b"")


@dataclass(frozen=True, slots=True)
class Stranger:
    """A request of which it is known without looking further that nobody knows who sends it.

    Attributes:
        route: The rule that it fits, or None.
    """

    route: str | None

    status = 401
    detail = _STRANGE
    headers = _HEADERS | {"WWW-Authenticate": _CHALLENGE}


class Gate:
    """Knows strangers by their headers.

    Args:
        addresses: All of them.
        roles: What each endpoint needs.
        hosts: Acceptable host names, or None for any.
    """

    def __init__(self, addresses: Map, roles: Mapping[str, Needs], hosts: Collection[str] | None) -> None:
        self._addresses = addresses.bind("")
        self._roles = roles
        self._hosts = hosts

    def stranger(self, method: str, path: str, headers: Mapping[bytes, bytes]) -> Stranger | None:
        """Whether a request is to be refused; None: the application has to look at it."""
        if not is_stranger(headers):
            return None
        if self._hosts is not None and host_of(headers.get(b"host", b"").decode("latin-1")) not in self._hosts:
            return None
        try:
            rule, _ = self._addresses.match(path, method, return_rule=True)
        except (HTTPException, RoutingException):
            return Stranger(None)
        return None if self._roles[rule.endpoint] is None else Stranger(rule.rule)


def install_guard(
    app: Quart, *, accounts: Accounts, roles: Mapping[str, Needs], hosts: Collection[str] | None = None
) -> None:
    """Check every request of `app`, after all of its routes have been added.

    A view finds the sender as `g.actor` (an `Actor`), `g.token` and `g.session` (None for a bearer token); all three
    are None at public endpoints. An answer that goes on for long asks `accounts.is_accepted` now and then.

    Args:
        app: The application.
        accounts: Who is let in.
        roles: What each endpoint needs.
        hosts: Acceptable host names, or None for any.

    Raises:
        LookupError: An endpoint is not among `roles`, or is one for web sockets, which nobody guards.
    """
    for rule in app.url_map.iter_rules():
        if rule.endpoint not in roles or rule.websocket:
            raise LookupError(f"{rule.rule}: it is not declared what {rule.endpoint} needs")
    app.extensions[GATE] = Gate(app.url_map, roles, hosts)

    async def check() -> None:
        _check_host(request.headers.get("Host", ""), hosts)
        g.actor = g.token = g.session = None
        # An unknown address or method has no endpoint: those who are known get 404 and 405, others are not told.
        needed = roles[request.endpoint] if request.endpoint else "known"
        if needed is not None:
            g.token, g.session = _identify(accounts)
            g.actor = accounts.actor(g.token, address())
        if request.method not in _SAFE_METHODS:
            _check_origin(by_cookie=g.session is not None)
        if isinstance(needed, Role):
            _check_role(g.token.role, needed)

    async def finish(response: Response) -> Response:
        for name, value in _HEADERS.items():
            response.headers.setdefault(name, value)
        session: Session | None = g.get("session")
        renewed = accounts.renew_session(session, g.token) if session is not None else None
        if renewed is not None:
            set_cookie(response, renewed[1], renewed[0], accounts.now())
        return response

    app.before_request(check)
    app.after_request(finish)


def _check_host(authority: str, hosts: Collection[str] | None) -> None:
    if hosts is not None and host_of(authority) not in hosts:
        raise Problem(
            421,
            f"This server is reached as one of {', '.join(sorted(hosts))}, not as {authority[:300]!r}. "
            "Further names, such as that by which a proxy is reached, are set by http.hosts in its configuration.",
        )


def _identify(accounts: Accounts) -> tuple[Token, Session | None]:
    """Who sends the request.

    Raises:
        Problem: It is not known.
    """
    given = request.headers.getlist("Authorization")
    if given:
        token = bearer_token(given[0])
        if token and len(given) == 1:  # of two, a proxy may have looked at the other
            return accounts.enter(token, address()), None
    elif (cookie := request.cookies.get(COOKIE)) is not None:
        entered = accounts.enter_session(cookie)
        if entered is None:
            raise _unknown("This session is over: log in again.")
        return entered[1], entered[0]
    raise _unknown(_STRANGE)


def _unknown(detail: str) -> Problem:
    return Problem(401, detail, headers={"WWW-Authenticate": _CHALLENGE})


def _check_origin(*, by_cookie: bool) -> None:
    site = request.headers.get("Sec-Fetch-Site")
    origin = request.headers.get("Origin")
    if site is not None:
        # "none" is a person, not a page; but a person who acts by a cookie does so by one of our pages.
        if site == "same-origin" or (site == "none" and not by_cookie):
            return
        raise Problem(403, f"A web page of another site may not change anything here (Sec-Fetch-Site: {site[:60]}).")
    if origin is not None:
        # The scheme is not compared: a proxy that ends TLS makes it differ. "null" has no authority and never matches.
        if _authority(origin) == request.headers.get("Host", "").lower():
            return
        raise Problem(403, f"A web page of another origin may not change anything here (Origin: {origin[:300]}).")
    if by_cookie:
        raise Problem(
            403,
            "A change by a browser's session needs Sec-Fetch-Site or Origin to say that a page of this server asks for "
            "it. Programs use a token: Authorization: Bearer TOKEN.",
        )


def _authority(origin: str) -> str | None:
    try:
        return urlsplit(origin).netloc.lower() or None
    except ValueError:
        return None


def _check_role(role: Role, needed: Role) -> None:
    if not role.permits(needed):
        raise Problem(
            403,
            f"This token has the role {role.value}; this request needs {needed.value}.",
            headers={
                "WWW-Authenticate": f'Bearer realm="trispool", error="insufficient_scope", scope="{needed.value}"'
            },
        )
