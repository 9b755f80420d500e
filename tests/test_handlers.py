"""Handlers: what is declared, how vars become arguments, what a call says, and what is asked for."""

from __future__ import annotations

import datetime
import enum
import functools
import os
import pickle
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Annotated, Any, Literal, NewType, Optional

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from trispool import Ignore, Outcome, Retry, SpoolUnavailable, TaskRefused, calling, producer
from trispool.arguments import ArgumentError, Plan
from trispool.calling import Result, call, call_async, call_legacy, find, legacy_env
from trispool.handlers import Handler, handler, registry
from trispool.loading import load
from trispool.spooldir import SpoolDirectory
from trispool.task import Task as RealTask

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from trispool import Task  # as a handler file checked by ruff imports it


@pytest.fixture(autouse=True)
def clean_registry() -> Iterator[None]:
    registry.clear()
    yield
    registry.clear()
    producer.use("", None)


@pytest.fixture
def spool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SpoolDirectory]:
    directory = SpoolDirectory(tmp_path / "spool")
    monkeypatch.setenv("TRISPOOL_SPOOL", directory.path)
    yield directory
    directory.close()


def run(function: Callable[..., Any], vars: Mapping[bytes, bytes] | None = None, body: bytes = b"") -> Result:
    return call(Handler(function, name="it"), vars or {}, body, None)


class Colour(enum.Enum):
    RED = "red"
    BLUE = 2


UserId = NewType("UserId", int)


# Vars to arguments


@pytest.mark.parametrize(
    ("annotation", "value", "expected"),
    [
        (str, b"/\xc3\xa4", "/ä"),
        (Any, b"x", "x"),
        (object, b"x", "x"),
        (bytes, b"\xff\0", b"\xff\0"),
        (int, b"-12", -12),
        (float, b"1.5e3", 1500.0),
        (float, b"2", 2.0),
        (bool, b"true", True),
        (bool, b"FALSE", False),
        (bool, b"1", True),
        (bool, b"0", False),
        (bool, b"on", True),
        (bool, b"no", False),
        (list, b"[1,2]", [1, 2]),
        (list[int], b"[1,2]", [1, 2]),
        (dict[str, int], b'{"a":1}', {"a": 1}),
        (tuple[int, ...], b"[1,2]", (1, 2)),
        (set[int], b"[1,1]", {1}),
        (Literal["fast", "slow", 3], b"fast", "fast"),
        (Literal["fast", "slow", 3], b"3", 3),
        (Colour, b"red", Colour.RED),
        (Colour, b"2", Colour.BLUE),
        (UserId, b"7", 7),
        (Annotated[int, "a note"], b"7", 7),
        (Optional[int], b"7", 7),  # noqa: UP045 # the old spelling, too
        (Optional[int], b"null", None),  # noqa: UP045
        (int | None, b"", None),
        (str | None, b"null", "null"),
        (str | None, b"", ""),
        (dict[str, int] | None, b"null", None),
        (int | str, b"7", 7),
        (str | int, b"7", 7),
        (int | str, b"seven", "seven"),
        (int | list[int], b"[7]", [7]),
        (Any | None, b"x", "x"),
    ],
)
def test_a_var_becomes_what_its_annotation_says(annotation: object, value: bytes, expected: object) -> None:
    def function(x):  # type: ignore[no-untyped-def] # it gets one
        got.append(x)

    got: list[object] = []
    function.__annotations__ = {"x": annotation}
    assert run(function, {b"x": value}) is calling.OK
    assert got == [expected]
    assert type(got[0]) is type(expected)


@pytest.mark.parametrize(
    ("annotation", "value", "message"),
    [
        (str, b"\xff", "UTF-8 text"),
        (int, b"1.5", "a whole number"),
        (int, b"", "a whole number"),
        (int, b"1" * 5000, "a whole number"),
        (float, b"x", "a number"),
        (bool, b"maybe", "true or false"),
        (list[int], b'{"a":1}', "a JSON array"),
        (dict[str, int], b"[1]", "a JSON object"),
        (dict[str, int], b"[" * 100_000, "a JSON object"),
        (set[int], b"[[1]]", "a JSON array"),
        (Literal["fast", "slow"], b"other", "one of fast, slow"),
        (Colour, b"green", "one of red, 2"),
        (int | None, b"x", "a whole number"),
        (int | list[int], b"x", "a whole number or a JSON array"),
        (datetime.datetime, b"2024-01-01", "JSON"),
    ],
)
def test_an_attempt_fails_when_a_var_does_not_fit(annotation: object, value: bytes, message: str) -> None:
    def function(x):  # type: ignore[no-untyped-def] # it gets one
        pytest.fail("it was called")

    function.__annotations__ = {"x": annotation}
    result = run(function, {b"x": value})
    assert result.code == "failed"
    assert result.error is not None
    assert result.error.startswith("handler it: var x=")
    assert result.error.endswith(f": {message} expected")
    assert len(result.error) < 200
    assert result.traceback is None


