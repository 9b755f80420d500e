"""What every request must pass before a view sees it: the right host, no foreign web page, a token that permits it.

1. `Host` is one of ours if only this machine reaches us (421 otherwise; see `settings.allowed_hosts`).
2. A changing request that a browser sends comes from a page of this very server (403). The token already keeps others
   out, as no browser adds an `Authorization` header by itself; this also holds for a page that got hold of a token.
3. Everything but the public endpoints needs a token (401), an unknown address too, and the token's role must permit
   the endpoint (403). An endpoint that no table names needs `operate`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from quart import Quart, Response, g, request

from trispool.admin.auth import Role, Tokens, bearer_token
from trispool.admin.problems import Problem
from trispool.admin.settings import host_of
from trispool.operating import Actor

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

__all__ = ["install_guard"]

_HEADERS = {
    "Cache-Control": "no-store",  # answers hold what a token protects
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'; sandbox",  # vars and bodies are hostile
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


def install_guard(
    app: Quart, *, tokens: Tokens, roles: Mapping[str, Role | None], hosts: Collection[str] | None
) -> None:
    """Check every request of `app`.

    Args:
        app: The application.
        tokens: Those that are accepted.
        roles: Endpoint to the role it needs; None: public.
        hosts: Acceptable host names, or None for any.
    """

    async def check() -> None:
        _check_host(request.headers.get("Host", ""), hosts)
        if request.method not in _SAFE_METHODS:
            _check_origin()
        needed = roles.get(request.endpoint or "", Role.OPERATE)
        if needed is not None:
            # A missing route or method has no endpoint: known tokens get 404 and 405, others are not told.
            _check_token(tokens, needed if request.endpoint else None)

    async def add_headers(response: Response) -> Response:
        for name, value in _HEADERS.items():
            response.headers.setdefault(name, value)
        return response

    app.before_request(check)
    app.after_request(add_headers)


def _check_host(authority: str, hosts: Collection[str] | None) -> None:
    if hosts is not None and host_of(authority) not in hosts:
        raise Problem(
            421,
            f"This server is reached as one of {', '.join(sorted(hosts))}, not as {authority!r}. "
            "A proxy in front of it has to send one of these as the Host header.",
        )


def _check_origin() -> None:
    """Browsers send at least one of these with every changing request; other clients send neither."""
    site = request.headers.get("Sec-Fetch-Site")
    origin = request.headers.get("Origin")
    if site not in (None, "same-origin", "none"):
        raise Problem(403, f"A web page of another site may not change anything here (Sec-Fetch-Site: {site}).")
    # The scheme is not compared: a proxy that ends TLS makes it differ. "null" has no authority and never matches.
    if origin is not None and _authority(origin) != request.headers.get("Host", "").lower():
        raise Problem(403, f"A web page of another origin may not change anything here (Origin: {origin}).")


def _authority(origin: str) -> str | None:
    try:
        return urlsplit(origin).netloc.lower() or None
    except ValueError:
        return None


def _check_token(tokens: Tokens, needed: Role | None) -> None:
    token = bearer_token(request.headers.get("Authorization"))
    if token is None:
        raise Problem(
            401,
            "A token is needed: Authorization: Bearer <the content of the file token in the state directory>.",
            headers={"WWW-Authenticate": 'Bearer realm="trispool"'},
        )
    role = tokens.role_of(token)
    if role is None:
        raise Problem(
            401,
            "This token is not known here.",
            headers={"WWW-Authenticate": 'Bearer realm="trispool", error="invalid_token"'},
        )
    # Views ask `exchange.actor` for it.
    client = request.scope["client"]
    g.actor = Actor("operator", role.value, client[0] if client else "unix")
    if needed is not None and not role.permits(needed):
        raise Problem(
            403,
            f"This token has the role {role.value}; this request needs {needed.value}.",
            headers={
                "WWW-Authenticate": f'Bearer realm="trispool", error="insufficient_scope", scope="{needed.value}"'
            },
        )
