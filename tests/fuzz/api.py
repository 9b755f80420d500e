"""Schemathesis, for long: `python -m tests.fuzz.api SECONDS SEED`. The short form is in `tests.test_openapi`."""

from __future__ import annotations

import random
import sys
import tempfile
from pathlib import Path

from tests.test_openapi import Api, let_schemathesis_look


def main() -> None:
    """Fail if it finds something."""
    seconds, seed = int(sys.argv[1]), int(sys.argv[2]) or random.randrange(1, 2**31)
    with tempfile.TemporaryDirectory() as folder, Api() as api:
        # As many examples as come within the time; all phases, of which the last makes sequences of calls.
        options = ("--seed", str(seed), "--max-time", str(seconds), "--max-examples", "100000")
        print(let_schemathesis_look(api.url, Path(folder), *options, timeout=seconds + 120)[-1500:])


if __name__ == "__main__":
    main()
