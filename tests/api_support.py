"""What tests of the HTTP API share: clients that need no port, requests, and what a problem document has to be."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, cast

from trispool.admin import Accounts, AdminSettings, Role, create_app
from trispool.operating import Actor

if TYPE_CHECKING:
    from quart import Response
    from quart.testing import QuartClient

    from tests.fake_control import FakeControl

TOKEN = "operator-token-0123456789"
VIEWER = "viewer-token-0123456789"
PRODUCER = "producer-token-0123456789"
AUTHORIZED = {"Authorization": f"Bearer {TOKEN}"}
API = "/api/v1"
TASKS = f"{API}/spools/default/tasks"
OPERATOR = Actor("operator", "operate", "unix")
"""Who `AUTHORIZED` is to the service."""


def accounts() -> Accounts:
    """The three tokens."""
    return Accounts.of({TOKEN: Role.OPERATE, VIEWER: Role.VIEW, PRODUCER: Role.ENQUEUE})


def client_of(control: FakeControl, **settings: Any) -> QuartClient:
    """A client of the application before this service."""
    app = create_app(control, accounts=accounts(), settings=AdminSettings(**settings))
    return cast("QuartClient", app.test_client())


async def post(
    client: QuartClient, body: bytes | str, content_type: str | None, path: str = TASKS, **headers: str
) -> Response:
    """Send something; underscores in the names of headers are dashes."""
    types = {"Content-Type": content_type} if content_type else {}
    extra = {name.replace("_", "-"): value for name, value in headers.items()}
    return await client.post(path, data=body, headers=AUTHORIZED | types | extra)


async def post_json(client: QuartClient, document: object, path: str = TASKS, **headers: str) -> Response:
    """Send a JSON document."""
    return await post(client, json.dumps(document), "application/json", path, **headers)


async def get(client: QuartClient, path: str) -> Response:
    """Ask for something."""
    return await client.get(path, headers=AUTHORIZED)


async def patch(client: QuartClient, document: object, path: str = f"{API}/spools/default") -> Response:
    """Change something."""
    headers = AUTHORIZED | {"Content-Type": "application/json"}
    return await client.patch(path, data=json.dumps(document), headers=headers)


async def problem(response: Response, status: int) -> dict[str, Any]:
    """The problem document that `response` has to be."""
    document: dict[str, Any] = json.loads(await response.get_data(as_text=True))
    assert (response.status_code, document["status"]) == (status, status), document
    assert response.content_type == "application/problem+json"
    assert document["type"] == "about:blank"
    assert document["title"]
    assert document["detail"]
    return document
