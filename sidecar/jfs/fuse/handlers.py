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
from collections.abc import Callable, Iterable
from typing import Final

from jfs.chunk.reader import Reader
from jfs.chunk.writer import Writer
from jfs.errors import FsError
from jfs.format import constants
from jfs.format.constants import ROOT, SPECIAL, TRASH
from jfs.fuse.open_files import OpenFiles
from jfs.fuse.requests import ATIME, ATIME_NOW, MTIME, MTIME_NOW, SIZE, Invalidator, Opened, SetAttr, Timeouts
from jfs.meta.model.acl import ACL_NAMES
from jfs.meta.model.attr import Attr
from jfs.meta.volume import SUPERUSER, Caller, Meta, StatFS
from jfs.survival.handle_table import DIRECTORY, VIRTUAL, HandleTable
from jfs.survival.snapshots import Snapshots
from jfs.vfs.access_log import AccessLog
from jfs.vfs.directories import Directories, DirectoryHandle, Item, Window
from jfs.vfs.files import Files
from jfs.vfs.virtual import VirtualFiles

_MAX_XATTR: Final = 65536
_EXCHANGE: Final = 2
_WHITEOUT: Final = 4


class Handlers(OpenFiles):
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
        self._refused = _SECURITY - security
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
        attr = await self.meta.getattr(ino)
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
            attr = await self._truncate(caller, ino, change.size, opened=handle is not None)
        rest = change.change()
        if rest is not None and (attr := self.meta.hold_attrs(caller, ino, rest)) is not None:
            if change.valid & (MTIME | MTIME_NOW):
                files.set_times(ino)
        elif rest is not None:
            if change.valid & (ATIME | MTIME | ATIME_NOW | MTIME_NOW) and self._writer.is_dirty(ino):
                await self._writer.settle(ino)
            attr = await self.meta.setattr(caller, ino, rest)
        self.directories.changed(ino)
        since = files.changes
        if attr is None:
            attr = await self.meta.getattr(ino)
        attr = files.seen(ino, attr, since)
        files.tell(ino, attr)
        return attr

    async def _truncate(self, caller: Caller, ino: int, length: int, *, opened: bool) -> Attr:
        if length >= constants.MAX_FILE:
            raise FsError(errno.EFBIG)
        async with self._writer.paused(ino):
            attr = await self.meta.truncate(caller, ino, length, opened=opened)
            self._reader.invalidate(ino)
            self.files.truncated(ino, attr.length)
        self.directories.changed(ino)
        return attr

    async def access(self, caller: Caller, ino: int, mask: int) -> None:
        """access(2)."""
        if ino < SPECIAL:
            await self.meta.access(caller, self._root if ino == ROOT else ino, mask)

    async def readlink(self, caller: Caller, ino: int) -> bytes:
        """The target of a symbolic link."""
        return await self.meta.readlink(ino)

    def forget(self, nodes: Iterable[tuple[int, int]]) -> None:
        """The kernel dropped its references; inodes are not kept for it, so nothing is to do."""

    async def statfs(self, caller: Caller, ino: int) -> StatFS:
        """Totals of the volume, within the quotas above the inode."""
        return await self.meta.statfs(ino if ino < SPECIAL else ROOT)

    # -- making and removing names ----------------------------------------------------------------------------

    def _own_parent(self, parent: int, name: bytes, error: int) -> int:
        """The directory to change; FsError(*error*) for virtual names of the root."""
        if parent == ROOT:
            if name in self.virtual.names:
                raise FsError(error)
            return self._root
        return parent

    async def mknod(self, caller: Caller, parent: int, name: bytes, mode: int, rdev: int) -> tuple[int, Attr]:
        """Make a file or special file; *mode* holds the type as stat(2)'s st_mode."""
        parent = self._own_parent(parent, name, errno.EEXIST)
        kind = _kind(mode)
        if self._umask is not None:
            caller = caller._replace(umask=self._umask)
        ino, attr = await self.meta.mknod(caller, parent, name, kind, mode & 0o7777, rdev)
        self.directories.added(parent, name)
        return ino, attr

    async def mkdir(self, caller: Caller, parent: int, name: bytes, mode: int) -> tuple[int, Attr]:
        """Make a directory."""
        parent = self._own_parent(parent, name, errno.EEXIST)
        if self._umask is not None:
            caller = caller._replace(umask=self._umask)
        ino, attr = await self.meta.mkdir(caller, parent, name, mode & 0o7777)
        self.directories.added(parent, name)
        return ino, attr

    async def symlink(self, caller: Caller, parent: int, name: bytes, target: bytes) -> tuple[int, Attr]:
        """Make a symbolic link."""
        parent = self._own_parent(parent, name, errno.EEXIST)
        if len(target) >= constants.MAX_SYMLINK:
            raise FsError(errno.ENAMETOOLONG)
        ino, attr = await self.meta.symlink(caller, parent, name, target)
        self.directories.added(parent, name)
        return ino, attr

    async def link(self, caller: Caller, ino: int, parent: int, name: bytes) -> tuple[int, Attr]:
        """Make another name of *ino*."""
        if ino >= SPECIAL:
            raise FsError(errno.EPERM)
        parent = self._own_parent(parent, name, errno.EPERM)
        since = self.files.changes
        attr = await self.meta.link(caller, ino, parent, name, nameless=ino in self._nameless)
        self._nameless.discard(ino)
        self.directories.added(parent, name)
        self.directories.changed(ino)
        return ino, self.files.seen(ino, attr, since)

    async def unlink(self, caller: Caller, parent: int, name: bytes) -> None:
        """Remove a name that is no directory."""
        parent = self._own_parent(parent, name, errno.EPERM)
        ino = await self.meta.unlink(caller, parent, name)
        self.directories.removed(parent, name)
        if ino:
            self.directories.changed(ino)

    async def rmdir(self, caller: Caller, parent: int, name: bytes) -> None:
        """Remove an empty directory."""
        parent = self._own_parent(parent, name, errno.EPERM)
        await self.meta.rmdir(caller, parent, name)
        self.directories.removed(parent, name)

    async def rename(
        self, caller: Caller, parent: int, name: bytes, newparent: int, newname: bytes, flags: int
    ) -> None:
        """renameat2(2) with NOREPLACE (1), EXCHANGE (2) and WHITEOUT (4)."""
        parent = self._own_parent(parent, name, errno.EPERM)
        newparent = self._own_parent(newparent, newname, errno.EPERM)
        await self.meta.rename(caller, parent, name, newparent, newname, flags)
        if flags & (_EXCHANGE | _WHITEOUT):
            self.directories.added(parent, name)
        else:
            self.directories.removed(parent, name)
        self.directories.added(newparent, newname)

    # -- files --------------------------------------------------------------------------------------------------

    async def open(self, caller: Caller, ino: int, flags: int) -> Opened:
        """Open a file; with O_TRUNC it is emptied."""
        if ino >= SPECIAL:
            fh = self.files.table.take(VIRTUAL, ino, flags, read_only=True, request=_number(caller))
            try:
                await self.virtual.open(ino, flags, fh)
            except BaseException:
                self.files.table.free(fh)
                raise
            await self._forget_unanswered(caller)
            return Opened(fh, direct_io=True)
        files = self.files
        since = files.changes
        attr = await self.meta.open(caller, ino, flags)
        attr = files.seen(ino, attr, since)
        if self.invalidator is not None and not files.believes(ino, attr):
            # Close-to-open: the reply to open carries no attributes, and reads stop at the length that the kernel believes.
            self.invalidator.attributes(ino)
            files.tell(ino, attr)
        handle = files.open(ino, flags, attr, _number(caller))
        await self._forget_unanswered(caller)
        if flags & os.O_TRUNC:  # the kernel has checked the right to write, also for O_RDONLY
            try:
                await self._truncate(caller, ino, 0, opened=True)
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
        handle = files.open(ino, flags, attr, _number(caller))
        await self._forget_unanswered(caller)
        if not created and flags & os.O_TRUNC:
            try:
                attr = await self._truncate(caller, ino, 0, opened=True)
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
            remover = SUPERUSER._replace(request=caller.request)
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
        request = _number(caller) if append else 0
        placed = self._writer.placed(request) if request else None
        if placed is not None:  # a predecessor took it, there, and did not come to answer
            offset = placed
        elif append and offset < handle.file.length:
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
        if ino >= SPECIAL:
            return
        handle = self.files.get(fh)
        writer = handle.writer
        try:
            if writer is not None:
                await writer.flush()
            if self.meta.holds_attrs(handle.ino):
                await self.meta.settle_attrs(handle.ino)
        except FsError as error:
            raise _handle_error(error) from error
        finally:  # POSIX: closing any descriptor of the file gives back the process' fcntl locks
            if self.meta.locks.holds_ranges(handle.ino, owner):
                await self.meta.locks.release_ranges(handle.ino, owner)

    async def fsync(self, caller: Caller, ino: int, fh: int, datasync: bool) -> None:
        """As flush."""
        await self.flush(caller, ino, fh, 0)

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

    # -- directories --------------------------------------------------------------------------------------------

    async def opendir(self, caller: Caller, ino: int) -> Opened:
        """Open a directory; nothing is read yet."""
        shown = ino
        if ino == ROOT:
            ino = self._root
        if caller.checked or not self._access_checked:
            await self.meta.access(caller, ino, os.R_OK)
        fh = self.files.table.take(DIRECTORY, ino, 0, read_only=True, request=_number(caller))
        directory = self.restore_directory(fh, shown, ino)
        await self._forget_unanswered(caller)
        if self._readdir_cache:
            attr = await self.meta.getattr(ino)
            now = (attr.mtime, attr.mtimensec)
            keep = self._listed.get(ino) == now
            self._listed[ino] = now
            return Opened(directory.fh, keep_cache=keep, cache_directory=True)
        return Opened(directory.fh)

    def restore_directory(self, fh: int, shown: int, ino: int) -> DirectoryHandle:
        """The open directory *ino*, which the kernel knows as *shown*, under a number of the table."""
        return self.directories.open(fh, ino, lambda: self._first(shown))

    def _first(self, ino: int) -> list[Item]:
        first = self.virtual.listing() if ino == ROOT else []
        return [*first, Item(b".", ino, constants.DIRECTORY, None), Item(b"..", ROOT, constants.DIRECTORY, None)]

    async def readdir(self, caller: Caller, ino: int, fh: int, cookie: int, size: int, plus: bool) -> Window:
        """Entries from position *cookie* on, at most what *size* bytes of reply can hold and none only at the end; the one at index
        i has the next cookie *cookie*+i+1."""
        handle = self.directories.get(fh)
        if cookie == 0 or not handle.started:
            self.directories.suspect(self.files.by_inode)  # what is written there may not be committed yet
            pages = self.meta.list_directory(caller, handle.ino, plus=plus)
            await (handle.resume(pages) if cookie else handle.start(pages))  # one of a predecessor's goes on where it was
        count = _fitting(size, plus)
        await handle.fill(cookie, count)
        return self.directories.current(handle, handle.window(cookie, count, freshness=self.timeouts.attr))

    def listed(self, fh: int, cookie: int, size: int, plus: bool) -> Window | None:
        """What `readdir` would answer now, None when it would have to wait for it or the handle is closed."""
        handle = self.directories.find(fh)
        if handle is None or not handle.known(cookie):
            return None
        count = _fitting(size, plus)
        handle.take_ahead(cookie + count)
        window = handle.window(cookie, count, freshness=self.timeouts.attr)
        return self.directories.current(handle, window)

    def told(self, window: Window, count: int) -> None:
        """The kernel is given the attributes of the first *count* entries."""
        self.files.tell_listed(window.inos[:count], window.attrs[:count])

    async def releasedir(self, caller: Caller, ino: int, fh: int) -> None:
        """Close a directory."""
        handle: DirectoryHandle = self.directories.get(fh)
        self.directories.close(fh)
        self.files.table.free(fh)
        await handle.close()

    async def fsyncdir(self, caller: Caller, ino: int, fh: int, datasync: bool) -> None:
        """Nothing to do: names are durable when their operation returns."""

    # -- extended attributes --------------------------------------------------------------------------------------

    async def setxattr(self, caller: Caller, ino: int, name: bytes, value: bytes, flags: int) -> None:
        """Set an attribute; checks in the order of format §5.3 xattr."""
        self._check_xattr(ino, name)
        if len(value) > _MAX_XATTR:
            raise FsError(errno.ERANGE)
        await self.meta.setxattr(caller, self._root if ino == ROOT else ino, name, value, flags)

    async def getxattr(self, caller: Caller, ino: int, name: bytes, size: int) -> bytes:
        """The value; FsError(ENODATA) when there is none, ERANGE when it is longer than a *size* that is not 0."""
        if ino >= SPECIAL or not self.xattrs or self._is_foreign(name):
            raise FsError(errno.ENODATA)
        value = await self.meta.getxattr(ino, name)
        if size and len(value) > size:
            raise FsError(errno.ERANGE)
        return value

    async def listxattr(self, caller: Caller, ino: int, size: int) -> list[bytes]:
        """The names; FsError(ERANGE) when they need more than a *size* that is not 0."""
        if ino >= SPECIAL or not self.xattrs:
            return []
        names = await self.meta.listxattr(ino)
        if size and sum(map(len, names)) + len(names) > size:
            raise FsError(errno.ERANGE)
        return names

    async def removexattr(self, caller: Caller, ino: int, name: bytes) -> None:
        """Remove an attribute; FsError(ENODATA) when there is none."""
        self._check_xattr(ino, name)
        await self.meta.removexattr(caller, self._root if ino == ROOT else ino, name)

    def _check_xattr(self, ino: int, name: bytes) -> None:
        if ino >= SPECIAL:
            raise FsError(errno.EPERM)
        if len(name) > 255:
            raise FsError(errno.ERANGE)
        if not name:
            raise FsError(errno.EINVAL)
        if not self.xattrs or self._is_foreign(name):
            raise FsError(errno.ENOTSUP)

    def _is_foreign(self, name: bytes) -> bool:
        """Whether attributes of that name are not served."""
        return name in self._refused or (name.startswith(b"system.") and not (self.acls and name in ACL_NAMES))


def _number(caller: Caller) -> int:
    """The kernel's number of the request, where it is kept."""
    return caller.request.number if caller.request is not None else 0


def _fitting(size: int, plus: bool) -> int:
    """How many entries a reply of *size* bytes holds at most."""
    return size // (160 if plus else 32) + 1


# Names that need --enable-cap and --enable-selinux (format §5.3 xattr).
_SECURITY: Final = frozenset((b"security.capability", b"security.selinux"))
_KINDS: Final = {
    0o100000: constants.FILE,
    0: constants.FILE,
    0o010000: constants.FIFO,
    0o060000: constants.BLOCK_DEVICE,
    0o020000: constants.CHAR_DEVICE,
    0o140000: constants.SOCKET,
}


def _kind(mode: int) -> int:
    kind = _KINDS.get(mode & 0o170000)
    if kind is None:
        raise FsError(errno.EINVAL)
    return kind


def _handle_error(error: FsError) -> FsError:
    """Errors of metadata that mean a handle's file is gone are EBADF for its writer (format §5.6)."""
    return FsError(errno.EBADF) if error.errno in (errno.ENOENT, errno.EPERM, errno.EINVAL) else error
