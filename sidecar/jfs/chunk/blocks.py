"""Blocks in the object storage: naming, compression, retries, time-outs, bounded concurrency (format §6.2, §6.3, §6.6).

Place in the flow: writer and reader → here → `chunk.local` (what this machine keeps) and `jfs.object`. Invariant: a block is immutable
once put, so a repeated put is harmless, and a kept copy never grows old.
Concurrency: at most `max_uploads` puts and deletes and `max_downloads` gets are at the storage at once; compression of more
than 64 KiB runs in threads. Nothing else is shared between the calls.
Errors: ObjectNotFound at once, ObjectUnavailable (ObjectForbidden) after all tries.
"""

import asyncio
import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from jfs.chunk.compression import codec
from jfs.chunk.local.interface import LocalCache
from jfs.chunk.local.staging import Staging
from jfs.chunk.naming import block_count, block_key, block_length, slice_keys
from jfs.chunk.rate import RateLimit
from jfs.errors import ObjectError, ObjectForbidden, ObjectNotFound, ObjectUnavailable, StorageFull, StorageMissing
from jfs.object.base import Data, ObjectStorage

log = logging.getLogger(__name__)
# What does not pass by itself: a few seconds, in which a deletion may make room or somebody mend it; then the user is told.
_DEFINITE: Final = (StorageFull, ObjectForbidden, StorageMissing)
_TRIES_WHEN_DEFINITE: Final = 3
_STAGED_TRIES: Final = 3  # of a staged block, before it waits its turn again
_THREAD_FROM: Final = 64 << 10  # bytes; compressing less takes less time than a hop to a thread

# Called after each request: method (GET, PUT, DELETE), seconds, object bytes, whether it succeeded.
Observer = Callable[[str, float, int, bool], None]


@dataclass(frozen=True, slots=True)
class BlockFormat:
    """What the volume fixes: block size in bytes, compression, object naming."""

    block_size: int = 4 << 20
    compression: str = "none"
    hash_prefix: bool = False


@dataclass(frozen=True, slots=True)
class BlockLimits:
    """What a mount may choose (format §6.6). Times in seconds; *pause* gives the one before a further try, counted from 1."""

    get_timeout: float = 60.0
    put_timeout: float = 60.0
    io_retries: int = 10
    max_uploads: int = 20
    max_downloads: int = 200
    upload_rate: RateLimit | None = None
    download_rate: RateLimit | None = None
    pause: Callable[[int], float] = lambda tried: tried * tried * random.uniform(0.75, 1.0)


