"""How the probes tell what they see: one line of JSON each behind `PROBE `, in the log.

Paths, hosts and file names are replaced by what they are, since these differ from run to run.
"""

from __future__ import annotations

import json
import os
import re
import sys

SPOOL = os.path.realpath(os.environ["PROBE_SPOOL"])


def plain(text: str) -> str:
    """Without what differs from run to run."""
    text = re.sub(r"uwsgi_spoolfile_on_[\w.-]+", "FILE", text)
    return text.replace(SPOOL, "SPOOL").replace(os.path.dirname(SPOOL), "FOLDER").replace(os.uname().nodename, "HOST")


def tell(kind: str, name: str, said: object) -> None:
    line = "PROBE " + json.dumps([kind, name, said])
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def try_out(kind: str, cases: dict[str, str], scope: dict[str, object]) -> None:
    for name, source in cases.items():
        try:
            value = eval(source, scope)
        except Exception as error:
            said = ["raised", type(error).__name__, plain(str(error))]
        else:
            said = ["returned", type(value).__name__, plain(repr(value))]
        tell(kind, name, said)
