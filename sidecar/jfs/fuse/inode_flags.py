"""Inode flags as ioctl(2) shows them: FS_IOC_GETFLAGS, SETFLAGS, FSGETXATTR, FSSETXATTR (linux/fs.h, format §5.3 ioctl).

The volume knows three: immutable, append-only, and skip-trash, which chattr(1) calls `s` (secure deletion). The xflags of
FSGETXATTR have no name for the last, so setting those leaves it. Pure.
"""

import errno
import struct
from typing import Final

from jfs.errors import FsError
from jfs.format.constants import APPEND, IMMUTABLE, SKIP_TRASH

_GET: Final = frozenset((0x8008_6601, 0x8004_6601))  # by size of `long`, and of `int` as programs of 32 bits have it
_SET: Final = frozenset((0x4008_6602, 0x4004_6602))
_GET_X: Final = 0x801C_581F
_SET_X: Final = 0x401C_5820
_XATTR: Final = struct.Struct("<IIIII8x")  # xflags extsize nextents projid cowextsize

_FLAGS: Final = {0x10: IMMUTABLE, 0x20: APPEND, 0x01: SKIP_TRASH}  # FS_IMMUTABLE_FL, FS_APPEND_FL, FS_SECRM_FL
_XFLAGS: Final = {0x08: IMMUTABLE, 0x10: APPEND}  # FS_XFLAG_IMMUTABLE, FS_XFLAG_APPEND


def is_known(command: int) -> bool:
    """Whether *command* is one of the four."""
    return command in _GET or command in _SET or command in (_GET_X, _SET_X)


def reads(command: int) -> bool:
    """Whether *command* only asks."""
    return command in _GET or command == _GET_X


def encoded(command: int, flags: int) -> bytes:
    """The answer to a reading *command* for an inode with the volume's *flags*; the kernel takes the first 4 bytes of 8, or all."""
    if command == _GET_X:
        return _XATTR.pack(_translated(flags, _XFLAGS), 0, 0, 0, 0)
    return struct.pack("<Q", _translated(flags, _FLAGS))


def decoded(command: int, data: bytes, present: int) -> int:
    """The volume's flags after a setting *command* with its *data*; *present* are those before. FsError: ENOTSUP for flags that
    the volume has not, EINVAL for too little data."""
    if command == _SET_X:
        if len(data) < _XATTR.size:
            raise FsError(errno.EINVAL)
        xflags, *others = _XATTR.unpack_from(data)
        if any(others):
            raise FsError(errno.ENOTSUP)
        return present & ~(IMMUTABLE | APPEND) | _parsed(xflags, _XFLAGS)
    if len(data) < 4:
        raise FsError(errno.EINVAL)
    return present & ~(IMMUTABLE | APPEND | SKIP_TRASH) | _parsed(int.from_bytes(data[:4], "little"), _FLAGS)


def _translated(flags: int, table: dict[int, int]) -> int:
    return sum(shown for shown, kept in table.items() if flags & kept)


def _parsed(shown: int, table: dict[int, int]) -> int:
    if shown & ~sum(table):
        raise FsError(errno.ENOTSUP)
    return sum(kept for bit, kept in table.items() if shown & bit)
