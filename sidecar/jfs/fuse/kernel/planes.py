"""Many fuse_direntplus records at once, from stored attributes (format §3.1): half the time of packing them one by one.

Stored records and records on the wire have the same fields in other places and in the other byte order. All records of a page have the same
size (but for the names, which follow), so one byte of a field is a plane: every 72nd byte of the stored ones, which becomes every
152nd byte of the others by one assignment of slices. That takes some hundred assignments, however many entries there are.
Pure; the layout is that of linux/fuse.h: fuse_entry_out (40 bytes), fuse_attr (88), fuse_dirent (24).
"""

import struct
from array import array
from collections.abc import Sequence
from typing import Final

from jfs.format.constants import DIRECTORY
from jfs.fuse.kernel.protocol import BLKSIZE, GENERATION, Valid
from jfs.meta.model.attr import FORMATS

WORTH: Final = 100  # entries from which on it is faster
STORED: Final = 72  # bytes of an inode record without ACLs and tier
RECORD: Final = 152

_BLANK: Final = struct.Struct("<QQQQIIQQQqqqIIIIIIIIIIQQII")
_KIND, _SIZE, _BLOCKS, _MODE, _INO, _COOKIE, _LENGTH, _TYPE = 1, 48, 56, 100, (0, 40, 128), 136, 144, 148
_STORED_SIZE: Final = 51
# Numbers that are only moved: where they begin on the wire and in the stored record, and their bytes.
_NUMBERS: Final = (
    (_SIZE, _STORED_SIZE, 8),
    (64, 11, 8),  # atime, mtime, ctime
    (72, 23, 8),
    (80, 35, 8),
    (88, 19, 4),  # their nanoseconds
    (92, 31, 4),
    (96, 43, 4),
    (104, 47, 4),  # nlink, uid, gid, rdev
    (108, 3, 4),
    (112, 7, 4),
    (116, 59, 4),
)
_MOVES: Final = [
    *((to + each, at + size - 1 - each) for to, at, size in _NUMBERS for each in range(size)),
    (_MODE, _KIND + 1),  # the lower byte of the permissions
]
# The byte with the type code and the upper permissions, as the mode's second byte and as a fuse_dirent's type.
_UPPER_MODE: Final = bytes(FORMATS.get(byte >> 4, 0) >> 8 | byte & 0o17 for byte in range(256))
_TYPES: Final = bytes(FORMATS.get(byte >> 4, 0) >> 12 for byte in range(256))


def _spread(records: bytearray, at: int, numbers: "array[int]") -> None:
    """Write 64-bit *numbers*, one into each record."""
    raw = numbers.tobytes()
    for each in range(8):
        records[at + each :: RECORD] = raw[each::8]


def records(
    attrs: Sequence[bytes], inos: Sequence[int], lengths: Sequence[int], cookie: int, valid: Valid
) -> bytes | None:
    """The records, each `RECORD` bytes, for names of *lengths*; the first one stands at position *cookie*. None when not all of
    *attrs* are `STORED` bytes long."""
    count = len(attrs)
    stored = b"".join(attrs)
    if set(map(len, attrs)) != {STORED}:
        return None
    seconds, nsec = valid.attr
    entry_seconds, entry_nsec = valid.entry
    blank = (0, GENERATION, entry_seconds, seconds, entry_nsec, nsec, *[0] * 14, BLKSIZE, *[0] * 5)
    out = bytearray(_BLANK.pack(*blank)) * count
    for to, at in _MOVES:
        out[to::RECORD] = stored[at::STORED]
    kinds = stored[_KIND::STORED]
    out[_MODE + 1 :: RECORD] = kinds.translate(_UPPER_MODE)
    types = out[_TYPE::RECORD] = kinds.translate(_TYPES)
    sizes = array("Q", bytes(8 * count))
    plane = memoryview(sizes).cast("B")
    for each in range(8):
        plane[each::8] = stored[_STORED_SIZE + 7 - each :: STORED]
    _spread(out, _BLOCKS, array("Q", [(size + 511) >> 9 for size in sizes]))
    numbers = array("Q", inos)
    for at in _INO:
        _spread(out, at, numbers)
    _spread(out, _COOKIE, array("Q", range(cookie + 1, cookie + 1 + count)))
    out[_LENGTH::RECORD] = bytes(lengths)
    if valid.dir_entry != valid.entry:
        _directories(out, types, valid)
    return bytes(out)


def _directories(out: bytearray, types: bytes, valid: Valid) -> None:
    """Names of directories may be believed for another time."""
    seconds, nsec = struct.pack("<Q", valid.dir_entry[0]), struct.pack("<I", valid.dir_entry[1])
    wanted = FORMATS[DIRECTORY] >> 12
    for at, kind in enumerate(types):
        if kind == wanted:
            start = at * RECORD
            out[start + 16 : start + 24] = seconds
            out[start + 32 : start + 36] = nsec
