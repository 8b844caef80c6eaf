"""What a file tree may look like after a crash, given what was asked and what was acknowledged.

A step is a dictionary: what the writer logs before it acts (`begin`) and after (`done`, with the errno, 0 for success). The
model knows for each file the bytes that must be there (*sure*: acknowledged by fsync or close) and the writes that may be
there (*open*). For the tree every acknowledged step must be there; one that was cut off or failed may be.
Pure; used by the writer, to choose steps that make sense, and by the verifier, on the log of the writer.
"""

import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

Step = dict[str, Any]


def payload(number: int, size: int) -> bytes:
    """The bytes that step *number* writes: no two steps' are alike."""
    return random.Random(number).randbytes(size)


@dataclass(eq=False)
class Content:
    """A file, whatever its names."""

    sure: bytearray = field(default_factory=bytearray)
    open: list[tuple[int, bytes]] = field(default_factory=list)  # not acknowledged, in their order
    doubtful: list[tuple[int, bytes]] = field(default_factory=list)  # an error was told: there or not
    xattr: str = ""

    @property
    def length(self) -> int:
        """As the writer that has it open sees it when nothing failed."""
        return max([len(self.sure), *(at + len(data) for at, data in self.open)])

    def acknowledge(self) -> None:
        """What was written is safe now; what failed before and lies below it is gone."""
        for at, data in self.open:
            self.doubtful = list(_without(self.doubtful, at, at + len(data)))
            if len(self.sure) < at + len(data):
                self.sure.extend(bytes(at + len(data) - len(self.sure)))
            self.sure[at : at + len(data)] = data
        self.open = []

    def doubt(self) -> None:
        """An error was told: what was not acknowledged may be there or not."""
        self.doubtful += self.open
        self.open = []

    def truncate(self, length: int) -> None:
        """Acknowledged: it ends at *length*."""
        self.open = [(at, data[: length - at]) for at, data in self.open if at < length]
        self.doubtful = [(at, data[: length - at]) for at, data in self.doubtful if at < length]
        if length < len(self.sure):
            del self.sure[length:]
        else:
            self.sure.extend(bytes(length - len(self.sure)))

    def fault(self, found: bytes) -> str:
        """Why *found* cannot be this file's content after a crash; "" when it can."""
        maybe = [*self.doubtful, *self.open]
        lengths = {len(self.sure)} | {max(len(self.sure), at + len(data)) for at, data in maybe}
        if len(found) not in lengths:
            return f"its length is {len(found)}, possible are {sorted(lengths)[:10]}"
        expected = bytes(self.sure[: len(found)])
        expected += bytes(len(found) - len(expected))
        if found == expected:
            return ""
        for at in (at for at in range(len(found)) if found[at] != expected[at]):
            if not any(begin <= at < begin + len(data) and data[at - begin] == found[at] for begin, data in maybe):
                sure = "acknowledged" if at < len(self.sure) else "never written"
                return f"byte {at} of {len(found)} is {found[at]:#x}, {sure} is {expected[at]:#x}"
        return ""


def _without(pieces: Iterable[tuple[int, bytes]], begin: int, end: int) -> Iterable[tuple[int, bytes]]:
    for at, data in pieces:
        if at < begin:
            yield at, data[: begin - at]
        if at + len(data) > end:
            yield max(at, end), data[max(end - at, 0) :]


