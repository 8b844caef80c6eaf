"""The request handlers, host-neutral: what each FUSE operation means in terms of metadata, data and open files.

Every handler is a coroutine that takes the caller first, then the protocol's arguments in the order that the access log
shows them by; it returns records or raises FsError. The kernel's node id is the inode, except that node 1 is whatever the
mount shows as its root (`--subdir`); the translation is done here and nowhere below. An answer that is cached completes
without suspending: hosts answer it at once.

Concurrency: any number of handlers run in one event loop. Per inode: a read waits until what this mount wrote is committed;
truncate holds writes back; a time set explicitly waits for pending writes, whose commit would set another.
"""

import errno
import os
import uuid
from collections.abc import Callable

from jfs.chunk.reader import Reader
from jfs.chunk.writer import Writer
from jfs.errors import FsError
from jfs.format import constants
from jfs.format.constants import ROOT, SPECIAL, TRASH
from jfs.fuse.names import Names
from jfs.fuse.open_directories import OpenDirectories
from jfs.fuse.open_files import OpenFiles
from jfs.fuse.requests import (
    ATIME,
    ATIME_NOW,
    GID,
    MODE,
    MTIME,
    MTIME_NOW,
    SIZE,
    UID,
    Invalidator,
    Opened,
    SetAttr,
    Timeouts,
    request_number,
)
from jfs.fuse.xattrs import SECURITY, Xattrs
from jfs.meta.model.attr import Attr
from jfs.meta.volume import SUPERUSER, AttrChange, Caller, Meta, StatFS
from jfs.survival.handle_table import VIRTUAL, HandleTable
from jfs.survival.snapshots import Snapshots
from jfs.vfs.access_log import AccessLog
from jfs.vfs.directories import Directories
from jfs.vfs.files import Files
from jfs.vfs.virtual import VirtualFiles


