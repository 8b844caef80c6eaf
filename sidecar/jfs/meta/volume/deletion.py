"""Removing the data of deleted files and unreferenced slices (format §7.3, §7.5, §3.12).

Order: first the records in a transaction (chunk lists, references, queue entry), then the objects, then the reference records; a
crash between them leaves work for the hourly jobs and never a record without its objects. Everything here may be run twice.
Files deleted at the same time are handled in batches, since each step is a round trip. At most *max_deletes* objects' slices are
deleted at once; memory is bounded by the queue, which holds three numbers per file. One event loop.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Final

from jfs.errors import JfsError
from jfs.format.constants import CHUNK
from jfs.meta.model.keys import DeletedFileKey, SliceRefKey
from jfs.meta.operations.content import Freed, drop_chunks, drop_slice
from jfs.meta.store.base import Store, Tx

log = logging.getLogger(__name__)

_FILES_PER_BATCH: Final = 32
_CHUNKS_PER_BATCH: Final = 128
_BATCHES: Final = 2
_SLICES_PER_BATCH: Final = 512

DeleteObjects = Callable[[int, int], Awaitable[None]]


class Deletion:
    """The mount's deleter; `submit` after a commit that queued files, `drain` before the end."""

    def __init__(self, store: Store, delete_objects: DeleteObjects, max_deletes: int) -> None:
        self._store = store
        self._delete_objects = delete_objects
        self._max_deletes = max_deletes
        self._objects = asyncio.Semaphore(max(max_deletes, 1))
        self._waiting: deque[tuple[int, int]] = deque()
        self._workers: set[asyncio.Task[None]] = set()
        self._closed = False

    def submit(self, ino: int, length: int) -> None:
        """Delete the data of a file that a commit has just queued, in the background."""
        if self._closed or not self._max_deletes:
            return
        self._waiting.append((ino, length))
        if len(self._workers) < _BATCHES:
            worker = asyncio.create_task(self._work(), name="deletion")
            self._workers.add(worker)
            worker.add_done_callback(self._workers.discard)

    async def _work(self) -> None:
        while self._waiting:
            batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), _FILES_PER_BATCH))]
            try:
                await self.delete_files(batch)
            except JfsError as error:
                log.warning("the data of %d deleted files stay for the hourly clean-up: %s", len(batch), error)

    async def drain(self, seconds: float) -> None:
        """Wait up to *seconds* for what was submitted, then stop; what is left stays in the queue of the database."""
        if self._workers:
            await asyncio.wait(list(self._workers), timeout=seconds)
        self._closed = True
        self._waiting.clear()
        for worker in list(self._workers):
            worker.cancel()
        if self._workers:
            await asyncio.wait(list(self._workers))

    async def delete_files(self, files: Sequence[tuple[int, int]]) -> None:
        """Delete the chunk lists, unreferenced objects and queue entries of (inode, length)."""
        small: list[tuple[int, int]] = []
        chunks: list[tuple[int, int]] = []
        for ino, length in files:
            count = length // CHUNK + 1
            if count > _CHUNKS_PER_BATCH // 4:
                await self._delete_long(ino, length)
                continue
            if len(chunks) + count > _CHUNKS_PER_BATCH:
                await self._delete_batch(small, chunks)
                small, chunks = [], []
            small.append((ino, length))
            chunks += [(ino, indx) for indx in range(count)]
        await self._delete_batch(small, chunks)

    async def _delete_batch(self, files: list[tuple[int, int]], chunks: list[tuple[int, int]]) -> None:
        if not files:
            return
        queue = [DeletedFileKey(ino, length) for ino, length in files]

        async def drop(tx: Tx) -> Freed:
            return await drop_chunks(tx, chunks, queue)

        freed = await self._store.run(drop)
        await self.delete_unreferenced(freed.slices)
        for ino, length in files:
            if ino in freed.cut:  # its queue entry is still there
                await self._delete_long(ino, length)

    async def _delete_long(self, ino: int, length: int) -> None:
        indexes = await self._store.chunk_indexes(ino)
        for start in range(0, len(indexes), _CHUNKS_PER_BATCH):
            piece = [(ino, indx) for indx in indexes[start : start + _CHUNKS_PER_BATCH]]

            async def drop(tx: Tx, piece: list[tuple[int, int]] = piece) -> Freed:
                return await drop_chunks(tx, piece, ())

            freed = await self._store.run(drop)
            await self.delete_unreferenced(freed.slices)

        async def unqueue(tx: Tx) -> None:
            tx.delete(DeletedFileKey(ino, length))

        await self._store.run(unqueue)

    async def delete_unreferenced(self, slices: Iterable[tuple[int, int]]) -> None:
        """Delete the objects of those of *slices* (id, size) that no chunk refers to any more, then their records."""
        if not self._max_deletes:
            return
        remaining = list(slices)
        for start in range(0, len(remaining), _SLICES_PER_BATCH):
            keys = [SliceRefKey(id, size) for id, size in remaining[start : start + _SLICES_PER_BATCH]]
            counts = await self._store.get(*keys)
            dead = [key for key, count in zip(keys, counts, strict=True) if count is None or count <= 0]
            gone = await asyncio.gather(*(self._delete_slice(key) for key in dead))
            done = [key for key, success in zip(dead, gone, strict=True) if success]
            if done:

                async def forget(tx: Tx, done: list[SliceRefKey] = done) -> None:
                    for key in done:
                        await drop_slice(tx, key.id, key.size)

                await self._store.run(forget)

    async def _delete_slice(self, key: SliceRefKey) -> bool:
        async with self._objects:
            try:
                await self._delete_objects(key.id, key.size)
            except JfsError as error:
                log.warning("the objects of slice %d stay for the hourly clean-up: %s", key.id, error)
                return False
        return True
