"""Stand-ins for the metadata and for storages that are slow or fail, for the tests of the data path."""

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from jfs.format.constants import CHUNK
from jfs.format.slices import Slice
from jfs.object.memory import MemoryStorage


class FakeMeta:
    """Slice lists and lengths of files, as the metadata keeps them."""

    def __init__(self) -> None:
        self.chunks: dict[tuple[int, int], list[Slice]] = {}
        self.lengths: dict[int, int] = {}
        self.next_id = 1
        self.commits: list[Slice] = []
        self.refuse: Callable[[Slice], Exception | None] = lambda slice: None  # what a commit fails with

    async def new_slice_id(self) -> int:
        await asyncio.sleep(0)
        self.next_id += 1
        return self.next_id

    async def commit_slice(self, ino: int, indx: int, pos: int, slice: Slice, mtime_ns: int) -> None:
        await asyncio.sleep(0)
        if (error := self.refuse(slice)) is not None:
            raise error
        self.commits.append(slice)
        self.chunks[ino, indx] = [*self.chunks.get((ino, indx), []), slice]
        self.lengths[ino] = max(self.lengths.get(ino, 0), indx * CHUNK + pos + slice.len)

    async def read_slices(self, ino: int, indx: int, *, fresh: bool = False) -> Sequence[Slice]:
        return self.chunks.get((ino, indx), [])

    def truncate(self, ino: int, length: int) -> None:
        """Zero records over everything between the old and the new length (format §5.3 truncate)."""
        old = self.lengths.get(ino, 0)
        at, end = min(old, length), max(old, length)
        while at < end:
            indx, pos = divmod(at, CHUNK)
            count = min(CHUNK - pos, end - at)
            self.chunks[ino, indx] = [*self.chunks.get((ino, indx), []), Slice(pos, 0, 0, 0, count)]
            at += count
        self.lengths[ino] = length


class SlowStorage(MemoryStorage):
    """Puts and gets that end in an order of their own."""

    def __init__(self, delays: Sequence[int]) -> None:
        super().__init__()
        self._delays = delays
        self._calls = 0

    async def _dawdle(self) -> None:
        self._calls += 1
        for _ in range(self._delays[self._calls % len(self._delays)]):
            await asyncio.sleep(0)

    async def put(self, key: str, data: Any, tier: int = 0) -> None:
        await self._dawdle()
        await super().put(key, data)

    async def get(self, key: str, offset: int = 0, size: int = -1) -> Any:
        await self._dawdle()
        return await super().get(key, offset, size)


class FaultyStorage(MemoryStorage):
    """Calls `before(method, key, how often this key was asked for by this method, from 1)` first: it may raise or await; records
    the requests."""

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[tuple[str, str]] = []
        self.ranges: list[tuple[str, int, int]] = []
        self.before: Callable[[str, str, int], Any] = lambda method, key, count: None
        self._counts: Counter[tuple[str, str]] = Counter()

    async def _enter(self, method: str, key: str) -> None:
        self.requests.append((method, key))
        self._counts[method, key] += 1
        pending = self.before(method, key, self._counts[method, key])
        if pending is not None:
            await pending

    async def put(self, key: str, data: Any, tier: int = 0) -> None:
        await self._enter("PUT", key)
        await super().put(key, data)

    async def get(self, key: str, offset: int = 0, size: int = -1) -> Any:
        self.ranges.append((key, offset, size))
        await self._enter("GET", key)
        return await super().get(key, offset, size)

    async def delete(self, key: str) -> None:
        await self._enter("DELETE", key)
        await super().delete(key)