class BlockStore:
    """All blocks of a volume. Owns *storage*, which holds the volume's objects under their plain names."""

    def __init__(
        self,
        storage: ObjectStorage,
        format: BlockFormat | None = None,
        limits: BlockLimits | None = None,
        *,
        observe: Observer | None = None,
        cache: LocalCache | None = None,
    ) -> None:
        self.storage = storage
        self.cache = cache
        self.staging: Staging | None = None  # with writeback
        self.format = format or BlockFormat()
        self.limits = limits or BlockLimits()
        self.block_size = self.format.block_size
        self._hash_prefix = self.format.hash_prefix
        self._codec = codec(self.format.compression)
        self.cheap_ranges = storage.cheap_ranges and self._codec is None
        self.seekable = self._codec is None and not storage.whole_only
        self._observe = observe
        self._stored_part = 1.0  # of a block's length that its object has, as those read last had
        self._uploads = asyncio.Semaphore(self.limits.max_uploads)
        self._downloads = asyncio.Semaphore(self.limits.max_downloads)

    async def put_block(self, slice_id: int, indx: int, block: Data, tier: int = 0) -> None:
        """Store block *indx* of a slice of a file of storage *tier*; *block* must not change until this returns."""
        # What is staged does not know its tier: such blocks are stored at once.
        if self.staging is not None and not tier and await self.staging.stage(slice_id, indx, block):
            return
        key = block_key(slice_id, indx, len(block), hash_prefix=self._hash_prefix)
        async with self._uploads:
            content = block
            if self._codec is not None:
                if len(block) < _THREAD_FROM:
                    content = self._codec.compress(block)
                else:
                    content = await asyncio.get_running_loop().run_in_executor(None, self._codec.compress, block)
            await self._put(key, content, tier=tier)
        if self.cache is not None and not self.cheap_ranges and self.cache.keeps_written(len(block)):
            self.cache.put(slice_id, indx, bytes(block))

    async def upload(self, key: str, block: Data) -> None:
        """Store a staged block under its object's *key*; ObjectError after a few tries."""
        async with self._uploads:
            content = block
            if self._codec is not None:
                content = await asyncio.get_running_loop().run_in_executor(None, self._codec.compress, block)
            await self._put(key, content, _STAGED_TRIES)

    async def _put(self, key: str, content: Data, tries: int | None = None, tier: int = 0) -> None:
        tried = 0
        while True:
            if self.limits.upload_rate is not None:
                await self.limits.upload_rate.take(len(content))
            began = time.monotonic()
            try:
                if len(content) <= self.storage.at_once:
                    await self.storage.put(key, content, tier)
                else:
                    async with asyncio.timeout(self.limits.put_timeout):
                        await self.storage.put(key, content, tier)
            except (ObjectError, TimeoutError) as error:
                self._note("PUT", began, 0, False)
                tried += 1
                await self._before_again("store", key, tried, error, self.limits.put_timeout, tries)
            else:
                self._note("PUT", began, len(content), True)
                return

    async def get_block(self, slice_id: int, size: int, indx: int, *, keep: bool = True) -> Data:
        """The whole block *indx* of a slice of *size* bytes; with *keep* the local cache gets it too."""
        length = block_length(size, indx, self.block_size)
        cache = self.cache
        if cache is not None:
            data = await cache.read(slice_id, indx, length, 0, length)
            if data is not None:
                return data
            cache.missed(length)
        block = await self._get(block_key(slice_id, indx, length, hash_prefix=self._hash_prefix), 0, length)
        if cache is not None and keep and not self.cheap_ranges:
            cache.put(slice_id, indx, block)
        return block

    async def get_range(
        self, slice_id: int, size: int, indx: int, offset: int, length: int, *, looked: bool = False
    ) -> Data:
        """Bytes [offset, offset+length) of a block that is stored uncompressed, by one ranged request, unless they are in the local cache;
        *looked*: it was asked already."""
        full = block_length(size, indx, self.block_size)
        key = block_key(slice_id, indx, full, hash_prefix=self._hash_prefix)
        cache = self.cache
        if cache is None:
            return await self._get(key, offset, length)
        if not looked:
            data = await cache.read(slice_id, indx, full, offset, length, known=self.cheap_ranges)
            if data is not None:
                return data
        cache.missed(length)
        try:
            return await self._get(key, offset, length)
        except ObjectNotFound:  # staged by another mount of this machine, perhaps
            data = await cache.read(slice_id, indx, full, offset, length) if self.cheap_ranges else None
            if data is None:
                raise
            return data

    async def cached(self, slice_id: int, size: int, indx: int, offset: int, length: int) -> Data | None:
        """Bytes of a block if the local cache has them."""
        if self.cache is None:
            return None
        full = block_length(size, indx, self.block_size)
        return await self.cache.read(slice_id, indx, full, offset, length)

    def advise(self, slice_id: int, size: int, indx: int) -> None:
        """A block will be read soon: if it lies on a local disk, have that read it meanwhile."""
        length = block_length(size, indx, self.block_size)
        if self.cache is not None and self.cache.has(slice_id, indx):
            self.cache.advise(slice_id, indx, length)
        elif self.cheap_ranges:
            self.storage.advise(block_key(slice_id, indx, length, hash_prefix=self._hash_prefix))

    async def fill(self, slice_id: int, size: int, indx: int) -> None:
        """Have a block in the local cache, if that takes it. ObjectError."""
        length = block_length(size, indx, self.block_size)
        cache = self.cache
        if cache is None or not cache.takes(length) or cache.where(slice_id, indx, length) is not None:
            return
        await cache.room()
        block = await self._get(block_key(slice_id, indx, length, hash_prefix=self._hash_prefix), 0, length)
        await cache.room()
        cache.put(slice_id, indx, block, force=True)

    async def delete_slice(self, slice_id: int, size: int) -> None:
        """Delete all blocks of a slice of *size* bytes; missing ones are success. Raises the first error after having tried all."""
        for indx in range(block_count(size, self.block_size)):
            if self.staging is not None:
                await self.staging.forget(slice_id, indx)
            if self.cache is not None:
                self.cache.remove(slice_id, indx, block_length(size, indx, self.block_size))
        keys = list(slice_keys(slice_id, size, self.block_size, hash_prefix=self._hash_prefix))
        if len(keys) == 1:
            await self._delete(keys[0])
            return
        outcomes = await asyncio.gather(*(self._delete(key) for key in keys), return_exceptions=True)
        for outcome in outcomes:
            if outcome is not None:
                raise outcome

    async def close(self) -> None:
        """Close the local cache and the storage."""
        if self.staging is not None:
            await self.staging.close()
        if self.cache is not None:
            await self.cache.close()
        await self.storage.close()

    async def _get(self, key: str, offset: int, length: int) -> Data:
        tried = 0
        while True:
            began = time.monotonic()
            try:
                async with self._downloads:
                    rate = self.limits.download_rate
                    if rate is None:
                        data = await self._request(key, offset, length)
                    else:  # how long a compressed object is shows only afterwards
                        expected = round(length * self._stored_part)
                        await rate.take(expected)
                        began = time.monotonic()
                        data = await self._request(key, offset, length)
                        rate.give_back(expected - len(data))
                        self._stored_part += (len(data) / max(length, 1) - self._stored_part) / 2
                block = data if self._codec is None else await self._unpack(key, data, length)
                if len(block) != length:
                    raise ObjectUnavailable(
                        f"the object {key} in {self.storage.describe()} has {len(block)} bytes where {length} are expected"
                    )
                self._note("GET", began, len(data), True)
                return block
            except ObjectNotFound:
                self._note("GET", began, 0, False)
                raise
            except (ObjectError, TimeoutError) as error:
                self._note("GET", began, 0, False)
                tried += 1
                await self._before_again("read", key, tried, error, self.limits.get_timeout)

    async def _request(self, key: str, offset: int, length: int) -> Data:
        if self._codec is not None:  # the length of a compressed object is not known, and it is always read whole
            offset, length = 0, -1
        if self.storage.cheap_ranges:
            return await self.storage.get(key, offset, length)
        async with asyncio.timeout(self.limits.get_timeout):
            if not offset and length >= 0 and self._is_whole(key, length):
                return await self.storage.get(key)  # a full GET, whose checksum is verified
            return await self.storage.get(key, offset, length)

    @staticmethod
    def _is_whole(key: str, length: int) -> bool:
        return key.endswith(f"_{length}")

    async def _unpack(self, key: str, data: Data, length: int) -> Data:
        assert self._codec is not None
        try:
            if length < _THREAD_FROM:
                return self._codec.decompress(data, length)
            return await asyncio.get_running_loop().run_in_executor(None, self._codec.decompress, data, length)
        except ValueError as error:
            raise ObjectUnavailable(
                f"the object {key} in {self.storage.describe()} does not decompress to a block of {length} bytes: {error}"
            ) from error

    async def _delete(self, key: str) -> None:
        began = time.monotonic()
        async with self._uploads:
            try:
                async with asyncio.timeout(self.limits.put_timeout):
                    await self.storage.delete(key)
            except TimeoutError as error:
                self._note("DELETE", began, 0, False)
                raise ObjectUnavailable(
                    f"deleting {key} in {self.storage.describe()} took longer than {self.limits.put_timeout:g} s"
                ) from error
            except ObjectError:
                self._note("DELETE", began, 0, False)
                raise
        self._note("DELETE", began, 0, True)

    async def _before_again(
        self, action: str, key: str, tried: int, error: Exception, timeout: float, most: int | None = None
    ) -> None:
        """Wait before the next try, or raise when there is none left."""
        if isinstance(error, TimeoutError):
            error = ObjectUnavailable(f"no answer within {timeout:g} s from {self.storage.describe()} for {key}")
        tries = most or self.limits.io_retries + 1
        if isinstance(error, _DEFINITE):
            tries = min(tries, _TRIES_WHEN_DEFINITE)
        if tried >= tries:
            raise error
        log.warning("Try %d of %d to %s %s failed: %s", tried, tries, action, key, error)
        await asyncio.sleep(self.limits.pause(tried))

    def _note(self, method: str, began: float, size: int, ok: bool) -> None:
        if self._observe is not None:
            self._observe(method, time.monotonic() - began, size, ok)
