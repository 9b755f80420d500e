"""Importing the files and modules that declare handlers."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import ModuleType

__all__ = ["load"]


def load(target: str) -> ModuleType:
    """Import handlers.

    A file becomes a module named after it, as if its folder were on the path (it is, afterwards), so that what it
    defines can be pickled and its neighbours can be imported. If that name is taken, a hash of its path is appended,
    which is the same in every process.

    Args:
        target: A file (`examples/handlers.py`: it ends in `.py` or has a slash) or a module (`app.handlers`).

    Returns:
        The module.

    Raises:
        BaseException: Whatever the import raises.
    """
    if not (target.endswith(".py") or "/" in target):
        _add_to_path(os.getcwd())
        return importlib.import_module(target)
    path = os.path.realpath(target)
    name = _module_name(path)
    loaded = sys.modules.get(name)
    if loaded is not None:
        return loaded
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{target} is not a Python file", name=name, path=path)
    module = importlib.util.module_from_spec(spec)
    _add_to_path(os.path.dirname(path))
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    return module


def _module_name(path: str) -> str:
    name = os.path.basename(path).removesuffix(".py").replace(".", "_")
    taken = sys.modules.get(name)
    if name in sys.stdlib_module_names or (taken is not None and not _is_file_of(taken, path)):
        return f"{name}_{hashlib.sha256(os.fsencode(path)).hexdigest()[:12]}"
    return name


def _is_file_of(module: ModuleType, path: str) -> bool:
    file = getattr(module, "__file__", None)
    return file is not None and os.path.realpath(file) == path


def _add_to_path(folder: str) -> None:
    if folder not in sys.path:
        sys.path.insert(0, folder)
