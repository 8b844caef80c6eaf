"""The files this process has open: how often, and the chunk lists that may be answered without asking (format §5.5).

Invariant: a list is kept only while every change of the file since it was read is known; a change by another client shows as a
different (mtime, ctime, length) and drops all lists of the file, an own one drops its chunk's. A list read before an own change
is not kept (`version`). With a time of trust (`--open-cache`) a file that was looked at less than that ago is opened without asking, and
what is known of it outlives its last handle for that time; any own change of a closed file forgets it. One event loop; no method suspends.
"""

import time
from collections import OrderedDict
from typing import Final

from jfs.format.slices import Slice
from jfs.meta.model.attr import Attr

# Chunk lists kept for one file; beyond it, all are forgotten and the file begins anew (64 GiB of file).
CHUNKS_PER_FILE: Final = 1024

Fingerprint = tuple[int, int, int, int, int]


def fingerprint(attr: Attr) -> Fingerprint:
    """What changes whenever the content does."""
    return attr.mtime, attr.mtimensec, attr.ctime, attr.ctimensec, attr.length


class OpenFile:
    """One open inode."""

    __slots__ = ("attr", "checked", "chunks", "count", "seen", "version")

    def __init__(self, attr: Attr) -> None:
        self.attr = attr
        self.checked = time.monotonic()  # when the database was seen to agree
        self.count = 0
        self.seen = fingerprint(attr)
        self.version = 0
        self.chunks: dict[int, list[Slice]] = {}


class OpenTable:
    """Open files of the mount by inode. *trust* in seconds; *limit* bounds the closed files that are remembered (0: any number)."""

    def __init__(self, *, trust: float = 0.0, limit: int = 0) -> None:
        self._files: dict[int, OpenFile] = {}
        self._trust = trust
        self._limit = limit
        self._closed: OrderedDict[int, OpenFile] = OrderedDict()

    def __contains__(self, ino: int) -> bool:
        return ino in self._files

    def is_open(self, ino: int) -> bool:
        """Whether any handle of *ino* is open."""
        return ino in self._files

    def trusted(self, ino: int) -> Attr | None:
        """Attributes with which *ino* may be opened without asking the database."""
        if not self._trust:
            return None
        file = self._files.get(ino) or self._closed.get(ino)
        return file.attr if file is not None and file.checked + self._trust > time.monotonic() else None

    def open(self, ino: int, attr: Attr) -> OpenFile:
        """One more handle; its lists are dropped when the file changed since they were read."""
        file = self._files.get(ino)
        if file is None:
            file = self._closed.pop(ino, None) or OpenFile(attr)
            self._files[ino] = file
        if file.attr is not attr:
            self.observe(ino, attr)
        file.count += 1
        return file

    def release(self, ino: int) -> bool:
        """One handle less; whether it was the last."""
        file = self._files.get(ino)
        if file is None:
            return False
        file.count -= 1
        if file.count > 0:
            return False
        del self._files[ino]
        if self._trust:
            self._closed[ino] = file
            self._forget_old()
        return True

    def _forget_old(self) -> None:
        oldest = time.monotonic() - self._trust
        while self._closed:
            file = next(iter(self._closed.values()))
            if file.checked > oldest and not 0 < self._limit < len(self._closed):
                return
            self._closed.popitem(last=False)

    def observe(self, ino: int, attr: Attr) -> bool:
        """Fresh attributes: whether they show a change by another client, which drops the lists."""
        file = self._files.get(ino)
        if file is None:
            self._closed.pop(ino, None)
            return False
        file.attr, file.checked = attr, time.monotonic()
        seen = fingerprint(attr)
        if seen == file.seen:
            return False
        file.seen = seen
        file.version += 1
        file.chunks.clear()
        return True

    def changed(self, ino: int, before: Attr, after: Attr, indx: int | None) -> bool:
        """An own commit to chunk *indx* (None: to no content); *before* is what it found. Whether *before* showed a foreign change."""
        file = self._files.get(ino)
        if file is None:
            self._closed.pop(ino, None)
            return False
        foreign = self.observe(ino, before)
        file.attr, file.seen = after, fingerprint(after)
        if indx is not None:
            file.version += 1
            file.chunks.pop(indx, None)
        return foreign

    def forget_chunks(self, ino: int) -> None:
        """Drop all lists of *ino* (truncation, or a failed read)."""
        self._closed.pop(ino, None)
        file = self._files.get(ino)
        if file is not None:
            file.version += 1
            file.chunks.clear()

    def forget_chunk(self, ino: int, indx: int) -> None:
        """Drop the list of one chunk: it was compacted, the content is the same."""
        self._closed.pop(ino, None)
        file = self._files.get(ino)
        if file is not None:
            file.version += 1
            file.chunks.pop(indx, None)

    def slices(self, ino: int, indx: int) -> list[Slice] | None:
        """The kept list of a chunk."""
        file = self._files.get(ino)
        return None if file is None else file.chunks.get(indx)

    def version(self, ino: int) -> int:
        """To be taken before a list is read and given to `keep`."""
        file = self._files.get(ino)
        return -1 if file is None else file.version

    def keep(self, ino: int, indx: int, slices: list[Slice], version: int) -> None:
        """Keep a list unless the file changed or was closed while it was read."""
        file = self._files.get(ino)
        if file is None or file.version != version:
            return
        if len(file.chunks) >= CHUNKS_PER_FILE:
            file.chunks.clear()
        file.chunks[indx] = slices

    def inodes(self) -> list[int]:
        """All open inodes."""
        return list(self._files)
