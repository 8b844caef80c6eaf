"""One budget for the bytes in the client's buffers (`--buffer-size`, format §6.10): dirty data of the writer, cached blocks of
the reader.

Invariant: writers are held back while dirty bytes reach the limit, so these exceed it by at most what the writes that run at
that moment allocate (a block each). Cached blocks give way: the reader keeps them within four fifths of the limit and
within what dirty data leave.
Concurrency: plain numbers and a queue of waiting writers, changed only between awaits of one event loop; waiters are woken
in the order they came.
"""

import asyncio
from collections import deque


class Budget:
    """*limit* in bytes."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.dirty = 0
        self.cached = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def has_room(self) -> bool:
        """Whether a write may allocate now."""
        return self.dirty < self.limit

    @property
    def is_waited_for(self) -> bool:
        """Whether a write waits for room."""
        return bool(self._waiting)

    def add_dirty(self, change: int) -> None:
        """Account bytes of write buffers (negative: given back)."""
        self.dirty += change
        while self._waiting and self.dirty < self.limit:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return  # the next one is woken when this one has allocated, or when more is given back

    async def wait_for_room(self) -> None:
        """Returns when a write may allocate; the caller allocates before its next await, or calls `pass_on`."""
        while not self.has_room:
            waiter = asyncio.get_running_loop().create_future()
            self._waiting.append(waiter)
            try:
                await waiter
            except asyncio.CancelledError:
                self.pass_on()  # the turn may have been given to us: someone else takes it
                raise

    def pass_on(self) -> None:
        """Wake the next waiting writer when there is still room."""
        self.add_dirty(0)

    @property
    def cache_room(self) -> int:
        """Bytes that cached blocks may take at the moment."""
        return max(min(self.limit * 4 // 5, self.limit - self.dirty), 0)
