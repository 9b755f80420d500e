"""What the service's API would say of a spool directory, read from the directory itself.

The documents have the members of the API's. What only the service or its ledger know (attempts, errors) is null.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import heapq
import os
import struct
import time
from typing import TYPE_CHECKING, Any, Final

from trispool.claimed import Unclaimable
from trispool.errors import TaskNotFound, TrispoolError
from trispool.packet import new_task
from trispool.spooldir import SpoolDirectory
from trispool.spoolfile import is_spool_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from trispool.cli.reach import Place
    from trispool.task import Entry

__all__ = ["find_task", "keep_task", "list_tasks", "read_body"]

MAX_PREVIEW: Final = 4096
"""As the API's."""

_WRITE_LOCK: Final = struct.Struct("hhqqi4x")


@contextlib.contextmanager
def _opened(place: Place, *, create: bool = False) -> Iterator[SpoolDirectory]:
    try:
        with contextlib.closing(SpoolDirectory(place.directory, fsync=place.fsync, create=create)) as directory:
            yield directory
    except OSError as error:
        raise TrispoolError(f"{error.filename or place.directory}: {error.strerror or error}") from error


def keep_task(
    place: Place, vars: dict[bytes, bytes], body: bytes, at: float | None, priority: int | None
) -> dict[str, Any]:
    """Put a task into a spool directory.

    Raises:
        TaskRefused: It cannot be kept as it is.
        SpoolUnavailable: It could not be kept.
    """
    task = new_task(vars, body, at=at, priority=priority)
    with _opened(place, create=place.may_create) as directory:
        result = directory.add([task])[0]
    if isinstance(result, TrispoolError):
        raise result
    return {"id": result.id, "spool": place.name, "at": task.at}


def list_tasks(
    places: Sequence[Place], *, state: str | None, q: str | None, descending: bool, limit: int
) -> dict[str, Any]:
    """The first tasks of some spools, by time of enqueuing."""
    with contextlib.ExitStack() as stack:
        opened = [(place, stack.enter_context(_opened(place))) for place in places if os.path.isdir(place.directory)]
        found = (
            (entry, place, directory, aside)
            for place, directory in opened
            for aside in (None, "held", "dead")
            for entry in _entries(directory, aside)
            if q is None or q in entry.id
        )
        choose = heapq.nlargest if descending else heapq.nsmallest
        # Only of what may be shown is it looked up whether somebody runs it.
        candidates = choose(limit + 1, found, key=lambda item: item[0].order) if state is None else found
        tasks = (_summary(*item) for item in candidates)
        chosen = [task for task in tasks if state in (None, task["state"])]
    chosen.sort(key=lambda task: task["enqueued_at"], reverse=descending)
    return {"tasks": chosen[:limit], "cursor": None, "more": len(chosen) > limit}


def find_task(places: Sequence[Place], task_id: str) -> dict[str, Any]:
    """One task, with its vars and the beginning of its body.

    Raises:
        TaskNotFound: It does not wait in any of the directories.
    """
    with _found(places, task_id) as (place, directory, entry, aside):
        document = _summary(entry, place, directory, aside) | {"vars": None, "body": None, "history": []}
        try:
            vars, body = directory.read(entry.ref)
        except Unclaimable as error:
            return document | {"last_error": str(error)}
    shown = body[:MAX_PREVIEW]
    return document | {
        "vars": {key.decode("utf-8", "backslashreplace"): _text_or_base64(value) for key, value in vars.items()},
        "body": {"size": len(body), "preview": _text_or_base64(shown), "truncated": len(body) > len(shown)},
    }


def read_body(places: Sequence[Place], task_id: str) -> bytes:
    """The body of a task. Raises as `find_task` does, and if its file cannot be read."""
    with _found(places, task_id) as (_, directory, entry, _):
        return directory.read(entry.ref)[1]


@contextlib.contextmanager
def _found(places: Sequence[Place], task_id: str) -> Iterator[tuple[Place, SpoolDirectory, Entry, str | None]]:
    for place in places:
        if not os.path.isdir(place.directory):
            continue
        with _opened(place) as directory:
            folders = ("", *(f"{name}/" for name in directory.priorities()))
            waiting = (directory.look(folder + task_id) for folder in folders) if is_spool_name(task_id) else ()
            if (entry := next((entry for entry in waiting if entry is not None), None)) is not None:
                yield place, directory, entry, None
                return
            for aside in ("held", "dead"):
                for entry in _entries(directory, aside):
                    if entry.id == task_id:
                        yield place, directory, entry, aside
                        return
    raise TaskNotFound(f"there is no task {task_id!r}; what is done is known to the service only")


def _entries(directory: SpoolDirectory, aside: str | None) -> Iterator[Entry]:
    """What waits, or what is `held` or `dead`."""
    if aside is None:
        for chunk in directory.scan():
            yield from chunk
    else:
        yield from directory.held() if aside == "held" else directory.dead()


def _summary(entry: Entry, place: Place, directory: SpoolDirectory, aside: str | None) -> dict[str, Any]:
    if aside is not None:
        state = aside
    elif _is_locked(directory.absolute(entry.ref)):
        state = "running"
    else:
        state = "scheduled" if entry.at > time.time() else "ready"
    return {
        "id": entry.id,
        "spool": place.name,
        "state": state,
        "at": entry.at,
        "priority": entry.priority,
        "enqueued_at": entry.order[0] / 1e6,
        **dict.fromkeys(("attempts", "last_error", "finished_at", "run_seconds", "progress")),
    }


def _is_locked(path: str) -> bool:
    """Whether somebody runs the task, without taking its lock even for a moment."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        asked = _WRITE_LOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, asked)
        return bool(_WRITE_LOCK.unpack(answer)[0] != fcntl.F_UNLCK)
    except OSError:
        return False
    finally:
        os.close(fd)


def _text_or_base64(value: bytes) -> str | dict[str, str]:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(value).decode("ascii")}
