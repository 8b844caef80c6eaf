"""Which of several cache directories a block belongs to: the real client's consistent hashing (format §6.8). Pure.

Each directory has 100 points on a circle of 32-bit MurmurHash3 values, made of its lock file's text; a key belongs to the next point.
The real client 1.4.2 gives each directory some points more or fewer, with weights that are others at each start (observed: 88 to 112), so
that it misses a few percent of the blocks of its own former mounts as well as of ours. `DiskCache` therefore looks in all directories.
"""

from bisect import bisect_left
from collections.abc import Iterable
from typing import Final

_POINTS: Final = 100
_MASK: Final = 0xFFFFFFFF


def murmur3(data: bytes) -> int:
    """MurmurHash3 x86 32-bit with seed 0."""
    result = 0
    whole = len(data) & ~3
    for at in range(0, whole, 4):
        result ^= _mixed(int.from_bytes(data[at : at + 4], "little"))
        result = (result << 13 | result >> 19) & _MASK
        result = (result * 5 + 0xE6546B64) & _MASK
    if whole < len(data):
        result ^= _mixed(int.from_bytes(data[whole:], "little"))
    result ^= len(data)
    result ^= result >> 16
    result = result * 0x85EBCA6B & _MASK
    result ^= result >> 13
    result = result * 0xC2B2AE35 & _MASK
    return result ^ result >> 16


def _mixed(word: int) -> int:
    word = word * 0xCC9E2D51 & _MASK
    word = (word << 15 | word >> 17) & _MASK
    return word * 0x1B873593 & _MASK


class Ring:
    """Names of directories (their lock texts) by key."""

    def __init__(self, names: Iterable[str]) -> None:
        points = sorted((murmur3(f"{number}{name}".encode()), name) for name in names for number in range(_POINTS))
        self._hashes = [point for point, _ in points]
        self._names = [name for _, name in points]

    def owner(self, key: str) -> str:
        """The name that *key* belongs to."""
        return self._names[bisect_left(self._hashes, murmur3(key.encode())) % len(self._names)]
