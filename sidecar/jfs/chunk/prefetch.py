"""Brings whole blocks into the local cache behind the reads that touched them (format §6.5, `--prefetch`).

Place in the flow: the reader says what it touched; here → `BlockStore.fill`. Two uses: after a ranged read of an object storage the block
is fetched by one of few workers, and what does not fit the short queue is dropped; of a `file` storage, whose reads are cheap, blocks
are copied to an explicitly chosen cache directory only when nobody has read for a moment, so that it costs no read anything.
Concurrency: one event loop; each worker is a task that ends when nothing is wanted. Failures are nobody's: the read itself will see them.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Final

from jfs.errors import JfsError

log = logging.getLogger(__name__)
Fill = Callable[[int, int, int], Awaitable[None]]  # slice, its size, index of the block
QUEUE: Final = 10  # blocks that wait, as the real client has it
LAZY_QUEUE: Final = 100_000
QUIET: Final = 0.3  # seconds without a read


class Prefetcher:
    """*workers* fetch at a time (0: none). With *quiet* they wait until nothing was wanted for that many seconds."""

    def __init__(self, fill: Fill, workers: int, *, queue: int = QUEUE, quiet: float = 0.0) -> None:
        self._fill = fill
        self._workers = workers
        self._queue = queue
        self._quiet = quiet
        self._wanted: dict[tuple[int, int], int] = {}
        self._busy: set[tuple[int, int]] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._last = 0.0

    def want(self, slice_id: int, size: int, indx: int) -> None:
        """The block was touched."""
        self._last = time.monotonic()
        name = (slice_id, indx)
        if name in self._wanted or name in self._busy or len(self._wanted) >= self._queue or not self._workers:
            return
        self._wanted[name] = size
        if len(self._tasks) < self._workers:
            task = asyncio.create_task(self._work())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Stop."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _work(self) -> None:
        while self._wanted:
            if (left := self._last + self._quiet - time.monotonic()) > 0:
                await asyncio.sleep(left)
                continue
            name = next(iter(self._wanted))
            size = self._wanted.pop(name)
            self._busy.add(name)
            try:
                await self._fill(name[0], size, name[1])
            except JfsError as error:
                log.debug("block %d of slice %d could not be prefetched: %s", name[1], name[0], error)
            finally:
                self._busy.discard(name)
