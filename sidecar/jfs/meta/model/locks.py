"""Advisory locks of an inode as records (format §3.4): who holds a flock, who holds which byte ranges, and the ranges' arithmetic.

A key stands for all locks of an inode, since whether one can be had depends on all the others. Records are sorted tuples, so that
equal states compare equal in every engine; an inode without locks has no record. Range lists are kept as their stored bytes.
Pure.
"""

import struct
from typing import Final, Literal, NamedTuple

from jfs.errors import CorruptRecord

READ: Final = 0  # F_RDLCK, F_WRLCK and F_UNLCK of Linux
WRITE: Final = 1
UNLOCK: Final = 2
END: Final = 0x7FFFFFFFFFFFFFFF  # last byte of a whole file; ends are inclusive

_RANGE: Final = struct.Struct(">IIQQ")


class Flock(NamedTuple):
    """A flock(2) that *owner* (64 bits, unique within the session) of session *sid* holds."""

    sid: int
    owner: int
    exclusive: bool


class Plock(NamedTuple):
    """The fcntl(2) ranges that *owner* of session *sid* holds, in stored form."""

    sid: int
    owner: int
    ranges: bytes


class Range(NamedTuple):
    """Bytes *start* to *end* (inclusive), locked for reading or writing by process *pid*."""

    kind: int
    pid: int
    start: int
    end: int


class FlockKey(NamedTuple):
    """All flocks of an inode."""

    ino: int
    kind: Literal["flock"] = "flock"

    @property
    def record(self) -> type[tuple[Flock, ...]]:
        return tuple


class PlockKey(NamedTuple):
    """All fcntl locks of an inode."""

    ino: int
    kind: Literal["plock"] = "plock"

    @property
    def record(self) -> type[tuple[Plock, ...]]:
        return tuple


class LockedKey(NamedTuple):
    """That session *sid* has locks (fcntl locks when *ranges*, else flocks) in inode *ino*: how the locks of a dead session are
    found where the engine cannot search for them. Written only; SQL derives it."""

    sid: int
    ino: int
    ranges: bool
    kind: Literal["locked"] = "locked"

    @property
    def record(self) -> type[bool]:
        return bool


def unpack_ranges(raw: bytes) -> list[Range]:
    """The ranges of a record; CorruptRecord when the length is no multiple of 24."""
    if len(raw) % _RANGE.size:
        raise CorruptRecord(f"the lock ranges have {len(raw)} bytes, no multiple of {_RANGE.size}")
    return [Range._make(fields) for fields in _RANGE.iter_unpack(raw)]


def pack_ranges(ranges: list[Range]) -> bytes:
    """The stored form."""
    return b"".join(_RANGE.pack(*one) for one in ranges)


def with_range(ranges: list[Range], new: Range) -> list[Range]:
    """*ranges* (sorted, apart) after the request *new*: it is cut out of all, put in unless it unlocks, and neighbours of the same
    kind and process are merged."""
    pieces: list[Range] = []
    for old in ranges:
        if old.end < new.start or old.start > new.end:
            pieces.append(old)
            continue
        if old.start < new.start:
            pieces.append(old._replace(end=new.start - 1))
        if old.end > new.end:
            pieces.append(old._replace(start=new.end + 1))
    if new.kind != UNLOCK:
        pieces.append(new)
    pieces.sort(key=lambda piece: piece.start)
    merged: list[Range] = []
    for piece in pieces:
        last = merged[-1] if merged else None
        if last is not None and last.end + 1 == piece.start and last[:2] == piece[:2]:
            merged[-1] = last._replace(end=piece.end)
        else:
            merged.append(piece)
    return merged
