"""What a dispatcher's watcher is told."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from tests.action_support import LATER, acting
from trispool import spoolfile
from trispool.packet import encode_vars, new_task
from trispool.retry import RetryPolicy
from trispool.task import Entry
from trispool.workforce import Unwatched

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from trispool.errors import TrispoolError
    from trispool.task import NewTask

CONTENT = spoolfile.encode(encode_vars({"n": "1"}), b"")


def name(number: int) -> str:
    return f"{spoolfile.PREFIX}h_1_{number}_1_1700000000_{number}"


@pytest.mark.parametrize("kind", ["memory", "directory"])
async def test_a_task_is_told_when_it_comes_starts_and_ends(kind: str, tmp_path: Path) -> None:
    async with acting(kind, tmp_path, policy=RetryPolicy(max_attempts=2)) as rig:
        answers = ["retry", "failed"]
        rig.worker(lambda claim: answers.pop(0))
        entry = await rig.add()
        await rig.until("retry: scheduled", entry.id)
        rig.dispatcher.has_moved(entry, 0.0, "hurried", "somebody")
        await rig.until("failed: dead", entry.id)
        assert [what for what, _ in rig.told] == [
            *["enqueued", "started", "retry: scheduled"],
            *["ready", "started", "failed: dead"],
        ]


async def test_a_task_that_may_be_tried_again_at_once_is_ready(tmp_path: Path) -> None:
    async with acting("memory", tmp_path) as rig:
        entry = await rig.add()
        worker = rig.worker()
        await rig.until("started", entry.id)
        worker.alive = False
        worker.report(code="retry", handler="h", retry_at=time.time() - 1)
        assert rig.told[-1] == ("retry: ready", entry.id)


@pytest.mark.parametrize(
    ("code", "told"), [("returned", ["ready"]), ("locked", ["scheduled"]), ("settling", ["scheduled"]), ("gone", [])]
)
async def test_what_was_not_run_has_not_ended(code: str, told: list[str], tmp_path: Path) -> None:
    async with acting("memory", tmp_path) as rig:
        worker = rig.worker()
        entry = await rig.add()
        await rig.until("started", entry.id)
        rig.told.clear()
        rig.dispatcher.pause()
        worker.report(code=code)
        assert rig.told == [(what, entry.id) for what in told]


async def test_only_those_that_were_kept_have_come_and_each_once(tmp_path: Path) -> None:
    async with acting("directory", tmp_path, watching=True, paused=True) as rig:
        results = await rig.dispatcher.enqueue([new_task({"n": "1"}, priority=number) for number in range(3)])
        # Its event tells when those of the others have been heard.
        (tmp_path / "spool" / name(1)).write_bytes(CONTENT)
        await rig.until("enqueued", name(1))
        kept = [entry.id for entry in results if isinstance(entry, Entry)]
        assert rig.told == [("enqueued", task_id) for task_id in [*kept, name(1)]]
        (tmp_path / "spool").rename(tmp_path / "away")
        (refused,) = await rig.dispatcher.enqueue([new_task({"n": "1"})])
        assert not isinstance(refused, Entry)
        assert {task_id for _, task_id in rig.told} == {*kept, name(1)}


async def test_what_the_first_scan_finds_has_not_just_come_but_what_the_next_one_does_has(tmp_path: Path) -> None:
    path = tmp_path / "spool"
    path.mkdir()
    (path / name(1)).write_bytes(CONTENT)
    async with acting("directory", tmp_path, paused=True) as rig:
        assert rig.backlog.find(name(1)) is not None
        assert rig.told == []
        (path / name(2)).write_bytes(CONTENT)
        for _ in range(2):
            await rig.scan()
        assert rig.told == [("enqueued", name(2))]


async def test_a_task_that_is_moved_between_priorities_while_it_runs_has_not_come_again(tmp_path: Path) -> None:
    path = tmp_path / "spool"
    async with acting("directory", tmp_path) as rig:
        entry = await rig.add()
        rig.worker()
        await rig.until("started", entry.id)
        rig.told.clear()
        (path / "5").mkdir()
        (path / entry.ref).rename(path / "5" / entry.id)
        await rig.scan()
        assert rig.told == []


async def test_nobody_has_to_watch(tmp_path: Path) -> None:
    async with acting("memory", tmp_path, watcher=Unwatched()) as rig:
        rig.worker(lambda claim: "ok")
        entry = await rig.add(at=LATER)
        rig.dispatcher.has_moved(entry, 0.0, "hurried", "somebody")
        other = await rig.add()
        while [*rig.store.tasks] != []:
            await rig.scan()
        assert [start.id for start in rig.starts] == [entry.id, other.id]


async def test_a_task_that_a_scan_comes_across_before_it_is_acknowledged_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with acting("memory", tmp_path, paused=True) as rig:
        add = rig.store.add

        async def add_and_scan(tasks: Sequence[NewTask]) -> Sequence[Entry | TrispoolError]:
            results = await add(tasks)
            rig.dispatcher.scan_saw([result for result in results if isinstance(result, Entry)])
            return results

        monkeypatch.setattr(rig.store, "add", add_and_scan)
        entry = await rig.add()
        assert rig.told == [("enqueued", entry.id)]
