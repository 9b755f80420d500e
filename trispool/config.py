"""The configuration: from TOML, environment and command line to settings, or every error at once. Pure.

    TOML text ─► data ─► and the environment ─► is each value good? ─► are they together? ─► Config

A problem is one line: the key's path, its value, and what was expected.

    spool[0].frequency = -1: expected a length of time above 0, such as 30 or "1m"

Environment variables go before the file: `TRISPOOL_STATE_DIR`, `TRISPOOL_HTTP_BIND`, `TRISPOOL_LISTEN_0_BIND` (of the
first `[[listen]]`), `TRISPOOL_SPOOL_DEFAULT_PROCESSES` (of the spool named `default`; what is neither letter nor digit
in a name is `_`), and so on for each key. The text is taken as it is, or as TOML, or as a list with commas. An empty
one counts as not set. What stands on the command line goes before both.

Relative paths are relative to the configuration file, wherever they are set.
"""

from __future__ import annotations

import copy
import difflib
import json
import re
import tomllib
from os.path import join, normpath
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from pydantic import ValidationError

from trispool.configchecks import check_together
from trispool.configmodel import SECTIONS, Root, fields_of, is_good
from trispool.errors import ConfigError
from trispool.retry import RetryPolicy
from trispool.settings import Config, HttpSettings, ListenSettings, SpoolSettings

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Mapping

    from trispool.configmodel import Http, Listen, Section, Spool

__all__ = ["Config", "build", "load"]

Location: TypeAlias = tuple[str | int, ...]
"""Keys and indices that lead to a value: `("spool", 0, "frequency")`."""

_Bad: TypeAlias = tuple[Location, str, str]
"""Where, pydantic's kind of error, its message."""

_PREFIX: Final = "TRISPOOL_"
_NOT_OURS: Final = re.compile("_SERVICE_|_PORT")
"""Kubernetes tells every container of a service named `trispool-http` by variables such as `TRISPOOL_HTTP_PORT`."""

_MISSING: Final = object()
_BARE_KEY: Final = re.compile("[A-Za-z0-9_-]+")
_MAX_SHOWN: Final = 60


def load(text: str, *, base: str | os.PathLike[str], environ: Mapping[str, str]) -> Config:
    """The configuration that a file asks for.

    Args:
        text: The content of the file.
        base: Its folder.
        environ: Environment variables.

    Raises:
        ConfigError: With every problem there is.
    """
    return build(parse(text), base=base, environ=environ)


def parse(text: str) -> dict[str, Any]:
    """The values that a file contains, good or not.

    Raises:
        ConfigError: It is not TOML.
    """
    try:
        return _loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError([f"not TOML: {error}"]) from None


def _loads(text: str) -> dict[str, Any]:
    """The values of a TOML text; tomllib has a ValueError of its own for a number of 4,301 digits.

    Raises:
        ValueError: It is not TOML, or has a number that no 64 bits hold, which TOML lets us refuse. Python could not
            even print a very large one.
    """
    data = tomllib.loads(text)
    values: list[Any] = [data]
    while values:
        value = values.pop()
        if isinstance(value, dict | list):
            values += value.values() if isinstance(value, dict) else value
        elif isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise ValueError("a number that has more than 64 bits")
    return data


def build(
    data: dict[str, Any],
    *,
    base: str | os.PathLike[str],
    environ: Mapping[str, str],
    given: Mapping[Location, str] | None = None,
) -> Config:
    """The configuration that `data` asks for.

    Args:
        data: What a file contains, or would contain.
        base: The folder that relative paths are relative to.
        environ: Environment variables.
        given: Values among `data` that go before the environment, and what a message says of where they come from.

    Raises:
        ConfigError: With every problem there is.
    """
    data = copy.deepcopy(data)
    origins = dict(given or {})
    problems = list(_add_environment(data, environ, origins))
    root, bad = _read(data)
    problems += [_describe(item, data, origins) for item in bad]
    config = _settings(root, base)
    for location, message in check_together(root, config, {location for location, *_ in bad}):
        problems.append(_line(location, _value_at(data, location), message, origins))
    if problems:
        raise ConfigError(problems)
    return config


