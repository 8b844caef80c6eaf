"""Objects in a dictionary: the storage of unit tests and of volumes that need not outlive the process (`mem`).

Invariant and contract are those of `base.py`; nothing ever suspends. Objects are immutable copies.
"""

import time
from collections.abc import AsyncIterator

from jfs.errors import ObjectNotFound, ObjectUnavailable
from jfs.object.base import Data, ObjectInfo


class MemoryStorage:
    """A dictionary of objects."""

    cheap_ranges = False
    whole_only = False
    at_once = 0

    def __init__(self, place: str = "") -> None:
        self._place = place
        self.objects: dict[str, tuple[bytes, float]] = {}

    async def get(self, key: str, offset: int = 0, size: int = -1) -> Data:
        content = self._find(key)[0]
        if not offset and (size < 0 or size >= len(content)):
            return content
        return content[offset:] if size < 0 else content[offset : offset + size]

    async def put(self, key: str, data: Data, tier: int = 0) -> None:
        self.objects[key] = (bytes(data), time.time())

    async def change_tier(self, key: str, tier: int) -> None:
        return

    async def thaw(self, key: str, days: int) -> None:
        raise ObjectUnavailable(f"{self.describe()} is a storage without archives: nothing can be restored there")

    def advise(self, key: str) -> None:
        return

    async def delete(self, key: str) -> None:
        self.objects.pop(key, None)

    async def head(self, key: str) -> ObjectInfo:
        content, mtime = self._find(key)
        return ObjectInfo(key, len(content), mtime)

    async def list(self, prefix: str = "", after: str = "") -> AsyncIterator[ObjectInfo]:
        for key in sorted(self.objects, key=str.encode):
            if key.startswith(prefix) and key.encode() > after.encode() and key in self.objects:
                content, mtime = self.objects[key]
                yield ObjectInfo(key, len(content), mtime)

    async def create_bucket(self) -> None:
        return

    async def remove_bucket_parts(self, prefix: str) -> None:
        return

    async def close(self) -> None:
        return

    def describe(self) -> str:
        return f"mem://{self._place}/"

    def _find(self, key: str) -> tuple[bytes, float]:
        try:
            return self.objects[key]
        except KeyError:
            raise ObjectNotFound(f"there is no object {key} in {self.describe()}") from None
