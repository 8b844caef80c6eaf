"""Open files: handles of the kernel, and what is shared by all handles of an inode (format §5.6).

An inode's `OpenFile` carries its length as this mount knows it: the greater of what metadata said and what was written here,
so that a read never ends before data that this mount has acknowledged. An answer of the metadata that was asked before a
local write must not set it back: `Files.changes` counts local writes and truncates, and `OpenFile.changed` remembers the
last one of its inode; whoever asks the metadata notes `changes` before and passes it to `Files.seen`.

Concurrency: event loop only; no method suspends.
"""

import errno
import os
import time
from collections.abc import Iterable
from typing import Final

from jfs.chunk.file_reader import FileReader
from jfs.chunk.reader import Reader
from jfs.chunk.writer import FileWriter, Writer
from jfs.errors import FsError
from jfs.meta.model.attr import Attr, unpack_attr
from jfs.survival.handle_table import FILE, HandleTable

_ACCESS: Final = os.O_RDONLY | os.O_WRONLY | os.O_RDWR
# Inodes whose kernel page cache we vouch for: enough for a busy mount, small enough to forget (format §5.5: 10 000).
_REMEMBERED: Final = 10_000
_TOLD: Final = 50_000


class OpenFile:
    """What the handles of one inode share."""

    __slots__ = ("changed", "handles", "ino", "length", "written_ns")

    def __init__(self, ino: int, length: int) -> None:
        self.ino = ino
        self.length = length
        self.handles = 0
        self.changed = 0
        self.written_ns = 0


class FileHandle:
    """One open(2). *writer* and *reader* are None when the access mode does not permit them; *owners* have taken locks by it."""

    __slots__ = ("fh", "file", "flags", "ino", "owners", "reader", "writer")

    def __init__(
        self, fh: int, file: OpenFile, flags: int, writer: FileWriter | None, reader: FileReader | None
    ) -> None:
        self.fh = fh
        self.ino = file.ino
        self.file = file
        self.flags = flags
        self.owners: set[int] | None = None
        self.writer = writer
        self.reader = reader


