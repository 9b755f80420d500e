"""Bearer tokens: who a request comes from, and what they may do.

A token has one role. `operate` permits everything; `enqueue` only to add tasks (a web app that produces tasks needs no
look at those of others); `view` only to look. On the first run one `operate` token is made and kept in
`<state_dir>/token`, readable by the service's user alone.
"""

from __future__ import annotations

import contextlib
import enum
import hmac
import os
import re
import secrets
import stat
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from trispool.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Role", "StoredToken", "Tokens", "bearer_token", "load_token"]

TOKEN_BYTES = 32
"""256 random bits: guessing is hopeless, so wrong tokens need not be counted."""

_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]{16,}=*")
"""RFC 6750 section 2.1 (b64token); shorter than 16 characters is no secret."""


class Role(enum.StrEnum):
    """What the bearer of a token may do."""

    VIEW = "view"
    ENQUEUE = "enqueue"
    OPERATE = "operate"

    def permits(self, needed: Role) -> bool:
        """Whether this role is enough for what needs `needed`."""
        return self in (Role.OPERATE, needed)


class Tokens:
    """The tokens that are accepted.

    Args:
        roles: Token to role.
    """

    def __init__(self, roles: Mapping[str, Role]) -> None:
        self._digests = [(_digest(token), role) for token, role in roles.items()]

    def role_of(self, token: str) -> Role | None:
        """The role of `token`, or None if it is not one of ours.

        Compares with all of them, in a time that depends on their number only.
        """
        found = None
        given = _digest(token)
        for digest, role in self._digests:
            if hmac.compare_digest(given, digest):
                found = role
        return found


@dataclass(frozen=True, slots=True)
class StoredToken:
    """The operator's token.

    Attributes:
        token: The secret.
        path: The file that holds it.
        created: Whether this call made it: then it is to be shown, once.
    """

    token: str
    path: Path
    created: bool


def bearer_token(authorization: str | None) -> str | None:
    """The token of an `Authorization` header, or None if the header is missing or of another scheme."""
    scheme, _, token = (authorization or "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None


def load_token(state_dir: str | os.PathLike[str]) -> StoredToken:
    """Read `<state_dir>/token`, or make it. Blocking; two services that do this at once get the same token.

    Raises:
        ConfigError: The file cannot be read or written, others than its owner and group can read it, or it holds no
            token.
    """
    directory = Path(state_dir)
    path = directory / "token"
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            return StoredToken(_read(path), path, created=False)
        except FileNotFoundError:
            created = _create(path)
            return StoredToken(_read(path), path, created)
    except OSError as error:
        raise ConfigError([f"state_dir = {str(directory)!r}: no token there: {error}"]) from error


def _create(path: Path) -> bool:
    """Publish a new token whole, unless another process was faster."""
    temporary = path.with_name(f".token.{os.getpid()}.{secrets.token_hex(4)}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "w") as file:
            file.write(secrets.token_urlsafe(TOKEN_BYTES) + "\n")
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(temporary, path)
            return True
        return False
    finally:
        temporary.unlink()


def _read(path: Path) -> str:
    """The token in `path`.

    Raises:
        FileNotFoundError: There is no such file.
        ConfigError: What is there is not a secret.
    """
    with path.open() as file:
        mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
        text = file.read(4096)
    # The group may read it: that is how several operators share the command line. Everybody may not.
    if mode & 0o027:
        raise ConfigError([f"{path}: mode {mode:04o} lets others at the operator's token; expected 0600 (or 0640)"])
    token = text.strip()
    if not _TOKEN.fullmatch(token):
        raise ConfigError([f"{path}: expected one line with a token of 16 or more letters, digits and ._~+/-"])
    return token


def _digest(token: str) -> bytes:
    """Equal lengths, so that the comparison does not tell the length of the secret."""
    return sha256(token.encode("utf-8", "surrogateescape")).digest()
