"""Cached blocks that are kept open, for opening one costs more than a small read. Event loop only.

Invariant: a descriptor is not closed while a thread reads from it.
"""

import os
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from jfs.chunk.local.directory import CacheDirectory

_MOST: Final = 256


class OpenBlock:
    """A cached block that is open. *sums* is its trailer, empty when it has none or none is looked at."""

    __slots__ = ("directory", "doomed", "fd", "length", "sums", "used", "users")

    def __init__(self, directory: "CacheDirectory", fd: int, length: int, sums: bytes) -> None:
        self.directory = directory
        self.fd = fd
        self.length = length
        self.sums = sums
        self.used = 0.0
        self.users = 0  # reads that are under way in threads
        self.doomed = False  # to be closed by the last of them

    def close(self) -> None:
        """Close it now, or when nobody reads it any more."""
        self.doomed = True
        if not self.users and self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def release(self) -> None:
        """A read in a thread has ended."""
        self.users -= 1
        if self.doomed:
            self.close()


class OpenBlocks:
    """Open blocks by `ident`; those used longest ago are closed first."""

    def __init__(self) -> None:
        self._blocks: OrderedDict[int, OpenBlock] = OrderedDict()

    def __len__(self) -> int:
        return len(self._blocks)

    def get(self, number: int) -> OpenBlock | None:
        """The block, if it is open; it counts as used."""
        block = self._blocks.get(number)
        if block is not None:
            self._blocks.move_to_end(number)
        return block

    def put(self, number: int, block: OpenBlock) -> None:
        """A block was opened."""
        self._blocks[number] = block
        if len(self._blocks) > _MOST:
            self._blocks.popitem(last=False)[1].close()

    def close(self, number: int) -> None:
        """Close a block, if it is open."""
        block = self._blocks.pop(number, None)
        if block is not None:
            block.close()

    def close_unused(self, since: float) -> None:
        """Close what was used last before *since*, so that an evicted file gives its room back."""
        for number, block in list(self._blocks.items()):
            if block.used < since:
                self.close(number)

    @property
    def is_quiet(self) -> bool:
        """Whether no thread reads from any."""
        return not any(block.users for block in self._blocks.values())