class Files:
    """The table of open files of a mount."""

    def __init__(self, writer: Writer, reader: Reader, table: HandleTable | None = None) -> None:
        self.table = table or HandleTable()
        self.changes = 0
        self.by_inode: dict[int, OpenFile] = {}
        self._handles: dict[int, FileHandle] = {}
        # The kernel keeps what is written for a while (FUSE_WRITEBACK_CACHE): it reads and writes whole pages through any handle that
        # may write, finds the end of a file itself, and says what the times are.
        self.writes_back = False
        self.opened_by: dict[int, int] = {}  # handles of a predecessor by the request that opened them, files or not
        self._writer = writer
        self._reader = reader
        self._cached: dict[int, tuple[int, int, int]] = {}
        self._told: dict[int, Attr | bytes | None] = {}

    def tell(self, ino: int, attr: Attr) -> None:
        """The kernel is given *attr* and may believe it for the attribute time-out."""
        told = self._told
        if len(told) >= _TOLD:
            told.clear()
        told[ino] = attr

    def tell_listed(self, inos: Iterable[int], attrs: Iterable[Attr | bytes | None]) -> None:
        """As `tell`, of the entries of a listing, stored forms among them; what it believes of those without attributes is not known."""
        told = self._told
        if len(told) >= _TOLD:
            told.clear()
        told.update(zip(inos, attrs, strict=True))

    def believes(self, ino: int, attr: Attr) -> bool:
        """Whether length and time that the kernel was last given are those of *attr*."""
        told = self._told.get(ino)
        if isinstance(told, bytes):
            told = unpack_attr(told)
        return told is not None and (told.length, told.mtime, told.mtimensec) == (
            attr.length,
            attr.mtime,
            attr.mtimensec,
        )

    def __len__(self) -> int:
        return len(self._handles)

    def open(self, ino: int, flags: int, attr: Attr, request: int = 0) -> FileHandle:
        """A new handle of *ino*, whose attributes were just read, for the kernel's *request*. FsError(ENOSPC)."""
        fh = self.table.take(FILE, ino, flags, read_only=flags & _ACCESS == os.O_RDONLY, request=request)
        return self.restore(fh, ino, flags, attr)

    def restore(self, fh: int, ino: int, flags: int, attr: Attr) -> FileHandle:
        """The handle that is in the table already: just now, or since a predecessor's time."""
        file = self.by_inode.get(ino)
        if file is None:
            file = self.by_inode[ino] = OpenFile(ino, max(attr.length, self._writer.length(ino)))
            file.written_ns = self._writer.mtime_ns(ino)
        file.handles += 1
        mode = flags & _ACCESS
        handle = FileHandle(
            fh,
            file,
            flags,
            self._writer.open(ino, attr.tier) if mode != os.O_RDONLY else None,
            self._reader.open(ino) if mode != os.O_WRONLY or self.writes_back else None,
        )
        self._handles[fh] = handle
        return handle

    def get(self, fh: int) -> FileHandle:
        """The handle of this number; FsError(EBADF) when there is none."""
        handle = self._handles.get(fh)
        if handle is None:
            raise FsError(errno.EBADF)
        return handle

    def find(self, fh: int | None) -> FileHandle | None:
        """The handle of this number or None."""
        return self._handles.get(fh) if fh is not None else None

    def forget(self, handle: FileHandle) -> bool:
        """Remove the handle from the table; whether it was the inode's last."""
        if self._handles.pop(handle.fh, None) is None:
            return False
        self.table.free(handle.fh)
        file = handle.file
        file.handles -= 1
        if not file.handles and self.by_inode.get(file.ino) is file:
            del self.by_inode[file.ino]
            return True
        return False

    def owned(self, handle: FileHandle, owner: int) -> None:
        """*owner* is about to take a lock by the handle. FsError(ENOSPC)."""
        self.table.add_owner(handle.fh, owner)
        if handle.owners is None:
            handle.owners = set()
        handle.owners.add(owner)

    def wrote(self, file: OpenFile, end: int) -> None:
        """Bytes up to *end* were taken by the writer."""
        self.changes += 1
        file.changed = self.changes
        file.written_ns = time.time_ns()
        if end > file.length:
            file.length = end
        self._cached.pop(file.ino, None)

    def set_times(self, ino: int) -> None:
        """The time of the last write was set, and what was written before does not move it any more."""
        file = self.by_inode.get(ino)
        if file is not None:
            file.written_ns = 0

    def truncated(self, ino: int, length: int) -> None:
        """The file was cut or grown to *length* by this mount."""
        self.changes += 1
        self._cached.pop(ino, None)
        file = self.by_inode.get(ino)
        if file is not None:
            file.changed = self.changes
            file.length = length

    def seen(self, ino: int, attr: Attr, since: int) -> Attr:
        """What to show of *attr*, asked when `changes` was *since*: the length as known here, and the time of the last write
        while it is not committed. Notes the length for reads."""
        file = self.by_inode.get(ino)
        if file is None:
            return attr
        length = attr.length
        if file.changed > since:
            length = file.length
        else:
            pending = self._writer.length(ino)
            if pending > length:
                length = pending
            file.length = length
        if file.written_ns and self._writer.is_dirty(ino):
            seconds, nanoseconds = written = divmod(file.written_ns, 1_000_000_000)
            changed = max(written, (attr.ctime, attr.ctimensec))
            return attr._replace(
                length=length, mtime=seconds, mtimensec=nanoseconds, ctime=changed[0], ctimensec=changed[1]
            )
        return attr._replace(length=length) if length != attr.length else attr

    def keeps_cache(self, ino: int, attr: Attr) -> bool:
        """Whether the pages that the kernel may hold of *ino* are still the file's: time and length are those of the last
        open, and nothing was written here since (close-to-open, format §5.5)."""
        now = (attr.mtime, attr.mtimensec, attr.length)
        cached = self._cached
        same = cached.pop(ino, None) == now
        if self._writer.is_dirty(ino):
            return False
        cached[ino] = now
        if len(cached) > _REMEMBERED:
            del cached[next(iter(cached))]
        return same
