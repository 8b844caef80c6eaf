"""Paths and names below `<cache-dir>/<volume uuid>/` (format §6.8): pure functions.

Raw blocks lie in `raw/<object key>`, staged ones in `rawstaging/<object key>`; a file that is being written ends with `.tmp`. A block is
known by one integer made of its slice and index; a volume's naming makes its path.
"""

import re
from typing import Final, NamedTuple

RAW: Final = "raw/"
STAGED: Final = "rawstaging/"
LOCK: Final = ".lock"
TEMPORARY: Final = ".tmp"
_NAME: Final = re.compile(r"(\d{1,20})_(\d{1,5})_(\d{1,9})\Z")
_INDEX_BITS: Final = 12  # a chunk of 64 MiB has at most 1024 blocks


class BlockName(NamedTuple):
    """Slice, index, and length in bytes of a block."""

    slice_id: int
    indx: int
    length: int


def ident(slice_id: int, indx: int) -> int:
    """The integer that stands for a block."""
    return slice_id << _INDEX_BITS | indx


def block_of(number: int) -> tuple[int, int]:
    """Slice and index of an `ident`."""
    return number >> _INDEX_BITS, number & (1 << _INDEX_BITS) - 1


def parse(name: str) -> BlockName | None:
    """The block that a file's name (without directories) stands for; None for any other file."""
    match = _NAME.match(name)
    return BlockName(*map(int, match.groups())) if match else None


def directory_mode(mode: int) -> int:
    """Who may read blocks may enter the directories and add to them, as the real client has it: 0600 gives 0700, 0644 gives 0777."""
    readers = mode & 0o444
    return mode | readers >> 1 | readers >> 2
