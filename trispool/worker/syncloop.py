"""Runs tasks one after the other: the loop of a worker without async handlers.

A task costs a few microseconds here beyond the work on its file, so what is done for every task stands in one function,
`SyncLoop._run_batch`, and objects are only made where a handler needs them.

Reports go out together: at the end of a batch, and before a handler is called if any of them

- is older than `REPORT_SECONDS`, or
- tells more than that its task went well, or
- would have to wait for a handler that is not known to be quick.

What a handler thought to be quick then delays nevertheless, the service sees on the board.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final, cast

from trispool.calling import OK, call, call_legacy, failed, find, legacy_env, name_of, no_handler
from trispool.compat import context
from trispool.handlers import Handler
from trispool.task import MAX_KEPT_VARS
from trispool.worker import frames
from trispool.worker.board import MARKS, RETURNED
from trispool.worker.claims import leave_fork, let_go, make_task, no_files, open_carried, why_not

if TYPE_CHECKING:
    from collections.abc import Callable

    from trispool.calling import Legacy
    from trispool.claimed import ClaimedFile
    from trispool.spooldir import SpoolDirectory
    from trispool.worker.board import Board
    from trispool.worker.claims import Carried, Places
    from trispool.worker.frames import Code
    from trispool.worker.link import WorkerEnd
    from trispool.worker.output import TaskStream

__all__ = ["SyncLoop"]

REPORT_SECONDS: Final = 0.008
"""No report waits longer for others, if it can be helped. To hear of a few costs the service as much as to hear of
many, and a whole batch of quick tasks with files takes little longer."""

QUICK_SECONDS: Final = 0.0002
"""A handler that took no longer last time is one that reports may wait for."""

_MARK_OK: Final = MARKS["ok"]
_NUMBER, _RECALLED = 0, 4  # of `Board.words`
_STARTED, _DEADLINE = 1, 2  # of `Board.times`


class SyncLoop:
    """See the module.

    Args:
        setup: What this worker is.
        link: Where messages come from and go to.
        board: The shared page.
        directory: Where files are claimed, or None.
        places: Where handlers run.
        streams: The streams that handlers print to.
        compat: The namespace of the module `uwsgi`.
        on_message: Takes messages that are not about tasks.

    Attributes:
        current: The id of the task that is running, or None.
    """

    def __init__(
        self,
        setup: frames.Setup,
        link: WorkerEnd,
        board: Board,
        directory: SpoolDirectory | None,
        places: Places,
        streams: tuple[TaskStream, ...],
        compat: dict[str, Any],
        on_message: Callable[[frames.ToWorker], None],
    ) -> None:
        self.current: str | None = None
        self._setup = setup
        self._link = link
        self._board = board
        self._directory = directory
        self._places = places
        self._streams = streams
        self._compat = compat
        self._on_message = on_message
        self._quick: set[str] = set()

    def run(self) -> None:
        """Run tasks until told to quit.

        Raises:
            ServiceGone: The service has ended.
            OSError: The same, seen at another moment.
        """
        while True:
            message = self._link.receive()
            if isinstance(message, frames.Run):
                self._run_batch(message.first, message.items)
            elif isinstance(message, frames.Quit):
                return
            else:
                self._on_message(message)

    def _run_batch(self, first: int, items: list[frames.Item]) -> None:
        board = self._board
        words, times, marks, mask = board.words, board.times, board.marks, board.slots - 1
        compat, quick, monotonic = self._compat, self._quick, time.monotonic
        spool, spool_timeout = self._setup.spool, self._setup.timeout
        claim = self._directory.claim if self._directory is not None else no_files
        link, (stdout, stderr) = self._link, self._streams
        carried = context.current.carried
        reports: list[tuple[Any, ...]] = []
        now = report_by = monotonic()
        to_unix = time.time() - now
        for number, ((task_id, ref, content), attempt) in enumerate(items, first):
            times[_DEADLINE] = 0.0
            times[_STARTED] = now
            words[_NUMBER] = number
            if number < words[_RECALLED]:
                marks[number & mask] = RETURNED
                reports.append((number, "returned"))
                continue

            # Take it.
            held: ClaimedFile | Carried
            try:
                held = claim(ref) if content is None else open_carried(content)
            except Exception as error:
                code, detail = why_not(error)
                marks[number & mask] = MARKS[code]
                reports.append((number, code, 0.0, 0.0, None, None, None, None, detail))
                report_by = 0.0
                continue

            # Find its handler.
            vars = held.vars
            found = find(vars, compat.get("spooler"))
            timeout = spool_timeout
            native = found if isinstance(found, Handler) else None
            if native is not None:
                name = native.name
                if native.timeout is not None:
                    timeout = native.timeout
            elif found is not None:
                name = name_of(found, vars)
            else:
                name = ""
            if reports and (name not in quick or now > report_by):
                self._report(reports)

            # Run it.
            self.current = task_id
            if content is not None:
                carried[task_id] = ref, vars, held.body
            began = monotonic()
            if timeout:
                times[_STARTED] = began
                times[_DEADLINE] = began + timeout
            try:
                if native is not None:
                    self._places.enter()
                    task = make_task(task_id, ref, held, attempt, spool) if native.takes_task else None
                    result = call(native, vars, held.body, task)
                elif found is not None:
                    self._places.enter_legacy(ref)
                    result = call_legacy(
                        cast("Legacy", found), legacy_env(ref.rpartition("/")[2].encode(), vars, held.body)
                    )
                else:
                    result = no_handler(vars)
            except BaseException as error:  # not the handler's: `call` and `call_legacy` let nothing through
                result = failed(error)
            if link.is_closed:
                leave_fork(result)
            now = monotonic()
            if stdout.unended or stderr.unended:
                stdout.end_line(task_id)
                stderr.end_line(task_id)
            self.current = None
            times[_DEADLINE] = 0.0

            # Let go of it, and only then tell.
            if content is None:
                result = let_go(cast("ClaimedFile", held), result)
            else:
                carried.pop(task_id, None)
            if result is OK:
                marks[number & mask] = _MARK_OK
                if not reports:
                    report_by = now + REPORT_SECONDS
                payload = held.payload if len(held.payload) <= MAX_KEPT_VARS else None
                reports.append((number, "ok", began + to_unix, now - began, name, None, None, None, None, payload))
            else:
                marks[number & mask] = MARKS[cast("Code", result.code)]
                reports.append(
                    (
                        number,
                        result.code,
                        began + to_unix,
                        now - began,
                        name or None,
                        result.error,
                        result.traceback,
                        result.retry_at,
                    )
                )
                report_by = 0.0
            if now - began > QUICK_SECONDS:
                quick.discard(name)
            elif name not in quick:
                quick.add(name)
        words[_NUMBER] = 0
        if reports:
            self._report(reports)

    def _report(self, reports: list[tuple[Any, ...]]) -> None:
        self._link.send(("done", reports))
        reports.clear()
