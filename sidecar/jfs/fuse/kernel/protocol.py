"""Structures of the FUSE protocol, version 7.31 to 7.38 (linux/fuse.h): decoding of requests, encoding of replies.

Pure functions on bytes. A decoder takes the node id, the buffer and the request's end and gives the arguments of the
handler after the caller; names and values are copied out, the data of a write stays a view of the buffer. An encoder gives
the reply's body. Nothing here suspends or knows the handlers.
"""

import os
import struct
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from jfs.format.constants import DIRECTORY
from jfs.fuse.requests import SIZE, Opened, SetAttr, Timeouts
from jfs.meta.model.attr import FORMATS, Attr
from jfs.meta.volume import StatFS

IN_HEADER: Final = struct.Struct("<IIQQIIIHH")  # len opcode unique nodeid uid gid pid total_extlen padding
OUT_HEADER: Final = struct.Struct("<IiQ")  # len error unique
HEADER: Final = IN_HEADER.size

FORGET, BATCH_FORGET, INIT, DESTROY, INTERRUPT = 2, 42, 26, 38, 36
NOTIFY_INVAL_INODE, NOTIFY_INVAL_ENTRY = 2, 3
FOPEN_DIRECT_IO, FOPEN_KEEP_CACHE, FOPEN_CACHE_DIR = 1 << 0, 1 << 1, 1 << 3

BLKSIZE: Final = 0x10000
GENERATION: Final = 1

_ATTR = struct.Struct("<QQQqqqIIIIIIIIII")
_ENTRY_ATTR = struct.Struct("<QQQQIIQQQqqqIIIIIIIIII")  # fuse_entry_out: 40 bytes, then fuse_attr
_ATTR_OUT = struct.Struct("<QIIQQQqqqIIIIIIIIII")
_OPEN_OUT = struct.Struct("<QII")
_WRITE_OUT = struct.Struct("<II")
_STATFS_OUT = struct.Struct("<QQQQQIIII24x")
_SIZE_OUT = struct.Struct("<II")
_ENTRY_ONLY = struct.Struct("<QQQQII")

_SETATTR = struct.Struct("<IIQQQQQQIIIIIIII")
_OPEN = struct.Struct("<II")
_CREATE = struct.Struct("<IIII")
_MKNOD = struct.Struct("<IIII")
_MKDIR = struct.Struct("<II")
_RENAME2 = struct.Struct("<QII")
_U64 = struct.Struct("<Q")
_FORGETS = struct.Struct("<II")
_FORGET_ONE = struct.Struct("<QQ")
_READ = struct.Struct("<QQIIQII")
_WRITE_HEAD = struct.Struct("<QQII8xI")
_WRITE_SIZE: Final = 40
_RELEASE = struct.Struct("<QIIQ")
_FLUSH = struct.Struct("<QIIQ")
_FSYNC = struct.Struct("<QI")
_SETXATTR = struct.Struct("<II")
_GETXATTR = struct.Struct("<II")
_GETATTR = struct.Struct("<IIQ")
_U32 = struct.Struct("<I")

_NO_NAME: Final = b""

Buffer = memoryview
Arguments = tuple[Any, ...]
Reply = bytes | bytearray | memoryview


class Valid(NamedTuple):
    """Time-outs as the protocol has them: (seconds, nanoseconds) of entries of files and of directories, of attributes,
    and of negative entries (None: not cached)."""

    attr: tuple[int, int]
    entry: tuple[int, int]
    dir_entry: tuple[int, int]
    negative: tuple[int, int] | None

    @classmethod
    def of(cls, timeouts: Timeouts) -> "Valid":
        """From seconds."""
        split = [divmod(int(seconds * 1e9), 1_000_000_000) for seconds in timeouts]
        return cls(split[0], split[1], split[2], split[3] if timeouts.negative > 0 else None)


# -- replies ------------------------------------------------------------------------------------------------------


