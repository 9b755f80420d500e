"""Signatures on pickled arguments: only what this installation pickled is ever unpickled.

A spool takes packets from the network, and unpickling runs whatever the pickle says. So arguments are pickled together
with a signature (HMAC-SHA256) by a key that lies in the spool as `.trispool/key`, readable for its user only. It covers
the function's name, too: arguments for one function are no arguments for another.
"""

from __future__ import annotations

import contextlib
import hmac
import os
import secrets
import stat
import struct
from typing import TYPE_CHECKING, Final

from trispool.errors import TrispoolError

if TYPE_CHECKING:
    from trispool.spooldir import SpoolDirectory

__all__ = ["KeyUnusable", "sign", "verify"]

_KEY: Final = ".trispool/key"
_KEY_BYTES: Final = 32
_PURPOSE: Final = b"trispool pickled arguments 1"


class KeyUnusable(TrispoolError):
    """The spool's key cannot be used."""


def sign(directory: SpoolDirectory, *parts: bytes) -> bytes:
    """A signature, as text; the key is made if there is none yet.

    Raises:
        KeyUnusable: The key cannot be read or made, or others could have written it.
    """
    try:
        key = _read(directory)
        if key is None:
            _create(directory)
            key = _read(directory)
    except OSError as error:
        raise KeyUnusable(f"{directory.absolute(_KEY)}: {error.strerror or error}") from error
    assert key is not None
    return _signature(key, parts)


def verify(directory: SpoolDirectory, signature: bytes, *parts: bytes) -> bool:
    """Whether a signature is by this spool's key and for these parts.

    Raises:
        KeyUnusable: The key cannot be read, or others could have written it.
    """
    try:
        key = _read(directory)
    except OSError as error:
        raise KeyUnusable(f"{directory.absolute(_KEY)}: {error.strerror or error}") from error
    return key is not None and hmac.compare_digest(_signature(key, parts), signature)


def _signature(key: bytes, parts: tuple[bytes, ...]) -> bytes:
    # With its length before each part, no two lists of parts are the same message.
    message = b"".join(struct.pack("<Q", len(part)) + part for part in (_PURPOSE, *parts))
    return hmac.digest(key, message, "sha256").hex().encode()


def _read(directory: SpoolDirectory) -> bytes | None:
    """The key, or None if there is none. It is read each time (5 µs), so that replacing it takes effect at once."""
    try:
        fd = os.open(_KEY, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=directory.fd)
    except FileNotFoundError:
        return None
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
            raise KeyUnusable(f"{directory.absolute(_KEY)} must be a file of this process's user with mode 0600")
        key = os.read(fd, _KEY_BYTES + 1)
    finally:
        os.close(fd)
    if len(key) != _KEY_BYTES:
        raise KeyUnusable(f"{directory.absolute(_KEY)} has not {_KEY_BYTES} bytes: delete it, and a new one is made")
    return key


def _create(directory: SpoolDirectory) -> None:
    """Make the key. It appears whole, and the first of several processes wins."""
    temporary = f".trispool/tmp/key.{os.getpid()}.{secrets.token_hex(8)}"
    fd = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600, dir_fd=directory.fd)
    try:
        try:
            os.write(fd, secrets.token_bytes(_KEY_BYTES))
            os.fsync(fd)
        finally:
            os.close(fd)
        with contextlib.suppress(FileExistsError):
            os.link(temporary, _KEY, src_dir_fd=directory.fd, dst_dir_fd=directory.fd, follow_symlinks=False)
    finally:
        os.unlink(temporary, dir_fd=directory.fd)
