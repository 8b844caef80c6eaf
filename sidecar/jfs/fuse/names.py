"""The requests that make, link, move and remove names. A part of `Handlers`, under the same rules: coroutines in the protocol's names that
return records or raise FsError. What each did is noted with the listings under way, which would else show it as it was.
"""

import errno
from typing import Final

from jfs.errors import FsError
from jfs.format import constants
from jfs.format.constants import ROOT, SPECIAL
from jfs.meta.model.attr import Attr
from jfs.meta.volume import Caller, Meta
from jfs.vfs.directories import Directories
from jfs.vfs.files import Files
from jfs.vfs.virtual import VirtualFiles

_EXCHANGE: Final = 2
_WHITEOUT: Final = 4


class Names:
    """See the module."""

    meta: Meta
    files: Files
    directories: Directories
    virtual: VirtualFiles
    _root: int
    _umask: int | None
    _nameless: set[int]

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
