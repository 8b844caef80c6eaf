"""Whole blocks in memory for the reader, least recently used first out (format §6.5; the disk cache is another matter).

Its purpose is that the kernel's reads of 128 KiB or 1 MiB cost one request per block, and that read-ahead has somewhere to
put what it fetches. Blocks are immutable, so nothing ever needs invalidation.
A block that a stream has read to its end is *spent*: few of those stay, so that a long stream does not fill the budget with
what nobody will ask for again (the kernel's page cache has it).
Invariant: `budget.cached` is the sum of the sizes held, kept within `budget.cache_room` by every `put` (the newest block
stays even when it alone is too large). Concurrency: plain dictionary, no awaits.
"""

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from jfs.chunk.budget import Budget
from jfs.object.base import Data

SPENT: Final = 4  # blocks
KEEP: Final = 30.0  # seconds without use after which a block is dropped


class BlockCache:
    """Blocks by (slice id, index)."""

    def __init__(self, budget: Budget, *, now: Callable[[], float] = time.monotonic) -> None:
        self._budget = budget
        self._now = now
        self._blocks: OrderedDict[tuple[int, int], tuple[Data, float]] = OrderedDict()
        self._spent: OrderedDict[tuple[int, int], None] = (
            OrderedDict()
        )  # names of blocks, those spent longest ago first

    def __len__(self) -> int:
        return len(self._blocks)

    def __contains__(self, name: tuple[int, int]) -> bool:
        return name in self._blocks

    def get(self, name: tuple[int, int]) -> Data | None:
        """A block, which becomes the most recently used."""
        found = self._blocks.get(name)
        if found is None:
            return None
        self._blocks[name] = (found[0], self._now())
        self._blocks.move_to_end(name)
        return found[0]

    def put(self, name: tuple[int, int], block: Data) -> None:
        """Keep a block, dropping older ones for it."""
        self._forget(name)
        self._blocks[name] = (block, self._now())
        self._budget.cached += len(block)
        while len(self._blocks) > 1 and self._budget.cached > self._budget.cache_room:
            self._forget(next(iter(self._blocks)))

    def spend(self, name: tuple[int, int]) -> None:
        """A stream has read the block to its end."""
        if name in self._blocks:
            self._spent[name] = None
            self._spent.move_to_end(name)
            if len(self._spent) > SPENT:
                self._forget(next(iter(self._spent)))

    def drop(self, name: tuple[int, int]) -> None:
        """Forget a block, if it is here."""
        self._forget(name)

    def expire(self) -> bool:
        """Drop what was not used for 30 s, and what is over the budget; whether anything was dropped."""
        since = self._now() - KEEP
        dropped = False
        while self._blocks:
            name, (_, used) = next(iter(self._blocks.items()))
            if used > since and self._budget.cached <= self._budget.cache_room:
                break
            self._forget(name)
            dropped = True
        return dropped

    def clear(self) -> None:
        """Drop everything."""
        while self._blocks:
            self._forget(next(iter(self._blocks)))

    def _forget(self, name: tuple[int, int]) -> None:
        self._spent.pop(name, None)
        found = self._blocks.pop(name, None)
        if found is not None:
            self._budget.cached -= len(found[0])
