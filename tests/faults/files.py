"""Spool files that are torn or altered, dropped into the directory of a real service.

What is a task is told by a reading of the format that knows nothing of trispool's: `parsed`.
"""

from __future__ import annotations

import json
import os
import struct
import time
from collections import Counter
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from tests.acceptance.harness import LONG, Service, packet, telling_in
from tests.faults.figures import Outcome

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from random import Random

HANDLERS: Final = Path(__file__).parent / "workers" / "as_given.py"

RANDOM_FLIPS: Final = 4000
"""Of one random bit or of several, at scale 1."""

VARS: Final = 120
"""In the largest task, at scale 1."""

GRACE_SECONDS: Final = 5.0
"""So long what may become whole is left alone, as docs say."""


class Made(NamedTuple):
    """A file.

    Attributes:
        kind: How it was made, in words: the row of the table.
        what: Exactly how.
        content: Its bytes.
    """

    kind: str
    what: str
    content: bytes


class Found(NamedTuple):
    """What became of all files.

    Attributes:
        ran: What handlers were given, by the name of the file: digests.
        dead: What was set aside, by the name of the file.
        waiting: The names of those that are where they were.
        reasons: Why which were set aside, by name.
    """

    ran: Mapping[str, Sequence[str]]
    dead: Mapping[str, bytes]
    waiting: set[str]
    reasons: Mapping[str, str]


def parsed(content: bytes) -> tuple[dict[bytes, bytes], bytes] | None:
    """Vars and body of a spool file, or None if it is none: uWSGI's format, read strictly."""
    if len(content) < 4 or content[0] != 17 or content[3] != 0:
        return None
    (size,) = struct.unpack_from("<H", content, 1)
    rest, body = content[4 : 4 + size], content[4 + size :]
    if len(rest) < size:
        return None
    texts: list[bytes] = []
    while rest:
        if len(rest) < 2:
            return None
        (length,) = struct.unpack_from("<H", rest)
        if len(rest) < 2 + length:
            return None
        texts.append(rest[2 : 2 + length])
        rest = rest[2 + length :]
    if len(texts) % 2 or b"" in texts[::2]:
        return None
    return dict(zip(texts[::2], texts[1::2], strict=True)), body


def digest(vars: Mapping[bytes, bytes], body: bytes) -> str:
    """Of a task as its handler is given it."""
    shown = [[key.hex(), value.hex()] for key, value in sorted(vars.items())]
    return sha256(json.dumps([shown, body.hex()]).encode()).hexdigest()


def tasks(scale: float, random: Random) -> list[tuple[dict[str, str], bytes]]:
    """Those that are torn."""
    many = {f"key {number}": "value" * random.randrange(10) for number in range(max(5, round(VARS * min(1, scale))))}
    return [
        ({"n": "1", "name": "Ada", "empty": ""}, b""),
        ({"n": "2", "at": "1700000000", "ünïcode": "ß" * 20}, bytes(range(0, 256, 7))),
        (many, random.randbytes(300)),
    ]


def variants(scale: float, random: Random) -> Iterator[Made]:
    """All the files."""
    for number, (vars, body) in enumerate(tasks(scale, random)):
        whole = packet(vars) + body
        for length in range(len(whole) + 1):
            yield Made("cut off at every length", f"task {number}, {length} of {len(whole)} bytes", whole[:length])
        places = [0, 1, 2, 3, *lengths_in(vars)]
        for place in places:
            for bit in range(8):
                what = f"task {number}, byte {place}, bit {bit}"
                yield Made("every bit of header and lengths flipped", what, flipped(whole, [place * 8 + bit]))
        for _ in range(max(20, round(RANDOM_FLIPS * scale / 3))):
            bits = [random.randrange(len(whole) * 8) for _ in range(random.choice((1, 1, 2, 16)))]
            yield Made("random bits flipped", f"task {number}, bits {bits}", flipped(whole, bits))


def lengths_in(vars: Mapping[str, str]) -> Iterator[int]:
    """Where in the packet of these vars their lengths stand, byte by byte."""
    place = 4
    for text in (text for item in vars.items() for text in item):
        yield from (place, place + 1)
        place += 2 + len(text.encode())


