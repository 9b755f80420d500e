"""Tokens: their files, the commands that change these, and the accounts of a running service that follow."""

from __future__ import annotations

import hmac
import json
import os
import stat
import threading
from typing import TYPE_CHECKING, Any

import pytest
import structlog.testing
import trio
from click.testing import CliRunner, Result

from trispool.admin import auth
from trispool.admin.auth import Accounts, load_accounts
from trispool.admin.problems import Problem
from trispool.admin.throttle import BURST, Throttle
from trispool.cli import main
from trispool.errors import ConfigError, TrispoolError
from trispool.privatefiles import PrivateFolder
from trispool.statefile import StateFile
from trispool.tokenfile import MAX_ENDED, OPERATOR, Role, TokenFiles, digest_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NOW = 1_700_000_000.0


@pytest.fixture
def files(tmp_path: Path) -> TokenFiles:
    return TokenFiles(tmp_path)


# The operator's token


def test_the_operators_token_is_made_once_and_for_its_owner_only(tmp_path: Path) -> None:
    first = TokenFiles(tmp_path / "var" / "lib").operator()
    assert first.created
    assert first.path == tmp_path / "var" / "lib" / "token"
    assert stat.S_IMODE(first.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(first.path.parent.stat().st_mode) == 0o700
    assert first.path.read_text() == first.token + "\n"
    second = TokenFiles(tmp_path / "var" / "lib").operator()
    assert (second.token, second.created) == (first.token, False)
    assert os.listdir(first.path.parent) == ["token"]
    assert TokenFiles(tmp_path).operator().token != first.token


def test_it_is_never_that_of_the_loser_when_two_services_start_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_link = os.link

    def link_late(source: Path, target: Path) -> None:
        monkeypatch.setattr(os, "link", real_link)
        winner.append(TokenFiles(tmp_path).operator())
        real_link(source, target)

    winner: list[Any] = []
    monkeypatch.setattr(os, "link", link_late)
    loser = TokenFiles(tmp_path).operator()
    assert winner[0].created
    assert not loser.created
    assert loser.token == winner[0].token
    assert os.listdir(tmp_path) == ["token"]


@pytest.mark.parametrize("mode", [0o644, 0o604, 0o660, 0o620])
def test_a_token_that_others_can_get_at_is_refused(files: TokenFiles, mode: int) -> None:
    path = files.operator().path
    path.chmod(mode)
    with pytest.raises(ConfigError, match=f"mode {mode:04o}"):
        files.operator()
    path.chmod(0o640)
    files.operator()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_what_another_user_has_put_there_is_refused(tmp_path: Path, files: TokenFiles) -> None:
    files.create("anna", Role.VIEW, now=0.0)
    os.chown(tmp_path / "tokens.json", 65534, -1)
    with pytest.raises(ConfigError, match="uid 65534"):
        files.tokens()
    os.chown(tmp_path, 65534, -1)
    assert [token.name for token in files.tokens()] == ["anna"]


@pytest.mark.parametrize(
    "content", ["", "\n", "short", "two words that are long", "a" * 20 + "\n" + "b" * 20, "ä" * 20]
)
def test_a_file_without_a_token_is_refused(tmp_path: Path, files: TokenFiles, content: str) -> None:
    path = tmp_path / "token"
    path.touch(0o600)
    path.write_text(content)
    with pytest.raises(ConfigError, match="token"):
        files.operator()


def test_a_token_cannot_be_kept_in_what_is_not_a_directory(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="state_dir"):
        TokenFiles(tmp_path / "file").operator()


def test_it_can_be_replaced_and_its_group_can_still_read_it(files: TokenFiles) -> None:
    before = files.operator()
    before.path.chmod(0o640)
    after = files.rotate()
    assert after.token != before.token
    assert files.operator().token == after.token
    assert stat.S_IMODE(after.path.stat().st_mode) == 0o640


# Named tokens


def test_a_token_can_be_told_by_scanners_and_is_kept_as_its_hash(tmp_path: Path, files: TokenFiles) -> None:
    token = files.create("web", Role.ENQUEUE, now=NOW, expires_at=NOW + 60)
    prefix, secret = token[:9], token[9:]
    assert prefix == "trispool_"
    assert len(secret) == 43
    assert files.operator().token.startswith("trispool_")
    content = (tmp_path / "tokens.json").read_text()
    assert secret not in content
    assert stat.S_IMODE((tmp_path / "tokens.json").stat().st_mode) == 0o600
    operator, web = files.tokens()
    assert (operator.name, operator.role) == (OPERATOR, Role.OPERATE)
    assert (web.name, web.role, web.created_at, web.expires_at) == ("web", Role.ENQUEUE, NOW, NOW + 60)
    assert web.digest == digest_of(token)
    assert secret not in repr(web)


@pytest.mark.parametrize("name", ["", "a b", "ä", "../x", ".x", "-x", "x" * 65, "operator", "a\n"])
def test_a_name_of_no_use_is_refused(files: TokenFiles, name: str) -> None:
    with pytest.raises(TrispoolError):
        files.create(name, Role.VIEW, now=NOW)
    assert files.tokens() == []


def test_a_name_is_for_one_token_until_that_is_revoked(files: TokenFiles) -> None:
    first = files.create("web", Role.VIEW, now=NOW)
    with pytest.raises(TrispoolError, match="already"):
        files.create("web", Role.OPERATE, now=NOW)
    assert files.revoke("web").digest == digest_of(first)
    with pytest.raises(TrispoolError, match="no token"):
        files.revoke("web")
    files.create("web", Role.OPERATE, now=NOW)
    (token,) = files.tokens()
    assert token.role is Role.OPERATE


def test_the_operators_token_cannot_be_revoked(files: TokenFiles) -> None:
    with pytest.raises(TrispoolError, match="rotate"):
        files.revoke(OPERATOR)


def test_tokens_that_are_made_at_once_are_all_kept(files: TokenFiles) -> None:
    def make(number: int) -> None:
        files.create(f"web-{number}", Role.VIEW, now=NOW)

    threads = [threading.Thread(target=make, args=[number]) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {token.name for token in files.tokens()} == {f"web-{number}" for number in range(16)}


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '{"tokens": [{}]}',
        '{"tokens": [{"name": "a", "role": "king", "sha256": "00", "created": 1, "expires": null}]}',
        '{"tokens": [{"name": "a", "role": "view", "sha256": "00", "created": 1, "expires": null}]}',
    ],
)
def test_a_file_that_is_not_ours_is_refused(tmp_path: Path, files: TokenFiles, content: str) -> None:
    path = tmp_path / "tokens.json"
    path.touch(0o600)
    path.write_text(content)
    with pytest.raises(ConfigError, match=r"tokens\.json"):
        files.tokens()
    with pytest.raises(ConfigError):
        files.create("web", Role.VIEW, now=NOW)
    assert path.read_text() == content


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_what_root_writes_belongs_to_the_owner_of_the_folder(tmp_path: Path, files: TokenFiles) -> None:
    os.chown(tmp_path, 65534, 65534)
    files.create("web", Role.VIEW, now=NOW)
    files.rotate()
    files.session_key()
    file = StateFile(str(tmp_path / "state.db"))
    file.open()
    for path in tmp_path.iterdir():
        assert (path.stat().st_uid, path.stat().st_gid) == (65534, 65534), path
    file.close()


