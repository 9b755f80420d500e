"""The OpenAPI document: it is whole, its examples work, and schemathesis finds nothing that contradicts it.

Schemathesis calls every operation in ways that the document allows and in ways that it forbids, on a real port, and
looks at the answers with all of its checks: no 5xx, declared statuses, content types and headers, documents as
described, good requests accepted and bad ones refused, no way in without a token, 405 for other methods.
"""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urljoin

import httpx
import pytest
import trio

from tests.api_support import AUTHORIZED, TOKEN, VIEWER, client_of
from tests.fake_control import FakeControl
from trispool.admin import Accounts, Role, create_app, openapi, serve_admin
from trispool.admin.documents import spool_document, summary_document, task_document, worker_document
from trispool.admin.operations import TASK_ID
from trispool.admin.throttle import Throttle
from trispool.control import Attempt, Page, WorkerStatus
from trispool.operating import AuditRow
from trispool.task import TaskState

if TYPE_CHECKING:
    from collections.abc import Iterator

NET = 60.0
ROOT = Path(__file__).parents[1]


class _Patience(Throttle):
    """Schemathesis tries very many tokens."""

    def wait_seconds(self, address: str) -> float:
        return 0.0


class Api:
    """The API on a port, in a thread, before a fake service that has one of everything."""

    def __init__(self) -> None:
        self.url = ""
        self._ready = threading.Event()
        self._token: trio.lowlevel.TrioToken
        self._stop: trio.Event
        self._thread = threading.Thread(target=trio.run, args=(self._serve,))

    def __enter__(self) -> Api:
        self._thread.start()
        assert self._ready.wait(NET)
        return self

    def __exit__(self, *exc: object) -> None:
        self._token.run_sync_soon(self._stop.set)
        self._thread.join(NET)
        assert not self._thread.is_alive()

    async def _serve(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._stop = trio.Event()
        app = create_app(
            furnished(), accounts=Accounts.of({TOKEN: Role.OPERATE, VIEWER: Role.VIEW}, throttle=_Patience())
        )
        async with trio.open_nursery() as nursery:
            serve = functools.partial(serve_admin, stop=self._stop, grace=1)
            [self.url] = await nursery.start(serve, app, "127.0.0.1:0")
            self._ready.set()


def furnished() -> FakeControl:
    """A fake service with one of everything that the examples name."""
    control = FakeControl()
    control.add_detail(TASK_ID, {b"name": b"\xff", b"path": b"/a"}, b"body")
    control.page = Page(
        [
            control.details[TASK_ID].summary,
            replace(
                control.details[TASK_ID].summary,
                id="done",
                state=TaskState.DONE,
                progress=(0.5, "half"),
                handler="encode",
            ),
        ],
        "next",
    )
    worker = WorkerStatus(4711, "busy", TASK_ID, 1700000000.5)
    control.status["default"] = replace(control.status["default"], workers=[worker])
    row = AuditRow(1, 1700000000.5, "operator", "operate", "unix", "task.hold", TASK_ID, {"state": "ready"}, None, "ok")
    control.rows = [row]
    return control


@pytest.fixture(scope="module")
def api() -> Iterator[Api]:
    with Api() as running:
        yield running


@pytest.fixture(scope="module")
def document(api: Api) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(f"{api.url}/openapi.json", timeout=NET, trust_env=False).json()
    return found


def let_schemathesis_look(url: str, folder: Path, *options: str, token: str = TOKEN, timeout: float = 120) -> str:
    """Have it call an API in all ways; gives what it prints, which has to be that it has found nothing."""
    done = subprocess.run(
        [
            *(sys.executable, "-c", "from schemathesis.cli import schemathesis; schemathesis()"),
            *("--config-file", str(ROOT / "tests/data/schemathesis.toml")),
            *("run", f"{url}/openapi.json", "--header", f"Authorization: Bearer {token}"),
            *("--seed", "1", "--suppress-health-check", "all", "--warnings", "off", *options),
        ],
        cwd=folder,  # it leaves files where it is
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-5000:]
    return done.stdout


def test_schemathesis_finds_nothing(api: Api, tmp_path: Path) -> None:
    assert "Tested: 27" in let_schemathesis_look(api.url, tmp_path)


# The document


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Method, path and operation of all."""
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path, operation


def test_every_route_is_described(document: dict[str, Any]) -> None:
    app = create_app(furnished(), accounts=Accounts.of({TOKEN: Role.OPERATE}))
    served = {
        (method, re.sub("<(?:[^:]*:)?([^>]+)>", r"{\1}", rule.rule))
        for rule in app.url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }
    beside = {("GET", path) for path in ("/", "/openapi.json", "/docs", "/docs/docs.js", "/docs/docs.css")}
    assert {(method, path) for method, path, _ in operations(document)} == served - beside
    names = [operation["operationId"] for _, _, operation in operations(document)]
    assert len(set(names)) == len(names)


def test_document_says_who_may_and_what_can_go_wrong(document: dict[str, Any]) -> None:
    assert document["openapi"].startswith("3.1")
    for _, path, operation in operations(document):
        is_public = operation.get("security") == []
        assert is_public == (path in ("/healthz", "/readyz") or operation["operationId"] == "log_in_session")
        declared = set(operation["responses"])
        assert declared >= {"421", "500"}
        if not is_public:
            assert declared >= {"400", "401", "403", "429"}
        assert operation["summary"]
        assert operation["tags"][0] in {tag["name"] for tag in document["tags"]}


def test_document_says_what_documents_have(document: dict[str, Any]) -> None:
    """Schemathesis sees that what is described is there; this, that what is there is described."""
    control = furnished()
    schemas = document["components"]["schemas"]
    worker = control.status["default"].workers[0]
    attempt = Attempt(1, "ok", 1.0)
    detail = replace(control.details[TASK_ID], attempts=[attempt])
    described = {
        "Spool": spool_document(control.status["default"]),
        "Worker": worker_document(worker),
        "WorkerOfSpool": worker_document(worker, "default"),
        "Task": summary_document(detail.summary),
        "TaskDetail": task_document(detail),
        "Attempt": task_document(detail)["history"][0],  # type: ignore[index]
    }
    for name, there in described.items():
        assert set(schemas[name]["properties"]) == set(there), name  # type: ignore[call-overload]


def examples(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every example as a request."""
    for method, path, operation in operations(document):
        if operation["operationId"] == "events":
            continue
        query = {}
        for parameter in operation["parameters"]:
            if parameter["in"] == "path":
                path = path.replace(f"{{{parameter['name']}}}", quote(str(parameter["example"]), safe=""))
            elif "example" in parameter:
                query[parameter["name"]] = parameter["example"]
        request: dict[str, Any] = {"method": method, "url": path, "params": query}
        contents = operation.get("requestBody", {}).get("content", {})
        if not contents or not operation["requestBody"]["required"]:
            yield f"{operation['operationId']}", request
        for kind, content in contents.items():
            for name, example in content.get("examples", {}).items():
                yield f"{operation['operationId']}, {kind}, {name}", request | sent(kind, example["value"])


def sent(kind: str, value: Any) -> dict[str, Any]:
    """An example as a body of a request."""
    match kind:
        case "application/json":
            return {"json": value}
        case "application/x-ndjson":
            lines = "\n".join(json.dumps(document) for document in value)
            return {"content": lines, "headers": {"Content-Type": kind}}
        case "application/x-www-form-urlencoded":
            return {"data": value}
        case "multipart/form-data":
            fields = dict(value)
            return {"files": {"file": ("file", fields.pop("file"))}, "data": fields}
    return {"content": value, "headers": {"Content-Type": kind}}


def test_every_example_works(document: dict[str, Any]) -> None:
    """In the order of the document, so that a bulk action is begun before it is asked for."""
    done = 0
    with Api() as api, httpx.Client(base_url=api.url, headers=AUTHORIZED, timeout=NET, trust_env=False) as client:
        for name, request in examples(document):
            response = client.request(**request)
            assert response.status_code < 300, (name, response.text)
            done += 1
    assert done > 35


async def test_document_is_made_once_for_all_who_ask_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    real = openapi.openapi_document

    def counting(*arguments: Any) -> dict[str, Any]:
        made.append(1)
        return real(*arguments)

    monkeypatch.setattr(openapi, "openapi_document", counting)
    client = client_of(FakeControl())
    answers = []

    async def ask() -> None:
        answers.append(await (await client.get("/openapi.json")).get_data())

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(ask)
    assert len(set(map(bytes, answers))) == len(made) == 1


def test_neither_the_document_nor_its_makers_are_loaded_at_the_start() -> None:
    code = "import sys, trispool.service, trispool.admin; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "trispool.admin.app" in loaded
    assert not loaded & {
        "quart_schema",
        "trispool.admin.openapi",
        "trispool.admin.operations",
        "trispool.admin.schemas",
    }


# The page


@pytest.mark.parametrize(
    ("path", "kind"), [("/docs", "text/html"), ("/docs/docs.js", "text/javascript"), ("/docs/docs.css", "text/css")]
)
async def test_page_is_public_and_of_this_server_alone(path: str, kind: str) -> None:
    response = await client_of(FakeControl()).get(path)
    assert response.status_code == 200
    assert response.content_type == f"{kind}; charset=utf-8"
    policy = response.headers["Content-Security-Policy"]
    assert "default-src 'none'; script-src 'self'; style-src 'self'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy
    content = await response.get_data(as_text=True)
    assert not re.search(r"(?:src|href|url|import|fetch)\W{1,3}(?:https?:)?//", content)
    assert "innerHTML" not in content
    assert not re.search(r"localStorage|sessionStorage|document\.cookie", content)


async def test_page_finds_its_files_below_any_path() -> None:
    client = client_of(FakeControl())
    page = await (await client.get("/docs")).get_data(as_text=True)
    named = re.findall(r'(?:src|href)="([^"#:]+)"', page)
    assert {"docs/docs.js", "docs/docs.css", "openapi.json"} == set(named)
    for name in named:
        assert urljoin("/a/b/docs", name).startswith("/a/b/")
        assert (await client.get(urljoin("/docs", name))).status_code == 200


async def test_document_is_for_the_path_where_it_is(document: dict[str, Any]) -> None:
    assert [server["url"] for server in document["servers"]] == ["."]