def flipped(content: bytes, bits: Sequence[int]) -> bytes:
    """The same with some bits as they were not."""
    altered = bytearray(content)
    for bit in bits:
        altered[bit // 8] ^= 1 << bit % 8
    return bytes(altered)


def judge(made: Mapping[str, Made], found: Found) -> list[Outcome]:
    """What became of the files, held against what they are."""
    counts: dict[str, Counter[str]] = {}
    violations: dict[str, list[str]] = {}
    for name, file in made.items():
        count = counts.setdefault(file.kind, Counter())
        broken = violations.setdefault(file.kind, [])
        count["tried"] += 1
        task = parsed(file.content)
        count["tasks"] += task is not None
        ran, dead = found.ran.get(name, ()), found.dead.get(name)
        count["ran"] += bool(ran)
        count["set aside"] += dead is not None
        for told in ran:
            if task is None:
                broken.append(f"{file.what}: is no task, and ran")
            elif told != digest(*task):
                broken.append(f"{file.what}: ran with other vars or another body than it has")
        if len(ran) > 1:
            broken.append(f"{file.what}: ran {len(ran)} times")
        if dead is not None:
            if dead != file.content:
                broken.append(f"{file.what}: was altered when it was set aside")
            if task is not None:
                broken.append(f"{file.what}: is a task, and was set aside")
            if not found.reasons.get(name):
                broken.append(f"{file.what}: was set aside without a reason")
        if name in found.waiting:
            broken.append(f"{file.what}: is there still, and is neither run nor set aside")
        elif not ran and dead is None:
            broken.append(f"{file.what}: is gone")
    for name in (found.ran.keys() | found.dead.keys()) - made.keys():
        next(iter(violations.values())).append(f"{name}: nobody made it")
    return [
        Outcome(
            kind,
            count["tried"],
            {"are tasks": count["tasks"], "ran": count["ran"], "set aside": count["set aside"]},
            violations[kind],
        )
        for kind, count in counts.items()
    ]


@dataclass(frozen=True)
class Files:
    """The scenario."""

    title: str = "Torn and altered spool files"
    promise: str = (
        "A file that is a task runs, with the vars and the body that it has; any other is set aside as it is, with a"
        " reason, when it has had time to become whole. None is deleted, none runs with anything else."
    )

    def run(self, scale: float, folder: Path, random: Random) -> list[Outcome]:
        """See `Scenario`."""
        made = {
            f"uwsgi_spoolfile_on_torn_1_{number}_0_1700000000_0": file
            for number, file in enumerate(variants(scale, random), 1)
        }
        with telling_in(folder) as telling:
            service = Service(
                folder, telling, frequency=1, chdir=str(folder), **{"import": [str(HANDLERS)], "durability": "os"}
            )
            try:
                service.start()
                drop(made, service, random)
                await_all(made, service)
                found = look(service)
                service.stop()
            finally:
                service.close()
        return judge(made, found)


def drop(made: Mapping[str, Made], service: Service, random: Random) -> None:
    """Put the files into the directory, each by a rename, in no order."""
    staging = service.folder / "staging"
    staging.mkdir()
    for name in random.sample([*made], len(made)):
        (staging / name).write_bytes(made[name].content)
        os.rename(staging / name, service.spool / name)


def await_all(made: Mapping[str, Made], service: Service) -> None:
    """Wait until no file waits any more, or for so long that those that do will wait for ever."""
    end = time.monotonic() + LONG + GRACE_SECONDS + len(made) / 200
    while time.monotonic() < end and any(service.spool.glob("uwsgi_spoolfile_*")):
        time.sleep(0.2)
    service.wait_until(lambda: not service.status()["running"], "at rest")


def look(service: Service) -> Found:
    """What has become of them."""
    ran: dict[str, list[str]] = {}
    for line in (service.folder / "ran").read_text().splitlines():
        name, _, told = line.partition(" ")
        ran.setdefault(name, []).append(told)
    dead = {path.name: path.read_bytes() for path in (service.spool / ".trispool/dead").iterdir()}
    waiting = {path.name for path in service.spool.glob("uwsgi_spoolfile_*")}
    reasons: dict[str, str] = {}
    cursor = ""
    while True:
        page = service.get(f"/tasks?state=dead&limit=500{cursor}")
        reasons |= {task["id"]: task["last_error"] for task in page["tasks"]}
        if not page["cursor"]:
            break
        cursor = f"&cursor={page['cursor']}"
    return Found(ran, dead, waiting, reasons)


SCENARIO: Final = Files()
