"""What runs inside a worker process, and the frames and the shared page by which the service speaks with it.

A worker imports the handlers, runs tasks and reports. It is one interpreter of its own, so that nothing a handler does
(crash, exit, hang, leak, print) reaches further than the attempt it was in:

- It talks over a socket pair (`frames`) that handlers never see; file descriptors 1 and 2 are pipes to the service's
  log (`output`).
- What it is doing at this moment stands on a page of memory shared with the service (`board`), so that after a crash
  the service knows which task is to blame, which were finished and which never begun, at no system call per task.
- It dies with the service: a pipe whose other end only the service holds is set up to kill it, and what it started,
  by signal (`bootstrap`).
- It leads a session of its own, so Ctrl-C on the service's terminal does not reach it, and the service can kill it
  together with the processes that its handlers started.

Trio is loaded here only where a handler is async (`asyncloop`).
"""

from __future__ import annotations

import signal
from typing import Final

__all__ = ["DUMP_SIGNAL"]

DUMP_SIGNAL: Final = signal.SIGRTMAX
"""Makes a worker print its tracebacks, also from the middle of a call into C. The service sends it to one that is
overdue, so that the log tells where the handler hung; a signal that handlers are unlikely to use themselves."""