def test_a_missing_var_is_the_default_or_none_or_a_failure() -> None:
    def function(a: int = 3, *, b: str | None, c: list[int] | None = None) -> None:
        got.append((a, b, c))

    def strict(a: int) -> None:
        pytest.fail("it was called")

    got: list[object] = []
    assert run(function) is calling.OK
    assert got == [(3, None, None)]
    assert run(strict) == Result("failed", "handler it: var a is missing: a whole number expected")


def test_vars_nobody_names_are_left_out_unless_there_are_keywords() -> None:
    vars = {b"a": b"1", b"b": b"2", b"\xff": b"\xfe", b"at": b"5", b"handler": b"it", b"body": b"var"}

    def few(a: int) -> None:
        got.append(a)

    def all_of_them(a: int, **rest: object) -> None:
        got.append((a, rest))

    got: list[object] = []
    assert run(few, vars) is calling.OK
    assert run(all_of_them, vars) is calling.OK
    assert got == [1, (1, {"b": "2", "\udcff": "\udcfe", "body": "var"})]


def test_keywords_are_converted_when_they_have_an_annotation() -> None:
    def function(**rest: int) -> None:
        got.append(rest)

    got: list[object] = []
    assert run(function, {b"b": b"2", b"c": b"3"}) is calling.OK
    assert got == [{"b": 2, "c": 3}]
    result = run(function, {b"b": b"x"})
    assert result.error == "handler it: var b=b'x': a whole number expected"


def test_special_keys_are_readable_when_a_parameter_has_their_name() -> None:
    def function(at: float, priority: int = 0, handler: str = "") -> None:
        got.append((at, priority, handler))

    got: list[object] = []
    assert run(function, {b"at": b"1.5", b"priority": b"2", b"handler": b"it"}) is calling.OK
    assert got == [(1.5, 2, "it")]


@pytest.mark.parametrize(
    ("annotation", "default", "body", "expected"),
    [
        (None, None, b"\xff", b"\xff"),
        (bytes, None, b"\xff", b"\xff"),
        (str, None, "ä".encode(), "ä"),
        (dict, None, b'{"a":1}', {"a": 1}),
        (bytes, None, b"", b""),
        (bytes, b"default", b"", b"default"),
        (bytes, b"default", b"x", b"x"),
    ],
)
def test_body_becomes_what_its_annotation_says(
    annotation: object, default: bytes | None, body: bytes, expected: object
) -> None:
    def function(body):  # type: ignore[no-untyped-def] # it gets one
        got.append(body)

    got: list[object] = []
    if annotation is not None:
        function.__annotations__ = {"body": annotation}
    if default is not None:
        function.__defaults__ = (default,)
    assert run(function, {}, body) is calling.OK
    assert got == [expected]


def test_the_task_is_passed_when_a_parameter_is_annotated_so() -> None:
    task = RealTask("id", {b"n": b"1"})

    def plain(t: Task, n: int) -> None:  # the name exists for type checkers only
        got.append((t, n))

    def optional(t: Optional[Task] = None) -> None:  # noqa: UP045 # the old spelling, too
        got.append(t)

    got: list[object] = []
    for function in (plain, optional):
        declared = Handler(function)
        assert declared.takes_task
        assert call(declared, task.vars, b"", task) is calling.OK
    assert got == [(task, 1), task]
    assert not Handler(lambda x: x, name="it").takes_task


def test_positional_parameters_and_objects_are_called_right() -> None:
    def positional(a: int, b: str = "b", /, c: str = "c", *more: str) -> None:
        got.append((a, b, c, more))

    class Callable:
        def __call__(self, a: int) -> None:
            got.append(a)

    got: list[object] = []
    assert run(positional, {b"a": b"1", b"c": b"x", b"more": b"y"}) is calling.OK
    assert run(Callable(), {b"a": b"2"}) is calling.OK
    assert run(functools.partial(positional, 7), {b"b": b"x"}) is calling.OK
    assert got == [(1, "b", "x", ()), 2, (7, "x", "c", ())]


