"""The disk cache of a mount (format §6.8): whole blocks as files in one or more directories, in the real client's layout.

Place in the flow: `chunk.blocks` and `chunk.reader` → here → `directory` (files), `index` (limits). Invariants: what is read is what was
stored (lengths, and checksums as far as their level asks, else the block is removed and fetched again); nothing here fails a read or a
write of the volume. A block that waits to be written is read from memory.
Concurrency: event loop; writes, removals, scans and looks at the disks run in threads of this module, reads that hit the page cache in the
loop. One task writes what is queued, one looks after the directories. Other processes may use the same directories.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

from jfs.chunk.local import checksum
from jfs.chunk.local.counters import CacheCounters
from jfs.chunk.local.directory import CacheDirectory
from jfs.chunk.local.layout import block_of, ident
from jfs.chunk.local.open_blocks import OpenBlock, OpenBlocks
from jfs.chunk.local.options import CacheOptions
from jfs.chunk.local.pending import Pending
from jfs.chunk.local.ring import Ring
from jfs.chunk.local.work import evict, unlink, will_need, write_blocks
from jfs.chunk.naming import block_key
from jfs.metrics import REGISTRY, Registry
from jfs.object.base import Data
from jfs.object.pread import FileReads

T = TypeVar("T")
log = logging.getLogger(__name__)
_BATCH: Final = 32  # blocks written in one go …
_BATCH_BYTES: Final = 4 << 20  # … or bytes: their memory comes back only then
TICK: Final = 10.0  # seconds between looks at the directories
_IDLE: Final = 10.0  # seconds after which an open block is closed, so that an evicted file gives its room back


class DiskCache:
    """Blocks of the volume *volume* (its UUID), whose names have hash prefixes or not."""

    def __init__(
        self,
        options: CacheOptions,
        volume: str,
        *,
        block_size: int,
        hash_prefix: bool = False,
        registry: Registry = REGISTRY,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.options = options
        self._block_size = block_size
        self._hash_prefix = hash_prefix
        self._now = now
        count = max(len(options.directories), 1)
        size, items = options.size // count, -(-options.items // count)
        self.directories = [CacheDirectory(path, volume, options, size, items) for path in options.directories]
        self.staged: set[int] = set()  # blocks that lie in a staging area, as `Staging` knows
        self._by_name: dict[str, CacheDirectory] = {}
        self._ring: Ring | None = None
        self._open = OpenBlocks()
        self._reads = FileReads()
        self._pending = Pending()
        self._doomed: list[tuple[CacheDirectory, str]] = []  # to be unlinked
        self._writer: asyncio.Task[None] | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._scans: dict[CacheDirectory, asyncio.Task[None]] = {}
        self._added: dict[CacheDirectory, list[int]] = {}  # since the scan of the directory began
        self._pool = ThreadPoolExecutor(count + 1, thread_name_prefix="cache")
        self._counters = CacheCounters(
            registry,
            lambda: sum(len(each.index) for each in self.directories),
            lambda: sum(each.index.used for each in self.directories),
        )

    # -- life

    async def start(self) -> None:
        for directory in self.directories:
            try:
                await self._in_thread(directory.prepare)
            except OSError as error:
                log.error("the cache directory %s cannot be used: %s", directory.path, error)
        self._arrange()
        self._keeper = asyncio.create_task(self._keep())

    async def close(self) -> None:
        tasks = [task for task in (self._keeper, *self._scans.values()) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._writer is not None:
            await self._writer
        self._open.close_unused(float("inf"))
        await asyncio.to_thread(self._pool.shutdown, wait=True, cancel_futures=True)

    def _arrange(self) -> None:
        """The directories in use have changed."""
        self._by_name = {each.name: each for each in self.directories if each.usable}
        self._ring = Ring(self._by_name) if len(self._by_name) > 1 else None
        for directory in self.directories:
            if not directory.usable:
                directory.index.clear()
            elif directory not in self._scans and not len(directory.index):
                self._scan(directory)

    # -- asking

    def takes(self, length: int) -> bool:
        return not self.options.partial_only or length < self._block_size

    def keeps_written(self, length: int) -> bool:
        return self.takes(length) and (self.options.large_write or length < self._block_size)

    def has(self, slice_id: int, indx: int) -> bool:
        number = ident(slice_id, indx)
        return (
            number in self._pending or number in self.staged or any(number in each.index for each in self.directories)
        )

    def where(self, slice_id: int, indx: int, length: int) -> str | None:
        number, key = ident(slice_id, indx), self.key(slice_id, indx, length)
        for directory in self._candidates(key):
            if number in self._pending or directory.exists(key):
                return directory.root
        return None

    def key(self, slice_id: int, indx: int, length: int) -> str:
        """The name of a block below `raw/`: its object's."""
        return block_key(slice_id, indx, length, hash_prefix=self._hash_prefix)

    def home(self, key: str) -> CacheDirectory | None:
        """The directory that a block belongs to; None when none can be used."""
        if self._ring is not None:
            return self._by_name.get(self._ring.owner(key))
        return next(iter(self._by_name.values()), None)

    def _candidates(self, key: str) -> list[CacheDirectory]:
        """Where the block would be, and the others: with another list of directories it was stored elsewhere."""
        home = self.home(key)
        if self._ring is None or home is None:
            return [home] if home is not None else []
        return [home, *(each for each in self._by_name.values() if each is not home)]

    async def read(
        self, slice_id: int, indx: int, length: int, begin: int, count: int, *, known: bool = False
    ) -> Data | None:
        number = ident(slice_id, indx)
        waiting = self._pending.get(number)
        if waiting is not None:
            return waiting if count == len(waiting) else memoryview(waiting)[begin : begin + count]
        block = self._open.get(number)
        if block is None:
            if known and not self.has(slice_id, indx):
                return None
            block = self._find(number, slice_id, indx, length)
            if block is None:
                return None
        block.used = now = self._now()
        block.directory.index.touch(number, now)
        start, end = begin, begin + count
        if block.sums:
            start, end = checksum.read_range(self.options.checksum, length, begin, count)
        block.users += 1
        began = time.perf_counter()
        try:
            data = await self._reads.read(block.fd, start, end - start)
        except OSError as error:
            block.directory.failed(error)
            self._forget(number, slice_id, indx, length)
            return None
        finally:
            block.release()
        if len(data) != end - start or (
            block.sums and not checksum.is_intact(self.options.checksum, block.sums, length, start, data)
        ):
            log.warning("the cached block %s is damaged and was removed", self.key(slice_id, indx, length))
            self._forget(number, slice_id, indx, length)
            return None
        self._counters.hit(count, time.perf_counter() - began)
        return data if len(data) == count else memoryview(data)[begin - start : begin - start + count]

    def advise(self, slice_id: int, indx: int, length: int) -> None:
        number = ident(slice_id, indx)
        block = self._open.get(number) or self._find(number, slice_id, indx, length)
        if block is None:
            return
        block.used = self._now()
        block.users += 1
        released = block.release
        reading = asyncio.get_running_loop().run_in_executor(self._pool, will_need, block.fd)
        reading.add_done_callback(lambda _: released())

    def _find(self, number: int, slice_id: int, indx: int, length: int) -> OpenBlock | None:
        key = self.key(slice_id, indx, length)
        for directory in self._candidates(key):
            try:
                block = directory.open(key, length)
            except OSError as error:
                self._failed(directory, error)
                continue
            if block is None:
                directory.index.remove(number)
                continue
            if number not in directory.index:  # another process has stored it
                directory.index.add(number, length, self._now())
            self._open.put(number, block)
            return block
        return None

    def _forget(self, number: int, slice_id: int, indx: int, length: int) -> None:
        """Remove a block that cannot be read."""
        self._open.close(number)
        key = self.key(slice_id, indx, length)
        for directory in self._candidates(key):
            directory.index.remove(number)
            directory.remove(key)
        self._review()

    def _failed(self, directory: CacheDirectory, error: OSError) -> None:
        directory.failed(error)
        self._review()

    def _review(self) -> None:
        if len(self._by_name) != sum(each.usable for each in self.directories):
            self._arrange()

    # -- changing

    def put(self, slice_id: int, indx: int, data: Data, *, force: bool = False) -> bool:
        length = len(data)
        number = ident(slice_id, indx)
        if not self.takes(length):
            return False
        if number in self._pending:
            return True
        directory = self.home(self.key(slice_id, indx, length))
        if directory is None:
            return False
        if number in directory.index:
            return True
        if directory.lacking or not directory.index.takes(length):
            return False
        if not force and not self._pending.takes(length):
            self._counters.drops.value += 1
            return False
        self._pending.add(number, data)
        self._wake()
        return True

    def missed(self, count: int) -> None:
        self._counters.miss(count)

    async def room(self) -> None:
        await self._pending.room()

    def remove(self, slice_id: int, indx: int, length: int) -> None:
        number = ident(slice_id, indx)
        self._pending.pop(number)
        self._open.close(number)
        for directory in self.directories:
            if directory.index.remove(number):
                self._doomed.append((directory, self.key(slice_id, indx, length)))
                self._wake()

    def note(self, directory: CacheDirectory, slice_id: int, indx: int, length: int) -> None:
        """A file was made for the block by someone else of this process (staging)."""
        self._note(directory, ident(slice_id, indx), length)

    def _note(self, directory: CacheDirectory, number: int, length: int) -> None:
        directory.index.add(number, length, self._now())
        added = self._added.get(directory)
        if added is not None:
            added.append(number)
        self._wake()

    def _wake(self) -> None:
        if self._writer is None:
            self._writer = asyncio.create_task(self._work())

    async def _work(self) -> None:
        """Write what is queued, remove what is doomed, evict what is too much."""
        try:
            while True:
                await self._write_some()
                await self._remove_some()
                if not await self._evict() and not self._pending and not self._doomed:
                    return
        finally:
            self._writer = None

    async def _write_some(self) -> None:
        batch: list[tuple[int, CacheDirectory, str, Data]] = []
        size = 0
        for number, data in self._pending:
            key = self.key(*block_of(number), len(data))
            directory = self.home(key)
            if directory is not None:
                batch.append((number, directory, key, data))
                size += len(data)
            if len(batch) == _BATCH or size >= _BATCH_BYTES:
                break
        else:
            known = {each[0] for each in batch}
            for number in [each for each, _ in self._pending if each not in known]:
                self._pending.pop(number)  # no directory can be used any more
        if not batch:
            return
        outcomes = await self._in_thread(lambda: write_blocks(batch))
        for (number, directory, key, data), outcome in zip(batch, outcomes, strict=True):
            wanted = self._pending.pop(number)
            if isinstance(outcome, OSError):
                self._failed(directory, outcome)
            elif not wanted:  # it was deleted meanwhile
                self._doomed.append((directory, key))
            elif directory.usable:
                self._note(directory, number, len(data))
                self._counters.wrote(len(data), outcome)

    async def _remove_some(self) -> None:
        doomed, self._doomed = self._doomed, []
        if doomed:
            await self._in_thread(lambda: unlink(doomed))

    async def _evict(self) -> bool:
        """Remove what is over the limits; whether anything was removed."""
        removed = False
        for directory in self.directories:
            if directory.usable and (directory.lacking or directory.index.is_over):
                gone = directory.index.excess(directory.lacking)
                removed = await self._discard(directory, gone) or removed
        return removed

    async def _discard(self, directory: CacheDirectory, gone: list[tuple[int, int]]) -> bool:
        """Unlink blocks that have left the index."""
        if not gone:
            return False
        for number, _ in gone:
            self._open.close(number)
        self._counters.evicts.value += len(gone)
        keys = [self.key(*block_of(number), length) for number, length in gone]
        await self._in_thread(lambda: evict(directory, keys))
        return True

    # -- looking after the directories

    async def _keep(self) -> None:
        options = self.options
        tick = TICK
        for period in (options.expire / 2, options.scan_interval):
            if period:
                tick = min(tick, max(period, 0.1))
        scanned = time.monotonic()
        while True:
            await asyncio.sleep(tick)
            self._open.close_unused(self._now() - _IDLE)
            for directory in self.directories:
                if not await self._in_thread(directory.look):
                    directory.index.clear()
                    self._arrange()
                if options.expire and directory.usable:
                    await self._discard(directory, directory.index.expired(self._now() - options.expire))
            self._review()
            if options.scan_interval and time.monotonic() - scanned >= options.scan_interval:
                scanned = time.monotonic()
                for directory in self.directories:
                    if directory.usable and directory not in self._scans:
                        self._scan(directory)
            if not self._writer:
                await self._evict()

    def _scan(self, directory: CacheDirectory) -> None:
        task = self._scans[directory] = asyncio.create_task(self._take_in(directory))
        task.add_done_callback(lambda _: self._scans.pop(directory, None))

    async def _take_in(self, directory: CacheDirectory) -> None:
        """Set the index right by the files that are there."""
        self._added[directory] = []
        seen: set[int] = set()
        try:
            walk = directory.scan()
            while (page := await self._in_thread(lambda: next(walk, None))) is not None:
                for number, length, used in page:
                    seen.add(number)
                    if number not in directory.index:
                        directory.index.add(number, length, used)
            directory.index.keep_only(seen, self._added[directory])
        except OSError as error:
            self._failed(directory, error)
        finally:
            del self._added[directory]
        if directory.index.is_over or directory.lacking:
            self._wake()

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)
