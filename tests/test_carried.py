"""Tasks that come to a worker without a file: to their handlers they are like any others."""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING

import pytest

from tests.worker_support import raw_worker, write_handlers
from trispool.claimed import NotDue
from trispool.packet import new_task
from trispool.spooldir import SpoolDirectory
from trispool.spoolwriter import new_name
from trispool.worker.claims import open_carried
from trispool.worker.frames import Setup

if TYPE_CHECKING:
    from pathlib import Path

    from trispool.task import NewTask
    from trispool.worker.frames import Item

ASYNC = """
    @handler
    async def makes_the_worker_async(): ...
"""

LEGACY = """
    import json, os, uwsgi
    from trispool import handler

    def legacy(env):
        path = env["spooler_task_name"].decode()
        found = uwsgi.spooler_get_task(path)
        print(json.dumps({
            "same": {k: v for k, v in found.items()} == dict(env),
            "absolute": uwsgi.spooler_get_task(f"{uwsgi.spooler_dir().decode()}/%(folder)s{path}") is not None,
            "elsewhere": uwsgi.spooler_get_task("/elsewhere/" + path) is None,
            "another": uwsgi.spooler_get_task(path + "0") is None,
            "jobs": [job.decode() for job in uwsgi.spooler_jobs()],
            "name": path,
            "cwd": os.getcwd(),
        }))
        return int(env[b"return"])
    uwsgi.spooler = legacy
"""


def item(task: NewTask) -> Item:
    name, _ = new_name()
    ref = name if task.priority is None else f"{task.priority}/{name}"
    return (name, ref, (task.payload, task.body)), 1


def test_a_task_whose_time_has_not_come_again_is_for_later() -> None:
    at = time.time() + 100
    with pytest.raises(NotDue) as caught:
        open_carried((new_task({"at": str(at)}).payload, b""))
    assert caught.value.at == at
    assert open_carried((new_task({"at": "7"}).payload, b"")).at == 7.0


@pytest.mark.parametrize("priority", [None, 7])
@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize(("value", "code"), [(-2, "ok"), (-1, "retry"), (0, "ignore")])
def test_a_uwsgi_handler_finds_its_task_as_if_it_had_a_file(
    value: int, code: str, kind: str, priority: int | None, tmp_path: Path
) -> None:
    folder = "" if priority is None else f"{priority}/"
    source = LEGACY % {"folder": folder} + (ASYNC if kind == "async" else "")
    handlers = write_handlers(tmp_path, source)
    spool = tmp_path / "spool"
    SpoolDirectory(spool).close()
    first = item(new_task({"return": str(value)}, b"body", priority=priority))
    second = item(new_task({"return": str(value)}, priority=priority))
    with raw_worker(Setup(imports=(handlers,), directory=str(spool))) as worker:
        worker.run(first, second)
        assert [report.code for report in worker.reports(2)] == [code, code]
        for ((name, ref, _), _), (_, line) in zip((first, second), worker.read_lines(2), strict=True):
            told = json.loads(line)
            assert told == {
                "same": True,
                "absolute": True,
                "elsewhere": True,
                "another": True,
                "jobs": [str(spool / ref)],
                "name": name,
                "cwd": str(spool / folder),
            }


def test_a_task_without_a_file_has_the_time_that_it_was_asked_for(tmp_path: Path) -> None:
    handlers = write_handlers(
        tmp_path,
        """
        from trispool import Task, handler
        @handler(default=True)
        def h(task: Task): print(task.at, task.priority)
        """,
    )
    with raw_worker(Setup(imports=(handlers,))) as worker:
        worker.run(item(new_task({"n": "1"}, at=1_700_000_000.25, priority=4)), item(new_task({"n": "1"})))
        assert [report.code for report in worker.reports(2)] == ["ok", "ok"]
        assert [line for _, line in worker.read_lines(2)] == ["1700000000.25 4", "None None"]


def test_what_a_handler_does_to_the_file_that_it_does_not_have_harms_nobody(tmp_path: Path) -> None:
    handlers = write_handlers(
        tmp_path,
        """
        import os, uwsgi
        def legacy(env):
            os.unlink(env["spooler_task_name"])
        uwsgi.spooler = legacy
        """,
    )
    spool = tmp_path / "spool"
    SpoolDirectory(spool).close()
    with raw_worker(Setup(imports=(handlers,), directory=str(spool))) as worker:
        worker.run(item(new_task({"n": "1"})))
        (report,) = worker.reports(1)
        assert report.code == "failed"
        assert "FileNotFoundError" in str(report.error)
    assert sorted(os.listdir(spool)) == [".trispool"]