class Tree:
    """Names below one directory: files, directories, symbolic links."""

    def __init__(self) -> None:
        self.files: dict[str, Content] = {}
        self.directories: set[str] = set()
        self.symlinks: dict[str, str] = {}
        self.handles: dict[int, Content] = {}

    def copy(self) -> "Tree":
        """With the same contents."""
        other = Tree()
        other.files, other.directories = dict(self.files), set(self.directories)
        other.symlinks, other.handles = dict(self.symlinks), dict(self.handles)
        return other

    def begin(self, step: Step) -> None:
        """What may be there as soon as the step was asked for."""
        if step["op"] == "write":
            content = self.handles[step["fd"]]
            content.open.append((step["at"], payload(step["n"], step["size"])))

    def apply(self, step: Step) -> None:
        """The step was acknowledged, or is assumed to have happened."""
        match step:
            case {"op": "create" | "open", "path": path, "fd": fd}:
                self.handles[fd] = self.files.setdefault(path, Content())
            case {"op": "write"}:
                pass
            case {"op": "fsync", "fd": fd}:
                self.handles[fd].acknowledge()
            case {"op": "close", "fd": fd}:
                self.handles.pop(fd).acknowledge()
            case {"op": "truncate", "path": path, "size": size}:
                self.files[path].truncate(size)
            case {"op": "unlink", "path": path}:
                self.files.pop(path, None)
                self.symlinks.pop(path, None)
            case {"op": "mkdir", "path": path}:
                self.directories.add(path)
            case {"op": "rmdir", "path": path}:
                self.directories.discard(path)
            case {"op": "symlink", "path": path, "to": to}:
                self.symlinks[path] = to
            case {"op": "link", "path": path, "to": to}:
                self.files[to] = self.files[path]
            case {"op": "rename", "path": path, "to": to}:
                self._rename(path, to)
            case {"op": "setxattr", "path": path, "value": value}:
                self.files[path].xattr = value
            case _:
                raise AssertionError(step)

    def _rename(self, path: str, to: str) -> None:
        if self.files.get(path) is not None and self.files.get(path) is self.files.get(to):
            return  # two names of one file: nothing happens
        self.files[to] = self.files.pop(path)

    def fail(self, step: Step) -> None:
        """The step was answered with an error: what a handle had not acknowledged is doubtful."""
        if step["op"] in ("write", "fsync", "close"):
            self.handles[step["fd"]].doubt()
            if step["op"] == "close":
                del self.handles[step["fd"]]
        elif step["op"] == "truncate":
            self.files[step["path"]].doubt()
        elif step["op"] == "create" and step.get("happened"):
            self.files.setdefault(step["path"], Content())

    def fault(self, found: "Found") -> str:
        """Why *found* cannot be this tree after a crash; "" when it can."""
        if self.directories != found.directories:
            return f"directories {sorted(self.directories ^ found.directories)}"
        if self.symlinks != found.symlinks:
            return f"symbolic links {self.symlinks} ≠ {found.symlinks}"
        if set(self.files) != set(found.files):
            lost, more = set(self.files) - set(found.files), set(found.files) - set(self.files)
            return f"files lost {sorted(lost)}, files too many {sorted(more)}"
        for name, content in self.files.items():
            twins = {other for other, its in self.files.items() if its is content}
            if twins != {other for other, ino in found.inodes.items() if ino == found.inodes[name]}:
                return f"{name}: its links are not {sorted(twins)}"
            if content.xattr != found.xattrs.get(name, ""):
                return f"{name}: its attribute is {found.xattrs.get(name)}, not {content.xattr}"
            if fault := content.fault(found.files[name]):
                return f"{name}: {fault}"
        return ""


@dataclass
class Found:
    """A tree as it was found on a mount."""

    files: dict[str, bytes] = field(default_factory=dict)
    inodes: dict[str, int] = field(default_factory=dict)  # of the files
    directories: set[str] = field(default_factory=set)
    symlinks: dict[str, str] = field(default_factory=dict)
    xattrs: dict[str, str] = field(default_factory=dict)

    def tree(self) -> Tree:
        """All of it as acknowledged: where the next round begins."""
        tree = Tree()
        contents = {
            ino: Content(bytearray(self.files[name]), xattr=self.xattrs.get(name, ""))
            for name, ino in self.inodes.items()
        }
        tree.files = {name: contents[ino] for name, ino in self.inodes.items()}
        tree.directories, tree.symlinks = self.directories, self.symlinks
        return tree


def candidates(start: Tree, log: Iterable[Step]) -> list[Tree]:
    """The trees that may be there after the steps of *log*, which change *start*: without and with the step that was cut off."""
    tree = start
    last: Step | None = None
    for step in log:
        if "errno" not in step:
            last = step
            tree.begin(step)
            continue
        assert last is not None
        if step["errno"] == 0:
            tree.apply(last)
        else:
            tree.fail(last | step)
        last = None
    if last is None:
        return [tree]
    without, with_it = tree, tree.copy()
    if last["op"] in ("write", "fsync", "close"):
        return [without]
    if last["op"] in ("truncate", "setxattr"):
        # The content that was there is shared by both trees: the one with the change gets its own.
        present = with_it.files[last["path"]]
        changed = Content(bytearray(present.sure), list(present.open), list(present.doubtful), present.xattr)
        for name, content in with_it.files.items():
            if content is present:
                with_it.files[name] = changed
    with_it.apply(last)
    return [without, with_it]