def test_a_replacement_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = PrivateFolder(tmp_path)
    folder.replace("file", b"before")

    def fail(fd: int) -> None:
        raise OSError("no space")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="no space"):
        folder.replace("file", b"after")
    assert folder.read("file") == b"before"
    assert os.listdir(tmp_path) == ["file"]


def test_when_tokens_were_used_is_kept_of_those_that_there_are(files: TokenFiles) -> None:
    files.create("web", Role.VIEW, now=NOW)
    files.note_used({"web": 7200.0, "operator": 3600.0, "gone": 1.0})
    files.note_used({"web": 3600.0})
    assert files.used() == {"web": 7200.0, "operator": 3600.0}


def test_sessions_that_were_ended_are_remembered_until_they_would_have_ended(files: TokenFiles) -> None:
    files.end("a", 100.0, now=0.0)
    files.end("b", 200.0, now=50.0)
    assert files.ended() == {"a": 100.0, "b": 200.0}
    files.end("c", 300.0, now=150.0)
    assert files.ended() == {"b": 200.0, "c": 300.0}
    assert MAX_ENDED > 1000


def test_the_key_of_sessions_is_made_once(tmp_path: Path, files: TokenFiles) -> None:
    key = files.session_key()
    assert len(key) == 32
    assert files.session_key() == key
    (tmp_path / "session-key").write_bytes(b"short")
    with pytest.raises(ConfigError, match="session-key"):
        files.session_key()


# The command


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cli]:
    monkeypatch.chdir(tmp_path)
    return Cli()


class Cli:
    def __call__(self, *words: str) -> Result:
        return CliRunner().invoke(main, ["token", *words])

    def json(self, *words: str) -> Any:
        result = self(*words, "--json")
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)


def test_create_prints_the_token_alone_and_list_never(cli: Cli) -> None:
    result = cli("create", "web", "--role", "enqueue", "--expires", "90d", "--state-dir", "state")
    assert result.exit_code == 0
    secret = result.stdout.strip()
    assert result.stdout == secret + "\n"
    (token,) = TokenFiles("state").tokens()
    assert token.digest == digest_of(secret)
    assert token.role is Role.ENQUEUE
    assert token.expires_at == pytest.approx(token.created_at + 90 * 86400)
    for listed in (cli("list", "--state-dir", "state").stdout, cli("list", "--state-dir", "state", "--json").stdout):
        assert "web" in listed
        assert secret[9:] not in listed
        assert token.digest.hex() not in listed


