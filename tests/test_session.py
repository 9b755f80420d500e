"""Sessions: the cookie by itself, and logging in and out over HTTP."""

from __future__ import annotations

import json
from http.cookies import SimpleCookie
from typing import TYPE_CHECKING, Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fake_control import FakeControl
from trispool.admin import create_app
from trispool.admin.auth import Accounts, load_accounts
from trispool.admin.session import (
    COOKIE,
    IDLE_SECONDS,
    LONGEST_SECONDS,
    RENEW_SECONDS,
    Session,
    name_in,
    read_cookie,
    write_cookie,
)
from trispool.admin.throttle import BURST
from trispool.operating import Actor
from trispool.tokenfile import Role, Token, TokenFiles, digest_of

if TYPE_CHECKING:
    from pathlib import Path

    from quart import Response
    from quart.typing import TestClientProtocol

KEY: Final = b"k" * 32
DIGEST: Final = b"d" * 32
NOW: Final = 1_700_000_000.0
PATH: Final = "/api/v1/session"
TOKEN: Final = "token-of-alice-0123456789"
OWN_PAGE: Final = {"Sec-Fetch-Site": "same-origin"}


# The cookie


@given(
    name=st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}", fullmatch=True),
    begun=st.integers(0, 10**10),
    is_secure=st.booleans(),
)
def test_what_was_written_is_read(name: str, begun: int, is_secure: bool) -> None:
    session = Session.begin(name, float(begun), is_secure=is_secure)
    cookie = write_cookie(session, KEY, DIGEST)
    assert name_in(cookie) == name
    assert read_cookie(cookie, KEY, DIGEST) == session
    assert not set(cookie) & set(' ",;\\')


@given(st.text())
def test_what_we_have_not_written_is_no_session(cookie: str) -> None:
    name_in(cookie)
    assert read_cookie(cookie, KEY, DIGEST) is None


def test_a_cookie_that_was_changed_anywhere_is_no_session() -> None:
    cookie = write_cookie(Session.begin("alice", NOW, is_secure=True), KEY, DIGEST)
    for place in range(len(cookie)):
        for other in "A.0":
            changed = cookie[:place] + other + cookie[place + 1 :]
            assert changed == cookie or read_cookie(changed, KEY, DIGEST) is None
    assert read_cookie(cookie, b"another key", DIGEST) is None
    assert read_cookie(cookie, KEY, b"another token") is None


def test_a_session_is_extended_now_and_then_but_not_for_ever() -> None:
    session = Session.begin("alice", NOW, is_secure=False)
    assert session.expires_at == NOW + IDLE_SECONDS
    assert session.renewed(NOW + RENEW_SECONDS - 1) is None
    renewed = session.renewed(NOW + RENEW_SECONDS)
    assert renewed is not None
    assert renewed.expires_at == session.expires_at + RENEW_SECONDS
    assert (renewed.id, renewed.begun_at) == (session.id, session.begun_at)
    late = Session("alice", NOW, NOW + LONGEST_SECONDS - RENEW_SECONDS, "id", False)
    last = late.renewed(NOW + LONGEST_SECONDS - RENEW_SECONDS - 1)
    assert last is not None
    assert last.expires_at == NOW + LONGEST_SECONDS
    assert last.renewed(NOW + LONGEST_SECONDS - 1) is None


# Over HTTP


class Browser:
    """An application and one client of it; the cookies are kept by hand, as the test wants to see them."""

    def __init__(self, accounts: Accounts | None = None) -> None:
        self.now = NOW
        self.accounts = accounts or Accounts.of(
            {TOKEN: Role.OPERATE, "token-of-bob-0123456789": Role.VIEW}, clock=lambda: self.now
        )
        self.control = FakeControl()
        self.app = create_app(self.control, accounts=self.accounts)
        self.client: TestClientProtocol = self.app.test_client(use_cookies=False)

    async def log_in(self, token: str = TOKEN, **headers: str) -> Response:
        return await self.client.post(
            PATH,
            data=json.dumps({"token": token}),
            headers={"Content-Type": "application/json", **OWN_PAGE, **headers},
        )

    async def cookie(self, token: str = TOKEN) -> str:
        return cookie_of(await self.log_in(token))

    async def status(self, cookie: str, path: str = PATH, method: str = "GET") -> int:
        headers = {"Cookie": f"{COOKIE}={cookie}", **OWN_PAGE}
        return (await self.client.open(path, method=method, headers=headers)).status_code


def morsel_of(response: Response) -> Any:
    (header,) = response.headers.get_all("Set-Cookie")
    return SimpleCookie(header)[COOKIE]


def cookie_of(response: Response) -> str:
    return str(morsel_of(response).value)


