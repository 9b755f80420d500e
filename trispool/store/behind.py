"""Write-behind for a spool directory: a task is kept as a row of `.trispool/spool.db`; it gets a file only if it waits.

To create a file and have it reach the disk takes 0.7 ms or more, whatever else goes on; one commit of SQLite takes
little more for a hundred tasks. So what is enqueued goes into the next commit, with all else that waits then, and is
acknowledged when that is done. What is run at once never has a file. What still waits after a quarter of a second is
written out (`trispool.store.outgoing`), so that the directory shows all that waits, and only then leaves the database.

Rules it keeps:

1. While it is open the memory (`trispool.store.incoming`) is the truth; the database is what a crash leaves of it. A
   task is in the database or has a file, at every moment; for the moment in which it is both, its file is locked.
2. One service uses the table at a time (`trispool.store.tenure`). For any other, and where others run what is put here,
   every task gets its file before it is acknowledged.
3. All tasks of one call of `add` are in one transaction (`trispool.store.commits`).
"""

from __future__ import annotations

import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import structlog
import trio

from trispool import spoolfile
from trispool.errors import SpoolUnavailable, TaskRefused, TrispoolError
from trispool.incomingfile import IncomingRow
from trispool.spoolwriter import new_names
from trispool.store.commits import Call, Commits, closing
from trispool.store.incoming import MAX_BYTES, Incoming, Kept, entry_of_row
from trispool.store.outgoing import Outgoing
from trispool.store.tenure import Tenure

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Collection, Sequence

    from trispool.spooldir import SpoolDirectory
    from trispool.store import Claim
    from trispool.store.tenure import Database
    from trispool.task import Entry, NewTask

__all__ = ["WriteBehind", "open_write_behind"]

LARGE_BODY: Final = 64 * 1024
"""A task that comes alone with a body of more bytes is written to its file at once: it would be written twice."""

LATEST_AT: Final = 2**31 - 1
"""A task for later than this, Unix seconds (2038), is too: not every file system can hold such a time, and whether it
can has to be told when the task is enqueued."""

AT_A_STRETCH: Final = 500
"""Tasks, some 3 ms, before others have their turn."""

CLOSE_SECONDS: Final = 10.0
"""What cannot be written out in this time at the end is found by the next start. On a full disk a stop waits so long
only if tasks have ended that the database still has: they would run again."""

LEAVING_SECONDS: Final = 2.0
"""For so long a claim waits for tasks that are on their way into files. If the disk hangs, others can still run."""

CLOSE_RETRY_SECONDS: Final = 1.0
"""So long after it failed the last commit is tried again."""

_log = structlog.get_logger()


@asynccontextmanager
async def open_write_behind(
    opened: SpoolDirectory, database: Database, *, accepts: bool, fsync: bool, recovered: Callable[[], None]
) -> AsyncIterator[WriteBehind]:
    """Write-behind for a directory, while it is open. At the end what waits is written out.

    Args:
        opened: The spool directory.
        database: The one in it, open until this has ended.
        accepts: Whether to keep new tasks here, or only to write out what a crash has left.
        fsync: Whether what is kept has to be on disk, here or as a file.
        recovered: Called when there are tasks that have to be looked for: those that a service which has ended has
            left, those that could not be claimed because they took too long to leave, and those that were kept when
            their caller had gone.

    Raises:
        OSError: What a crash has left cannot be read.
    """
    rows = Incoming()

    def they_wait() -> None:
        outgoing.expect()
        recovered()

    tenure = Tenure(opened, database, rows, fsync=fsync, recovered=they_wait)
    outgoing = Outgoing(opened, database, rows, tenure, recovered)
    commits = Commits(rows, tenure, outgoing, recovered, accepts=accepts)
    behind = WriteBehind(database, rows, tenure, outgoing, commits)
    try:
        await tenure.open()
    except SpoolUnavailable as error:
        tenure.close()
        raise OSError(str(error)) from error
    try:
        if not accepts:
            await outgoing.write_all()
            if not rows:
                await tenure.commit_removals()
                tenure.close()  # whoever runs these tasks may want it
        async with trio.open_nursery() as nursery:
            if accepts or rows:
                nursery.start_soon(tenure.run_tenure)
            nursery.start_soon(outgoing.run_outgoing)
            nursery.start_soon(commits.run_commits)
            try:
                yield behind
            finally:
                nursery.cancel_scope.cancel()
        with trio.move_on_after(0.0 if commits.hangs else CLOSE_SECONDS, shield=True):
            await outgoing.write_all()
            # There is no later commit, and what has ended would run again. On a full disk somebody may make room.
            while not await tenure.commit_removals():  # noqa: ASYNC110 # a disk tells nobody
                await trio.sleep(CLOSE_RETRY_SECONDS)
        if rows:
            _log.warning("tasks_left_in_the_database", directory=opened.path, tasks=len(rows))
    finally:
        tenure.close()


