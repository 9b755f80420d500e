"""`trispool token`: who may use the HTTP API. Works on the files of the state directory, whether or not a service runs;
one that does follows within a second.
"""

from __future__ import annotations

import functools
import os
import pwd
import time
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from trispool.cli import display
from trispool.cli.reach import config_option
from trispool.cli.run import DEFAULT_CONFIG, read_config
from trispool.cli.when import Length
from trispool.errors import TrispoolError

if TYPE_CHECKING:
    from collections.abc import Callable

    from trispool.operating import Actor
    from trispool.tokenfile import Token

__all__ = ["token"]

_LIFETIME: Final = Length("a length of time above 0, such as 12h or 90d")

T = TypeVar("T")


class _StateDir:
    """The state directory that a command works on."""

    def __init__(self, path: str) -> None:
        from trispool.tokenfile import TokenFiles

        self.path = path
        self.files = TokenFiles(path)

    def note(self, action: str, target: str, *, before: object = None, after: object = None) -> None:
        """Put a change into the audit log. It has been made, so that this fails is said, but no failure."""
        from trispool.statefile import StateFile
        from trispool.staterows import add_audit, audit_values

        file = StateFile(os.path.join(os.path.abspath(self.path), "state.db"))
        values = audit_values(time.time(), _me(), action, target, before=before, after=after)
        try:
            file.write([functools.partial(add_audit, values=values)])
        except OSError as error:
            click.echo(f"note: not in the audit log: {error}", err=True)
        finally:
            file.close()


def _me() -> Actor:
    """Who runs the command: whoever can write these files may do anything."""
    from trispool.operating import Actor

    try:
        name = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        name = str(os.getuid())
    return Actor(f"{name} (command line)", "operate", "local")


def _with_state_dir(command: Callable[..., T]) -> Callable[..., T]:
    """Options that say where the tokens are; the command gets a `_StateDir`. Its errors of the system are said."""

    @functools.wraps(command)
    def wrapped(config: str | None, state_dir: str | None, **others: object) -> T:
        if state_dir is None:
            if config is not None or os.path.exists(DEFAULT_CONFIG):
                state_dir = read_config(config or DEFAULT_CONFIG).state_dir
            else:
                state_dir = os.environ.get("TRISPOOL_STATE_DIR") or "var"
        try:
            return command(_StateDir(state_dir), **others)
        except OSError as error:
            raise TrispoolError(f"{error.filename or state_dir}: {error.strerror or error}") from error

    for option in (
        click.option("--state-dir", metavar="DIR", help="Where the service keeps its tokens."),
        config_option,
    ):
        wrapped = option(wrapped)
    return wrapped


_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group()
def token() -> None:
    """Make, list and revoke the tokens of the HTTP API.

    A running service follows within a second. The operator's token, which the first run made, is in the file "token" of
    the state directory; the other commands use it.
    """


@token.command()
@click.argument("name")
@click.option(
    "--role",
    type=click.Choice(["view", "enqueue", "operate"]),
    required=True,
    help="view: look; enqueue: add tasks and nothing else; operate: everything.",
)
@click.option(
    "--expires",
    type=_LIFETIME,
    metavar="LENGTH",
    help="Accepted for so long, as 12h or 90d; else for ever.",
)
@_json_option
@_with_state_dir
def create(state: _StateDir, name: str, role: str, expires: float | None, as_json: bool) -> None:
    """Make a token and print it, this once: only its hash is kept."""
    from trispool.tokenfile import Role

    now = time.time()
    expires_at = None if expires is None else now + expires
    secret = state.files.create(name, Role(role), now=now, expires_at=expires_at)
    about = {"role": role, "expires": expires_at}
    state.note("token.create", name, after=about)
    if as_json:
        display.print_json({"name": name, **about, "created": now, "token": secret})
    else:
        click.echo(secret)


@token.command("list")
@_json_option
@_with_state_dir
def list_(state: _StateDir, as_json: bool) -> None:
    """List the tokens, but for what they are."""
    used = state.files.used()
    rows = [_about(token, used.get(token.name, 0.0)) for token in state.files.tokens()]
    if as_json:
        display.print_json({"tokens": rows})
        return
    now = time.time()
    display.print_table(
        ("NAME", "ROLE", "CREATED", "EXPIRES", "LAST USED"),
        [
            (
                row["name"],
                row["role"],
                display.moment(row["created"]),
                "expired" if row["expires"] is not None and row["expires"] <= now else display.moment(row["expires"]),
                display.moment(row["last_used"]),
            )
            for row in rows
        ],
    )


def _about(token: Token, used: float) -> dict[str, Any]:
    # Another token may have had that name before.
    last_used = used if used >= token.created_at // 3600 * 3600 and used else None
    return {
        "name": token.name,
        "role": token.role.value,
        "created": token.created_at,
        "expires": token.expires_at,
        "last_used": last_used,
    }


@token.command()
@click.argument("name")
@_json_option
@_with_state_dir
def revoke(state: _StateDir, name: str, as_json: bool) -> None:
    """Accept a token no more, nor the browsers that logged in with it."""
    gone = state.files.revoke(name)
    state.note("token.revoke", name, before={"role": gone.role.value, "expires": gone.expires_at})
    if as_json:
        display.print_json({"name": name, "revoked": True})
    else:
        click.echo(f"{name} is not accepted any more")


@token.command()
@_json_option
@_with_state_dir
def rotate(state: _StateDir, as_json: bool) -> None:
    """Replace the operator's token by a new one, and print where it is.

    Browsers that logged in with the old one are out; the other commands read the new one from its file.
    """
    from trispool.tokenfile import OPERATOR

    stored = state.files.rotate()
    state.note("token.rotate", OPERATOR)
    if as_json:
        display.print_json({"name": OPERATOR, "path": str(stored.path), "token": stored.token})
    else:
        click.echo(f"The operator's token is a new one, kept in {stored.path}: {stored.token}")
