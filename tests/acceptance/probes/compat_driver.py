"""Runs a probe under trispool's stand-ins, as a worker does, without one: `compat_driver.py outside|worker PROBE`."""

from __future__ import annotations

import json
import os
import sys

import trispool.compat
from trispool import calling, producer
from trispool.claimed import NotDue
from trispool.loading import load
from trispool.spooldir import SpoolDirectory

ROUNDS = 3
"""The first task spools others, which run in the second; one of those runs again."""


def main(kind: str, probe: str) -> None:
    if kind == "worker":
        directory = SpoolDirectory(os.environ["PROBE_SPOOL"])
        producer.use("default", directory)
        trispool.compat.install(
            trispool.compat.Context(
                directory=directory,
                spoolers=(directory.path,),
                pids=[os.getpid()],
                master_pid=os.getppid(),
            )
        )
        load(probe)
        for _ in range(ROUNDS):
            run_all(directory)
    else:
        load(probe)


def run_all(directory: SpoolDirectory) -> None:
    """Every task that is due, once."""
    for path in directory.names():
        ref = os.path.relpath(path, directory.path)
        try:
            claimed = directory.claim(ref)
        except NotDue:
            continue
        spooler = trispool.compat.spooler()
        assert spooler is not None
        name = os.path.basename(ref).encode()
        result = calling.call_legacy(spooler, calling.legacy_env(name, claimed.vars, claimed.body))
        told = "retry" if result.code == "failed" else result.code
        sys.stderr.write("PROBE " + json.dumps(["outcome", claimed.vars.get(b"returns", b"").decode(), told]) + "\n")
        if result.code == "ok":
            claimed.remove()
        else:
            claimed.close()


main(*sys.argv[1:])
