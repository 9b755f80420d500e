"""Who may use the HTTP API: tokens with a name and a role, as files of the state directory. Blocking.

    token               the operator's token itself, made on the first run: the command line of this machine uses it
    tokens.json         those made by `trispool token create`: name, role, SHA-256, when made, until when
    tokens-used.json    when each was last used, to the hour; the service writes it
    session-key         signs the cookies of browser sessions
    sessions-ended.json sessions whose cookie is signed still, but that were logged out

All have mode 0600; see `privatefiles` for how they are written.

A token has one role. `operate` permits everything; `enqueue` only to add tasks (a web app that produces tasks needs no
look at those of others); `view` only to look.
"""

from __future__ import annotations

import contextlib
import enum
import json
import re
import secrets
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Final, NamedTuple

from trispool.errors import ConfigError, TrispoolError
from trispool.privatefiles import PrivateFolder

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence
    from pathlib import Path

__all__ = ["OPERATOR", "Role", "Stored", "StoredToken", "Token", "TokenFiles", "digest_of", "is_generated"]

OPERATOR: Final = "operator"
"""The name of the token that the first run makes."""

PREFIX: Final = "trispool_"
"""Scanners that look for leaked secrets can tell ours by it."""

TOKEN_BYTES: Final = 32
"""256 random bits, 43 characters: guessing is hopeless."""

KEY_BYTES: Final = 32
"""Of the key that signs sessions, by HMAC-SHA256."""

MAX_TOKENS: Final = 1_000
"""A request is compared with all of them, 0.2 µs each."""

MAX_ENDED: Final = 10_000
"""Sessions that were logged out and are remembered; of more, those that would end first are forgotten."""

_TOKEN: Final = re.compile(r"[A-Za-z0-9._~+/-]{16,}=*")
"""RFC 6750 section 2.1 (b64token); shorter than 16 characters is no secret."""

_GENERATED: Final = re.compile(PREFIX + r"[A-Za-z0-9_-]{43}")

_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")

_OPERATOR: Final = "token"
_NAMED: Final = "tokens.json"
_USED: Final = "tokens-used.json"
_KEY: Final = "session-key"
_ENDED: Final = "sessions-ended.json"


class Role(enum.StrEnum):
    """What the bearer of a token may do."""

    VIEW = "view"
    ENQUEUE = "enqueue"
    OPERATE = "operate"

    def permits(self, needed: Role) -> bool:
        """Whether this role is enough for what needs `needed`."""
        return self in (Role.OPERATE, needed)


@dataclass(frozen=True, slots=True)
class Token:
    """What is known of a token; it cannot be made out from this.

    Attributes:
        digest: Its SHA-256.
        created_at: Unix seconds.
        expires_at: Unix seconds from which on it is not accepted; None: never.
    """

    name: str
    role: Role
    digest: bytes
    created_at: float = 0.0
    expires_at: float | None = None

    def is_expired(self, now: float) -> bool:
        """Whether it is not accepted any more at `now`, Unix seconds."""
        return self.expires_at is not None and now >= self.expires_at


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


class Stored(NamedTuple):
    """All that a state directory says; see `TokenFiles`, which reads it."""

    files: TokenFiles
    operator: StoredToken
    tokens: Sequence[Token]
    ended: Mapping[str, float]
    session_key: bytes


def digest_of(token: str) -> bytes:
    """What is kept of a token. It needs no salt and no slow hash: what has 256 random bits is in no dictionary."""
    return sha256(token.encode("utf-8", "surrogateescape")).digest()


