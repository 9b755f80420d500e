"""The stand-ins beside the real thing: the same probes are run by a real uWSGI and under trispool, and say the same."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from trispool.packet import new_task
from trispool.spooldir import SpoolDirectory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

PROBES = Path(__file__).parent / "probes"
ROOT = PROBES.parents[2]
TOO_LONG_SECONDS = 60

# Where trispool is meant to say something else: (kind, case) to what it says.
DIFFERENT = {
    # Newer than 2.0.31, which does not know it.
    ("import", "spooler_dir"): ["raised", "ValueError", "This process is not a spooler"],
    ("spooler", "spooler_dir"): ["returned", "bytes", "b'SPOOL'"],
    # The fraction is kept.
    ("spooler", "at with a fraction"): ["returned", "float", "4000000000.75"],
    # uWSGI stores something else than was given, and somewhere else than in the spool.
    ("spooler", "at of letters"): ["raised", "ValueError", "unable to spool job"],
    ("spooler", "priority outside"): ["raised", "ValueError", "unable to spool job"],
    ("spooler", "empty key"): ["raised", "ValueError", "unable to spool job"],
    ("spooler", "value of 65536"): ["raised", "ValueError", "unable to spool job"],
    ("decorators", "passed too much"): ["raised", "ValueError", "unable to spool job"],
}

# No larger numbers: after one of more than 64 bits uWSGI fails the next task, too, by an exception left behind.
RETURNS = [
    "uwsgi.SPOOL_OK",
    "uwsgi.SPOOL_RETRY",
    "uwsgi.SPOOL_IGNORE",
    "1",
    "2",
    "-3",
    "True",
    "False",
    "None",
    "-2.0",
    "'-2'",
    "b'-2'",
    "[]",
    "Number(-2)",
    "Number(0)",
    "4294967294",
    "4294967295",
    "4294967296",
    "-4294967298",
    "2 ** 31",
    "2 ** 63 - 2",
    "-2 ** 63",
    "1 / 0",
    "lambda: 0",
]

SHOWN: dict[str, tuple[dict[bytes, bytes], bytes]] = {
    "plain": ({b"key": b"value", b"empty": b""}, b""),
    "body": ({b"key": b"value"}, b"content\0\xff"),
    "body as a var": ({b"body": b"a var"}, b""),
    "body and a var of that name": ({b"body": b"a var"}, b"content"),
    "name as a var": ({b"spooler_task_name": b"forged"}, b""),
    "not UTF-8": ({b"\xff": b"\xfe"}, b""),
    "special keys": ({b"at": b"1", b"spooler": b"/x", b"handler": b"nobody"}, b""),
}


def find_uwsgi() -> str:
    """The binary, from PATH or beside Python; where tests must not be skipped, its absence is a failure."""
    found = shutil.which("uwsgi") or shutil.which("uwsgi", path=str(Path(sys.executable).parent))
    if found is None:
        if os.environ.get("CI") == "true":
            pytest.fail("uwsgi is not installed")
        pytest.skip("uwsgi is not installed")
    return found


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[SpoolDirectory]:
    directory = SpoolDirectory(tmp_path / "spool")
    yield directory
    directory.close()


def add(spool: SpoolDirectory, vars: Mapping[bytes, bytes], body: bytes = b"") -> None:
    kept = spool.add([new_task(vars, body)])[0]
    assert not isinstance(kept, Exception)


def empty(spool: SpoolDirectory) -> None:
    for path in spool.names():
        os.unlink(path)


def run_until(command: list[str], environment: dict[str, str], is_enough: Callable[[str], bool]) -> list[str]:
    """Run a program until it has said enough, or ends. It and its children are gone afterwards."""
    with subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="backslashreplace",
        start_new_session=True,
    ) as process:
        watch = threading.Timer(TOO_LONG_SECONDS, os.killpg, (process.pid, signal.SIGKILL))
        watch.start()
        lines = []
        try:
            assert process.stdout is not None
            for line in process.stdout:
                lines.append(line.rstrip("\n"))
                if is_enough(line):
                    break
        finally:
            watch.cancel()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    return lines


def environment_for(spool: SpoolDirectory, **more: str) -> dict[str, str]:
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("TRISPOOL_")}
    return {**inherited, "PYTHONPATH": f"{ROOT}:{PROBES}", "PROBE_SPOOL": spool.path, "PYTHONHASHSEED": "0", **more}


def run_uwsgi(spool: SpoolDirectory, probe: str, is_enough: Callable[[str], bool]) -> list[str]:
    command = [
        *(find_uwsgi(), "--master", "--socket", "127.0.0.1:0", "--processes", "1", "--virtualenv", sys.prefix),
        *("--spooler", spool.path, "--spooler-processes", "1", "--spooler-frequency", "1", "--spooler-ordered"),
        *("--import", probe),
    ]
    return run_until(command, environment_for(spool), is_enough)


def run_trispool(spool: SpoolDirectory, probe: str, kind: str = "worker", **environment: str) -> list[str]:
    command = [sys.executable, str(PROBES / "compat_driver.py"), kind, str(PROBES / f"{probe}.py")]
    return run_until(command, environment_for(spool, **environment), lambda line: False)


def said(lines: list[str], kind: str) -> dict[str, Any]:
    """What a probe said of each case."""
    told = (json.loads(line.removeprefix("PROBE ")) for line in lines if line.startswith("PROBE "))
    return {name: value for its_kind, name, value in told if its_kind == kind}


def same(theirs: list[str], ours: list[str]) -> bool:
    """Equal, but that our messages may say more, and where Python itself makes them, something else."""
    if theirs[0] == "raised" and ours[:2] == theirs[:2]:
        return theirs[1] in ("TypeError", "OverflowError", "AttributeError") or ours[2].startswith(theirs[2])
    return ours == theirs


def compare(kind: str, theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    assert theirs
    assert list(ours) == list(theirs)
    wrong = {}
    for name, value in theirs.items():
        meant = DIFFERENT.get((kind, name))
        if meant is not None:
            assert not same(value, ours[name]), f"{name} is no longer different"
        if not same(meant if meant is not None else value, ours[name]):
            wrong[name] = (value, ours[name])
    assert not wrong


def test_everything_is_the_same_when_called_in_a_spooler(spool: SpoolDirectory) -> None:
    add(spool, {b"try out": b"1"})
    last = "parsefile of bytes"
    theirs = run_uwsgi(spool, "compat_probe", lambda line: line.startswith("PROBE") and last in line)
    empty(spool)
    add(spool, {b"try out": b"1"})
    ours = run_trispool(spool, "compat_probe")
    assert said(ours, "import")
    compare("spooler", said(theirs, "spooler"), said(ours, "spooler"))


def test_everything_is_the_same_when_called_outside(spool: SpoolDirectory) -> None:
    theirs = run_uwsgi(spool, "compat_probe", lambda line: line.startswith("PROBE") and "unknown attribute" in line)
    ours = run_trispool(spool, "compat_probe", "outside", TRISPOOL_SPOOL=spool.path)
    compare("import", said(theirs, "import"), said(ours, "import"))


def test_handlers_get_the_same_when_a_task_runs(spool: SpoolDirectory) -> None:
    wanted = set(SHOWN)

    def is_last(line: str) -> bool:
        if line.startswith("PROBE "):
            wanted.discard(json.loads(line.removeprefix("PROBE "))[1])
        return not wanted

    for name, (vars, body) in SHOWN.items():
        add(spool, {b"show": name.encode(), **vars}, body)
    theirs = said(run_uwsgi(spool, "compat_probe", is_last), "env")
    empty(spool)
    for name, (vars, body) in SHOWN.items():
        add(spool, {b"show": name.encode(), **vars}, body)
    ours = said(run_trispool(spool, "compat_probe"), "env")
    assert set(theirs) == set(SHOWN)
    assert ours == theirs


def test_a_task_ends_the_same_when_its_handler_returns_something(spool: SpoolDirectory) -> None:
    for source in RETURNS:
        add(spool, {b"returns": source.encode()})
    ours = said(run_trispool(spool, "compat_probe"), "outcome")
    empty(spool)
    for source in RETURNS:
        add(spool, {b"returns": source.encode()})
    seen: set[str] = set()

    def is_second_round(line: str) -> bool:
        if not line.startswith('PROBE ["returning"'):
            return False
        source = json.loads(line.removeprefix("PROBE "))[1]
        # A directory that is read while files vanish may show some of them only the next time.
        if seen >= set(RETURNS) and source in seen:
            return True
        seen.add(source)
        return False

    assert outcomes(run_uwsgi(spool, "compat_probe", is_second_round)) == ours
    assert set(ours) == set(RETURNS)


def outcomes(log: list[str]) -> dict[str, str]:
    """How each task ended, by uWSGI's log."""
    ended: dict[str, str] = {}
    current = ""
    for line in log:
        if line.startswith('PROBE ["returning"'):
            source = json.loads(line.removeprefix("PROBE "))[1]
            current = source
            ended[current] = "retry"
        elif "done with task" in line:
            ended[current] = "ok"
        elif "unable to find the spooler function" in line:
            ended[current] = "ignore"
    ended.pop(current)  # it was stopped while it ran, and had ended before
    return {**ended, current: "retry"}


