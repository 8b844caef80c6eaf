"""Storage tiers of files that exist: their objects are given the tier's class and tags, then their attributes name the tier (format §2.2).

Place: between the `tier` command and the store and storage of a volume; no mount is needed, and mounts may go on meanwhile.
Invariant: a file's attributes name a tier only when all objects that were its own before have it, so that a command which was
interrupted is repeated and goes on. What is written during the change is looked for afterwards.
Concurrency: files of a directory one after the other, the objects of a file side by side.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final

from jfs.chunk.naming import block_key, block_length
from jfs.errors import ObjectNotFound, VolumeError
from jfs.format.constants import DIRECTORY, FILE
from jfs.format.setting import Setting
from jfs.format.slices import unpack
from jfs.meta.model.keys import ChunkKey, NodeKey
from jfs.meta.operations.attributes import set_tier
from jfs.meta.store.base import Store, Tx
from jfs.object.base import ObjectStorage

_ROUNDS: Final = 10  # looks for objects that were made meanwhile
_INDEXES: Final = 100  # chunks asked for at a time


class Tiers:
    """Changes tiers in one volume, *at_once* objects side by side; counts *inodes* and *objects* that it changed."""

    def __init__(self, store: Store, storage: ObjectStorage, setting: Setting, *, at_once: int = 20) -> None:
        self._store = store
        self._storage = storage
        self._setting = setting
        self._places = asyncio.Semaphore(at_once)
        self.inodes = self.objects = 0

    async def change(self, ino: int, tier: int, *, recursive: bool, force: bool) -> None:
        """Give the file or directory *ino* the tier; with *recursive* what is below it too, before itself. What has it already is left
        alone unless *force*. FsError, ObjectError, VolumeError."""
        (attr,) = await self._store.get(NodeKey(ino))
        if attr is None:
            return  # removed meanwhile
        if attr.kind == DIRECTORY and recursive:
            async for child, kind in self._entries(ino):
                if kind in (DIRECTORY, FILE):
                    await self.change(child, tier, recursive=True, force=force)
        if attr.tier == tier and not force:
            return
        done: set[str] = set()
        if attr.kind == FILE:
            await self._each(ino, done, lambda key: self._storage.change_tier(key, tier))

        async def operation(tx: Tx) -> None:
            await set_tier(tx, ino, tier, time.time_ns())

        await self._store.run(operation, near=(ino,))
        self.inodes += 1
        if attr.kind == FILE:  # what was committed meanwhile was written for the former tier
            await self._each(ino, done, lambda key: self._storage.change_tier(key, tier))

    async def thaw(self, ino: int, days: int) -> None:
        """Have the objects of a file, or of everything below a directory, made readable for *days*. ObjectError."""
        (attr,) = await self._store.get(NodeKey(ino))
        if attr is None:
            return
        if attr.kind == FILE:
            self.inodes += 1
            await self._each(ino, set(), lambda key: self._storage.thaw(key, days))
        elif attr.kind == DIRECTORY:
            async for child, kind in self._entries(ino):
                if kind in (DIRECTORY, FILE):
                    await self.thaw(child, days)

    async def _entries(self, ino: int) -> AsyncIterator[tuple[int, int]]:
        """(inode, kind) of the entries of a directory, hard links once."""
        seen: set[int] = set()
        async for page in self._store.list_directory(ino, plus=False):
            for entry in page.entries:
                if entry.ino not in seen:
                    seen.add(entry.ino)
                    yield entry.ino, entry.kind

    async def _each(self, ino: int, done: set[str], act: Callable[[str], Awaitable[None]]) -> None:
        """*act* on every object of a file that is not in *done*, until there are no further ones. One that is gone has been replaced by
        a compaction or a write."""
        missing: str | None = None
        for _ in range(_ROUNDS):
            keys = [key for key in await self._keys(ino) if key not in done]
            if not keys:
                return
            missing = None

            async def one(key: str) -> str | None:
                async with self._places:
                    try:
                        await act(key)
                    except ObjectNotFound:
                        return key
                self.objects += 1
                done.add(key)
                return None

            outcomes = await asyncio.gather(*map(one, keys), return_exceptions=True)
            for outcome in outcomes:
                if isinstance(outcome, BaseException):
                    raise outcome
                missing = missing or outcome
        if missing is not None:
            raise VolumeError(
                f"inode {ino} has no object {missing} in {self._storage.describe()}; `jfs fsck` tells more"
            )
        raise VolumeError(f"inode {ino} is changed without a pause: run the command again when it rests")

    async def _keys(self, ino: int) -> list[str]:
        """Objects that the file's records name now."""
        (attr,) = await self._store.get(NodeKey(ino))
        if attr is None:
            return []
        indexes: list[int] = list(await self._store.chunk_indexes(ino, attr.length))
        setting = self._setting
        size_of, named = setting.block_size, dict[str, None]()
        for at in range(0, len(indexes), _INDEXES):
            for raw in await self._store.get(*(ChunkKey(ino, indx) for indx in indexes[at : at + _INDEXES])):
                for record in unpack(raw) if raw is not None else ():
                    if not record.id or not record.len:
                        continue
                    for block in range(record.off // size_of, -(-(record.off + record.len) // size_of)):
                        length = block_length(record.size, block, size_of)
                        named[block_key(record.id, block, length, hash_prefix=setting.hash_prefix)] = None
        return list(named)
