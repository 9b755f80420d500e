"""Handlers to start from. Run them with `trispool run --spool spool --import examples/handlers.py`.

Each can be asked for in many ways. The same task from a shell, from Python (in this folder) and through nginx:

    trispool put handler=compress name=app.log.1
    TRISPOOL_SPOOL=/absolute/path/of/spool python -c "import handlers; handlers.compress.spool(name='app.log.1')"
    location /compress { uwsgi_pass 127.0.0.1:3031; uwsgi_modifier1 17;
                         uwsgi_param handler compress; uwsgi_param name $arg_name; }

Two habits are worth keeping. Whoever can reach the spooler chooses the arguments, so handlers take names of things they
know, not paths and addresses. And a task may run twice, when a machine dies between its end and the record of it, so a
handler can be repeated.
"""

from __future__ import annotations

import gzip
import os
import shutil
import urllib.error
import urllib.request

import trio

from trispool import Retry, Task, handler

FOLDER = os.environ.get("EXAMPLE_FOLDER", "files")
"""Where `compress` finds its files."""

HOOKS = {"local": os.environ.get("EXAMPLE_HOOK", "http://127.0.0.1:9000/hook")}
"""Where `deliver` delivers to."""

GROUPS = {"local": [("127.0.0.1", 8080), ("127.0.0.1", 3031)]}
"""What `reach` tries to reach: hosts and TCP ports."""


@handler
def compress(name: str, level: int = 6) -> None:
    """Compress a file and remove the original, as for logs that have been rotated."""
    if os.path.basename(name) != name:
        raise ValueError(f"{name!r} is not the name of a file in {FOLDER}")
    path = os.path.join(FOLDER, name)
    if not os.path.exists(path) and os.path.exists(f"{path}.gz"):
        return  # an earlier run got that far
    with open(path, "rb") as source, gzip.open(f"{path}.part", "wb", compresslevel=level) as target:
        shutil.copyfileobj(source, target)
    os.rename(f"{path}.part", f"{path}.gz")
    os.unlink(path)
    print(f"compressed {path}: {os.stat(f'{path}.gz').st_size} bytes")


@handler(retries=8, backoff="exponential", timeout=60)
def deliver(hook: str, body: bytes, content_type: str = "application/json") -> None:
    """Post the task's body to a web hook. A busy one is asked again when it says, a failing one later and later."""
    request = urllib.request.Request(HOOKS[hook], body, {"Content-Type": content_type})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            print(f"{hook} answered {answer.status}")
    except urllib.error.HTTPError as error:
        wait = error.headers.get("Retry-After", "")
        if error.code in (429, 503) and wait.isdigit():
            raise Retry(f"{hook} is busy", in_=int(wait)) from error
        raise


@handler(concurrency=20, timeout=120)
async def reach(group: str, task: Task) -> None:
    """See which hosts can be reached: many waits at once cost one process next to nothing."""
    hosts = GROUPS[group]
    down = []
    done = 0

    async def look(host: str, port: int) -> None:
        nonlocal done
        try:
            with trio.fail_after(10):
                await (await trio.open_tcp_stream(host, port)).aclose()
        except (OSError, trio.TooSlowError) as error:
            down.append(f"{host} ({error or 'no answer'})")
        done += 1
        await task.progress(done / len(hosts), f"{done} of {len(hosts)}")

    async with trio.open_nursery() as nursery:
        for host, port in hosts:
            nursery.start_soon(look, host, port)
    if down:
        raise RuntimeError(f"cannot be reached: {', '.join(sorted(down))}")


@handler(default=True)
def show(task: Task) -> None:
    """Runs what names no handler: prints what came."""
    print(f"task {task.id}: {dict(task.vars)}, body of {len(task.body)} bytes")
