"""The application: the API, the addresses beside it, and what guards them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from quart import Response
from quart_trio import QuartTrio

from trispool.admin.api import api_routes
from trispool.admin.bodies import limit_bodies
from trispool.admin.docs import DocViews
from trispool.admin.guard import install_guard
from trispool.admin.problems import answer_errors
from trispool.admin.routes import PREFIX, Route, TaskId, blueprint_of
from trispool.admin.session import SessionApi
from trispool.admin.settings import AdminSettings
from trispool.admin.streams import STREAMS, Streams
from trispool.admin.watching import WatchViews

if TYPE_CHECKING:
    from trispool.admin.auth import Accounts
    from trispool.admin.guard import Needs
    from trispool.control import Control

__all__ = ["create_app"]

_POINTER: Final = f"""\
trispool

The HTTP API is at {PREFIX}; it needs the header "Authorization: Bearer TOKEN" with the content of the file token in
the state directory, or a token made by "trispool token create".

  docs          what can be asked, and a form to try it
  openapi.json  the same for programs

GET /healthz and /readyz need no token.
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
    app.url_map.converters["task"] = TaskId
    app.url_map.merge_slashes = False  # `//tasks` is 404, not a redirect
    app.config["MAX_CONTENT_LENGTH"] = settings.max_body
    app.config["BODY_TIMEOUT"] = settings.body_timeout
    app.config["RESPONSE_TIMEOUT"] = None  # the server cuts off a client that stalls, not one that is slow
    streams = app.extensions[STREAMS] = Streams(settings.max_streams)
    needs: dict[str, Needs] = {}
    for name, prefix, routes in (
        ("api", PREFIX, api_routes(control, accounts, settings, streams)),
        ("beside", None, (Route("index", "GET", "/", _index, None), *WatchViews(control).probes())),
    ):
        app.register_blueprint(blueprint_of(name, routes, prefix))
        needs |= {f"{name}.{route.name}": route.role for route in routes}
    sessions = SessionApi(control, accounts)
    app.register_blueprint(sessions.blueprint(PREFIX))
    needs |= sessions.roles()
    docs = DocViews(app, needs)
    app.register_blueprint(blueprint_of("docs", docs.routes()))
    needs |= {f"docs.{route.name}": route.role for route in docs.routes()}
    install_guard(app, accounts=accounts, roles=needs, hosts=settings.hosts)
    limit_bodies(app, settings)
    answer_errors(app, settings)
    return app


async def _index() -> Response:
    return Response(_POINTER, content_type="text/plain; charset=utf-8")
