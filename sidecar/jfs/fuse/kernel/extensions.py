"""Structures of the requests that not every FUSE library knows (linux/fuse.h): locks, ranges, holes, copies, inode flags, nameless
files. `OPERATIONS` complements that of `protocol`, under the same rules.
"""

import struct
from typing import Any, Final

from jfs.fuse.kernel.protocol import (
    HEADER,
    Arguments,
    Buffer,
    Decoder,
    Encoder,
    Reply,
    Valid,
    entry_out,
    open_out,
)
from jfs.meta.model.locks import UNLOCK, Range

LOCKING: Final = (32, 33)
IOCTL: Final = 39

_TMPFILE = struct.Struct("<II")
_FALLOCATE = struct.Struct("<QQQI4x")
_LSEEK = struct.Struct("<QQI4x")
_COPY = struct.Struct("<QQQQQQQ")
_IOCTL = struct.Struct("<QIIQII")
_IOCTL_OUT = struct.Struct("<iIII")
_LOCK = struct.Struct("<QQQQIII4x")
_LOCK_OUT = struct.Struct("<QQII")
_U64 = struct.Struct("<Q")
_COPIED = struct.Struct("<II")
_LK_FLOCK: Final = 1 << 0


def _node(node: int, view: Buffer, end: int) -> Arguments:
    return (node,)


def _fallocate(node: int, view: Buffer, end: int) -> Arguments:
    fh, offset, size, mode = _FALLOCATE.unpack_from(view, HEADER)
    return node, fh, mode, offset, size


def _lseek(node: int, view: Buffer, end: int) -> Arguments:
    fh, offset, whence = _LSEEK.unpack_from(view, HEADER)
    return node, fh, offset, whence


def _copy(node: int, view: Buffer, end: int) -> Arguments:
    fh, offset, target, to_fh, position, size, flags = _COPY.unpack_from(view, HEADER)
    return node, fh, offset, target, to_fh, position, size, flags


def _ioctl(node: int, view: Buffer, end: int) -> Arguments:
    fh, _, command, _, size, room = _IOCTL.unpack_from(view, HEADER)
    start = HEADER + _IOCTL.size
    return node, fh, command, bytes(view[start : min(start + size, end)]), room


def _tmpfile(node: int, view: Buffer, end: int) -> Arguments:
    flags, mode = _TMPFILE.unpack_from(view, HEADER)
    return node, mode, flags


def _getlk(node: int, view: Buffer, end: int) -> Arguments:
    fh, owner, start, last, kind, pid, _ = _LOCK.unpack_from(view, HEADER)
    return node, fh, owner, Range(kind, pid, start, last)


def _setlk(node: int, view: Buffer, end: int) -> Arguments:
    fh, owner, start, last, kind, pid, flags = _LOCK.unpack_from(view, HEADER)
    return node, fh, owner, Range(kind, pid, start, last), bool(flags & _LK_FLOCK)


def _nothing(result: Any, args: Arguments, valid: Valid) -> Reply:
    return b""


def _getlk_reply(result: Any, args: Arguments, valid: Valid) -> Reply:
    found: Range = result or Range(UNLOCK, 0, 0, 0)
    return _LOCK_OUT.pack(found.start, found.end, found.kind, found.pid)


def _tmpfile_reply(result: Any, args: Arguments, valid: Valid) -> Reply:
    ino, attr, opened = result
    return entry_out(ino, attr, valid) + open_out(opened)


# opcode → (handler, decoder, encoder)
OPERATIONS: Final[dict[int, tuple[str, Decoder, Encoder]]] = {
    31: ("getlk", _getlk, _getlk_reply),
    32: ("setlk", _setlk, _nothing),
    33: ("setlkw", _setlk, _nothing),
    IOCTL: ("ioctl", _ioctl, lambda result, args, valid: _IOCTL_OUT.pack(0, 0, 0, 0) + result),
    43: ("fallocate", _fallocate, _nothing),
    46: ("lseek", _lseek, lambda result, args, valid: _U64.pack(result)),
    47: ("copy_file_range", _copy, lambda result, args, valid: _COPIED.pack(result, 0)),
    50: ("syncfs", _node, _nothing),
    51: ("tmpfile", _tmpfile, _tmpfile_reply),
    53: ("copy_file_range", _copy, lambda result, args, valid: _U64.pack(result)),
}
