"""Spool files as bytes and names: uWSGI's own format, byte for byte. Pure; `spooldir` does the file work.

A file, as `core/spooler.c`, `uwsgi_spool_request` writes it, is the packet that asked for the task, then its body:

    +------+-----------------+------+----------------------+-----------------+
    | 0x11 | size, u16 LE    | 0x00 | vars (size bytes)    | body, to the    |
    | (17) | of the vars     |      |                      | end of the file |
    +------+-----------------+------+----------------------+-----------------+

Its name is `uwsgi_spoolfile_on_<host>_<pid>_<counter>_<random>_<seconds>_<microseconds>`, all numbers decimal. A host
may contain underscores, so names are read from their end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from trispool.errors import MalformedPacket, MalformedSpoolFile
from trispool.packet import SPOOLER_MODIFIER, decode_vars, encode_packet, fault_in_vars

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "PREFIX",
    "decode",
    "due_at",
    "encode",
    "following_name",
    "is_priority_name",
    "is_spool_name",
    "new_name",
    "order_of",
    "parts",
]

PREFIX: Final = "uwsgi_spoolfile_on_"
"""How the name of every spool file begins (`core/spooler.c`, `spooler_manage_task`)."""

MAKING_SECONDS: Final = 1.0
"""A file is named when its making begins, and its mtime is that of the last write: a large one takes a while."""

_HIGHEST_PRIORITY: Final = 2**63 - 1
"""uWSGI makes a directory of any digits. Those beyond what a database column holds are all run last."""

_MAX_DIGITS: Final = 20
"""The longest decimal number of 64 bits: longer ones were not written by a uWSGI."""


def encode(payload: bytes, body: bytes) -> bytes:
    """The content of a spool file.

    Args:
        payload: The encoded vars, at most 65,535 bytes.
        body: Any bytes.
    """
    return encode_packet(payload) + body


def decode(data: bytes) -> tuple[dict[bytes, bytes], bytes]:
    """Vars and body of a spool file.

    Raises:
        MalformedSpoolFile: It is none; with `incomplete` set if it is the beginning of one.
    """
    _, vars, body = parts(data)
    return vars, body


def parts(data: bytes) -> tuple[bytes, dict[bytes, bytes], bytes]:
    """The encoded vars of a spool file, the same decoded, and its body. Raises as `decode` does."""
    if len(data) < 4 or data[0] != SPOOLER_MODIFIER or data[3] != 0:
        raise _why_not(data)
    end = 4 + (data[1] | data[2] << 8)
    if len(data) < end:
        raise _why_not(data)
    try:
        payload = data[4:end]
        return payload, decode_vars(payload), data[end:]
    except MalformedPacket as error:
        raise MalformedSpoolFile(f"byte {4 + error.offset}: {error}") from None


def _why_not(data: bytes) -> MalformedSpoolFile:
    """What is wrong with a file that has no good header, or less than its header says."""
    if not data:
        return MalformedSpoolFile("the file is empty", incomplete=True)
    if data[0] != SPOOLER_MODIFIER:
        return MalformedSpoolFile(f"byte 0: modifier1 is {data[0]}, a spool file has {SPOOLER_MODIFIER}")
    if len(data) < 4:
        return MalformedSpoolFile(f"only {len(data)} of the 4 bytes of its header are there", incomplete=True)
    if data[3] != 0:
        return MalformedSpoolFile(f"byte 3: modifier2 is {data[3]}, a spool file has 0")
    size = data[1] | data[2] << 8
    # More bytes can only help if those that are there could be the beginning of such vars.
    if fault := fault_in_vars(data[4:], size):
        return MalformedSpoolFile(f"byte {4 + fault[0]}: {fault[1]}")
    return MalformedSpoolFile(f"only {len(data) - 4} of the {size} bytes of its vars are there", incomplete=True)


def new_name(hostname: str, pid: int, counter: int, random: int, seconds: int, microseconds: int) -> str:
    """The name of a new spool file.

    Args:
        hostname: This machine's name, without a "/".
        pid: This process.
        counter: How many names this process has made, this one included.
        random: 0 to 2**31 - 1, as C's `rand` gives.
        seconds: Of the time now, since 1970.
        microseconds: Of the time now, within the second.
    """
    return new_names(hostname, pid, [counter], random, seconds, microseconds)[0]


def new_names(
    hostname: str, pid: int, counters: Iterable[int], random: int, seconds: int, microseconds: int
) -> list[str]:
    """The names of spool files that are made together; see `new_name`."""
    before, after = f"{PREFIX}{hostname}_{pid}_", f"_{random}_{seconds}_{microseconds}"
    return [f"{before}{counter}{after}" for counter in counters]


def following_name(name: str, number: int) -> str:
    """A name that sorts behind `name`, the same but for its counter: to know many names by the first of them.

    Args:
        name: Made by `new_name`.
        number: How many names later; 0 is the name itself.
    """
    start, counter, *rest = name.rsplit("_", 4)
    return "_".join((start, str(int(counter) + number), *rest))


def is_spool_name(name: str) -> bool:
    """Whether a file of this name is a task. A name that is not UTF-8 could not be a task's id, so it is none."""
    return name.startswith(PREFIX) and (name.isascii() or _is_utf8(name))


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:  # os.listdir gives lone surrogates for bytes that are not UTF-8
        return False
    return True


def order_of(name: str, fallback_mtime: float) -> tuple[int, int]:
    """When a task was enqueued: microseconds since 1970, then the writer's counter.

    Args:
        name: The spool file's name.
        fallback_mtime: Its mtime, Unix seconds, for a name that does not tell.
    """
    try:
        _, counter, _, seconds, microseconds = name.rsplit("_", 4)
    except ValueError:
        return int(fallback_mtime * 1_000_000), 0
    digits = counter + seconds + microseconds
    if (
        digits.isdecimal()
        and digits.isascii()
        and counter
        and 0 < len(seconds) < 12
        and 0 < len(microseconds) < 7
        and len(counter) <= _MAX_DIGITS
    ):
        return int(seconds) * 1_000_000 + int(microseconds), int(counter)
    return int(fallback_mtime * 1_000_000), 0


def due_at(at: float, order: tuple[int, int], now: float) -> float:
    """From when on a task may run, Unix seconds: its `at`, but that it does not wait for a clock that was set back.

    A file that was asked for without a time has that of its making. If it was made in the future, it is due: otherwise
    it would wait for as long as the clock was set back. Whoever has its vars sees whether it was asked for with a time.

    Args:
        at: Its mtime.
        order: See `order_of`.
        now: Unix seconds.
    """
    made_at = order[0] / 1_000_000
    return now if made_at - MAKING_SECONDS > now < at <= made_at + MAKING_SECONDS else at


def is_priority_name(name: str) -> int | None:
    """The priority that a directory of this name stands for, or None if it is no priority directory."""
    if not (name.isascii() and name.isdecimal()):
        return None
    digits = name.lstrip("0")
    return int(digits or "0") if len(digits) < len(str(_HIGHEST_PRIORITY)) else _HIGHEST_PRIORITY
