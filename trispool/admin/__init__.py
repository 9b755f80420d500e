"""The HTTP face of trispool: Quart-Trio on Hypercorn. Both live here and nowhere else.

`create_app` makes the application from a `Control`, `serve_admin` serves it inside a nursery of the service. Nothing of
the service's work runs in the application's own nursery.
"""

from __future__ import annotations

from trispool.admin.app import create_app
from trispool.admin.auth import Accounts, Role, accounts_of, load_accounts
from trispool.admin.server import serve_admin
from trispool.admin.settings import AdminSettings, ServerLimits, allowed_hosts

__all__ = [
    "Accounts",
    "AdminSettings",
    "Role",
    "ServerLimits",
    "accounts_of",
    "allowed_hosts",
    "create_app",
    "load_accounts",
    "serve_admin",
]