def test_an_annotation_that_is_unknown_fails_the_attempt_and_says_which() -> None:
    def function(a: Nowhere) -> None:  # type: ignore[name-defined] # noqa: F821 # that is the point
        pytest.fail("it was called")

    result = run(function, {b"a": b"1"})
    assert result.code == "failed"
    assert "the annotation of parameter a" in str(result.error)
    assert "'Nowhere'" in str(result.error)
    assert not Handler(function, name="it").takes_task


@given(st.dictionaries(st.binary(max_size=5), st.binary(max_size=30)), st.binary(max_size=10))
def test_vars_of_any_kind_give_arguments_or_the_error(vars: dict[bytes, bytes], body: bytes) -> None:
    try:
        args, kwargs = PLAN.arguments({**vars, b"c": body}, body, None)
    except ArgumentError:
        return
    assert not args
    assert isinstance(kwargs.get("a", 0), int)
    assert isinstance(kwargs.get("c"), set | None)
    assert all(isinstance(key, str) for key in kwargs)


def _planned(a: int = 0, b: str | None = None, c: set[str] | None = None, d: Any = 1, **rest: str) -> None: ...


PLAN = Plan(_planned)


# What a call says


def test_a_call_says_ok_when_the_handler_returns_anything() -> None:
    for value in (None, 0, False, -1, "x", object()):
        assert run(lambda value=value: value) is calling.OK


def test_a_call_says_what_the_handler_says() -> None:
    def raising(error: BaseException) -> Callable[[], None]:
        def function() -> None:
            raise error

        return function

    assert run(lambda: Ignore("not mine")) == Result("ignore", "not mine")
    assert run(raising(Ignore())) == Result("ignore")
    assert run(lambda: Ignore) == Result("ignore")
    assert run(lambda: Retry) == Result("retry")
    assert run(raising(Retry("later", at=5.5))) == Result("retry", "later", retry_at=5.5)
    assert run(lambda: Retry(at=5)) == Result("retry", retry_at=5)
    assert run(lambda: Outcome.RETRY) == Result("retry")
    assert run(lambda: Outcome.IGNORE) == Result("ignore")
    assert run(lambda: Outcome.OK) is calling.OK


def test_retry_in_is_from_now() -> None:
    before = time.time()
    retry_at = run(lambda: Retry(in_=60)).retry_at
    assert retry_at is not None
    assert before + 60 <= retry_at <= time.time() + 60


def test_retry_refuses_what_is_no_time() -> None:
    with pytest.raises(ValueError, match="not both"):
        Retry(in_=1, at=1)
    for wrong in (-1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="seconds"):
            Retry(in_=wrong)
        with pytest.raises(ValueError, match="seconds"):
            Retry(at=wrong)
    with pytest.raises(TypeError, match="in_=60"):
        Retry(60)  # type: ignore[arg-type] # a mistake that is easily made
    with pytest.raises(TypeError, match="text"):
        Ignore(1)  # type: ignore[arg-type]


class Rude(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no")


class Odd(BaseException):
    """Neither an Exception nor one of Python's own."""


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ValueError("bad"), "ValueError: bad"),
        (ValueError(), "ValueError"),
        (SystemExit(3), "SystemExit: 3"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
        (Odd("x"), "tests.test_handlers.Odd: x"),
        (Rude(), "tests.test_handlers.Rude"),
        (ValueError("\udcff"), "ValueError: \\udcff"),
        (ValueError("x" * 10_000), "ValueError: " + "x" * 1988 + "…"),
        (ExceptionGroup("several", [ValueError("a")]), "ExceptionGroup: several (1 sub-exception)"),
    ],
)
def test_an_exception_is_a_failed_attempt_and_never_gets_through(error: BaseException, told: str) -> None:
    def function() -> None:
        raise error

    def legacy(env: object) -> None:
        raise error

    attempts: list[Callable[[], Result]] = [lambda: run(function), lambda: call_legacy(legacy, {})]
    for attempt in attempts:
        error.__traceback__ = None
        result = attempt()
        assert (result.code, result.error) == ("failed", told)
        assert result.traceback is not None
        assert "raise error" in result.traceback
        assert "calling.py" not in result.traceback
        result.traceback.encode()
        assert len(result.traceback) < 20_000


