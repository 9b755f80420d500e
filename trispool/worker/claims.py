"""From what the service sends to a task in hand, and to the place where it runs.

Where a handler runs: in `chdir` if the spool has one. Else a handler for uWSGI runs, as under uWSGI, where its spool
file is (`core/spooler.c`, `spooler_manage_task`, runs tasks in the directory it scans, so that `spooler_task_name` can
be opened as it is), and others run where the service was started. A handler that changes the directory does so for
itself only: before each task it is set anew.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from typing import TYPE_CHECKING, Final, NamedTuple, NoReturn

from trispool import spoolfile
from trispool.calling import Result
from trispool.claimed import Gone, Locked, NotDue, Settling, Unclaimable, Unreadable
from trispool.errors import MalformedPacket
from trispool.packet import decode_vars
from trispool.task import Task

if TYPE_CHECKING:
    from trispool.claimed import ClaimedFile
    from trispool.worker.frames import Code

__all__ = ["Carried", "Places", "leave_fork", "let_go", "make_task", "no_files", "open_carried", "why_not"]

_CODES: Final[dict[type[Unclaimable], Code]] = {
    Gone: "gone",
    Locked: "locked",
    NotDue: "not_due",
    Unreadable: "unreadable",
    Settling: "settling",
}


class Carried(NamedTuple):
    """A task that came whole, as it has no file (yet). Like a claimed file to whoever runs it."""

    payload: bytes
    vars: dict[bytes, bytes]
    body: bytes
    at: float = 0.0


def open_carried(content: tuple[bytes, bytes]) -> Carried:
    """A task that came whole.

    Raises:
        Unreadable: The vars cannot be decoded.
        NotDue: It is for later.
    """
    try:
        vars = decode_vars(content[0])
    except MalformedPacket as error:
        raise Unreadable(str(error)) from None
    at = 0.0
    if b"at" in vars:
        with contextlib.suppress(ValueError):
            at = float(vars[b"at"])
        if at > time.time():  # the clock has been set back
            raise NotDue(at)
    return Carried(content[0], vars, content[1], at)


def why_not(error: Exception) -> tuple[Code, float | str | None]:
    """What to report of a task that could not be claimed: the code and its detail.

    Args:
        error: What `SpoolDirectory.claim` or `open_carried` raised. If it is not one of theirs (the disk fails), it is
            better to look again later than to call the task unreadable.
    """
    if isinstance(error, NotDue):
        return "not_due", error.at
    if isinstance(error, Unreadable):
        return "unreadable", _encodable(error.reason)
    code = _CODES.get(type(error)) if isinstance(error, Unclaimable) else None
    if code is None:
        return "settling", _encodable(f"{type(error).__name__}: {error}")
    detail = _encodable(str(error))
    return code, detail if code == "settling" and detail != Settling.__doc__ else None


def _encodable(text: str) -> str:
    return text.encode(errors="backslashreplace").decode()


def make_task(task_id: str, ref: str, held: ClaimedFile | Carried, attempt: int, spool: str) -> Task:
    """The `Task` for a handler that wants one."""
    folder = ref.rpartition("/")[0]
    enqueued_at = spoolfile.order_of(task_id, held.at)[0] / 1e6
    # Every file has an mtime; it means something if it was asked for, or has been set since.
    is_for_later = b"at" in held.vars or held.at > enqueued_at + 1
    return Task(
        id=task_id,
        vars=held.vars,
        body=held.body,
        at=held.at if is_for_later and held.at else None,
        priority=spoolfile.is_priority_name(folder) if folder else None,
        attempt=attempt,
        spool=spool,
        enqueued_at=enqueued_at,
    )


def no_files(ref: str) -> ClaimedFile:
    """What claims files where there are none.

    Raises:
        Unreadable: Always.
    """
    raise Unreadable(f"{ref} was sent without its content, but this spool has no directory")


def let_go(held: ClaimedFile, result: Result) -> Result:
    """Remove the file of a task that is done; let go of any other.

    Returns:
        What to report.
    """
    if result.code != "ok":
        held.close()
        return result
    try:
        held.remove()
    except OSError as error:
        return Result("failed", f"it ran well, but its file cannot be removed: {error.strerror or error}")
    return result


def leave_fork(result: Result) -> NoReturn:
    """End a process that a handler forked, where the handler ends: it is not a second worker.

    Args:
        result: What came of the handler there; it makes the exit code.
    """
    with contextlib.suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(0 if result.code == "ok" else 1)


class Places:
    """Goes to where handlers run; see the module. The current directory becomes that of native handlers.

    Args:
        spool: A descriptor of the spool's directory, or None if handlers for uWSGI run in the current one, too.
    """

    def __init__(self, spool: int | None) -> None:
        self._home = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._spool = self._home if spool is None else spool

    def enter(self) -> None:
        """Go to where native handlers run."""
        os.fchdir(self._home)

    def enter_legacy(self, ref: str) -> None:
        """Go to where the handler for uWSGI runs the task at `ref`.

        Raises:
            OSError: The directory has been removed.
        """
        os.fchdir(self._spool)
        if "/" in ref and self._spool != self._home:
            folder = ref.rpartition("/")[0]
            try:
                os.chdir(folder)
            except FileNotFoundError:  # none with this priority has had a file yet
                with contextlib.suppress(FileExistsError):
                    os.mkdir(folder)
                os.chdir(folder)