class WriteBehind:
    """See the module. Made by `open_write_behind`.

    Attributes:
        rows: What is kept and has no file.
    """

    def __init__(
        self,
        database: Database,
        rows: Incoming,
        tenure: Tenure,
        outgoing: Outgoing,
        commits: Commits,
    ) -> None:
        self.rows = rows
        self.as_file = outgoing.as_file
        self._database = database
        self._tenure = tenure
        self._outgoing = outgoing
        self._commits = commits

    @property
    def problem(self) -> str | None:
        """Why tasks are not taken, or do not get their files, or None."""
        return self._tenure.problem or self._outgoing.problem

    # Keeping tasks

    @property
    def accepts(self) -> bool:
        """Whether tasks can be kept here now."""
        return self._commits.is_open and self._tenure.is_ours

    def takes(self, tasks: Sequence[NewTask]) -> bool:
        """Whether these are to be kept here."""
        if not self.accepts:
            return False
        size = 0
        for task in tasks:
            size += len(task.payload) + len(task.body)
            if task.at is not None and task.at > LATEST_AT:
                return False
        return size <= (MAX_BYTES if len(tasks) > 1 else LARGE_BODY + len(tasks[0].payload))

    async def add(self, tasks: Sequence[NewTask]) -> list[Entry | TrispoolError]:
        """See `SpoolStore.add`."""
        commits = self._commits
        await commits.let_in()
        if not commits.is_open:
            return [closing()] * len(tasks)
        named = {task.id for task in tasks if task.id is not None}
        try:
            taken = await self._reserve(named) if named else set()
        except SpoolUnavailable as unavailable:
            return [unavailable] * len(tasks)
        reserved = named - taken
        try:
            results: list[Entry | TrispoolError] = []
            kept: list[Kept] = []
            for start in range(0, len(tasks), AT_A_STRETCH):
                if start:
                    await trio.lowlevel.checkpoint()
                self._prepare(tasks[start : start + AT_A_STRETCH], taken, kept, results)
            if not kept:
                return results
            if not commits.is_open:  # it has been closed meanwhile, and nobody would answer
                return [_unless_refused(result, closing()) for result in results]
            call = Call(kept, reserved)
            reserved = set()
        finally:
            commits.named -= reserved
        error = await commits.commit(call)
        return results if error is None else [_unless_refused(result, error) for result in results]

    async def _reserve(self, names: Collection[str]) -> set[str]:
        """Keep others from using these names.

        Returns:
            Those that are in use already. The caller lets go of the others.

        Raises:
            SpoolUnavailable: That cannot be found out.
        """
        taken = {name for name in names if name in self._commits.named or name in self.rows}
        reserved = set(names) - taken
        self._commits.named |= reserved
        try:
            return taken | await self._tenure.with_files(list(reserved))
        except BaseException:
            self._commits.named -= reserved
            raise

    def _prepare(
        self, tasks: Sequence[NewTask], taken: set[str], kept: list[Kept], results: list[Entry | TrispoolError]
    ) -> None:
        """What is to be kept of some tasks, and the results if it is; a name that is taken is refused."""
        now = time.time()
        for task, number, (name, order) in zip(
            tasks, self._tenure.numbers(len(tasks)), new_names(len(tasks)), strict=True
        ):
            payload, body, at, priority, _, given = task
            if given is not None:
                if given in taken:
                    results.append(TaskRefused(f"there is a task {given!r} already", status=409))
                    continue
                taken.add(given)
                name, order = given, spoolfile.order_of(given, now)
            row = IncomingRow(number, name, priority, at or now, payload, body)
            item = Kept(row, entry_of_row(row, order))
            kept.append(item)
            results.append(item.entry)

    # Running them

    async def claim(self, entries: Sequence[Entry]) -> list[Claim]:
        """Claims for these tasks, whether they are here or have files; not for those that take too long to leave."""
        if self.rows.leaving(entries):
            with trio.move_on_after(LEAVING_SECONDS):
                while self.rows.leaving(entries):
                    await self._outgoing.left.park()
            if leaving := self.rows.leaving(entries):
                self._outgoing.were_wanted = True
                entries = [entry for entry in entries if entry not in leaving]
        claims = self.rows.claim(entries)
        self._commits.made_room()
        return claims

    def finish(self, done: Sequence[Claim]) -> None:
        """These ran well."""
        for claim in done:
            if claim.content is not None:
                self.rows.discard(claim.id)
                self._database.remove(claim.id)

    def release(self, claims: Sequence[Claim]) -> None:
        """These wait again."""
        now = trio.current_time()
        for claim in claims:
            if claim.content is not None and (kept := self.rows.claimed(claim.id, claim.content)) is not None:
                self.rows.release(kept, now)
                self._outgoing.expect()


def _unless_refused(result: Entry | TrispoolError, error: SpoolUnavailable) -> TrispoolError:
    return result if isinstance(result, TrispoolError) else error