def entry_out(ino: int, attr: Attr, valid: Valid) -> bytes:
    """fuse_entry_out."""
    _, kind_mode, uid, gid, at, an, mt, mn, ct, cn, nlink, length, rdev, *_ = attr
    kind = kind_mode >> 12
    entry, entry_nsec = valid.dir_entry if kind == DIRECTORY else valid.entry
    seconds, nsec = valid.attr
    return _ENTRY_ATTR.pack(
        ino, GENERATION, entry, seconds, entry_nsec, nsec, ino, length, (length + 511) >> 9, at, mt, ct, an, mn, cn,
        FORMATS.get(kind, 0) | kind_mode & 0o7777, nlink, uid, gid, rdev, BLKSIZE, 0,
    )  # fmt: skip


def attr_out(ino: int, attr: Attr, valid: Valid) -> bytes:
    """fuse_attr_out."""
    _, kind_mode, uid, gid, at, an, mt, mn, ct, cn, nlink, length, rdev, *_ = attr
    seconds, nsec = valid.attr
    return _ATTR_OUT.pack(
        seconds, nsec, 0, ino, length, (length + 511) >> 9, at, mt, ct, an, mn, cn,
        FORMATS.get(kind_mode >> 12, 0) | kind_mode & 0o7777, nlink, uid, gid, rdev, BLKSIZE, 0,
    )  # fmt: skip


def negative_out(valid: tuple[int, int]) -> bytes:
    """A fuse_entry_out that says "no such name", to be believed for *valid*."""
    return _ENTRY_ONLY.pack(0, 0, valid[0], 0, valid[1], 0) + bytes(_ATTR.size)


def open_out(opened: Opened) -> bytes:
    """fuse_open_out."""
    flags = 0
    if opened.keep_cache:
        flags |= FOPEN_KEEP_CACHE
    if opened.direct_io:
        flags |= FOPEN_DIRECT_IO
    if opened.cache_directory:
        flags |= FOPEN_CACHE_DIR
    return _OPEN_OUT.pack(opened.fh, flags, 0)


def statfs_out(totals: StatFS) -> bytes:
    """fuse_statfs_out: sizes in units of 4096 bytes."""
    total, used, inodes, free_inodes = totals[:4]
    free = max(total - used, 0) >> 12
    return _STATFS_OUT.pack(total >> 12, free, free, inodes + free_inodes, free_inodes, 4096, 255, 4096, 0)


# -- requests -----------------------------------------------------------------------------------------------------


def _name(node: int, view: Buffer, end: int) -> Arguments:
    return node, bytes(view[HEADER : end - 1])


def _getattr(node: int, view: Buffer, end: int) -> Arguments:
    flags, _, fh = _GETATTR.unpack_from(view, HEADER)
    return node, fh if flags & 1 else None


def _setattr(node: int, view: Buffer, end: int) -> Arguments:
    (valid, _, fh, size, _, atime, mtime, _, atimensec, mtimensec, _, mode, _, uid, gid, _) = _SETATTR.unpack_from(
        view, HEADER
    )
    change = SetAttr(valid, mode, uid, gid, size, _time(atime, atimensec), _time(mtime, mtimensec))
    return node, change, fh if valid & _FATTR_FH and valid & SIZE else None


_FATTR_FH: Final = 1 << 6


def _time(seconds: int, nanoseconds: int) -> int:
    if seconds >= 1 << 63:  # times before 1970 come as two's complement
        seconds -= 1 << 64
    return seconds * 1_000_000_000 + nanoseconds


def _node(node: int, view: Buffer, end: int) -> Arguments:
    return (node,)


def _mknod(node: int, view: Buffer, end: int) -> Arguments:
    mode, rdev, _, _ = _MKNOD.unpack_from(view, HEADER)
    return node, bytes(view[HEADER + 16 : end - 1]), mode, rdev


def _mkdir(node: int, view: Buffer, end: int) -> Arguments:
    mode, _ = _MKDIR.unpack_from(view, HEADER)
    return node, bytes(view[HEADER + 8 : end - 1]), mode


# Where the requests that make something have the caller's umask, after the header.
UMASK_AT: Final = {8: 8, 9: 4, 35: 8, 51: 8}


def umask(opcode: int, view: Buffer) -> int:
    """The umask in a request of `UMASK_AT`."""
    mask: int = _U32.unpack_from(view, HEADER + UMASK_AT[opcode])[0]
    return mask & 0o777


