"""The command line, against the real API before a fake service, and against spool directories."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import structlog.testing
import trio
from click.testing import CliRunner, Result

from tests.fake_control import FakeControl
from trispool.admin import Accounts, AdminSettings, Role, create_app, serve_admin
from trispool.cli import display, main
from trispool.cli.client import Service
from trispool.control import Attempt, Health, Page, TaskSummary, WorkerStatus
from trispool.errors import ConfigError, SpoolUnavailable
from trispool.operating import Action, TaskFilter, TaskQuery
from trispool.packet import decode_vars, new_task
from trispool.spooldir import SpoolDirectory
from trispool.task import TaskState

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trispool.settings import Config

TOKEN = "operator-token-0123456789"
TLS = Path(__file__).parent / "data" / "tls.pem"
OTHER_CERT = Path(__file__).parent / "data" / "other_cert.pem"
"""Of another server that calls itself the same."""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Commands look for config.toml and var/ where they are called: here."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def trispool(*arguments: str | bytes, stdin: bytes | None = None, **environ: str) -> Result:
    """Call the command line, with arguments as the system hands them over."""
    return CliRunner().invoke(main, [os.fsdecode(item) for item in arguments], input=stdin, env=environ)


def good(*arguments: str | bytes, stdin: bytes | None = None, **environ: str) -> str:
    """What a command prints that is expected to succeed."""
    result = trispool(*arguments, stdin=stdin, **environ)
    assert result.exit_code == 0, result.output
    return result.stdout


# `run` and `check`


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Config]:
    """The configurations that the service was run with; it ends at once."""
    configs: list[Config] = []

    def run(config: Config) -> int:
        configs.append(config)
        return 0

    monkeypatch.setattr("trispool.service.run", run)
    monkeypatch.setattr("trispool.logs.configure", lambda **style: None)
    return configs


def test_run_works_without_a_configuration_file(started: list[Config], folder: Path) -> None:
    good(
        *("run", "--spool", "spool", "--import", "handlers.py", "--import", "app.tasks"),
        *("--socket", "unix:a.sock", "--socket", "127.0.0.1:0", "--http", "unix:admin.sock", "--state-dir", "state"),
        *("--processes", "3", "--frequency", "1m", "--durability", "os"),
    )
    [config] = started
    assert config.state_dir == str(folder / "state")
    assert config.http.bind == f"unix:{folder}/admin.sock"
    assert [listen.bind for listen in config.listen] == [f"unix:{folder}/a.sock", "127.0.0.1:0"]
    [spool] = config.spools
    assert (spool.name, spool.directory) == ("default", str(folder / "spool"))
    assert spool.imports == (str(folder / "handlers.py"), "app.tasks")
    assert (spool.processes, spool.frequency, spool.durability) == (3, 60.0, "os")


def test_run_takes_the_configuration_file_that_lies_here(started: list[Config], folder: Path) -> None:
    (folder / "config.toml").write_text('[[spool]]\ndirectory = "here"')
    good("run")
    assert started[0].spools[0].directory == str(folder / "here")


def test_run_takes_paths_of_a_file_from_its_folder_and_those_of_options_from_here(
    started: list[Config], folder: Path
) -> None:
    (folder / "etc").mkdir()
    (folder / "etc/t.toml").write_text('[http]\nbind = "unix:x"\n[[spool]]\ndirectory = "spool"\nimport = ["a.py"]')
    good("run", "etc/t.toml", "--http", "unix:x", "--import", "b.py", "--socket", "unix:s")
    [config] = started
    assert config.http.bind == f"unix:{folder}/x"
    assert config.listen[0].bind == f"unix:{folder}/s"
    assert config.spools[0].directory == str(folder / "etc/spool")
    assert config.spools[0].imports == (str(folder / "b.py"),)


def test_options_go_before_the_environment(started: list[Config], folder: Path) -> None:
    good("run", "--spool", "a", "--http", "unix:option", TRISPOOL_HTTP_BIND="unix:environ", TRISPOOL_STATE_DIR="/state")
    assert started[0].http.bind == f"unix:{folder}/option"
    assert started[0].state_dir == "/state"


def test_the_environment_can_name_the_file(started: list[Config], folder: Path) -> None:
    (folder / "t.toml").write_text('[[spool]]\ndirectory = "named"')
    good("run", TRISPOOL_CONFIG="t.toml")
    good("run", "--spool", "other", TRISPOOL_CONFIG="t.toml")
    assert [Path(config.spools[0].directory).name for config in started] == ["named", "other"]


def test_run_exits_as_the_service_does(started: list[Config], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trispool.service.run", lambda config: 1)
    assert trispool("run", "--spool", "spool").exit_code == 1


def test_a_service_that_cannot_start_as_configured_exits_with_2(
    started: list[Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(config: Config) -> int:
        raise ConfigError(["http.bind = '127.0.0.1:80': permission denied", "and more"])

    monkeypatch.setattr("trispool.service.run", run)
    result = trispool("run", "--spool", "spool")
    assert result.exit_code == 2
    assert result.stderr == "error: http.bind = '127.0.0.1:80': permission denied\nerror: and more\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run",), "there is no config.toml here"),
        (("run", "two.toml", "--spool", "x"), "--spool takes the place of a configuration file"),
        (("run", "two.toml", "--processes", "2"), "--processes goes with --spool"),
        (("run", "--spool", "x", "--durability", "disk"), "'disk' is not one of 'fsync', 'os'"),
        (("run", "--spool", "x", "--frequency", "-1"), 'spool[0].frequency = "-1" (from --frequency): expected'),
        (("run", "--spool", "x", "--socket", "y"), 'listen[0].bind = "y" (from --socket): expected'),
        (("run", "missing.toml"), "missing.toml: No such file or directory"),
        (("run", "latin.toml"), "latin.toml: not UTF-8"),
        (("check", "torn.toml"), "torn.toml: not TOML"),
        (("status", "-c", "torn.toml"), "torn.toml: not TOML"),
    ],
)
def test_wrong_usage_exits_with_2_and_says_why(
    started: list[Config], folder: Path, arguments: tuple[str, ...], message: str
) -> None:
    (folder / "two.toml").write_text('[[spool]]\ndirectory = "a"\n[[spool]]\nname = "b"\ndirectory = "b"')
    (folder / "latin.toml").write_bytes(b'state_dir = "\xff"')
    (folder / "torn.toml").write_text("[[spool")
    result = trispool(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert started == []


def test_check_says_that_a_good_file_is_good(folder: Path) -> None:
    (folder / "t.toml").write_text('[[spool]]\nname = "a"\ndirectory = "a"\n[[spool]]\nname = "b"\ndirectory = "b"')
    assert good("check", "t.toml") == "t.toml: good; spools: a, b\n"
    assert json.loads(good("check", "t.toml", "--json")) == {"ok": True, "problems": []}


def test_check_says_all_that_is_wrong(folder: Path) -> None:
    (folder / "config.toml").write_text("grace = 1\n[[spool]]\nprocesses = 0")
    result = trispool("check")
    assert result.exit_code == 2
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert [line.split(": ")[:3] for line in lines] == [
        ["error", "config.toml", "spool[0].processes = 0"],
        ["error", "config.toml", "grace"],
        ["error", "config.toml", "spool[0].directory"],
    ]
    result = trispool("check", "--json")
    assert result.exit_code == 2
    assert json.loads(result.stdout) == {"ok": False, "problems": [line.removeprefix("error: ") for line in lines]}


def test_check_says_which_files_are_missing(folder: Path) -> None:
    (folder / "there.py").touch()
    (folder / "config.toml").write_text(
        '[http]\ncertfile = "cert.pem"\n'
        '[[spool]]\ndirectory = "made_on_demand"\nimport = ["there.py", "module", "not.py"]\nchdir = "nowhere"'
    )
    result = trispool("check")
    assert result.exit_code == 2
    assert result.stderr.splitlines() == [
        f"error: config.toml: http.certfile: expected a file that can be read; {folder}/cert.pem is none",
        f"error: config.toml: spool[0].import[2]: expected a file that can be read; {folder}/not.py is none",
        f"error: config.toml: spool[0].chdir: expected a directory; {folder}/nowhere is none",
    ]


# The service


class Api:
    """The real HTTP API in a thread, with a fake service behind it."""

    def __init__(self, bind: str, certfile: str | None) -> None:
        self.control = FakeControl()
        self._bind = bind
        self._certfile = certfile
        self._ready = threading.Event()
        self._thread = threading.Thread(target=trio.run, args=[self._serve])
        self._thread.start()
        assert self._ready.wait(30)

    async def _serve(self) -> None:
        app = create_app(
            self.control, accounts=Accounts.of({TOKEN: Role.OPERATE}), settings=AdminSettings(max_body=1_000_000)
        )
        self._stop = trio.Event()
        self._token = trio.lowlevel.current_trio_token()
        async with trio.open_nursery() as nursery:
            serve = partial(serve_admin, app, self._bind, certfile=self._certfile, stop=self._stop, grace=1.0)
            [self.url] = await nursery.start(serve)
            self._ready.set()

    def close(self) -> None:
        self._token.run_sync_soon(self._stop.set)
        self._thread.join()

    @property
    def address(self) -> str:
        return str(self.url).rpartition("//")[2]


@contextlib.contextmanager
def serving(folder: Path, bind: str = "127.0.0.1:0", certfile: str | None = None) -> Iterator[Api]:
    (folder / "var").mkdir(exist_ok=True)
    (folder / "var/token").write_text(f"{TOKEN}\n")
    # The log of the service must not get into the output of the commands.
    with structlog.testing.capture_logs(), contextlib.closing(Api(bind, certfile)) as api:
        yield api


@pytest.fixture
def api(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    with serving(folder) as api:
        monkeypatch.setenv("TRISPOOL_HTTP_BIND", api.address)
        yield api


def vars_of(api: Api, index: int = -1) -> dict[bytes, bytes]:
    return decode_vars(api.control.kept[index].payload)


def test_put_enqueues_and_prints_the_id(api: Api) -> None:
    assert good("put", "handler=hello", "name=a=b", "empty=") == "task-0\n"
    [(tasks, spool)] = api.control.batches
    assert spool == "default"
    assert decode_vars(tasks[0].payload) == {b"handler": b"hello", b"name": b"a=b", b"empty": b""}
    assert tasks[0].body == b""


def test_put_passes_any_bytes_on(api: Api) -> None:
    good("put", b"\xffkey\x01=\xff &=%\n\xc3\xa4")
    assert vars_of(api) == {b"\xffkey\x01": b"\xff &=%\n\xc3\xa4"}


@pytest.mark.parametrize("filling", [0, 60_000])
def test_put_sends_a_body_with_few_or_many_vars(api: Api, filling: int, folder: Path) -> None:
    (folder / "body").write_bytes(bytes(range(256)))
    good("put", b"raw=\xff&", "filling=" + "x" * filling, "--body", "body", "--priority", "2")
    assert api.control.kept[0].body == bytes(range(256))
    assert vars_of(api)[b"raw"] == b"\xff&"
    assert len(vars_of(api)[b"filling"]) == filling
    assert api.control.kept[0].priority == 2


def test_put_reads_a_body_from_stdin(api: Api) -> None:
    good("put", "--body", "-", stdin=b"\0body")
    assert api.control.kept[0].body == b"\0body"
    assert vars_of(api) == {}


def test_put_says_when_and_how_urgently(api: Api) -> None:
    answer = json.loads(good("put", "a=b", "--at", "1794139509.25", "--priority", "3", "--json"))
    assert answer == {"id": "task-0", "spool": "default", "at": 1794139509.25}
    assert api.control.kept[0].at == 1794139509.25
    assert api.control.kept[0].priority == 3
    before = time.time()
    good("put", "a=b", "--at", "+90s")
    assert before + 90 - 0.01 <= (api.control.kept[1].at or 0) <= time.time() + 90.01


def test_put_takes_the_spool_that_is_named_else_the_first_of_the_file(api: Api, folder: Path) -> None:
    good("put", "a=b", "-s", "mail")
    (folder / "config.toml").write_text('[[spool]]\nname = "mail"\ndirectory = "m"\n[[spool]]\ndirectory = "d"')
    good("put", "a=b")
    assert [spool for _, spool in api.control.batches] == ["mail", "mail"]


def test_put_exits_with_1_when_the_service_says_no(api: Api) -> None:
    result = trispool("put", "a=b", "-s", "nowhere")
    assert result.exit_code == 1
    assert result.stderr == "error: There is no spool 'nowhere'.\n"
    api.control.failures = {0: SpoolUnavailable("the disk is full")}
    result = trispool("put", "a=b")
    assert result.exit_code == 1
    assert result.stderr == "error: the disk is full\n"
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "expected at least one KEY=VALUE, or --body"),
        (("handler",), "handler: expected KEY=VALUE"),
        (("=x",), "=x: expected KEY=VALUE"),
        (("a=1", "a=2"), "a is given twice"),
        (("at=1", "--at", "2"), "at is given twice"),
        (("priority=1", "--priority", "2"), "priority is given twice"),
        (("a=b", "--at", "tomorrow"), "'tomorrow': expected a Unix time, an ISO 8601 time"),
        (("a=b", "--at", "+5"), None),
        (("a=b", "--at", "+x"), "'+x': expected"),
        (("a=b", "--priority", "-1"), "-1 is not in the range"),
        (("a=b", "--body", "nowhere"), "No such file"),
        (("a=b", "--directory", "nowhere"), "does not exist"),
    ],
)
def test_put_says_what_is_wrong_with_its_arguments(api: Api, arguments: tuple[str, ...], message: str | None) -> None:
    result = trispool("put", *arguments)
    if message is None:
        assert result.exit_code == 0
    else:
        assert result.exit_code == 2
        assert message in result.stderr
        assert api.control.kept == []


def test_a_service_on_a_unix_socket_is_reached(folder: Path) -> None:
    (folder / "config.toml").write_text('[http]\nbind = "unix:admin.sock"\n[[spool]]\ndirectory = "spool"')
    with serving(folder, f"unix:{folder}/admin.sock") as api:
        good("put", "a=b")
        assert len(api.control.kept) == 1


def test_a_service_with_tls_is_reached_and_only_the_one_with_that_certificate(folder: Path) -> None:
    with serving(folder, certfile=str(TLS)) as api:
        config = f'[http]\nbind = "{api.address}"\ncertfile = "{{}}"\n[[spool]]\ndirectory = "spool"'
        (folder / "config.toml").write_text(config.format(TLS))
        good("put", "a=b")
        assert len(api.control.kept) == 1
        (folder / "config.toml").write_text(config.format(OTHER_CERT))
        result = trispool("put", "a=b")
        assert result.exit_code == 1
        assert "certificate" in result.stderr.lower()
        assert len(api.control.kept) == 1


@pytest.mark.parametrize(
    ("bind", "url"),
    [
        (":8080", "http://127.0.0.1:8080"),
        ("0.0.0.0:8080", "http://127.0.0.1:8080"),
        ("[::]:8080", "http://[::1]:8080"),
        ("[::1]:8080", "http://[::1]:8080"),
        ("localhost:8080", "http://localhost:8080"),
        ("192.0.2.1:8080", "http://192.0.2.1:8080"),
        ("unix:/run/x", "unix:/run/x"),
    ],
)
def test_a_service_on_all_addresses_is_reached_on_this_machine(bind: str, url: str) -> None:
    assert Service(bind, "token").url == url


def test_a_wrong_token_is_said_to_be_wrong(api: Api, folder: Path) -> None:
    (folder / "var/token").write_text("another-token-0123456789")
    result = trispool("put", "a=b")
    assert result.exit_code == 1
    assert "token" in result.stderr


def test_a_token_that_cannot_be_read_exits_with_2(api: Api, folder: Path) -> None:
    (folder / "var/token").unlink()
    (folder / "var/token").mkdir()
    result = trispool("put", "a=b")
    assert result.exit_code == 2
    assert "var/token: no token can be read" in result.stderr


@contextlib.contextmanager
def answering(answer: bytes) -> Iterator[str]:
    """A server that reads one request and answers so; gives its address."""

    def serve() -> None:
        connection, _ = listening.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=serve)
        thread.start()
        yield f"127.0.0.1:{listening.getsockname()[1]}"
        thread.join()


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"", "broke off: Remote end closed connection without response. Whether the task is kept is not known."),
        (b"HTTP/1.1 201 Created\r\nContent-Length: 100\r\n\r\n{", "Whether the task is kept is not known."),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", "what answered is not trispool"),
        (b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 6\r\n\r\n\x1b[2Jno", "error: \\x1b[2Jno"),
        (b"HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n", "status 500"),
    ],
)
def test_a_task_whose_fate_is_not_known_is_not_enqueued_once_more(folder: Path, answer: bytes, message: str) -> None:
    (folder / "var").mkdir()
    (folder / "var/token").write_text(TOKEN)
    (folder / "config.toml").write_text('[[spool]]\ndirectory = "spool"')
    with answering(answer) as address:
        result = trispool("put", "a=b", TRISPOOL_HTTP_BIND=address)
    assert result.exit_code == 1
    assert message in result.stderr
    assert not (folder / "spool").exists()


def a_task(number: int, **values: Any) -> TaskSummary:
    summary = TaskSummary(f"task-{number}", "default", TaskState.READY, 1700000000.5 + number, None, 1700000000.0)
    return replace(summary, **values)


def test_list_shows_a_line_for_each_task(api: Api) -> None:
    api.control.page = Page(
        [a_task(0, priority=0, attempts=2, last_error="first line\nsecond \33[2J"), a_task(1, state=TaskState.DONE)],
        None,
    )
    lines = good("list", TZ="UTC").splitlines()
    assert lines[0].split("\t") == ["ID", "SPOOL", "STATE", "AT", "PRIORITY", "ATTEMPTS", "ERROR"]
    first = lines[1].split("\t")
    assert first[:3] == ["task-0", "default", "ready"]
    assert first[4:] == ["0", "2", "first line\\nsecond \\x1b[2J"]
    assert lines[2].split("\t")[2:] == ["done", first[3].replace("20.500", "21.500"), "-", "0", ""]
    assert len(lines) == 3


def test_list_asks_for_what_was_asked(api: Api) -> None:
    good("list", "-s", "mail", "--state", "dead", "-q", "a&b c", "--order", "desc", "--limit", "7")
    wanted = TaskFilter("mail", TaskState.DEAD, q="a&b c")
    assert api.control.calls == [("tasks", TaskQuery(wanted, order="desc", limit=7))]


def test_list_goes_on_until_it_has_enough(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    pages = {None: Page([a_task(0), a_task(1)], "one"), "one": Page([a_task(2)], "two"), "two": Page([a_task(3)], None)}
    asked: list[tuple[int, str | None]] = []

    async def tasks(query: TaskQuery) -> Page:
        asked.append((query.limit, query.cursor))
        return pages[query.cursor]

    monkeypatch.setattr(api.control, "tasks", tasks)
    answer = json.loads(good("list", "--json"))
    assert [task["id"] for task in answer["tasks"]] == ["task-0", "task-1", "task-2", "task-3"]
    assert not answer["more"]
    assert asked == [(50, None), (48, "one"), (47, "two")]
    result = trispool("list", "--limit", "3")
    assert len(result.stdout.splitlines()) == 4
    assert result.stderr == "note: there are more than these 3; see --limit\n"


def test_show_tells_all_of_a_task(api: Api) -> None:
    api.control.add_detail("x y", {b"handler": b"hello", b"raw\xff": b"\xff\n"}, b"one\ntwo\33[2J")
    known = api.control.details["x y"]
    attempt = Attempt(
        1, "failed", 1700000001.0, 0.5, 0.25, 4711, "hello", "ValueError: no", "Traceback\n  ValueError: no"
    )
    summary = replace(known.summary, attempts=1, last_error="ValueError: no", progress=(0.5, "half way"))
    held = Attempt(1, "held", 1700000002.0, error="by ann")
    api.control.details["x y"] = replace(known, summary=summary, attempts=[attempt, held])
    shown = good("show", "x y").splitlines()
    assert shown[0] == "id:       x y"
    assert "state:    ready" in shown
    assert "error:    ValueError: no" in shown
    assert "progress: 50% half way" in shown
    assert "  handler = hello" in shown
    assert "  raw\\xff = (base64) /wo=" in shown
    start = shown.index("body: 11 bytes")
    assert shown[start + 1 : start + 3] == ["  one", "  two\\x1b[2J"]
    assert shown[start + 3].startswith("attempt 1: failed at ")
    assert shown[start + 3].endswith(", 0.250 s in process 4711, handler hello")
    assert shown[start + 4 : -1] == ["  Traceback", "    ValueError: no"]
    assert shown[-1].startswith("held at ")
    assert shown[-1].endswith(" by ann")
    assert json.loads(good("show", "x y", "--json"))["history"][0]["worker_pid"] == 4711


def test_show_prints_a_body_as_it_is(api: Api) -> None:
    body = bytes(range(256)) * 100
    api.control.add_detail("x", {b"a": b"b"}, body)
    result = trispool("show", "x", "--body")
    assert result.stdout_bytes == body


def test_show_exits_with_1_when_there_is_no_such_task(api: Api) -> None:
    result = trispool("show", "x")
    assert result.exit_code == 1
    assert result.stderr == "error: There is no task 'x'.\n"


def test_status_shows_all_spools_and_problems(api: Api) -> None:
    workers = [WorkerStatus(1, "busy"), WorkerStatus(2, "idle")]
    finished = {"ok": 5, "failed": 1, "lost": 2, "retry": 9}
    changed = replace(api.control.status["default"], workers=workers, finished=finished, problem="handlers\nbroken")
    api.control.status["default"] = replace(changed, oldest_ready_at=time.time() - 7200)
    api.control.state_of_health = Health(False, ["default: handlers\nbroken\33[2J"])
    heading, *rows = [line.split("\t") for line in good("status").splitlines()]
    assert heading[:3] == ["SPOOL", "STATE", "READY"]
    assert rows[0] == ["default", "problem", "3", "0", "0", "0", "0", "5", "3", "2h", "1 of 2 busy"]
    assert rows[1][:2] == ["mail", "paused"]
    assert rows[2:] == [["problem: default: handlers"], ["problem: broken\\x1b[2J"]]
    document = json.loads(good("status", "--json"))
    assert document["ok"] is False
    assert [spool["name"] for spool in document["spools"]] == ["default", "mail"]


def test_status_exits_with_1_when_nobody_answers(folder: Path) -> None:
    (folder / "var").mkdir()
    (folder / "var/token").write_text(TOKEN)
    result = trispool("status", "--http", "unix:nowhere.sock")
    assert result.exit_code == 1
    assert result.stderr == "error: no service at unix:nowhere.sock: No such file or directory\n"


# The operator's verbs


@pytest.mark.parametrize(
    ("verb", "action", "state"),
    [
        ("cancel", Action.CANCEL, "cancelled"),
        ("hold", Action.HOLD, "held"),
        ("release", Action.RELEASE, "ready"),
        ("run-now", Action.RUN, "ready"),
        ("retry", Action.RETRY, "ready"),
    ],
)
def test_an_action_is_done_to_all_tasks_that_are_named(api: Api, verb: str, action: Action, state: str) -> None:
    for task_id in ("x y", "b?c"):
        api.control.add_detail(task_id, {b"a": b"b"}, b"")
    assert good(verb, "x y", "b?c") == f"x y\t{state}\nb?c\t{state}\n"
    assert [call[:3] for call in api.control.calls] == [("act", "x y", action), ("act", "b?c", action)]


def test_reschedule_says_when(api: Api) -> None:
    api.control.add_detail("x", {}, b"")
    answer = json.loads(good("reschedule", "x", "--at", "1794139509.25", "--json"))
    assert [(task["id"], task["state"], task["at"]) for task in answer["tasks"]] == [("x", "scheduled", 1794139509.25)]
    assert answer["refused"] == []
    assert trispool("reschedule", "x").exit_code == 2
    assert trispool("reschedule", "x", "--at", "soon").exit_code == 2
    assert len(api.control.calls) == 1


def test_what_is_refused_for_one_task_stops_no_other_and_exits_with_1(api: Api) -> None:
    api.control.add_detail("x", {}, b"")
    result = trispool("hold", "no\33[2J", "x")
    assert result.exit_code == 1
    assert result.stdout == "x\theld\n"
    assert result.stderr == "error: no\\x1b[2J: There is no task 'no\\x1b[2J'.\n"
    result = trispool("hold", "no", "x", "--json")
    assert result.exit_code == 1
    document = json.loads(result.stdout)
    assert [task["id"] for task in document["tasks"]] == ["x"]
    assert document["refused"] == [{"id": "no", "error": "There is no task 'no'."}]


def test_ids_come_from_standard_input_as_list_prints_them(api: Api) -> None:
    for number in range(3):
        api.control.add_detail(f"task-{number}", {}, b"")
    api.control.page = Page([a_task(0), a_task(1)], None)
    listed = good("list").encode()
    assert good("cancel", "-", "task-2", stdin=listed) == "task-0\tcancelled\ntask-1\tcancelled\ntask-2\tcancelled\n"
    assert good("cancel", "-", stdin=b"\ntask-0\n\n") == "task-0\tcancelled\n"
    assert good("cancel", "-", stdin=b"") == ""


def test_an_action_needs_a_task_and_a_service(folder: Path) -> None:
    assert trispool("cancel").exit_code == 2
    (folder / "var").mkdir()
    (folder / "var/token").write_text(TOKEN)
    result = trispool("cancel", "x", "y", "--http", "unix:nowhere.sock")
    assert result.exit_code == 1
    assert result.stderr == "error: no service at unix:nowhere.sock: No such file or directory\n"


def test_an_action_whose_fate_is_not_known_is_said_to_be_so(folder: Path) -> None:
    (folder / "var").mkdir()
    (folder / "var/token").write_text(TOKEN)
    with answering(b"") as address:
        result = trispool("cancel", "x", "y", TRISPOOL_HTTP_BIND=address)
    assert result.exit_code == 1
    assert "Whether it was done is not known." in result.stderr


def test_spools_are_paused_and_resumed(api: Api) -> None:
    assert good("pause", "default") == "default\tpaused\tfrequency 30 s\n"
    assert api.control.status["default"].paused
    assert good("resume", "default") == "default\tworking\tfrequency 30 s\n"
    assert not api.control.status["default"].paused
    assert json.loads(good("pause", "default", "--json"))["paused"] is True
    result = trispool("pause", "nowhere")
    assert (result.exit_code, result.stderr) == (1, "error: There is no spool 'nowhere'.\n")


def test_a_frequency_is_a_length_of_time(api: Api) -> None:
    assert good("frequency", "mail", "1m30s") == "mail\tpaused\tfrequency 90 s\n"
    assert good("frequency", "mail", "0.5") == "mail\tpaused\tfrequency 0.5 s\n"
    assert api.control.status["mail"].frequency == 0.5
    result = trispool("frequency", "mail", "often")
    assert result.exit_code == 2
    assert "'often': expected a length of time such as 5, 30s or 1h30m" in result.stderr


def test_options_say_where_the_service_is(api: Api, folder: Path) -> None:
    (folder / "var").rename(folder / "elsewhere")
    good("status", "--http", api.address, "--state-dir", "elsewhere", TRISPOOL_HTTP_BIND="")


# Directories


@pytest.fixture
def spool(folder: Path) -> Iterator[SpoolDirectory]:
    with contextlib.closing(SpoolDirectory(folder / "spool")) as spool:
        yield spool


def add(spool: SpoolDirectory, number: int, **values: Any) -> str:
    [entry] = spool.add([new_task({"n": str(number)}, **values)])
    assert not isinstance(entry, Exception)
    return entry.id


def test_put_works_on_a_directory(spool: SpoolDirectory) -> None:
    answer = json.loads(
        good("put", "handler=x", "--at", "+1h", "--body", "-", "--json", "--directory", "spool", stdin=b"b")
    )
    [entry] = [entry for chunk in spool.scan() for entry in chunk]
    assert answer == {"id": entry.id, "spool": None, "at": pytest.approx(entry.at, abs=0.001)}
    assert abs(entry.at - time.time() - 3600) < 60
    vars, body = spool.read(entry.ref)
    assert vars[b"handler"] == b"x"
    assert body == b"b"


def test_put_says_what_a_directory_cannot_keep(spool: SpoolDirectory) -> None:
    result = trispool("put", "x=" + "x" * 65536, "--directory", "spool")
    assert result.exit_code == 1
    assert "65536 bytes" in result.stderr
    assert spool.names() == []


@pytest.mark.parametrize("reason", ["refused", "never ran"])
def test_put_falls_back_on_the_directory_when_no_service_takes_connections(folder: Path, reason: str) -> None:
    (folder / "config.toml").write_text(
        '[http]\nbind = "unix:nobody.sock"\n'
        '[[spool]]\ndirectory = "first"\n[[spool]]\nname = "mail"\ndirectory = "mail"\ndurability = "os"'
    )
    if reason == "refused":
        (folder / "var").mkdir()
        (folder / "var/token").write_text(TOKEN)
    result = trispool("put", "a=b", "-s", "mail", "--json")
    assert result.exit_code == 0
    assert result.stderr.startswith("note: no service ")
    assert result.stderr.endswith("; using the spool directory\n")
    assert json.loads(result.stdout)["spool"] == "mail"
    assert (folder / "mail" / json.loads(result.stdout)["id"]).exists()
    assert not (folder / "first").exists()
    result = trispool("put", "a=b", "-s", "nowhere")
    assert result.exit_code == 1
    assert "there is no spool 'nowhere'; expected default, mail" in result.stderr
    assert [task["spool"] for task in json.loads(trispool("list", "--json").stdout)["tasks"]] == ["mail"]


def test_without_service_and_directory_a_command_says_what_it_needs() -> None:
    for command in (("put", "a=b"), ("list",), ("show", "x")):
        result = trispool(*command)
        assert result.exit_code == 1
        assert "--directory says where the tasks are" in result.stderr


def test_list_tells_the_states_of_a_directory(spool: SpoolDirectory, folder: Path) -> None:
    later = add(spool, 0, at=time.time() + 3600, priority=5)
    ready = add(spool, 1)
    locked = add(spool, 2)
    held = spool.claim(locked)
    (folder / "spool/uwsgi_spoolfile_on_x_1_1_1_1_1").write_bytes(b"\x12not a spool file")
    assert spool.set_aside("uwsgi_spoolfile_on_x_1_1_1_1_1")
    answer = json.loads(good("list", "--json", "--directory", "spool"))
    assert [(task["id"], task["state"], task["priority"]) for task in answer["tasks"]] == [
        ("uwsgi_spoolfile_on_x_1_1_1_1_1", "dead", None),
        (later, "scheduled", 5),
        (ready, "ready", None),
        (locked, "running", None),
    ]
    only = json.loads(good("list", "--state", "running", "--json", "--directory", "spool"))
    assert [task["id"] for task in only["tasks"]] == [locked]
    held.close()
    assert "running" not in good("list", "--directory", "spool")


def test_list_sees_the_lock_of_a_uwsgi(spool: SpoolDirectory) -> None:
    """uWSGI's is a POSIX record lock, here of another process."""
    task = add(spool, 0)
    holder = subprocess.Popen(
        [
            *(sys.executable, "-c"),
            "import fcntl, sys; file = open(sys.argv[1], 'r+b'); fcntl.lockf(file, fcntl.LOCK_EX);"
            "print('locked', flush=True); sys.stdin.read()",
            spool.absolute(task),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert holder.stdin is not None
    assert holder.stdout is not None
    with holder:
        assert holder.stdout.readline() == b"locked\n"
        assert json.loads(good("list", "--json", "--directory", "spool"))["tasks"][0]["state"] == "running"
        holder.stdin.close()


def test_looking_takes_no_lock(spool: SpoolDirectory) -> None:
    """Else a worker that looks at the same moment would find the task taken."""
    ref = add(spool, 0)
    taken: list[int] = []
    real = fcntl.fcntl

    def watch(fd: int, command: int, argument: Any = 0) -> Any:
        taken.append(command)
        return real(fd, command, argument)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fcntl.fcntl", watch)
        good("list", "--directory", "spool")
        good("show", ref, "--directory", "spool")
    assert fcntl.F_OFD_GETLK in taken
    assert fcntl.F_OFD_SETLK not in taken


def test_list_orders_limits_and_filters_a_directory(spool: SpoolDirectory) -> None:
    ids = [add(spool, number) for number in range(5)]

    def listed(*arguments: str) -> list[str]:
        answer = json.loads(trispool("list", "--json", "--directory", "spool", *arguments).stdout)
        return [task["id"] for task in answer["tasks"]]

    assert listed() == ids
    assert listed("--order", "desc") == ids[::-1]
    assert listed("--limit", "2") == ids[:2]
    assert listed("--limit", "2", "--order", "desc") == ids[:2:-1]
    assert listed("-q", ids[3]) == [ids[3]]
    assert listed("--state", "dead") == []
    assert "more than these 2" in trispool("list", "--directory", "spool", "--limit", "2").stderr
    assert "more" not in trispool("list", "--directory", "spool", "--limit", "5").stderr


@pytest.mark.parametrize("priority", [None, 7])
def test_show_finds_a_task_in_a_directory(spool: SpoolDirectory, priority: int | None) -> None:
    task = add(spool, 1, body=b"x" * 5000, priority=priority)
    document = json.loads(good("show", task, "--json", "--directory", "spool"))
    assert document["state"] == "ready"
    assert document["priority"] == priority
    assert document["vars"]["n"] == "1"
    assert document["body"] == {"size": 5000, "preview": "x" * 4096, "truncated": True}
    assert "body: 5000 bytes, its beginning" in good("show", task, "--directory", "spool")
    assert trispool("show", task, "--body", "--directory", "spool").stdout_bytes == b"x" * 5000


def test_what_is_held_is_listed_and_shown(spool: SpoolDirectory) -> None:
    task = add(spool, 1, priority=5)
    add(spool, 2)
    assert spool.hold(f"5/{task}")
    (listed,) = json.loads(good("list", "--state", "held", "--json", "--directory", "spool"))["tasks"]
    assert (listed["id"], listed["priority"]) == (task, 5)
    shown = json.loads(good("show", task, "--json", "--directory", "spool"))
    assert (shown["state"], shown["vars"]["n"]) == ("held", "1")


def test_show_tells_why_a_file_cannot_be_read(spool: SpoolDirectory, folder: Path) -> None:
    name = "uwsgi_spoolfile_on_x_1_1_1_1_1"
    (folder / "spool" / name).write_bytes(b"\x12")
    assert spool.set_aside(name)
    shown = good("show", name, "--directory", "spool")
    assert "state:    dead" in shown
    assert "modifier1 is 18" in shown


@pytest.mark.parametrize("name", ["../secret", "uwsgi_spoolfile_on_none", "/etc/passwd", ""])
def test_show_looks_nowhere_else(spool: SpoolDirectory, folder: Path, name: str) -> None:
    (folder / "secret").write_bytes(struct.pack("<BHB", 17, 0, 0))
    result = trispool("show", name, "--directory", "spool")
    assert result.exit_code == 1
    assert "there is no task" in result.stderr


def test_a_directory_that_cannot_be_read_is_said_to_be_so(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied", str(folder / "spool"))

    (folder / "spool").mkdir()
    monkeypatch.setattr("trispool.cli.offline.SpoolDirectory", refuse)
    result = trispool("list", "--directory", "spool")
    assert result.exit_code == 1
    assert result.stderr == f"error: {folder}/spool: Permission denied\n"


# Looks


class Terminal:
    """Stands for a standard output that is one."""

    def __init__(self, written: list[str]) -> None:
        self.written = written
        self.encoding = "utf-8"

    def write(self, text: str) -> int:
        self.written.append(text)
        return len(text)

    def isatty(self) -> bool:
        return True

    def flush(self) -> None:
        pass


def test_a_terminal_gets_a_table_and_nothing_it_would_obey(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    monkeypatch.setattr(sys, "stdout", Terminal(written))
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setenv("COLUMNS", "60")
    display.print_table(
        ("ID", "STATE", "ERROR"), [("task-0", "ready", "[red]\33[2J" + "x" * 100), ("a" * 70, "held", "")]
    )
    heading, _, first, second = [line.rstrip() for line in "".join(written).splitlines()]
    assert heading.split() == ["ID", "STATE", "ERROR"]
    assert first.split() == ["task-0", "ready", "[red]\\x1b[2Jxxxxxxx…"], "the last column is cut"
    assert second.split() == ["a" * 70, "held"], "an id is not"


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.04, "0.0s"), (90, "90.0s"), (125, "2m"), (7300, "2h"), (200_000, "2d"), (None, "-")]
)
def test_how_long_ago_is_told_roughly(seconds: float | None, shown: str) -> None:
    assert display.ago(seconds and time.time() - seconds) == shown


@pytest.mark.parametrize("seconds", [None, 0.0])
def test_no_moment_is_a_dash(seconds: float | None) -> None:
    assert display.moment(seconds) == "-"


def test_a_moment_that_no_calendar_has_is_shown_as_a_number() -> None:
    assert display.moment(1e18) == "1000000000000000000.000"


def test_the_command_line_starts_without_what_only_some_commands_need() -> None:
    heavy = ("trio", "quart", "hypercorn", "pydantic", "msgspec", "structlog", "rich", "http.client", "sqlite3", "ssl")
    program = f"import sys, trispool.cli; print([name for name in {heavy!r} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert result.stdout == "[]\n"


def test_help_names_all_commands() -> None:
    shown = good("--help")
    assert all(command in shown for command in ("run", "check", "put", "list", "show", "status", "run-now", "pause"))
