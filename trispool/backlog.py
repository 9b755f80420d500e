"""All that is known of the unfinished tasks of one spool: pure, told the time.

Rules it keeps:

1. A task stands in the schedule (it waits) or among the running ones (a worker has it in hand), never in both.
2. What somebody did to a waiting task's file counts: a new `at` (touch) is its due time, back-off or not. What somebody
   does to a running one's counts when its attempt has ended.
3. The number of attempts belongs to the task's id, so it survives a move between priority directories. It is forgotten
   when the task is finished, or when a whole scan has not found it.
4. What a scan says of a task counts less than what was told of it since that scan began: the scan looked earlier.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from trispool.running import Running
from trispool.schedule import Schedule, Waiting
from trispool.spoolfile import due_at as due_of_file
from trispool.task import Retrying

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from trispool.retry import RunAgain
    from trispool.task import Entry

__all__ = ["SETTLE_SECONDS", "Backlog", "Running"]

SETTLE_SECONDS: Final = 1.0
"""How long a task waits whose writer may still be at work on it, and how long one, at least, that was locked: when its
worker lets go of the file that looks as if whoever has the lock did."""

_SLOTS: Final = 1000
"""So many waiting tasks are looked at in one go, some 50 µs, by `Backlog.unseen`."""


class Backlog:
    """See the module. It has one owner and changes only between two awaits, so it needs no lock.

    Args:
        frequency: Seconds between two attempts where nothing else is said.
        remembered: Tasks that wait for another attempt, by id.
    """

    def __init__(self, frequency: float, remembered: Mapping[str, Retrying] | None = None) -> None:
        self.frequency = frequency
        self._schedule = Schedule()
        self._running: dict[str, Running] = {}
        # By id: all that have had an attempt; where those of them are that wait; when the others were last heard of.
        self._retrying: dict[str, Retrying] = {}
        self._refs: dict[str, str] = {}
        self._vanished: dict[str, int] = {}
        # By ref, when a worker found it locked.
        self._locked: dict[str, float] = {}
        self._taken_out: set[str] = set()  # by ref, during a scan
        self._prefixes = {"": None}  # in the order in which they came
        # Scans have even numbers. A task's mark is that of the scan that saw it as it is known, or the next odd one if
        # it was put there, or told of, since that scan began.
        self._scan = 0
        self._is_scanning = False
        for task_id, known in (remembered or {}).items():
            # The frequency may have been changed since.
            due_at = known.ended_at + frequency if known.by_frequency else known.due_at
            self._retrying[task_id] = known._replace(due_at=due_at)
            self._vanished[task_id] = self._scan

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
    def knows_attempts(self) -> bool:
        """Whether any unfinished task has had an attempt."""
        return bool(self._retrying)

    @property
    def running(self) -> Mapping[str, Running]:
        """What the workers have in hand, by `ref`."""
        return self._running

    @property
    def schedule(self) -> Schedule:
        """What waits, to be looked through; it is changed here only."""
        return self._schedule

    def next_due(self) -> float | None:
        """When the next task becomes due, Unix seconds."""
        return self._schedule.next_due()

    def look(self, now: float, limit: int | None = None) -> int:
        """How many tasks are due at `now`; see `Schedule.look`."""
        return self._schedule.look(now, limit)

    def find(self, task_id: str) -> Waiting | Running | None:
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

    def added(self, entry: Entry, now: float) -> bool:
        """The service itself has just put this task there, whole. Returns whether it was not known."""
        if entry.ref in self._running:
            return False
        return self._put(entry, self._due_at(entry, now), now)

    def saw(self, entry: Entry, now: float, *, told: bool = False) -> bool:
        """This task is there.

        Args:
            entry: The task.
            now: Unix seconds.
            told: Something has just been done to it, in contrast to: it was come across in a scan.

        Returns:
            Whether it was not known.
        """
        ref = entry.ref
        if not told and self._schedule.confirm(ref, entry.at, self._scan):
            return False
        running = self._running.get(ref)
        if running is not None:
            running.moved_at = entry.at if entry.at != running.entry.at else None
            return False
        waiting = self._schedule.get(ref)
        is_new = waiting is None
        if waiting is None:
            if not told and ref in self._taken_out:
                return False
            if self._running and (elsewhere := self._running_elsewhere(entry.id)):
                elsewhere.moved_to, is_new = ref, False
            due_at = self._due_at(entry, now)
            if entry.fresh:
                due_at = max(due_at, now + SETTLE_SECONDS)
        elif not told and self._schedule.mark_of(ref) > self._scan:
            return False
        elif entry.at != waiting.entry.at:
            due_at = entry.at
            if entry.fresh and waiting.entry.fresh:
                due_at = max(due_at, now + SETTLE_SECONDS)
        elif waiting.entry.fresh and not entry.fresh:
            due_at = self._due_at(entry, now)  # its writer has closed it
        elif told and not entry.fresh and ref in self._locked:
            due_at = max(self._due_at(entry, now), self._locked[ref] + SETTLE_SECONDS)  # whoever had it has closed it
        else:
            return False
        self._put(entry, due_at, now)
        return is_new

    def saw_all(self, entries: Sequence[Entry], now: float) -> Sequence[Entry]:
        """`saw` for what a scan has come across; returns those that were not known."""
        if self._running or self._taken_out or not entries or entries[0].ref in self._schedule:
            return [entry for entry in entries if self.saw(entry, now)]
        # Most likely none of them is known. Then what `saw` does comes down to this.
        retrying, due_ats, made_before = self._retrying, [], now * 1e6
        special = [entry for entry in entries if entry.id in retrying] if retrying else []
        plain = [entry for entry in entries if entry.id not in retrying] if special else entries
        for task_id, ref, at, _, order, fresh in plain:
            due_at = at if at <= now or order[0] < made_before else due_of_file(at, order, now)
            due_ats.append(max(due_at, now + SETTLE_SECONDS) if fresh else due_at)
            if ref is not task_id:
                self._note_prefix(task_id, ref)
        put, left = self._schedule.put_new(plain, due_ats, now, self._scan + 1)
        return [*put, *(entry for entry in (*left, *special) if self.saw(entry, now))]

    def _note_prefix(self, task_id: str, ref: str) -> None:
        if ref != task_id and ref.endswith(task_id):
            self._prefixes[ref.removesuffix(task_id)] = None

    def _running_elsewhere(self, task_id: str) -> Running | None:
        for prefix in self._prefixes:
            if running := self._running.get(prefix + task_id):
                return running
        return None

    def _due_at(self, entry: Entry, now: float) -> float:
        """When a task is due that has been found, or has become free."""
        known = self._retrying.get(entry.id) if self._retrying else None
        at = entry.at if entry.at <= now else due_of_file(entry.at, entry.order, now)
        if known is None:
            return at
        # If the clock was set back, its time may be far off.
        return max(at, min(known.due_at, now + self.frequency) if known.by_frequency else known.due_at)

    def gone(self, ref: str) -> None:
        """Somebody has taken this task out of the spool, or its worker has finished it."""
        waiting = self._schedule.discard(ref)
        if waiting is not None:
            self._locked.pop(ref, None)
            self._lose_sight(waiting.entry)

    def taken_out(self, ref: str) -> None:
        """We have taken this task out of the spool; a scan that is under way may have seen it there before."""
        self.gone(ref)
        if self._is_scanning:
            self._taken_out.add(ref)

    def scan_begins(self) -> None:
        """All that waits and is neither seen nor put there from now on is gone when the scan has ended."""
        self._scan += 2
        self._is_scanning = True
        self._taken_out.clear()

    def scan_ends(self) -> None:
        """All has been seen; `unseen` and `lost` then say what has gone."""
        self._is_scanning = False
        self._taken_out.clear()

    def unknown(self, refs: Sequence[str]) -> Sequence[str]:
        """Those of some tasks that have been seen to be there, but of which more has to be known for `saw`."""
        see, scan, running = self._schedule.see, self._scan, self._running
        return [ref for ref in refs if not see(ref, scan) and ref not in running]

    @property
    def is_missing_any(self) -> bool:
        """Whether a task that has had attempts has vanished since the last scan began: the next may find it."""
        return self._scan in self._vanished.values()

    def unseen(self) -> Iterator[list[str]]:
        """What the scan that has just ended did not see; for `gone`. In parts, between which the rest may change."""
        for start in range(0, self._schedule.slots, _SLOTS):
            yield self._schedule.marked_below(self._scan, start, start + _SLOTS)

    def lost(self) -> Iterator[list[str]]:
        """The tasks that have had attempts, were not there when the scan that has just ended began, and were not found.

        Unless they are held their attempts are to be forgotten: `forget_lost`. In parts, as `unseen`.
        """
        vanished = tuple(self._vanished)
        for start in range(0, len(vanished), _SLOTS):
            part = vanished[start : start + _SLOTS]
            yield [task_id for task_id in part if self._vanished.get(task_id, self._scan) < self._scan]

    def forget_lost(self, lost: Iterable[str]) -> list[str]:
        """Forget the attempts of those of these tasks that have not come meanwhile; returns which."""
        lost = [task_id for task_id in lost if task_id in self._vanished]
        for task_id in lost:
            del self._vanished[task_id]
            self._retrying.pop(task_id, None)
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
        retrying, all_running = self._retrying, self._running
        for entry, due_at, _ in self._schedule.take(limit, now):
            attempt = 1
            if retrying and (known := retrying.get(entry.id)):
                attempt = known.attempts + 1
                self._refs.pop(entry.id, None)
            if entry.fresh:
                # From now on a close is that of our own worker.
                entry = entry._replace(fresh=False)
            all_running[entry.ref] = running = Running(entry, due_at, attempt, now, worker_pid)
            taken.append(running)
        if self._locked:
            for running in taken:
                self._locked.pop(running.entry.ref, None)
        return taken

    def ended(self, ref: str) -> Running | None:
        """A worker no longer has this task. None: it had not.

        Its caller then says what becomes of it: `finished`, `wait_again`, `put_back`, `vanished`, or `keep`.
        """
        return self._running.pop(ref, None)

    def keep(self, running: Running) -> None:
        """What becomes of a task whose attempt has ended is not decided yet: it runs until `ended` is called again."""
        self._running[running.entry.ref] = running

    def vanished(self, running: Running) -> None:
        """A task was not there any more. Its attempts are not forgotten yet: it may have been moved."""
        self._lose_sight(running.entry)

    def finished(self, task_id: str) -> bool:
        """The task will not run again; returns whether it had earlier attempts, which are now forgotten."""
        if not self._retrying or self._retrying.pop(task_id, None) is None:
            return False
        self._refs.pop(task_id, None)
        self._vanished.pop(task_id, None)
        return True

    def wait_again(self, running: Running, again: RunAgain, now: float, error: str | None) -> Retrying:
        """A task whose attempt has ended waits for the next one; returns what is to be remembered of it."""
        entry, due_at, by_frequency = self.as_it_is(running), again.due_at, again.by_frequency
        if entry.at != running.entry.at:
            due_at, by_frequency = entry.at, False
        known = Retrying(entry.id, again.attempts, due_at, by_frequency, now, error)
        self._retrying[entry.id] = known
        self._put(entry, due_at, now)
        return known

    def put_back(self, running: Running, now: float, *, at: float | None = None, locked: bool = False) -> None:
        """A task that was handed over and not run waits again.

        Args:
            running: The task.
            now: Unix seconds.
            at: Due then, Unix seconds; None: as before.
            locked: Somebody else is at work on it: it is due when they close it, though not at once.
        """
        entry = self.as_it_is(running)
        if at is None:
            at = running.due_at if entry.at == running.entry.at else entry.at
        self._put(entry, at, now)
        if locked:
            self._locked[entry.ref] = now

    def as_it_is(self, running: Running) -> Entry:
        """A running task as somebody has left it meanwhile."""
        if running.moved_to is not None and (waiting := self._schedule.get(running.moved_to)):
            return waiting.entry
        return running.entry if running.moved_at is None else running.entry._replace(at=running.moved_at)

    # What an operator does

    def move(self, entry: Entry, due_at: float, now: float) -> Retrying | None:
        """A waiting task, as it is now, is due at `due_at`; returns what is to be remembered if it has had attempts."""
        if (running := self._running.get(entry.ref)) is not None:
            running.moved_at = entry.at if entry.at != running.entry.at else None
            return None
        known = self._retrying.get(entry.id)
        if known is not None:
            known = self._retrying[entry.id] = known._replace(due_at=due_at, by_frequency=False)
        self._put(entry, due_at, now)
        return known

    def set_frequency(self, seconds: float, now: float) -> None:
        """Whatever waits for its next attempt because of the frequency does so by the new one.

        Or by the same one, from now on, if the clock was set back to before the last attempt.
        """
        self.frequency = seconds
        for task_id, ref in tuple(self._refs.items()):
            known = self._retrying[task_id]
            waiting = self._schedule.get(ref)
            if known.by_frequency and waiting is not None and waiting.due_at == known.due_at:
                due_at = max(waiting.entry.at, min(known.ended_at, now) + seconds)
                self._retrying[task_id] = known._replace(due_at=due_at)
                self._put(waiting.entry, due_at, now)

    def _put(self, entry: Entry, due_at: float, now: float) -> bool:
        """Let a task wait; returns whether it did not."""
        task_id, ref = entry.id, entry.ref
        self._note_prefix(task_id, ref)
        is_new = self._schedule.put(entry, due_at, now, self._scan + 1)
        if self._locked:
            self._locked.pop(ref, None)
        if self._retrying and task_id in self._retrying:
            self._refs[task_id] = ref
            self._vanished.pop(task_id, None)
        return is_new

    def _lose_sight(self, entry: Entry) -> None:
        if entry.id in self._retrying:
            self._refs.pop(entry.id, None)
            elsewhere = self.find(entry.id)
            if elsewhere is None:
                self._vanished[entry.id] = self._scan
            elif isinstance(elsewhere, Waiting):
                self._refs[entry.id] = elsewhere.entry.ref
