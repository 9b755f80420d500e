"""Calls that fail: that they do fail, that what comes of it is judged, and some of them, on the real service."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.acceptance.harness import telling_in
from tests.faults.injection import Call, calls_in, inject, record, why_not
from tests.faults.syscalls import OPERATIONS, Bench, Case, OperationTally, cases_of, running
from tests.faults.witness import Watched, Witness

if TYPE_CHECKING:
    from collections.abc import Iterator

REASON = why_not()
needs_strace = pytest.mark.skipif(REASON is not None, reason=REASON or "")

RECORD = """\
12 openat(5</f/spool/.trispool/tmp>, "uwsgi_spoolfile_on_vm_1_2", O_WRONLY) = 9</f/spool/.trispool/tmp/*>
12 write(9</f/spool/.trispool/tmp/uwsgi_spoolfile_on_vm_1_2>, ""..., 20 <unfinished ...>
13 pwrite64(7</f/spool/.trispool/spool.db-wal>, ""..., 4096, 32) = 4096
13 pwrite64(7</f/spool/.trispool/spool.db-wal>, ""..., 4096, 64) = 4096
12 <... write resumed>) = 20
12 newfstatat(9</f/spool/.trispool/tmp/uwsgi_spoolfile_on_vm_1_2>, "", {st_mode=0}, AT_EMPTY_PATH) = 0
12 renameat(5</f/spool/.trispool/tmp>, "uwsgi_spoolfile_on_vm_1_2", 4</f/spool>, "uwsgi_spoolfile_on_vm_1_2") = 0
12 fsync(4</f/spool>) = 0
12 newfstatat(AT_FDCWD</home>, "/f/spool/.trispool/spool.db", {st_mode=0}, 0) = 0
12 close(9</f/spool/.trispool/tmp/uwsgi_spoolfile_on_vm_1_2>) = 0
12 write(6<anon_inode:[eventfd]>, ""..., 8) = 8
12 openat(AT_FDCWD</home>, "/etc/hosts", O_RDONLY) = 3</etc/hosts>
"""


def test_a_record_tells_which_calls_are_made_to_which_files() -> None:
    assert calls_in(RECORD, Path("/f")) == [
        Call("openat", "spool/.trispool/tmp/*", "/f/spool/.trispool/tmp"),
        Call("write", "spool/.trispool/tmp/*", None),
        Call("pwrite64", "spool/.trispool/spool.db-wal", "/f/spool/.trispool/spool.db-wal"),
        Call("newfstatat", "spool/.trispool/tmp/*", None),
        Call("renameat", "spool/.trispool/tmp/*", "/f/spool/.trispool/tmp"),
        Call("fsync", "spool", "/f/spool"),
        Call("newfstatat", "spool/.trispool/spool.db", "/f/spool/.trispool/spool.db"),
    ]


def test_all_errors_are_tried_in_all_ways() -> None:
    calls = {"service": [Call("fsync", "spool", "/f/spool")], "worker": [Call("read", "spool/*", None)]}
    tried = [(case.role, case.error, case.ending) for case in cases_of(OPERATIONS[0], calls)]
    assert len(tried) == len(set(tried)) == 2 * 4 * 2 + 1
    assert ("service", "EIO", "killed") in tried


@needs_strace
def test_a_call_fails_while_it_is_told_to_and_no_longer(tmp_path: Path) -> None:
    script = (
        "import os\n"
        f"fds = [os.open({str(tmp_path)!r} + name, os.O_CREAT | os.O_WRONLY) for name in ('/a', '/b')]\n"
        "while input():\n"
        "    for fd in fds:\n"
        "        try: os.fsync(fd)\n"
        "        except OSError as error: print(error.errno, flush=True)\n"
        "        else: print('good', flush=True)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def sync() -> list[str]:
            print("go", file=process.stdin)
            return [process.stdout.readline().strip() for _ in range(2)]  # type: ignore[union-attr]

        assert sync() == ["good", "good"]
        with record([process.pid], tmp_path / "log") as tracing:
            sync()
        (first, second) = [call for call in calls_in(tracing.text, tmp_path) if call.name == "fsync"]
        assert (first.place, second.place) == ("a", "b")
        with inject([process.pid], first, "EIO", "1+", tmp_path / "log") as tracing:
            assert [sync(), sync()] == [["5", "good"], ["5", "good"]]
        assert tracing.hits == 2
        with inject([process.pid], second, "ENOSPC", "1", tmp_path / "log") as tracing:
            assert [sync(), sync()] == [["good", "28"], ["good", "good"]]
        assert tracing.hits == 1
        assert sync() == ["good", "good"]
        process.send_signal(signal.SIGKILL)


def test_the_witness_sees_every_broken_promise() -> None:
    witness = Witness()
    names = {"lost", "fine", "twice", "altered", "refused", "cancelled", "refused at a kill"}
    witness.sent = set(names)
    witness.acknowledged = names - {"refused", "refused at a kill"}
    witness.refused = {"refused at a kill"}
    witness.killed()
    witness.refused.add("refused")
    witness.cancelled = {"cancelled"}
    ran = [*(names - {"lost"}), "twice", "nobody's"]
    witness.heard({"event": "ran", "n": n, "good": n != "altered"} for n in ran)
    witness.heard([{"event": "loaded"}])
    assert witness.violations() == [
        "lost was acknowledged and is lost",
        "nobody's ran, and nobody had sent it",
        "altered ran with other vars or another body than were sent",
        "refused was refused and ran",
        "cancelled was cancelled and ran",
    ]
    assert witness.again == 1


def test_a_task_that_is_taken_away_and_one_that_is_changed_are_reported(tmp_path: Path) -> None:
    with telling_in(tmp_path) as telling:
        service = Watched(tmp_path, telling)
        try:
            service.start()
            service.pause(paused=True)
            service.spool_task("kept")
            service.await_that(lambda: len(service.files) == 1, 10)
            (kept,) = service.files
            service.spool_task("taken")
            service.await_that(lambda: len(service.files) == 2, 10)
            (taken,) = set(service.files) - {kept}
            taken.unlink()
            kept.write_bytes(kept.read_bytes() + b"more")
            assert service.settle(1.0) is None
            assert service.witness.violations() == [
                "taken was acknowledged and is lost",
                "kept ran with other vars or another body than were sent",
            ]
            service.spool_task("unfit", priority="none")
            assert service.witness.refused == {"unfit"}
            assert service.stop() == 0
            service.spool_task("late")
            assert "late was answered" in service.witness.violations()[0]
        finally:
            service.close()


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with running(tmp_path_factory.mktemp("calls"), "fsync") as opened:
        yield opened


@needs_strace
@pytest.mark.parametrize(
    ("operation", "role", "name", "place", "error", "ending"),
    [
        ("enqueue and run", "service", "fdatasync", "spool/.trispool/spool.db-wal", "EIO", "persistent"),
        ("enqueue and run", "service", "pwrite64", "spool/.trispool/spool.db-wal", "ENOSPC", "killed"),
        ("enqueue as a file", "service", "fsync", "spool", "EIO", "once"),
        ("write out", "service", "openat", "spool/.trispool/tmp", "EMFILE", "persistent"),
        # Any write of the service: none may be one that wakes somebody.
        ("write out", "service", "write", "spool/.trispool/tmp/*", "ENOSPC", "once"),
        ("claim and finish a file", "worker", "unlinkat", "spool", "EIO", "once"),
        ("set aside what failed", "service", "linkat", "spool", "EDQUOT", "persistent"),
    ],
)
def test_what_fails_costs_no_task(
    bench: Bench, operation: str, role: str, name: str, place: str, error: str, ending: str
) -> None:
    (found,) = [item for item in OPERATIONS if item.name == operation]
    tally = OperationTally()
    path = None if place.endswith("*") else str(bench.service.folder / place)
    bench.run(Case(found, role, Call(name, place, path), error, ending), tally)
    assert tally.violations == []
    assert tally.figures["not hit"] == 0
    assert tally.figures["restarted"] == (place == "spool" and name == "fsync")
    # What ran while nothing could be recorded, until the service was killed, runs again.
    if ending != "killed":
        assert tally.figures["run again"] == (name == "unlinkat")
