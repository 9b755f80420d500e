"""Small files that only the service's user may read: read, made and replaced whole. Blocking.

Changes are made under a lock of the folder, and in the name of its owner also if root makes them: the service must be
able to read what an administrator's command has written.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from trispool.errors import ConfigError
from trispool.folders import make_folder, sync_folder

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["PrivateFolder"]

MAX_FILE: Final = 4 * 1024 * 1024
"""Bytes; what is larger was not written by us."""


class PrivateFolder:
    """A folder of such files; made, for its owner only, when the first is written.

    Args:
        path: Where it is.

    Attributes:
        path: Where it is.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Nobody else changes these files meanwhile. The kernel frees the lock of a process that dies.

        Raises:
            OSError: The folder cannot be made or opened.
        """
        make_folder(self.path, 0o700)
        fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def read(self, name: str) -> bytes:
        """The content of a file.

        Raises:
            FileNotFoundError: There is no such file.
            OSError: It cannot be read.
            ConfigError: Others than its owner and group can read it, or others than its owner can write it; or its
                owner is neither we nor that of the folder.
        """
        with (self.path / name).open("rb") as file:
            status = os.fstat(file.fileno())
            content = file.read(MAX_FILE)
        # Others can put files into a folder that they can write to.
        if status.st_uid not in (0, os.geteuid(), self.path.stat().st_uid):
            raise ConfigError([f"{self.path / name}: belongs to another user (uid {status.st_uid})"])
        mode = stat.S_IMODE(status.st_mode)
        # The group may read it: that is how several operators share the command line. Everybody may not.
        if mode & 0o027:
            raise ConfigError(
                [f"{self.path / name}: mode {mode:04o} lets others at what it protects; expected 0600 (or 0640)"]
            )
        return content

    def read_json(self, name: str) -> Any:  # noqa: ANN401 # whatever is in the file
        """What a JSON file contains, or None if there is none. Raises as `read`, and a ConfigError if it is no JSON."""
        try:
            return json.loads(self.read(name))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise ConfigError([f"{self.path / name}: not JSON: {error}"]) from None

    def create(self, name: str, content: bytes) -> bool:
        """Make a file unless it is there; False if it is.

        Raises:
            OSError: It cannot be written.
        """
        make_folder(self.path, 0o700)
        temporary = self._write(name, content, 0o600)
        try:
            with contextlib.suppress(FileExistsError):
                os.link(temporary, self.path / name)
                return True
            return False
        finally:
            temporary.unlink()

    def replace(self, name: str, content: bytes) -> None:
        """Make a file, or put a new one in its place, which is on disk then. A group that could read it still can.

        Raises:
            OSError: It cannot be written.
        """
        mode = 0o600
        with contextlib.suppress(FileNotFoundError):
            mode |= (self.path / name).stat().st_mode & stat.S_IRGRP
        temporary = self._write(name, content, mode)
        try:
            os.replace(temporary, self.path / name)
        except BaseException:
            temporary.unlink()
            raise
        sync_folder(os.fspath(self.path))

    def stamp(self, *names: str) -> object:
        """Equal as long as these files are the same.

        Raises:
            OSError: One cannot be looked at.
        """
        return [_stamp_of(self.path / name) for name in names]

    def _write(self, name: str, content: bytes, mode: int) -> Path:
        temporary = self.path / f".{name}.{os.getpid()}.{secrets.token_hex(4)}"
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(fd, "wb") as file:
                if os.geteuid() == 0:
                    existing = self.path / name
                    like = (existing if existing.exists() else self.path).stat()
                    os.fchown(fd, like.st_uid, like.st_gid)
                os.fchmod(fd, mode)
                file.write(content)
                file.flush()
                os.fsync(fd)
        except BaseException:
            temporary.unlink()
            raise
        return temporary


def _stamp_of(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size
