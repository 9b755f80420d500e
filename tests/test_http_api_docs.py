"""The commands in docs/http-api.md do what is said there."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.api_support import API, AUTHORIZED, TOKEN
from tests.test_openapi import ROOT, Api
from trispool.admin.operations import OPERATIONS, TASK_ID

if TYPE_CHECKING:
    from collections.abc import Iterator

TEXT = (ROOT / "docs/http-api.md").read_text()
COMMANDS = [
    command
    for block in re.findall(r"^```sh\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)
    for command in re.split(r"\n(?=curl|printf)", block.strip())
    if "curl" in command
]
EXPECTED = {"state=gone": 400}
"""What is in a command that is not answered with 2xx, and the status."""


@pytest.fixture(scope="module")
def environ() -> Iterator[dict[str, str]]:
    with Api() as api:
        asked = {"action": "hold", "ids": [TASK_ID]}
        url = f"{api.url}{API}"
        bulk = httpx.post(f"{url}/tasks/bulk", json=asked, headers=AUTHORIZED, trust_env=False).json()["id"]
        yield {"API": url, "TOKEN": TOKEN, "ID": TASK_ID, "BULK": bulk, "PATH": os.environ["PATH"], "HOME": "/nowhere"}


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
@pytest.mark.parametrize("command", COMMANDS)
def test_command_is_answered_well(environ: dict[str, str], command: str) -> None:
    telling = command.replace("curl -s", "curl --write-out '\n%{http_code}' -s")
    done = subprocess.run(
        ["bash", "-c", telling], env=environ, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    content, _, status = done.stdout.rpartition("\n")
    wanted = next((status for what, status in EXPECTED.items() if what in command), None)
    assert int(status) == wanted if wanted else 200 <= int(status) < 300, done.stdout
    if "/events" not in command:
        assert json.loads(content)


def test_documents_are_json_but_for_what_is_left_out() -> None:
    for block in re.findall(r"^```json\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE):
        assert json.loads(block)


def test_links_within_lead_somewhere() -> None:
    headings = {
        re.sub(r"[^\w -]", "", line.lower()).strip().replace(" ", "-") for line in re.findall(r"^#+ (.+)", TEXT, re.M)
    }
    for target in re.findall(r"\]\(#([^)]+)\)", TEXT):
        assert target in headings


def test_every_path_is_told() -> None:
    for path in (
        "/spools/{name}/tasks",
        "/tasks/{id}",
        "/body",
        "/tasks/bulk",
        "/scan",
        "/workers",
        "/restart",
        "/stats",
    ):
        assert path in TEXT
    for name in ("events", "audit", "metrics", "healthz", "readyz", "session"):
        assert f"/{name}" in TEXT
    assert len(OPERATIONS) == 28, "new operations: tell of them"
