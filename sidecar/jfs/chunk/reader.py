"""The reader of a mount: from a range of a file to bytes, by way of the chunk's view, blocks and read-ahead (format §6.4, §6.5).

Place in the flow: `vfs` → here → `SliceSource` (records), `block_cache`, `blocks` (local cache, storage).
Invariants: bytes at or past the file's length are never returned; what no record covers is zero; data that a record names
are either returned as they were written or the read fails. An object that is missing means that the chunk has been compacted
since its records were read: they are read again.
Concurrency: one event loop. A view belongs to the list object it was made of and is replaced with it. Whole blocks are fetched
by tasks of their own (`_flights`), one per block, which put them into the cache; reads wait for them, read-ahead does not.
"""

import asyncio
import errno
import logging
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from jfs.chunk.block_cache import BlockCache
from jfs.chunk.blocks import BlockStore
from jfs.chunk.budget import Budget
from jfs.chunk.file_reader import FileReader
from jfs.chunk.interfaces import SliceSource
from jfs.chunk.memory import give_back
from jfs.chunk.naming import block_length
from jfs.chunk.prefetch import Prefetcher
from jfs.chunk.readahead import Advised, Stream
from jfs.errors import FsError, ObjectError, ObjectNotFound
from jfs.format.constants import CHUNK
from jfs.format.slices import Segment, Slice, view
from jfs.object.base import Data

log = logging.getLogger(__name__)
_ZEROS: Final = memoryview(bytes(1 << 20))
_VIEWS: Final = 10_000  # chunks whose view is kept
_STRIDES: Final = 4  # reads of a strided program that are prepared
_TICK: Final = 10.0  # seconds between looks for blocks nobody uses


@dataclass(frozen=True, slots=True)
class ReadLimits:
    """*max_readahead* in bytes for one stream (None: eight blocks); tries and the pause in seconds before a further one, when an
    object stays missing."""

    max_readahead: int | None = None
    io_retries: int = 10
    pause: Callable[[int], float] = lambda tried: 0.001 + 0.3 * (tried - 1)


class _View(NamedTuple):
    records: Sequence[Slice]
    known: int  # number of records, when the view was made: the owner of the list may append to it
    segments: list[Segment]
    starts: list[int]


