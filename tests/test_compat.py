"""The stand-ins for uWSGI's modules, as far as no uWSGI is needed to know what is right.

Whether they are the same as the real ones is the question of `tests/acceptance/test_compat_against_uwsgi.py`.
"""

# mypy: disable-error-code="untyped-decorator"
# The decorators come from a module that is imported by its name at run time.

from __future__ import annotations

import importlib
import multiprocessing
import os
import pickle
import stat
import subprocess
import sys
import types
from typing import TYPE_CHECKING, Any

import pytest

from trispool import calling, compat, producer
from trispool.compat import signing
from trispool.packet import new_task
from trispool.spooldir import SpoolDirectory

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[SpoolDirectory]:
    directory = SpoolDirectory(tmp_path / "spool")
    yield directory
    directory.close()


@pytest.fixture
def told() -> list[int]:
    """What the service is told of the frequency."""
    return []


@pytest.fixture
def uwsgi(spool: SpoolDirectory, told: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The stand-in, in a process that is a worker."""
    monkeypatch.delenv("TRISPOOL_TRUST_PICKLE", raising=False)
    compat.uninstall()
    producer.use("mail", spool)
    compat.install(
        compat.Context(
            spool="mail",
            directory=spool,
            spoolers=(spool.path, str(tmp_path / "other")),
            frequency=7,
            processes=2,
            opt={"own": b"1"},
            pids=[11, 12],
            master_pid=10,
            set_frequency=told.append,
        )
    )
    yield importlib.import_module("uwsgi")
    compat.uninstall()
    producer.use("", None)


@pytest.fixture
def decorators(uwsgi: Any) -> Any:
    return importlib.import_module("uwsgidecorators")


def run_all(spool: SpoolDirectory) -> list[calling.Result]:
    """Every task once, as a worker does."""
    spooler = compat.spooler()
    assert spooler is not None
    results = []
    for path in spool.names():
        vars, body = spool.read(os.path.relpath(path, spool.path))
        result = calling.call_legacy(spooler, calling.legacy_env(os.path.basename(path).encode(), vars, body))
        results.append(result)
        if result.code == "ok":
            os.unlink(path)
    return results


# Installing


def test_importing_the_package_is_enough_and_needed(spool: SpoolDirectory) -> None:
    program = "import trispool.compat, uwsgi, uwsgidecorators; print(uwsgi.spool({b'a': b'b'}).decode())"
    environment = {**os.environ, "TRISPOOL_SPOOL": spool.path}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert spool.names() == [done.stdout.strip()]
    program = program.replace("trispool.compat, ", "trispool, ")
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert "No module named 'uwsgi'" in done.stderr


def test_uninstall_takes_everything_back(uwsgi: Any, decorators: Any) -> None:
    compat.uninstall()
    assert compat.spooler() is None
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("uwsgi")
    compat.install()
    assert importlib.import_module("uwsgi") is not uwsgi
    assert importlib.import_module("uwsgidecorators") is not decorators


def test_uwsgi_spooler_is_what_handlers_assign(uwsgi: Any) -> None:
    def handle(env: dict[Any, bytes]) -> int:
        return -2

    assert compat.spooler() is None
    assert not hasattr(uwsgi, "spooler")
    uwsgi.spooler = handle
    assert compat.spooler() is handle


def test_uwsgidecorators_takes_over_when_it_is_imported_and_not_before(uwsgi: Any) -> None:
    assert compat.spooler() is None
    decorators = importlib.import_module("uwsgidecorators")
    assert compat.spooler() is decorators.manage_spool_request
    assert "trispool" in str(decorators.__file__)


def test_installing_again_changes_the_context_only(uwsgi: Any, spool: SpoolDirectory) -> None:
    uwsgi.spooler = len
    compat.install(compat.Context(directory=spool, spoolers=(spool.path,), pids=[5]))
    assert sys.modules["uwsgi"] is uwsgi
    assert compat.spooler() is len
    assert uwsgi.spoolers == (os.fsencode(spool.path),)
    assert uwsgi.spooler_pids() == [5]


def test_a_real_uwsgi_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    compat.uninstall()
    real = types.ModuleType("uwsgi")
    monkeypatch.setitem(sys.modules, "uwsgi", real)
    compat.install()
    assert sys.modules["uwsgi"] is real
    assert all(type(finder).__module__ != "trispool.compat" for finder in sys.meta_path)


def test_outside_a_worker_tasks_go_where_the_environment_says(
    spool: SpoolDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    compat.uninstall()
    monkeypatch.setenv("TRISPOOL_SPOOL", spool.path)
    compat.install()
    uwsgi = importlib.import_module("uwsgi")
    path = uwsgi.spool({b"a": b"b"})
    assert uwsgi.spooler_jobs() == [path]
    assert uwsgi.spooler_get_task(path.decode()) == {"spooler_task_name": path, b"a": b"b"}
    assert uwsgi.i_am_the_spooler() is None
    assert (uwsgi.masterpid(), uwsgi.spooler_pid(), uwsgi.spooler_pids()) == (0, 0, [])
    assert uwsgi.set_spooler_frequency(5) is True
    monkeypatch.delenv("TRISPOOL_SPOOL")
    assert uwsgi.spooler_jobs() == []
    with pytest.raises(ValueError, match=r"unable to spool job: .*TRISPOOL_SPOOL"):
        uwsgi.spool({b"a": b"b"})
    compat.uninstall()


# uwsgi


def test_the_process_is_described_by_its_context(uwsgi: Any, spool: SpoolDirectory, tmp_path: Path) -> None:
    directories = [os.fsencode(spool.path), os.fsencode(tmp_path / "other")]
    assert uwsgi.spoolers == tuple(directories)
    assert uwsgi.opt == {
        "master": True,
        "spooler": directories,
        "spooler-processes": b"2",
        "spooler-frequency": b"7",
        "own": b"1",
    }
    assert uwsgi.numproc == 2
    assert (uwsgi.masterpid(), uwsgi.spooler_pid(), uwsgi.spooler_pids()) == (10, 11, [11, 12])
    assert uwsgi.spooler_dir() == directories[0]
    assert uwsgi.i_am_the_spooler() is True


def test_the_frequency_is_told_to_the_service(uwsgi: Any, told: list[int]) -> None:
    for seconds in (5, 0, True, -1):
        assert uwsgi.set_spooler_frequency(seconds) is True
    assert told == [5, 0, 1, 2**31 - 1]
    for wrong in (2**31, -(2**31) - 1):
        with pytest.raises(OverflowError):
            uwsgi.set_spooler_frequency(wrong)
    for odd in (1.0, "1", None):
        with pytest.raises(TypeError):
            uwsgi.set_spooler_frequency(odd)
    assert len(told) == 4


def test_log_writes_a_line(uwsgi: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert uwsgi.log("a line") is True
    assert capsys.readouterr().err == "a line\n"


def test_spool_takes_the_spools_name_and_directory_and_no_other(
    uwsgi: Any, spool: SpoolDirectory, tmp_path: Path
) -> None:
    other = SpoolDirectory(tmp_path / "other")
    (tmp_path / "foreign").mkdir()
    assert uwsgi.spool({b"spooler": b"mail"}).startswith(os.fsencode(spool.path))
    assert uwsgi.spool({b"spooler": os.fsencode(spool.path) + b"/."}).startswith(os.fsencode(spool.path))
    assert uwsgi.spool({b"spooler": os.fsencode(other.path)}).startswith(os.fsencode(other.path))
    for foreign in (b"news", os.fsencode(tmp_path / "foreign"), b"other", b".", b"\xff"):
        with pytest.raises(ValueError, match="unable to spool job"):
            uwsgi.spool({b"spooler": foreign})
    assert os.listdir(tmp_path / "foreign") == []
    other.close()


def test_spool_says_why_when_the_task_is_refused(uwsgi: Any, spool: SpoolDirectory) -> None:
    for key, value, why in (
        (b"at", b"tomorrow", "at=b'tomorrow'"),
        (b"priority", b"../x", "priority=b'../x'"),
        (b"a", b"x" * 65_536, "'a' has 65536 bytes"),
    ):
        with pytest.raises(ValueError, match=f"unable to spool job: .*{why}"):
            uwsgi.spool({key: value})
    assert spool.names() == []
    assert sorted(os.listdir(spool.path)) == [".trispool"]


def test_spool_keeps_priority_fraction_and_body(uwsgi: Any, spool: SpoolDirectory) -> None:
    path = uwsgi.spool({b"a": b"b", b"at": b"4000000000.5", b"priority": b"07", b"body": b"content"})
    assert os.path.dirname(path) == os.fsencode(f"{spool.path}/7")
    assert os.stat(path).st_mtime == 4_000_000_000.5
    assert uwsgi.spooler_jobs() == [path]
    task = uwsgi.spooler_get_task(path.decode())
    assert task["body"] == b"content"
    assert task[b"priority"] == b"07"


def test_a_task_is_found_by_its_name_alone(uwsgi: Any, spool: SpoolDirectory) -> None:
    name = os.path.basename(uwsgi.spool({b"a": b"b"}))
    assert uwsgi.spooler_get_task(name.decode()) == {"spooler_task_name": name, b"a": b"b"}


def test_a_running_task_stays_locked_when_it_is_looked_at(uwsgi: Any, spool: SpoolDirectory) -> None:
    path = uwsgi.spool({b"a": b"b"})
    ref = os.path.basename(path).decode()
    claimed = spool.claim(ref)
    assert uwsgi.spooler_get_task(path.decode()) is not None
    with pytest.raises(Exception, match="at work"):
        spool.claim(ref)
    claimed.close()


def test_what_is_missing_is_named_with_what_to_do_instead(uwsgi: Any, decorators: Any) -> None:
    for module, name, instead in (
        (uwsgi, "add_timer", "`at`"),
        (uwsgi, "cache_get", "database"),
        (uwsgi, "mule_msg", "spool a task"),
        (uwsgi, "lock", "concurrency"),
        (uwsgi, "reload", "SIGHUP"),
        (uwsgi, "websocket_recv", "not offered"),
        (decorators, "timer", "`at`"),
        (decorators, "postfork", "not offered"),
    ):
        with pytest.raises(AttributeError, match=name) as caught:
            getattr(module, name)
        assert instead in str(caught.value)
        assert not hasattr(module, name)


def test_star_imports_give_what_there_is(uwsgi: Any, decorators: Any) -> None:
    scope: dict[str, Any] = {}
    exec("from uwsgi import *\nfrom uwsgidecorators import *", scope)
    assert scope["SPOOL_OK"] == -2
    assert scope["spoolraw"] is decorators.spoolraw
    assert scope["spool"] is decorators.spool


# uwsgidecorators


def test_decorated_functions_run_with_text_and_end_as_promised(decorators: Any, spool: SpoolDirectory) -> None:
    got = []

    @decorators.spool
    def simple(arguments: dict[str, str]) -> None:
        got.append(arguments)

    @decorators.spoolforever
    def forever(arguments: dict[str, str]) -> None:
        got.append(arguments)

    @decorators.spoolraw
    def raw(arguments: dict[str, str]) -> int:
        got.append(arguments)
        return 0

    name = os.path.basename(simple({"a": "ä"}, body="content")).decode()
    assert [result.code for result in run_all(spool)] == ["ok"]
    assert got == [
        {
            "spooler_task_name": name,
            "a": "ä",
            "ud_spool_func": "simple",
            "ud_spool_ret": "-2",
            "body": "content",
        }
    ]
    raw(a="b")
    assert [result.code for result in run_all(spool)] == ["ignore"]
    os.unlink(spool.names()[0])
    forever(a="b")
    assert [result.code for result in run_all(spool)] == ["retry"]


def test_a_var_does_not_replace_the_name_of_the_task(decorators: Any, spool: SpoolDirectory) -> None:
    names = []

    @decorators.spool
    def simple(arguments: dict[str, str]) -> None:
        names.append(arguments["spooler_task_name"])

    path = simple({"spooler_task_name": "forged"})
    run_all(spool)
    assert names == [os.path.basename(path).decode()]


def test_a_function_nobody_decorated_is_a_failed_attempt(decorators: Any, spool: SpoolDirectory) -> None:
    for vars in ({b"ud_spool_func": b"nobody"}, {b"other": b"x"}):
        spool.add([new_task(vars)])
    assert [result.code for result in run_all(spool)] == ["failed", "failed"]


def test_arguments_are_passed_when_they_were_pickled_here(decorators: Any, spool: SpoolDirectory) -> None:
    got = []

    @decorators.spool(pass_arguments=True)
    def passed(*args: object, **kwargs: object) -> None:
        got.append((args, kwargs))

    passed(1, {"a": [None]}, x=b"\xff", at="1", priority="2", body="content")
    vars, body = spool.read(os.path.relpath(spool.names()[0], spool.path))
    assert (vars[b"at"], vars[b"priority"], body) == (b"1", b"2", b"content")
    assert [result.code for result in run_all(spool)] == ["ok"]
    assert got == [((1, {"a": [None]}), {"x": b"\xff"})]


class Dangerous:
    """Unpickling it is seen."""

    unpickled = 0

    def __reduce__(self) -> tuple[Any, ...]:
        return (_unpickled, ())


def _unpickled() -> None:
    Dangerous.unpickled += 1


def test_pickles_are_not_read_when_they_are_not_signed_here(
    decorators: Any, spool: SpoolDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[object] = []

    @decorators.spool(pass_arguments=True)
    def passed(*args: object, **kwargs: object) -> None:
        ran.append(args)

    @decorators.spoolraw
    def other(arguments: dict[str, str]) -> None:
        ran.append(arguments)

    Dangerous.unpickled = 0
    bad = {b"args": pickle.dumps((Dangerous(),)), b"kwargs": pickle.dumps({})}
    elsewhere = SpoolDirectory(tmp_path / "elsewhere")
    parts = (b"passed", bad[b"args"], bad[b"kwargs"])
    passed("good")
    good, _ = spool.read(os.path.basename(spool.names()[0]))
    os.unlink(spool.names()[0])
    forged = [
        {**bad, b"ud_spool_func": b"passed"},
        {**bad, b"ud_spool_func": b"other"},
        {**bad, b"ud_spool_func": b"passed", b"trispool_signature": b""},
        {**bad, b"ud_spool_func": b"passed", b"trispool_signature": b"\xff" * 64},
        {**bad, b"ud_spool_func": b"passed", b"trispool_signature": signing.sign(elsewhere, *parts)},
        {**good, **bad},
        {**good, b"kwargs": bad[b"kwargs"][:-1] + b"?"},
        {**good, b"ud_spool_func": b"other"},
        {key: value for key, value in good.items() if key != b"kwargs"},
    ]
    for vars in forged:
        spool.add([new_task(vars)])
    results = run_all(spool)
    assert [result.code for result in results] == ["failed"] * len(forged)
    assert sum("signature is missing" in str(result.error) for result in results) == 3
    assert sum("signature is wrong" in str(result.error) for result in results) == 5
    monkeypatch.setenv("TRISPOOL_TRUST_PICKLE", "yes")
    run_all(spool)
    assert Dangerous.unpickled == 0
    assert ran == []
    monkeypatch.setenv("TRISPOOL_TRUST_PICKLE", "1")
    run_all(spool)
    assert Dangerous.unpickled > 0
    elsewhere.close()


def test_pickles_for_another_spool_are_signed_for_it(uwsgi: Any, decorators: Any, tmp_path: Path) -> None:
    other = SpoolDirectory(tmp_path / "other")

    @decorators.spool(pass_arguments=True)
    def passed(*args: object) -> None: ...

    passed(1, spooler=other.path)
    vars, _ = other.read(os.path.basename(other.names()[0]))
    parts = (b"passed", vars[b"args"], vars[b"kwargs"])
    assert signing.verify(other, vars[b"trispool_signature"], *parts)
    other.close()


# The key


def test_the_key_is_made_once_and_for_its_user_only(spool: SpoolDirectory) -> None:
    assert not signing.verify(spool, b"", b"x")  # which makes none
    first = signing.sign(spool, b"a", b"b")
    status = os.stat(f"{spool.path}/.trispool/key")
    assert stat.S_IMODE(status.st_mode) == 0o600
    assert signing.sign(spool, b"a", b"b") == first
    assert os.listdir(f"{spool.path}/.trispool/tmp") == []
    assert signing.verify(spool, first, b"a", b"b")
    for parts in ((b"ab", b""), (b"", b"ab"), (b"a",), (b"a", b"b", b""), (b"b", b"a")):
        assert not signing.verify(spool, first, *parts)


def _sign(path: str, barrier: Any, queue: Any) -> None:
    directory = SpoolDirectory(path)
    barrier.wait()
    queue.put(signing.sign(directory, b"x"))


def test_processes_agree_on_the_key_when_they_make_it_at_once(spool: SpoolDirectory) -> None:
    context = multiprocessing.get_context("forkserver")
    barrier, queue = context.Barrier(3), context.Queue()
    processes = [context.Process(target=_sign, args=(spool.path, barrier, queue)) for _ in range(3)]
    for process in processes:
        process.start()
    signatures = {queue.get(timeout=30) for _ in processes}
    for process in processes:
        process.join(30)
    assert len(signatures) == 1


@pytest.mark.parametrize("fault", ["readable", "short", "link", "folder"])
def test_a_key_that_others_could_have_made_is_not_used(spool: SpoolDirectory, tmp_path: Path, fault: str) -> None:
    key = f"{spool.path}/.trispool/key"
    signature = signing.sign(spool, b"x")
    if fault == "readable":
        os.chmod(key, 0o640)
    else:
        os.rename(key, tmp_path / "moved")
        if fault == "short":
            os.close(os.open(key, os.O_CREAT | os.O_WRONLY, 0o600))
        elif fault == "link":
            os.symlink(tmp_path / "moved", key)
        else:
            os.mkdir(key, 0o700)
    with pytest.raises(signing.KeyUnusable, match="key"):
        signing.sign(spool, b"x")
    with pytest.raises(signing.KeyUnusable, match="key"):
        signing.verify(spool, signature, b"x")


def test_spooling_says_why_when_the_key_is_unusable(decorators: Any, spool: SpoolDirectory) -> None:
    @decorators.spool(pass_arguments=True)
    def passed(*args: object) -> None: ...

    signing.sign(spool, b"x")
    os.chmod(f"{spool.path}/.trispool/key", 0o644)
    with pytest.raises(ValueError, match=r"unable to spool job: .*0600"):
        passed(1)
    assert spool.names() == []