# Requests whose repetition would fail or do more: what makes, moves and removes, what opens, what sets an attribute, what appends.
ONCE: Final = frozenset((6, 8, 9, 10, 11, 12, 13, 14, 16, 21, 24, 27, 35, 45, 51))


def _symlink(node: int, view: Buffer, end: int) -> Arguments:
    name, target, *_ = bytes(view[HEADER:end]).split(b"\0")
    return node, name, target


def _rename(node: int, view: Buffer, end: int) -> Arguments:
    (parent,) = _U64.unpack_from(view, HEADER)
    name, newname, *_ = bytes(view[HEADER + 8 : end]).split(b"\0")
    return node, name, parent, newname, 0


def _rename2(node: int, view: Buffer, end: int) -> Arguments:
    parent, flags, _ = _RENAME2.unpack_from(view, HEADER)
    name, newname, *_ = bytes(view[HEADER + 16 : end]).split(b"\0")
    return node, name, parent, newname, flags


def _link(node: int, view: Buffer, end: int) -> Arguments:
    (ino,) = _U64.unpack_from(view, HEADER)
    return ino, node, bytes(view[HEADER + 8 : end - 1])


def _open(node: int, view: Buffer, end: int) -> Arguments:
    return node, _OPEN.unpack_from(view, HEADER)[0]


def _create(node: int, view: Buffer, end: int) -> Arguments:
    flags, mode, _, _ = _CREATE.unpack_from(view, HEADER)
    return node, bytes(view[HEADER + 16 : end - 1]), mode, flags


def _read(node: int, view: Buffer, end: int) -> Arguments:
    fh, offset, size, *_ = _READ.unpack_from(view, HEADER)
    return node, fh, offset, size


def _readdir(node: int, view: Buffer, end: int) -> Arguments:
    fh, offset, size, *_ = _READ.unpack_from(view, HEADER)
    return node, fh, offset, size, False


def _readdirplus(node: int, view: Buffer, end: int) -> Arguments:
    fh, offset, size, *_ = _READ.unpack_from(view, HEADER)
    return node, fh, offset, size, True


def _write(node: int, view: Buffer, end: int) -> Arguments:
    fh, offset, size, kind, flags = _WRITE_HEAD.unpack_from(view, HEADER)
    start = HEADER + _WRITE_SIZE
    append = (
        flags & os.O_APPEND != 0 and not kind & _WRITE_CACHE
    )  # the descriptor's flags now, which fcntl(2) may have changed
    return node, fh, offset, view[start : start + size], append


_WRITE_CACHE: Final = 1 << 0  # from the page cache: a mapping was written to


def _release(node: int, view: Buffer, end: int) -> Arguments:
    return node, _RELEASE.unpack_from(view, HEADER)[0]


def _flush(node: int, view: Buffer, end: int) -> Arguments:
    fh, _, _, owner = _FLUSH.unpack_from(view, HEADER)
    return node, fh, owner


def _fsync(node: int, view: Buffer, end: int) -> Arguments:
    fh, flags = _FSYNC.unpack_from(view, HEADER)
    return node, fh, bool(flags & 1)


def _setxattr(node: int, view: Buffer, end: int) -> Arguments:
    size, flags = _SETXATTR.unpack_from(view, HEADER)
    name, _, value = bytes(view[HEADER + 8 : end]).partition(b"\0")
    return node, name, value[:size], flags


def _getxattr(node: int, view: Buffer, end: int) -> Arguments:
    return node, bytes(view[HEADER + 8 : end - 1]), _GETXATTR.unpack_from(view, HEADER)[0]


def _listxattr(node: int, view: Buffer, end: int) -> Arguments:
    return node, _GETXATTR.unpack_from(view, HEADER)[0]


def _access(node: int, view: Buffer, end: int) -> Arguments:
    return node, _U32.unpack_from(view, HEADER)[0]