def test_a_coroutine_that_nobody_runs_is_a_failed_attempt() -> None:
    async def work() -> None: ...

    assert "async def" in str(run(lambda: work()).error)


async def test_an_async_handler_is_awaited_and_says_the_same() -> None:
    async def function(n: int) -> object:
        await trio.lowlevel.checkpoint()
        if n == 1:
            raise Retry(at=5)
        if n == 2:
            raise ValueError("two")
        if n == 3:
            sys.exit(3)
        return None if n else Ignore("zero")

    declared = Handler(function)
    assert declared.is_async
    said = [await call_async(declared, {b"n": b"%d" % n}, b"", None) for n in range(5)]
    assert [(result.code, result.error) for result in said] == [
        ("ignore", "zero"),
        ("retry", None),
        ("failed", "ValueError: two"),
        ("failed", "SystemExit: 3"),
        ("ok", None),
    ]
    assert (await call_async(declared, {}, b"", None)).code == "failed"


async def test_cancellation_goes_through_an_async_handler(autojump_clock: trio.testing.MockClock) -> None:
    async def simple() -> None:
        await trio.sleep_forever()

    async def with_a_nursery() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            await trio.sleep_forever()

    for function in (simple, with_a_nursery):
        with trio.move_on_after(1) as scope:
            await call_async(Handler(function), {}, b"", None)
            pytest.fail("the cancellation was swallowed")
        assert scope.cancelled_caught


# Legacy handlers


@pytest.mark.parametrize(
    ("returned", "code"),
    [
        (-2, "ok"),
        (-1, "retry"),
        (0, "ignore"),
        (1, "retry"),
        (True, "retry"),
        (False, "ignore"),
        (None, "retry"),
        (-2.0, "retry"),
        ("-2", "retry"),
        (4294967294, "ok"),
        (4294967296, "ignore"),
        (2**63 - 2, "ok"),
        (2**63, "retry"),
        (2**64 - 2, "retry"),
        (-(2**63) - 2, "retry"),
        (Outcome.OK, "ok"),
    ],
)
def test_a_legacy_handler_is_understood_as_by_uwsgi(returned: object, code: str) -> None:
    assert call_legacy(lambda env: returned, {}).code == code


def test_a_legacy_handler_gets_the_env_of_uwsgi() -> None:
    vars = {b"a": b"b", b"body": b"var"}
    assert legacy_env(b"name", vars, b"") == {"spooler_task_name": b"name", b"a": b"b", b"body": b"var"}
    assert legacy_env(b"name", vars, b"x") == {
        "spooler_task_name": b"name",
        b"a": b"b",
        b"body": b"var",
        "body": b"x",
    }


# Who runs it


def test_find_goes_by_name_then_uwsgi_then_default() -> None:
    def legacy(env: object) -> int:
        return -2

    assert find({}, None) is None

    @handler
    def one() -> None: ...

    @handler(name="zwei", default=True)
    def two() -> None: ...

    assert find({b"handler": b"one"}, legacy) is one
    assert find({b"handler": b"zwei"}, legacy) is two
    assert find({b"handler": b"two"}, legacy) is legacy
    assert find({}, legacy) is legacy
    assert find({}, None) is two
    assert find({b"handler": b"two"}, None) is two


def test_no_handler_says_what_is_missing() -> None:
    assert calling.no_handler({b"handler": b"x\xff"}) == Result("ignore", "no handler named x\\xff")
    assert calling.no_handler({}).code == "ignore"


def test_name_of_is_what_a_person_knows_it_by() -> None:
    def legacy(env: object) -> int:
        return -2

    assert calling.name_of(Handler(legacy, name="it"), {}) == "it"
    assert calling.name_of(legacy, {}) == "legacy"
    assert calling.name_of(legacy, {b"ud_spool_func": b"encode"}) == "encode"
    assert calling.name_of(functools.partial(legacy), {}) == "partial"


# Declaring


def test_a_handler_is_still_the_function() -> None:
    @handler(retries=5, backoff="exponential", timeout=60, concurrency=10)
    def double(n: int) -> int:
        """Twice."""
        return 2 * n

    assert double(4) == 8
    assert (vars(double)["__name__"], double.__doc__) == ("double", "Twice.")
    assert (double.retries, double.backoff, double.timeout, double.concurrency) == (5, "exponential", 60, 10)
    assert not double.is_async
    assert list(registry) == [double]
    assert not registry.has_async