async def test_a_token_gives_a_cookie_that_no_script_and_no_other_site_can_use() -> None:
    browser = Browser()
    response = await browser.log_in()
    assert response.status_code == 201
    assert await response.get_json() == {"name": "operator", "role": "operate", "expires_at": NOW + IDLE_SECONDS}
    morsel = morsel_of(response)
    assert morsel["httponly"] is True
    assert morsel["samesite"] == "Strict"
    assert morsel["secure"] == ""
    assert morsel["path"] == ""  # so it is valid below the path of a proxy, too
    assert morsel["domain"] == ""
    assert int(morsel["max-age"]) == IDLE_SECONDS
    assert TOKEN not in morsel.value
    assert await browser.status(morsel.value) == 200
    assert await browser.status(morsel.value, "/api/v1/spools/default/scan", "POST") == 200


@pytest.mark.parametrize("origin", ["https://tasks.example.com", "https://localhost"])
async def test_the_cookie_of_a_browser_that_speaks_tls_is_for_tls_only(origin: str) -> None:
    browser = Browser()
    response = await browser.log_in(Origin=origin)
    assert morsel_of(response)["secure"] is True
    # And stays so when it is renewed, where no Origin is sent.
    browser.now += RENEW_SECONDS
    headers = {"Cookie": f"{COOKIE}={cookie_of(response)}"}
    assert morsel_of(await browser.client.get(PATH, headers=headers))["secure"] is True


async def test_who_is_logged_in_is_told_so() -> None:
    browser = Browser()
    headers = {"Cookie": f"{COOKIE}={await browser.cookie('token-of-bob-0123456789')}"}
    response = await browser.client.get(PATH, headers=headers)
    assert await response.get_json() == {"name": "viewer", "role": "view", "expires_at": NOW + IDLE_SECONDS}
    response = await browser.client.get(PATH, headers={"Authorization": f"Bearer {TOKEN}"})
    assert await response.get_json() == {"name": "operator", "role": "operate", "expires_at": None}
    assert (await browser.client.get(PATH)).status_code == 401


async def test_a_session_that_is_used_goes_on_and_one_that_is_not_ends() -> None:
    browser = Browser()
    cookie = await browser.cookie()
    browser.now += IDLE_SECONDS - 1
    headers = {"Cookie": f"{COOKIE}={cookie}"}
    renewed = cookie_of(await browser.client.get(PATH, headers=headers))
    assert renewed != cookie
    response = await browser.client.get(PATH, headers={"Cookie": f"{COOKIE}={renewed}"})
    assert response.headers.get_all("Set-Cookie") == []
    browser.now += 1
    assert await browser.status(cookie) == 401
    assert await browser.status(renewed) == 200
    browser.now += IDLE_SECONDS
    assert await browser.status(renewed) == 401


async def test_a_session_that_is_used_all_the_time_ends_after_a_week() -> None:
    browser = Browser()
    cookie = await browser.cookie()
    while browser.now < NOW + LONGEST_SECONDS - IDLE_SECONDS:
        browser.now += IDLE_SECONDS / 2
        cookie = cookie_of(await browser.client.get(PATH, headers={"Cookie": f"{COOKIE}={cookie}"}))
    browser.now = NOW + LONGEST_SECONDS - 1
    assert await browser.status(cookie) == 200
    browser.now += 1
    assert await browser.status(cookie) == 401


async def test_logging_out_ends_the_session_for_all_who_have_the_cookie() -> None:
    browser = Browser()
    cookie, other = await browser.cookie(), await browser.cookie()
    browser.now += RENEW_SECONDS
    headers = {"Cookie": f"{COOKIE}={cookie}", **OWN_PAGE}
    response = await browser.client.delete(PATH, headers=headers)
    assert response.status_code == 204
    morsel = morsel_of(response)
    assert (morsel.value, morsel["max-age"], morsel["path"]) == ("", "0", "")
    assert await browser.status(cookie) == 401
    assert await browser.status(other) == 200


async def test_an_answer_that_goes_on_for_long_ends_with_its_session() -> None:
    browser = Browser()
    cookie, other = await browser.cookie(), await browser.cookie()
    entered, still = browser.accounts.enter_session(cookie), browser.accounts.enter_session(other)
    assert entered is not None
    assert still is not None
    assert browser.accounts.is_accepted(entered[1], entered[0])
    assert await browser.status(cookie, PATH, "DELETE") == 204
    assert not browser.accounts.is_accepted(entered[1], entered[0])
    assert browser.accounts.is_accepted(still[1], still[0])
    browser.now += LONGEST_SECONDS
    assert not browser.accounts.is_accepted(still[1], still[0])


