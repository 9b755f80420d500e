"""The handler API: declare, look up, call, and ask for.

    @handler(retries=5, backoff="exponential", timeout=60)
    def encode(path: str, preset: str = "fast", body: bytes = b"") -> None: ...

    encode.spool(path="/a.mov")        # now, in some worker
    encode("/a.mov")                   # here: it is still the plain function

A task says by its var `handler` who is to run it. Without one that is known it is for `uwsgi.spooler`, if the handlers
set it, else for the handler declared with `default=True`. How vars become arguments is told in `trispool.arguments`.

What a handler says is a `Result`; nothing it raises gets through to the worker, not even `SystemExit`.
"""

from __future__ import annotations

import functools
import inspect
import time
from typing import TYPE_CHECKING, Any, Final, Generic, ParamSpec, TypeVar, overload

from trispool.arguments import Plan
from trispool.quantities import read_seconds

if TYPE_CHECKING:
    import datetime
    from collections.abc import Callable, Iterator, Sequence

    from trispool.retry import Backoff

__all__ = ["Handler", "Ignore", "Options", "Registry", "Retry", "handler", "registry"]

P = ParamSpec("P")
R = TypeVar("R", covariant=True)


class Retry(Exception):
    """Raised or returned by a handler: run the task again.

    Args:
        reason: Why, for the history.
        in_: Seconds from now.
        at: Unix seconds. Without `in_` and `at` the handler's or the spool's back-off says when.

    Raises:
        ValueError: Both `in_` and `at` are given, or one is not a time.
        TypeError: The reason is not text.
    """

    def __init__(self, reason: str = "", *, in_: float | None = None, at: float | None = None) -> None:
        super().__init__(_checked_reason(reason))
        if in_ is not None and at is not None:
            raise ValueError("Retry takes in_ or at, not both")
        given = at if in_ is None else in_
        if given is not None and not 0 <= given < float("inf"):
            raise ValueError(f"Retry({'at' if in_ is None else 'in_'}={given!r}): seconds from 0 up are expected")
        self.reason = reason
        self.at = at if in_ is None else time.time() + in_


class Ignore(Exception):
    """Raised or returned by a handler: this task is not for me; it stays in the spool.

    Args:
        reason: Why, for the history.
    """

    def __init__(self, reason: str = "") -> None:
        super().__init__(_checked_reason(reason))
        self.reason = reason


def _checked_reason(reason: object) -> object:
    if not isinstance(reason, str):
        raise TypeError(f"the reason must be text, not {reason!r}; a time is given by name, as Retry(in_=60)")
    return reason


class Options:
    """When, how soon and where tasks of a handler are to run; see `Handler.options`."""

    def __init__(
        self,
        handler: Handler[..., Any],
        at: float | datetime.datetime | None,
        priority: int | None,
        spool: str | None,
    ) -> None:
        self._handler = handler
        self._at = _unix_seconds(at)
        self._priority = priority
        self._spool = spool

    def spool(self, *args: object, **kwargs: object) -> str:
        """Ask for a run of the handler with these arguments.

        Returns:
            The task's id.

        Raises:
            TypeError: The handler cannot be called so.
            TaskRefused: The task is too large, or time, priority or spool is not possible.
            SpoolUnavailable: It could not be kept; it will not run.
        """
        # Only producers need these; all else that imports trispool, as the command line, starts 20 ms sooner without.
        from trispool import producer
        from trispool.packet import new_task

        special = {"at": self._at, "priority": self._priority, "spooler": self._spool}
        vars, body = self._handler.plan.encode(args, kwargs, special)
        vars[b"handler"] = self._handler.name.encode()
        return producer.put(new_task(vars, body, at=self._at, priority=self._priority, spool=self._spool)).id


