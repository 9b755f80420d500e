"""What is found on a disk after a power cut, held against what had been promised until then. Pure."""

from __future__ import annotations

import re
import struct
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from tests.faults.powerload import Sent, digest

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from tests.faults.tracing import Call

__all__ = ["Found", "Lying", "Promises", "Verdict", "look"]

SLOP: Final = 0.001
"""Seconds by which an `at` may differ: it was sent with three digits."""

_PEER: Final = re.compile(r"\d+<TCP:\[.*->127\.0\.0\.1:(\d+)\]>")
_SAID: Final = re.compile(r"/power/(began|ended|kept)/(.*)")


@dataclass(frozen=True, slots=True)
class Lying:
    """A spool file.

    Attributes:
        place: `waiting`, `held` or `dead`.
        n: The task's name, or None if it is no task.
        digest: Of what it is.
        at: Its time, Unix seconds.
    """

    place: str
    n: str | None
    digest: str
    at: float


@dataclass(slots=True)
class Found:
    """What a disk had come to when a service had run on it, and had ended.

    Attributes:
        ran: What handlers were given: names and digests.
        files: The spool files.
        damaged: Whether the database was found to be.
    """

    ran: list[tuple[str, str]] = field(default_factory=list)
    files: list[Lying] = field(default_factory=list)
    damaged: bool = False


@dataclass(slots=True)
class Verdict:
    """What is to be said of one disk.

    Attributes:
        violations: Broken promises, in words.
        counts: Of tasks that were acknowledged, that had not run until then, that ran again though they had ended, …
    """

    violations: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)


