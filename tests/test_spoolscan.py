"""Looking through a spool directory: names alone, and whether they can have changed since."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from trispool import spoolscan
from trispool.packet import new_task
from trispool.task import Entry

if TYPE_CHECKING:
    from trispool.spooldir import SpoolDirectory


def put(spool: SpoolDirectory, priority: int | None = None) -> Entry:
    (entry,) = spool.add([new_task({"k": "v"}, priority=priority)])
    assert isinstance(entry, Entry), entry
    return entry


def test_names_can_be_read_alone(spool: SpoolDirectory) -> None:
    refs = {put(spool).ref, put(spool, 5).ref, put(spool, 7).ref}
    Path(spool.absolute("notes.txt")).write_text("x")
    os.mkdir(spool.absolute("abc"))
    assert {ref for part in spoolscan.refs(spool.path) for ref in part} == refs
    (chunk,) = [part for part in spoolscan.refs(spool.path) if part[0].startswith("5/")]
    assert len(chunk) == 1


def test_many_names_come_in_parts(spool: SpoolDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spoolscan, "NAMES_CHUNK", 3)
    refs = {put(spool).ref for _ in range(7)}
    parts = [*spoolscan.refs(spool.path)]
    assert [len(part) for part in parts] == [3, 3, 1]
    assert {ref for part in parts for ref in part} == refs


class Reading:
    """Reads a spool, on a clock of its own."""

    def __init__(self, spool: SpoolDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
        self.spool = spool
        self.stamps = spoolscan.Stamps(spool.path)
        self.now = 1000.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)

    def read(self, after: float = 1.0, *, names: bool = False) -> None:
        self.now += after
        for _ in spoolscan.refs(self.spool.path, self.stamps) if names else self.spool.scan({}, self.stamps):
            pass


@pytest.fixture
def reading(spool: SpoolDirectory, monkeypatch: pytest.MonkeyPatch) -> Reading:
    return Reading(spool, monkeypatch)


def make_old(spool: SpoolDirectory, folder: str = "") -> None:
    """The tick of a folder's last change is over, and the next change shows."""
    os.utime(spool.absolute(folder), (1e9, 1e9))


@pytest.mark.parametrize("names", [False, True])
def test_a_spool_is_unchanged_when_it_was_read_a_tick_after_the_last_change(reading: Reading, names: bool) -> None:
    put(reading.spool, 5)
    assert not reading.stamps.are_unchanged()
    reading.read(names=names)
    assert not reading.stamps.are_unchanged(), "another may have come in the same tick, but after the reading"
    reading.read(0.001, names=names)
    assert not reading.stamps.are_unchanged()
    reading.read(names=names)
    assert reading.stamps.are_unchanged()


@pytest.mark.parametrize("what", ["come", "gone", "come with priority", "new folder", "folder gone", "replaced"])
def test_a_spool_is_not_unchanged_when_something_came_or_went(reading: Reading, what: str) -> None:
    spool = reading.spool
    entry = put(spool)
    there = put(spool, 5)
    make_old(spool)
    make_old(spool, "5")
    reading.read()
    reading.read()
    assert reading.stamps.are_unchanged()
    if what == "come":
        put(spool)
    elif what == "gone":
        os.unlink(spool.absolute(entry.ref))
    elif what == "come with priority":
        put(spool, 5)
    elif what == "new folder":
        os.mkdir(spool.absolute("6"))
    elif what == "replaced":
        os.rename(spool.path, f"{spool.path}.old")
        os.mkdir(spool.path)
        make_old(spool)
    else:
        os.unlink(spool.absolute(there.ref))
        os.rmdir(spool.absolute("5"))
    assert not reading.stamps.are_unchanged()


def test_a_reading_that_was_not_ended_counts_for_nothing(reading: Reading) -> None:
    put(reading.spool)
    reading.read()
    reading.read()
    unfinished = reading.spool.scan({}, reading.stamps)
    next(unfinished)
    assert not reading.stamps.are_unchanged()
    unfinished.close()
    assert not reading.stamps.are_unchanged()
    reading.read()
    assert reading.stamps.are_unchanged()


def test_without_priority_folders_nothing_has_to_be_read_to_know_it(
    spool: SpoolDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(spool)
    if os.stat(spool.path).st_nlink != 3:
        pytest.skip("this file system does not count the links of folders")
    with monkeypatch.context() as patched:
        patched.setattr(os, "scandir", None)
        assert spool.priorities() == []
    put(spool, 5)
    put(spool, 40)
    assert spool.priorities() == ["5", "40"]


@pytest.mark.parametrize("links", [1, 2])
def test_priority_folders_are_found_where_links_are_not_counted(
    links: int, spool: SpoolDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(spool, 5)
    real = os.stat

    def stat(path: str) -> os.stat_result:
        return os.stat_result([*real(path)[:3], links, *real(path)[4:10]])

    with monkeypatch.context() as patched:
        patched.setattr(os, "stat", stat)
        assert spool.priorities() == ["5"]