@handler
def at_module_level() -> str:
    return "here"


def test_a_handler_can_be_pickled() -> None:
    assert pickle.loads(pickle.dumps(at_module_level)) is at_module_level


def test_async_functions_and_objects_are_recognised() -> None:
    class Async:
        async def __call__(self) -> None: ...

    async def function() -> None: ...

    assert Handler(Async(), name="it").is_async
    assert Handler(functools.partial(function), name="it").is_async
    registry.add(Handler(function))
    assert registry.has_async


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"retries": -1}, "retries"),
        ({"retries": 1.5}, "retries"),
        ({"retries": True}, "retries"),
        ({"concurrency": 0}, "concurrency"),
        ({"timeout": -1}, "timeout"),
        ({"timeout": "soon"}, "timeout"),
        ({"timeout": True}, "timeout"),
        ({"timeout": float("nan")}, "timeout"),
        ({"backoff": "sometimes"}, "backoff"),
        ({"backoff": []}, "backoff"),
        ({"backoff": [1, "x"]}, "backoff"),
        ({"backoff": 0}, "backoff"),
        ({"backoff": ["1m", 0]}, "backoff"),
        ({"backoff": "0s"}, "backoff"),
        ({"name": ""}, "name"),
    ],
)
def test_options_that_are_not_possible_are_refused(options: dict[str, Any], key: str) -> None:
    with pytest.raises(ValueError, match=key):
        handler(**options)(at_module_level.function)
    assert not list(registry)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"timeout": 0}, 0),
        ({"timeout": "1m30s"}, 90),
        ({"retries": 0}, 0),
        ({"backoff": 30}, 30),
        ({"backoff": "30s"}, 30),
        ({"backoff": [1, 10.5, "1m"]}, [1, 10.5, 60]),
        ({"backoff": "frequency"}, "frequency"),
    ],
)
def test_options_are_read(options: dict[str, Any], expected: object) -> None:
    declared = handler(**options)(at_module_level.function)
    assert getattr(declared, *options) == expected


def test_generators_are_refused() -> None:
    def generator() -> Iterator[int]:
        yield 1

    with pytest.raises(TypeError, match="generator"):
        handler(generator)


def test_names_are_unique_but_a_module_may_be_loaded_again() -> None:
    def make() -> Handler[[], None]:
        @handler(default=True)
        def same() -> None: ...

        return same

    first = make()
    second = make()
    assert registry.get(b"same") is second is not first
    assert registry.default is second
    with pytest.raises(ValueError, match="same"):
        handler(name="same")(at_module_level.function)
    with pytest.raises(ValueError, match="default"):
        handler(name="other", default=True)(at_module_level.function)
    assert registry.get(b"other") is None
    partial = functools.partial(print)
    handler(name="object")(partial)
    with pytest.raises(ValueError, match="object"):
        handler(name="object")(functools.partial(print))


# Asking for


def encode(path: str, preset: str = "fast", times: list[int] | None = None, body: bytes = b"") -> None:
    got_by_encode.append((path, preset, times, body))


got_by_encode: list[object] = []


def taken(spool: SpoolDirectory, id: str, folder: str = "") -> tuple[Mapping[bytes, bytes], bytes]:
    return spool.read(folder + id)


def test_spool_writes_a_task_that_runs_the_handler_with_the_arguments(spool: SpoolDirectory) -> None:
    declared = handler(encode)
    id = declared.spool("/ä.mov", times=[1, 2], body=b"\xff")
    vars, body = taken(spool, id)
    assert vars == {b"handler": b"encode", b"path": "/ä.mov".encode(), b"times": b"[1,2]"}
    assert find(vars, None) is declared
    got_by_encode.clear()
    assert call(declared, vars, body, None) is calling.OK
    assert got_by_encode == [("/ä.mov", "fast", [1, 2], b"\xff")]


def test_spool_goes_into_the_workers_spool_when_there_is_one(spool: SpoolDirectory, tmp_path: Path) -> None:
    own = SpoolDirectory(tmp_path / "own")
    producer.use("own", own)
    declared = handler(encode)
    assert own.read(declared.spool(path="x"))
    assert own.read(declared.options(spool="own").spool(path="x"))
    assert spool.read(declared.options(spool=spool.path).spool(path="x"))
    with pytest.raises(TaskRefused, match="other"):
        declared.options(spool="other").spool(path="x")
    own.close()


