"""Objects spread over several buckets by the hash of their keys (`--shards`, format §2.5, §6.2).

The bucket of a key is FNV-1a (32 bits) of the whole key, volume's prefix included, modulo their number. Holds nothing but the
storages; concurrency and errors are theirs. A listing merges those of all buckets.
"""

import heapq
from collections.abc import AsyncIterator, Sequence
from typing import TypeAlias

from jfs.object.base import Data, ObjectInfo, ObjectStorage

_Heads: TypeAlias = list[tuple[bytes, int, ObjectInfo]]  # inside the class `list` is a method


def fnv1a(data: bytes) -> int:
    """The 32-bit FNV-1a hash."""
    value = 0x811C9DC5
    for byte in data:
        value = (value ^ byte) * 0x01000193 & 0xFFFFFFFF
    return value


class ShardedStorage:
    """*shards* in the order of their numbers."""

    def __init__(self, shards: Sequence[ObjectStorage]) -> None:
        self._shards = shards
        self.cheap_ranges = all(shard.cheap_ranges for shard in shards)
        self.whole_only = any(shard.whole_only for shard in shards)
        self.at_once = min(shard.at_once for shard in shards)

    def _of(self, key: str) -> ObjectStorage:
        return self._shards[fnv1a(key.encode()) % len(self._shards)]

    async def get(self, key: str, offset: int = 0, size: int = -1) -> Data:
        return await self._of(key).get(key, offset, size)

    async def put(self, key: str, data: Data, tier: int = 0) -> None:
        await self._of(key).put(key, data, tier)

    async def change_tier(self, key: str, tier: int) -> None:
        await self._of(key).change_tier(key, tier)

    async def thaw(self, key: str, days: int) -> None:
        await self._of(key).thaw(key, days)

    def advise(self, key: str) -> None:
        self._of(key).advise(key)

    async def delete(self, key: str) -> None:
        await self._of(key).delete(key)

    async def head(self, key: str) -> ObjectInfo:
        return await self._of(key).head(key)

    async def list(self, prefix: str = "", after: str = "") -> AsyncIterator[ObjectInfo]:
        listings = [shard.list(prefix, after) for shard in self._shards]
        heads: _Heads = []
        for number, listing in enumerate(listings):
            async for info in listing:
                heads.append((info.key.encode(), number, info))
                break
        heapq.heapify(heads)
        while heads:
            _, number, info = heads[0]
            yield info
            async for following in listings[number]:
                heapq.heapreplace(heads, (following.key.encode(), number, following))
                break
            else:
                heapq.heappop(heads)

    async def create_bucket(self) -> None:
        for shard in self._shards:
            await shard.create_bucket()

    async def remove_bucket_parts(self, prefix: str) -> None:
        for shard in self._shards:
            await shard.remove_bucket_parts(prefix)

    async def close(self) -> None:
        for shard in self._shards:
            await shard.close()

    def describe(self) -> str:
        return f"{len(self._shards)} buckets beginning with {self._shards[0].describe()}"
