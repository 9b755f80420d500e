"""What operators do to tasks: each action in each state, alone and while others are at work on the same task."""

from __future__ import annotations

import math
import os
import time
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from tests.action_support import FREQUENCY, LATER, PATIENCE, Rig, acting, is_now
from tests.test_shelves import locked_by_other_process
from trispool import actions as actions_module
from trispool import aftermath as aftermath_module
from trispool.actions import PERMITTED, permits, possible
from trispool.backlog import SETTLE_SECONDS
from trispool.errors import SpoolUnavailable, TaskRefused
from trispool.operating import Action
from trispool.packet import decode_vars, encode_vars, new_task
from trispool.retry import RetryPolicy
from trispool.store import Change
from trispool.task import LATEST_AT, MAX_KEPT_VARS, Entry, Task, TaskState

if TYPE_CHECKING:
    from pathlib import Path

    from trispool.store import Claim

CANCEL, HOLD, RELEASE, RUN, RETRY, RESCHEDULE = Action
SCHEDULED, READY, RUNNING, HELD, DONE, DEAD, CANCELLED = TaskState

KINDS = ["memory", "directory"]
TWICE = RetryPolicy(max_attempts=2)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


# Each action in each state

WAYS = ["scheduled", "retrying", "ready", "running", "held", "held for later", "dead", "done", "cancelled"]


async def bring(rig: Rig, way: str) -> Entry:
    """A task in some state; only one that runs has been started, or has run."""
    rig.dispatcher.pause()
    entry = await rig.add(at=LATER if way in ("scheduled", "held for later") else None, priority=4)
    if way.startswith("held"):
        await rig.act(entry.id, HOLD)
    elif way == "cancelled":
        await rig.act(entry.id, CANCEL)
    elif way in ("retrying", "running", "dead", "done"):
        answers = {"retrying": ["failed"], "dead": ["failed", "failed"], "done": ["ok"], "running": [None]}[way]

        def answer(claim: Claim) -> str | None:
            if way == "done" and claim.content is None:
                os.unlink(f"{rig.store.directory}/{claim.ref}")
            return answers.pop(0)

        worker = rig.worker(answer)
        rig.dispatcher.resume()
        if way == "dead":
            await rig.until("failed: scheduled", entry.id)
            await rig.act(entry.id, RUN)
        await rig.until(
            {"retrying": "failed: scheduled", "dead": "failed: dead", "done": "ok: done", "running": "started"}[way],
            entry.id,
        )
        worker.alive = way == "running"
        rig.dispatcher.pause()
    rig.told.clear()
    return entry


NOTHING = "nothing happens"
REFUSED = "refused"

EXPECTED: dict[str, dict[Action, Any]] = {
    "scheduled": {CANCEL: CANCELLED, HOLD: HELD, RELEASE: NOTHING, RUN: READY, RETRY: REFUSED, RESCHEDULE: SCHEDULED},
    "retrying": {CANCEL: CANCELLED, HOLD: HELD, RELEASE: NOTHING, RUN: READY, RETRY: READY, RESCHEDULE: SCHEDULED},
    "ready": {CANCEL: CANCELLED, HOLD: HELD, RELEASE: NOTHING, RUN: NOTHING, RETRY: NOTHING, RESCHEDULE: SCHEDULED},
    "running": {CANCEL: CANCELLED, HOLD: REFUSED, RELEASE: REFUSED, RUN: REFUSED, RETRY: REFUSED, RESCHEDULE: REFUSED},
    "held": {CANCEL: CANCELLED, HOLD: NOTHING, RELEASE: READY, RUN: READY, RETRY: REFUSED, RESCHEDULE: SCHEDULED},
    "held for later": {
        **{CANCEL: CANCELLED, HOLD: NOTHING, RELEASE: SCHEDULED, RUN: READY, RETRY: REFUSED, RESCHEDULE: SCHEDULED}
    },
    "dead": {CANCEL: CANCELLED, HOLD: REFUSED, RELEASE: REFUSED, RUN: REFUSED, RETRY: READY, RESCHEDULE: REFUSED},
    "done": dict.fromkeys(Action, REFUSED),
    "cancelled": {**dict.fromkeys(Action, REFUSED), CANCEL: NOTHING},
}