# The environment


def _add_environment(data: dict[str, Any], environ: Mapping[str, str], origins: dict[Location, str]) -> Iterator[str]:
    """Put what the environment says into `data`; yields problems."""
    for variable, text in sorted(environ.items()):
        name = variable.removeprefix(_PREFIX)
        if name == variable or not text or _NOT_OURS.search(variable):
            continue
        found = _locate(name, data)
        if found is None:
            if name.partition("_")[0].lower() in SECTIONS and "_" in name:
                yield f"{variable}: unknown variable; no key of the configuration is called so"
            continue
        location, section = found
        if location in origins:
            continue
        target: Any = data
        for step in location[:-1]:
            target = target.setdefault(step, {}) if isinstance(target, dict) else target[step]
        target[location[-1]] = _from_text(section, str(location[-1]), text)
        origins[location] = variable


def _locate(name: str, data: dict[str, Any]) -> tuple[Location, type[Section]] | None:
    """The key that a variable is about, and the section it stands in."""
    if (key := name.lower()) in fields_of(Root).keys() - SECTIONS.keys():
        return (key,), Root
    prefixes: list[tuple[str, Location]] = []
    if isinstance(data.get("http", {}), dict):
        prefixes.append(("HTTP_", ("http",)))
    for kind in ("listen", "spool"):
        tables = data.get(kind)
        for index, table in enumerate(tables if isinstance(tables, list) else ()):
            if isinstance(table, dict):
                called = str(index) if kind == "listen" else str(table.get("name", "default"))
                prefixes.append((re.sub("[^A-Z0-9]", "_", f"{kind}_{called}_".upper()), (kind, index)))
    for prefix, table in prefixes:
        section = SECTIONS[str(table[0])]
        key = name.removeprefix(prefix).lower()
        if name.startswith(prefix) and key in fields_of(section):
            return (*table, key), section
    return None


def _from_text(section: type[Section], key: str, text: str) -> object:
    candidates: list[object] = [text]
    try:
        candidates.append(_loads(f"value = {text}")["value"])
    except (ValueError, RecursionError):
        items = [item.strip() for item in text.split(",")]
        candidates += [items, [int(item) if item.isdecimal() and len(item) < 20 else item for item in items]]
    return next((candidate for candidate in candidates if is_good(section, key, candidate)), text)


# Each value by itself


def _read(data: dict[str, Any]) -> tuple[Root, list[_Bad]]:
    """The values, with defaults in place of those that are bad, so that the good ones can be judged together."""
    bad: list[_Bad] = []
    remaining = copy.deepcopy(data)
    while True:
        try:
            return Root.model_validate(remaining), bad
        except ValidationError as error:
            for item in error.errors(include_url=False):
                bad.append((item["loc"], item["type"], item["msg"].removeprefix("Value error, ")))
                _drop(remaining, item["loc"])


def _drop(data: dict[str, Any], location: Location) -> None:
    """Take out the key that a bad value belongs to; a table that is none becomes an empty one."""
    match location:
        case ("listen" | "spool" as kind, int(index), key, *_):
            data[kind][index].pop(key, None)
        case ("listen" | "spool" as kind, int(index)):
            data[kind][index] = {}
        case ("http", key, *_):
            data["http"].pop(key, None)
        case _:
            data.pop(str(location[0]), None)


def _describe(bad: _Bad, data: dict[str, Any], origins: Mapping[Location, str]) -> str:
    """A problem with one value, as a line."""
    location, kind, reason = bad
    steps = [step for step in location if isinstance(step, str)]
    section = SECTIONS[steps[0]] if len(steps) > 1 else Root
    if kind == "extra_forbidden":
        return f"{_path(location)}: unknown key{_hint(steps[-1], section)}"
    if not reason.startswith("expected"):
        reason = f"expected {fields_of(section)[steps[-1]]}"
    return _line(location, _value_at(data, location), reason, origins)


