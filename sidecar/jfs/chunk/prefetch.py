"""Brings whole blocks into the local cache behind the reads that touched them (format §6.5, `--prefetch`).

Place in the flow: the reader says what it touched; here → `BlockStore.fill`. A ranged read costs a fraction of a whole block, so a block is
fetched at once only when it was touched a few times, as one whose parts have cost as much as all of it; blocks touched less are fetched
when nobody has read for a moment, so that prefetching never competes with the reads it is meant to help. Of a `file` storage, whose
reads are cheap, blocks are copied in quiet moments only.
Concurrency: one event loop; at most *workers* tasks, which end when nothing is wanted. Failures are nobody's: the read itself sees them.
"""

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Final

from jfs.errors import JfsError

log = logging.getLogger(__name__)
Fill = Callable[[int, int, int], Awaitable[None]]  # slice, its size, index of the block
QUEUE: Final = 64  # blocks remembered; those touched longest ago are forgotten
LAZY_QUEUE: Final = 100_000
QUIET: Final = 0.3  # seconds without a read
HOT: Final = 1  # touches
NEVER: Final = 1 << 60  # touches, for cheap reads


class _Wanted:
    """A block that was touched."""

    __slots__ = ("size", "touches")

    def __init__(self, size: int) -> None:
        self.size = size  # of the slice
        self.touches = 0


class Prefetcher:
    """*workers* fetch at a time (0: none); a block touched *hot* times is fetched at once."""

    def __init__(self, fill: Fill, workers: int, *, queue: int = QUEUE, hot: int = HOT, quiet: float = QUIET) -> None:
        self._fill = fill
        self._workers = workers
        self._queue = queue
        self._hot_from = hot
        self._quiet = quiet
        self._touched: OrderedDict[tuple[int, int], _Wanted] = OrderedDict()
        self._hot: OrderedDict[tuple[int, int], _Wanted] = OrderedDict()
        self._busy: set[tuple[int, int]] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._last = 0.0

    def want(self, slice_id: int, size: int, indx: int) -> None:
        """The block was touched."""
        if not self._workers:
            return
        self._last = time.monotonic()
        name = (slice_id, indx)
        if name in self._hot or name in self._busy:
            return
        wanted = self._touched.get(name)
        if wanted is None:
            wanted = self._touched[name] = _Wanted(size)
            if len(self._touched) > self._queue:
                self._touched.popitem(last=False)
        wanted.touches += 1
        if wanted.touches >= self._hot_from:
            self._hot[name] = self._touched.pop(name)
            self._start()
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._quiet, self._look)

    async def close(self) -> None:
        """Stop."""
        if self._timer is not None:
            self._timer.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _look(self) -> None:
        """Whether it is quiet now."""
        self._timer = None
        left = self._last + self._quiet - time.monotonic()
        if left <= 0:
            self._start()
            left = self._quiet  # reads may come before the workers are through
        if self._touched:
            self._timer = asyncio.get_running_loop().call_later(left, self._look)

    def _start(self) -> None:
        while len(self._tasks) < min(self._workers, len(self._hot) + len(self._touched)):
            task = asyncio.create_task(self._work())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _work(self) -> None:
        while self._hot or (self._touched and time.monotonic() - self._last >= self._quiet):
            name, wanted = (self._hot or self._touched).popitem(last=False)
            self._busy.add(name)
            try:
                await self._fill(name[0], wanted.size, name[1])
            except JfsError as error:
                log.debug("block %d of slice %d could not be prefetched: %s", name[1], name[0], error)
            finally:
                self._busy.discard(name)
