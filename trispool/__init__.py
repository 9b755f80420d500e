"""trispool: a spooler for Python, after uWSGI's.

    from trispool import handler, Retry, Ignore, Task

This is all that handlers and producers need; it imports neither Trio nor a web framework.
"""

from __future__ import annotations

from trispool.errors import (
    ConfigError,
    MalformedPacket,
    MalformedSpoolFile,
    SpoolUnavailable,
    TaskNotFound,
    TaskRefused,
    TrispoolError,
)
from trispool.handlers import Handler, Ignore, Retry, handler
from trispool.task import Outcome, Task

__all__ = [
    "ConfigError",
    "Handler",
    "Ignore",
    "MalformedPacket",
    "MalformedSpoolFile",
    "Outcome",
    "Retry",
    "SpoolUnavailable",
    "Task",
    "TaskNotFound",
    "TaskRefused",
    "TrispoolError",
    "handler",
]
