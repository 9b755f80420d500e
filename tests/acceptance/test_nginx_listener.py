"""A real nginx in front of the listener: web clients get answers that say what happened, and bodies arrive whole."""

from __future__ import annotations

import contextlib
import grp
import json
import os
import pwd
import random
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
import trio

from tests.listener_support import FakeEnqueue, listening, unix
from trispool.errors import SpoolUnavailable
from trispool.packet import decode_vars
from trispool.settings import ListenSettings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

NGINX = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")

pytestmark = pytest.mark.skipif(NGINX is None, reason="nginx is not installed")

MAX_BODY = 6_000_000

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
    uwsgi_temp_path uwsgi;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    scgi_temp_path scgi;
    client_max_body_size 0;
    server {{
        listen unix:{folder}/nginx.sock;
        location /enqueue {{
            uwsgi_pass {upstream};
            uwsgi_modifier1 17;
            uwsgi_param handler hello;
        }}
        location /any-length {{
            uwsgi_pass {upstream};
            uwsgi_modifier1 17;
            uwsgi_param handler hello;
            uwsgi_param CONTENT_LENGTH $content_length;
            uwsgi_param REQUEST_METHOD $request_method;
        }}
        location /unbuffered {{
            uwsgi_pass {upstream};
            uwsgi_modifier1 17;
            uwsgi_param handler hello;
            uwsgi_request_buffering off;
        }}
        location /wrong-modifier {{
            uwsgi_pass {upstream};
            uwsgi_param handler hello;
        }}
        location /bad-at {{
            uwsgi_pass {upstream};
            uwsgi_modifier1 17;
            uwsgi_param at tomorrow;
        }}
    }}
}}
"""


class Site:
    """nginx, the listener behind it, and what the listener was given."""

    def __init__(self, path: str, enqueue: FakeEnqueue) -> None:
        self._path = path
        self.enqueue = enqueue

    async def ask(self, method: str, url: str, body: bytes | None = None, *, chunked: bool = False) -> tuple[int, Any]:
        """One request of a web client; status and JSON (or text) of the answer."""
        head = f"{method} {url} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n"
        if chunked and body is not None:
            head += "Transfer-Encoding: chunked\r\n"
            body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
        elif body is not None:
            head += f"Content-Length: {len(body)}\r\n"
        answer = b""
        async with await trio.open_unix_socket(self._path) as client, trio.open_nursery() as nursery:
            nursery.start_soon(client.send_all, head.encode() + b"\r\n" + (body or b""))
            while more := await client.receive_some():
                answer += more
        head_received, _, content = answer.partition(b"\r\n\r\n")
        status = int(head_received.split()[1])
        return status, json.loads(content) if b"json" in head_received else content.decode()


@pytest.fixture(params=["tcp", "unix"])
async def site(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Site]:
    assert NGINX is not None
    enqueue = FakeEnqueue()
    settings = ListenSettings(bind="127.0.0.1:0" if request.param == "tcp" else unix(tmp_path), max_body=MAX_BODY)
    async with listening(settings, enqueue) as listener:
        config = tmp_path / "nginx.conf"
        config.write_text(CONFIG.format(folder=tmp_path, upstream=listener.addresses[0], user=_my_user()))
        command = [NGINX, "-p", str(tmp_path), "-c", str(config)]
        nginx = await trio.lowlevel.open_process(command, stderr=subprocess.DEVNULL)
        try:
            path = f"{tmp_path}/nginx.sock"
            with trio.fail_after(20):
                await _until_it_answers(path)
            yield Site(path, enqueue)
        finally:
            nginx.terminate()
            with trio.CancelScope(shield=True):
                await nginx.wait()


def _my_user() -> str:
    """Started by root, nginx would serve as somebody who may not enter the test's folder."""
    user = pwd.getpwuid(os.getuid())
    return f"{user.pw_name} {grp.getgrgid(user.pw_gid).gr_name}"


async def _until_it_answers(path: str) -> None:
    while True:
        with contextlib.suppress(OSError):
            async with await trio.open_unix_socket(path):
                return
        await trio.sleep(0.01)


async def test_a_get_is_a_task(site: Site) -> None:
    assert await site.ask("GET", "/enqueue") == (202, {"id": "task-0", "spool": "default", "at": None})
    (task,) = site.enqueue.tasks
    assert decode_vars(task.payload)[b"handler"] == b"hello"
    assert task.body == b""


@pytest.mark.parametrize("path", ["/enqueue", "/any-length", "/unbuffered"])
@pytest.mark.parametrize("size", [0, 10, 300_000, 5_000_000])
async def test_a_post_is_a_task_with_its_body_whole(site: Site, path: str, size: int) -> None:
    body = random.Random(size).randbytes(size)
    assert await site.ask("POST", path, body) == (202, {"id": "task-0", "spool": "default", "at": None})
    (task,) = site.enqueue.tasks
    assert task.body == body
    assert decode_vars(task.payload)[b"handler"] == b"hello"


@pytest.mark.parametrize("path", ["/enqueue", "/any-length", "/unbuffered"])
@pytest.mark.parametrize("size", [MAX_BODY + 1, 20_000_000])
async def test_a_body_that_is_too_large_is_413(site: Site, path: str, size: int) -> None:
    status, problem = await site.ask("POST", path, bytes(size))
    assert status == 413
    assert str(MAX_BODY) in problem["detail"]
    assert await site.ask("POST", path, b"small") == (202, {"id": "task-0", "spool": "default", "at": None})
    assert [task.body for task in site.enqueue.tasks] == [b"small"]


async def test_a_chunked_body_arrives_when_nginx_passes_its_length_and_is_411_when_not(site: Site) -> None:
    assert (await site.ask("POST", "/any-length", b"chunky" * 50_000, chunked=True))[0] == 202
    status, problem = await site.ask("POST", "/enqueue", b"chunky" * 50_000, chunked=True)
    assert status == 411
    assert "uwsgi_param CONTENT_LENGTH $content_length" in problem["detail"]
    assert [task.body for task in site.enqueue.tasks] == [b"chunky" * 50_000]


async def test_a_web_client_is_told_what_is_wrong(site: Site) -> None:
    status, problem = await site.ask("GET", "/wrong-modifier")
    assert (status, problem["title"]) == (400, "Bad Request")
    assert "modifier1 is 0" in problem["detail"]
    status, problem = await site.ask("POST", "/bad-at", b"x" * 300_000)
    assert (status, "tomorrow" in problem["detail"]) == (400, True)
    site.enqueue.error = SpoolUnavailable("the disk is full")
    assert await site.ask("POST", "/enqueue", b"x" * 300_000) == (
        503,
        {"title": "Service Unavailable", "detail": "the disk is full"},
    )


async def test_many_web_clients_at_once_all_get_their_own_answer(site: Site) -> None:
    answers: list[tuple[int, Any]] = []

    async def ask(number: int) -> None:
        answers.append(await site.ask("POST", "/enqueue", b"%d" % number * 1000))

    async with trio.open_nursery() as nursery:
        for number in range(60):
            nursery.start_soon(ask, number)
    assert {status for status, _ in answers} == {202}
    assert len({answer["id"] for _, answer in answers}) == 60
    assert sorted(task.body for task in site.enqueue.tasks) == sorted(b"%d" % number * 1000 for number in range(60))