class Promises:
    """What was promised when, as a trace shows it.

    Args:
        calls: The trace.
        sent: What clients sent.

    Attributes:
        sent: The same, and what handlers enqueued.
        moments: When something was promised, in order.
    """

    def __init__(self, calls: Iterable[Call], sent: Sequence[Sent]) -> None:
        self._answers: dict[int, list[int]] = {}
        self._said: dict[str, dict[str, int]] = {"began": {}, "ended": {}, "kept": {}}
        for call in calls:
            if call.name in ("sendto", "sendmsg"):
                self._answer(call)
            elif call.name in ("readlink", "readlinkat"):
                self._say(call)
        self.sent = [*sent]
        for n in self._said["kept"]:
            pad = n * 50
            self.sent.append(Sent(n, "quick", digest(n.encode(), pad.encode(), b""), None, 0, 0))
        for one in sent:
            if one.answer >= len(self._answers[one.port]):
                raise ValueError(f"the answer about {one.n} is not in the trace")
        self.moments = sorted({self._promised(one) for one in self.sent})

    def _answer(self, call: Call) -> None:
        if (peer := _PEER.match(call.arguments)) and call.strings[0].startswith((b"\xff\0\0", b"HTTP/1.1 ")):
            self._answers.setdefault(int(peer[1]), []).append(call.begin)

    def _say(self, call: Call) -> None:
        if call.strings and (said := _SAID.fullmatch(call.strings[0].decode(errors="replace"))):
            self._said[said[1]].setdefault(said[2], call.begin)

    def _promised(self, one: Sent) -> int:
        if one.port:
            return self._answers[one.port][one.answer]
        return self._said["kept"][one.n]

    def awaited(self, cut: int) -> set[str]:
        """What has to run on the disk after a power cut, and has not failed before."""
        return {
            one.n
            for one in self.sent
            if self._promised(one) < cut
            and not self._said_before("ended", one, cut)
            and one.kind not in ("later", "fail")
        }

    def judge(self, cut: int, found: Found) -> Verdict:
        """What was promised until a cut, and what was found."""
        verdict = Verdict()
        ran = Counter(n for n, _ in found.ran)
        files: dict[str, list[Lying]] = {}
        for lying in found.files:
            if lying.n is not None:
                files.setdefault(lying.n, []).append(lying)
            elif lying.place == "dead":
                verdict.counts["set aside"] += 1
            else:
                verdict.violations.append("something waits that is no task, and was not set aside")
        if found.damaged:
            verdict.violations.append("the database was found to be damaged")
        known = {one.n: one for one in self.sent}
        for n, told in (*found.ran, *((lying.n, lying.digest) for lying in found.files if lying.n is not None)):
            if n not in known:
                verdict.violations.append(f"{n}: nobody sent it")
            elif told != known[n].digest:
                verdict.violations.append(f"{n}: it is not what was sent")
        for one in self.sent:
            self._judge(one, cut, ran[one.n], files.get(one.n, []), verdict)
        return verdict

    def _judge(self, one: Sent, cut: int, runs: int, files: list[Lying], verdict: Verdict) -> None:
        def broken(what: str) -> None:
            verdict.violations.append(f"{one.n} ({one.kind}): {what}")

        if runs > 1:
            broken(f"ran {runs} times")
        if runs and files:
            broken("ran, and is there still")
        if len(files) > 1:
            broken(f"is there {len(files)} times")
        if one.kind == "later" and runs:
            broken("ran an hour early")
        if self._promised(one) >= cut:
            return
        verdict.counts["acknowledged"] += 1
        if self._said_before("ended", one, cut):
            verdict.counts["ended, ran again"] += bool(runs or files)
            return
        verdict.counts["to be kept"] += 1
        begun, done = self._operated(one, cut)
        if not runs and not files:
            if "cancel" not in begun:
                broken("was acknowledged and is lost")
            return
        for action in done:
            verdict.counts["operator's acts"] += 1
            verdict.counts["of these undone"] += self._is_undone(action, one, files)
        for lying in files:
            if one.kind not in ("later", "fail"):
                broken(f"does not run, and is {lying.place}")
            if one.at is not None and "reschedule" not in begun and abs(lying.at - one.at) > SLOP:
                broken(f"is due at {lying.at} instead of {one.at}")

    def _said_before(self, word: str, one: Sent, cut: int) -> bool:
        return self._said[word].get(one.n, cut) < cut

    def _operated(self, one: Sent, cut: int) -> tuple[list[str], list[str]]:
        """What had been begun to be done to it, and what had been answered."""
        begun, done = [], []
        for operated in one.operated:
            answers = self._answers[operated.port]
            # It was asked when the answer before had come.
            if answers[operated.answer - 1] < cut:
                begun.append(operated.action)
            if answers[operated.answer] < cut:
                done.append(operated.action)
        return begun, done

    def _is_undone(self, action: str, one: Sent, files: Sequence[Lying]) -> bool:
        match action:
            case "hold":
                # Unless it has been released again.
                is_last = one.operated[-1].action == "hold"
                return is_last and all(lying.place != "held" for lying in files)
            case "release":
                return all(lying.place == "held" for lying in files)
            case "reschedule":
                return one.at is not None and any(abs(lying.at - one.at) < SLOP for lying in files)
            case "cancel":
                return bool(files)
        return False


def look(spool: Path) -> list[Lying]:
    """The spool files of a directory, read without trispool."""
    found = []
    for path in sorted(spool.rglob("uwsgi_spoolfile_on_*")):
        parts = path.relative_to(spool).parts
        place = "waiting"
        if parts[0] == ".trispool":
            place = parts[1]
        if place in ("waiting", "held", "dead"):
            vars, body = _parsed(path.read_bytes())
            told = digest(vars.get(b"n", b""), vars.get(b"pad", b""), body)
            n = vars[b"n"].decode() if b"n" in vars else None
            found.append(Lying(place, n, told, path.stat().st_mtime_ns / 1e9))
    return found


def _parsed(content: bytes) -> tuple[Mapping[bytes, bytes], bytes]:
    if len(content) < 4 or content[0] != 17 or content[3] != 0:
        return {}, b""
    (size,) = struct.unpack_from("<H", content, 1)
    texts, position = [], 4
    while position < 4 + size:
        if position + 2 > len(content):
            return {}, b""
        (length,) = struct.unpack_from("<H", content, position)
        position += 2 + length
        texts.append(content[position - length : position])
    if position != 4 + size or len(content) < position:
        return {}, b""
    return dict(zip(texts[::2], texts[1::2], strict=False)), content[position:]
