"""Where a command finds tasks: at the running service, else in the spool directories.

`--directory` says that there is no service. Otherwise the configuration (or `--http` and `--state-dir`) says where it
is; if it does not answer, the directories of the configuration are used, and the command says so.
"""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeVar

import click

from trispool.cli.run import DEFAULT_CONFIG, read_config
from trispool.errors import TrispoolError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from trispool.cli.client import Service

__all__ = ["Place", "Reach", "config_option", "directory_option", "reach_options"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Place:
    """A spool directory.

    Attributes:
        name: The spool's name; None: it is known by its directory only.
        directory: Where it is.
        fsync: Whether a task must be on disk before it is said to be kept.
        may_create: Whether it may be made if it is missing.
    """

    name: str | None
    directory: str
    fsync: bool = True
    may_create: bool = False


@dataclass(frozen=True, slots=True)
class Reach:
    """Where tasks are.

    Attributes:
        service: Where to ask first; None: nowhere.
        places: The spool directories that are known; the first is the default.
    """

    service: Service | None
    places: Sequence[Place]

    def default_spool(self) -> str:
        """The spool for tasks that name none."""
        return (self.places and self.places[0].name) or "default"

    def needed_service(self) -> Service:
        """The service, for what only it can do.

        Raises:
            TrispoolError: There is none to ask.
        """
        if self.service is None:
            raise TrispoolError("there is no service to ask")
        return self.service

    def ask(self, at_service: Callable[[Service], T], in_directories: Callable[[Sequence[Place]], T]) -> T:
        """Ask the service, or look into the directories if there is none.

        Raises:
            NotAnswering: There is no service, and no directory is known.
        """
        if self.service is not None:
            from trispool.cli.client import NotAnswering

            try:
                return at_service(self.service)
            except NotAnswering as error:
                if not self.places:
                    raise NotAnswering(f"{error}; without one, --directory says where the tasks are") from None
                click.echo(f"note: {error}; using the spool directory", err=True)
        return in_directories(self.places)

    def place(self, spool: str | None) -> Place:
        """The directory of a spool.

        Raises:
            TrispoolError: It is not known.
        """
        for place in self.places:
            if spool is None or spool in (place.name, place.directory):
                return place
        known = ", ".join(place.name or place.directory for place in self.places)
        raise TrispoolError(f"there is no spool {spool!r}; expected {known}")


config_option: Final = click.option(
    "-c",
    "--config",
    envvar="TRISPOOL_CONFIG",
    type=click.Path(dir_okay=False),
    metavar="FILE",
    help=f"The service's configuration; without it {DEFAULT_CONFIG} if that is there.",
)
"""The option of all commands that know a service by its configuration."""


def directory_option(command: Callable[..., T]) -> Callable[..., T]:
    """The option of commands that work without a service."""
    return click.option(
        "--directory",
        type=click.Path(exists=True, file_okay=False),
        metavar="DIR",
        help="Use this spool directory; no service is asked.",
    )(command)


def reach_options(command: Callable[..., T]) -> Callable[..., T]:
    """Options that say where the service is; the command gets a `Reach`."""

    @functools.wraps(command)
    def wrapped(
        config: str | None, http: str | None, state_dir: str | None, directory: str | None = None, **others: object
    ) -> T:
        return command(_reach(config, http, state_dir, directory), **others)

    for option in (
        click.option("--state-dir", metavar="DIR", help="Where the service keeps its token."),
        click.option("--http", metavar="ADDR", help="Where the service's HTTP API is."),
        config_option,
    ):
        wrapped = option(wrapped)
    return wrapped


def _reach(config: str | None, http: str | None, state_dir: str | None, directory: str | None) -> Reach:
    if directory is not None:
        return Reach(None, [Place(None, os.path.abspath(directory))])
    from trispool.cli.client import Service

    options = {"http": http, "state_dir": state_dir}
    if config is not None or os.path.exists(DEFAULT_CONFIG):
        settings = read_config(config or DEFAULT_CONFIG, options)
        places = [
            Place(spool.name, spool.directory, spool.durability == "fsync", may_create=True)
            for spool in settings.spools
        ]
        token = os.path.join(settings.state_dir, "token")
        return Reach(Service(settings.http.bind, token, settings.http.certfile), places)
    # A service without a configuration file, as `trispool run --spool` makes it.
    bind = http or os.environ.get("TRISPOOL_HTTP_BIND") or "127.0.0.1:8080"
    folder = state_dir or os.environ.get("TRISPOOL_STATE_DIR") or "var"
    return Reach(Service(bind, os.path.join(folder, "token")), [])
