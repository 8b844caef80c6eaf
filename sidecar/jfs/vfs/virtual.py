"""The virtual files of a mount's root: `.accesslog`, `.control`, `.stats`, `.config` (format §8.1).

They have inode numbers beyond every real one and no records. Their content is made when they are opened (`.stats`,
`.config`) or flows while they are read (`.accesslog`, `.control`); the kernel must not cache it (direct I/O) and sees size 0.
The directory `.trash` is real, but shown with made-up attributes as the real client does.
Concurrency: event loop; reads of the flowing files suspend, others do not.
"""

import errno
import os
import time
from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple, Protocol

from jfs.errors import FsError
from jfs.format import constants
from jfs.meta.model.attr import Attr
from jfs.meta.volume import Caller
from jfs.vfs.access_log import AccessLog, LogReader
from jfs.vfs.control import Answer, ControlHandle
from jfs.vfs.directories import Item

_LISTED: Final = (constants.ACCESSLOG_INO, constants.STATS_INO, constants.CONFIG_INO)


class VirtualOptions(NamedTuple):
    """How the virtual files are shown (format §8.1): names prefixed by `.jfs`, left out of listings, trash shown."""

    prefix: bool = False
    hidden: bool = False
    trash: bool = True


class VirtualHandle(Protocol):
    """An open virtual file."""

    async def read(self, offset: int, size: int) -> bytes: ...
    async def write(self, data: bytes, caller: Caller) -> int: ...
    def close(self) -> None: ...


class _Text:
    """Content fixed at open."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    async def read(self, offset: int, size: int) -> bytes:
        return self._content[offset : offset + size]

    async def write(self, data: bytes, caller: Caller) -> int:
        raise FsError(errno.EACCES)

    def close(self) -> None:
        return


class _Log:
    def __init__(self, log: AccessLog) -> None:
        self._log = log
        self._reader: LogReader = log.subscribe()

    async def read(self, offset: int, size: int) -> bytes:
        return await self._reader.read(size)

    async def write(self, data: bytes, caller: Caller) -> int:
        raise FsError(errno.EACCES)

    def close(self) -> None:
        self._log.unsubscribe(self._reader)


class VirtualFiles:
    """The virtual entries of one mount."""

    def __init__(
        self,
        log: AccessLog,
        control: Answer,
        *,
        stats: Callable[[], Awaitable[str]],
        config: Callable[[], Awaitable[str]],
        options: VirtualOptions | None = None,
    ) -> None:
        options = options or VirtualOptions()
        prefix = b".jfs" if options.prefix else b""
        modes = {
            b".accesslog": (constants.ACCESSLOG_INO, 0o400),
            b".control": (constants.CONTROL_INO, 0o666),
            b".stats": (constants.STATS_INO, 0o444),
            b".config": (constants.CONFIG_INO, 0o400),
        }
        now = divmod(time.time_ns(), 1_000_000_000)
        self._attrs = {
            ino: _attr(constants.FILE, mode, os.getuid(), os.getgid(), 1, now) for ino, mode in modes.values()
        }
        self.names = {prefix + name: ino for name, (ino, _) in modes.items()}
        self.control_name = prefix + b".control"
        if options.trash:
            self._attrs[constants.TRASH] = _attr(constants.DIRECTORY, 0o555, 0, 0, 2, now)
            self.names[prefix + constants.TRASH_NAME] = constants.TRASH
        self._hidden = options.hidden
        self._log = log
        self._control = control
        self._stats = stats
        self._config = config
        self._handles: dict[int, VirtualHandle] = {}
        self._inodes: dict[int, int] = {}

    def inode(self, fh: int) -> int:
        """The virtual inode that *fh* is open on, 0 when it is none."""
        return self._inodes.get(fh, 0)

    def attr(self, ino: int) -> Attr:
        """Attributes of a virtual inode; FsError(ENOENT) for numbers that are none."""
        attr = self._attrs.get(ino)
        if attr is None:
            raise FsError(errno.ENOENT)
        return attr

    def listing(self) -> list[Item]:
        """What is listed first in the root; `.control` never is."""
        if self._hidden:
            return []
        shown = (*_LISTED, constants.TRASH)
        return [Item(name, ino, self._attrs[ino].kind, None) for name, ino in self.names.items() if ino in shown]

    async def open(self, ino: int, flags: int, fh: int) -> None:
        """Open a virtual file as *fh*; FsError(EACCES) for writing anything but `.control`."""
        self.attr(ino)
        if ino != constants.CONTROL_INO and flags & (os.O_WRONLY | os.O_RDWR):
            raise FsError(errno.EACCES)
        handle: VirtualHandle
        if ino == constants.ACCESSLOG_INO:
            handle = _Log(self._log)
        elif ino == constants.CONTROL_INO:
            handle = ControlHandle(self._control)
        elif ino == constants.STATS_INO:
            handle = _Text((await self._stats()).encode())
        else:
            handle = _Text((await self._config()).encode())
        self._handles[fh] = handle
        self._inodes[fh] = ino

    def get(self, fh: int) -> VirtualHandle:
        """The handle; FsError(EBADF) when there is none."""
        handle = self._handles.get(fh)
        if handle is None:
            raise FsError(errno.EBADF)
        return handle

    def release(self, fh: int) -> None:
        """Close the handle."""
        self._inodes.pop(fh, None)
        handle = self._handles.pop(fh, None)
        if handle is not None:
            handle.close()


def _attr(kind: int, mode: int, uid: int, gid: int, nlink: int, now: tuple[int, int]) -> Attr:
    return Attr(0, kind << 12 | mode, uid, gid, *now, *now, *now, nlink, 0, 0, constants.ROOT)
