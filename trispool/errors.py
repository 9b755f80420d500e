"""Every error that trispool raises on purpose.

A class tells whose fault it is and what to do next; an instance carries the facts. The docstring of a class is its
message when none is given.
"""

from __future__ import annotations

__all__ = [
    "ConfigError",
    "MalformedPacket",
    "MalformedSpoolFile",
    "SpoolUnavailable",
    "TaskNotFound",
    "TaskRefused",
    "TrispoolError",
]


class TrispoolError(Exception):
    """Something went wrong in trispool."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or (type(self).__doc__ or "").splitlines()[0])


class TaskRefused(TrispoolError):
    """The task cannot be taken as it is; sending it again unchanged will not help.

    Args:
        message: What is wrong, naming the key, its value or size, and what is allowed.
        status: The HTTP status a server answers with: 400 (malformed), 404 (no such spool), 409 (its state, or another
            task of that id, does not permit it), 413 (too large), 422 (its key was used before) or 429 (too many).
    """

    def __init__(self, message: str | None = None, *, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


class MalformedPacket(TaskRefused):
    """The bytes are not a uwsgi packet.

    Args:
        message: What is wrong.
        offset: Where in the packet, in bytes from its first byte.
    """

    def __init__(self, message: str | None = None, *, offset: int = 0, status: int = 400) -> None:
        super().__init__(message, status=status)
        self.offset = offset


class MalformedSpoolFile(TrispoolError):
    """The bytes are not a spool file.

    Args:
        message: What is wrong.
        incomplete: True if more bytes at the end could still make it one: its writer may not have finished.
    """

    def __init__(self, message: str | None = None, *, incomplete: bool = False) -> None:
        super().__init__(message)
        self.incomplete = incomplete


class SpoolUnavailable(TrispoolError):
    """The spool cannot take tasks now (disk full, read-only, stopping); the same call may work later."""


class TaskNotFound(TrispoolError):
    """There is no task of that id."""


class ConfigError(TrispoolError):
    """The configuration is not usable.

    Args:
        problems: One line for each thing that is wrong: key, value, and what was expected.
    """

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems
