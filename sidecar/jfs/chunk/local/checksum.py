"""The checksum trailer of a cached block (format §6.8): CRC-32C of every 32 KiB, four bytes each, behind the data. Pure.

What a read checks is its level's business: `full` only when the whole block is read, `shrink` the pieces inside the range, `extend` all
pieces that the range touches, for which more is read than was asked for.
"""

import struct
from typing import Final

from crc32c import crc32c

from jfs.chunk.local.options import Checksum
from jfs.object.base import Data

PIECE: Final = 32 << 10


def trailer_length(length: int) -> int:
    """Bytes of the trailer of a block of *length* bytes."""
    return 4 * -(-length // PIECE)


def trailer(data: Data) -> bytes:
    """The trailer of a block."""
    view = memoryview(data)
    sums = [crc32c(view[at : at + PIECE]) for at in range(0, len(view), PIECE)]
    return struct.pack(f">{len(sums)}I", *sums)


def read_range(level: Checksum, length: int, begin: int, count: int) -> tuple[int, int]:
    """The range [from, to) of a block of *length* bytes that is to be read for [begin, begin+count)."""
    if level != "extend":
        return begin, begin + count
    return begin - begin % PIECE, min(-(-(begin + count) // PIECE) * PIECE, length)


def is_intact(level: Checksum, sums: bytes, length: int, begin: int, data: Data) -> bool:
    """Whether *data*, read from *begin* on, agrees with the trailer *sums* as far as the level asks."""
    if level == "none" or (level == "full" and len(data) != length):
        return True
    end = begin + len(data)
    view = memoryview(data)
    first = -(-begin // PIECE)
    last = end // PIECE if end < length else -(-length // PIECE)
    for number in range(first, last):
        start = number * PIECE - begin
        if crc32c(view[start : start + PIECE]) != int.from_bytes(sums[4 * number : 4 * number + 4], "big"):
            return False
    return True
