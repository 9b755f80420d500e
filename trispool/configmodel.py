"""The shape of the configuration: which keys there are and what each value may be. Pure.

The description of a field is what a message says was expected; a validator that knows better raises a `ValueError` that
begins with "expected". Everything has a default, so that what must be there is judged with the rest, in
`trispool.config`.
"""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator

from trispool.quantities import read_bytes, read_seconds
from trispool.retry import Backoff  # noqa: TC001 # pydantic looks it up
from trispool.settings import SHORTEST_FREQUENCY, HttpSettings, ListenSettings, SpoolSettings
from trispool.task import MAX_VARS

__all__ = ["Http", "Listen", "Root", "Spool", "host_and_port"]

_HTTP: Final = HttpSettings()
_LISTEN: Final = ListenSettings()
_SPOOL: Final = SpoolSettings("default", "")

_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
_TCP: Final = re.compile(r"(\[[^\]]*\]|[^:\[\]/\s]*):([0-9]{1,5})")
_DIGITS_AND_DOTS: Final = re.compile(r"[0-9.]+")
_HOST: Final = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?(\.[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?)*")


def host_and_port(bind: str) -> tuple[str, int] | None:
    """Host (without brackets, empty for all addresses) and port of a TCP address; None for a Unix socket.

    Raises:
        ValueError: It is neither.
    """
    if bind.startswith("unix:"):
        _read_path(bind.removeprefix("unix:"))
        return None
    match = _TCP.fullmatch(bind)
    if match is None or int(match[2]) > 0xFFFF:
        raise ValueError("no address")
    host = match[1]
    if host.startswith("["):
        host = host[1:-1]
        IPv6Address(host)
    elif _DIGITS_AND_DOTS.fullmatch(host):
        IPv4Address(host)
    return host, int(match[2])


def _read_bind(bind: str) -> str:
    host_and_port(bind)
    return bind


def _read_path(path: str) -> str:
    if not path or "\0" in path:
        raise ValueError("no path")
    return path


def _read_folder(path: str) -> str:
    return path and _read_path(path)


def _read_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError("no name")
    return name


def _read_mode(mode: object) -> int:
    if not isinstance(mode, str) or not re.fullmatch("(0o?)?[0-7]{3}", mode):
        raise ValueError("no mode")
    return int(mode.removeprefix("0o"), 8)


def _read_network(network: str) -> str:
    try:
        return str(ip_network(network))
    except ValueError as error:
        if "host bits" in str(error):
            whole = ip_network(network, strict=False)
            raise ValueError(f"expected a network such as {whole}, without host bits") from None
        raise


def _read_host(host: str) -> str:
    if _HOST.fullmatch(host) and len(host) <= 253:
        return host.lower()
    return str(ip_address(host))


def _read_backoff(value: object) -> Backoff:
    if value == "frequency" or value == "exponential":
        return value
    if isinstance(value, list) and value:
        return tuple(read_seconds(item) for item in value)
    return read_seconds(value)


Seconds = Annotated[float, BeforeValidator(read_seconds)]
Size = Annotated[int, BeforeValidator(read_bytes)]
Bind = Annotated[str, AfterValidator(_read_bind)]
Path = Annotated[str, AfterValidator(_read_path)]
Folder = Annotated[str, AfterValidator(_read_folder)]
Name = Annotated[str, AfterValidator(_read_name)]
Mode = Annotated[int, BeforeValidator(_read_mode)]
Host = Annotated[str, AfterValidator(_read_host)]
Network = Annotated[str, AfterValidator(_read_network)]
Modifier = Annotated[int, Field(ge=0, le=255)]

_A_NAME: Final = "letters, digits, _ . and -, 64 at most, beginning with a letter, digit or _"
_AN_ADDRESS: Final = 'an address such as "{}", "[::1]:{}" or "unix:{}"'
_A_LENGTH: Final = 'a length of time, such as 30, "30s", "5m" or "2h"'
_A_SIZE: Final = 'a size, such as 65536, "512KiB" or "64MiB"'
_NETWORKS: Final = 'a list of networks, such as ["10.0.0.0/8", "fd00::/8"]'


class Section(BaseModel):
    """What all sections are: unknown keys are errors, nothing is converted behind the writer's back."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Http(Section):
    """`[http]`."""

    bind: Bind = Field(_HTTP.bind, description=_AN_ADDRESS.format("127.0.0.1:8080", 8080, "var/admin.sock"))
    certfile: Path | None = Field(None, description="the path of a PEM file")
    keyfile: Path | None = Field(None, description="the path of a PEM file")
    allow_networks: list[Network] = Field([], description=_NETWORKS)
    hosts: list[Host] = Field([], description='a list of host names without port, such as ["tasks.example.com"]')
    max_body: Size = Field(_HTTP.max_body, description=_A_SIZE)


class Listen(Section):
    """One `[[listen]]`."""

    bind: Bind | None = Field(None, description=_AN_ADDRESS.format("127.0.0.1:3031", 3031, "var/spool.sock"))
    mode: Mode = Field(_LISTEN.mode, description='the permissions of a Unix socket as an octal text, such as "0660"')
    reply: Literal["auto", "uwsgi", "http"] = Field("auto", description='"auto", "uwsgi" or "http"')
    spool: Name | None = Field(None, description="the name of a spool")
    accept_modifiers: list[Modifier] = Field(
        list(_LISTEN.accept_modifiers), min_length=1, description="a list of numbers from 0 to 255, such as [0, 17]"
    )
    allow_networks: list[Network] = Field([], description=_NETWORKS)
    max_packet: Size = Field(
        _LISTEN.max_packet,
        ge=1,
        le=MAX_VARS,
        description=f"a size from 1 to {MAX_VARS}, the most that the protocol allows",
    )
    max_body: Size = Field(_LISTEN.max_body, description=_A_SIZE)
    timeout: Seconds = Field(_LISTEN.timeout, gt=0, description='a length of time above 0, such as 5 or "500ms"')
    max_connections: int = Field(_LISTEN.max_connections, ge=1, description="a whole number from 1 up")


class Spool(Section):
    """One `[[spool]]`."""

    name: Name = Field(_SPOOL.name, description=_A_NAME)
    directory: Path | None = Field(None, description="the path of a directory")
    database: str | None = Field(None, description="the address of a database")
    imports: list[Path] = Field(
        [], alias="import", description='a list of files and modules, such as ["handlers.py", "app.tasks"]'
    )
    processes: int = Field(_SPOOL.processes, ge=1, description="a whole number from 1 up")
    concurrency: int = Field(_SPOOL.concurrency, ge=1, le=100_000, description="a whole number from 1 to 100,000")
    frequency: Seconds = Field(
        _SPOOL.frequency, ge=SHORTEST_FREQUENCY, description='a length of time of 10 ms or more, such as 30 or "1m"'
    )
    durability: Literal["fsync", "os"] = Field("fsync", description='"fsync" or "os"')
    timeout: Seconds = Field(_SPOOL.timeout, description=f"0 (none) or {_A_LENGTH}")
    max_tasks: int = Field(_SPOOL.max_tasks, ge=0, description="a whole number, 0 for never")
    max_attempts: int = Field(0, ge=0, description="a whole number, 0 for no limit")
    backoff: Annotated[Backoff, PlainValidator(_read_backoff)] = Field(
        "frequency",
        description='"frequency", "exponential", a length of time such as "30s", or a list such as ["10s", "5m"]',
    )
    chdir: Folder = Field(_SPOOL.chdir, description="the path of a directory")
    external: bool = Field(_SPOOL.external, description="true or false")
    keep_history: Seconds = Field(_SPOOL.keep_history, description='0 (for ever) or a length of time, such as "30d"')


class Root(Section):
    """The whole file."""

    state_dir: Path = Field("var", description="the path of a directory")
    grace_seconds: Seconds = Field(30.0, description=_A_LENGTH)
    http: Http = Field(Http.model_validate({}), description="a table, written [http]")
    listen: list[Listen] = Field([], description="tables, each written [[listen]]")
    spool: list[Spool] = Field([], description="tables, each written [[spool]]")


SECTIONS: Final[dict[str, type[Section]]] = {"http": Http, "listen": Listen, "spool": Spool}


def fields_of(section: type[Section]) -> dict[str, str]:
    """The keys of a section as they are written, and what is expected of each."""
    return {field.alias or name: field.description or "" for name, field in section.model_fields.items()}


def is_good(section: type[Section], key: str, value: Any) -> bool:  # noqa: ANN401 # it comes from outside
    """Whether `value` may stand at `key`."""
    try:
        section.model_validate({key: value})
    except ValueError:
        return False
    return True
