"""A storage seen from below a prefix: a volume's objects are those under `<name>/` of its bucket (format §2.5).

Holds nothing but the prefix; concurrency and errors are those of the storage inside. Closing it closes that one.
"""

from collections.abc import AsyncIterator

from jfs.object.base import Data, ObjectInfo, ObjectStorage


class PrefixedStorage:
    """All keys of *inner* that begin with *prefix*, named without it."""

    def __init__(self, inner: ObjectStorage, prefix: str) -> None:
        self._inner = inner
        self._prefix = prefix
        self.cheap_ranges = inner.cheap_ranges
        self.whole_only = inner.whole_only
        self.at_once = inner.at_once

    async def get(self, key: str, offset: int = 0, size: int = -1) -> Data:
        return await self._inner.get(self._prefix + key, offset, size)

    async def put(self, key: str, data: Data, tier: int = 0) -> None:
        await self._inner.put(self._prefix + key, data, tier)

    async def change_tier(self, key: str, tier: int) -> None:
        await self._inner.change_tier(self._prefix + key, tier)

    async def thaw(self, key: str, days: int) -> None:
        await self._inner.thaw(self._prefix + key, days)

    def advise(self, key: str) -> None:
        self._inner.advise(self._prefix + key)

    async def delete(self, key: str) -> None:
        await self._inner.delete(self._prefix + key)

    async def head(self, key: str) -> ObjectInfo:
        info = await self._inner.head(self._prefix + key)
        return info._replace(key=key)

    async def list(self, prefix: str = "", after: str = "") -> AsyncIterator[ObjectInfo]:
        cut = len(self._prefix)
        async for info in self._inner.list(self._prefix + prefix, self._prefix + after if after else ""):
            yield info._replace(key=info.key[cut:])

    async def create_bucket(self) -> None:
        await self._inner.create_bucket()

    async def remove_bucket_parts(self, prefix: str) -> None:
        await self._inner.remove_bucket_parts(self._prefix + prefix)

    async def close(self) -> None:
        await self._inner.close()

    def describe(self) -> str:
        return self._inner.describe() + self._prefix
