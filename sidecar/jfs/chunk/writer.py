"""The writer of a mount: open handles, the shared budget and buffers, and the clockwork that ends slices by age.

Place in the flow: `vfs` → here → `file_writer` (slices of one inode) → `blocks` and the `SliceSink`.
Concurrency: one event loop. Every task started here is kept until it ends and is waited for by `close`. A timer runs only
while something is pending: twice a second it freezes slices older than 5 s or idle for 1 s (format §6.1 rule 5).
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, Final, TypeVar

from jfs import eager
from jfs.chunk.blocks import BlockStore
from jfs.chunk.budget import Budget
from jfs.chunk.file_writer import InodeWriter
from jfs.chunk.interfaces import SliceSink
from jfs.chunk.memory import give_back
from jfs.chunk.slice_buffer import BufferPool
from jfs.errors import FsError
from jfs.survival.arena import Arena, Kept

log = logging.getLogger(__name__)
T = TypeVar("T")
OLD: Final = 5.0  # seconds since its first byte after which a slice is frozen
IDLE: Final = 1.0  # seconds since its last byte
TICK: Final = 0.5


class FileWriter:
    """One open handle of an inode. Reports each write-back failure of the inode since it was opened: once to who writes or syncs, and
    until then to each flush, because any process that has the descriptor may flush it, a forked one that only closes it too."""

    __slots__ = ("_file", "_seen", "_told")

    def __init__(self, file: InodeWriter) -> None:
        self._file = file
        self._seen = self._told = file.failures
        file.handles += 1

    async def write(self, offset: int, data: bytes | bytearray | memoryview, request: int = 0) -> None:
        """Take *data* (copied) at *offset*; *request* is the number of one that appends. FsError of an earlier write-back."""
        if self._file.failures != self._seen:
            self._report()
        await self._file.write(offset, data, request)

    async def flush(self) -> None:
        """Returns when everything written to the inode before is committed; FsError when something was lost."""
        if self._file.pending:
            await self._file.flush()
        if self._file.failures != self._seen:
            self._told = self._file.failures
            raise FsError(self._file.last_errno)

    async def sync(self) -> None:
        """As `flush`, and the caller knows."""
        if self._file.pending:
            await self._file.flush()
        if self._file.failures != self._seen:
            self._report()

    async def close(self) -> None:
        """Flush and give up the handle, also when it raises, which it does for what nobody was told."""
        try:
            if self._file.pending:
                await self._file.flush()
            if self._file.failures not in (self._seen, self._told):
                self._report()
        finally:
            self._file.handles -= 1
            self._file.mount.forget_idle(self._file)

    @property
    def length(self) -> int:
        """End of the furthest byte of the inode that is not committed yet; 0 when none is pending."""
        return self._file.length

    def _report(self) -> None:
        self._seen = self._file.failures
        raise FsError(self._file.last_errno)


class Writer:
    """Pending writes of a whole mount. *clock* gives nanoseconds since the epoch for mtimes, *now* monotonic seconds for ages."""

    def __init__(
        self,
        blocks: BlockStore,
        sink: SliceSink,
        budget: Budget,
        *,
        clock: Callable[[], int] = time.time_ns,
        now: Callable[[], float] = time.monotonic,
        arena: Arena | None = None,
    ) -> None:
        self.blocks = blocks
        self.sink = sink
        self.budget = budget
        self.clock = clock
        self.now = now
        self.pool = BufferPool(blocks.block_size, arena)
        self._placed: dict[int, int] = {}
        self.flush_timeout = max(300.0, (blocks.limits.io_retries + 2) ** 2 / 2)
        self.patience = 60.0  # seconds for which a database that is away is waited for
        self.uploading = 0  # blocks on their way to the storage
        self._files: dict[int, InodeWriter] = {}
        self._tasks: set[asyncio.Future[Any]] = set()
        self._timer: asyncio.TimerHandle | None = None

    def open(self, ino: int, tier: int = 0) -> FileWriter:
        """A handle for writing inode *ino*, whose objects belong to storage *tier*."""
        file = self._file(ino)
        file.tier = tier
        return FileWriter(file)

    def length(self, ino: int) -> int:
        """End of the furthest byte of *ino* not committed yet; 0 when nothing is pending."""
        file = self._files.get(ino)
        return file.length if file is not None else 0

    def is_dirty(self, ino: int) -> bool:
        """Whether something of *ino* is pending."""
        file = self._files.get(ino)
        return file is not None and bool(file.pending)

    async def settle(self, ino: int) -> None:
        """Returns when nothing of *ino* that was written before is pending; failures wait for the handles."""
        file = self._files.get(ino)
        if file is not None and file.pending:
            await file.settle()

    @asynccontextmanager
    async def paused(self, ino: int) -> AsyncIterator[None]:
        """Inside, nothing of *ino* is pending and new writes wait."""
        file = self._file(ino)
        file.handles += 1
        try:
            async with file.pause:
                await file.settle()
                yield
        finally:
            file.handles -= 1
            self.forget_idle(file)

    @property
    def dirty_bytes(self) -> int:
        """Memory held by data that are not committed yet."""
        return self.budget.dirty

    async def flush_all(self) -> None:
        """Flush every inode; FsError of the first failure, after all were tried."""
        files = list(self._files.values())
        before = [file.failures for file in files]
        outcomes = await asyncio.gather(*(file.flush() for file in files), return_exceptions=True)
        for file, failures, outcome in zip(files, before, outcomes, strict=True):
            if isinstance(outcome, BaseException):
                raise outcome
            if file.failures != failures:
                raise FsError(file.last_errno)

    async def close(self) -> None:
        """Flush everything and wait for what was started; FsError as flush_all. No write may follow."""
        try:
            await self.flush_all()
        finally:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            while self._tasks:
                await asyncio.wait(self._tasks)
            self.pool.clear()

    # What survives

    def take_over(self) -> None:
        """Go on with what a predecessor had taken and not committed. To be called before anything is written."""
        left = self.pool.arena.left() if self.pool.arena is not None else []
        for slice in left:
            self._file(slice.ino).adopt(slice)
            if slice.request:
                self._placed[slice.request] = slice.request_at
        if left:
            log.info("%d slices that were not stored yet are taken over", len(left))

    def placed(self, request: int) -> int | None:
        """Where in the file a predecessor put what *request* appended; None when it did not, or that is not known."""
        return self._placed.get(request)

    def mtime_ns(self, ino: int) -> int:
        """The time of the last write to *ino* that is not committed; 0 when there is none."""
        file = self._files.get(ino)
        return file.mtime_ns if file is not None else 0

    def keep(self, ino: int, indx: int, start: int, tier: int) -> Kept | None:
        """A record for a new slice, where slices are to survive."""
        arena = self.pool.arena
        if arena is None:
            return None
        kept = arena.keep(ino, indx, start, tier)
        if kept is None:
            self.pool.overflowed = True
        return kept

    async def overflowed(self, file: InodeWriter) -> None:
        """The arena was full: store what was just taken before it is acknowledged, and hold writes back earlier from now on."""
        self.pool.overflowed = False
        arena = self.pool.arena
        assert arena is not None
        limit = max(arena.capacity // 2, 2 * arena.block_size)
        if limit < self.budget.limit:
            log.warning("the state directory is full: at most %d MiB are held back for it", limit >> 20)
            self.budget.limit = limit
        await file.settle()

    # For InodeWriter

    def spawn(self, work: Coroutine[Any, Any, T]) -> "asyncio.Task[T]":
        """Start a task that is kept until it ends."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def begin(self, work: Coroutine[Any, Any, T]) -> "asyncio.Future[T]":
        """As `spawn`, but what can be done without waiting is done at once."""
        future = eager.begin(work)
        if not future.done():
            self._tasks.add(future)
            future.add_done_callback(self._tasks.discard)
        return future

    def relieve(self) -> None:
        """The budget is used up: end all open slices, so that their memory comes back."""
        for file in list(self._files.values()):
            file.freeze_all()

    def watch(self) -> None:
        """Make sure that the timer runs: something is pending."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(TICK, self._tick)

    def forget_idle(self, file: InodeWriter) -> None:
        """Drop *file* when no handle and no slice needs it."""
        if not file.handles and not file.pending and self._files.get(file.ino) is file:
            del self._files[file.ino]

    def _file(self, ino: int) -> InodeWriter:
        file = self._files.get(ino)
        if file is None:
            file = self._files[ino] = InodeWriter(self, ino)
        return file

    def _tick(self) -> None:
        self._timer = None
        now = self.now()
        pending = False
        for file in list(self._files.values()):
            for piece in list(file.pending):
                pending = True
                if not piece.frozen and (now - piece.started > OLD or now - piece.last > IDLE):
                    file.freeze(piece)
        if pending:
            self.watch()
        elif self.pool.clear():
            give_back()
