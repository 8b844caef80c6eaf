"""What is asked of open files beyond reading and writing: locks, ranges, holes, copies by reference, inode flags. A part of
`Handlers`, under the same rules: coroutines in the protocol's names that return records or raise FsError.

Concurrency: what changes content without passing the writer holds writes of the inode back until what was written before is
committed; what a lock protects is committed before the lock is given back.
"""

import asyncio
import contextlib
import errno
import os

from jfs.chunk.reader import Reader
from jfs.chunk.writer import Writer
from jfs.errors import FsError
from jfs.format.constants import ROOT, SPECIAL
from jfs.fuse import inode_flags
from jfs.meta.model.attr import Attr
from jfs.meta.model.locks import UNLOCK, Range
from jfs.meta.volume import AttrChange, Caller, Meta
from jfs.vfs.directories import Directories
from jfs.vfs.files import FileHandle, Files


class OpenFiles:
    """See the module."""

    meta: Meta
    files: Files
    directories: Directories
    ioctls: bool
    _writer: Writer
    _reader: Reader
    _root: int

    # -- locks --------------------------------------------------------------------------------------------------

    async def getlk(self, caller: Caller, ino: int, fh: int, owner: int, wanted: Range) -> Range | None:
        """The first lock that *wanted* would have to wait for."""
        return await self.meta.locks.getlk(self._lockable(ino, fh).ino, owner, wanted)

    async def setlk(self, caller: Caller, ino: int, fh: int, owner: int, wanted: Range, flock: bool) -> None:
        """Lock or unlock a range, or with *flock* the file; FsError(EAGAIN) when another owner is in the way."""
        await self._lock(self._lockable(ino, fh), owner, wanted, flock, wait=False)

    async def setlkw(self, caller: Caller, ino: int, fh: int, owner: int, wanted: Range, flock: bool) -> None:
        """As setlk, but waits; cancellation ends the wait."""
        await self._lock(self._lockable(ino, fh), owner, wanted, flock, wait=True)

    def _lockable(self, ino: int, fh: int) -> FileHandle:
        if ino >= SPECIAL:
            raise FsError(errno.EINVAL)
        return self.files.get(fh)

    async def _lock(self, handle: FileHandle, owner: int, wanted: Range, flock: bool, *, wait: bool) -> None:
        """What was written under a lock is committed before it is given back, and what the next owner sees is not older: its
        attributes are read again, which drops what is cached of other content."""
        ino, locks = handle.ino, self.meta.locks
        if wanted.kind == UNLOCK:
            if locks.holds(ino, owner):
                if self._writer.is_dirty(ino):
                    await self._writer.settle(ino)
                if self.meta.holds_attrs(ino):
                    await self.meta.settle_attrs(ino)
        elif handle.owners is None or owner not in handle.owners:
            self.files.owned(handle, owner)
        since = self.files.changes
        if flock:
            attr = await locks.flock(ino, owner, wanted.kind, wait=wait)
        else:
            attr = await locks.setlk(ino, owner, wanted, wait=wait)
        if attr is not None:  # else it was given back, or the file has been removed by another client
            if since != self.files.changes:  # something was written here meanwhile
                since = self.files.changes
                # Removed by another client, or interrupted: the lock is had all the same.
                with contextlib.suppress(FsError, asyncio.CancelledError):
                    attr = await self.meta.refresh(ino)
            self.files.seen(ino, attr, since)

    # -- ranges -------------------------------------------------------------------------------------------------

    async def fallocate(self, caller: Caller, ino: int, fh: int, mode: int, offset: int, size: int) -> None:
        """fallocate(2): keep-size, punch hole, zero range; nothing is reserved."""
        if ino >= SPECIAL:
            raise FsError(errno.EPERM)
        handle = self.files.get(fh)
        if handle.writer is None:
            raise FsError(errno.EBADF)
        async with self._writer.paused(handle.ino):
            attr = await self.meta.fallocate(handle.ino, mode, offset, size)
            self._rewritten(handle.ino, attr)

    async def lseek(self, caller: Caller, ino: int, fh: int, offset: int, whence: int) -> int:
        """SEEK_DATA and SEEK_HOLE of lseek(2). Not where the kernel keeps what is written, and asks without giving it to us first:
        told that there is no such operation, it takes everything for data."""
        if self.files.writes_back:
            raise FsError(errno.ENOSYS)
        if ino >= SPECIAL or whence not in (os.SEEK_DATA, os.SEEK_HOLE):
            raise FsError(errno.EINVAL)
        handle = self.files.get(fh)
        if self._writer.is_dirty(handle.ino):
            await self._writer.settle(handle.ino)
        seek = self.meta.seek_data if whence == os.SEEK_DATA else self.meta.seek_hole
        return await seek(handle.ino, offset, handle.file.length)

    async def copy_file_range(
        self,
        caller: Caller,
        ino: int,
        fh: int,
        offset: int,
        target: int,
        to_fh: int,
        position: int,
        size: int,
        flags: int,
    ) -> int:
        """copy_file_range(2) by references to the source's slices; the number of bytes, which may be fewer than *size*."""
        if flags or ino >= SPECIAL or target >= SPECIAL:
            raise FsError(errno.EINVAL)
        source, to = self.files.get(fh), self.files.get(to_fh)
        if source.reader is None or to.writer is None:
            raise FsError(errno.EBADF)
        if source.ino != to.ino and self._writer.is_dirty(source.ino):
            await self._writer.settle(source.ino)
        async with self._writer.paused(to.ino):
            copied, attr = await self.meta.copy_range(source.ino, offset, to.ino, position, size)
            if attr is not None:
                self._rewritten(to.ino, attr)
        return copied

    def _rewritten(self, ino: int, attr: Attr) -> None:
        """Content changed without passing the writer."""
        self._reader.invalidate(ino)
        self.files.truncated(ino, attr.length)
        self.directories.changed(ino)

    async def syncfs(self, caller: Caller, ino: int) -> None:
        """syncfs(2): everything written here is uploaded and committed."""
        await self._writer.flush_all()
        await self.meta.settle_all_attrs()

    # -- inode flags --------------------------------------------------------------------------------------------

    async def ioctl(self, caller: Caller, ino: int, fh: int, command: int, data: bytes, size: int) -> bytes:
        """The flags of an inode as chattr(1) and lsattr(1) ask for them, in at most *size* bytes; FsError(ENOTTY) for other
        commands."""
        if not self.ioctls or not inode_flags.is_known(command):
            raise FsError(errno.ENOTTY)
        if ino >= SPECIAL:
            raise FsError(errno.EPERM)
        ino = self._root if ino == ROOT else ino
        present = (await self.meta.getattr(ino)).flags
        if inode_flags.reads(command):
            return inode_flags.encoded(command, present)[:size]
        if caller.uid:
            raise FsError(errno.EPERM)
        await self.meta.setattr(caller, ino, AttrChange(flags=inode_flags.decoded(command, data, present)))
        self.directories.changed(ino)
        return b""
