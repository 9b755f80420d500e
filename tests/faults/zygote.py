"""Services that start quickly: each is forked from a process that has imported all of trispool, and nothing more.

To start a service costs about a second of CPU time, and most of that is imports. Thousands of them are started here.
What is forked then runs the command line as it would have in a process of its own.

What a killed service leaves behind (workers that are dying) becomes the zygote's child, which reaps it.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import os
import pkgutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

ROOT: Final = Path(__file__).parents[2]

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_CHILD_SUBREAPER: Final = 36
_NOT_OF_THE_SERVICE: Final = ("trispool.compat", "trispool.worker")
"""`compat` changes what `import uwsgi` means, `worker` runs as a program of its own."""


class Zygote:
    """The process that services are forked from.

    Args:
        environment: Of all of them.
    """

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.faults.zygote", str(theirs.fileno())],
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": os.fspath(ROOT), **(environment or {})},
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                # Who stops us stops us alone; it sees that we are gone, and cleans up.
                start_new_session=True,
            )
        self._socket = ours
        self._answers = ours.makefile("rb")

    def start(self, arguments: Sequence[str], folder: Path, log: Path, environment: Mapping[str, str]) -> int:
        """Run `trispool` with these arguments in a folder.

        Args:
            arguments: Of the command line.
            folder: The current directory.
            log: Its output is added to this file.
            environment: Set beside what there is.

        Returns:
            The process id.
        """
        order = {"run": list(arguments), "folder": str(folder), "log": str(log), "environment": dict(environment)}
        return int(self._ask(order))

    def wait(self, pid: int) -> int:
        """Wait for the end of a service; gives its exit code, or minus the signal that ended it."""
        return int(self._ask({"wait": pid}))

    def close(self) -> None:
        """End it, and all that it has started."""
        self._socket.close()
        self._answers.close()
        self._process.wait()

    def _ask(self, order: Mapping[str, Any]) -> int:
        self._socket.sendall(json.dumps(order).encode() + b"\n")
        return int(json.loads(self._answers.readline()))


@contextlib.contextmanager
def opened(environment: Mapping[str, str] | None = None) -> Iterator[Zygote]:
    """A zygote, until the block ends."""
    zygote = Zygote(environment)
    try:
        yield zygote
    finally:
        zygote.close()


def children(pid: int) -> list[int]:
    """The processes that a process has started and that are there, dead ones that nobody has reaped included."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            # A thread starts children of its own; there is no list of the process's.
            with contextlib.suppress(OSError):
                found += map(int, Path(f"/proc/{pid}/task/{thread}/children").read_text().split())
    return found


def _serve(fd: int) -> None:
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    _import_all()
    # The children shall not copy all pages as soon as their collector looks at them.
    gc.collect()
    gc.freeze()
    ended: dict[int, int] = {}
    with socket.socket(fileno=fd) as orders, orders.makefile("rb") as lines:
        for line in lines:
            order = json.loads(line)
            if "wait" in order:
                answer = _reap(ended, order["wait"])
            else:
                answer = _fork(order, orders)
                ended.pop(answer, None)  # an orphan had the same number once, and was reaped with others
            orders.sendall(json.dumps(answer).encode() + b"\n")
    while left := children(os.getpid()):
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for _ in left:
            os.wait()


def _prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")


def _reap(ended: dict[int, int], pid: int) -> int:
    while pid not in ended:
        other, status = os.wait()
        ended[other] = os.waitstatus_to_exitcode(status)
    return ended.pop(pid)


def _fork(order: Mapping[str, Any], orders: socket.socket) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        orders.close()
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        os.setsid()
        os.chdir(order["folder"])
        log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.close(log)
        os.environ.update(order["environment"])
        from trispool.cli import main

        try:
            main(order["run"], prog_name="trispool")
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # what the zygote has registered to be done at its end is not this one's


def _import_all() -> None:
    import trispool

    for module in pkgutil.walk_packages(trispool.__path__, "trispool."):
        if not module.name.startswith(_NOT_OF_THE_SERVICE) and not module.name.endswith("__main__"):
            importlib.import_module(module.name)


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
