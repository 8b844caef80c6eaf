"""The requests for extended attributes (format §5.3 xattr). A part of `Handlers`, under the same rules. POSIX ACLs are some of them."""

import errno
from typing import Final

from jfs.errors import FsError
from jfs.format.constants import ROOT, SPECIAL
from jfs.meta.model.acl import ACL_NAMES
from jfs.meta.volume import Caller, Meta

_MAX_XATTR: Final = 65536
# Names that need --enable-cap and --enable-selinux (format §5.3 xattr).
SECURITY: Final = frozenset((b"security.capability", b"security.selinux"))


class Xattrs:
    """See the module."""

    meta: Meta
    xattrs: bool
    acls: bool
    _root: int
    _refused: frozenset[bytes]
    _access_checked: bool

    async def setxattr(self, caller: Caller, ino: int, name: bytes, value: bytes, flags: int) -> None:
        """Set an attribute; checks in the order of format §5.3 xattr."""
        self._check_xattr(ino, name)
        if len(value) > _MAX_XATTR:
            raise FsError(errno.ERANGE)
        ino = self._root if ino == ROOT else ino
        if caller.checked or not self._access_checked:
            await self.meta.permit_xattr(caller, ino, name, write=True)
        await self.meta.setxattr(caller, ino, name, value, flags)

    async def getxattr(self, caller: Caller, ino: int, name: bytes, size: int) -> bytes:
        """The value; FsError(ENODATA) when there is none, ERANGE when it is longer than a *size* that is not 0."""
        if ino >= SPECIAL or not self.xattrs or self._is_foreign(name):
            raise FsError(errno.ENODATA)
        if caller.checked or not self._access_checked:
            await self.meta.permit_xattr(caller, ino, name, write=False)
        value = await self.meta.getxattr(ino, name)
        if size and len(value) > size:
            raise FsError(errno.ERANGE)
        return value

    async def listxattr(self, caller: Caller, ino: int, size: int) -> list[bytes]:
        """The names; FsError(ERANGE) when they need more than a *size* that is not 0."""
        if ino >= SPECIAL or not self.xattrs:
            return []
        names = await self.meta.listxattr(ino)
        if caller.uid:  # as xattr(7) has it of those without CAP_SYS_ADMIN
            names = [name for name in names if not name.startswith(b"trusted.")]
        if size and sum(map(len, names)) + len(names) > size:
            raise FsError(errno.ERANGE)
        return names

    async def removexattr(self, caller: Caller, ino: int, name: bytes) -> None:
        """Remove an attribute; FsError(ENODATA) when there is none."""
        self._check_xattr(ino, name)
        ino = self._root if ino == ROOT else ino
        if caller.checked or not self._access_checked:
            await self.meta.permit_xattr(caller, ino, name, write=True)
        await self.meta.removexattr(caller, ino, name)

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