class TokenFiles:
    """The files of one state directory; see the module.

    Args:
        state_dir: The directory; made when something is written.
    """

    def __init__(self, state_dir: str | os.PathLike[str]) -> None:
        self._folder = PrivateFolder(state_dir)

    @property
    def operator_path(self) -> Path:
        """The file with the operator's token."""
        return self._folder.path / _OPERATOR

    def load(self) -> Stored:
        """All of them; the operator's token and the key for sessions are made if there are none.

        Raises:
            ConfigError: They cannot be read or made.
        """
        operator = self.operator()
        try:
            return Stored(self, operator, self.tokens(), self.ended(), self.session_key())
        except OSError as error:
            raise ConfigError([f"state_dir = {str(self._folder.path)!r}: {error}"]) from error

    # The operator's token

    def operator(self) -> StoredToken:
        """Read the operator's token, or make it. Two services that do this at once get the same one.

        Raises:
            ConfigError: The file cannot be read or written, others than its owner and group can read it, or it holds no
                token.
        """
        try:
            try:
                return StoredToken(self._read_operator(), self.operator_path, created=False)
            except FileNotFoundError:
                created = self._folder.create(_OPERATOR, _new_token().encode() + b"\n")
                return StoredToken(self._read_operator(), self.operator_path, created)
        except OSError as error:
            raise ConfigError([f"state_dir = {str(self._folder.path)!r}: no token there: {error}"]) from error

    def rotate(self) -> StoredToken:
        """Replace the operator's token by a new one. A running service accepts that from a second later on.

        Raises:
            OSError: It cannot be written.
        """
        token = _new_token()
        with self._folder.locked():
            self._folder.replace(_OPERATOR, token.encode() + b"\n")
        return StoredToken(token, self.operator_path, created=True)

    def _read_operator(self) -> str:
        token = self._folder.read(_OPERATOR).decode("ascii", "replace").strip()
        if not _TOKEN.fullmatch(token):
            raise ConfigError(
                [f"{self.operator_path}: expected one line with a token of 16 or more letters, digits and ._~+/-"]
            )
        return token

    # All tokens

    def tokens(self) -> list[Token]:
        """Those that there are, the operator's first, expired ones included.

        Raises:
            ConfigError: A file is not as it should be.
            OSError: A file cannot be read.
        """
        tokens = []
        with contextlib.suppress(FileNotFoundError):
            digest = digest_of(self._read_operator())
            tokens.append(Token(OPERATOR, Role.OPERATE, digest, self.operator_path.stat().st_mtime))
        return tokens + self._read_named()

    def create(self, name: str, role: Role, *, now: float, expires_at: float | None = None) -> str:
        """Make a token.

        Args:
            name: 1 to 64 letters, digits, `_`, `.` and `-`.
            role: What it permits.
            now: Unix seconds.
            expires_at: Unix seconds; None: never.

        Returns:
            The token, which nobody can be told again.

        Raises:
            TrispoolError: The name is taken or of no use, or there are too many.
            ConfigError: `tokens.json` is not as it should be.
            OSError: It cannot be written.
        """
        if not _NAME.fullmatch(name):
            raise TrispoolError(f"{name!r}: expected 1 to 64 letters, digits, _ . and -, the first none of . and -")
        if name == OPERATOR:
            raise TrispoolError(f"{name!r} is the token in {self.operator_path}; `trispool token rotate` replaces it")
        token = _new_token()
        with self._folder.locked():
            tokens = self._read_named()
            if any(other.name == name for other in tokens):
                raise TrispoolError(f"there is a token {name!r} already; revoke it first, or take another name")
            if len(tokens) >= MAX_TOKENS:
                raise TrispoolError(f"there are {MAX_TOKENS} tokens already; revoke some first")
            self._write_named([*tokens, Token(name, role, digest_of(token), now, expires_at)])
        return token

    def revoke(self, name: str) -> Token:
        """Accept a token no more, nor the sessions that were begun with it.

        Raises:
            TrispoolError: There is none of that name.
            ConfigError: `tokens.json` is not as it should be.
            OSError: It cannot be written.
        """
        if name == OPERATOR:
            raise TrispoolError(f"{name!r} cannot be revoked; `trispool token rotate` replaces it")
        with self._folder.locked():
            tokens = self._read_named()
            for token in tokens:
                if token.name == name:
                    self._write_named([other for other in tokens if other is not token])
                    return token
        raise TrispoolError(f"there is no token {name!r}")

    def stamp(self) -> object:
        """Equal as long as `tokens` and `ended` would say the same.

        Raises:
            OSError: A file cannot be looked at.
        """
        return self._folder.stamp(_OPERATOR, _NAMED, _ENDED)

    def _read_named(self) -> list[Token]:
        document = self._folder.read_json(_NAMED)
        if document is None:
            return []
        try:
            return [
                Token(
                    name=str(item["name"]),
                    role=Role(item["role"]),
                    digest=_digest_from(item["sha256"]),
                    created_at=float(item["created"]),
                    expires_at=None if item["expires"] is None else float(item["expires"]),
                )
                for item in document["tokens"]
            ]
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError([f"{self._folder.path / _NAMED}: not written by `trispool token`: {error!r}"]) from None

    def _write_named(self, tokens: Sequence[Token]) -> None:
        items = [
            {
                "name": token.name,
                "role": token.role.value,
                "sha256": token.digest.hex(),
                "created": token.created_at,
                "expires": token.expires_at,
            }
            for token in tokens
        ]
        self._folder.replace(_NAMED, json.dumps({"tokens": items}, indent=1).encode() + b"\n")

    # When they were used

    def used(self) -> dict[str, float]:
        """When the tokens were last used, by name, Unix seconds, to the hour.

        Raises:
            ConfigError: The file is not as it should be.
            OSError: It cannot be read.
        """
        return self._numbers(_USED)

    def note_used(self, used: Mapping[str, float]) -> None:
        """Remember that these were used then, unless it is known that they were later.

        Raises:
            ConfigError: The file is not as it should be.
            OSError: It cannot be written.
        """
        with self._folder.locked():
            before = self._numbers(_USED)
            there = {OPERATOR} | {token.name for token in self._read_named()}
            known = {**before, **{name: max(at, before.get(name, 0.0)) for name, at in used.items()}}
            self._folder.replace(_USED, _encoded({name: at for name, at in known.items() if name in there}))

    # Browser sessions

    def session_key(self) -> bytes:
        """The key that signs sessions; made if there is none.

        Raises:
            ConfigError: It cannot be read or made, or others can read it.
        """
        try:
            try:
                return self._read_key()
            except FileNotFoundError:
                self._folder.create(_KEY, secrets.token_bytes(KEY_BYTES))
                return self._read_key()
        except OSError as error:
            raise ConfigError([f"{self._folder.path / _KEY}: no key for sessions: {error}"]) from error

    def ended(self) -> dict[str, float]:
        """Sessions that were logged out, and when they would have ended at the latest, Unix seconds.

        Raises:
            ConfigError: The file is not as it should be.
            OSError: It cannot be read.
        """
        return self._numbers(_ENDED)

    def end(self, session: str, until: float, *, now: float) -> None:
        """Remember that a session was logged out.

        Raises:
            ConfigError: The file is not as it should be.
            OSError: It cannot be written.
        """
        with self._folder.locked():
            ended = {name: at for name, at in self._numbers(_ENDED).items() if at > now}
            ended[session] = until
            kept = sorted(ended, key=ended.__getitem__, reverse=True)[:MAX_ENDED]
            self._folder.replace(_ENDED, _encoded({name: ended[name] for name in kept}))

    def _read_key(self) -> bytes:
        key = self._folder.read(_KEY)
        if len(key) != KEY_BYTES:
            raise ConfigError(
                [f"{self._folder.path / _KEY}: has not {KEY_BYTES} bytes; delete it, and a new one is made"]
            )
        return key

    def _numbers(self, name: str) -> dict[str, float]:
        document = self._folder.read_json(name)
        if document is None:
            return {}
        try:
            return {str(key): float(at) for key, at in document.items()}
        except (AttributeError, TypeError, ValueError) as error:
            raise ConfigError([f"{self._folder.path / name}: not written by trispool: {error!r}"]) from None


def is_generated(token: str) -> bool:
    """Whether a token that is known was made here, so that nobody guesses it; the operator's may come from anybody."""
    return _GENERATED.fullmatch(token) is not None


def _new_token() -> str:
    return PREFIX + secrets.token_urlsafe(TOKEN_BYTES)


def _encoded(numbers: Mapping[str, float]) -> bytes:
    return json.dumps(dict(numbers), indent=1, sort_keys=True).encode() + b"\n"


def _digest_from(text: str) -> bytes:
    digest = bytes.fromhex(text)
    if len(digest) != sha256().digest_size:
        raise ValueError("no SHA-256")
    return digest
