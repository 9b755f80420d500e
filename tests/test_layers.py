"""The layers of the package: imports go downwards only. Reads the source, imports nothing of it.

    6   cli                                                        words in, exit code out
    5   service                                                    the only composition root
    4   admin                                                      Quart and Hypercorn live here and nowhere else
    3   listener   scanner   dispatcher   pool                     Trio services
    2   store   ledger                                             async face, blocking work in threads
    1b  spooldir   handlers   compat   worker                      standard library only, blocking, never Trio
    1a  packet   spoolfile   schedule   retry   config   metrics   pure: no IO, no clock, no Trio
    0   errors   task   control                                    values

In 0, 1a and 1b a module may also import what stands to its left. In 2 and 3 the modules of one part know each other,
but no other part of their layer: a neighbour is passed in, typed by a Protocol.
"""

from __future__ import annotations

import ast
import sys
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = Path(__file__).parents[1] / "trispool"
MAX_LINES = 400

# Each line is a layer or, of 2 and 3, a part of one. A package stands for all its modules.
LAYERS: dict[str, list[list[str]]] = {
    "0": [["errors", "task", "operating", "control", "printable", "quantities"]],
    "1a": [
        [
            *(
                "cursors",
                "packet",
                "reader",
                "spoolfile",
                "readyqueue",
                "record",
                "schedule",
                "retry",
                "running",
                "backlog",
                "kinds",
                "arguments",
                "packed",
            ),
            *("settings", "configmodel", "configchecks", "config"),
            *("histogram", "tally", "figures", "stats", "health", "httpcounts"),
        ]
    ],
    "1b": [
        [
            "claimed",
            "memory",
            "mounts",
            "folders",
            "privatefiles",
            "tokenfile",
            "staterows",
            "sqlitefile",
            "manyrows",
            "statefile",
            "spoolwriter",
            "spoolscan",
            "spoolshelves",
            "spooldir",
            "writeout",
            "incomingfile",
            "ledgerschema",
            "ledgerfile",
            "ledgersearch",
            "producer",
            "handlers",
            "calling",
            "loading",
            "compat",
            "worker",
        ]
    ],
    "2": [["store"], ["ledger", "writethread"], ["state"]],
    "3": [
        ["bind", "connection", "intake", "room", "openconnections", "acceptor", "pollset", "listener"],
        ["httpbind"],
        ["scanner"],
        ["events"],
        ["workforce", "aftermath", "dispatcher"],
        ["employer", "hand", "pace", "workerlink", "workerproc", "pool"],
    ],
    "4": [["admin"]],
    "5": [
        [
            "unfinished",
            "actions",
            "bulkrun",
            "bulk",
            "listing",
            "metrics",
            "reports",
            "routing",
            "controller",
            "livespool",
            "service",
        ]
    ],
    "6": [["logs", "cli"]],
}
ORDER = list(LAYERS)
TO_THE_LEFT = {"0", "1a", "1b"}

IMPURE = {"asyncio", "random", "select", "socket", "sqlite3", "subprocess", "threading", "time", "trio"}
"""What a pure module has no use for."""

PURE_PACKAGES = {"pydantic"}
"""Packages that layer 1a may use."""

WEB = {"quart", "quart_trio", "hypercorn", "h11", "werkzeug"}

ALLOWED_IN_WORKERS = {"worker": {"msgspec"}, "worker.asyncloop": {"trio"}}
"""Beyond the standard library: frames, and the loop that is loaded only where a handler is async."""


class Place(NamedTuple):
    """Where a module or package stands: layer, part of it, place in it."""

    layer: str
    part: int
    position: int


PLACES = {
    name: Place(layer, part, index)
    for layer, parts in LAYERS.items()
    for part, names in enumerate(parts)
    for index, name in enumerate(names)
}


class Import(NamedTuple):
    """One import: of which module, on which line, and whether it is made when the module is loaded."""

    target: str
    line: int
    at_load: bool


