"""The examples do what they say."""

from __future__ import annotations

import gzip
import http.server
import importlib
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio

from trispool import Handler, Task, calling, compat, producer
from trispool.handlers import registry
from trispool.loading import load
from trispool.spooldir import SpoolDirectory

if TYPE_CHECKING:
    from collections.abc import Iterator

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[SpoolDirectory]:
    directory = SpoolDirectory(tmp_path / "spool")
    producer.use("default", directory)
    yield directory
    producer.use("", None)
    directory.close()


def load_afresh(name: str) -> Any:
    """The example, loaded as a worker does, whoever has loaded it before."""
    for known in [known for known in sys.modules if known == name or known.startswith(f"{name}_")]:
        del sys.modules[known]
    registry.clear()
    return load(str(EXAMPLES / f"{name}.py"))


@pytest.fixture
def handlers(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield load_afresh("handlers")
    registry.clear()


def run_all(spool: SpoolDirectory) -> list[calling.Result]:
    results = []
    for path in spool.names():
        vars, body = spool.read(os.path.basename(path))
        found = calling.find(vars, compat.spooler())
        assert found is not None
        if isinstance(found, Handler):
            results.append(calling.call(found, vars, body, Task("id", vars, body)))
        else:
            results.append(calling.call_legacy(found, calling.legacy_env(os.path.basename(path).encode(), vars, body)))
        if results[-1] is calling.OK:
            os.unlink(path)
    return results


def test_compress_replaces_the_file_and_can_be_repeated(handlers: Any, spool: SpoolDirectory, tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"line\n" * 1000)
    handlers.FOLDER = str(tmp_path)
    for _ in range(2):
        handlers.compress.spool(name="log", level=9)
    assert run_all(spool) == [calling.OK, calling.OK]
    assert not path.exists()
    assert gzip.decompress((tmp_path / "log.gz").read_bytes()) == b"line\n" * 1000
    handlers.FOLDER = str(tmp_path / "spool")
    for outside in ("../log.gz", str(tmp_path / "log.gz"), ""):
        handlers.compress.spool(name=outside)
    assert [result.code for result in run_all(spool)] == ["failed"] * 3
    assert (tmp_path / "log.gz").exists()


class Receiver(http.server.BaseHTTPRequestHandler):
    """Answers what its path says."""

    received: list[bytes]

    def do_POST(self) -> None:
        type(self).received.append(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(int(self.path[1:]))
        self.send_header("Retry-After", "90")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """It is a test."""


def test_deliver_posts_the_body_and_listens_to_a_busy_receiver(handlers: Any, spool: SpoolDirectory) -> None:
    Receiver.received = []
    with http.server.HTTPServer(("127.0.0.1", 0), Receiver) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        address = f"http://127.0.0.1:{server.server_port}"
        results = []
        for status in (200, 503, 500):
            handlers.HOOKS = {"test": f"{address}/{status}"}
            handlers.deliver.spool(hook="test", body=b"content")
            results += run_all(spool)
            for path in spool.names():
                os.unlink(path)
        server.shutdown()
        thread.join()
    assert [result.code for result in results] == ["ok", "retry", "failed"]
    assert results[1].retry_at is not None
    assert Receiver.received == [b"content"] * 3


async def test_reach_reports_progress_and_who_is_down(handlers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    progress: list[float] = []
    monkeypatch.setattr("trispool.task._report", lambda id, fraction, text: progress.append(fraction))
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    handlers.GROUPS = {"test": [("127.0.0.1", port), ("127.0.0.1", port)]}
    vars = {b"group": b"test"}
    with trio.fail_after(20):
        assert await calling.call_async(handlers.reach, vars, b"", Task("id", vars)) is calling.OK
        for listener in listeners:
            await listener.aclose()
        result = await calling.call_async(handlers.reach, vars, b"", Task("id", vars))
    assert progress == [0.5, 1.0, 0.5, 1.0]
    assert result.code == "failed"
    assert "127.0.0.1" in str(result.error)


def test_show_runs_what_names_no_handler(
    handlers: Any, spool: SpoolDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    compat.uninstall()
    shower = handlers.show
    assert calling.find({b"a": b"b"}, None) is shower
    assert calling.call(handlers.show, {b"a": b"b"}, b"123", Task("id", {b"a": b"b"}, b"123")) is calling.OK
    assert capsys.readouterr().out == "task id: {b'a': b'b'}, body of 3 bytes\n"


def test_legacy_handlers_run_unchanged(
    spool: SpoolDirectory, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    compat.uninstall()
    compat.install(compat.Context(directory=spool, spoolers=(spool.path,)))
    legacy = load_afresh("legacy_uwsgi")
    uwsgi = importlib.import_module("uwsgi")
    legacy.remember({"what": "this"})
    legacy.add(2, second=3)
    legacy.try_three_times({})
    uwsgi.spool({b"path": b"/x", b"body": b"123"})
    while spool.names():
        assert set(run_all(spool)) == {calling.OK}
    uwsgi.spool({b"other": b"/x"})
    assert [result.code for result in run_all(spool)] == ["ignore"]
    said = sorted(capsys.readouterr().out.splitlines())
    assert said == [
        "asked for /x with a body of 3 bytes",
        "remembering this",
        "the sum is 5",
        "try 1",
        "try 2",
        "try 3",
    ]
    compat.uninstall()


def test_a_producer_needs_no_service(handlers: Any, tmp_path: Path) -> None:
    directory = SpoolDirectory(tmp_path / "spool")
    environment = {
        **os.environ,
        "TRISPOOL_SPOOL": directory.path,
        "PYTHONPATH": f"{EXAMPLES.parent}:{EXAMPLES}",
    }
    program = "from handlers import compress; print(compress.spool(name='x'))"
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert directory.names() == [directory.absolute(done.stdout.strip())]
    directory.close()
