"""Blocks that wait to be written to the disk cache, or are being written: in memory, within a bound. Event loop only.

Invariant: `_bytes` is the sum of their lengths; whoever waits for room is woken when less than half of the bound is used.
"""

import asyncio
from collections.abc import Iterator
from typing import Final

from jfs.object.base import Data

QUEUE: Final = 96 << 20  # bytes; more are dropped


class Pending:
    """Data by `ident`, in the order they came."""

    def __init__(self) -> None:
        self._blocks: dict[int, Data] = {}
        self._bytes = 0
        self._space = asyncio.Event()
        self._space.set()

    def __len__(self) -> int:
        return len(self._blocks)

    def __contains__(self, number: int) -> bool:
        return number in self._blocks

    def __iter__(self) -> Iterator[tuple[int, Data]]:
        return iter(self._blocks.items())

    def get(self, number: int) -> Data | None:
        """The block, if it waits."""
        return self._blocks.get(number)

    def takes(self, length: int) -> bool:
        """Whether so many bytes more are within the bound."""
        return not self._bytes or self._bytes + length <= QUEUE

    def add(self, number: int, data: Data) -> None:
        """A block is to be written."""
        self._blocks[number] = data
        self._bytes += len(data)
        if self._bytes >= QUEUE // 2:
            self._space.clear()

    def pop(self, number: int) -> bool:
        """A block was written, or is not to be; whether it was here."""
        data = self._blocks.pop(number, None)
        if data is None:
            return False
        self._bytes -= len(data)
        if self._bytes < QUEUE // 2:
            self._space.set()
        return True

    async def room(self) -> None:
        """Returns when half of the bound is free."""
        await self._space.wait()
