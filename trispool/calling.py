"""Running a task: who runs it, the call, and what the handler said. This is on the path of every task."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from trispool.handlers import Handler, Ignore, Retry, registry
from trispool.task import Outcome

if TYPE_CHECKING:
    from types import TracebackType

    from trispool.task import Task

__all__ = [
    "Legacy",
    "Result",
    "call",
    "call_async",
    "call_legacy",
    "failed",
    "find",
    "legacy_env",
    "name_of",
    "no_handler",
]

Legacy = Callable[[dict[Any, bytes]], object]
"""What a handler for uWSGI assigns to `uwsgi.spooler`."""

MAX_TRACEBACK: Final = 16_384
"""Characters kept of a traceback, its end: a history row is written for every failed attempt."""

MAX_ERROR: Final = 2_000
"""Characters kept of an error's text."""


@dataclass(frozen=True, slots=True)
class Result:
    """What came of one run.

    Attributes:
        code: `ok`, `retry`, `ignore` or `failed`.
        error: Why, in one line, or None.
        traceback: Where, or None.
        retry_at: When the handler wants to be run again, Unix seconds, or None.
    """

    code: str
    error: str | None = None
    traceback: str | None = None
    retry_at: float | None = None


OK: Final = Result("ok")
RETRY: Final = Result("retry")
IGNORE: Final = Result("ignore")

_OUTCOMES: Final = {Outcome.OK: OK, Outcome.RETRY: RETRY, Outcome.IGNORE: IGNORE}


def find(vars: Mapping[bytes, bytes], spooler: Legacy | None) -> Handler[..., Any] | Legacy | None:
    """Who runs a task.

    Args:
        vars: The task's.
        spooler: `uwsgi.spooler`, or None.

    Returns:
        A `Handler`, or a function with uWSGI's convention, or None if nobody is there for it.
    """
    name = vars.get(b"handler")
    if name is not None:
        found = registry.get(name)
        if found is not None:
            return found
    return spooler if spooler is not None else registry.default


def no_handler(vars: Mapping[bytes, bytes]) -> Result:
    """What is said of a task that `find` finds nobody for: as under uWSGI, it stays."""
    name = vars.get(b"handler")
    if name is None:
        return Result("ignore", "no handler named: the task has no var handler, and there is no default one")
    return Result("ignore", f"no handler named {name.decode(errors='backslashreplace')[:MAX_ERROR]}")


def name_of(found: Handler[..., Any] | Legacy, vars: Mapping[bytes, bytes]) -> str:
    """What the history calls the one that runs a task."""
    if isinstance(found, Handler):
        return found.name
    decorated = vars.get(b"ud_spool_func")
    if decorated is not None:
        return decorated.decode(errors="backslashreplace")
    return str(getattr(found, "__name__", None) or type(found).__name__)


# Native handlers


def call(handler: Handler[..., Any], vars: Mapping[bytes, bytes], body: bytes, task: Task | None) -> Result:
    """Run a task by a handler that is not async.

    Args:
        handler: The handler.
        vars: The task's.
        body: The task's.
        task: The task, needed if `handler.takes_task`.
    """
    try:
        args, kwargs = handler.plan.arguments(vars, body, task)
    except Exception as error:  # no vars, whoever sent them, end a worker
        return _misfit(handler, error)
    try:
        returned = handler.function(*args, **kwargs)
    except BaseException as error:  # SystemExit and its like end the attempt, not the worker
        return _raised(error)
    return OK if returned is None else _returned(returned)


async def call_async(handler: Handler[..., Any], vars: Mapping[bytes, bytes], body: bytes, task: Task | None) -> Result:
    """Run a task by a handler that is async; the same as `call`, but that cancellation goes through."""
    try:
        args, kwargs = handler.plan.arguments(vars, body, task)
    except Exception as error:  # no vars, whoever sent them, end a worker
        return _misfit(handler, error)
    try:
        returned = await handler.function(*args, **kwargs)
    except BaseException as error:
        if _is_cancellation(error):
            raise
        return _raised(error)
    return OK if returned is None else _returned(returned)


