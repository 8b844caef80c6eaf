"""Inode and slice ids from batches taken ahead (format §3.7): a create or a write does not wait for an id.

Invariant: every id is given out once. When a tenth of a batch is left the next one is fetched in the background; callers wait
only when both are used up. Unused ids are lost when the process ends. One event loop.
"""

import asyncio
from typing import Final

from jfs.meta.store.base import Store

_AHEAD: Final = 0.1


class IdBatch:
    """Ids of one counter; ids below *first* (reserved) are thrown away."""

    def __init__(self, store: Store, counter: str, size: int, *, first: int = 1) -> None:
        self._store = store
        self._counter = counter
        self._size = size
        self._first = first
        self._next = 0
        self._end = 0
        self._ahead: tuple[int, int] | None = None
        self._fetching: asyncio.Task[tuple[int, int]] | None = None

    async def take(self) -> int:
        """The next id. Suspends only when none is at hand."""
        while self._next >= self._end:
            if self._fetching is not None and self._fetching.done():
                self._accept(self._fetching)
            elif self._ahead is None:
                await asyncio.shield(self._fetch())
            if self._ahead is not None:
                (self._next, self._end), self._ahead = self._ahead, None
        taken = self._next
        self._next += 1
        if self._end - self._next <= self._size * _AHEAD and self._ahead is None and self._fetching is None:
            self._fetch()
        return taken

    def _fetch(self) -> "asyncio.Task[tuple[int, int]]":
        if self._fetching is None:
            self._fetching = asyncio.create_task(self._allot(), name=f"ids of {self._counter}")
            self._fetching.add_done_callback(self._accept)
        return self._fetching

    async def _allot(self) -> tuple[int, int]:
        begin = await self._store.allot(self._counter, self._size)
        return max(begin, self._first), begin + self._size

    def _accept(self, task: "asyncio.Task[tuple[int, int]]") -> None:
        if self._fetching is not task:
            return
        self._fetching = None
        if (
            not task.cancelled() and task.exception() is None
        ):  # a failure is seen by whoever awaits the task, or tried again
            self._ahead = task.result()

    async def close(self) -> None:
        """Stop fetching."""
        task = self._fetching
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