def test_every_role_can_be_given(cli: Cli) -> None:
    for role in Role:
        cli.json("create", role.value, "--role", role.value)
    assert {row["role"] for row in cli.json("list")["tokens"]} == set(Role)


def test_list_tells_what_there_is(cli: Cli) -> None:
    files = TokenFiles("var")
    files.operator()
    cli.json("create", "web", "--role", "view")
    files.create("old", Role.VIEW, now=NOW, expires_at=NOW + 1)
    files.note_used({"web": 4e9, "old": 3600.0})
    operator, web, old = cli.json("list")["tokens"]
    assert operator == operator | {"name": "operator", "role": "operate", "expires": None, "last_used": None}
    assert web == web | {"name": "web", "role": "view", "expires": None, "last_used": 4e9}
    assert old["last_used"] is None  # another token of that name
    lines = cli("list").stdout.splitlines()
    assert lines[0].split("\t") == ["NAME", "ROLE", "CREATED", "EXPIRES", "LAST USED"]
    assert lines[3].split("\t")[3] == "expired"


def test_the_configuration_says_where_the_tokens_are(cli: Cli) -> None:
    with open("config.toml", "w") as file:
        file.write('state_dir = "lib"\n[[spool]]\ndirectory = "spool"\n')
    cli.json("create", "web", "--role", "view")
    assert [token.name for token in TokenFiles("lib").tokens()] == ["web"]
    cli.json("revoke", "web", "--config", "config.toml")
    assert TokenFiles("lib").tokens() == []


def test_what_cannot_be_done_is_said(cli: Cli) -> None:
    assert cli("revoke", "web").exit_code == 1
    assert "no token 'web'" in cli("revoke", "web").stderr
    assert cli("create", "operator", "--role", "view").exit_code == 1
    assert cli("create", "web", "--role", "king").exit_code == 2
    assert cli("create", "web", "--role", "view", "--expires", "0").exit_code == 2
    assert cli("create", "web", "--role", "view", "--expires", "soon").exit_code == 2
    with open("file", "w"):
        pass
    result = cli("create", "web", "--role", "view", "--state-dir", "file")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")


def test_rotate_replaces_the_operators_token(cli: Cli) -> None:
    before = TokenFiles("var").operator().token
    answer = cli.json("rotate")
    assert answer["token"] == TokenFiles("var").operator().token != before


def test_changes_of_tokens_are_in_the_audit_log(cli: Cli, tmp_path: Path) -> None:
    secret = cli.json("create", "web", "--role", "view")["token"]
    cli.json("revoke", "web")
    cli.json("rotate")
    file = StateFile(str(tmp_path / "var" / "state.db"))
    rows = file.read(lambda c: c.execute("SELECT action, target, before, after, outcome FROM audit").fetchall())
    about = '{"role": "view", "expires": null}'
    assert rows == [
        ("token.create", "web", "null", about, "ok"),
        ("token.revoke", "web", about, "null", "ok"),
        ("token.rotate", "operator", "null", "null", "ok"),
    ]
    assert secret not in str(rows)
    file.close()


def test_a_change_that_cannot_be_put_into_the_audit_log_is_made(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "var" / "state.db").mkdir(parents=True)
    result = cli("create", "web", "--role", "view")
    assert result.exit_code == 0
    assert "audit" in result.stderr
    assert [token.name for token in TokenFiles("var").tokens()] == ["web"]


# A running service


def status_of(accounts: Accounts, token: str, address: str = "10.0.0.1") -> int:
    try:
        accounts.enter(token, address)
    except Problem as problem:
        return problem.status
    return 200


async def test_a_service_follows_the_files(tmp_path: Path, files: TokenFiles) -> None:
    accounts = load_accounts(tmp_path)
    assert accounts.operator is not None
    assert accounts.operator.created
    assert status_of(accounts, accounts.operator.token) == 200
    web = files.create("web", Role.VIEW, now=NOW)
    assert status_of(accounts, web) == 401
    with structlog.testing.capture_logs() as logs:
        await accounts.follow()
        await accounts.follow()
    assert [log["changed"] for log in logs if log["event"] == "tokens_changed"] == [["web"]]
    token = accounts.enter(web, "unix")
    assert accounts.actor(token, "unix").name == "web"
    assert accounts.is_accepted(token)
    files.revoke("web")
    other = files.create("web", Role.VIEW, now=NOW)
    await accounts.follow()
    assert not accounts.is_accepted(token)
    assert (status_of(accounts, web), status_of(accounts, other)) == (401, 200)
    rotated = files.rotate()
    await accounts.follow()
    assert status_of(accounts, accounts.operator.token) == 401
    assert status_of(accounts, rotated.token) == 200