def module_name(path: Path) -> str:
    """`worker.frames` of `trispool/worker/frames.py`; the package itself is the empty name."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


@cache
def imports_of(module: str) -> tuple[Import, ...]:
    """All imports of a module. Those of our own package are named from it: `trispool.task` is `.task`."""
    tree = ast.parse(MODULES[module].read_text())
    late = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        or (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
        for inner in ast.walk(node)
    }
    found: list[Import] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: imports are absolute"
            source = node.module or ""
            names = [
                f"{source}.{alias.name}" if own(f"{source}.{alias.name}") in MODULES else source for alias in node.names
            ]
        else:
            continue
        found += [
            Import(f".{own(name)}" if is_own(name) else name, node.lineno, id(node) not in late) for name in names
        ]
    return tuple(found)


def is_own(name: str) -> bool:
    return name == "trispool" or name.startswith("trispool.")


def own(name: str) -> str | None:
    return name.removeprefix("trispool").removeprefix(".") if is_own(name) else None


def place_of(module: str) -> Place:
    return PLACES[module.partition(".")[0]]


def may_import(importer: str, target: str) -> bool:
    if importer.partition(".")[0] == target.partition(".")[0]:
        return True
    here, there = place_of(importer), place_of(target)
    if here.layer != there.layer:
        return ORDER.index(there.layer) < ORDER.index(here.layer)
    if here.layer in TO_THE_LEFT:
        return there.position < here.position
    return here.part == there.part


def test_every_module_has_a_layer() -> None:
    there = {name.partition(".")[0] for name in MODULES} - {""}
    assert there - PLACES.keys() == set(), "new modules: say where they belong"
    assert PLACES.keys() - there == set(), "these are gone"


@pytest.mark.parametrize("module", [name for name in MODULES if name])
def test_imports_go_downwards(module: str) -> None:
    wrong = [
        f"{module}, line {item.line}: {item.target[1:] or 'the package itself'}"
        for item in imports_of(module)
        if item.target.startswith(".") and (item.target == "." or not may_import(module, item.target[1:]))
    ]
    assert wrong == []


def test_the_package_itself_is_light() -> None:
    own_imports = [item.target[1:] for item in imports_of("") if item.target.startswith(".")]
    assert {place_of(name).layer for name in own_imports} <= {"0", "1a", "1b"}


def foreign_imports(module: str) -> set[str]:
    """The packages, of the standard library or not, that a module imports."""
    return {item.target.partition(".")[0] for item in imports_of(module) if not item.target.startswith(".")}


@pytest.mark.parametrize("module", [name for name in MODULES if name and place_of(name).layer in ("0", "1a")])
def test_pure_modules_do_nothing_to_the_world(module: str) -> None:
    assert foreign_imports(module) & IMPURE == set()
    assert foreign_imports(module) - sys.stdlib_module_names <= PURE_PACKAGES


@pytest.mark.parametrize("module", [name for name in MODULES if name and place_of(name).layer == "1b"])
def test_what_workers_load_is_the_standard_library(module: str) -> None:
    allowed = ALLOWED_IN_WORKERS.get(module, set()) | ALLOWED_IN_WORKERS.get(module.partition(".")[0], set())
    no_packages = {"uwsgi", "uwsgidecorators", "_typeshed"}  # our own stand-ins, and the type checker's
    assert foreign_imports(module) - sys.stdlib_module_names - no_packages <= allowed


def test_the_async_loop_of_workers_is_loaded_only_on_demand() -> None:
    at_load = {item.target for name in MODULES for item in imports_of(name) if item.at_load}
    assert ".worker.asyncloop" not in at_load
    assert ".worker.asyncloop" in {item.target for item in imports_of("worker.bootstrap")}


@pytest.mark.parametrize("module", list(MODULES))
def test_nothing_is_raised_in_except_star(module: str) -> None:
    """In Python 3.11.2, that of Debian 12, it comes out in a group, even if it is alone."""
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.TryStar):
            raised = [inner for handler in node.handlers for inner in ast.walk(handler) if isinstance(inner, ast.Raise)]
            assert not raised


@pytest.mark.parametrize("module", [name for name in MODULES if name.partition(".")[0] != "admin"])
def test_the_web_framework_lives_in_admin_only(module: str) -> None:
    assert foreign_imports(module) & WEB == set()


@pytest.mark.parametrize("module", list(MODULES))
def test_modules_are_short(module: str) -> None:
    assert len(MODULES[module].read_text().splitlines()) < MAX_LINES
