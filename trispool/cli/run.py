"""`trispool run` and `trispool check`."""

from __future__ import annotations

import gc
import os
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import click

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from trispool.config import Config, Location

__all__ = ["check", "read_config", "run"]

_Option: TypeAlias = "str | int | tuple[str, ...] | None"

DEFAULT_CONFIG = "config.toml"

_config_argument = click.argument("config", required=False, envvar="TRISPOOL_CONFIG", type=click.Path(dir_okay=False))


@click.command()
@_config_argument
@click.option("--spool", metavar="DIR", help="Run this spool directory, without a configuration file.")
@click.option("--import", "imports", metavar="FILE|MODULE", multiple=True, help="Handlers; may be repeated.")
@click.option("--socket", "sockets", metavar="ADDR", multiple=True, help="A uwsgi socket; may be repeated.")
@click.option("--http", metavar="ADDR", help="Where the HTTP API is served.")
@click.option("--state-dir", metavar="DIR", help="Where the token is kept.")
@click.option("--processes", metavar="N", type=int, help="Worker processes.")
@click.option("--frequency", metavar="S", help="Time between two scans.")
@click.option("--durability", type=click.Choice(["fsync", "os"]), help="What an acknowledged task survives.")
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    show_default=True,
    envvar="TRISPOOL_LOG_LEVEL",
    show_envvar=True,
)
@click.option(
    "--log-format",
    type=click.Choice(["auto", "console", "json"]),
    default="auto",
    show_default=True,
    envvar="TRISPOOL_LOG_FORMAT",
    show_envvar=True,
    help="auto: console on a terminal, JSON elsewhere.",
)
def run(config: str | None, log_level: str, log_format: str, **options: _Option) -> None:
    """Run everything that CONFIG (else config.toml) says, or a single spool as the options say.

    ADDR is 127.0.0.1:3031, [::1]:3031 or unix:PATH. Beside a file the options go before what the file says; those of a
    spool only if there is one spool in it.
    """
    # Until all is imported: what comes then stays, and a tenth of the time would go into looking for what does not.
    gc.disable()
    try:
        code = _run(config, options, log_level, log_format)
    finally:
        gc.enable()
    click.get_current_context().exit(code)


def _run(config: str | None, options: Mapping[str, _Option], log_level: str, log_format: str) -> int:
    from trispool import logs

    logs.configure(level=log_level, format=cast("logs.LogFormat", log_format))
    settings = _settings(config, options)
    from trispool.service import run as run_service

    return run_service(settings)


@click.command()
@_config_argument
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def check(config: str | None, as_json: bool) -> None:
    """Say everything that is wrong with CONFIG (else config.toml); exit code 2 if there is anything."""
    from trispool.errors import ConfigError

    try:
        settings = _settings(config, {})
        problems = [f"{_file(config)}: {problem}" for problem in _missing_files(settings)]
    except ConfigError as error:
        problems = error.problems
    if as_json:
        from trispool.cli.display import print_json

        print_json({"ok": not problems, "problems": problems})
        if problems:
            click.get_current_context().exit(2)
    elif problems:
        raise ConfigError(problems)
    else:
        click.echo(f"{_file(config)}: good; spools: {', '.join(spool.name for spool in settings.spools)}")


def _settings(config: str | None, options: Mapping[str, _Option]) -> Config:
    """The configuration that file, environment and options ask for together.

    Raises:
        ConfigError: With all that is wrong.
    """
    if options.get("spool") is None:
        return read_config(_file(config), options)
    # A file that the environment names is a default, too; only one that was typed contradicts.
    source = click.get_current_context().get_parameter_source("config")
    if config is not None and source is click.core.ParameterSource.COMMANDLINE:
        raise click.UsageError("--spool takes the place of a configuration file")
    from trispool.config import build

    given: dict[Location, str] = {}
    data: dict[str, Any] = {"spool": [{"name": "default", "directory": os.path.abspath(str(options["spool"]))}]}
    given["spool", 0, "directory"] = "--spool"
    _add_options(data, options, given)
    return build(data, base=os.getcwd(), environ=os.environ, given=given)


def read_config(path: str, options: Mapping[str, _Option] | None = None) -> Config:
    """The configuration in a file, with options of the command line on top.

    Raises:
        ConfigError: With all that is wrong, each with the name of the file.
    """
    from trispool.config import build, parse
    from trispool.errors import ConfigError

    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"not UTF-8: {error}"
        raise ConfigError([f"{path}: {reason}"]) from None
    try:
        data = parse(text)
        given: dict[Location, str] = {}
        _add_options(data, options or {}, given)
        return build(data, base=os.path.dirname(os.path.abspath(path)), environ=os.environ, given=given)
    except ConfigError as error:
        raise ConfigError([f"{path}: {problem}" for problem in error.problems]) from None


def _file(config: str | None) -> str:
    if config is None and not os.path.exists(DEFAULT_CONFIG):
        raise click.UsageError(f"there is no {DEFAULT_CONFIG} here; name a configuration file, or see --help")
    return config or DEFAULT_CONFIG


def _add_options(data: dict[str, Any], options: Mapping[str, Any], given: dict[Location, str]) -> None:
    """Put options into the data of a file. Their paths are relative to where we are."""
    if options.get("http") is not None:
        http = data.setdefault("http", {})
        if isinstance(http, dict):
            http["bind"] = _absolute_bind(options["http"])
            given["http", "bind"] = "--http"
    if options.get("state_dir") is not None:
        data["state_dir"] = os.path.abspath(options["state_dir"])
        given["state_dir",] = "--state-dir"
    if sockets := options.get("sockets"):
        data["listen"] = [{"bind": _absolute_bind(bind)} for bind in sockets]
        given.update({("listen", index, "bind"): "--socket" for index in range(len(sockets))})
    values = {key: options.get(key) for key in ("processes", "frequency", "durability")}
    if imports := options.get("imports"):
        values["import"] = [_absolute_file(target) for target in imports]
    values = {key: value for key, value in values.items() if value is not None}
    if not values:
        return
    spools = data.get("spool")
    if not (isinstance(spools, list) and len(spools) == 1 and isinstance(spools[0], dict)):
        raise click.UsageError(f"--{min(values)} goes with --spool, or with a configuration that has one [[spool]]")
    for key, value in values.items():
        spools[0][key] = value
        given["spool", 0, key] = f"--{key}"


def _absolute_bind(bind: str) -> str:
    path = bind.removeprefix("unix:")
    return f"unix:{os.path.abspath(path)}" if path != bind and path else bind


def _absolute_file(target: str) -> str:
    return os.path.abspath(target) if target.endswith(".py") or "/" in target else target


def _missing_files(config: Config) -> Iterator[str]:
    """What a configuration names and is not there; the service makes directories of spools, but not these."""
    for kind in ("certfile", "keyfile"):
        path = getattr(config.http, kind)
        if path is not None and not os.access(path, os.R_OK):
            yield f"http.{kind}: expected a file that can be read; {path} is none"
    for index, spool in enumerate(config.spools):
        yield from _missing_of_spool(f"spool[{index}]", spool.imports, spool.chdir)


def _missing_of_spool(where: str, imports: Sequence[str], chdir: str) -> Iterator[str]:
    for number, target in enumerate(imports):
        if os.path.isabs(target) and not os.access(target, os.R_OK):
            yield f"{where}.import[{number}]: expected a file that can be read; {target} is none"
    if chdir and not os.path.isdir(chdir):
        yield f"{where}.chdir: expected a directory; {chdir} is none"