def _misfit(handler: Handler[..., Any], error: Exception) -> Result:
    return Result("failed", _clean(f"handler {handler.name}: {error}", MAX_ERROR))


def _returned(value: object) -> Result:
    """A value is a success, unless it is one of ours that says otherwise."""
    if isinstance(value, Retry | Ignore):
        return _said(value)
    if isinstance(value, Outcome):
        return _OUTCOMES[value]
    if value is Retry:
        return RETRY
    if value is Ignore:
        return IGNORE
    if inspect.iscoroutine(value):
        value.close()
        return Result("failed", "the handler returned a coroutine that nobody runs: declare it with async def")
    return OK


def _said(said: Retry | Ignore) -> Result:
    reason = _clean(said.reason, MAX_ERROR) or None
    if isinstance(said, Ignore):
        return Result("ignore", reason)
    return Result("retry", reason, retry_at=said.at)


def _raised(error: BaseException) -> Result:
    return _said(error) if isinstance(error, Retry | Ignore) else failed(error)


def _is_cancellation(error: BaseException) -> bool:
    """Whether Trio ends the handler, perhaps among other errors; Trio itself must not be imported here."""
    if isinstance(error, BaseExceptionGroup):
        return any(_is_cancellation(member) for member in error.exceptions)
    return type(error).__name__ == "Cancelled" and type(error).__module__.partition(".")[0] == "trio"


# Handlers for uWSGI


def legacy_env(name: bytes, vars: Mapping[bytes, bytes], body: bytes) -> dict[Any, bytes]:
    """The argument of a handler for uWSGI (`plugins/python/python_plugin.c`, `uwsgi_python_dict_from_spooler_content`).

    Args:
        name: The name of the spool file.
        vars: The task's.
        body: The task's; an empty one is left out.
    """
    if body:
        return {"spooler_task_name": name, **vars, "body": body}
    return {"spooler_task_name": name, **vars}


def call_legacy(function: Legacy, env: dict[Any, bytes]) -> Result:
    """Run a task by a handler for uWSGI.

    uWSGI takes -2 as done and 0 as "not mine"; all else means "again" (`core/spooler.c`, `spooler_manage_task`).
    """
    try:
        returned = function(env)
    except BaseException as error:  # uWSGI prints it and retries; after a SystemExit it starts a new spooler
        return failed(error)
    if returned == -2 and type(returned) is int:
        return OK
    return _legacy_result(returned)


def _legacy_result(returned: object) -> Result:
    if not isinstance(returned, int):
        return Result("retry", f"returned {_describe(returned)}, not a number: uWSGI takes that as SPOOL_RETRY")
    if not -(2**63) <= returned < 2**63:
        return RETRY  # PyLong_AsLong fails with -1
    number = returned & 0xFFFFFFFF  # it is cut to a C int
    if number == 0xFFFFFFFE:
        return OK
    return RETRY if number else IGNORE


# What is told of errors


def failed(error: BaseException) -> Result:
    """The result of a run that ended by an exception."""
    trace: TracebackType | None = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
        trace = trace.tb_next
    try:
        lines = traceback.format_exception(type(error), error, trace)
    except Exception:  # an exception whose own methods fail
        lines = traceback.format_tb(trace)
    return Result("failed", _clean(_describe_error(error), MAX_ERROR), _clean("".join(lines), MAX_TRACEBACK, end=True))


def _describe_error(error: BaseException) -> str:
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    try:
        text = str(error)
    except Exception:
        text = ""
    return f"{name}: {text}" if text else name


def _describe(value: object) -> str:
    try:
        return repr(value)[:100]
    except Exception:
        return f"a {type(value).__name__}"


def _clean(text: str, limit: int, *, end: bool = False) -> str:
    """Shorten, and make sure that it can be encoded: surrogates stand for bytes that are not UTF-8."""
    if len(text) > limit:
        text = "…" + text[-limit:] if end else text[:limit] + "…"
    return text if text.isascii() else text.encode(errors="backslashreplace").decode()
