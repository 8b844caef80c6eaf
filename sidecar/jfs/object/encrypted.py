"""A storage whose objects are encrypted (format §6.3): contents only, names stay plain. Stands between the volume's prefix and the
shards (format §2.5), so that `juicefs_uuid` and every other object of a volume goes through it.

Sizes in listings are those of the contents. A part of an object is had by reading all of it. Large objects are worked on in threads:
the ciphers need a millisecond or two for a block of 4 MiB, without the interpreter's lock.
Concurrency and errors are those of the storage inside; an object that does not open is ObjectUnavailable. Closing it closes that one.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Final

from jfs.errors import ObjectUnavailable
from jfs.object.base import Data, ObjectInfo, ObjectStorage
from jfs.object.encryption import ObjectCipher, Sealed

_THREAD_FROM: Final = 512 << 10  # bytes; measured: less takes less time than the way to a thread and back


class EncryptedStorage:
    """The contents behind the objects of *inner*."""

    cheap_ranges = False
    whole_only = True
    at_once = 0

    def __init__(self, inner: ObjectStorage, cipher: ObjectCipher) -> None:
        self._inner = inner
        self._cipher = cipher

    async def get(self, key: str, offset: int = 0, size: int = -1) -> Data:
        sealed = await self._inner.get(key)
        try:
            if len(sealed) < _THREAD_FROM:
                content = self._cipher.open(sealed)
            else:
                content = await asyncio.get_running_loop().run_in_executor(None, self._cipher.open, sealed)
        except Sealed as error:
            raise ObjectUnavailable(
                f"the object {key} in {self._inner.describe()} cannot be decrypted: {error}"
            ) from error
        if not offset and (size < 0 or size >= len(content)):
            return content
        return memoryview(content)[offset : offset + size if size >= 0 else None]

    async def put(self, key: str, data: Data, tier: int = 0) -> None:
        if len(data) < _THREAD_FROM:
            sealed = self._cipher.seal(data)
        else:
            sealed = await asyncio.get_running_loop().run_in_executor(None, self._cipher.seal, data)
        await self._inner.put(key, sealed, tier)

    async def change_tier(self, key: str, tier: int) -> None:
        await self._inner.change_tier(key, tier)

    async def thaw(self, key: str, days: int) -> None:
        await self._inner.thaw(key, days)

    def advise(self, key: str) -> None:
        return

    async def delete(self, key: str) -> None:
        await self._inner.delete(key)

    async def head(self, key: str) -> ObjectInfo:
        return self._plain(await self._inner.head(key))

    async def list(self, prefix: str = "", after: str = "") -> AsyncIterator[ObjectInfo]:
        async for info in self._inner.list(prefix, after):
            yield self._plain(info)

    def _plain(self, info: ObjectInfo) -> ObjectInfo:
        """With the size of the content; that of an object too short to be encrypted stays, it is none of ours."""
        size = info.size - self._cipher.overhead
        return info._replace(size=size) if size >= 0 else info

    async def create_bucket(self) -> None:
        await self._inner.create_bucket()

    async def remove_bucket_parts(self, prefix: str) -> None:
        await self._inner.remove_bucket_parts(prefix)

    async def close(self) -> None:
        await self._inner.close()

    def describe(self) -> str:
        return self._inner.describe()
