"""The disks that a power cut may leave: made of a trace of what processes did to files until then.

The model, which gives away nothing that POSIX does not promise, but for the three things that SQLite's documentation
("Atomic Commit In SQLite", "Powersafe Overwrite") assumes as well, marked (S):

1. A file's bytes and its length are safe when an `fsync` or `fdatasync` of it has returned that began after the write
   had returned; its time after an `fsync` only. `syncfs` makes all safe. An open, a close, a rename makes nothing safe.
2. What is not safe is there in any part: each sector of 512 bytes is that of the last safe write or of any later one,
   whatever other sectors are, be they of the same write or of earlier ones. (S) A sector is written as a whole, and
   bytes beside those that were written stay as they are.
3. A file may have grown without its content: zeros or garbage are in its place. A file may be cut off or not.
4. A name in a directory (a new file or folder, a link, a name that was removed) is safe when an `fsync` of *that
   directory* has returned; the name of a directory is in its parent. A synced file without a safe name is lost.
5. Names that are not safe are there in any choice ("any"), or, as with a journal for metadata (ext4, XFS, btrfs), in
   the order in which they were made ("in order"): some of the first ones, and with a safe one all before it.
6. (S) A rename is done or not done, as a whole.
7. (S) What is safe stays.

So the disk after a cut is: all that was safe at that moment, and of the rest what a `Choice` takes, calls that had
begun and not returned included. The index of SQLite's log (`-shm`) is shared memory, which no trace tells of; whatever
lies there is garbage.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from tests.faults.sectors import Change, Cut, Timed, Written, put_together
from tests.faults.tracing import unquoted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path
    from random import Random

    from tests.faults.tracing import Call

__all__ = ["CHOICES", "Choice", "History", "Laid", "lay"]


@dataclass(slots=True)
class Named(Change):
    """What names of directories mean: a file or directory, or nothing any more."""

    names: list[tuple[Directory, str, Node | None]]


class Node:
    """A file or a directory, whatever its names are.

    Attributes:
        changes: All of them.
        unsafe: Those that no sync has made safe yet.
    """

    def __init__(self) -> None:
        self.changes: list[Change] = []
        self.unsafe: list[Change] = []

    def change(self, change: Change) -> None:
        """It has been made."""
        self.changes.append(change)
        self.unsafe.append(change)

    def sync(self, begin: int, end: int, *, times: bool) -> None:
        """What had been done when this began is safe when it ended."""
        left: list[Change] = []
        for change in self.unsafe:
            if change.end < begin and (times or not isinstance(change, Timed)):
                change.safe = min(change.safe, end)
            else:
                left.append(change)
        self.unsafe = left


class Directory(Node):
    """A directory; `names` are those of the last moment."""

    def __init__(self) -> None:
        super().__init__()
        self.names: dict[str, Node] = {}


class File(Node):
    """A file; `size` is that of the last moment."""

    def __init__(self) -> None:
        super().__init__()
        self.size = 0


Part = Literal["none", "all", "any", "in order"]


@dataclass(frozen=True, slots=True)
class Choice:
    """What of all that was not safe is on the disk.

    Attributes:
        name: In words.
        names: Of the names.
        content: Of what is in files.
    """

    name: str
    names: Part
    content: Part


CHOICES: Final = (
    Choice("nothing that was not synced", "none", "none"),
    Choice("all, as after kill -9", "all", "all"),
    Choice("names without content", "all", "none"),
    Choice("content without names", "none", "all"),
    Choice("any sectors, names in order", "in order", "any"),
    Choice("any sectors, any names", "any", "any"),
)


class Laid(NamedTuple):
    """Something on a disk.

    Attributes:
        path: Where, below the folder.
        content: What is in a file; None: it is a folder.
        mtime: A file's time, nanoseconds; None: not known.
        same: The path of the same file by another name, which has come before; None: there is none.
    """

    path: str
    content: bytes | None = None
    mtime: int | None = None
    same: str | None = None


class History:
    """What happened below a folder, which was there and empty at its beginning.

    Args:
        calls: All that was done, by the order of their ends.
        root: The folder.
        is_lost: Tells of a sync, by the path of what it was of, that the disk does not make it; to see that this is
            found.

    Attributes:
        end: After all of it.
        syncs: Begins and ends of all syncs of something in the folder.
    """

    def __init__(
        self, calls: Iterable[Call], root: Path, is_lost: Callable[[Call, str], bool] = lambda call, path: False
    ) -> None:
        self._root_path = f"{root}/"
        self._root = Directory()
        self._nodes: dict[Node, None] = {self._root: None}
        self._named: list[Named] = []
        self.end = 0
        self.syncs: list[tuple[int, int]] = []
        for call in calls:
            self.end = max(self.end, call.end + 1)
            if call.result >= 0:
                if call.name in ("fsync", "fdatasync", "syncfs", "sync"):
                    self._sync(call, is_lost)
                else:
                    self._take(call)

    # Reading the trace

    def _take(self, call: Call) -> None:
        match call.name:
            case "open" | "openat" | "creat" if "O_CREAT" in call.arguments or "O_TRUNC" in call.arguments:
                self._open(call)
            case "mkdir" | "mkdirat":
                self._name(call, (self._path(call, 0), Directory()))
            case "rename" | "renameat" | "renameat2":
                source, target = self._path(call, 0), self._path(call, 1)
                self._name(call, (target, self._there_already(source, target)), (source, None))
            case "link" | "linkat":
                source, target = self._path(call, 0), self._path(call, 1)
                self._name(call, (target, self._there_already(source, target)))
            case "unlink" | "unlinkat" | "rmdir":
                self._name(call, (self._path(call, 0), None))
            case "write" | "pwrite64" | "ftruncate":
                self._write(call)
            case "utimensat":
                self._time(call)

    def _open(self, call: Call) -> None:
        path = self._path(call, 0)
        if path is None:
            return
        node = self._find(path)
        if node is None:
            self._name(call, (path, File()))
        elif "O_TRUNC" in call.arguments and isinstance(node, File):
            node.size = 0
            node.change(Cut(call.begin, call.end, 0))

    def _write(self, call: Call) -> None:
        node = self._at(self._below(call.file))
        if not isinstance(node, File):
            return
        if call.name == "ftruncate":
            node.size = int(call.arguments.rpartition(", ")[2])
            node.change(Cut(call.begin, call.end, node.size))
            return
        data = call.strings[0][: call.result]
        # `write` is only used where a file is being made. (If it is not, the last disk is not what is there.)
        offset = int(call.arguments.rpartition(", ")[2]) if call.name == "pwrite64" else node.size
        node.size = max(node.size, offset + len(data))
        node.change(Written(call.begin, call.end, offset, data))

    def _time(self, call: Call) -> None:
        path = self._below(call.file) if ", NULL, [" in call.arguments else self._path(call, 0)
        node = self._at(path)
        if isinstance(node, File):
            seconds, _, rest = call.arguments.rpartition("tv_sec=")[2].partition(", tv_nsec=")
            mtime = int(seconds) * 1_000_000_000 + int(rest.partition("}")[0])
            node.change(Timed(call.begin, call.end, mtime))

    def _sync(self, call: Call, is_lost: Callable[[Call, str], bool]) -> None:
        path = call.file
        everything = call.name in ("syncfs", "sync")
        below = self._below(path)
        if (below is None and not everything) or is_lost(call, path):
            return
        self.syncs.append((call.begin, call.end))
        node = self._find(below) if below is not None else None
        for synced in self._nodes if everything else [node] if node is not None else []:
            synced.sync(call.begin, call.end, times=call.name != "fdatasync")

    def _path(self, call: Call, number: int) -> str | None:
        """One of the paths in the arguments, below the folder; None if it is not there."""
        name = call.strings[number].decode(errors="surrogateescape")
        if not name.startswith("/"):
            # Of the `…at` calls each path stands behind the descriptor that it begins at.
            folders = [unquoted(part.partition(">")[0]) for part in call.arguments.split("<")[1:]]
            if number >= len(folders):
                return None  # it begins at the current directory, which is none of the spool's
            name = f"{folders[number]}/{name}"
        return self._below(os.path.normpath(name))

    def _below(self, path: str) -> str | None:
        return path[len(self._root_path) :] if f"{path}/".startswith(self._root_path) else None

    def _find(self, path: str) -> Node | None:
        node: Node | None = self._root
        for name in path.split("/") if path else ():
            node = node.names.get(name) if isinstance(node, Directory) else None
        return node

    def _at(self, path: str | None) -> Node | None:
        """What is at a path below the folder, which has to be something but for files that are deleted and open."""
        return None if path is None else self._find(path)

    def _there_already(self, source: str | None, target: str | None) -> Node | None:
        node = self._at(source)
        if node is None and target is not None:
            raise ValueError(f"{target} comes from elsewhere: what is in it is not known")
        return node

    def _name(self, call: Call, *names: tuple[str | None, Node | None]) -> None:
        named = Named(call.begin, call.end, [])
        for path, node in names:
            if path is None:
                continue
            folder, _, name = path.rpartition("/")
            directory = self._find(folder)
            if not isinstance(directory, Directory):
                raise ValueError(f"{path}: there is no such folder")
            named.names.append((directory, name, node))
            if node is None:
                directory.names.pop(name, None)
            else:
                directory.names[name] = node
                self._nodes[node] = None
            directory.change(named)
        if named.names:
            self._named.append(named)

    # Making a disk

    def disk(self, cut: float, choice: Choice, random: Random) -> Iterator[Laid]:
        """What is on the disk.

        Args:
            cut: When the power went: what had not begun by then has not happened.
            choice: Of what was not safe.
            random: Chooses, where there is something to choose.

        Yields:
            All that is there, a folder before what is in it.
        """
        share = random.choice((0.1, 0.5, 0.9))
        names: dict[Directory, dict[str, Node]] = {}
        for named in self._there([*self._named], cut, choice.names, random, share):
            assert isinstance(named, Named)
            for directory, name, node in named.names:
                if node is None:
                    names.get(directory, {}).pop(name, None)
                else:
                    names.setdefault(directory, {})[name] = node
        paths: dict[File, str] = {}
        waiting: list[tuple[str, Node]] = [("", self._root)]
        while waiting:
            path, node = waiting.pop()
            if isinstance(node, Directory):
                if path:
                    yield Laid(path)
                waiting += [(f"{path}/{name}" if path else name, below) for name, below in names.get(node, {}).items()]
            elif isinstance(node, File):
                there = self._there(node.changes, cut, choice.content, random, share)
                content, mtime = put_together(there, cut, random, share, torn=choice.content == "any")
                if path.endswith("-shm"):
                    content = random.randbytes(len(content))
                yield Laid(path, content, mtime, paths.get(node))
                paths.setdefault(node, path)

    def _there(self, changes: list[Change], cut: float, part: Part, random: Random, share: float) -> list[Change]:
        begun = [change for change in changes if change.begin < cut]
        first = 0
        if part == "in order":
            safe = max((number for number, change in enumerate(begun, 1) if change.safe < cut), default=0)
            first = random.randint(safe, len(begun))
        return [
            change
            for number, change in enumerate(begun)
            if change.safe < cut
            or part == "all"
            or number < first
            # Which sectors of a write are there is seen to where they are put together.
            or (part == "any" and (isinstance(change, Written) or random.random() < share))
        ]


def lay(disk: Iterable[Laid], folder: Path) -> None:
    """Make a disk, as files and folders in a folder that is there."""
    for path, content, mtime, same in disk:
        place = folder / path
        if content is None:
            place.mkdir(mode=0o700)
        elif same is not None:
            place.hardlink_to(folder / same)
        else:
            place.write_bytes(content)
            place.chmod(0o600)
            if mtime is not None:
                os.utime(place, ns=(mtime, mtime))
