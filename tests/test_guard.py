"""The guard: every route with every kind of sender, and each of its checks by itself.

The views are replaced by one that only says that it was reached: what they do is tested elsewhere.
"""

from __future__ import annotations

import itertools
import re
from typing import TYPE_CHECKING, Any, Final

import pytest
from quart import Response, g
from quart_trio import QuartTrio
from werkzeug.datastructures import Headers

from tests.fake_control import FakeControl
from trispool.admin import AdminSettings, allowed_hosts, create_app
from trispool.admin.auth import Accounts
from trispool.admin.guard import Needs, install_guard
from trispool.admin.problems import answer_errors
from trispool.admin.session import COOKIE
from trispool.admin.throttle import BURST, Throttle
from trispool.tokenfile import Role, Token, TokenFiles, digest_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from quart import Quart
    from quart.typing import TestClientProtocol

    from trispool.operating import Actor

NOW: Final = 1_700_000_000.0
REACHED: Final = 299
SAME_ORIGIN: Final = {"Sec-Fetch-Site": "same-origin"}

V1: Final = "/api/v1"
ROUTES: Final[Mapping[tuple[str, str], Needs]] = {
    ("GET", "/"): None,
    ("GET", "/healthz"): None,
    ("GET", "/readyz"): None,
    ("GET", "/metrics"): Role.VIEW,
    ("POST", f"{V1}/session"): None,
    ("GET", f"{V1}/session"): "known",
    ("DELETE", f"{V1}/session"): "known",
    ("POST", f"{V1}/spools/<name>/tasks"): Role.ENQUEUE,
    ("GET", f"{V1}/spools"): Role.VIEW,
    ("GET", f"{V1}/spools/<name>"): Role.VIEW,
    ("PATCH", f"{V1}/spools/<name>"): Role.OPERATE,
    ("POST", f"{V1}/spools/<name>/scan"): Role.OPERATE,
    ("GET", f"{V1}/tasks"): Role.VIEW,
    ("GET", f"{V1}/tasks/<task_id>"): Role.VIEW,
    ("GET", f"{V1}/tasks/<task_id>/body"): Role.VIEW,
    **{
        ("POST", f"{V1}/tasks/<task_id>/{action}"): Role.OPERATE
        for action in ("cancel", "hold", "release", "run", "retry", "reschedule")
    },
    ("POST", f"{V1}/tasks/bulk"): Role.OPERATE,
    ("GET", f"{V1}/tasks/bulk/<bulk_id>"): Role.VIEW,
    ("DELETE", f"{V1}/tasks/bulk/<bulk_id>"): Role.OPERATE,
    ("GET", f"{V1}/workers"): Role.VIEW,
    ("POST", f"{V1}/workers/<pid>/restart"): Role.OPERATE,
    ("GET", f"{V1}/stats"): Role.VIEW,
    ("GET", f"{V1}/events"): Role.VIEW,
    ("GET", f"{V1}/audit"): Role.VIEW,
}
"""What each route needs. Whoever adds a route adds a line: that is the moment to think of who may use it."""


class Crowd:
    """All kinds of senders."""

    def __init__(self) -> None:
        self.now = NOW
        tokens = [Token(role.value, role, digest_of(f"token-of-{role.value}")) for role in Role]
        tokens.append(Token("expired", Role.OPERATE, digest_of("token-of-expired"), NOW - 9, NOW - 1))
        tokens.append(Token("revoked", Role.OPERATE, digest_of("token-of-revoked")))
        ages = itertools.count(0.0, 1e9)  # all wrong tokens are forgiven in the next moment
        self.accounts = Accounts(tokens, b"k" * 32, throttle=Throttle(lambda: next(ages)), clock=lambda: self.now)
        self.headers: dict[str, dict[str, str]] = {
            "nobody": {},
            "another scheme": {"Authorization": "Basic b3BlcmF0ZTp4"},
            "an empty token": {"Authorization": "Bearer "},
            "a wrong session": {"Cookie": f"{COOKIE}=operate.1.9999999999.x.-.AAAA"} | SAME_ORIGIN,
        }
        self.roles: dict[str, Role | None] = dict.fromkeys(self.headers)
        for role in Role:
            self.headers[f"{role} by token"] = {"Authorization": f"Bearer token-of-{role}"}
            self.headers[f"{role} by session"] = {"Cookie": f"{COOKIE}={self.cookie(role.value)}"} | SAME_ORIGIN
            self.roles |= {f"{role} by token": role, f"{role} by session": role}
        outside = {
            "an expired token": {"Authorization": "Bearer token-of-expired"},
            "a session of an expired token": {"Cookie": f"{COOKIE}={self.cookie('expired')}"} | SAME_ORIGIN,
            "a revoked token": {"Authorization": "Bearer token-of-revoked"},
            "a session of a revoked token": {"Cookie": f"{COOKIE}={self.cookie('revoked')}"} | SAME_ORIGIN,
            "a wrong token beside a good session": {
                "Authorization": "Basic b3BlcmF0ZTp4",
                **self.headers["operate by session"],
            },
        }
        self.headers |= outside
        self.roles |= dict.fromkeys(outside)
        del self.accounts._tokens["revoked"]

    def cookie(self, name: str) -> str:
        return self.accounts.begin_session(self.accounts._tokens[name], is_secure=False)[1]