async def test_logging_out_needs_one_of_our_pages() -> None:
    browser = Browser()
    cookie = await browser.cookie()
    assert (await browser.client.delete(PATH, headers={"Cookie": f"{COOKIE}={cookie}"})).status_code == 403
    assert await browser.status(cookie) == 200


async def test_a_bearer_token_has_no_session_to_end() -> None:
    browser = Browser()
    headers = {"Authorization": f"Bearer {TOKEN}"}
    assert (await browser.client.delete(PATH, headers=headers)).status_code == 204
    assert (await browser.client.get(PATH, headers=headers)).status_code == 200


async def test_logins_and_logouts_are_in_the_audit_log() -> None:
    browser = Browser()
    cookie = await browser.cookie()
    assert await browser.status(cookie, PATH, "DELETE") == 204
    actor = Actor("operator", "operate", "unix")
    assert browser.control.notes == [
        (actor, "login", "operator", None, None, "ok"),
        (actor, "logout", "operator", None, None, "ok"),
    ]


async def test_a_wrong_login_is_throttled_as_any_wrong_token() -> None:
    browser = Browser()
    for number in range(BURST):
        assert (await browser.log_in(f"guess-{number}-0123456789")).status_code == 401
    response = await browser.log_in()
    assert response.status_code == 429
    assert int(response.headers["Retry-After"]) > 0
    assert response.headers.get_all("Set-Cookie") == []
    wrong = {"Authorization": "Bearer guess-0123456789"}
    assert (await browser.client.get(PATH, headers=wrong)).status_code == 429


@pytest.mark.parametrize(
    ("content_type", "content", "status"),
    [
        ("text/plain", json.dumps({"token": TOKEN}), 415),
        ("application/x-www-form-urlencoded", f"token={TOKEN}", 415),
        ("application/json", "", 400),
        ("application/json", "[]", 400),
        ("application/json", "{}", 400),
        ("application/json", '{"token": 1}', 400),
        ("application/json", json.dumps({"token": TOKEN, "role": "operate"}), 400),
        ("application/json", '{"token": "\\ud800"}', 400),
        ("application/json", "[" * 4_000, 400),
    ],
)
async def test_a_login_that_is_none_is_refused(content_type: str, content: str, status: int) -> None:
    browser = Browser()
    response = await browser.client.post(PATH, data=content, headers={"Content-Type": content_type, **OWN_PAGE})
    assert response.status_code == status
    assert TOKEN not in await response.get_data(as_text=True)


async def test_a_page_of_another_site_cannot_log_anybody_in() -> None:
    response = await Browser().log_in(**{"Sec-Fetch-Site": "cross-site"})
    assert response.status_code == 403


async def test_revoking_a_token_ends_its_sessions_also_if_another_gets_its_name(tmp_path: Path) -> None:
    files = TokenFiles(tmp_path)
    token = files.create("alice", Role.OPERATE, now=NOW)
    browser = Browser(load_accounts(tmp_path))
    cookie = await browser.cookie(token)
    assert await browser.status(cookie) == 200
    files.revoke("alice")
    await browser.accounts.follow()
    assert await browser.status(cookie) == 401
    files.create("alice", Role.OPERATE, now=NOW)
    await browser.accounts.follow()
    assert await browser.status(cookie) == 401


async def test_a_session_ends_with_its_token(tmp_path: Path) -> None:
    now = NOW
    stored = Token("alice", Role.OPERATE, digest_of(TOKEN), expires_at=NOW + 60)
    browser = Browser(Accounts([stored], b"k" * 32, clock=lambda: now))
    cookie = await browser.cookie()
    assert await browser.status(cookie) == 200
    now += 60
    assert await browser.status(cookie) == 401


async def test_sessions_and_their_ends_outlive_a_restart(tmp_path: Path) -> None:
    token = TokenFiles(tmp_path).operator().token
    browser = Browser(load_accounts(tmp_path))
    kept, ended = await browser.cookie(token), await browser.cookie(token)
    assert await browser.status(ended, PATH, "DELETE") == 204
    browser = Browser(load_accounts(tmp_path))
    assert (await browser.status(kept), await browser.status(ended)) == (200, 401)
    # So does a second service that shares the directory.
    other = Browser(load_accounts(tmp_path))
    assert await browser.status(kept, PATH, "DELETE") == 204
    await other.accounts.follow()
    assert await other.status(kept) == 401


async def test_a_logout_that_cannot_be_remembered_is_not_said_to_have_happened(tmp_path: Path) -> None:
    token = TokenFiles(tmp_path).operator().token
    browser = Browser(load_accounts(tmp_path))
    cookie = await browser.cookie(token)
    (tmp_path / "sessions-ended.json").mkdir()
    assert await browser.status(cookie, PATH, "DELETE") == 503
