"""Slice records and the view of a chunk (format §3.2, §6.4): pure functions on bytes, shared by metadata and data.

A chunk's list is the concatenation of 24-byte records, oldest first; later records hide earlier ones. The view is the
sorted list of what is visible: segments without gaps from position 0 to the last painted byte, holes as id 0.
"""

import struct
from bisect import bisect_left, bisect_right
from typing import NamedTuple

from jfs.errors import CorruptRecord

RECORD = struct.Struct(">IQIII")  # pos, id, size, off, len


class Slice(NamedTuple):
    """One record: bytes [off, off+len) of slice *id* (of *size* bytes in all) lie at [pos, pos+len) of the chunk."""

    pos: int
    id: int
    size: int
    off: int
    len: int

    def pack(self) -> bytes:
        return RECORD.pack(self.pos, self.id, self.size, self.off, self.len)


class Segment(NamedTuple):
    """A visible piece: *len* bytes at *pos* of the chunk come from [off, off+len) of slice *id*; zeros when id is 0."""

    pos: int
    id: int
    size: int
    off: int
    len: int


def unpack(records: bytes) -> list[Slice]:
    """The records of a chunk's list; CorruptRecord when the length is no multiple of 24."""
    if len(records) % RECORD.size:
        raise CorruptRecord(f"a chunk's slice list has {len(records)} bytes, no multiple of {RECORD.size}")
    return [Slice._make(fields) for fields in RECORD.iter_unpack(records)]


def view(records: list[Slice]) -> list[Segment]:
    """What is visible of *records* painted in order, as segments without gaps from 0 to the last painted byte."""
    starts: list[int] = []  # sorted starts of the disjoint painted pieces
    pieces: list[Segment] = []
    for record in records:
        begin, end = record.pos, record.pos + record.len
        if not record.len:
            continue
        fresh = Segment(begin, record.id, record.size, record.off, record.len)
        if not starts or begin >= pieces[-1].pos + pieces[-1].len:  # appended behind everything: the common case
            starts.append(begin)
            pieces.append(fresh)
            continue
        first = bisect_right(starts, begin) - 1
        if first < 0 or pieces[first].pos + pieces[first].len <= begin:
            first += 1
        last = bisect_left(starts, end)
        replacement = [fresh]
        if first < last:
            head, tail = pieces[first], pieces[last - 1]
            if head.pos < begin:
                replacement.insert(0, head._replace(len=begin - head.pos))
            if tail.pos + tail.len > end:
                cut = end - tail.pos
                replacement.append(tail._replace(pos=end, off=tail.off + cut if tail.id else 0, len=tail.len - cut))
        pieces[first:last] = replacement
        starts[first:last] = [piece.pos for piece in replacement]
    segments: list[Segment] = []
    at = 0
    for piece in pieces:
        if piece.pos > at:
            segments.append(Segment(at, 0, 0, 0, piece.pos - at))
        segments.append(piece)
        at = piece.pos + piece.len
    return segments