@pytest.fixture(scope="module")
def crowd() -> Crowd:
    return Crowd()


@pytest.fixture(scope="module")
def app(crowd: Crowd) -> Quart:
    """The whole application, with views that say that they were reached."""
    app = create_app(FakeControl(), accounts=crowd.accounts)

    async def reached(**variables: object) -> Response:
        return Response(b"", status=REACHED)

    for endpoint in app.view_functions:
        app.view_functions[endpoint] = reached
    return app


def test_each_route_is_known_and_needs_what_this_table_says(app: Quart) -> None:
    there = {
        (method, re.sub(r"<[^<>]*:(\w+)>", r"<\1>", rule.rule))
        for rule in app.url_map.iter_rules()
        for method in rule.methods or ()
        if method not in ("HEAD", "OPTIONS")
    }
    # The documents that describe the API, and what a dashboard is made of, are the same for everybody.
    public = {route for route in there if route[0] == "GET" and not route[1].startswith(V1)}
    assert there - public == ROUTES.keys() - public
    assert {method for method, _ in there} <= {"GET", "POST", "PATCH", "DELETE"}


def test_nothing_that_changes_anything_is_asked_for_by_get() -> None:
    assert {needs for (method, _), needs in ROUTES.items() if method == "GET"} <= {None, "known", Role.VIEW}
    assert {needs for (method, _), needs in ROUTES.items() if method != "GET"} <= {
        None,
        "known",
        Role.ENQUEUE,
        Role.OPERATE,
    }


def is_enough(role: Role | None, needs: Needs) -> bool:
    if needs is None:
        return True
    if role is None:
        return False
    return needs == "known" or role is Role.OPERATE or role is needs


@pytest.mark.parametrize("who", list(Crowd().headers))
async def test_every_route_is_open_to_those_whom_it_is_for_and_to_nobody_else(
    app: Quart, crowd: Crowd, who: str
) -> None:
    client = app.test_client()
    role = crowd.roles[who]
    for (method, rule), needs in ROUTES.items():
        path = re.sub("<[^>]*>", "1", rule)
        for sent in (method, "HEAD") if method == "GET" else (method,):
            response = await client.open(path, method=sent, headers=crowd.headers[who])
            expected = REACHED if is_enough(role, needs) else 401 if role is None else 403
            assert response.status_code == expected, (who, sent, rule)


@pytest.mark.parametrize("method", ["OPTIONS", "TRACE", "CONNECT", "PUT", "PURGE", "POST"])
async def test_no_other_method_leads_around_the_guard(app: Quart, crowd: Crowd, method: str) -> None:
    client = app.test_client()
    for _, rule in ROUTES:
        path = re.sub("<[^>]*>", "1", rule)
        if method == "POST" and ("POST", rule) in ROUTES:
            continue
        response = await client.open(path, method=method)
        public = ROUTES.get(("GET", rule), ROUTES.get(("POST", rule))) is None or rule == f"{V1}/session"
        assert response.status_code != REACHED
        if not (public and method == "OPTIONS"):
            assert response.status_code == 401, (method, rule)
        response = await client.open(path, method=method, headers=crowd.headers["operate by token"])
        assert response.status_code in (200, 405), (method, rule)


@pytest.mark.parametrize(
    "headers",
    [
        {"X-HTTP-Method-Override": "DELETE"},
        {"X-HTTP-Method": "DELETE"},
        {"X-Method-Override": "DELETE"},
        {"X-Original-URL": "/healthz"},
        {"X-Rewrite-URL": "/healthz"},
        {"X-Forwarded-For": "127.0.0.1"},
        {"X-Forwarded-Prefix": "/healthz"},
        {"Forwarded": "for=127.0.0.1"},
    ],
)
async def test_no_header_leads_around_the_guard(app: Quart, crowd: Crowd, headers: dict[str, str]) -> None:
    client = app.test_client()
    response = await client.get(f"{V1}/tasks?_method=DELETE", headers=headers)
    assert response.status_code == 401
    response = await client.post(f"{V1}/tasks/1/cancel", headers=headers | crowd.headers["view by token"])
    assert response.status_code == 403


