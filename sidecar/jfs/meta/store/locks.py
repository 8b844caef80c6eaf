"""In-process locks of inodes, taken around a transaction to save retries (design: they cut conflicts, they prove nothing).

A lock is an entry of a dictionary while it is held, so that an idle inode costs nothing and a free one is taken without
suspending. Waiters are served in the order they came. Several inodes are taken in ascending order, which excludes deadlock.
Belongs to one event loop.
"""

import asyncio
from collections import deque
from collections.abc import Sequence


class InodeLocks:
    """The locks of one store."""

    __slots__ = ("_held",)

    def __init__(self) -> None:
        self._held: dict[int, deque[asyncio.Future[None]] | None] = {}  # None until somebody waits

    async def acquire(self, inodes: Sequence[int]) -> None:
        """Take all of *inodes*, which must be sorted and without doubles. Suspends only when one of them is held."""
        held = self._held
        for position, ino in enumerate(inodes):
            if ino not in held:
                held[ino] = None
                continue
            waiters = held[ino]
            if waiters is None:
                waiters = held[ino] = deque()
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            waiters.append(turn)
            try:
                await turn
            except BaseException:
                if turn.done() and not turn.cancelled():  # it was handed to us in the moment we were cancelled
                    self.release(inodes[: position + 1])
                else:
                    waiters.remove(turn)
                    self.release(inodes[:position])
                raise

    def release(self, inodes: Sequence[int]) -> None:
        """Give all of *inodes* back, each to the one who has waited longest."""
        held = self._held
        for ino in inodes:
            waiters = held[ino]
            while waiters:
                turn = waiters.popleft()
                if not turn.done():
                    turn.set_result(None)
                    break
            else:
                del held[ino]
