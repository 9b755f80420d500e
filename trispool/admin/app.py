"""The application: the API, and the two addresses that need no token."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec
from quart import Response
from quart_trio import QuartTrio

from trispool.admin.api import PREFIX, Api
from trispool.admin.guard import install_guard
from trispool.admin.problems import Problem, answer_errors
from trispool.admin.session import SessionApi
from trispool.admin.settings import AdminSettings

if TYPE_CHECKING:
    from trispool.admin.auth import Accounts
    from trispool.admin.guard import Needs
    from trispool.control import Control

__all__ = ["create_app"]

_POINTER: Final = f"""\
trispool

The HTTP API is at {PREFIX}; it needs the header "Authorization: Bearer TOKEN" with the content of the file token in
the state directory.

  POST  {PREFIX}/spools/NAME/tasks       enqueue (JSON, NDJSON, a form, a file, or a raw body with vars in the query)
  GET   {PREFIX}/tasks                   ?spool= state= q= order= limit= cursor=
  GET   {PREFIX}/tasks/ID                and /body
  GET   {PREFIX}/spools                  and /NAME
  PATCH {PREFIX}/spools/NAME             {{"frequency": SECONDS, "paused": BOOLEAN}}
  POST  {PREFIX}/spools/NAME/scan

GET /healthz needs no token.
"""


def create_app(control: Control, *, accounts: Accounts, settings: AdminSettings | None = None) -> QuartTrio:
    """The application.

    Args:
        control: The service it shows and steers.
        accounts: Who is let in.
        settings: Limits of a request; None: the defaults.
    """
    settings = settings or AdminSettings()
    app = QuartTrio(__name__, static_folder=None, template_folder=None)
    app.url_map.merge_slashes = False  # `//tasks` is 404, not a redirect
    app.config["MAX_CONTENT_LENGTH"] = settings.max_body
    app.config["BODY_TIMEOUT"] = settings.body_timeout
    app.config["RESPONSE_TIMEOUT"] = None  # the server cuts off a client that stalls, not one that is slow

    async def index() -> Response:
        return Response(_POINTER, content_type="text/plain; charset=utf-8")

    async def healthz() -> Response:
        health = control.health()
        if not health.ok:
            raise Problem(503, "; ".join(health.problems), ok=False, problems=list(health.problems))
        answer = {"ok": True, "problems": list(health.problems)}
        return Response(msgspec.json.encode(answer), content_type="application/json")

    app.add_url_rule("/", "index", index)
    app.add_url_rule("/healthz", "healthz", healthz)
    api = Api(control, settings)
    app.register_blueprint(api.blueprint())
    sessions = SessionApi(control, accounts)
    app.register_blueprint(sessions.blueprint(PREFIX))
    roles: dict[str, Needs] = {"index": None, "healthz": None}
    install_guard(app, accounts=accounts, roles={**roles, **api.roles(), **sessions.roles()}, hosts=settings.hosts)
    answer_errors(app, settings)
    return app