@pytest.mark.parametrize(
    "path",
    [
        "/nothing",
        f"{V1}/nothing",
        f"{V1}/",
        "/healthz/../api/v1/tasks",
        "/healthz/..%2fapi/v1/tasks",
        f"{V1}/tasks/",
        "/API/V1/tasks",
        f"{V1}/spools/x%2Fy",
        f"{V1}/workers/x/restart",
    ],
)
async def test_whether_there_is_something_at_an_address_is_told_to_those_who_are_known(
    app: Quart, crowd: Crowd, path: str
) -> None:
    client = app.test_client()
    assert (await client.get(path)).status_code == 401
    assert (await client.get(path, headers=crowd.headers["view by token"])).status_code in (403, 404, 405)


async def test_a_route_that_does_not_say_what_it_needs_stops_the_application_from_being_made() -> None:
    app = QuartTrio("undeclared", static_folder=None)

    async def view() -> str:
        return ""

    app.add_url_rule("/forgotten", "forgotten", view)
    with pytest.raises(LookupError, match="/forgotten"):
        install_guard(app, accounts=Accounts.of({}), roles={})
    app.add_websocket("/socket", "socket", view)
    with pytest.raises(LookupError, match="/socket"):
        install_guard(app, accounts=Accounts.of({}), roles={"forgotten": None, "socket": None})


# A small application, for each check by itself


def small_app(accounts: Accounts, hosts: frozenset[str] | None = None) -> TestClientProtocol:
    app = QuartTrio("small", static_folder=None)

    async def who() -> dict[str, Any]:
        actor: Actor | None = g.actor
        return {"actor": actor and [actor.name, actor.role, actor.address], "session": g.session is not None}

    async def page() -> Response:
        return Response(b"", headers={"Content-Security-Policy": "default-src 'self'"})

    for endpoint, method, view in (
        ("who", "GET", who),
        ("change", "POST", who),
        ("public", "GET", who),
        ("login", "POST", who),
        ("page", "GET", page),
    ):
        app.add_url_rule(f"/{endpoint}", endpoint, view, methods=[method])
    roles: dict[str, Needs] = {
        "who": Role.VIEW,
        "change": Role.OPERATE,
        "public": None,
        "login": None,
        "page": None,
    }
    install_guard(app, accounts=accounts, roles=roles, hosts=hosts)
    answer_errors(app, AdminSettings())
    return app.test_client()


async def test_views_are_told_who_asks(crowd: Crowd) -> None:
    client = small_app(crowd.accounts)
    for who, session in (("view by token", False), ("view by session", True)):
        response = await client.get("/who", headers=crowd.headers[who])
        assert await response.get_json() == {"actor": ["view", "view", "unix"], "session": session}
    response = await client.get("/public", headers=crowd.headers["view by token"])
    assert await response.get_json() == {"actor": None, "session": False}
    response = await client.get(
        "/who", headers=crowd.headers["view by token"], scope_base={"client": ("10.1.2.3", 4711)}
    )
    assert (await response.get_json())["actor"][2] == "10.1.2.3"


FOREIGN: Final = [
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
    {"Sec-Fetch-Site": ""},
    {"Sec-Fetch-Site": "cross-site", "Origin": "http://localhost"},
    {"Origin": "http://evil.example"},
    {"Origin": "http://localhost:1"},
    {"Origin": "http://localhost.evil.example"},
    {"Origin": "http://localhost@evil.example"},
    {"Origin": "null"},
    {"Origin": ""},
    {"Origin": "http://["},
]
OWN: Final = [
    {"Sec-Fetch-Site": "same-origin"},
    # A proxy that changes the Host does not matter to a browser that says where it is.
    {"Sec-Fetch-Site": "same-origin", "Origin": "https://tasks.example.com"},
    {"Origin": "http://localhost"},
    {"Origin": "https://LOCALHOST"},
]
NO_PAGE: Final = [{}, {"Sec-Fetch-Site": "none"}]


def without_site(headers: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name != "Sec-Fetch-Site"}


@pytest.mark.parametrize(
    ("headers", "by_token", "by_session"),
    [
        *((headers, 403, 403) for headers in FOREIGN),
        *((headers, 200, 200) for headers in OWN),
        *((headers, 200, 403) for headers in NO_PAGE),
    ],
)
async def test_a_change_comes_from_our_own_pages_or_from_no_page(
    crowd: Crowd, headers: dict[str, str], by_token: int, by_session: int
) -> None:
    client = small_app(crowd.accounts)
    token, session = crowd.headers["operate by token"], without_site(crowd.headers["operate by session"])
    assert (await client.post("/change", headers=token | headers)).status_code == by_token
    assert (await client.post("/change", headers=session | headers)).status_code == by_session
    # A login is one, too; there is no cookie yet.
    assert (await client.post("/login", headers=headers)).status_code == by_token
    assert (await client.open("/login", method="post", headers=headers)).status_code == by_token
    # Looking is not: the answer cannot be read by others.
    assert (await client.get("/who", headers=session | headers)).status_code == 200


