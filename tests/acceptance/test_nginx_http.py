"""A real nginx in front of the HTTP API, under a path of its site: links, cookies, events and changes work there."""

from __future__ import annotations

import http.client
import json
import shutil
import subprocess
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin

import pytest

from tests.acceptance.harness import LONG, Service, Telling, free_port
from tests.acceptance.test_nginx_listener import _my_user

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NGINX = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")

pytestmark = pytest.mark.skipif(NGINX is None, reason="nginx is not installed")

CONFIG = """
daemon off;
user {user};
worker_processes 1;
pid nginx.pid;
error_log error.log info;
events {{ worker_connections 256; }}
http {{
    access_log off;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    scgi_temp_path scgi;
    uwsgi_temp_path uwsgi;
    server {{
        listen 127.0.0.1:{port};
        location /ops/spooler/ {{
            proxy_pass http://127.0.0.1:{upstream}/;
            proxy_set_header Host $http_host;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_read_timeout 1h;
        }}
    }}
}}
"""


class Site:
    """What a browser sees of it."""

    def __init__(self, port: int, service: Service) -> None:
        self.port = port
        self.service = service
        self.origin = f"http://127.0.0.1:{port}"
        self.base = f"{self.origin}/ops/spooler/"

    def open(
        self, method: str, url: str, document: object = None, **headers: str
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        """An answer whose content has not been read."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=LONG)
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if document is not None:
            sent["Content-Type"] = "application/json"
        body = None if document is None else json.dumps(document)
        connection.request(method, urljoin(self.base, url).removeprefix(self.origin), body, sent)
        return connection, connection.getresponse()

    def ask(self, method: str, url: str, document: object = None, **headers: str) -> tuple[int, Any, Any]:
        """Status, headers and content."""
        connection, answer = self.open(method, url, document, **headers)
        content = answer.read()
        connection.close()
        return answer.status, answer.headers, json.loads(content) if b"{" in content[:1] else content


@pytest.fixture
def site(tmp_path: Path, telling: Telling) -> Iterator[Site]:
    assert NGINX is not None
    service = Service(tmp_path, telling, http={"hosts": ["127.0.0.1"]})
    port = free_port()
    config = tmp_path / "nginx.conf"
    config.write_text(CONFIG.format(port=port, upstream=service.http_port, user=_my_user()))
    nginx = subprocess.Popen([NGINX, "-p", str(tmp_path), "-c", str(config)], stderr=subprocess.DEVNULL)
    try:
        made = Site(port, service.start())
        service.wait_until(lambda: made.ask("GET", "healthz")[0] == 200, "behind nginx")
        yield made
    finally:
        nginx.terminate()
        nginx.wait(LONG)
        service.close()


def test_a_location_leads_back_through_nginx(site: Site, telling: Telling) -> None:
    bearer = {"Authorization": f"Bearer {site.service.token}"}
    url = "api/v1/spools/default/tasks"
    status, headers, content = site.ask("POST", url, {"vars": {"n": "1"}}, **bearer)
    assert status == 201
    telling.next(event="note", n="1")
    task = urljoin(urljoin(site.base, url), headers["Location"])
    assert task.startswith(site.base)
    status, _, known = site.ask("GET", task, **bearer)
    assert (status, known["id"]) == (200, content["id"])


def test_a_browser_logs_in_and_changes_things_from_its_own_page_only(site: Site) -> None:
    status, headers, _ = site.ask("POST", "api/v1/session", {"token": site.service.token}, Origin=site.origin)
    assert status in (200, 201)
    cookie = headers["Set-Cookie"]
    assert "Path=" not in cookie  # the browser then takes the path it sees, prefix and all
    mine = {"Cookie": cookie.partition(";")[0]}
    assert site.ask("GET", "api/v1/spools", **mine)[0] == 200
    url, change = "api/v1/spools/default", {"frequency": 9}
    assert site.ask("PATCH", url, change, Origin=site.origin, **mine)[0] == 200
    assert site.ask("PATCH", url, change, Origin="http://evil.example", **mine)[0] == 403


def test_the_documentation_finds_its_parts_under_the_prefix(site: Site) -> None:
    status, headers, page = site.ask("GET", "docs")
    assert status == 200
    assert "default-src" in headers["Content-Security-Policy"]
    assert b"http://" not in page.replace(b"http://www.w3.org", b"")
    assert b"https://" not in page
    assert b'="/' not in page  # nothing leads to the root of the site


def test_events_come_through_while_they_happen(site: Site, telling: Telling) -> None:
    bearer = {"Authorization": f"Bearer {site.service.token}"}
    connection, answer = site.open("GET", "api/v1/events", **bearer)
    assert answer.status == 200
    task = site.service.put({"n": "seen"})
    while line := answer.readline():
        if line.startswith(b"data:") and task.encode() in line:
            break
    else:
        raise AssertionError("the stream ended")
    answer.close()
    connection.close()
