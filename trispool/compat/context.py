"""What a process is to the spooler, as far as the stand-ins have to tell."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from trispool.spooldir import SpoolDirectory

__all__ = ["Context", "Option", "current"]

Option = bytes | bool | list[bytes | bool]
"""A value of `uwsgi.opt`: True for an option without a value, a list for one that was given several times."""


def _nobody(seconds: int) -> None:
    """Outside a worker nobody learns of a new frequency."""


@dataclass(slots=True)
class Context:
    """One process. A worker makes one before it imports handlers, and keeps `pids` up to date.

    Attributes:
        spool: The name of its spool.
        directory: The spool's directory, or None if it has none.
        spoolers: The directories of all spools of the service, its own among them.
        frequency: The spool's, seconds.
        processes: How many workers the spool has.
        opt: More for `uwsgi.opt`; it goes before what is derived from the other values.
        pids: The processes of all workers, its own among them.
        master_pid: The service's process; 0: there is none.
        is_worker: Whether the process runs tasks.
        carried: Of the tasks that it runs those that have no file: by id, the path below the directory, vars and body.
        set_frequency: Told of `uwsgi.set_spooler_frequency`; 0 means as configured.
    """

    spool: str = "default"
    directory: SpoolDirectory | None = None
    spoolers: tuple[str, ...] = ()
    frequency: float = 30
    processes: int = 1
    opt: dict[str, Option] = field(default_factory=dict)
    pids: list[int] = field(default_factory=list)
    master_pid: int = 0
    is_worker: bool = True
    carried: dict[str, tuple[str, Mapping[bytes, bytes], bytes]] = field(default_factory=dict)
    set_frequency: Callable[[int], None] = _nobody

    @classmethod
    def from_environment(cls) -> Context:
        """That of a process that is no worker."""
        path = os.environ.get("TRISPOOL_SPOOL", "")
        return cls(spoolers=(os.path.realpath(path),) if path else (), is_worker=False)

    def options(self) -> dict[str, Option]:
        """`uwsgi.opt`: the settings by the names that they have in a uWSGI configuration."""
        directories: list[bytes | bool] = [os.fsencode(path) for path in self.spoolers]
        derived: dict[str, Option] = {
            "master": True,
            "spooler-processes": str(self.processes).encode(),
            "spooler-frequency": str(round(self.frequency)).encode(),
        }
        if directories:
            derived["spooler"] = directories if len(directories) > 1 else directories[0]
        return derived | self.opt


current = Context(is_worker=False)
"""This process's; `trispool.compat.install` replaces it."""
