"""The attributes of an inode and its directory entry (format §3.1, §3.3), immutable and cheap to decode.

Field order and split (seconds apart from nanoseconds, type and mode in one number) are those of the stored form and of
the FUSE protocol, so neither decoding nor answering the kernel computes anything. Engines that store another form (SQL)
convert in their own codec.
"""

import stat
import struct
from collections.abc import Sequence
from typing import Final, NamedTuple

from jfs.errors import CorruptRecord
from jfs.format import constants

_STORED = struct.Struct(">BHIIqIqIqIIQIQ")  # 71 bytes: flags … parent
_ACL = struct.Struct(">II")

FORMATS: Final = {
    constants.FILE: stat.S_IFREG,
    constants.DIRECTORY: stat.S_IFDIR,
    constants.SYMLINK: stat.S_IFLNK,
    constants.FIFO: stat.S_IFIFO,
    constants.BLOCK_DEVICE: stat.S_IFBLK,
    constants.CHAR_DEVICE: stat.S_IFCHR,
    constants.SOCKET: stat.S_IFSOCK,
}
KINDS: Final = {mode: kind for kind, mode in FORMATS.items()}


class Attr(NamedTuple):
    """Attributes; times are (seconds, nanoseconds) since the epoch, length is in bytes, parent 0 means several parents."""

    flags: int
    kind_mode: int  # type code << 12 | permission bits with suid, sgid, sticky
    uid: int
    gid: int
    atime: int
    atimensec: int
    mtime: int
    mtimensec: int
    ctime: int
    ctimensec: int
    nlink: int
    length: int
    rdev: int
    parent: int
    access_acl: int = 0
    default_acl: int = 0
    tier: int = 0

    @property
    def kind(self) -> int:
        """Type code of the format (1 file, 2 directory, …), not S_IFMT."""
        return self.kind_mode >> 12

    @property
    def mode(self) -> int:
        """The twelve permission bits."""
        return self.kind_mode & 0o7777

    @property
    def st_mode(self) -> int:
        """stat(2)'s st_mode."""
        return FORMATS.get(self.kind_mode >> 12, 0) | self.kind_mode & 0o7777

    def with_mode(self, mode: int) -> "Attr":
        """The same with other permission bits."""
        return self._replace(kind_mode=self.kind_mode & 0xF000 | mode & 0o7777)

    def pack(self) -> bytes:
        """The stored form (Redis, TKV) with its trailing pad byte."""
        head = _STORED.pack(*self[:14])
        if self.access_acl or self.default_acl:
            head += _ACL.pack(self.access_acl, self.default_acl)
        return head + (bytes((self.tier, 0)) if self.tier else b"\0")


def unpack_attr(raw: bytes) -> Attr:
    """Decode the stored form in any of its lengths (72, 73, 80, 81; 71 and older 63 are accepted)."""
    size = len(raw)
    if size == 72 and not raw[71]:
        return Attr._make((*_STORED.unpack_from(raw), 0, 0, 0))
    if size < 63:
        raise CorruptRecord(f"an attribute record has {size} bytes, fewer than 63")
    if size < 71:
        return Attr._make((*_STORED.unpack_from(raw[:63] + bytes(8)), 0, 0, 0))
    access = default = 0
    at = 71
    if size - at >= 8:
        access, default = _ACL.unpack_from(raw, at)
        at += 8
    tier = raw[at] if size > at else 0
    return Attr._make((*_STORED.unpack_from(raw), access, default, tier))


_ENTRY = struct.Struct(">BQ")


class Entry(NamedTuple):
    """A directory entry's value: the type code and the inode."""

    kind: int
    ino: int

    def pack(self) -> bytes:
        return _ENTRY.pack(self.kind, self.ino)


def unpack_entry(raw: bytes) -> Entry:
    """Decode the nine stored bytes."""
    if len(raw) != 9:
        raise CorruptRecord(f"a directory entry has {len(raw)} bytes instead of 9")
    return Entry._make(_ENTRY.unpack(raw))


def entry_columns(raws: Sequence[bytes]) -> tuple[Sequence[int], Sequence[int]]:
    """Type codes and inodes of many stored entries, without a record for each."""
    if set(map(len, raws)) - {_ENTRY.size}:
        entries = list(map(unpack_entry, raws))  # raises at the one that is wrong
        return [entry.kind for entry in entries], [entry.ino for entry in entries]
    kinds, inos = zip(*_ENTRY.iter_unpack(b"".join(raws)), strict=True) if raws else ((), ())
    return kinds, inos
