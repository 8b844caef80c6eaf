"""The host that feeds the handlers through pyfuse3 (libfuse 3) on asyncio, with our own wait for requests (`readiness`).

The mountpoint is attached by `mounting` as for the other host; libfuse serves the descriptor. pyfuse3 keeps its session in
module globals: one such host per process. Invariant: no exception but FUSEError leaves a method of `_Operations`, `_run` is the
one place where errors are translated.
"""

import asyncio
import errno
import logging
import os
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Final

import pyfuse3
import pyfuse3.asyncio

from jfs.errors import FsError
from jfs.fuse import requests
from jfs.fuse.accounting import Accounting, errno_of
from jfs.fuse.handlers import Handlers
from jfs.fuse.mounting import Attached, MountError, MountSpec, set_read_ahead
from jfs.fuse.readiness import Readiness
from jfs.fuse.requests import SetAttr
from jfs.meta.model.attr import Attr
from jfs.meta.volume import Caller

log = logging.getLogger("jfs.fuse")
WORKERS: Final = 64
_LISTING: Final = 32 << 10  # bytes of entries asked for at once; libfuse does not tell how much fits
_BILLION: Final = 1_000_000_000
_NOBODY: Final = Caller(0, 0, 0)  # pyfuse3 does not tell who reads and writes


class Pyfuse3Host:
    """One mount served by pyfuse3."""

    def __init__(
        self,
        handlers: Handlers,
        accounting: Accounting,
        spec: MountSpec,
        *,
        readahead_kib: int = 1024,
        writeback: bool = False,
    ) -> None:
        """With *writeback* the kernel may keep what is written for a while."""
        self._spec = spec
        self._readahead_kib = readahead_kib
        self._operations = _Operations(handlers, accounting)
        self._operations.enable_writeback_cache = handlers.files.writes_back = writeback
        self._readiness: Readiness | None = None
        self._open = False
        self._attached: Attached | None = None
        self.invalidator = _Invalidator()

    @property
    def inflight(self) -> int:
        """Requests whose handlers have not ended."""
        return self._operations.inflight

    @property
    def oldest(self) -> float:
        """Not known: libfuse keeps the requests."""
        return 0.0

    @property
    def repeated(self) -> int:
        """None: libfuse's connection cannot be taken over."""
        return 0

    @property
    def connection(self) -> None:
        """None: libfuse's connection cannot be taken over."""
        return

    def leave(self) -> None:
        """As there is no successor: unmount."""
        self.unmount()

    async def mount(self) -> None:
        """Attach the mountpoint and give its descriptor to libfuse."""
        self._attached = Attached(self._spec)
        fd = self._attached.fd
        os.set_blocking(fd, True)
        pyfuse3.asyncio.enable()
        options = {"default_permissions"} if self._spec.default_permissions else set()
        try:
            pyfuse3.init(self._operations, f"/dev/fd/{fd}", options)
        except RuntimeError as error:
            os.close(fd)
            self._attached.detach()
            raise MountError(f"libfuse refused the mount on {self._spec.mountpoint}: {error}") from error
        self._open = True
        self._readiness = Readiness(fd)
        pyfuse3._wait_fuse_readable = self._readiness.wait  # type: ignore[attr-defined]

    async def serve(self, ready: Callable[[], Awaitable[None]]) -> None:
        """Answer requests until the file system is unmounted or `close`."""
        serving = asyncio.create_task(pyfuse3.main(min_tasks=1, max_tasks=WORKERS))

        async def announce() -> None:
            await self._operations.initialised.wait()
            await asyncio.to_thread(set_read_ahead, self._spec.mountpoint, self._readahead_kib)
            await ready()

        announcement = asyncio.create_task(announce())
        try:
            await asyncio.wait((announcement, serving), return_when=asyncio.FIRST_COMPLETED)
            if announcement.done():
                announcement.result()
            await serving
        finally:
            announcement.cancel()
            await asyncio.gather(announcement, return_exceptions=True)

    def unmount(self) -> None:
        """Detach the mountpoint; what is open keeps working until it is closed, then `serve` returns."""
        if self._attached is not None:
            self._attached.detach()

    async def close(self) -> None:
        """Let the workers return, then give up the descriptor."""
        if self._readiness is not None:
            self._readiness.end()
        while self._operations.inflight:
            await self._operations.idle.wait()
        self.unmount()
        if self._open:
            self._open = False
            pyfuse3.close(unmount=False)


class _Invalidator:
    """Notes to the kernel by libfuse. Pages are dropped by the kernel itself, for the reason that the kernel host gives."""

    def entry(self, parent: int, name: bytes) -> None:
        pyfuse3.invalidate_entry_async(pyfuse3.InodeT(parent), pyfuse3.FileNameT(name), ignore_enoent=True)

    def inode(self, ino: int) -> None:
        _invalidate(ino)

    def attributes(self, ino: int) -> None:
        _invalidate(ino)


