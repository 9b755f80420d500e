"""The command line. Words in, exit code out: 0, 1 (the service said no), 2 (usage or configuration).

Commands import what they need when they run, so that the command line itself starts fast.
"""

from __future__ import annotations

from typing import Any

import click

from trispool.cli.operate import COMMANDS
from trispool.cli.run import check, run
from trispool.cli.status import status
from trispool.cli.tasks import list_, put, show
from trispool.cli.token import token
from trispool.errors import ConfigError, TrispoolError

__all__ = ["main"]


class _Commands(click.Group):
    """Turns errors of trispool into messages and exit codes."""

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401 # as click has it
        try:
            return super().invoke(ctx)
        except ConfigError as error:
            for problem in error.problems:
                click.echo(f"error: {problem}", err=True)
            ctx.exit(2)
        except TrispoolError as error:
            click.echo(f"error: {error}", err=True)
            ctx.exit(1)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(package_name="trispool")
def main() -> None:
    """trispool: a spooler for Python."""


for _command in (run, check, put, list_, show, status, *COMMANDS, token):
    main.add_command(_command)