def test_spool_says_what_to_do_when_there_is_no_spool(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    declared = handler(encode)
    monkeypatch.delenv("TRISPOOL_SPOOL", raising=False)
    with pytest.raises(SpoolUnavailable, match="TRISPOOL_SPOOL"):
        declared.spool(path="x")
    monkeypatch.setenv("TRISPOOL_SPOOL", "relative")
    with pytest.raises(SpoolUnavailable, match="absolute"):
        declared.spool(path="x")
    monkeypatch.setenv("TRISPOOL_SPOOL", str(tmp_path / "nowhere"))
    with pytest.raises(SpoolUnavailable, match="nowhere"):
        declared.spool(path="x")


def test_spool_finds_the_directory_again_when_it_was_replaced(spool: SpoolDirectory) -> None:
    declared = handler(encode)
    declared.spool(path="x")
    os.rename(spool.path, f"{spool.path}.old")
    subprocess.run(["rm", "-r", f"{spool.path}.old"], check=True)
    with pytest.raises(SpoolUnavailable):
        declared.spool(path="x")
    fresh = SpoolDirectory(spool.path)
    assert fresh.read(declared.spool(path="x"))
    assert fresh.read(declared.spool(path="x"))
    fresh.close()


def test_spool_says_why_when_the_task_cannot_be_written(spool: SpoolDirectory) -> None:
    declared = handler(encode)
    with open(spool.absolute("3"), "w") as in_the_way:
        in_the_way.write("not a directory")
    with pytest.raises(SpoolUnavailable, match="could not be written"):
        declared.options(priority=3).spool(path="x")
    assert spool.read(declared.spool(path="x"))


def test_options_and_times_are_part_of_the_task(spool: SpoolDirectory) -> None:
    declared = handler(encode)
    at = 4_000_000_000.5
    vars, _ = taken(spool, declared.options(at=at, priority=3).spool(path="x"), "3/")
    assert (vars[b"at"], vars[b"priority"]) == (b"4000000000.5", b"3")
    due = datetime.datetime.fromtimestamp(at, datetime.UTC)
    for id in (declared.spool_at(at, path="x"), declared.spool_at(due, path="x")):
        assert os.stat(spool.absolute(id)).st_mtime == at
    before = time.time()
    for length in (60, datetime.timedelta(minutes=1)):
        mtime = os.stat(spool.absolute(declared.spool_in(length, path="x"))).st_mtime
        assert before + 60 <= mtime + 0.001 <= time.time() + 60.001


def test_times_that_are_none_are_refused(spool: SpoolDirectory) -> None:
    declared = handler(encode)
    with pytest.raises(ValueError, match="time zone"):
        declared.spool_at(datetime.datetime(2040, 1, 1), path="x")
    with pytest.raises(TaskRefused):
        declared.spool_at(-1, path="x")
    with pytest.raises(TaskRefused):
        declared.options(priority=-1).spool(path="x")
    assert not spool.names()


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"path": None},
        {"path": "\udcff"},
        {"path": "x", "other": "y"},
        {"path": "x", "times": "y"},
        {"path": "x", "times": {1: 2}},
        {"path": "x", "times": [object()]},
        {"path": "x", "at": 5},
        {"path": "x", "handler": "other"},
        {"path": "x", "body": 5},
    ],
)
def test_spool_refuses_what_the_handler_could_not_be_called_with(spool: SpoolDirectory, kwargs: dict[str, Any]) -> None:
    with pytest.raises(TypeError):
        handler(encode).spool(**kwargs)
    assert not spool.names()


def test_too_large_a_value_is_refused(spool: SpoolDirectory) -> None:
    with pytest.raises(TaskRefused, match="path"):
        handler(encode).spool(path="x" * 65_536)