class Handlers(Names, OpenFiles, OpenDirectories, Xattrs):
    """The handlers of one mount."""

    def __init__(
        self,
        meta: Meta,
        writer: Writer,
        reader: Reader,
        log: AccessLog,
        virtual: VirtualFiles,
        *,
        timeouts: Timeouts,
        xattrs: bool,
        acls: bool = False,
        readdir_cache: bool = False,
        access_checked: bool = True,
        ioctls: bool = False,
        security: frozenset[bytes] = frozenset(),
        sort_dir: bool = False,
        umask: int | None = None,
        table: HandleTable | None = None,
        snapshots: Snapshots | None = None,
    ) -> None:
        self.meta = meta
        self.log = log
        self.timeouts = timeouts
        self.xattrs = xattrs
        self.ioctls = ioctls
        self._refused = SECURITY - security
        self._nameless: set[int] = set()  # open files that were made without a name and may be given one
        self._umask = umask  # that of the mount, in place of the caller's
        self.caller: Callable[[int, int, int], Caller] = Caller  # of uid, gid and pid: how hosts make one
        self.acls = acls  # whether inodes may have POSIX ACLs, set and shown as extended attributes
        self.locks = not meta.options.read_only  # they are records of a session, which a read-only mount has not
        self.files = Files(writer, reader, table)
        self.directories = Directories(sort=sort_dir, snapshots=snapshots)
        self._writer = writer
        meta.write_back = writer.settle
        self._reader = reader
        self.virtual = virtual
        self._root = meta.root
        self._readdir_cache = readdir_cache
        self._listed: dict[int, tuple[int, int]] = {}  # readdir-cache: mtime of directories at their last opendir
        self.invalidator: Invalidator | None = None  # the host's, once there is one
        self._access_checked = access_checked  # the kernel's default_permissions already did

    def entry_changed(self, parent: int, name: bytes) -> None:
        """An entry came or went without a request of the kernel for it."""
        if parent == ROOT:
            self.directories.added(self._root, name)
        else:
            self.directories.added(parent, name)
        if self.invalidator is not None:
            self.invalidator.entry(parent, name)
            self.invalidator.attributes(parent)

    # -- names and attributes ---------------------------------------------------------------------------------

    async def lookup(self, caller: Caller, parent: int, name: bytes) -> tuple[int, Attr]:
        """The inode of a name and its attributes."""
        virtual = self.virtual
        if parent == ROOT:
            ino = virtual.names.get(name)
            if ino is not None:
                return ino, virtual.attr(ino)
            parent = self._root
        elif name == virtual.control_name:
            return constants.CONTROL_INO, virtual.attr(constants.CONTROL_INO)
        files = self.files
        since = files.changes
        ino, attr = await self.meta.lookup(caller, parent, name)
        if ino in files.by_inode:
            attr = files.seen(ino, attr, since)
        files.tell(ino, attr)
        return ino, attr

    async def getattr(self, caller: Caller, ino: int, fh: int | None = None) -> Attr:
        """The attributes of an inode."""
        if ino >= SPECIAL and (ino < TRASH or ino == TRASH):
            return self.virtual.attr(ino)
        if ino == ROOT:
            ino = self._root
        files = self.files
        since = files.changes
        try:
            attr = await self.meta.getattr(ino)
        except FsError as error:
            gone = self.meta.gone(ino) if error.errno == errno.ENOENT else None
            if gone is None:
                raise self._missing(error, ino) from error
            return gone
        if ino in files.by_inode:
            attr = files.seen(ino, attr, since)
        files.tell(ino, attr)
        return attr

    async def setattr(self, caller: Caller, ino: int, change: SetAttr, fh: int | None) -> Attr:
        """Change attributes; the size by truncate, through the handle's right when *fh* is given."""
        if ino >= SPECIAL:
            raise FsError(errno.EPERM)
        if ino == ROOT:
            ino = self._root
        files = self.files
        attr: Attr | None = None
        if change.valid & SIZE:
            handle = files.find(fh)
            if handle is not None and handle.writer is None:
                raise FsError(errno.EACCES)
            try:
                attr = await self._truncate(caller, ino, change.size, opened=handle is not None)
            except FsError as error:
                raise self._missing(error, ino) from error
        if files.writes_back and not change.valid & (MODE | UID | GID):
            # The kernel keeps the times, and tells them when it likes; those that somebody sets it has checked.
            caller = SUPERUSER
        rest = change.change()
        if rest is not None and (attr := self.meta.hold_attrs(caller, ino, rest)) is not None:
            if change.valid & (MTIME | MTIME_NOW):
                files.set_times(ino)
        elif rest is not None:
            if change.valid & (ATIME | MTIME | ATIME_NOW | MTIME_NOW) and self._writer.is_dirty(ino):
                await self._writer.settle(ino)
            try:
                attr = await self.meta.setattr(caller, ino, rest)
            except FsError as error:
                raise self._missing(error, ino) from error
        self.directories.changed(ino)
        since = files.changes
        if attr is None:
            attr = await self.meta.getattr(ino)
        attr = files.seen(ino, attr, since)
        files.tell(ino, attr)
        return attr

    def _missing(self, error: FsError, ino: int) -> FsError:
        """The error for an inode that is gone. Unless somebody has it open here, it was reached by a name that another client has
        given to another file since, or removed: ESTALE lets Linux walk the path once more and ask for each name."""
        if error.errno != errno.ENOENT or ino in self.files.by_inode or self.directories.is_open(ino):
            return error
        self.meta.missed(ino)
        return FsError(errno.ESTALE)

    async def _truncate(self, caller: Caller, ino: int, length: int, *, opened: bool) -> Attr:
        if length >= constants.MAX_FILE:
            raise FsError(errno.EFBIG)
        async with self._writer.paused(ino):
            attr = await self.meta.truncate(caller, ino, length, opened=opened)
            self._reader.invalidate(ino)
            self.files.truncated(ino, attr.length)
        self.directories.changed(ino)
        return attr

    async def _empty(self, caller: Caller, ino: int, attr: Attr) -> Attr:
        """O_TRUNC, of which the kernel says nothing more: suid and sgid go, too, unless root does it."""
        mode = attr.mode & ~0o4000
        if mode & 0o2010 == 0o2010:
            mode &= ~0o2000
        emptied = await self._truncate(caller, ino, 0, opened=True)
        if not caller.uid or mode == attr.mode:
            return emptied
        if self.invalidator is not None:
            self.invalidator.attributes(ino)
        return await self.meta.setattr(SUPERUSER, ino, AttrChange(mode=mode))

    async def access(self, caller: Caller, ino: int, mask: int) -> None:
        """access(2)."""
        if ino < SPECIAL:
            await self.meta.access(caller, self._root if ino == ROOT else ino, mask)

    async def readlink(self, caller: Caller, ino: int) -> bytes:
        """The target of a symbolic link."""
        try:
            return await self.meta.readlink(ino)
        except FsError as error:
            text = self.meta.gone_text(ino) if error.errno == errno.ENOENT else None
            if text is None:
                raise self._missing(error, ino) from error
            return text

    async def statfs(self, caller: Caller, ino: int) -> StatFS:
        """Totals of the volume, within the quotas above the inode."""
        return await self.meta.statfs(ino if ino < SPECIAL else ROOT)

    # -- files --------------------------------------------------------------------------------------------------

    async def open(self, caller: Caller, ino: int, flags: int) -> Opened:
        """Open a file; with O_TRUNC it is emptied."""
        if ino >= SPECIAL:
            fh = self.files.table.take(VIRTUAL, ino, flags, read_only=True, request=request_number(caller))
            try:
                await self.virtual.open(ino, flags, fh)
            except BaseException:
                self.files.table.free(fh)
                raise
            await self._forget_unanswered(caller)
            return Opened(fh, direct_io=True)
        files = self.files
        since = files.changes
        try:
            attr = await self.meta.open(caller, ino, flags)
        except FsError as error:
            raise self._missing(error, ino) from error
        attr = files.seen(ino, attr, since)
        if self.invalidator is not None and not files.believes(ino, attr):
            # Close-to-open: the reply to open carries no attributes, and reads stop at the length that the kernel believes.
            self.invalidator.attributes(ino)
            files.tell(ino, attr)
        handle = files.open(ino, flags, attr, request_number(caller))
        await self._forget_unanswered(caller)
        if flags & os.O_TRUNC:  # the kernel has checked the right to write, also for O_RDONLY
            try:
                await self._empty(caller, ino, attr)
            except BaseException:
                await self._release(handle.fh)
                raise
            return Opened(handle.fh)
        return Opened(handle.fh, keep_cache=files.keeps_cache(ino, attr))

    async def create(self, caller: Caller, parent: int, name: bytes, mode: int, flags: int) -> tuple[int, Attr, Opened]:
        """Make a file and open it; an existing one is opened unless O_EXCL is asked."""
        parent = self._own_parent(parent, name, errno.EEXIST)
        if self._umask is not None:
            caller = caller._replace(umask=self._umask)
        files = self.files
        since = files.changes
        ino, attr, created = await self.meta.create(caller, parent, name, mode & 0o7777, flags)
        attr = files.seen(ino, attr, since)
        self.directories.added(parent, name)
        handle = files.open(ino, flags, attr, request_number(caller))
        await self._forget_unanswered(caller)
        if not created and flags & os.O_TRUNC:
            try:
                attr = await self._empty(caller, ino, attr)
            except BaseException:
                await self._release(handle.fh)
                raise
        return ino, attr, Opened(handle.fh)

    async def _forget_unanswered(self, caller: Caller) -> None:
        """A request to open that is repeated: the kernel was never told of the handle that a predecessor made for it."""
        if caller.request is None or not caller.request.resent:
            return
        fh = self.files.opened_by.pop(caller.request.number, None)
        if fh is None:
            return
        if self.files.find(fh) is not None:
            await self._release(fh)
        elif self.directories.inode(fh):
            self.directories.close(fh)
            self.files.table.free(fh)
        else:
            self.virtual.release(fh)
            self.files.table.free(fh)

    async def tmpfile(self, caller: Caller, parent: int, mode: int, flags: int) -> tuple[int, Attr, Opened]:
        """Make a file without a name (O_TMPFILE) and open it; it goes with its last handle unless a link names it."""
        # A repeated request must find what it had made.
        own = uuid.uuid4() if caller.request is None else f"{self.meta.sid:x}_{caller.request.number:x}"
        name = f"tmpfile_{own}".encode()
        ino, attr, opened = await self.create(caller, parent, name, mode, flags | os.O_EXCL)
        try:
            request = caller.request
            if request is not None and request.intention is not None and request.intention.ino != ino:
                request.intention = None  # it was about a file that was not made
            remover = SUPERUSER._replace(request=request)
            await self.meta.unlink(remover, self._root if parent == ROOT else parent, name, skip_trash=True)
        except BaseException:
            await self._release(opened.fh)
            raise
        self.directories.removed(self._root if parent == ROOT else parent, name)
        self._nameless.add(ino)
        return ino, attr._replace(nlink=0), opened

    async def read(self, caller: Caller, ino: int, fh: int, offset: int, size: int) -> bytes | bytearray | memoryview:
        """Bytes of a file; fewer than *size* only at its end."""
        if ino >= SPECIAL:
            return await self.virtual.get(fh).read(offset, size)
        handle = self.files.get(fh)
        reader = handle.reader
        if reader is None:
            raise FsError(errno.EBADF)
        if self._writer.is_dirty(handle.ino):
            await self._writer.settle(handle.ino)
        try:
            return await reader.read(offset, size, handle.file.length)
        except FsError as error:
            if error.errno == errno.ENOENT:
                raise FsError(errno.EBADF) from error
            raise

    async def write(
        self, caller: Caller, ino: int, fh: int, offset: int, data: memoryview | bytes, append: bool = False
    ) -> int:
        """Take bytes; they are safe after the next flush, fsync or release. With *append* they go to the end of the file as known
        here, where the kernel believes in an older one."""
        if ino >= SPECIAL:
            return await self.virtual.get(fh).write(bytes(data), caller)
        handle = self.files.get(fh)
        writer = handle.writer
        if writer is None:
            raise FsError(errno.EBADF)
        size = len(data)
        request = request_number(caller) if append else 0
        placed = self._writer.placed(request) if request else None
        if placed is not None:  # a predecessor took it, there, and did not come to answer
            offset = placed
        elif append and offset < handle.file.length and not self.files.writes_back:
            offset = handle.file.length
            if self.invalidator is not None:  # the kernel has put the bytes elsewhere in its pages
                self.invalidator.inode(handle.ino)
        if offset + size > constants.MAX_FILE:
            raise FsError(errno.EFBIG)
        try:
            await writer.write(offset, data, request)
        except FsError as error:
            raise _handle_error(error) from error
        self.files.wrote(handle.file, offset + size)
        self.meta.wrote(handle.ino)
        self.directories.changed(handle.ino)
        return size

    async def flush(self, caller: Caller, ino: int, fh: int, owner: int) -> None:
        """close(2) of one descriptor: what was written is uploaded and committed when this returns."""
        await self._store(ino, fh, owner, sync=False)

    async def _store(self, ino: int, fh: int, owner: int, *, sync: bool) -> None:
        if ino >= SPECIAL:
            return
        handle = self.files.get(fh)
        writer = handle.writer
        try:
            if writer is not None:
                await (writer.sync() if sync else writer.flush())
            if self.meta.holds_attrs(handle.ino):
                await self.meta.settle_attrs(handle.ino)
        except FsError as error:
            raise _handle_error(error) from error
        finally:  # POSIX: closing any descriptor of the file gives back the process' fcntl locks
            if self.meta.locks.holds_ranges(handle.ino, owner):
                await self.meta.locks.release_ranges(handle.ino, owner)

    async def fsync(self, caller: Caller, ino: int, fh: int, datasync: bool) -> None:
        """fsync(2): as flush, and an error is told once."""
        await self._store(ino, fh, 0, sync=True)

    async def release(self, caller: Caller, ino: int, fh: int) -> None:
        """The last reference to an open file is gone."""
        if ino >= SPECIAL:
            self.virtual.release(fh)
            self.files.table.free(fh)
            return
        await self._release(fh)

    async def _release(self, fh: int) -> None:
        handle = self.files.get(fh)
        try:
            if handle.reader is not None:
                handle.reader.close()
            if handle.writer is not None:
                await handle.writer.close()
        finally:
            if self.files.forget(handle):
                self._nameless.discard(handle.ino)
            try:
                # What close(2) has not given back is owned by the open file: flocks and open-file-description locks.
                for owner in handle.owners or ():
                    if self.meta.locks.holds(handle.ino, owner):
                        await self.meta.locks.release(handle.ino, owner)
            finally:
                await self.meta.release(handle.ino)

    def inode_of(self, fh: int) -> int:
        """The inode of an open handle, for hosts that are not told it; 0 when there is none."""
        handle = self.files.find(fh)
        return handle.ino if handle is not None else self.virtual.inode(fh) or self.directories.inode(fh)


def _handle_error(error: FsError) -> FsError:
    """Errors of metadata that mean a handle's file is gone are EBADF for its writer (format §5.6)."""
    return FsError(errno.EBADF) if error.errno in (errno.ENOENT, errno.EPERM, errno.EINVAL) else error