def test_decorated_functions_do_the_same_when_called_and_run(spool: SpoolDirectory) -> None:
    start = {b"ud_spool_func": b"start", b"ud_spool_ret": b"-2"}
    lost = {b"ud_spool_func": b"nobody", b"ud_spool_ret": b"-2"}
    add(spool, start)
    add(spool, lost)
    theirs = run_uwsgi(spool, "compat_probe_decorators", lambda line: '"forever 2"' in line)
    assert any("nobody" in os.fsdecode(Path(path).read_bytes()) for path in spool.names())
    empty(spool)
    add(spool, start)
    add(spool, lost)
    ours = run_trispool(spool, "compat_probe_decorators")
    compare("decorators", said(theirs, "decorators"), said(ours, "decorators"))
    assert got(ours) == got(theirs)
    assert any("nobody" in os.fsdecode(Path(path).read_bytes()) for path in spool.names())


def got(lines: list[str]) -> set[str]:
    """What functions got, whichever order they ran in, and however often."""
    told = [json.loads(line.removeprefix("PROBE ")) for line in lines if line.startswith('PROBE ["got"')]
    return {json.dumps(item) for item in told}


def test_pickled_arguments_of_uwsgi_are_unpickled_only_when_it_is_allowed(spool: SpoolDirectory) -> None:
    add(spool, {b"ud_spool_func": b"start", b"ud_spool_ret": b"-2"})
    run_uwsgi(spool, "compat_probe_decorators", lambda line: '"decorators", "a missing name"' in line)
    for path in spool.names():
        if b"start" in Path(path).read_bytes():
            os.unlink(path)  # uWSGI was stopped before it could; our own run of it would sign
    refused = run_trispool(spool, "compat_probe_decorators")
    assert any('["got", "simple"' in line for line in refused)
    assert not any('["got", "passed"' in line for line in refused)
    trusted = run_trispool(spool, "compat_probe_decorators", TRISPOOL_TRUST_PICKLE="1")
    assert any("[\"got\", \"passed\", \"((1, 'two'), [('x', [3]), ('y', None)])\"]" in line for line in trusted)


def test_uwsgi_runs_pickled_arguments_when_trispool_wrote_them(spool: SpoolDirectory) -> None:
    environment = environment_for(spool, TRISPOOL_SPOOL=spool.path)
    program = "import trispool.compat, compat_probe_decorators; compat_probe_decorators.passed(1, x=[2])"
    subprocess.run([sys.executable, "-c", program], env=environment, check=True, capture_output=True)
    wanted = '["got", "passed", "((1,), [(\'x\', [2])])"]'
    assert wanted in run_uwsgi(spool, "compat_probe_decorators", lambda line: wanted in line)[-1]
