"""Spool directory: real files, and the locks of another process where it matters."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from trispool import claimed, spoolfile
from trispool.claimed import Gone, Locked, NotDue, Settling, Unclaimable, Unreadable
from trispool.errors import SpoolUnavailable, TaskRefused
from trispool.packet import encode_vars, new_task
from trispool.spooldir import GRACE_SECONDS, SpoolDirectory
from trispool.spoolwriter import new_name
from trispool.task import Entry, NewTask


def put(spool: SpoolDirectory, task: NewTask | None = None) -> Entry:
    (entry,) = spool.add([task or new_task({"k": "v"})])
    assert isinstance(entry, Entry), entry
    return entry


def refs(spool: SpoolDirectory) -> list[str]:
    return [entry.ref for chunk in spool.scan() for entry in chunk]


def drop(spool: SpoolDirectory, content: bytes, name: str = "uwsgi_spoolfile_on_h_1_1_1_1700000000_1") -> str:
    """A file made by somebody else, long ago."""
    path = Path(spool.absolute(name))
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    os.utime(path, (1_700_000_000, 1_700_000_000))
    return name


def test_a_new_file_is_uwsgis_to_the_byte(spool: SpoolDirectory) -> None:
    entry = put(spool, NewTask(encode_vars({"a": "1", "b": ""}), b"body"))
    path = Path(spool.absolute(entry.ref))
    assert path.read_bytes() == b"\x11\x0b\x00\x00\x01\x00a\x01\x001\x01\x00b\x00\x00body"
    assert path.stat().st_mode & 0o7777 == 0o600
    assert path.name.startswith(f"uwsgi_spoolfile_on_{os.uname().nodename}_{os.getpid()}_")


def test_a_name_chosen_beforehand_never_overwrites_and_leaves_nothing_behind(spool: SpoolDirectory) -> None:
    name, order = new_name()
    Path(spool.absolute(f".trispool/tmp/{name}")).write_bytes(b"left by a try that was killed")
    spool.watched()
    chosen = new_task({"k": "v"}, b"first")._replace(id=name)
    entry = put(spool, chosen)
    assert (entry.id, entry.ref, entry.order) == (name, name, order)
    assert spool.was_published(name)
    (again,) = spool.add([chosen._replace(body=b"second")])
    assert isinstance(again, TaskRefused)
    assert again.status == 409
    assert spool.read(name)[1] == b"first"
    assert os.listdir(spool.absolute(".trispool/tmp")) == [name]


def test_at_is_the_mtime_with_its_fraction(spool: SpoolDirectory) -> None:
    entry = put(spool, new_task({"k": "v"}, at=1_900_000_000.25))
    assert entry.at == 1_900_000_000.25
    assert Path(spool.absolute(entry.ref)).stat().st_mtime_ns == 1_900_000_000_250_000_000
    with pytest.raises(NotDue) as caught:
        spool.claim(entry.ref)
    assert caught.value.at == 1_900_000_000.25
    spool.claim(entry.ref, now=1_900_000_000.25).close()


def test_a_priority_is_a_directory(spool: SpoolDirectory) -> None:
    entry = put(spool, new_task({"k": "v"}, priority=7))
    assert entry.ref == f"7/{entry.id}"
    assert Path(spool.absolute(entry.ref)).is_file()
    drop(spool, b"", f"005/{entry.id}")
    assert {(found.ref, found.priority) for chunk in spool.scan() for found in chunk} == {
        (entry.ref, 7),
        (f"005/{entry.id}", 5),
    }
    assert spool.names() == [spool.absolute(ref) for ref in refs(spool)]


def test_a_priority_directory_that_is_a_link_is_not_followed(spool: SpoolDirectory, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    os.symlink(tmp_path / "outside", spool.absolute("3"))
    (result,) = spool.add([new_task({"k": "v"}, priority=3)])
    assert isinstance(result, SpoolUnavailable)
    assert list((tmp_path / "outside").iterdir()) == []
    assert os.listdir(spool.absolute(".trispool/tmp")) == []


def test_what_is_none_of_ours_is_reported_and_left_alone(spool: SpoolDirectory, tmp_path: Path) -> None:
    put(spool)
    Path(spool.absolute("notes.txt")).write_text("x")
    os.mkdir(spool.absolute("abc"))
    os.mkfifo(spool.absolute("uwsgi_spoolfile_on_fifo"))
    os.symlink("/etc/hostname", spool.absolute("uwsgi_spoolfile_on_link"))
    open(os.fsencode(spool.absolute("")) + b"uwsgi_spoolfile_on_\xff", "wb").close()
    foreign: dict[str, str] = {}
    assert len([entry for chunk in spool.scan(foreign) for entry in chunk]) == 1
    assert set(foreign) == {
        "notes.txt",
        "abc",
        "uwsgi_spoolfile_on_fifo",
        "uwsgi_spoolfile_on_link",
        "uwsgi_spoolfile_on_\ufffd",
    }
    for name in ("uwsgi_spoolfile_on_fifo", "uwsgi_spoolfile_on_link"):
        assert spool.look(name) is None
        with pytest.raises(Unclaimable):
            spool.claim(name)
        assert spool.set_aside(name) is None
        assert os.path.lexists(spool.absolute(name))


def test_a_claimed_task_cannot_be_claimed_again(spool: SpoolDirectory) -> None:
    entry = put(spool, new_task({"k": "v"}, b"body"))
    held = spool.claim(entry.ref)
    assert (held.vars, held.body) == ({b"k": b"v"}, b"body")
    with pytest.raises(Locked):
        spool.claim(entry.ref)
    # What costs uWSGI its POSIX lock: any descriptor of the file is closed in this process.
    Path(spool.absolute(entry.ref)).read_bytes()
    with pytest.raises(Locked):
        spool.claim(entry.ref)
    assert spool.set_aside(entry.ref) is None
    held.close()
    spool.claim(entry.ref).remove()
    with pytest.raises(Gone):
        spool.claim(entry.ref)
    assert refs(spool) == []


def test_files_of_another_owner_are_claimed_too(spool: SpoolDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    real = os.open

    def of_others(path: str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        asked.append(bool(flags & os.O_NOATIME))
        if flags & os.O_NOATIME:
            raise PermissionError(errno.EPERM, "Operation not permitted")  # open(2)
        return real(path, flags, mode, dir_fd=dir_fd)

    entries = [put(spool), put(spool)]
    monkeypatch.setattr(claimed, "_flags", claimed._flags)
    with monkeypatch.context() as patched:
        patched.setattr(os, "open", of_others)
        for entry in entries:
            spool.claim(entry.ref).remove()
    assert asked == [True, False, False], "after the first it is not tried again"


HOLD = """
import fcntl, sys
file = open(sys.argv[1], "r+b")
fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # a POSIX record lock over the whole file, as uWSGI's
print("locked", flush=True)
sys.stdin.read()
"""


def test_a_file_without_a_time_does_not_wait_for_a_clock_that_was_set_back(spool: SpoolDirectory) -> None:
    untimed, timed = put(spool), put(spool, new_task({"at": str(time.time() + 0.5)}))
    for entry in (untimed, timed):
        entry_at = os.stat(spool.absolute(entry.ref)).st_mtime
        back = time.time() - 3600
        if entry is untimed:
            spool.claim(entry.ref, back).close()
        else:
            with pytest.raises(NotDue) as caught:
                spool.claim(entry.ref, back)
            assert caught.value.at == entry_at
    # A person has made it wait.
    os.utime(spool.absolute(untimed.ref), (time.time() + 5, time.time() + 5))
    with pytest.raises(NotDue):
        spool.claim(untimed.ref, time.time() - 3600)


def test_a_file_locked_as_uwsgi_does_cannot_be_claimed(spool: SpoolDirectory) -> None:
    entry = put(spool)
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, spool.absolute(entry.ref)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout
        assert other.stdout.readline() == b"locked\n"
        with pytest.raises(Locked):
            spool.claim(entry.ref)
    held = spool.claim(entry.ref)
    tried = subprocess.run(
        [sys.executable, "-c", HOLD, spool.absolute(entry.ref)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    assert b"BlockingIOError" in tried.stderr
    held.close()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"\x11\x05", "header"),
        (b"\x11\x05\x00\x00\x01\x00", "5 bytes"),
        (b"garbage!", "modifier1"),
        (b"\x00\x00\x00\x00", "modifier1"),
        (b"\x11\x04\x00\x00\x09\x00ab", "byte"),
    ],
)
def test_what_cannot_be_parsed_is_unreadable_and_set_aside_whole(
    spool: SpoolDirectory, content: bytes, reason: str
) -> None:
    name = drop(spool, content)
    with pytest.raises(Unreadable, match=reason):
        spool.claim(name, now=time.time() + GRACE_SECONDS)
    assert spool.set_aside(name) is not None
    assert refs(spool) == []
    (dead,) = spool.dead()
    assert Path(spool.absolute(dead.ref)).read_bytes() == content
    os.rename(spool.absolute(dead.ref), spool.absolute(name))
    assert refs(spool) == [name]


def test_an_incomplete_file_is_given_time_to_become_whole(spool: SpoolDirectory) -> None:
    whole = spoolfile.encode(encode_vars({"k": "v"}), b"")
    name = drop(spool, b"")
    for length in range(len(whole)):
        drop(spool, whole[:length])
        with pytest.raises(Settling):
            spool.claim(name)
    drop(spool, whole)
    spool.claim(name).remove()


def test_set_aside_never_replaces_an_older_one(spool: SpoolDirectory) -> None:
    name = drop(spool, b"first")
    assert spool.set_aside(name)
    drop(spool, b"second")
    assert spool.set_aside(name)
    assert sorted(Path(spool.absolute(dead.ref)).read_bytes() for dead in spool.dead()) == [b"first", b"second"]


def test_a_file_moved_while_it_runs_is_removed_when_it_is_done(spool: SpoolDirectory) -> None:
    entry = put(spool)
    held = spool.claim(entry.ref)
    os.mkdir(spool.absolute("4"))
    os.rename(spool.absolute(entry.ref), spool.absolute(f"4/{entry.id}"))
    with pytest.raises(Locked):
        spool.claim(f"4/{entry.id}")
    held.remove()
    assert refs(spool) == []


def test_a_file_taken_out_of_the_spool_while_it_runs_is_left_there(spool: SpoolDirectory, tmp_path: Path) -> None:
    entry = put(spool)
    held = spool.claim(entry.ref)
    os.rename(spool.absolute(entry.ref), tmp_path / "mine")
    held.remove()
    assert (tmp_path / "mine").exists()


def test_a_file_removed_between_listing_and_claim_is_gone(spool: SpoolDirectory) -> None:
    entry = put(spool)
    os.unlink(spool.absolute(entry.ref))
    with pytest.raises(Gone):
        spool.claim(entry.ref)
    assert spool.set_aside(entry.ref) is None


def test_no_descriptor_is_left_open(spool: SpoolDirectory) -> None:
    before = len(os.listdir("/proc/self/fd"))
    put(spool, new_task({"k": "v"}, priority=1))
    future = put(spool, new_task({"k": "v"}, at=time.time() + 999))
    bad = drop(spool, b"bad!")
    spool.claim(put(spool).ref).remove()
    spool.claim(put(spool).ref).close()
    for ref in (future.ref, bad, "nothing"):
        with pytest.raises(Unclaimable):
            spool.claim(ref)
    list(spool.scan())
    spool.set_aside(bad)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_full_disk_refuses_the_task_and_leaves_nothing(
    spool: SpoolDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(fd: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", write)
        results = spool.add([new_task({"k": "v"}), new_task({"k": "w"})])
    assert [type(result) for result in results] == [SpoolUnavailable, SpoolUnavailable]
    assert "No space left" in str(results[0])
    assert refs(spool) == []
    assert os.listdir(spool.absolute(".trispool/tmp")) == []
    put(spool)


def test_a_short_write_is_continued(spool: SpoolDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, bytes(data)[:7]))
    entry = put(spool, new_task({"key": "value"}, b"0123456789" * 10))
    monkeypatch.undo()
    assert spool.read(entry.ref) == ({b"key": b"value"}, b"0123456789" * 10)


def test_fsync_covers_every_file_and_its_directory_before_add_returns(tmp_path: Path, synced: list[str]) -> None:
    spool = SpoolDirectory(tmp_path / "spool", fsync=True)
    synced.clear()
    spool.add([new_task({"k": "v"}), new_task({"k": "v"}), new_task({"k": "v"}, priority=2)])
    files = [path for path in synced if "/.trispool/tmp/" in path]
    folders = [path for path in synced if "/.trispool/tmp/" not in path]
    assert len(files) == 3
    assert sorted(folders) == [spool.path, f"{spool.path}/2"]
    assert synced[:3] == files
    spool.close()


def test_a_new_directory_and_those_above_it_reach_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.readlink(f"/proc/self/fd/{fd}")))
    path = tmp_path / "a/b/spool"
    SpoolDirectory(path, fsync=True).close()
    assert synced == [str(tmp_path / "a/b"), str(tmp_path / "a"), str(tmp_path)]
    # Whoever made it before need not have seen to it.
    synced.clear()
    SpoolDirectory(path, fsync=True).close()
    assert synced == [str(tmp_path / "a/b")]
    synced.clear()
    SpoolDirectory(tmp_path / "c/spool").close()
    assert synced == []


def test_what_is_moved_has_reached_its_place_when_it_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "spool"
    spool = SpoolDirectory(path, fsync=True)
    held, dead = put(spool, new_task({"k": "v", "priority": "7"})), put(spool)
    done: list[str] = []
    unlink = os.unlink

    def fsync(fd: int) -> None:
        done.append(os.path.relpath(os.readlink(f"/proc/self/fd/{fd}"), path))

    def unlinks(ref: str, *, dir_fd: int) -> None:
        done.append(f"unlink {os.path.dirname(ref)}")
        unlink(ref, dir_fd=dir_fd)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "unlink", unlinks)
    lying = spool.hold(held.ref)
    assert lying is not None
    assert done == [".trispool/held/7", ".trispool/held", ".trispool", ".", "unlink 7"]
    done.clear()
    spool.restore(lying.ref)
    assert done == ["7", ".", "unlink .trispool/held/7"]
    done.clear()
    spool.set_aside(dead.ref)
    assert done == [".trispool/dead", ".trispool", ".", "unlink "]


def test_a_priority_directory_that_others_have_made_reaches_the_disk_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = SpoolDirectory(tmp_path / "spool", fsync=True)
    (tmp_path / "spool/7").mkdir()  # as a worker does, or a uWSGI
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.readlink(f"/proc/self/fd/{fd}")))
    for _ in range(2):
        spool.add([new_task({"k": "v"}, priority=7)])
    folders = [path for path in synced if "/.trispool/tmp/" not in path]
    assert sorted(folders[:2]) == [spool.path, f"{spool.path}/7"]
    assert folders[2:] == [f"{spool.path}/7"]
    spool.close()


@pytest.mark.parametrize("which", ["file", "directory"])
def test_a_failed_fsync_is_never_acknowledged_nor_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    spool = SpoolDirectory(tmp_path / "spool", fsync=True)
    real = os.fsync

    def fsync(fd: int) -> None:
        is_file = "/.trispool/tmp/" in os.readlink(f"/proc/self/fd/{fd}")
        if is_file == (which == "file"):
            raise OSError(errno.EIO, "Input/output error")
        real(fd)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fsync)
        results = spool.add([new_task({"k": "v"}), new_task({"k": "w"})])
    assert all(isinstance(result, SpoolUnavailable) for result in results)
    assert refs(spool) == []
    assert spool.broken
    assert "fsync" in spool.broken
    (again,) = spool.add([new_task({"k": "v"})])
    assert isinstance(again, SpoolUnavailable)
    spool.close()


def test_a_time_that_the_file_system_cannot_hold_is_refused(
    spool: SpoolDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.utime

    def clamped(fd: int, *, ns: tuple[int, int]) -> None:
        real(fd, ns=(2_147_483_647_000_000_000, 2_147_483_647_000_000_000))

    monkeypatch.setattr(os, "utime", clamped)
    (result,) = spool.add([new_task({"k": "v"}, at=4_000_000_000)])
    assert isinstance(result, TaskRefused)
    assert refs(spool) == []


def test_clean_removes_only_what_was_left_long_ago(spool: SpoolDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    Path(spool.absolute(".trispool/tmp/x")).write_bytes(b"half")
    assert spool.clean() == 0
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 7200)
    assert spool.clean() == 1


def test_two_writers_at_once_never_make_the_same_name(tmp_path: Path) -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[2]); from trispool.spooldir import SpoolDirectory;"
        "from trispool.packet import new_task; s = SpoolDirectory(sys.argv[1]);"
        "[s.add([new_task({'k': 'v'})]) for _ in range(300)]"
    )
    root = Path(__file__).parent.parent
    others = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "spool"), str(root)]) for _ in range(3)]
    assert [other.wait() for other in others] == [0, 0, 0]
    opened = SpoolDirectory(tmp_path / "spool")
    assert len(refs(opened)) == 900
    opened.close()


@pytest.mark.parametrize("folder", [".trispool", ".trispool/dead", ".trispool/tmp"])
def test_our_folders_are_made_again_when_somebody_has_removed_them(spool: SpoolDirectory, folder: str) -> None:
    shutil.rmtree(spool.absolute(folder))
    assert spool.dead() == []
    put(spool)
    assert spool.set_aside(drop(spool, b"garbage"))
    assert len(spool.dead()) == 1


def test_nothing_is_kept_where_nobody_would_find_it(spool: SpoolDirectory, tmp_path: Path) -> None:
    ref = put(spool).ref
    os.rename(spool.path, tmp_path / "elsewhere")
    (refusal,) = spool.add([new_task({"k": "v"})])
    assert isinstance(refusal, SpoolUnavailable)
    assert spool.dead() == []
    os.rename(tmp_path / "elsewhere", spool.path)
    put(spool)
    assert len(refs(spool)) == 2
    spool.claim(ref).remove()
    assert spool.replaced == 0


def test_a_directory_that_has_been_replaced_is_gone_over_to(spool: SpoolDirectory, tmp_path: Path) -> None:
    worker = SpoolDirectory(spool.path, create=False)
    put(spool)
    before = len(os.listdir("/proc/self/fd"))
    os.rename(spool.path, tmp_path / "elsewhere")
    os.mkdir(spool.path)
    entry = put(spool)
    assert refs(spool) == [entry.ref]
    worker.claim(entry.ref).remove()
    assert refs(spool) == []
    assert spool.set_aside(drop(spool, b"garbage"))
    assert (spool.replaced, worker.replaced) == (1, 1)
    assert len(os.listdir("/proc/self/fd")) == before
    worker.close()


def test_whoever_only_looks_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "spool").mkdir()
    opened = SpoolDirectory(tmp_path / "spool", create=False)
    assert refs(opened) == []
    assert opened.dead() == []
    assert list((tmp_path / "spool").iterdir()) == []
    put(opened)
    assert len(refs(opened)) == 1
    opened.close()


def test_what_is_no_task_is_not_read_whole_however_long_it_is(
    spool: SpoolDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    garbage = drop(spool, b"garbage!")
    os.truncate(spool.absolute(garbage), 1 << 40)
    task = drop(spool, spoolfile.encode(encode_vars({"k": "v"}), b"body"), "uwsgi_spoolfile_on_h_1_2_1_1700000000_1")
    os.truncate(spool.absolute(task), 1 << 40)
    with pytest.raises(Unreadable, match="modifier1"):
        spool.claim(garbage, now=time.time() + GRACE_SECONDS)
    assert spool.read(task, body_limit=6) == ({b"k": b"v"}, b"body\0\0")
    assert spool.read(task, body_limit=0) == ({b"k": b"v"}, b"")


@pytest.mark.parametrize("size", [0, 1, 65_000, 65_531, 65_532, 65_533, 200_000])
def test_a_body_of_any_size_is_claimed_whole(spool: SpoolDirectory, size: int) -> None:
    body = os.urandom(size)
    entry = put(spool, new_task({"k": "v"}, body))
    held = spool.claim(entry.ref)
    assert (held.vars, held.body) == ({b"k": b"v"}, body)
    held.close()