def forgotten(view: Buffer, opcode: int) -> list[int]:
    """The inodes of FORGET or BATCH_FORGET."""
    if opcode == FORGET:
        return [IN_HEADER.unpack_from(view)[3]]
    count, _ = _FORGETS.unpack_from(view, HEADER)
    return [_FORGET_ONE.unpack_from(view, HEADER + _FORGETS.size + _FORGET_ONE.size * at)[0] for at in range(count)]


def interrupted(view: Buffer) -> int:
    """The request that INTERRUPT is about."""
    unique: int = _U64.unpack_from(view, HEADER)[0]
    return unique


def invalidate_inode(ino: int) -> bytes:
    """The notification that attributes of *ino* are not valid any more."""
    body = struct.pack("<Qqq", ino, -1, 0)  # a negative offset: no pages
    return OUT_HEADER.pack(OUT_HEADER.size + len(body), NOTIFY_INVAL_INODE, 0) + body


def invalidate_entry(parent: int, name: bytes) -> bytes:
    """The notification that a name is not valid any more."""
    body = struct.pack("<QII", parent, len(name), 0) + name + b"\0"
    return OUT_HEADER.pack(OUT_HEADER.size + len(body), NOTIFY_INVAL_ENTRY, 0) + body


Decoder = Callable[[int, Buffer, int], Arguments]
Encoder = Callable[[Any, Arguments, Valid], Reply]


def _entry_reply(result: Any, args: Arguments, valid: Valid) -> Reply:
    return entry_out(result[0], result[1], valid)


def _attr_reply(result: Any, args: Arguments, valid: Valid) -> Reply:
    return attr_out(args[0], result, valid)


def _nothing(result: Any, args: Arguments, valid: Valid) -> Reply:
    return _NO_NAME


def _itself(result: Any, args: Arguments, valid: Valid) -> Reply:
    reply: Reply = result
    return reply


def _create_reply(result: Any, args: Arguments, valid: Valid) -> Reply:
    ino, attr, opened = result
    return entry_out(ino, attr, valid) + open_out(opened)


def _getxattr_reply(result: Any, args: Arguments, valid: Valid) -> Reply:
    value: bytes = result
    return value if args[2] else _SIZE_OUT.pack(len(value), 0)  # a buffer of 0 bytes asks for the size


def _listxattr_reply(result: Any, args: Arguments, valid: Valid) -> Reply:
    names = b"".join(name + b"\0" for name in result)
    return names if args[1] else _SIZE_OUT.pack(len(names), 0)


# opcode → (handler, decoder, encoder)
OPERATIONS: Final[dict[int, tuple[str, Decoder, Encoder]]] = {
    1: ("lookup", _name, _entry_reply),
    3: ("getattr", _getattr, _attr_reply),
    4: ("setattr", _setattr, _attr_reply),
    5: ("readlink", _node, _itself),
    6: ("symlink", _symlink, _entry_reply),
    8: ("mknod", _mknod, _entry_reply),
    9: ("mkdir", _mkdir, _entry_reply),
    10: ("unlink", _name, _nothing),
    11: ("rmdir", _name, _nothing),
    12: ("rename", _rename, _nothing),
    13: ("link", _link, _entry_reply),
    14: ("open", _open, lambda result, args, valid: open_out(result)),
    15: ("read", _read, _itself),
    16: ("write", _write, lambda result, args, valid: _WRITE_OUT.pack(result, 0)),
    17: ("statfs", _node, lambda result, args, valid: statfs_out(result)),
    18: ("release", _release, _nothing),
    20: ("fsync", _fsync, _nothing),
    21: ("setxattr", _setxattr, _nothing),
    22: ("getxattr", _getxattr, _getxattr_reply),
    23: ("listxattr", _listxattr, _listxattr_reply),
    24: ("removexattr", _name, _nothing),
    25: ("flush", _flush, _nothing),
    27: ("opendir", _node, lambda result, args, valid: open_out(result)),
    28: ("readdir", _readdir, _itself),  # packed by `listing`
    29: ("releasedir", _release, _nothing),
    30: ("fsyncdir", _fsync, _nothing),
    34: ("access", _access, _nothing),
    35: ("create", _create, _create_reply),
    44: ("readdir", _readdirplus, _itself),
    45: ("rename", _rename2, _nothing),
}
