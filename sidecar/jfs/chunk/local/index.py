"""What a cache directory holds, and which blocks go when there are too many (format §6.8): bookkeeping, no I/O.

Invariant: `used` is the sum of length + 4096 over the blocks held, as the real client counts. Blocks are in the order of their last use.
The files themselves decide: other processes add and remove them too, and a scan sets the index right.
Concurrency: event loop only.
"""

import random
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from jfs.chunk.local.options import Eviction

OVERHEAD: Final = 4096  # bytes that each file counts besides its data
_LOW: Final = 0.95  # of a limit is left after an eviction
_LENGTH: Final = (1 << 32) - 1


class Index:
    """Blocks by `ident`; each value holds length and the second of the last use in one integer, for there may be millions."""

    def __init__(
        self, size: int, items: int, policy: Eviction, *, choose: Callable[[int], int] = random.randrange
    ) -> None:
        self._size = size
        self._items = items
        self._policy = policy
        self._choose = choose
        self._blocks: OrderedDict[int, int] = OrderedDict()
        self.used = 0

    def __len__(self) -> int:
        return len(self._blocks)

    def __contains__(self, number: int) -> bool:
        return number in self._blocks

    def __iter__(self) -> Iterator[int]:
        return iter(self._blocks)

    def length(self, number: int) -> int:
        """Bytes of a block that is held."""
        return self._blocks[number] & _LENGTH

    def add(self, number: int, length: int, used: float) -> None:
        """A block is there, used last at *used* (unix seconds)."""
        self.remove(number)
        self._blocks[number] = int(used) << 32 | length
        self.used += length + OVERHEAD

    def touch(self, number: int, now: float) -> None:
        """A block was used."""
        value = self._blocks.get(number)
        if value is not None:
            self._blocks[number] = int(now) << 32 | value & _LENGTH
            self._blocks.move_to_end(number)

    def remove(self, number: int) -> int:
        """Forget a block; its length, 0 when it is not here."""
        value = self._blocks.pop(number, None)
        if value is None:
            return 0
        self.used -= (value & _LENGTH) + OVERHEAD
        return value & _LENGTH

    def clear(self) -> None:
        """Forget everything."""
        self._blocks.clear()
        self.used = 0

    @property
    def is_over(self) -> bool:
        """Whether more is here than may be."""
        return self.used > self._size or 0 < self._items < len(self._blocks)

    def takes(self, length: int) -> bool:
        """Whether one more block may come: with policy `none` only while there is room."""
        if self._policy != "none":
            return length + OVERHEAD <= self._size
        return self.used + length + OVERHEAD <= self._size and not 0 < self._items <= len(self._blocks)

    def excess(self, wanted: int = 0) -> list[tuple[int, int]]:
        """(ident, length) of blocks to be removed, so that 95 % of the limits hold and *wanted* bytes become free; they leave the index.
        None with policy `none`."""
        if self._policy == "none":
            return []
        goal = self.used
        if self.used > self._size:
            goal = int(self._size * _LOW)
        goal = min(goal, max(self.used - wanted, 0))
        most = len(self._blocks)
        if 0 < self._items < most:
            most = int(self._items * _LOW)
        if goal == self.used and most == len(self._blocks):
            return []
        gone: list[tuple[int, int]] = []
        order = self._order()
        while (self.used > goal or len(self._blocks) > most) and (number := next(order, None)) is not None:
            gone.append((number, self.remove(number)))
        return gone

    def expired(self, before: float) -> list[tuple[int, int]]:
        """(ident, length) of blocks not used since *before*; they leave the index."""
        old = [number for number, value in self._blocks.items() if value >> 32 < before]
        return [(number, self.remove(number)) for number in old]

    def keep_only(self, seen: set[int], added: Iterable[int]) -> None:
        """A scan has found *seen*; what came since it began is *added*. Anything else is gone."""
        fresh = set(added)
        for number in [each for each in self._blocks if each not in seen and each not in fresh]:
            self.remove(number)

    def _order(self) -> Iterator[int]:
        """Blocks in the order in which they may go; the caller removes each."""
        if self._policy == "lru":
            while self._blocks:
                yield next(iter(self._blocks))
            return
        names = list(self._blocks)  # two at random, of which the one not used for longer goes
        while names:
            first, second = self._choose(len(names)), self._choose(len(names))
            a, b = self._blocks[names[first]], self._blocks[names[second]]
            at = first if a >> 32 <= b >> 32 else second
            number = names[at]
            names[at] = names[-1]
            names.pop()
            yield number