VALUES: list[tuple[object, list[object]]] = [
    (str, ["", "null", "ä", "true"]),
    (bytes, [b"", b"\xff"]),
    (int, [0, -5, 2**70]),
    (float, [0.1, 1e300, -0.0]),
    (bool, [True, False]),
    (list[Any], [[], [1, "x", None, {"a": [1.5]}]]),
    (dict[str, Any], [{}, {"ä": None}]),
    (tuple[int, ...], [(), (1, 2)]),
    (set[int], [set(), {1, 2}]),
    (Literal["a", "b"], ["a"]),
    (Colour, [Colour.RED, Colour.BLUE]),
    (int | None, [None, 5]),
    (str | None, [None, "", "null"]),
    (bytes | None, [None, b"", b"null"]),
    (list[int] | None, [None, []]),
]


@pytest.mark.parametrize(("annotation", "values"), VALUES)
def test_arguments_arrive_as_they_were_given(annotation: object, values: list[object]) -> None:
    def function(x, y=None):  # type: ignore[no-untyped-def] # they get one
        ...

    function.__annotations__ = {"x": annotation, "y": annotation}
    plan = Plan(function)
    for value in values:
        for kwargs in ({"x": value}, {"x": value, "y": value}):
            vars, body = plan.encode((), kwargs, {})
            args, arrived = plan.arguments(vars, body, None)
            assert (args, arrived) == ([], {"x": value, **{k: v for k, v in kwargs.items() if v is not None}})


def test_none_is_refused_where_it_could_not_be_told_from_text() -> None:
    def function(x: str | None = "fast", y: int | None = 5) -> None: ...

    plan = Plan(function)
    with pytest.raises(TypeError, match="default"):
        plan.encode((), {"x": None}, {})
    vars, body = plan.encode((), {"y": None}, {})
    assert plan.arguments(vars, body, None) == ([], {"y": None})


def test_a_special_parameter_without_a_default_is_asked_for_by_options(spool: SpoolDirectory) -> None:
    @handler
    def function(priority: int) -> None: ...

    with pytest.raises(TypeError, match="options"):
        function.spool()
    vars, _ = taken(spool, function.options(priority=4).spool(), "4/")
    assert call(function, vars, b"", None) is calling.OK


def test_extra_keywords_travel_when_the_handler_takes_them(spool: SpoolDirectory) -> None:
    @handler
    def function(**rest: str) -> None:
        got.append(rest)

    got: list[object] = []
    vars, body = taken(spool, function.spool(a="1", b="ä"))
    assert call(function, vars, body, None) is calling.OK
    assert got == [{"a": "1", "b": "ä"}]


# Loading


def test_load_takes_files_and_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "neighbour_of_it.py").write_text("VALUE = 7\n")
    (tmp_path / "loaded_by_path.py").write_text(
        "from __future__ import annotations\n"
        "from dataclasses import dataclass\n"
        "from neighbour_of_it import VALUE\n"
        "from trispool import handler\n"
        "@handler\ndef loaded(): return VALUE\n"
    )
    module = load(str(tmp_path / "loaded_by_path.py"))
    assert module.loaded() == 7
    assert load(str(tmp_path / "loaded_by_path.py")) is module
    assert load("loaded_by_path") is module
    assert pickle.loads(pickle.dumps(module.loaded)) is module.loaded
    assert load("trispool.retry").__name__ == "trispool.retry"


def test_load_gives_another_name_when_the_files_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "tasks_of_a_test.py").write_text(f"WHERE = {folder!r}\n")
    (tmp_path / "json.py").write_text("WHERE = 'json'\n")
    first = load(str(tmp_path / "one" / "tasks_of_a_test.py"))
    second = load(str(tmp_path / "two" / "tasks_of_a_test.py"))
    third = load(str(tmp_path / "json.py"))
    assert [module.WHERE for module in (first, second, third)] == ["one", "two", "json"]
    assert load(str(tmp_path / "two" / "tasks_of_a_test.py")) is second
    assert sys.modules["json"] is not third


def test_load_raises_what_the_file_raises_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    path = tmp_path / "broken_for_a_test.py"
    path.write_text("raise SystemExit(3)\n")
    with pytest.raises(SystemExit):
        load(str(path))
    path.write_text("VALUE = 1\n")
    os.utime(path, (1, 1))
    assert load(str(path)).VALUE == 1
    with pytest.raises(FileNotFoundError):
        load(str(tmp_path / "nowhere.py"))
    with pytest.raises(ModuleNotFoundError):
        load("no_such_module_anywhere")


def test_the_package_is_light() -> None:
    heavy = ("trio", "quart", "pydantic", "asyncio", "uwsgi")
    program = f"import sys, trispool; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