class Reader:
    """Reads of a whole mount."""

    def __init__(
        self,
        blocks: BlockStore,
        source: SliceSource,
        budget: Budget,
        limits: ReadLimits | None = None,
        prefetcher: Prefetcher | None = None,
    ) -> None:
        self.blocks = blocks
        self._source = source
        self._budget = budget
        self._limits = limits or ReadLimits()
        wanted = self._limits.max_readahead
        self.max_readahead = min(8 * blocks.block_size if wanted is None else wanted, budget.limit * 4 // 5)
        self.cache = BlockCache(budget)
        self._prefetcher = prefetcher
        self._views: OrderedDict[tuple[int, int], _View] = OrderedDict()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._flights: dict[tuple[int, int], asyncio.Task[Data]] = {}
        self._ahead: set[tuple[int, int]] = set()  # chunks whose read-ahead is being planned
        self._timer: asyncio.TimerHandle | None = None
        self._advised = Advised()

    def open(self, ino: int) -> FileReader:
        """A handle for reading inode *ino*."""
        return FileReader(self, ino)

    @property
    def room(self) -> int:
        """Bytes of the budget that read-ahead may still take, counting old cached blocks as free."""
        return self._budget.cache_room

    def invalidate(self, ino: int) -> None:
        """Forget the views of *ino*."""
        for key in [key for key in self._views if key[0] == ino]:
            del self._views[key]

    async def close(self) -> None:
        """Stop read-ahead and free the memory."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._prefetcher is not None:
            await self._prefetcher.close()
        tasks = [*self._tasks, *self._flights.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.cache.clear()

    async def read(self, ino: int, offset: int, size: int, *, whole_blocks: bool = False) -> Data:
        """Bytes [offset, offset+size) of inode *ino*, zeros where nothing is; *whole_blocks* when the rest of a block is likely to be
        wanted too."""
        indx, pos = divmod(offset, CHUNK)
        if pos + size <= CHUNK:
            return await self._read_chunk(ino, indx, pos, size, whole_blocks)
        result = memoryview(bytearray(size))
        at = 0
        while at < size:
            indx, pos = divmod(offset + at, CHUNK)
            count = min(CHUNK - pos, size - at)
            result[at : at + count] = await self._read_chunk(ino, indx, pos, count, whole_blocks)
            at += count
        return result

    async def _read_chunk(self, ino: int, indx: int, pos: int, size: int, whole_blocks: bool) -> Data:
        tried = 0
        fresh = False
        while True:
            view = await self._view(ino, indx, fresh=fresh)
            try:
                return await self._read_view(view, pos, size, whole_blocks)
            except ObjectNotFound as error:
                tried += 1
                if tried > self._limits.io_retries:
                    log.error("Reading inode %d, chunk %d failed: %s", ino, indx, error)
                    raise FsError(errno.EIO) from error
                if fresh:  # the newest records name it: it may be on its way (another client's writeback)
                    await asyncio.sleep(self._limits.pause(tried))
                fresh = True
            except ObjectError as error:
                log.error("Reading inode %d, chunk %d failed: %s", ino, indx, error)
                raise FsError(errno.EIO) from error

    async def _view(self, ino: int, indx: int, *, fresh: bool = False) -> _View:
        records = await (
            self._source.read_slices(ino, indx, fresh=True) if fresh else self._source.read_slices(ino, indx)
        )
        key = (ino, indx)
        known = self._views.get(key)
        if known is not None and known.known == len(records) and (known.records is records or known.records == records):
            return known
        segments = view(list(records))
        made = _View(records, len(records), segments, [segment.pos for segment in segments])
        self._views[key] = made
        self._views.move_to_end(key)
        if len(self._views) > _VIEWS:
            self._views.popitem(last=False)
        return made

    async def _read_view(self, view: _View, pos: int, size: int, whole_blocks: bool) -> Data:
        segments = view.segments
        at = bisect_right(view.starts, pos) - 1
        if at < 0:
            return _zeros(size)
        segment = segments[at]
        inside = pos - segment.pos
        if inside >= segment.len:  # past the last painted byte
            return _zeros(size)
        if inside + size <= segment.len:
            if not segment.id:
                return _zeros(size)
            return await self._read_slice(segment.id, segment.size, segment.off + inside, size, whole_blocks)
        result = memoryview(bytearray(size))
        done = 0
        parts: list[tuple[int, Segment, int, int]] = []
        while done < size and at < len(segments):
            segment = segments[at]
            inside = pos + done - segment.pos
            count = min(segment.len - inside, size - done)
            if segment.id:
                parts.append((done, segment, inside, count))
            done += count
            at += 1

        async def fill(begin: int, segment: Segment, inside: int, count: int) -> None:
            result[begin : begin + count] = await self._read_slice(
                segment.id, segment.size, segment.off + inside, count, whole_blocks
            )

        await _all(fill(*part) for part in parts)
        return result

    async def _read_slice(self, slice_id: int, size: int, offset: int, count: int, whole_blocks: bool) -> Data:
        """Bytes [offset, offset+count) of a slice of *size* bytes."""
        block_size = self.blocks.block_size
        indx, begin = divmod(offset, block_size)
        if begin + count <= block_size:
            return await self._read_block(slice_id, size, indx, begin, count, whole_blocks)
        result = memoryview(bytearray(count))

        async def fill(at: int, indx: int, begin: int, part: int) -> None:
            result[at : at + part] = await self._read_block(slice_id, size, indx, begin, part, whole_blocks)

        parts: list[tuple[int, int, int, int]] = []
        at = 0
        while at < count:
            indx, begin = divmod(offset + at, block_size)
            part = min(block_size - begin, count - at)
            parts.append((at, indx, begin, part))
            at += part
        await _all(fill(*part) for part in parts)
        return result

    async def _read_block(
        self, slice_id: int, size: int, indx: int, begin: int, count: int, whole_blocks: bool
    ) -> Data:
        blocks = self.blocks
        if blocks.cheap_ranges:
            if self._prefetcher is not None:
                self._prefetcher.want(slice_id, size, indx)
            return await blocks.get_range(slice_id, size, indx, begin, count)
        name = (slice_id, indx)
        block = self.cache.get(name)
        if block is None:
            if blocks.cache is not None:
                data = await blocks.cached(slice_id, size, indx, begin, count)
                if data is not None:
                    return data
            # A random read of a quarter block or less is one ranged request; what begins a block or a stream is the whole block.
            if (
                blocks.seekable
                and not whole_blocks
                and begin
                and count <= block_length(size, indx, blocks.block_size) // 4
                and name not in self._flights
            ):
                if self._prefetcher is not None:
                    self._prefetcher.want(slice_id, size, indx)
                return await blocks.get_range(slice_id, size, indx, begin, count, looked=True)
            # Shielded: others may wait for the same flight, and the block is of use even when the asker has gone.
            block = await asyncio.shield(self._flight(slice_id, size, indx))
        if whole_blocks and begin + count == len(block):
            self.cache.spend(name)
        if count == len(block):
            return block
        return memoryview(block)[begin : begin + count]

    def _flight(self, slice_id: int, size: int, indx: int) -> "asyncio.Task[Data]":
        """The task that fetches a block, started when there is none yet."""
        name = (slice_id, indx)
        flight = self._flights.get(name)
        if flight is None:
            flight = self._flights[name] = asyncio.create_task(self._load(slice_id, size, indx))
            flight.add_done_callback(_seen)
        return flight

    async def _load(self, slice_id: int, size: int, indx: int) -> Data:
        name = (slice_id, indx)
        try:
            block = await self.blocks.get_block(slice_id, size, indx)
            self.cache.put(name, block)
        finally:
            del self._flights[name]
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_TICK, self._tick)
        return block

    def _tick(self) -> None:
        self._timer = None
        dropped = self.cache.expire()
        if len(self.cache):
            self._timer = asyncio.get_running_loop().call_later(_TICK, self._tick)
        elif dropped:
            give_back()

    # Read-ahead

    def read_ahead(self, ino: int, stream: Stream, length: int) -> None:
        """Start fetching the blocks of the stream's window that are neither there nor under way."""
        begin, end = stream.last, min(stream.last + stream.window, length)
        while begin < end:
            indx, pos = divmod(begin, CHUNK)
            count = min(CHUNK - pos, end - begin)
            known = self._views.get((ino, indx))
            if known is not None:
                self._fetch_ahead(known, pos, count)
            elif (ino, indx) not in self._ahead:
                self._ahead.add((ino, indx))
                task = asyncio.create_task(self._plan_ahead(ino, indx, pos, count))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
                task.add_done_callback(_seen)
            begin += count

    def read_on(self, ino: int, offset: int, step: int, length: int) -> None:
        """Have the blocks of the next reads of a strided program prefetched, as far as the records of their chunks are known."""
        if self._prefetcher is None or not step:
            return
        for number in range(1, _STRIDES + 1):
            at = offset + number * step
            if not 0 <= at < length:
                return
            indx, pos = divmod(at, CHUNK)
            known = self._views.get((ino, indx))
            if known is None:
                continue
            place = bisect_right(known.starts, pos) - 1
            if place < 0:
                continue
            segment = known.segments[place]
            inside = pos - segment.pos
            if segment.id and inside < segment.len:
                block = (segment.off + inside) // self.blocks.block_size
                if (segment.id, block) not in self.cache:
                    self._prefetcher.want(segment.id, segment.size, block)

    async def _plan_ahead(self, ino: int, indx: int, pos: int, count: int) -> None:
        """The window has reached a chunk whose records are not known yet."""
        try:
            self._fetch_ahead(await self._view(ino, indx), pos, count)
        finally:
            self._ahead.discard((ino, indx))

    def _fetch_ahead(self, view: _View, pos: int, count: int) -> None:
        block_size = self.blocks.block_size
        local, cheap = self.blocks.cache, self.blocks.cheap_ranges
        end = pos + count
        at = max(bisect_right(view.starts, pos) - 1, 0)
        for segment in view.segments[at:]:
            if segment.pos >= end:
                return
            if not segment.id:
                continue
            first = segment.off + max(pos - segment.pos, 0)
            last = segment.off + min(end - segment.pos, segment.len)
            for indx in range(first // block_size, -(-last // block_size)):
                name = (segment.id, indx)
                if name in self.cache:
                    continue
                if cheap or (local is not None and local.has(segment.id, indx)):
                    self._advise(name, segment.size)
                else:
                    self._flight(segment.id, segment.size, indx)

    def _advise(self, name: tuple[int, int], size: int) -> None:
        """A block on a local disk will be read; that is said once, and again when the page cache may have lost it."""
        if self._advised.is_news(name, asyncio.get_running_loop().time()):
            self.blocks.advise(name[0], size, name[1])


def _seen(task: "asyncio.Task[Any]") -> None:
    """A failure of read-ahead is nobody's: the read itself will try again."""
    if not task.cancelled() and (error := task.exception()) is not None:
        log.debug("Fetching a block failed: %s", error)


async def _all(work: Any) -> None:
    """Run coroutines together and raise the first failure once all have ended (they share a buffer)."""
    outcomes = await asyncio.gather(*work, return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome


def _zeros(size: int) -> Data:
    return _ZEROS[:size] if size <= len(_ZEROS) else bytes(size)
