"""From outside: the service does what its OpenAPI document says, whatever it is asked."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.acceptance.harness import Service, telling_in
from tests.test_openapi import let_schemathesis_look

if TYPE_CHECKING:
    from pathlib import Path


def test_schemathesis_finds_nothing_in_the_whole_service(tmp_path: Path) -> None:
    with telling_in(tmp_path) as telling:
        service = Service(tmp_path, telling, max_attempts=1).start()
        try:
            task = service.put({"n": "1"})
            telling.next(event="note", n="1")
            # Very many wrong tokens are answered with 429; and nobody wants 256 workers here.
            options = ("--exclude-checks", "ignored_auth", "--exclude-operation-id", "change_spool")
            found = let_schemathesis_look(
                f"http://127.0.0.1:{service.http_port}", tmp_path, *options, "--max-examples", "5", token=service.token
            )
            assert "Tested: 26" in found
            assert service.get(f"/tasks/{task}")["state"] == "done"
            assert service.status()["problem"] is None
            assert service.stop() == 0
        finally:
            service.close()
