"""All that is known of the unfinished tasks of one spool: pure, told the time.

Rules it keeps:

1. A task stands in the schedule (it waits) or among the running ones (a worker has it in hand), never in both.
2. What somebody did to a waiting task's file counts: a new `at` (touch) is its due time, back-off or not. What somebody
   does to a running one's counts when its attempt has ended.
3. The number of attempts belongs to the task's id, so it survives a move between priority directories.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from trispool.schedule import Schedule, Waiting
from trispool.task import Entry, Retrying

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from trispool.retry import RunAgain

__all__ = ["SETTLE_SECONDS", "Backlog", "Running"]

SETTLE_SECONDS: Final = 1.0
"""How long a task waits whose writer may still be at work on it."""


@dataclass(slots=True)
class Running:
    """A task that a worker has in hand.

    Attributes:
        entry: The task, as it was when it was handed over.
        due_at: When it became due, Unix seconds.
        attempt: The number of this attempt.
        given_at: When it was handed over, Unix seconds.
        worker_pid: To which process.
        moved_at: The `at` that somebody gave it meanwhile, or None.
        progress: (fraction, text), as its handler last said, or None.
    """

    entry: Entry
    due_at: float
    attempt: int
    given_at: float
    worker_pid: int
    moved_at: float | None = None
    progress: tuple[float, str] | None = None


class Backlog:
    """See the module. It has one owner and changes only between two awaits, so it needs no lock.

    Args:
        frequency: Seconds between two attempts where nothing else is said.
        remembered: Tasks that wait for another attempt, by id.
    """

    def __init__(self, frequency: float, remembered: Mapping[str, Retrying] | None = None) -> None:
        self.frequency = frequency
        self._schedule: Schedule[Entry] = Schedule()
        self._running: dict[str, Running] = {}
        self._retrying: dict[str, Retrying] = dict(remembered or {})
        self._refs: dict[str, str] = {}
        self._locked: set[str] = set()
        self._prefixes: set[str] = {""}
        self._scan = 0

    # Figures

    @property
    def ready(self) -> int:
        """How many tasks are due."""
        return self._schedule.ready

    @property
    def scheduled(self) -> int:
        """How many tasks are for later, those that wait for another attempt included."""
        return self._schedule.scheduled

    @property
    def retrying(self) -> int:
        """How many tasks have had an attempt and wait for another one."""
        return len(self._refs)

    @property
    def running(self) -> Mapping[str, Running]:
        """What the workers have in hand, by `ref`."""
        return self._running

    def waiting(self) -> list[Waiting[Entry]]:
        """What waits, in no order: a snapshot, 8 bytes a task."""
        return list(self._schedule)

    def oldest_ready_at(self) -> float | None:
        """Since when the task is due that became ready first, Unix seconds."""
        return self._schedule.oldest_ready_at()

    def next_due(self) -> float | None:
        """When the next task becomes due, Unix seconds."""
        return self._schedule.next_due()

    def look(self, now: float) -> int:
        """How many tasks are due at `now`."""
        return self._schedule.look(now)

    def find(self, task_id: str) -> Waiting[Entry] | Running | None:
        """An unfinished task."""
        for prefix in self._prefixes:
            ref = prefix + task_id
            found = self._running.get(ref) or self._schedule.get(ref)
            if found is not None:
                return found
        return None

    def attempts(self, task_id: str) -> int:
        """How many attempts a waiting task has had."""
        known = self._retrying.get(task_id)
        return known.attempts if known else 0

    def last_error(self, task_id: str) -> str | None:
        """How the last attempt of a waiting task ended."""
        known = self._retrying.get(task_id)
        return known.error if known else None

    # What is seen of the spool

    def added(self, entry: Entry, now: float) -> None:
        """The service itself has just put this task there, whole."""
        if entry.ref not in self._running:
            self._put(entry, entry.at, now)

    def saw(self, entry: Entry, now: float, *, told: bool = False) -> None:
        """This task is there.

        Args:
            entry: The task.
            now: Unix seconds.
            told: Something has just been done to it, in contrast to: it was come across in a scan.
        """
        ref = entry.ref
        running = self._running.get(ref)
        if running is not None:
            if entry.at != running.entry.at:
                running.moved_at = entry.at
            return
        waiting = self._schedule.get(ref)
        if waiting is None:
            due_at = entry.at
            known = self._retrying.get(entry.id)
            if known is not None:
                due_at = max(due_at, known.due_at)
                self._refs[entry.id] = ref
            if entry.fresh:
                due_at = max(due_at, now + SETTLE_SECONDS)
            self._put(entry, due_at, now)
            return
        waiting.seen = self._scan
        if entry.at != waiting.entry.at:
            self._put(entry, entry.at, now)
        elif told and not entry.fresh and (waiting.entry.fresh or ref in self._locked):
            # Its writer, or whoever else was at work on it, has closed it.
            self._put(entry, entry.at, now)

    def gone(self, ref: str) -> None:
        """Somebody has taken this task out of the spool, or its worker has finished it."""
        waiting = self._schedule.discard(ref)
        if waiting is not None:
            self._locked.discard(ref)
            self._refs.pop(waiting.entry.id, None)

    def scan_begins(self) -> None:
        """All that waits and is neither seen nor put there from now on is gone when the scan has ended."""
        self._scan += 1

    def unseen(self) -> Iterator[str]:
        """What the scan that has just ended did not see; for `gone`. Reads a snapshot, so it may be taken slowly."""
        scan = self._scan
        for waiting in self.waiting():
            if waiting.seen < scan and self._schedule.get(waiting.entry.ref) is waiting:
                yield waiting.entry.ref

    def forget_lost(self) -> list[str]:
        """Forget attempts of tasks that are no longer there.

        Returns:
            Their ids.
        """
        lost = [task_id for task_id in self._retrying if self.find(task_id) is None]
        for task_id in lost:
            del self._retrying[task_id]
        return lost

    # Running

    def take(self, limit: int, now: float, worker_pid: int) -> list[Running]:
        """Let a worker have the tasks that are to run next.

        Args:
            limit: How many at most.
            now: Unix seconds.
            worker_pid: The worker.
        """
        taken = []
        for waiting in self._schedule.take(limit, now):
            entry = waiting.entry
            known = self._retrying.get(entry.id) if self._retrying else None
            attempt = known.attempts + 1 if known else 1
            running = Running(entry, waiting.due_at, attempt, now, worker_pid)
            self._running[entry.ref] = running
            taken.append(running)
        if self._locked:
            self._locked.difference_update(running.entry.ref for running in taken)
        return taken

    def ended(self, ref: str) -> Running | None:
        """A worker no longer has this task. None: it had not."""
        return self._running.pop(ref, None)

    def finished(self, task_id: str) -> bool:
        """The task will not run again.

        Returns:
            Whether it had earlier attempts, which are now forgotten.
        """
        self._refs.pop(task_id, None)
        return self._retrying.pop(task_id, None) is not None

    def wait_again(self, running: Running, again: RunAgain, now: float, error: str | None) -> Retrying:
        """A task whose attempt has ended waits for the next one.

        Returns:
            What is to be remembered of it.
        """
        entry = running.entry
        due_at = again.due_at
        if running.moved_at is not None:
            entry = entry._replace(at=running.moved_at)
            due_at = running.moved_at
        known = Retrying(entry.id, again.attempts, due_at, again.by_frequency, now, error)
        self._retrying[entry.id] = known
        self._refs[entry.id] = entry.ref
        self._put(entry, due_at, now)
        return known

    def put_back(self, running: Running, now: float, *, at: float | None = None, locked: bool = False) -> None:
        """A task that was handed over and not run waits again.

        Args:
            running: The task.
            now: Unix seconds.
            at: Due then, Unix seconds; None: as before.
            locked: Somebody else is at work on it: it is due as soon as they close it.
        """
        entry = running.entry
        if running.moved_at is not None:
            entry = entry._replace(at=running.moved_at)
            at = running.moved_at if at is None else at
        self._put(entry, running.due_at if at is None else at, now)
        if locked:
            self._locked.add(entry.ref)

    def set_frequency(self, seconds: float, now: float) -> None:
        """Whatever waits for its next attempt because of the frequency does so by the new one."""
        self.frequency = seconds
        for task_id, ref in self._refs.items():
            known = self._retrying[task_id]
            waiting = self._schedule.get(ref)
            if known.by_frequency and waiting is not None and waiting.due_at == known.due_at:
                due_at = max(waiting.entry.at, known.ended_at + seconds)
                self._retrying[task_id] = known._replace(due_at=due_at)
                self._put(waiting.entry, due_at, now)

    def _put(self, entry: Entry, due_at: float, now: float) -> None:
        if entry.ref != entry.id:
            self._prefixes.add(entry.ref.removesuffix(entry.id))
        self._schedule.put(entry, due_at, now).seen = self._scan
