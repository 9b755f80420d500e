"""Stand-ins for uWSGI's Python modules `uwsgi` and `uwsgidecorators`, so that its handlers and producers run unchanged.

Importing this package makes them importable: in a worker it has been done already, in any other process (a web app, a
script) `import trispool.compat` does it, and tasks then go to the spool directory in `TRISPOOL_SPOOL`. Inside a real
uWSGI nothing is replaced.

Names, types, return values and exceptions are uWSGI's under Python 3 (2.0.31, compared by running both). Where trispool
differs, the module of the function says so.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
from typing import TYPE_CHECKING, Any

from trispool.compat import context as _context
from trispool.compat.context import Context

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType

    from trispool.calling import Legacy

__all__ = ["Context", "install", "spooler", "uninstall"]


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds our `uwsgidecorators`, and loads it only then: as uWSGI's, it sets `uwsgi.spooler` when it is imported."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        return importlib.machinery.ModuleSpec(fullname, self) if fullname == "uwsgidecorators" else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return importlib.import_module(f"{__name__}.uwsgidecorators")

    def exec_module(self, module: ModuleType) -> None:
        """It has been executed under its own name."""


_finder = _Finder()


def install(context: Context | None = None) -> None:
    """Make `import uwsgi` and `import uwsgidecorators` give the stand-ins.

    Args:
        context: What this process is; None: no worker, tasks go where the environment says.
    """
    module = importlib.import_module(f"{__name__}.uwsgi")
    if sys.modules.get("uwsgi", module) is not module:
        return  # a real uWSGI
    _context.current = context if context is not None else Context.from_environment()
    module.configure()
    sys.modules["uwsgi"] = module
    # First, since the real uwsgidecorators comes with uWSGI's package, wherever that is installed.
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)


def uninstall() -> None:
    """Undo `install`, forgetting `uwsgi.spooler` and decorated functions, too."""
    for name in ("uwsgi", "uwsgidecorators"):
        own = sys.modules.pop(f"{__name__}.{name}", None)
        globals().pop(name, None)
        if own is not None and sys.modules.get(name) is own:
            del sys.modules[name]
    if _finder in sys.meta_path:
        sys.meta_path.remove(_finder)


def spooler() -> Legacy | None:
    """What has been assigned to `uwsgi.spooler`, or None."""
    module: Any = sys.modules.get(f"{__name__}.uwsgi")
    return None if module is None else module.__dict__.get("spooler")


install()