async def test_no_other_origin_is_told_that_it_may(crowd: Crowd) -> None:
    client = small_app(crowd.accounts)
    headers = {"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"}
    for method, path in itertools.product(["OPTIONS", "GET", "POST"], ["/change", "/who", "/public"]):
        response = await client.open(path, method=method, headers=headers | crowd.headers["operate by token"])
        assert not [name for name, _ in response.headers.items() if name.lower().startswith("access-control")]


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LOCALHOST:8080", 200),
        ("127.0.0.1:1", 200),
        ("[::1]:8080", 200),
        ("tasks.example.com", 200),
        ("evil.example", 421),
        ("localhost.evil.example", 421),
        ("localhost@evil.example", 421),
        ("127.0.0.1.nip.example", 421),
        ("", 421),
        ("localhost,evil.example", 421),
    ],
)
async def test_requests_for_other_hosts_are_refused_before_all_else(crowd: Crowd, host: str, status: int) -> None:
    client = small_app(crowd.accounts, allowed_hosts("127.0.0.1:8080", ["tasks.example.com"]))
    assert (await client.get("/public", headers={"Host": host})).status_code == status
    headers = crowd.headers["view by token"] | {"Host": host}
    response = await client.get("/who", headers=headers)
    assert response.status_code == status
    if status == 421:
        assert "http.hosts" in (await response.get_json())["detail"]


def test_hosts_that_are_configured_are_added_to_those_of_this_machine() -> None:
    own = {"localhost", "127.0.0.1", "::1"}
    assert allowed_hosts("127.0.0.1:8080") == own
    assert allowed_hosts("0.0.0.0:443") is None
    assert allowed_hosts("unix:/run/admin.sock") is None
    assert allowed_hosts("unix:/run/admin.sock", ["a.example"]) == own | {"a.example"}
    assert allowed_hosts("10.0.0.1:443", ["a.example"]) == own | {"10.0.0.1", "a.example"}
    assert allowed_hosts(":443", ["a.example"]) == own | {"a.example"}


async def test_answers_are_not_kept_not_framed_and_run_nothing(crowd: Crowd) -> None:
    client = small_app(crowd.accounts)
    for path in ("/public", "/who", "/nothing"):
        headers = (await client.get(path)).headers
        assert headers["Cache-Control"] == "no-store"
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"


async def test_a_page_may_have_a_policy_of_its_own(crowd: Crowd) -> None:
    headers = (await small_app(crowd.accounts).get("/page")).headers
    assert headers.get_all("Content-Security-Policy") == ["default-src 'self'"]
    assert headers["X-Content-Type-Options"] == "nosniff"


async def test_guesses_are_answered_with_429_and_known_ones_go_on() -> None:
    client = small_app(Accounts.of({"token-of-alice": Role.VIEW}))
    alice = {"Authorization": "Bearer token-of-alice"}
    assert (await client.get("/who", headers=alice)).status_code == 200
    for number in range(BURST):
        response = await client.get("/who", headers={"Authorization": f"Bearer guess-{number}"})
        assert response.status_code == 401
        assert response.headers["WWW-Authenticate"].startswith("Bearer")
    response = await client.get("/who", headers={"Authorization": "Bearer guess"})
    assert response.status_code == 429
    assert 0 < int(response.headers["Retry-After"]) <= 10
    assert (await client.get("/who", headers=alice)).status_code == 200
    # Public addresses are not concerned, nor those who send no token.
    assert (await client.get("/public")).status_code == 200
    assert (await client.get("/who")).status_code == 401


async def test_of_two_tokens_none_is_taken() -> None:
    client = small_app(Accounts.of({"token-of-alice": Role.VIEW}))
    headers = Headers([("Authorization", "Bearer token-of-alice"), ("Authorization", "Bearer token-of-bob")])
    assert (await client.get("/who", headers=headers)).status_code == 401


async def test_who_guesses_locks_nobody_out_whose_token_cannot_be_guessed(tmp_path: Path) -> None:
    generated = TokenFiles(tmp_path).create("anna", Role.VIEW, now=0.0)
    chosen = "a-word-that-somebody-chose"
    client = small_app(Accounts.of({generated: Role.VIEW, chosen: Role.OPERATE}))
    for number in range(BURST):
        await client.get("/who", headers={"Authorization": f"Bearer guess-{number}"})
    statuses = [
        (await client.get("/who", headers={"Authorization": f"Bearer {token}"})).status_code
        for token in (chosen, generated, generated[:-1] + "-")
    ]
    assert statuses == [429, 200, 429]