def _invalidate(ino: int) -> None:
    try:
        pyfuse3.invalidate_inode(pyfuse3.InodeT(ino), attr_only=True)
    except OSError as error:
        if error.errno not in (
            errno.ENOENT,
            errno.ENODEV,
            errno.ENOTCONN,
        ):  # nothing was cached, or the mount has ended
            log.warning("a note to the kernel was refused: %s", error)


class _Operations(pyfuse3.Operations):
    """pyfuse3's methods in terms of the handlers."""

    supports_dot_lookup = False
    enable_writeback_cache = False
    enable_acl = False

    def __init__(self, handlers: Handlers, accounting: Accounting) -> None:
        super().__init__()
        self._handlers = handlers
        self._accounting = accounting
        self._timeouts = handlers.timeouts
        self._counters: dict[str, Any] = {}
        self.inflight = 0
        self.idle = asyncio.Event()
        self.initialised = asyncio.Event()

    def init(self) -> None:
        self.initialised.set()

    async def _run(self, name: str, ctx: Any, *args: Any) -> Any:
        """Run the handler *name*; FUSEError for whatever it raises."""
        started = time.perf_counter()
        caller = Caller(ctx.uid, ctx.gid, ctx.pid) if ctx is not None else _NOBODY
        operation = self._counters.get(name)
        if operation is None:
            operation = self._counters[name] = self._accounting.operation(name)
        handler: Callable[..., Coroutine[Any, Any, Any]] = getattr(self._handlers, name)
        self.inflight += 1
        self.idle.clear()
        try:
            result = await handler(caller, *args)
        except Exception as error:
            number = errno_of(error, name, args)
            self._accounting.finish(operation, caller, args, None, number, started)
            raise pyfuse3.FUSEError(number) from None
        finally:
            self.inflight -= 1
            self.idle.set()
        self._accounting.finish(operation, caller, args, result, 0, started)
        return result

    def _attributes(self, ino: int, attr: Attr) -> pyfuse3.EntryAttributes:
        timeouts = self._timeouts
        out = pyfuse3.EntryAttributes()
        out.st_ino = pyfuse3.InodeT(ino)
        out.generation = 1
        mode = out.st_mode = pyfuse3.ModeT(attr.st_mode)
        out.entry_timeout = timeouts.dir_entry if mode & 0o170000 == 0o040000 else timeouts.entry
        out.attr_timeout = timeouts.attr
        out.st_nlink, out.st_uid, out.st_gid, out.st_rdev = attr.nlink, attr.uid, attr.gid, attr.rdev
        out.st_size, out.st_blksize, out.st_blocks = attr.length, 0x10000, (attr.length + 511) >> 9
        out.st_atime_ns = attr.atime * _BILLION + attr.atimensec
        out.st_mtime_ns = attr.mtime * _BILLION + attr.mtimensec
        out.st_ctime_ns = attr.ctime * _BILLION + attr.ctimensec
        return out

    def _inode_of(self, fh: int) -> int:
        """pyfuse3 hides the inode of requests on handles."""
        return self._handlers.inode_of(fh)

    async def lookup(self, parent_inode: int, name: bytes, ctx: Any) -> pyfuse3.EntryAttributes:
        try:
            return self._attributes(*await self._run("lookup", ctx, parent_inode, name))
        except pyfuse3.FUSEError as error:
            if error.errno != errno.ENOENT or self._timeouts.negative <= 0:
                raise
            missing = pyfuse3.EntryAttributes()
            missing.st_ino = pyfuse3.InodeT(0)
            missing.entry_timeout = self._timeouts.negative
            return missing

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        """Nothing to do: inodes are not kept for the kernel."""

    async def getattr(self, inode: int, ctx: Any) -> pyfuse3.EntryAttributes:
        return self._attributes(inode, await self._run("getattr", ctx, inode, None))

    async def setattr(
        self, inode: int, attr: pyfuse3.EntryAttributes, fields: pyfuse3.SetattrFields, fh: int | None, ctx: Any
    ) -> pyfuse3.EntryAttributes:
        valid = 0
        for wanted, bit in (
            (fields.update_mode, requests.MODE),
            (fields.update_uid, requests.UID),
            (fields.update_gid, requests.GID),
            (fields.update_size, requests.SIZE),
            (fields.update_atime, requests.ATIME),  # "now" comes as a time from libfuse
            (fields.update_mtime, requests.MTIME),
        ):
            if wanted:
                valid |= bit
        change = SetAttr(
            valid, attr.st_mode, attr.st_uid, attr.st_gid, attr.st_size, attr.st_atime_ns, attr.st_mtime_ns
        )
        return self._attributes(inode, await self._run("setattr", ctx, inode, change, fh))

    async def readlink(self, inode: int, ctx: Any) -> Any:
        return await self._run("readlink", ctx, inode)

    async def mknod(self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: Any) -> pyfuse3.EntryAttributes:
        return self._attributes(*await self._run("mknod", ctx, parent_inode, name, mode, rdev))

    async def mkdir(self, parent_inode: int, name: bytes, mode: int, ctx: Any) -> pyfuse3.EntryAttributes:
        return self._attributes(*await self._run("mkdir", ctx, parent_inode, name, mode))

    async def unlink(self, parent_inode: int, name: bytes, ctx: Any) -> None:
        await self._run("unlink", ctx, parent_inode, name)

    async def rmdir(self, parent_inode: int, name: bytes, ctx: Any) -> None:
        await self._run("rmdir", ctx, parent_inode, name)

    async def symlink(self, parent_inode: int, name: bytes, target: bytes, ctx: Any) -> pyfuse3.EntryAttributes:
        return self._attributes(*await self._run("symlink", ctx, parent_inode, name, target))

    async def rename(
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        ctx: Any,
    ) -> None:
        await self._run("rename", ctx, parent_inode_old, name_old, parent_inode_new, name_new, flags)

    async def link(self, inode: int, new_parent_inode: int, new_name: bytes, ctx: Any) -> pyfuse3.EntryAttributes:
        return self._attributes(*await self._run("link", ctx, inode, new_parent_inode, new_name))

    async def open(self, inode: int, flags: int, ctx: Any) -> pyfuse3.FileInfo:
        return _file_info(await self._run("open", ctx, inode, flags))

    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: Any
    ) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
        ino, attr, opened = await self._run("create", ctx, parent_inode, name, mode, flags)
        return _file_info(opened), self._attributes(ino, attr)

    async def read(self, fh: int, off: int, size: int) -> Any:
        return await self._run("read", None, self._inode_of(fh), fh, off, size)

    async def write(self, fh: int, off: int, buf: bytes) -> int:
        written: int = await self._run("write", None, self._inode_of(fh), fh, off, buf)
        return written

    async def flush(self, fh: int) -> None:
        await self._run("flush", None, self._inode_of(fh), fh, 0)

    async def fsync(self, fh: int, datasync: bool) -> None:
        await self._run("fsync", None, self._inode_of(fh), fh, datasync)

    async def release(self, fh: int) -> None:
        await self._run("release", None, self._inode_of(fh), fh)

    async def opendir(self, inode: int, ctx: Any) -> Any:
        return (await self._run("opendir", ctx, inode)).fh

    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        cookie = start_id
        while True:
            items = await self._run("readdir", None, self._inode_of(fh), fh, cookie, _LISTING, True)
            if not items:
                return
            for item in items:
                cookie += 1
                if item is None or item.name in (b".", b".."):
                    continue
                attr = item.attr
                if attr is None:
                    try:
                        attr = await self._handlers.getattr(_NOBODY, item.ino)
                    except FsError:
                        continue  # gone meanwhile
                    except Exception as error:
                        raise pyfuse3.FUSEError(errno_of(error, "readdir", (fh,))) from None
                if not pyfuse3.readdir_reply(token, item.name, self._attributes(item.ino, attr), cookie):
                    return
                self._handlers.files.tell(item.ino, attr)

    async def releasedir(self, fh: int) -> None:
        await self._run("releasedir", None, 0, fh)

    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        await self._run("fsyncdir", None, 0, fh, datasync)

    async def statfs(self, ctx: Any) -> pyfuse3.StatvfsData:
        totals = await self._run("statfs", ctx, 1)
        out = pyfuse3.StatvfsData()
        out.f_bsize = out.f_frsize = 4096
        out.f_blocks = totals.total >> 12
        out.f_bfree = out.f_bavail = max(totals.total - totals.used, 0) >> 12
        out.f_files = totals.inodes + totals.free_inodes
        out.f_ffree = out.f_favail = totals.free_inodes
        out.f_namemax = 255
        return out

    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: Any) -> None:
        await self._run("setxattr", ctx, inode, name, value, 0)

    async def getxattr(self, inode: int, name: bytes, ctx: Any) -> bytes:
        if not self._handlers.xattrs:
            raise pyfuse3.FUSEError(errno.ENOSYS)  # the kernel then never asks again
        value: bytes = await self._run("getxattr", ctx, inode, name, 0)
        return value

    async def listxattr(self, inode: int, ctx: Any) -> Any:
        return await self._run("listxattr", ctx, inode, 0)

    async def removexattr(self, inode: int, name: bytes, ctx: Any) -> None:
        await self._run("removexattr", ctx, inode, name)

    async def access(self, inode: int, mode: int, ctx: Any) -> bool:
        await self._run("access", ctx, inode, mode)
        return True


def _file_info(opened: requests.Opened) -> pyfuse3.FileInfo:
    return pyfuse3.FileInfo(fh=pyfuse3.FileHandleT(opened.fh), direct_io=opened.direct_io, keep_cache=opened.keep_cache)
