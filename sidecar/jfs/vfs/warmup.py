"""The cache command of `.control` (format §8.3, FillCache): brings the blocks of files and trees into the local cache, drops them, or tells
which are there – for `juicefs warmup` and `jfs warmup` alike.

Rights are the caller's. Concurrency: at most as many blocks at a time as the caller asks for threads; a request in the background goes on
when its handle is closed, until `close`. A block that cannot be had is counted as missing and logged, the others go on.
"""

import asyncio
import errno
import json
import logging
import struct
from collections import Counter
from collections.abc import AsyncIterator
from typing import Final

from jfs.chunk.naming import block_count, block_length
from jfs.chunk.reader import Reader
from jfs.errors import FsError, JfsError
from jfs.format.constants import DIRECTORY, FILE, ROOT, SYMLINK
from jfs.meta.model.attr import Attr
from jfs.meta.volume import Caller, Meta
from jfs.vfs.control import Progress, data

log = logging.getLogger(__name__)
WARM, EVICT, CHECK = range(3)
_MEMORY: Final = "memory"  # where blocks lie that only a reader holds
_ABREAST: Final = 255  # most blocks at a time


class _Counts:
    """What one request has found."""

    def __init__(self) -> None:
        self.files = self.slices = self.bytes = self.missing = 0
        self.places: Counter[str] = Counter()

    def answer(self, action: int) -> bytes:
        """The data frame, with the real client's members."""
        members = {
            "FileCount": self.files,
            "SliceCount": self.slices,
            "TotalBytes": self.bytes,
            "MissBytes": self.missing if action == CHECK else 0,
            "Locations": dict(self.places) if action == CHECK else {},
        }
        return data(json.dumps(members).encode())


class Warmer:
    """Answers for one mount."""

    def __init__(self, meta: Meta, reader: Reader) -> None:
        self._meta = meta
        self._reader = reader
        self._background: set[asyncio.Task[bytes]] = set()

    async def close(self) -> None:
        """End what runs in the background."""
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)

    async def __call__(self, body: bytes, caller: Caller, progress: Progress) -> bytes:
        """The answer to one request. FsError(ENOTSUP) when there is no cache to warm."""
        (length,) = struct.unpack_from(">I", body)
        paths = body[4 : 4 + length].split(b"\n")
        rest = body[4 + length :]
        threads = int.from_bytes(rest[:2], "big") if len(rest) > 1 else 0
        background = len(rest) > 2 and bool(rest[2])
        action = rest[3] if len(rest) > 3 else WARM
        if action not in (WARM, EVICT, CHECK):
            raise FsError(errno.EINVAL)
        if action == WARM and self._reader.blocks.cache is None:
            raise FsError(errno.ENOTSUP)
        work = self._run(paths, caller, progress, action, min(max(threads, 1), _ABREAST))
        if not background:
            return await work
        task = asyncio.create_task(work, name="warmup")
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        task.add_done_callback(_report)
        return _Counts().answer(action)

    async def _run(self, paths: list[bytes], caller: Caller, progress: Progress, action: int, abreast: int) -> bytes:
        counts = _Counts()
        turn = asyncio.Semaphore(abreast)
        block_size = self._reader.blocks.block_size
        async with asyncio.TaskGroup() as group:
            for path in paths:
                async for ino in self._files(caller, path):
                    counts.files += 1
                    for _, records in await self._meta.file_chunks(ino):
                        for record in records:
                            if not record.id:
                                continue
                            counts.slices += 1
                            counts.bytes += record.size
                            for indx in range(block_count(record.size, block_size)):
                                if action == WARM:
                                    await turn.acquire()
                                    group.create_task(self._fill(record.id, record.size, indx, turn))
                                else:
                                    self._look(record.id, record.size, indx, action, counts)
                    progress(counts.files, counts.bytes)
        return counts.answer(action)

    async def _fill(self, slice_id: int, size: int, indx: int, turn: asyncio.Semaphore) -> None:
        try:
            await self._reader.blocks.fill(slice_id, size, indx)
        except JfsError as error:
            log.warning("block %d of slice %d could not be brought into the cache: %s", indx, slice_id, error)
        finally:
            turn.release()

    def _look(self, slice_id: int, size: int, indx: int, action: int, counts: _Counts) -> None:
        """Drop a block, or count where it is."""
        length = block_length(size, indx, self._reader.blocks.block_size)
        local, name = self._reader.blocks.cache, (slice_id, indx)
        if action == EVICT:
            self._reader.cache.drop(name)
            if local is not None:
                local.remove(slice_id, indx, length)
            return
        place = local.where(slice_id, indx, length) if local is not None else None
        if place is None and name in self._reader.cache:
            place = _MEMORY
        if place is None:
            counts.missing += length
        else:
            counts.places[place] += length

    async def _files(self, caller: Caller, path: bytes) -> AsyncIterator[int]:
        """The files at and below *path* of the mount; none when there is nothing."""
        try:
            ino, attr = await self._resolve(caller, path)
        except FsError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR):
                return
            raise
        if attr.kind != DIRECTORY:
            if attr.kind == FILE:
                yield ino
            return
        waiting = [ino]
        while waiting:
            async for page in self._meta.list_directory(caller, waiting.pop(), plus=False):
                for entry in page.entries:
                    if entry.kind == DIRECTORY:
                        waiting.append(entry.ino)
                    elif entry.kind == FILE:
                        yield entry.ino

    async def _resolve(self, caller: Caller, path: bytes) -> tuple[int, Attr]:
        at, attr = await self._walk(caller, path)
        if attr.kind == SYMLINK:
            target = await self._meta.readlink(at)
            if not target.startswith(b"/"):
                return await self._walk(caller, path.rpartition(b"/")[0] + b"/" + target)
        return at, attr

    async def _walk(self, caller: Caller, path: bytes) -> tuple[int, Attr]:
        """The inode of *path*; links are not followed."""
        at, attr = ROOT, await self._meta.getattr(ROOT)
        for name in path.split(b"/"):
            if name not in (b"", b"."):
                at, attr = await self._meta.lookup(caller, at, name)
        return at, attr


def _report(task: "asyncio.Task[bytes]") -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.warning("warming up in the background ended early: %s", error)