async def test_it_does_so_by_itself_and_writes_down_what_is_used(
    tmp_path: Path, files: TokenFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert auth.FOLLOW_SECONDS <= 0.5  # "within a second"
    monkeypatch.setattr(auth, "FOLLOW_SECONDS", 0.001)
    monkeypatch.setattr(auth, "NOTE_SECONDS", 0.0)
    accounts = load_accounts(tmp_path)
    web = files.create("web", Role.VIEW, now=NOW)
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            await nursery.start(accounts.run_accounts)
            while status_of(accounts, web, "unix") != 200:
                accounts._throttle = Throttle()  # asking is no guessing here
                await trio.sleep(0.01)
            while not files.used():  # noqa: ASYNC110 # a file has no event
                await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
    assert files.used().keys() == {"web"}
    assert files.used()["web"] % 3600 == 0


async def test_what_cannot_be_read_changes_nothing_and_is_said_once(tmp_path: Path, files: TokenFiles) -> None:
    web = files.create("web", Role.VIEW, now=NOW)
    accounts = load_accounts(tmp_path)
    PrivateFolder(tmp_path).replace("tokens.json", b"{")
    with structlog.testing.capture_logs() as logs:
        await accounts.follow()
        await accounts.follow()
    assert [log["event"] for log in logs] == ["tokens_not_followed"]
    assert status_of(accounts, web) == 200
    PrivateFolder(tmp_path).replace("tokens.json", b'{"tokens": []}')
    await accounts.follow()
    assert status_of(accounts, web) == 401


async def test_a_token_whose_file_is_gone_is_not_accepted(tmp_path: Path, files: TokenFiles) -> None:
    accounts = load_accounts(tmp_path)
    assert accounts.operator is not None
    (tmp_path / "token").unlink()
    await accounts.follow()
    assert status_of(accounts, accounts.operator.token) == 401


def test_an_expired_token_is_not_accepted_and_no_guess() -> None:
    now = [NOW]
    accounts = Accounts.of({"secret-of-web": Role.VIEW}, clock=lambda: now[0])
    token = accounts.enter("secret-of-web", "10.0.0.1")
    (name,) = accounts._tokens
    accounts._tokens[name] = expiring = type(token)(name, token.role, token.digest, NOW, NOW + 10)
    assert accounts.is_accepted(expiring)
    now[0] += 10
    assert not accounts.is_accepted(expiring)
    for _ in range(2 * BURST):
        assert status_of(accounts, "secret-of-web") == 401


def test_a_token_is_compared_with_all_others_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[int] = []
    real = hmac.compare_digest

    def counted(a: bytes, b: bytes) -> bool:
        compared.append(len(a))
        return real(a, b)

    accounts = Accounts.of({letter * 16: Role.VIEW for letter in "abc"})
    monkeypatch.setattr(hmac, "compare_digest", counted)
    for token in ("a" * 16, "c" * 16, "x", "x" * 1000):
        compared.clear()
        status_of(accounts, token)
        # All of them, wherever it is found; and equal lengths, so that the time does not tell that of the secret.
        assert compared == [32, 32, 32]


def test_guesses_are_throttled_and_who_is_known_stays_in() -> None:
    clock = [1000.0]
    accounts = Accounts.of(
        {"token-of-alice": Role.OPERATE, "token-of-bob": Role.VIEW}, throttle=Throttle(lambda: clock[0])
    )
    assert status_of(accounts, "token-of-alice") == 200
    assert [status_of(accounts, f"guess-{number}") for number in range(BURST)] == [401] * BURST
    with pytest.raises(Problem) as caught:
        accounts.enter("another-guess", "10.0.0.1")
    assert (caught.value.status, caught.value.headers["Retry-After"]) == (429, "10")
    # The right one is not found out among guesses, but for who was here before.
    assert status_of(accounts, "token-of-bob") == 429
    assert status_of(accounts, "token-of-alice") == 200
    assert status_of(accounts, "token-of-bob", "10.0.0.2") == 200
    clock[0] += 10
    assert status_of(accounts, "token-of-bob") == 200


def test_accounts_for_tests_have_names() -> None:
    accounts = Accounts.of({"a" * 16: Role.OPERATE, "b" * 16: Role.VIEW, "c" * 16: Role.VIEW, "d" * 16: Role.ENQUEUE})
    names = [accounts.enter(letter * 16, "unix").name for letter in "abcd"]
    assert names == ["operator", "viewer", "viewer-3", "producer"]