class Handler(Generic[P, R]):
    """A function that runs tasks. Calling it calls the function.

    Attributes:
        name: What the var `handler` must say.
        function: The function.
        is_async: Whether it is a coroutine function; a worker then runs it in a Trio loop.
        retries: How often a failed task is run again before it is given up; None: as the spool says.
        backoff: How long to wait before that; None: as the spool says.
        timeout: Seconds after which a run is cut off, 0: none; None: as the spool says.
        concurrency: How many may run at once in one worker; None: as the spool says.
        default: Whether it runs the tasks that name no handler.

    Raises:
        TypeError: The function is a generator.
        ValueError: An option is not possible.
    """

    __qualname__: str

    def __init__(
        self,
        function: Callable[P, R],
        *,
        name: str | None = None,
        retries: int | None = None,
        backoff: Backoff | str | Sequence[float | str] | None = None,
        timeout: float | str | None = None,
        concurrency: int | None = None,
        default: bool = False,
    ) -> None:
        functools.update_wrapper(self, function)
        self.function = function
        self.name = name if name is not None else getattr(function, "__name__", "")
        self.__qualname__ = getattr(function, "__qualname__", self.name)
        self.is_async = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)
        self.retries = retries
        self.backoff = self._read_backoff(backoff)
        self.timeout = None if timeout is None else self._read_seconds("timeout", timeout)
        self.concurrency = concurrency
        self.default = default
        self._plan: Plan | None = None
        self._check()

    def _check(self) -> None:
        if inspect.isgeneratorfunction(self.function) or inspect.isasyncgenfunction(self.function):
            raise TypeError(f"handler {self.name} is a generator: calling it would run nothing")
        if not self.name:
            raise ValueError(f"{self.function!r} has no name: give one by name=")
        if self.retries is not None and (not _is_int(self.retries) or self.retries < 0):
            raise ValueError(f"handler {self.name}: retries={self.retries!r}, a whole number from 0 up is expected")
        if self.concurrency is not None and (not _is_int(self.concurrency) or self.concurrency < 1):
            raise ValueError(f"handler {self.name}: concurrency={self.concurrency!r}, a number from 1 up is expected")

    def _read_seconds(self, key: str, value: object) -> float:
        try:
            return read_seconds(value)
        except ValueError:
            raise ValueError(
                f'handler {self.name}: {key}={value!r}, a length of time as 90, "30s" or "1h30m" is expected'
            ) from None

    def _read_backoff(self, value: Backoff | str | Sequence[float | str] | None) -> Backoff | None:
        if value is None:
            return None
        if value == "frequency":
            return "frequency"
        if value == "exponential":
            return "exponential"
        if isinstance(value, str | float | int):
            lengths = [self._read_seconds("backoff", value)]
        else:
            lengths = [self._read_seconds("backoff", item) for item in value]
        if not lengths or 0 in lengths:
            raise ValueError(f"handler {self.name}: backoff={value!r}, it would not wait")
        return lengths[0] if isinstance(value, str | float | int) else lengths

    @property
    def plan(self) -> Plan:
        """How vars become arguments. Made at first use: only then are all names in the annotations sure to exist.

        Raises:
            TypeError: An annotation cannot be resolved.
        """
        if self._plan is None:
            self._plan = Plan(self.function)
        return self._plan

    @property
    def takes_task(self) -> bool:
        """Whether the function wants the `Task`; False, too, if that cannot be told: calling it then says why."""
        try:
            return self.plan.takes_task
        except TypeError:
            return False

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return self.function(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<handler {self.name}: {self.__module__}.{self.__qualname__}>"

    def __reduce__(self) -> str:
        # By name, as functions are: the module attribute is the handler, not the function.
        return self.__qualname__

    def options(
        self, *, at: float | datetime.datetime | None = None, priority: int | None = None, spool: str | None = None
    ) -> Options:
        """Say more than the arguments: `encode.options(priority=1).spool(path="/a.mov")`.

        Args:
            at: Not before this time: Unix seconds or an aware datetime.
            priority: From 0 up; smaller runs first, none last.
            spool: The absolute directory of another spool.
        """
        return Options(self, at, priority, spool)

    def spool(self, /, *args: object, **kwargs: object) -> str:
        """Ask for a run of the handler with these arguments; see `Options.spool`."""
        return Options(self, None, None, None).spool(*args, **kwargs)

    def spool_at(self, when: float | datetime.datetime, /, *args: object, **kwargs: object) -> str:
        """The same, but not before a time.

        Args:
            when: Unix seconds or an aware datetime.
            args: The handler's.
            kwargs: The handler's.
        """
        return Options(self, when, None, None).spool(*args, **kwargs)

    def spool_in(self, seconds: float | datetime.timedelta, /, *args: object, **kwargs: object) -> str:
        """The same, but not before so many seconds have passed.

        Args:
            seconds: From now, or a timedelta.
            args: The handler's.
            kwargs: The handler's.
        """
        length = seconds if isinstance(seconds, int | float) else seconds.total_seconds()
        return Options(self, time.time() + length, None, None).spool(*args, **kwargs)


class Registry:
    """The handlers that this process knows.

    Attributes:
        default: Who runs tasks that name no handler, or None.
    """

    def __init__(self) -> None:
        self.default: Handler[..., Any] | None = None
        self._by_name: dict[bytes, Handler[..., Any]] = {}
        self.get = self._by_name.get  # by name, bytes: bound once, since it is asked for every task

    def add(self, handler: Handler[..., Any]) -> None:
        """Register a handler. One from the same place takes its predecessor's: its module was loaded again.

        Raises:
            ValueError: There is another of that name, or another default.
        """
        other = self.get(handler.name.encode())
        if other is not None and not _same_place(other, handler):
            raise ValueError(f"{handler!r} has the name of {other!r}: give one of them another by name=")
        if handler.default and self.default is not None and not _same_place(self.default, handler):
            raise ValueError(f"{handler!r} cannot be the default: {self.default!r} is")
        self._by_name[handler.name.encode()] = handler
        if handler.default:
            self.default = handler

    def __iter__(self) -> Iterator[Handler[..., Any]]:
        return iter(self._by_name.values())

    @property
    def has_async(self) -> bool:
        """Whether some handler needs a Trio loop."""
        return any(handler.is_async for handler in self)

    def clear(self) -> None:
        """Forget all handlers."""
        self._by_name.clear()
        self.default = None


registry: Final = Registry()
"""The handlers that `@handler` has declared."""


@overload
def handler(function: Callable[P, R], /) -> Handler[P, R]: ...
@overload
def handler(
    *,
    name: str | None = None,
    retries: int | None = None,
    backoff: Backoff | str | Sequence[float | str] | None = None,
    timeout: float | str | None = None,
    concurrency: int | None = None,
    default: bool = False,
) -> Callable[[Callable[P, R]], Handler[P, R]]: ...
def handler(function: Callable[..., Any] | None = None, /, **options: object) -> object:
    """Declare a function that runs tasks: `@handler`, or with options `@handler(retries=5)`.

    Args:
        function: The function, sync or async.
        name: What tasks call it; the function's name if not given.
        retries: How often a failed task is run again before it is given up.
        backoff: How long to wait before that: "frequency", "exponential", a length of time (seconds, or text such as
            "90s" or "1h30m"), or a list of such lengths: after the first, second, … attempt, the last for all later.
        timeout: The length of time after which a run is cut off; 0: none, whatever the spool says.
        concurrency: How many may run at once in one worker process.
        default: Run the tasks that name no handler, too.

    Raises:
        ValueError: An option is not possible, or the name is taken.
        TypeError: The function is a generator.
    """
    if function is None:
        return functools.partial(_declare, options)
    return _declare(options, function)


def _declare(options: dict[str, Any], function: Callable[..., Any]) -> Handler[..., Any]:
    declared = Handler(function, **options)
    registry.add(declared)
    return declared


def _same_place(one: Handler[..., Any], other: Handler[..., Any]) -> bool:
    if not (inspect.isroutine(one.function) and inspect.isroutine(other.function)):
        return False  # an object's place is not known
    return (one.__module__, one.__qualname__) == (other.__module__, other.__qualname__)


def _unix_seconds(when: float | datetime.datetime | None) -> float | None:
    if when is None or isinstance(when, int | float):
        return when
    if when.tzinfo is None:
        raise ValueError(f"{when!r} has no time zone, so it is no certain time")
    return when.timestamp()


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
