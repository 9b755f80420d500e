"""What the README promises in its first five minutes, by its own blocks: real service, real nginx, real shell."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.acceptance.harness import LONG, free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

README = (Path(__file__).parents[2] / "README.md").read_text()
NGINX = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
PROGRAM = "from trispool.cli import main; main(prog_name='trispool')"


def block(language: str, marker: str) -> str:
    """The block of the README that has this in it."""
    [found] = [text for text in re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL) if marker in text]
    return str(found)


def replaced(text: str, **changes: str) -> str:
    """The block with other addresses: those of the README may be taken on this machine."""
    for before, after in changes.items():
        assert before in text
        text = text.replace(before, after)
    return text


class Site:
    """The folder of a reader who does as told."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.socket, self.http, self.web = (f"127.0.0.1:{free_port()}" for _ in range(3))
        self.lines: list[dict[str, object]] = []
        (folder / "handlers.py").write_text(block("python", "def hello"))
        (folder / "bin").mkdir()
        command = folder / "bin/trispool"
        command.write_text(f"#!{sys.executable}\n{PROGRAM}\n")
        command.chmod(0o755)
        self.environment = {
            **os.environ,
            "PATH": f"{folder}/bin:{os.environ['PATH']}",
            "TRISPOOL_HTTP_BIND": self.http,
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]),
        }

    def start(self) -> None:
        [command] = re.findall(r"^    (trispool run .*)$", README, re.MULTILINE)
        command = command.replace("127.0.0.1:3031", self.socket)
        self.service = subprocess.Popen(
            command.split(),
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.wait_for(event="http_ready")

    def wait_for(self, **wanted: object) -> dict[str, object]:
        """The next line of the log that has these values. `faulthandler_timeout` is the net."""
        assert self.service.stderr is not None
        for line in self.service.stderr:
            self.lines.append(json.loads(line))
            if wanted.items() <= self.lines[-1].items():
                return self.lines[-1]
        raise AssertionError(f"the service ended without {wanted}: {self.lines}")

    def hello(self, name: str) -> str:
        """Wait until it has been said; gives the task's id."""
        return str(self.wait_for(event="handler_output", line=f"hello, {name}")["task"])

    def shell(self, script: str) -> str:
        result = subprocess.run(
            ["sh", "-euc", script],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=LONG,
            check=False,
        )
        assert result.returncode == 0, result.stderr
        return result.stdout

    def close(self) -> None:
        self.service.terminate()
        self.service.communicate(timeout=LONG)
        assert self.service.returncode == 0


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    site.start()
    with contextlib.closing(site):
        yield site


@contextlib.contextmanager
def nginx(site: Site, location: str) -> Iterator[subprocess.Popen[str]]:
    """nginx with this in its server; it may still be starting."""
    assert NGINX is not None
    folder = site.folder / "nginx"
    folder.mkdir()
    temporary = "".join(f"{kind}_temp_path t;\n" for kind in ("client_body", "uwsgi", "proxy", "fastcgi", "scgi"))
    (folder / "nginx.conf").write_text(
        f"daemon off;\npid nginx.pid;\nerror_log error.log;\n{'user root;' if os.getuid() == 0 else ''}\n"
        "events { }\n"
        f"http {{\naccess_log off;\n{temporary}\nserver {{\nlisten {site.web};\n{location}}}\n}}\n"
    )
    process = subprocess.Popen(
        [NGINX, "-p", f"{folder}/", "-c", "nginx.conf", "-e", "error.log"], stderr=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.terminate()
        _, errors = process.communicate(timeout=LONG)
        print(errors)


def ask(site: Site, server: subprocess.Popen[str], path: str, body: bytes | None = None) -> tuple[int, bytes]:
    """A request of a web client."""
    while server.poll() is None:
        with contextlib.closing(http.client.HTTPConnection(site.web, timeout=LONG)) as client:
            try:
                client.request("GET" if body is None else "POST", path, body)
                answer = client.getresponse()
                return answer.status, answer.read()
            except ConnectionRefusedError:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    server.wait(0.02)
    raise AssertionError("nginx does not start")


@pytest.mark.skipif(NGINX is None, reason="nginx is not installed")
def test_a_web_client_enqueues_through_nginx(site: Site) -> None:
    location = replaced(block("nginx", "uwsgi_pass"), **{"127.0.0.1:3031": site.socket})
    with nginx(site, location) as server:
        for body in (None, b"x" * 100_000):
            status, answer = ask(site, server, "/enqueue", body)
            assert status == 202
            assert json.loads(answer) == {"id": site.hello("world"), "spool": "default", "at": None}


def test_the_shell_enqueues_by_the_command_line(site: Site) -> None:
    at_once, later = re.findall(r"^    (trispool put .*)$", README, re.MULTILINE)
    assert site.shell(at_once).strip() == site.hello("Ada")
    task = site.shell(later).strip()
    listed = json.loads(site.shell("trispool list --state scheduled --json"))["tasks"]
    assert [(item["id"], item["priority"]) for item in listed] == [(task, 1)]


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl_enqueues(site: Site) -> None:
    script = replaced(block("sh", "curl"), **{"127.0.0.1:8080": site.http})
    assert json.loads(site.shell(script))["id"] == site.hello("Ada")


def test_python_enqueues(site: Site) -> None:
    script = block("python", "from handlers import hello")
    site.environment["TRISPOOL_SPOOL"] = str(site.folder / "spool")
    (site.folder / "ask.py").write_text(script)
    site.shell(f"{sys.executable} ask.py")
    site.hello("Ada")
    site.hello("Ada")
    states = [task["state"] for task in json.loads(site.shell("trispool list --json"))["tasks"]]
    assert states == ["scheduled", "done", "done"]


def test_a_dropped_file_is_run(site: Site) -> None:
    site.shell(block("sh", "printf"))
    assert site.hello("world") == "uwsgi_spoolfile_on_by_hand"


def test_a_handler_is_declared_in_five_lines() -> None:
    lines = [line for line in block("python", "def hello").splitlines() if line]
    assert len(lines) <= 5


def test_the_longer_handlers_are_good(tmp_path: Path) -> None:
    (tmp_path / "more.py").write_text(block("python", "def encode"))
    program = "import more; from trispool.handlers import registry; print(*sorted(found.name for found in registry))"
    result = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.stdout == "encode notify other\n", result.stderr
