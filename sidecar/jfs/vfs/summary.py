"""The answer to `summary` (OpSummary of format §8.3): a tree of the largest entries, with sizes and counts of all that lies below.

Unless it must be strict, directories deeper than what is shown are counted from their usage records, without their inodes. Not a
snapshot: what changes meanwhile may be counted or not. Memory: the entries of the directories on the way, and what is shown.
"""

from collections.abc import Callable
from typing import Any

from jfs.format.constants import DIRECTORY, FILE, align4k
from jfs.meta.model.keys import DirStat, DirStatKey
from jfs.meta.volume import Caller, Meta

Tree = dict[str, Any]


class Summary:
    """One request. *progress* gets the inodes and the bytes counted so far."""

    def __init__(
        self, meta: Meta, caller: Caller, *, entries: int, strict: bool, progress: Callable[[int, int], None]
    ) -> None:
        self._meta = meta
        self._caller = caller
        self._entries = entries
        self._strict = strict
        self._progress = progress
        self._inodes = self._bytes = 0

    async def tree(self, ino: int, depth: int) -> Tree:
        """The tree of *ino* with *depth* levels below. FsError: ENOENT, EACCES."""
        attr = await self._meta.getattr(ino)
        if attr.kind == DIRECTORY:
            return await self._directory(ino, b"", depth)
        size = align4k(attr.length if attr.kind == FILE else 0)
        self._count(1, size)
        return _node(ino, b"", DIRECTORY, size, 1, 0)  # the type is the real client's

    async def _directory(self, ino: int, path: bytes, depth: int) -> Tree:
        total = _node(ino, path, DIRECTORY, 4096, 0, 1)
        children: list[Tree] = []
        stat: DirStat | None = None
        if not self._strict and depth <= 0:
            (stat,) = await self._meta.store.get(DirStatKey(self._meta.root if ino == 1 else ino))
        self._count(1, 4096)
        below: list[tuple[int, bytes]] = []
        files = 0
        async for page in self._meta.list_directory(self._caller, ino, plus=stat is None):
            attrs = page.attrs or [None] * len(page.names)
            for name, entry, attr in zip(page.names, page.entries, attrs, strict=True):
                where = path + b"/" + name if path else name
                if entry.kind == DIRECTORY:
                    below.append((entry.ino, where))
                    continue
                files += 1
                if stat is None:
                    size = align4k(attr.length if attr is not None and entry.kind == FILE else 0)
                    self._count(1, size)
                    if depth > 0:
                        children.append(_node(entry.ino, where, entry.kind, size, 1, 0))
                    else:
                        total["Size"] += size
                        total["Files"] += 1
        if stat is not None:  # subdirectories count themselves
            size = max(stat.space - 4096 * len(below), 0)
            self._count(files, size)
            total["Size"] += size
            total["Files"] += files
        for child, where in below:
            children.append(await self._directory(child, where, depth - 1))
        for one in children:
            _add(total, one)
        if depth > 0 and children:
            total["Children"] = self._largest(children)
        return total

    def _largest(self, children: list[Tree]) -> list[Tree]:
        """The largest first; what is beyond the number of entries wanted goes together into one named `...`."""
        children.sort(key=lambda one: (-one["Size"], one["Path"]))
        shown, rest = children[: self._entries], children[self._entries :]
        if rest:
            others = _node(0, b"...", FILE, 0, 0, 0)
            for one in rest:
                _add(others, one)
            shown.append(others)
        return shown

    def _count(self, inodes: int, size: int) -> None:
        self._inodes += inodes
        self._bytes += size
        self._progress(self._inodes, self._bytes)


def _node(ino: int, path: bytes, kind: int, size: int, files: int, directories: int) -> Tree:
    text = path.decode("utf-8", "replace")
    return {"Inode": ino, "Path": text, "Type": kind, "Size": size, "Files": files, "Dirs": directories}


def _add(total: Tree, one: Tree) -> None:
    for name in ("Size", "Files", "Dirs"):
        total[name] += one[name]