def _hint(key: str, section: type[Section]) -> str:
    """What may have been meant by a key that there is not."""
    known = fields_of(section)
    if close := difflib.get_close_matches(key, known, n=1):
        return f"; did you mean {close[0]}?"
    tables = {"http": "[http]", "listen": "[[listen]]", "spool": "[[spool]]"}
    places = [tables[name] for name, other in SECTIONS.items() if key in fields_of(other)]
    if key in fields_of(Root):
        places.append("the top of the file, before all tables")
    return f"; its place is {' or '.join(places)}" if places else f"; expected {', '.join(known)}"


def _line(location: Location, value: object, message: str, origins: Mapping[Location, str]) -> str:
    # The address of a database may contain a password.
    shown = "" if value is _MISSING or location[-1] == "database" else f" = {_shown(value)}"
    origin = origins.get(location[: 3 if location[0] in ("listen", "spool") else 2])
    return f"{_path(location)}{shown}{f' (from {origin})' if origin else ''}: {message}"


def _path(location: Location) -> str:
    path = ""
    for step in location:
        if isinstance(step, int):
            path += f"[{step}]"
        else:
            path += ("." if path else "") + (step if _BARE_KEY.fullmatch(step) else json.dumps(step))
    return path


def _shown(value: object) -> str:
    if isinstance(value, str | int | float | list | dict):
        shown = json.dumps(value, ensure_ascii=False, default=str)
    else:
        shown = str(value)  # dates and times of TOML
    return shown if len(shown) <= _MAX_SHOWN else f"{shown[:_MAX_SHOWN]}…"


def _value_at(data: dict[str, Any], location: Location) -> object:
    value: Any = data
    for step in location:
        try:
            value = value[step]
        except (KeyError, IndexError):
            return _MISSING
    return value


# Settings


def _settings(root: Root, base: str | os.PathLike[str]) -> Config:
    folder = str(base)
    return Config(
        state_dir=_resolve(folder, root.state_dir),
        grace_seconds=root.grace_seconds,
        http=_http_settings(folder, root.http),
        listen=tuple(_listen_settings(folder, listen) for listen in root.listen),
        spools=tuple(_spool_settings(folder, spool) for spool in root.spool),
    )


def _http_settings(base: str, http: Http) -> HttpSettings:
    return HttpSettings(
        bind=_resolve_bind(base, http.bind),
        certfile=_resolve(base, http.certfile) if http.certfile else None,
        keyfile=_resolve(base, http.keyfile) if http.keyfile else None,
        allow_networks=tuple(http.allow_networks),
        hosts=tuple(http.hosts),
        max_body=http.max_body,
    )


def _listen_settings(base: str, listen: Listen) -> ListenSettings:
    return ListenSettings(
        bind=_resolve_bind(base, listen.bind or ""),
        mode=listen.mode,
        reply=listen.reply,
        spool=listen.spool,
        accept_modifiers=tuple(listen.accept_modifiers),
        allow_networks=tuple(listen.allow_networks),
        max_packet=listen.max_packet,
        max_body=listen.max_body,
        timeout=listen.timeout,
        max_connections=listen.max_connections,
    )


def _spool_settings(base: str, spool: Spool) -> SpoolSettings:
    return SpoolSettings(
        name=spool.name,
        directory=_resolve(base, spool.directory) if spool.directory else "",
        imports=tuple(_resolve(base, item) if _is_file(item) else item for item in spool.imports),
        processes=0 if spool.external else spool.processes,
        concurrency=spool.concurrency,
        frequency=spool.frequency,
        durability=spool.durability,
        timeout=spool.timeout,
        max_tasks=spool.max_tasks,
        policy=RetryPolicy(spool.max_attempts, spool.backoff),
        chdir=_resolve(base, spool.chdir) if spool.chdir else "",
        external=spool.external,
        keep_history=spool.keep_history,
    )


def _is_file(target: str) -> bool:
    """As `trispool.loading` tells files from modules."""
    return target.endswith(".py") or "/" in target


def _resolve(base: str, path: str) -> str:
    return normpath(join(base, path))


def _resolve_bind(base: str, bind: str) -> str:
    return f"unix:{_resolve(base, bind.removeprefix('unix:'))}" if bind.startswith("unix:") else bind
