"""What the values of a configuration must be together. Pure."""

from __future__ import annotations

import os
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final, TypeAlias

from trispool.configmodel import host_and_port

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from trispool.configmodel import Root
    from trispool.settings import Config

__all__ = ["check_together"]

_Found: TypeAlias = "Iterator[tuple[tuple[str | int, ...], str]]"

MAX_SOCKET_PATH: Final = 107
"""What fits into `sun_path` (unix(7)) with its NUL, bytes."""


def check_together(root: Root, config: Config, bad: Collection[tuple[str | int, ...]]) -> _Found:
    """What is wrong with values that are good by themselves.

    Args:
        root: The values, with defaults in place of bad ones.
        config: The settings made of them, paths resolved.
        bad: Where the bad ones are.

    Yields:
        Where, and what was expected.
    """
    yield from _check_http(config)
    yield from _check_listen(root, config, bad)
    yield from _check_spools(root, config, bad)


def _check_http(config: Config) -> _Found:
    http = config.http
    address = host_and_port(http.bind)
    if address is None:
        if http.certfile is not None:
            yield ("http", "certfile"), "expected none: a Unix socket speaks plain HTTP"
        yield from _check_socket_path(("http", "bind"), http.bind)
    elif not _is_loopback(address[0]) and http.certfile is None:
        yield (
            ("http", "bind"),
            "expected a loopback address or certfile and keyfile: tokens must not travel unencrypted",
        )
    if http.keyfile is not None and http.certfile is None:
        yield ("http", "keyfile"), "expected certfile beside it"


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False  # the empty host is every address; who knows where a name leads


def _check_socket_path(location: tuple[str | int, ...], bind: str) -> _Found:
    path = bind.removeprefix("unix:")
    if len(os.fsencode(path)) > MAX_SOCKET_PATH:
        yield location, f"expected a path of at most {MAX_SOCKET_PATH} bytes, this is {path}"


def _check_listen(root: Root, config: Config, bad: Collection[tuple[str | int, ...]]) -> _Found:
    names = [spool.name for spool in root.spool]
    names_known = not any(location[0] == "spool" and location[2:] in ((), ("name",)) for location in bad)
    seen: dict[str, str] = {config.http.bind: "http"}
    for index, (listen, settings) in enumerate(zip(root.listen, config.listen, strict=True)):
        here = ("listen", index)
        if listen.spool is not None and listen.spool not in names and names_known:
            yield (*here, "spool"), f"expected the name of a spool: {', '.join(names) or 'there is none'}"
        if listen.bind is None:
            if (*here, "bind") not in bad and here not in bad:
                yield (*here, "bind"), 'missing; expected an address such as "127.0.0.1:3031" or "unix:var/spool.sock"'
            continue
        address = host_and_port(settings.bind)
        if address is None:
            yield from _check_socket_path((*here, "bind"), settings.bind)
        if address is None or address[1] != 0:  # port 0 is a different one each time
            if settings.bind in seen:
                yield (*here, "bind"), f"expected an address of its own; {seen[settings.bind]} has it"
            seen[settings.bind] = f"listen[{index}]"


def _check_spools(root: Root, config: Config, bad: Collection[tuple[str | int, ...]]) -> _Found:
    if not root.spool and ("spool",) not in bad:
        yield ("spool",), "expected at least one [[spool]]"
    names: dict[str, int] = {}
    directories: dict[str, int] = {}
    for index, (spool, settings) in enumerate(zip(root.spool, config.spools, strict=True)):
        here = ("spool", index)
        if here in bad:
            continue
        if (*here, "name") not in bad and names.setdefault(spool.name, index) != index:
            yield (*here, "name"), f"expected a name of its own; spool[{names[spool.name]}] has {spool.name}"
        if spool.database is not None:
            yield (*here, "database"), "PostgreSQL comes in a later version; expected directory in its place"
        elif spool.directory is None:
            if (*here, "directory") not in bad and (*here, "database") not in bad:
                yield (*here, "directory"), "missing; expected the path of a directory"
        elif directories.setdefault(settings.directory, index) != index:
            yield (
                (*here, "directory"),
                f"expected a directory of its own; spool[{directories[settings.directory]}] has it",
            )
