"""Power cuts, a few of them; and whether the model of the disk gives and takes what it says, and the judge sees it."""

from __future__ import annotations

import os
import sys
from math import inf
from pathlib import Path
from random import Random

import pytest

from tests.faults.disk import CHOICES, Choice, History, lay
from tests.faults.power import SCENARIO, SEEN
from tests.faults.powerjudge import Found, Lying, Promises, look
from tests.faults.powerload import Operated, Sent, digest
from tests.faults.tracing import Call, calls, traced

PATH = Path("/d")
NOTHING, ALL, NAMES, CONTENT, IN_ORDER, ANY = CHOICES


class Did:
    """Calls, as strace would tell them, of a process that works in `/d`."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.now = 0

    def __call__(self, name: str, arguments: str, result: int = 0, *, lasts: int = 1) -> int:
        """One call; gives the moment after it."""
        self.calls.append(Call(name, arguments, result, self.now, self.now + lasts))
        self.now += 2
        return self.now

    def make(self, name: str) -> int:
        return self("openat", f"AT_FDCWD<{hexadecimal('/')}>, {quoted(f'/d/{name}')}, O_RDWR|O_CREAT, 0600", 5)

    def write(self, name: str, data: bytes, offset: int) -> int:
        return self(
            "pwrite64", f'5<{hexadecimal(f"/d/{name}")}>, "{hexadecimal(data)}", {len(data)}, {offset}', len(data)
        )

    def sync(self, name: str, *, call: str = "fsync") -> int:
        return self(call, f"5<{hexadecimal(f'/d/{name}'.rstrip('/'))}>")

    def disk(self, choice: Choice, cut: float = inf, seed: int = 1) -> dict[str, bytes | None]:
        history = History(self.calls, PATH)
        return {laid.path: laid.content for laid in history.disk(cut, choice, Random(seed))}


def hexadecimal(text: str | bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in (text.encode() if isinstance(text, str) else text))


def quoted(text: str) -> str:
    return f'"{hexadecimal(text)}"'


def test_what_was_synced_is_there_and_nothing_else_has_to_be() -> None:
    did = Did()
    did.make("f")
    did.write("f", b"kept", 0)
    did.sync("f", call="fdatasync")
    unnamed = did.now
    did.sync("")
    named = did.now
    did.write("f", b"lost", 4)
    assert did.disk(NOTHING, unnamed) == {}
    assert did.disk(NOTHING, named) == did.disk(NOTHING) == {"f": b"kept"}
    assert did.disk(ALL) == {"f": b"keptlost"}
    assert did.disk(ALL, unnamed) == did.disk(NAMES, unnamed) == {"f": b"kept"}
    assert did.disk(NAMES) == {"f": b"kept"}


def test_a_name_may_be_there_without_content_and_content_without_a_name() -> None:
    did = Did()
    did.make("f")
    did.write("f", b"content", 0)
    assert did.disk(NAMES) == {"f": b""}
    assert did.disk(CONTENT) == {}


def test_a_sync_makes_safe_what_had_returned_when_it_began_once_it_has_returned() -> None:
    did = Did()
    did.make("f")
    did.sync("")
    did("pwrite64", f'5<{hexadecimal("/d/f")}>, "{hexadecimal("late")}", 4, 0', 4, lasts=5)
    began = did.now
    did.sync("f")
    assert did.disk(NOTHING) == {"f": b""}
    did.calls[-2].end = began - 1
    assert did.disk(NOTHING) == {"f": b"late"}
    # The power goes while it is at work.
    assert did.disk(NOTHING, began + 1) == {"f": b""}


def test_a_sync_that_failed_makes_nothing_safe() -> None:
    did = Did()
    did.make("f")
    did.sync("")
    did.write("f", b"lost", 0)
    did("fsync", f"5<{hexadecimal('/d/f')}>", -1)
    assert did.disk(NOTHING) == {"f": b""}


def test_a_folder_is_lost_with_all_that_is_in_it_if_its_own_name_is() -> None:
    did = Did()
    did("mkdir", f"{quoted('/d/a')}, 0700")
    did.make("a/f")
    did.sync("a/f")
    did.sync("a")
    assert did.disk(NOTHING) == {}
    did.sync("")
    assert did.disk(NOTHING) == {"a": None, "a/f": b""}


def test_everything_is_safe_after_syncfs() -> None:
    did = Did()
    did("mkdir", f"{quoted('/d/a')}, 0700")
    did.make("a/f")
    did.write("a/f", b"kept", 0)
    did("syncfs", f"3<{hexadecimal('/d/a')}>")
    assert did.disk(NOTHING) == {"a": None, "a/f": b"kept"}


def test_the_time_of_a_file_is_safe_after_fsync_alone() -> None:
    for call, expected in (("fdatasync", None), ("fsync", 5_000_000_007)):
        did = Did()
        did.make("f")
        did.sync("")
        times = "{tv_sec=5, tv_nsec=7} /* 1970-01-01T00:00:05.7+0000 */"
        did("utimensat", f"5<{hexadecimal('/d/f')}>, NULL, [{times}, {times}], 0")
        did.sync("f", call=call)
        (laid,) = History(did.calls, PATH).disk(inf, NOTHING, Random())
        assert laid.mtime == expected


def test_a_rename_is_whole_and_a_link_and_an_unlink_are_not() -> None:
    did = Did()
    did.make("f")
    did.sync("")
    did("rename", f"{quoted('/d/f')}, {quoted('/d/g')}")
    assert {frozenset(did.disk(ANY, seed=seed)) for seed in range(50)} == {frozenset("f"), frozenset("g")}
    did("link", f"{quoted('/d/g')}, {quoted('/d/h')}")
    did("unlink", f"{quoted('/d/g')}")
    ends = {frozenset(did.disk(ANY, seed=seed)) for seed in range(200)}
    assert frozenset() in ends  # the removal is there, and what came before it is not
    assert frozenset("gh") in ends
    in_order = {frozenset(did.disk(IN_ORDER, seed=seed)) for seed in range(200)}
    assert in_order == {frozenset("f"), frozenset("g"), frozenset("gh"), frozenset("h")}


def test_of_a_write_any_sectors_are_there_and_what_was_safe_is_below_them() -> None:
    did = Did()
    did.make("f")
    did.write("f", b"a" * 1536, 0)
    did.sync("f")
    did.sync("")
    did.write("f", b"b" * 1024, 256)
    found = {did.disk(ANY, seed=seed)["f"] for seed in range(200)}
    pieces = [[b"a" * 256, b"b" * 256], [b"a" * 512, b"b" * 512], [b"a" * 256, b"b" * 256]]
    assert found == {
        b"a" * 256 + first + second + third + b"a" * 256
        for first in pieces[0]
        for second in pieces[1]
        for third in pieces[2]
    }


def test_a_file_may_have_grown_without_its_content() -> None:
    did = Did()
    did.make("f")
    did.sync("")
    did.write("f", b"x" * 600, 0)
    found = {did.disk(ANY, seed=seed)["f"] for seed in range(300)}
    assert {len(content) for content in found if content is not None} == {0, 512, 600}
    assert bytes(600) in found
    assert bytes(512) + b"x" * 88 in found


def test_the_model_is_that_of_a_real_file_system(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    script = """if True:
        import os, sqlite3, sys, threading
        os.chdir("/")
        root = os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECTORY)
        os.mkdir("tmp", dir_fd=root)
        os.mkdir(sys.argv[1] + "/5")
        def make(name):
            fd = os.open("tmp/" + name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, dir_fd=root)
            os.write(fd, name.encode() * 1000)
            os.utime(fd, ns=(1, 1_500_000_000_123_456_789))
            os.fsync(fd)
            os.rename("tmp/" + name, "5/" + name, src_dir_fd=root, dst_dir_fd=root)
            os.close(fd)
        threads = [threading.Thread(target=make, args=[name]) for name in "abcdefgh"]
        [thread.start() for thread in threads]
        database = sqlite3.connect(sys.argv[1] + "/db")
        database.executescript("PRAGMA journal_mode = WAL; CREATE TABLE t (x)")
        with database:
            database.executemany("INSERT INTO t VALUES (?)", [(os.urandom(3000),) for _ in range(100)])
        [thread.join() for thread in threads]
        os.link("5/a", "z", src_dir_fd=root, dst_dir_fd=root)
        os.unlink("5/b", dir_fd=root)
        os._exit(7)
    """
    log = tmp_path / "log"
    process = traced(
        [sys.executable, "-c", script, str(root)], tmp_path / "trace", environment=os.environ, folder=tmp_path, log=log
    )
    assert process.wait(30) == 7, log.read_text()
    history = History(calls([process.path], str(root)), root)
    copy = tmp_path / "copy"
    copy.mkdir()
    lay(history.disk(inf, ALL, Random()), copy)
    assert state_of(copy) == state_of(root)
    assert state_of(copy)["z"] == (b"a" * 1000, 1_500_000_000_123_456_789, 2)
    for seed in range(20):
        for laid in history.disk(Random(seed).randrange(history.end), NOTHING, Random(seed)):
            # A name in that folder comes after the sync of its file.
            assert laid.path in ("tmp", "5", "db", "db-wal", "db-journal", "db-shm")


def state_of(folder: Path) -> dict[str, tuple[bytes, int, int] | None]:
    paths = [path for path in folder.rglob("*") if not path.name.endswith("-shm")]
    return {
        str(path.relative_to(folder)): None
        if path.is_dir()
        else (path.read_bytes(), path.stat().st_mtime_ns if "db" not in path.name else 0, path.stat().st_nlink)
        for path in paths
    }


def test_a_trace_that_cannot_tell_all_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    shared = f"1 mmap(NULL, 4096, PROT_READ|PROT_WRITE, MAP_SHARED, 3<{hexadecimal('/d/f')}>, 0) = 0x7f0000000000\n"
    path.write_text(shared)
    with pytest.raises(ValueError, match="unseen"):
        calls([path], "/d")
    assert len(calls([path], "/elsewhere")) == 1
    did = Did()
    did("rename", f"{quoted('/elsewhere/f')}, {quoted('/d/f')}")
    with pytest.raises(ValueError, match="comes from elsewhere"):
        History(did.calls, PATH)


def test_calls_that_overlap_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    path.write_text(
        f"1 fsync(5<{hexadecimal('/d/f')}> <unfinished ...>\n"
        f'2 pwrite64(5<{hexadecimal("/d/f")}>, "{hexadecimal("x")}", 1, 0) = 1\n'
        "1 <... fsync resumed>) = -1 EIO (Input/output error)\n"
        "1 +++ exited with 0 +++\n"
    )
    write, sync = calls([path], "/d")
    assert (write.name, write.strings, write.file) == ("pwrite64", [b"x"], "/d/f")
    assert (sync.name, sync.result) == ("fsync", -1)
    assert sync.begin < write.begin < write.end < sync.end


class Judged:
    """One task, of which it was told at 10 that it is kept, and a power cut at 100."""

    def __init__(self, kind: str = "quick", **said: int) -> None:
        self.task = Sent("1", kind, digest(b"1", b"", b""), 5.0 if kind == "later" else None, 4000, 0)
        self.calls = [answer(10), answer(20), answer(200)]
        self.calls += [Call("readlink", quoted(f"/power/{word}/1"), -1, when, when + 1) for word, when in said.items()]

    def __call__(self, *ran: str, files: tuple[Lying, ...] = (), cut: int = 100) -> list[str]:
        verdict = Promises(self.calls, [self.task]).judge(cut, Found([("1", told) for told in ran], [*files]))
        return verdict.violations

    @property
    def good(self) -> str:
        return self.task.digest

    def lying(self, place: str = "waiting", at: float = 5.0) -> tuple[Lying, ...]:
        return (Lying(place, "1", self.good, at),)


def answer(begin: int) -> Call:
    peer = "TCP:[127.0.0.1:3031->127.0.0.1:4000]"
    return Call("sendto", f'9<{peer}>, "{hexadecimal(bytes([255, 0, 0, 1]))}", 4, 0', 4, begin, begin + 1)


def test_what_was_acknowledged_has_to_run_once_as_it_was_sent() -> None:
    judged = Judged()
    assert judged(judged.good) == []
    assert judged() == ["1 (quick): was acknowledged and is lost"]
    assert judged(cut=10) == []
    assert judged(judged.good, judged.good) == ["1 (quick): ran 2 times"]
    assert judged("other") == ["1: it is not what was sent"]
    assert judged(files=judged.lying()) == ["1 (quick): does not run, and is waiting"]
    assert judged(judged.good, files=judged.lying()) == [
        "1 (quick): ran, and is there still",
        "1 (quick): does not run, and is waiting",
    ]


def test_what_had_ended_may_be_gone_and_what_had_only_begun_may_not() -> None:
    assert Judged(began=30, ended=40)() == []
    assert Judged(began=30, ended=40)(cut=35) == ["1 (quick): was acknowledged and is lost"]
    assert Judged(began=30)() == ["1 (quick): was acknowledged and is lost"]


def test_what_is_for_later_has_to_wait_with_its_time() -> None:
    judged = Judged("later")
    assert judged(files=judged.lying()) == []
    assert judged(files=judged.lying(at=6.0)) == ["1 (later): is due at 6.0 instead of 5.0"]
    assert "1 (later): ran an hour early" in judged(judged.good)
    assert judged(files=judged.lying() * 2) == ["1 (later): is there 2 times"]
    judged.task.operated.append(Operated("cancel", 4000, 1))
    assert judged() == []
    judged.task.operated[:] = [Operated("hold", 4000, 1)]
    assert judged() == ["1 (later): was acknowledged and is lost"]


def test_what_was_never_sent_and_what_is_broken_is_told() -> None:
    promises = Promises([], [])
    assert promises.judge(1, Found([("2", "told")])).violations == ["2: nobody sent it"]
    assert promises.judge(1, Found(damaged=True)).violations == ["the database was found to be damaged"]
    (told,) = promises.judge(1, Found(files=[Lying("waiting", None, "", 0.0)])).violations
    assert "was not set aside" in told
    aside = promises.judge(1, Found(files=[Lying("dead", None, "", 0.0)]))
    assert (aside.violations, aside.counts["set aside"]) == ([], 1)


def test_spool_files_are_read_without_trispool(tmp_path: Path) -> None:
    good = b"\x11\x0a\x00\x00\x01\x00n\x01\x007\x00\x00\x00\x00body"
    (tmp_path / ".trispool/dead").mkdir(parents=True)
    (tmp_path / "3").mkdir()
    for number, content in enumerate((good, good[:-5], good[:9], b"")):
        (tmp_path / f"3/uwsgi_spoolfile_on_{number}").write_bytes(content)
    (tmp_path / ".trispool/dead/uwsgi_spoolfile_on_4").write_bytes(good)
    found = look(tmp_path)
    assert [(lying.place, lying.n) for lying in found] == [
        ("dead", "7"),
        ("waiting", "7"),
        ("waiting", None),
        ("waiting", None),
        ("waiting", None),
    ]
    assert found[0].digest == found[1].digest == digest(b"7", b"", b"body")


def test_nothing_is_lost_by_power_cuts(tmp_path: Path) -> None:
    outcomes = SCENARIO.run(0.01, tmp_path, Random(1))
    assert [(outcome.name, outcome.violations) for outcome in outcomes if outcome.violations] == []
    # A scenario that acknowledges nothing keeps all promises.
    assert sum(int(outcome.figures["of these to be kept"]) for outcome in outcomes) > 20
    seen = [outcome for outcome in outcomes if outcome.name.startswith(SEEN)]
    assert len(seen) == 3
    assert all(outcome.figures["bad disks"] for outcome in seen)