OUTCOMES = {
    **{CANCEL: "cancelled", HOLD: "held", RELEASE: "released", RUN: "hurried", RETRY: "retried"},
    RESCHEDULE: "rescheduled",
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("action", Action)
async def test_each_action_in_each_state(action: Action, way: str, kind: str, tmp_path: Path) -> None:
    async with acting(kind, tmp_path, policy=TWICE) as rig:
        entry = await bring(rig, way)
        before = await rig.state(entry.id)
        rows = len(await rig.attempts(entry.id))
        if way == "running":
            worker = next(iter(rig.dispatcher._workers))
            rig.on_cancel = lambda task_id: not worker.die("killed: an operator cancelled its task")  # type: ignore[attr-defined]
        at = time.time() + 1000.125 if action is RESCHEDULE else None
        expected = EXPECTED[way][action]
        if expected is REFUSED:
            with pytest.raises(TaskRefused, match=f"it is {before}, so {action} is not possible") as refusal:
                await rig.act(entry.id, action, at)
            assert refusal.value.status == 409
        else:
            summary = await rig.act(entry.id, action, at)
            assert (summary.id, summary.spool, summary.priority) == (entry.id, "default", 4)
            assert summary.state is (before if expected is NOTHING else expected)
        # It is so, and it has been told.
        assert await rig.state(entry.id) is (before if expected in (REFUSED, NOTHING) else expected)
        new = (await rig.attempts(entry.id))[rows:]
        if expected in (REFUSED, NOTHING):
            assert (new, rig.told) == ([], [])
        else:
            assert [(row.outcome, row.error) for row in new] == [(OUTCOMES[action], "by somebody")]
            assert is_now(new[0].started_at)
            assert rig.told == [(f"cancelled: {CANCELLED}" if way == "running" else str(expected), entry.id)]
            there = await rig.in_store()
            if expected is CANCELLED:
                assert there == {}
            else:
                place, stored_at = there[entry.id]
                assert place == ("held" if expected is HELD else "waits")
                if action is RESCHEDULE:
                    assert stored_at == pytest.approx(at, abs=1e-6)
                elif action is RUN:
                    assert stored_at <= time.time()
                else:
                    assert stored_at == entry.at
        await rig.check()
        # A look through the spool changes nothing.
        await rig.scan()
        assert await rig.state(entry.id) is (before if expected in (REFUSED, NOTHING) else expected)


def test_what_is_possible_in_a_state() -> None:
    assert possible(SCHEDULED, 0) == [CANCEL, HOLD, RUN, RESCHEDULE]
    assert possible(SCHEDULED, 1) == [CANCEL, HOLD, RUN, RETRY, RESCHEDULE]
    assert possible(RUNNING, 0) == [CANCEL]
    assert possible(DEAD, 3) == [CANCEL, RETRY]
    assert possible(DONE, 1) == possible(CANCELLED, 0) == []
    assert all(permits(action, state, 1) for action, states in PERMITTED.items() for state in states)


async def test_a_refusal_names_what_is_possible(kind: str, tmp_path: Path) -> None:
    async with acting(kind, tmp_path, policy=TWICE) as rig:
        entry = await bring(rig, "dead")
        with pytest.raises(TaskRefused, match=r"it is dead, so hold is not possible; possible is: cancel, retry$"):
            await rig.act(entry.id, HOLD)
        await rig.act(entry.id, CANCEL)
        with pytest.raises(TaskRefused, match=r"it is cancelled, so retry is not possible; possible is: nothing$"):
            await rig.act(entry.id, RETRY)


async def test_a_task_that_the_spool_does_not_know_is_left_to_others(kind: str, tmp_path: Path) -> None:
    async with acting(kind, tmp_path) as rig:
        for action in Action:
            assert await rig.actions.act("unknown", action, "somebody", 1.0) is None


async def test_a_task_whose_file_has_been_taken_out_of_the_spool_cannot_be_acted_on(tmp_path: Path) -> None:
    async with acting("directory", tmp_path, policy=TWICE) as rig:
        entry = await bring(rig, "retrying")
        (tmp_path / "spool" / entry.ref).unlink()
        await rig.scan()
        for action in Action:
            with pytest.raises(TaskRefused, match="its file is no longer in the spool") as refusal:
                await rig.act(entry.id, action, 1.0)
            assert refusal.value.status == 409


# Times


@pytest.mark.parametrize("at", [None, math.nan, math.inf, -1.0, LATEST_AT + 1])
async def test_an_at_out_of_range_is_refused(at: float | None, kind: str, tmp_path: Path) -> None:
    async with acting(kind, tmp_path) as rig:
        entry = await bring(rig, "ready")
        with pytest.raises(TaskRefused, match=r"at=.*: Unix seconds from 0 to 15000000000 are expected") as refusal:
            await rig.act(entry.id, RESCHEDULE, at)
        assert refusal.value.status == 400
        assert await rig.in_store() == {entry.id: ("waits", entry.at)}


@pytest.mark.parametrize("at", [0.0, 1_000_000_000.25, LATEST_AT])
@pytest.mark.parametrize("way", ["scheduled", "retrying", "ready", "held"])
async def test_a_task_is_due_when_it_is_rescheduled_to_also_in_the_past(
    way: str, at: float, kind: str, tmp_path: Path
) -> None:
    async with acting(kind, tmp_path, policy=TWICE) as rig:
        entry = await bring(rig, way)
        summary = await rig.act(entry.id, RESCHEDULE, at)
        assert (summary.at, summary.state) == (at, SCHEDULED if at > time.time() else READY)
        assert await rig.in_store() == {entry.id: ("waits", at)}
        await rig.check()
        rig.told.clear()
        again = await rig.act(entry.id, RESCHEDULE, at)
        assert (again, rig.told) == (summary, [])


async def test_a_task_that_waits_for_another_attempt_is_rescheduled_also_for_after_a_restart(tmp_path: Path) -> None:
    at = time.time() + 1000.5
    async with acting("directory", tmp_path) as rig:
        entry = await bring(rig, "retrying")
        assert (await rig.act(entry.id, RESCHEDULE, at)).attempts == 1
        rig.dispatcher.set_frequency(5.0)
        item = rig.backlog.find(entry.id)
        assert item is not None
        assert item.due_at == pytest.approx(at, abs=1e-6)
    async with acting("directory", tmp_path, paused=True) as rig:
        item = rig.backlog.find(entry.id)
        assert item is not None
        assert item.due_at == pytest.approx(at, abs=1e-6)
        assert (await rig.act(entry.id, RUN)).attempts == 1
    async with acting("directory", tmp_path, paused=True) as rig:
        item = rig.backlog.find(entry.id)
        assert item is not None
        # It is left alone for a moment, as its file has just been changed.
        assert item.due_at <= time.time() + SETTLE_SECONDS


async def test_a_task_for_later_that_is_hurried_runs_at_once_and_once_only(kind: str, tmp_path: Path) -> None:
    async with acting(kind, tmp_path) as rig:
        rig.worker(lambda claim: "ok")
        entry = await rig.add(at=LATER)
        assert (await rig.act(entry.id, RUN)).state is READY
        await rig.until("ok: done", entry.id)
        assert await rig.outcomes(entry.id) == ["hurried", "ok"]
        assert [start.attempt for start in rig.starts] == [1]


async def test_a_dead_task_whose_time_has_been_set_to_later_is_retried_at_once(tmp_path: Path) -> None:
    async with acting("directory", tmp_path, policy=TWICE) as rig:
        entry = await bring(rig, "dead")
        (moved,) = await rig.store.dead()
        assert await rig.store.reschedule(moved, LATER)
        (moved,) = await rig.store.dead()
        rig.store._shelves._dead.add(moved._replace(at=LATER))
        assert (await rig.act(entry.id, RETRY)).state is READY


# Attempts


async def test_a_dead_task_that_is_retried_has_all_its_attempts_again(kind: str, tmp_path: Path) -> None:
    async with acting(kind, tmp_path, policy=TWICE) as rig:
        entry = await bring(rig, "dead")
        worker = rig.worker()
        rig.dispatcher.resume()
        assert (await rig.act(entry.id, RETRY)).attempts == 0
        await rig.until("started", entry.id)
        assert rig.starts[-1].attempt == 1
        worker.report(code="failed")
        await rig.until("failed: scheduled", entry.id)  # and not dead
        assert await rig.outcomes(entry.id) == ["failed", "hurried", "failed", "retried", "failed"]


async def test_attempts_are_not_forgotten_while_a_task_is_held(kind: str, tmp_path: Path) -> None:
    async with acting(kind, tmp_path, policy=TWICE) as rig:
        entry = await bring(rig, "retrying")
        assert (await rig.act(entry.id, HOLD)).attempts == 1
        for _ in range(3):
            await rig.scan()
        found = await rig.actions.find(entry.id)
        assert found is not None
        assert (found.summary.attempts, found.summary.last_error) == (1, "failed")
        summary = await rig.act(entry.id, RELEASE)
        assert (summary.attempts, summary.state) == (1, SCHEDULED)
        assert summary.at == pytest.approx(time.time() + FREQUENCY, abs=PATIENCE)
        rig.worker()
        rig.dispatcher.resume()
        await rig.act(entry.id, RETRY)
        await rig.until("started", entry.id)
        assert rig.starts[-1].attempt == 2


async def test_holds_and_their_attempts_outlive_a_restart(tmp_path: Path) -> None:
    async with acting("directory", tmp_path, policy=TWICE) as rig:
        entry = await bring(rig, "retrying")
        await rig.act(entry.id, HOLD)
    async with acting("directory", tmp_path, policy=TWICE) as rig:
        await rig.scan()
        found = await rig.actions.find(entry.id)
        assert found is not None
        assert (found.summary.state, found.summary.attempts) == (HELD, 1)
        assert (rig.backlog.ready, rig.backlog.scheduled) == (0, 0)
        assert (await rig.act(entry.id, RELEASE)).attempts == 1


async def test_attempts_of_what_a_person_holds_by_hand_are_not_forgotten_but_of_what_is_taken_away_they_are(
    tmp_path: Path,
) -> None:
    path = tmp_path / "spool"
    async with acting("directory", tmp_path, policy=TWICE) as rig:
        entry = await bring(rig, "retrying")
        (path / entry.ref).rename(path / ".trispool" / "held" / entry.id)
        for _ in range(3):
            await rig.scan()
        found = await rig.actions.find(entry.id)
        assert found is not None
        assert (found.summary.state, found.summary.attempts) == (HELD, 1)
        (path / ".trispool" / "held" / entry.id).rename(tmp_path / entry.id)
        for _ in range(3):
            await rig.scan()
        assert rig.backlog.attempts(entry.id) == 0


async def test_attempts_are_not_forgotten_while_it_is_not_known_what_is_held(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with acting(kind, tmp_path, policy=TWICE) as rig:
        entry = await bring(rig, "retrying")
        await rig.act(entry.id, HOLD)

        async def fails(task_ids: Any) -> Any:
            raise SpoolUnavailable("no descriptors")

        with monkeypatch.context() as patch:
            patch.setattr(rig.store, "held_among", fails)
            for _ in range(3):
                await rig.scan()
        assert rig.backlog.attempts(entry.id) == 1
        assert (await rig.act(entry.id, RELEASE)).attempts == 1


# What the history keeps


@pytest.mark.parametrize("way", ["ready", "held", "dead", "running"])
async def test_the_history_keeps_the_vars_of_what_is_cancelled(way: str, kind: str, tmp_path: Path) -> None:
    async with acting(kind, tmp_path, policy=TWICE) as rig:
        entry = await bring(rig, way)
        if way == "running":
            worker: Any = rig.dispatcher._workers[0]
            rig.on_cancel = lambda task_id: not worker.die("killed: an operator cancelled its task")
        await rig.act(entry.id, CANCEL)
        known = await rig.ledger.history(entry.id)
        assert known is not None
        assert (known.vars, known.last.state) == ({b"n": b"1", b"priority": b"4"}, CANCELLED)


def test_what_is_kept_of_vars() -> None:
    small = encode_vars({"a": "x" * (MAX_KEPT_VARS - 5)})
    assert len(small) == MAX_KEPT_VARS
    kept = aftermath_module.kept_vars(Task("1", decode_vars(small)))
    assert kept == small
    assert aftermath_module.kept_vars(Task("1", {b"a": b"x" * (MAX_KEPT_VARS - 4)})) is None
    assert aftermath_module.kept_vars(Task("1", {b"": b"others may write that"})) is None
    assert aftermath_module.kept_vars(None) is None


# Pausing


async def test_a_hurried_task_of_a_paused_spool_runs_when_it_is_resumed(kind: str, tmp_path: Path) -> None:
    async with acting(kind, tmp_path, paused=True) as rig:
        rig.worker(lambda claim: "ok")
        entry = await rig.add(at=LATER)
        other = await rig.add()
        assert (await rig.act(entry.id, RUN)).state is READY
        await rig.act(other.id, HOLD)
        await trio.testing.wait_all_tasks_blocked()
        assert rig.starts == []
        rig.dispatcher.resume()
        await rig.until("ok: done", entry.id)
        assert await rig.state(other.id) is HELD


# Others are at work on the same task


@pytest.mark.parametrize("action", [CANCEL, HOLD, RESCHEDULE])
async def test_a_task_that_starts_while_it_is_acted_on_is_not_acted_on_as_if_it_waited(
    action: Action, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with acting(kind, tmp_path) as rig:
        entry = await bring(rig, "ready")
        worker = rig.worker()
        name = {CANCEL: "remove", HOLD: "hold", RESCHEDULE: "reschedule"}[action]
        real = getattr(rig.store, name)

        async def first_it_starts(*args: Any) -> Any:
            if not rig.starts:
                rig.dispatcher.resume()
                await rig.until("started", entry.id)
                if kind == "directory":
                    taken.append(rig.store._opened.claim(entry.ref))
            return await real(*args)

        taken: list[Any] = []
        monkeypatch.setattr(rig.store, name, first_it_starts)
        if action is CANCEL:

            def die(task_id: str) -> bool:
                for claimed in taken:
                    claimed.close()
                worker.die("killed: an operator cancelled its task")
                return True

            rig.on_cancel = die
            assert (await rig.act(entry.id, CANCEL)).state is CANCELLED
            assert rig.asked_to_cancel == [entry.id]
            assert await rig.in_store() == {}
        else:
            with pytest.raises(TaskRefused, match="it is running"):
                await rig.act(entry.id, action, LATER)
            assert await rig.in_store() == {entry.id: ("waits", entry.at)}
            for claimed in taken:
                claimed.remove()
            worker.report()
            assert await rig.state(entry.id) is DONE
        await rig.check()


@pytest.mark.parametrize("action", [CANCEL, HOLD, RESCHEDULE, RUN])
async def test_a_task_that_is_handed_out_just_after_it_was_acted_on_does_not_run_as_it_was(
    action: Action, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store was quicker than the worker, but the backlog did not know yet."""
    async with acting("directory", tmp_path) as rig:
        at = LATER if action is RESCHEDULE else None
        entry = await bring(rig, "retrying" if action is RUN else "ready")
        worker = rig.worker()
        if action is RUN:
            assert await rig.store.reschedule(entry, LATER)
            await rig.scan()
        name = {CANCEL: "remove", HOLD: "hold", RESCHEDULE: "reschedule", RUN: "reschedule"}[action]
        real = getattr(rig.store, name)

        async def then_it_is_handed_out(*args: Any) -> Any:
            done = await real(*args)
            rig.dispatcher.resume()
            if action is not RUN:
                await rig.until("started", entry.id)
            return done

        monkeypatch.setattr(rig.store, name, then_it_is_handed_out)
        summary = await rig.actions.act(entry.id, action, "somebody", at)
        if action is RUN:
            await rig.until("started", entry.id)
            worker.report()
            return
        assert summary is not None
        # The worker finds what has become of the file.
        if action is RESCHEDULE:
            worker.report(code="not_due", detail=LATER)
            await rig.check()
            assert (await rig.act(entry.id, RESCHEDULE, LATER)).at == LATER
        else:
            worker.report(code="gone")
        expected = {CANCEL: CANCELLED, HOLD: HELD, RESCHEDULE: SCHEDULED}[action]
        assert await rig.state(entry.id) is expected
        for _ in range(2):
            await rig.scan()
        await rig.check()
        assert await rig.state(entry.id) is expected


async def test_a_task_that_has_run_before_we_knew_that_it_was_rescheduled_is_done(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with acting(kind, tmp_path) as rig:
        entry = await bring(rig, "ready")
        worker = rig.worker()
        real = rig.store.reschedule

        async def then_it_runs(*args: Any) -> Any:
            moved = await real(*args)
            rig.dispatcher.resume()
            await rig.until("started", entry.id)
            if kind == "directory":
                (tmp_path / "spool" / entry.ref).unlink()
            worker.report()
            return moved

        monkeypatch.setattr(rig.store, "reschedule", then_it_runs)
        with pytest.raises(TaskRefused, match="it is done, so reschedule is not possible"):
            await rig.act(entry.id, RESCHEDULE, 1_000_000_000.0)
        assert await rig.outcomes(entry.id) == ["ok"]
        await rig.check()


async def test_a_task_that_is_seen_and_run_before_we_knew_that_it_was_released_does_not_wait_again(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with acting(kind, tmp_path) as rig:
        entry = await bring(rig, "held")
        worker = rig.worker()
        real = rig.store.restore

        async def then_it_starts(*args: Any) -> Any:
            moved = await real(*args)
            rig.dispatcher.resume()
            rig.dispatcher.changed([Change(moved.ref, moved)])
            await rig.until("started", entry.id)
            return moved

        monkeypatch.setattr(rig.store, "restore", then_it_starts)
        assert (await rig.act(entry.id, RELEASE)).state is RUNNING
        await rig.check()
        if kind == "directory":
            (tmp_path / "spool" / entry.ref).unlink()
        worker.report()
        assert await rig.state(entry.id) is DONE
        await rig.check()


@pytest.mark.parametrize("lock", ["uwsgi", "trispool"])
@pytest.mark.parametrize("action", [CANCEL, HOLD, RESCHEDULE, RUN])
async def test_a_task_that_another_process_has_taken_is_left_alone(action: Action, lock: str, tmp_path: Path) -> None:
    async with acting("directory", tmp_path) as rig:
        entry = await bring(rig, "scheduled" if action is RUN else "ready")
        with locked_by_other_process(tmp_path / "spool" / entry.ref, lock):
            with pytest.raises(TaskRefused, match="somebody else is at work on it") as refusal:
                await rig.act(entry.id, action, LATER + 1)
            assert refusal.value.status == 409
        assert await rig.in_store() == {entry.id: ("waits", entry.at)}
        assert await rig.outcomes(entry.id) == []
        await rig.act(entry.id, action, LATER + 1)


async def test_a_task_that_another_process_has_finished_meanwhile_is_not_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with acting("directory", tmp_path, watching=True) as rig:
        entry = await bring(rig, "ready")
        real = rig.store.hold

        async def first_it_is_done(moved: Entry) -> Any:
            (tmp_path / "spool" / entry.ref).unlink(missing_ok=True)
            while rig.backlog.find(entry.id):
                await trio.lowlevel.checkpoint()
            return await real(moved)

        monkeypatch.setattr(rig.store, "hold", first_it_is_done)
        assert await rig.actions.act(entry.id, HOLD, "somebody") is None


async def test_two_who_want_the_same_get_it_once(kind: str, tmp_path: Path) -> None:
    async with acting(kind, tmp_path) as rig:
        for way, action, expected in [("ready", HOLD, HELD), ("held", RELEASE, READY), ("ready", CANCEL, CANCELLED)]:
            entry = await bring(rig, way)
            states: list[TaskState] = []

            async def act(action: Action = action, entry: Entry = entry, states: list[TaskState] = states) -> None:
                states.append((await rig.act(entry.id, action)).state)

            async with trio.open_nursery() as nursery:
                for _ in range(5):
                    nursery.start_soon(act)
            assert states == [expected] * 5
            assert rig.told == [(str(expected), entry.id)]


async def test_a_file_that_is_moved_back_by_hand_can_be_acted_on_where_it_is(tmp_path: Path) -> None:
    path = tmp_path / "spool"
    async with acting("directory", tmp_path, watching=True, paused=True) as rig:
        entry = await bring(rig, "held")
        (held,) = await rig.store.held()
        (path / held.ref).rename(path / entry.id)
        await rig.until("enqueued", entry.id)
        assert (await rig.act(entry.id, RESCHEDULE, LATER)).at == LATER
        for _ in range(1000):  # a shelf that was read a moment ago is not read again at once
            if not await rig.store.held():
                break
            await trio.sleep(0.005)
        assert await rig.in_store() == {entry.id: ("waits", LATER)}


async def test_what_we_do_comes_back_as_an_event_and_changes_nothing(tmp_path: Path) -> None:
    async with acting("directory", tmp_path, watching=True, paused=True) as rig:
        entry = await rig.add(at=LATER)
        at = time.time() + 500
        for action, state in [
            *[(RESCHEDULE, SCHEDULED), (HOLD, HELD), (RELEASE, SCHEDULED), (RUN, READY), (RESCHEDULE, SCHEDULED)],
            *[(HOLD, HELD), (RUN, READY), (HOLD, HELD), (RESCHEDULE, SCHEDULED)],
        ]:
            assert (await rig.act(entry.id, action, at)).state is state
            # Another file tells when the events before it have been heard.
            marker = tmp_path / "spool" / f"uwsgi_spoolfile_on_marker_1_{len(rig.told)}_1_1_1"
            marker.write_bytes(b"")
            await rig.until("enqueued", marker.name)
            item = rig.backlog.find(entry.id)
            assert (item is None) == (state is HELD)
            assert await rig.state(entry.id) is state
            await rig.check_one(entry.id)


# Tasks that run


async def test_a_running_task_that_ends_well_all_the_same_is_done(kind: str, tmp_path: Path) -> None:
    async with acting(kind, tmp_path) as rig:
        entry = await bring(rig, "running")
        worker: Any = rig.dispatcher._workers[0]

        def ends(task_id: str) -> bool:
            if kind == "directory":
                (tmp_path / "spool" / entry.ref).unlink()
            worker.report()
            return True

        rig.on_cancel = ends
        with pytest.raises(TaskRefused, match="it is done, so cancel is not possible"):
            await rig.act(entry.id, CANCEL)
        assert await rig.outcomes(entry.id) == ["ok"]
        assert not rig.dispatcher._aftermath.is_cancelling


@pytest.mark.parametrize("code", ["failed", "retry", "ignore", "timeout", "cancelled", "returned", "settling"])
async def test_a_running_task_is_cancelled_whatever_its_worker_says_but_that_it_went_well(
    code: str, kind: str, tmp_path: Path
) -> None:
    async with acting(kind, tmp_path) as rig:
        entry = await bring(rig, "running")
        worker: Any = rig.dispatcher._workers[0]
        began = time.time() - 5

        def ends(task_id: str) -> bool:
            ran = code not in ("returned", "settling")
            worker.report(code=code, started_at=began if ran else 0.0, run_seconds=5.0 if ran else 0.0, handler="h")
            return True

        rig.on_cancel = ends
        summary = await rig.act(entry.id, CANCEL)
        assert (summary.state, summary.last_error) == (CANCELLED, "by somebody")
        (row,) = await rig.attempts(entry.id)
        assert (row.outcome, row.error) == ("cancelled", "by somebody")
        if code in ("returned", "settling"):
            assert (row.number, row.run_seconds) == (0, 0.0)
            assert is_now(row.started_at)
        else:
            assert (row.number, row.started_at, row.run_seconds, row.handler) == (1, began, 5.0, "h")
        assert await rig.in_store() == {}
        assert rig.dispatcher.counts == {"cancelled": 1}
        await rig.scan()
        await rig.check()


async def test_tasks_that_are_cancelled_while_others_are_being_removed_are_removed_too(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with acting(kind, tmp_path) as rig:
        entries = [await rig.add() for _ in range(3)]
        worker = rig.worker(capacity=3)
        await rig.until("started", entries[2].id)
        real = rig.store.remove

        async def meanwhile_another_ends(entry: Entry) -> Any:
            if worker.hand:
                worker.report(code="cancelled")
            return await real(entry)

        monkeypatch.setattr(rig.store, "remove", meanwhile_another_ends)
        async with trio.open_nursery() as nursery:
            for entry in entries:
                nursery.start_soon(rig.act, entry.id, CANCEL)
            while len(rig.asked_to_cancel) < 3:
                await trio.lowlevel.checkpoint()
            worker.report(code="cancelled")
        assert await rig.in_store() == {}
        # Each in one go: its attempt ended so.
        assert [what for what, _ in rig.told[-3:]] == [f"cancelled: {CANCELLED}"] * 3


async def test_a_task_whose_worker_died_before_it_was_cancelled_is_not_run_again(kind: str, tmp_path: Path) -> None:
    """No worker has it any more, but what becomes of it has not been decided."""
    async with acting(kind, tmp_path) as rig:
        entry = await bring(rig, "running")
        worker: Any = rig.dispatcher._workers[0]
        worker.die("killed by signal 9")
        assert (await rig.act(entry.id, CANCEL)).state is CANCELLED
        assert await rig.in_store() == {}
        assert (await rig.outcomes(entry.id))[-1] == "cancelled"


async def test_a_task_that_is_given_up_while_it_is_cancelled_is_cancelled(kind: str, tmp_path: Path) -> None:
    async with acting(kind, tmp_path, policy=RetryPolicy(max_attempts=1)) as rig:
        entry = await bring(rig, "running")
        worker: Any = rig.dispatcher._workers[0]
        worker.report(code="failed", handler="h")
        assert (await rig.act(entry.id, CANCEL)).state is CANCELLED
        assert await rig.outcomes(entry.id) == ["failed", "cancelled"]
        assert await rig.in_store() == {}


async def test_several_may_cancel_a_running_task(kind: str, tmp_path: Path) -> None:
    async with acting(kind, tmp_path) as rig:
        entry = await bring(rig, "running")
        worker: Any = rig.dispatcher._workers[0]
        states: list[TaskState] = []

        async def cancel() -> None:
            states.append((await rig.act(entry.id, CANCEL)).state)

        rig.on_cancel = lambda task_id: True
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(cancel)
            while len(rig.asked_to_cancel) < 3:
                await trio.lowlevel.checkpoint()
            worker.report(code="cancelled")
        assert states == [CANCELLED] * 3
        assert await rig.outcomes(entry.id) == ["cancelled"]


async def test_a_task_that_is_cancelled_while_it_is_being_claimed_is_not_given_to_a_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with acting("memory", tmp_path, paused=True) as rig:
        entry, other = await rig.add(), await rig.add()
        real = rig.store.claim
        claiming, go_on = trio.Event(), trio.Event()

        async def claim(entries: Any) -> Any:
            claims = await real(entries)
            claiming.set()
            await go_on.wait()
            return claims

        monkeypatch.setattr(rig.store, "claim", claim)
        rig.worker(capacity=2)
        rig.dispatcher.resume()
        async with trio.open_nursery() as nursery:
            await claiming.wait()
            nursery.start_soon(rig.act, entry.id, CANCEL)
            while not rig.asked_to_cancel:
                await trio.lowlevel.checkpoint()
            go_on.set()
        assert await rig.state(entry.id) is CANCELLED
        assert [start.id for start in rig.starts] == [other.id]
        assert [*rig.store.tasks] == [other.id]
        assert await rig.outcomes(entry.id) == ["cancelled"]


async def test_a_task_that_was_taken_away_while_it_was_being_claimed_cannot_be_cancelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with acting("memory", tmp_path, paused=True) as rig:
        entry = await rig.add()
        claiming, go_on = trio.Event(), trio.Event()

        async def claim(entries: Any) -> Any:
            claiming.set()
            await go_on.wait()
            rig.store.tasks.clear()
            return []

        monkeypatch.setattr(rig.store, "claim", claim)
        rig.worker()
        rig.dispatcher.resume()
        found: list[Any] = []

        async def cancel() -> None:
            found.append(await rig.actions.act(entry.id, CANCEL, "somebody"))

        async with trio.open_nursery() as nursery:
            await claiming.wait()
            nursery.start_soon(cancel)
            while not rig.asked_to_cancel:
                await trio.lowlevel.checkpoint()
            go_on.set()
        assert found == [None]
        assert not rig.dispatcher._aftermath.is_cancelling


async def test_a_running_task_whose_file_was_moved_is_cancelled_where_it_is(tmp_path: Path) -> None:
    path = tmp_path / "spool"
    async with acting("directory", tmp_path, watching=True) as rig:
        entry = await bring(rig, "running")
        worker: Any = rig.dispatcher._workers[0]
        (path / "9").mkdir()
        (path / entry.ref).rename(path / "9" / entry.id)
        await rig.scan()

        def ends(task_id: str) -> bool:
            worker.report(code="cancelled")
            return True

        rig.on_cancel = ends
        assert (await rig.act(entry.id, CANCEL)).state is CANCELLED
        assert await rig.in_store() == {}
        await rig.check()


async def test_a_cancelled_task_whose_file_another_process_keeps_is_not_said_to_be_cancelled(tmp_path: Path) -> None:
    async with acting("directory", tmp_path) as rig:
        entry = await bring(rig, "running")
        worker: Any = rig.dispatcher._workers[0]
        rig.on_cancel = lambda task_id: not worker.die("killed: an operator cancelled its task")
        with (
            locked_by_other_process(tmp_path / "spool" / entry.ref, "trispool"),
            pytest.raises(TaskRefused, match="somebody else is at work on it"),
        ):
            await rig.act(entry.id, CANCEL)
        assert await rig.outcomes(entry.id) == []
        await rig.check()
        assert (await rig.act(entry.id, CANCEL)).state is CANCELLED


async def test_a_running_task_that_the_disk_does_not_let_go_is_not_said_to_be_cancelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with acting("directory", tmp_path) as rig:
        entry = await bring(rig, "running")
        worker: Any = rig.dispatcher._workers[0]
        rig.on_cancel = lambda task_id: not worker.die("killed: an operator cancelled its task")

        async def fails(entry: Entry) -> None:
            raise SpoolUnavailable("read-only file system")

        with monkeypatch.context() as patch:
            patch.setattr(rig.store, "remove", fails)
            with pytest.raises(SpoolUnavailable, match="read-only file system"):
                await rig.act(entry.id, CANCEL)
            for state in ("running is over", "it waits"):
                with pytest.raises(SpoolUnavailable, match="read-only"):
                    await rig.act(entry.id, CANCEL)
                assert await rig.state(entry.id) is SCHEDULED, state
        await rig.check()
        assert (await rig.act(entry.id, CANCEL)).state is CANCELLED


async def test_whoever_cancels_a_task_that_does_not_end_is_told_that_it_still_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(actions_module, "CANCEL_SECONDS", 0.01)
    async with acting("memory", tmp_path) as rig:
        entry = await bring(rig, "running")
        worker: Any = rig.dispatcher._workers[0]
        assert (await rig.act(entry.id, CANCEL)).state is RUNNING
        # It ends as cancelled all the same, and others were not kept waiting meanwhile.
        assert (await rig.act((await rig.add()).id, HOLD)).state is HELD
        worker.report(code="failed", handler="h")
        await rig.until(f"cancelled: {CANCELLED}", entry.id)
        assert await rig.state(entry.id) is CANCELLED


# Callers that go


async def test_an_action_is_seen_to_its_end_for_a_caller_that_is_cancelled(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with acting(kind, tmp_path) as rig:
        entry = await bring(rig, "ready")
        real = rig.store.hold
        with trio.CancelScope() as scope:

            async def hold(entry: Entry) -> Any:
                scope.cancel()
                return await real(entry)

            monkeypatch.setattr(rig.store, "hold", hold)
            await rig.act(entry.id, HOLD)
        assert await rig.state(entry.id) is HELD
        assert await rig.outcomes(entry.id) == ["held"]
        await rig.check()


async def test_a_disk_that_does_not_answer_is_not_waited_for_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(actions_module, "STORE_SECONDS", 0.01)
    async with acting("memory", tmp_path) as rig:
        entry = await bring(rig, "ready")

        async def hangs(entry: Entry) -> None:
            await trio.sleep_forever()

        monkeypatch.setattr(rig.store, "hold", hangs)
        with pytest.raises(SpoolUnavailable, match="the disk does not answer"):
            await rig.act(entry.id, HOLD)


async def test_what_the_store_cannot_do_is_said_and_changes_nothing(kind: str, tmp_path: Path) -> None:
    async with acting(kind, tmp_path) as rig:
        entry = await bring(rig, "ready")
        if kind == "memory":
            rig.store.unavailable = "no space"
        else:
            (tmp_path / "spool" / ".trispool" / "held" / "4").write_text("in the way")
        with pytest.raises(SpoolUnavailable):
            await rig.act(entry.id, HOLD)
        rig.store.unavailable = None
        assert await rig.state(entry.id) is READY
        assert await rig.outcomes(entry.id) == []
        await rig.check()


async def test_very_many_are_acted_on_in_a_second_or_two_and_the_backlog_stays_right(tmp_path: Path) -> None:
    async with acting("directory", tmp_path, paused=True) as rig:
        results = await rig.dispatcher.enqueue([new_task({"n": str(n)}, priority=n % 3 or None) for n in range(300)])
        entries = [entry for entry in results if isinstance(entry, Entry)]
        for entry in entries:
            await rig.act(entry.id, HOLD)
        assert rig.store.held_count == 300
        for number, entry in enumerate(entries):
            await rig.act(entry.id, (RELEASE, RUN, CANCEL)[number % 3])
        assert (rig.store.held_count, rig.backlog.ready) == (0, 200)
        await rig.check()


@pytest.mark.parametrize("way", ["dead", "running"])
async def test_a_scan_under_way_does_not_bring_back_what_has_left(way: str, tmp_path: Path) -> None:
    async with acting("memory", tmp_path, policy=TWICE) as rig:
        rig.dispatcher.scan_begins()
        entry = await bring(rig, way)
        if way == "running":
            worker: Any = rig.dispatcher._workers[0]
            rig.on_cancel = lambda task_id: not worker.die("killed: an operator cancelled its task")
            await rig.act(entry.id, CANCEL)
        rig.dispatcher.scan_saw([entry])  # it looked before
        assert rig.backlog.find(entry.id) is None
