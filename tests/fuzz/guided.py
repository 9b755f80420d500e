"""One target, driven by the branches it takes: `python -m tests.fuzz.guided NAME [options of libFuzzer]`."""

from __future__ import annotations

import contextlib
import sys

import atheris  # type: ignore[import-untyped] # it has no annotations

with atheris.instrument_imports(include=["trispool"]):
    from tests.fuzz.http import http_server
    from tests.fuzz.targets import TARGETS


def main() -> None:
    """Never returns: libFuzzer ends the process."""
    name = sys.argv.pop(1)
    with contextlib.ExitStack() as stack:
        run = stack.enter_context(http_server()) if name == "http" else TARGETS[name].run
        atheris.Setup(sys.argv, run)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
