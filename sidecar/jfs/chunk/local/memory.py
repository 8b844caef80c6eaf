"""`--cache-dir memory`: whole blocks in RAM, least recently used first out. Concurrency: event loop only, nothing waits."""

from collections import OrderedDict
from typing import Final

from jfs.chunk.local.counters import CacheCounters
from jfs.chunk.local.layout import ident
from jfs.metrics import REGISTRY, Registry
from jfs.object.base import Data

_LOCATION: Final = "memory"


class MemoryCache:
    """At most *size* bytes of blocks (0: none)."""

    def __init__(
        self,
        size: int,
        *,
        block_size: int,
        partial_only: bool = False,
        large_write: bool = False,
        registry: Registry = REGISTRY,
    ) -> None:
        self._size = size
        self._block_size = block_size
        self._partial_only = partial_only
        self._large_write = large_write
        self._blocks: OrderedDict[int, Data] = OrderedDict()
        self.used = 0
        self._counters = CacheCounters(registry, lambda: len(self), lambda: self.used)

    def __len__(self) -> int:
        return len(self._blocks)

    async def start(self) -> None:
        return

    async def close(self) -> None:
        self._blocks.clear()
        self.used = 0

    def takes(self, length: int) -> bool:
        return not self._partial_only or length < self._block_size

    def keeps_written(self, length: int) -> bool:
        return self.takes(length) and (self._large_write or length < self._block_size)

    async def read(
        self, slice_id: int, indx: int, length: int, begin: int, count: int, *, known: bool = False
    ) -> Data | None:
        number = ident(slice_id, indx)
        block = self._blocks.get(number)
        if block is None:
            return None
        self._blocks.move_to_end(number)
        self._counters.hit(count, 0.0)
        return block if count == len(block) else memoryview(block)[begin : begin + count]

    def has(self, slice_id: int, indx: int) -> bool:
        return ident(slice_id, indx) in self._blocks

    def where(self, slice_id: int, indx: int, length: int) -> str | None:
        return _LOCATION if self.has(slice_id, indx) else None

    def advise(self, slice_id: int, indx: int, length: int) -> None:
        return

    def put(self, slice_id: int, indx: int, data: Data, *, force: bool = False) -> bool:
        if not self.takes(len(data)) or len(data) > self._size:
            return False
        self.remove(slice_id, indx, len(data))
        self._blocks[ident(slice_id, indx)] = data
        self.used += len(data)
        while self.used > self._size:
            self.used -= len(self._blocks.popitem(last=False)[1])
        return True

    def missed(self, count: int) -> None:
        self._counters.miss(count)

    async def room(self) -> None:
        return

    def remove(self, slice_id: int, indx: int, length: int) -> None:
        block = self._blocks.pop(ident(slice_id, indx), None)
        if block is not None:
            self.used -= len(block)
