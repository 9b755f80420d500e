"""Handlers written for uWSGI, unchanged: `trispool run --spool spool --import examples/legacy_uwsgi.py`.

They run under uWSGI, too: `uwsgi --master --socket 127.0.0.1:3031 --spooler spool --import examples/legacy_uwsgi.py`.
"""

# ruff: noqa: ANN001, ANN201
# It is as people write it.

import uwsgi
import uwsgidecorators
from uwsgidecorators import spool, spoolraw


@spool
def remember(arguments):
    """Done when it returns. Called with a dict of text, it is spooled."""
    print("remembering", arguments["what"])


@spool(pass_arguments=True)
def add(first, second=1):
    """Called with arguments, which are pickled meanwhile."""
    print("the sum is", first + second)


@spoolraw
def try_three_times(arguments):
    """Says itself what becomes of the task; to be run once more it spools itself again, with a count."""
    count = int(arguments.get("count", "1"))
    print("try", count)
    if count < 3:
        try_three_times({"count": str(count + 1)})
    return uwsgi.SPOOL_OK


def handle(env):
    """Everything else: tasks with vars of their own, as a web server's packets with `uwsgi_modifier1 17` have them."""
    if b"ud_spool_func" in env:
        return uwsgidecorators.manage_spool_request(env)
    if b"path" not in env:
        return uwsgi.SPOOL_IGNORE
    print("asked for", env[b"path"].decode(), "with a body of", len(env.get("body", b"")), "bytes")
    return uwsgi.SPOOL_OK


# Importing uwsgidecorators has set it to their dispatcher; whoever comes last is asked.
uwsgi.spooler = handle
