"""Files that lose their last name while others are about to use them.

Two moments must not meet. A file is *opened*: a removal between the look at its record and the handle, which takes it for closed, would
leave a handle of nothing. So an opening that has begun counts as a handle, and waits for removals that have found the file closed. And a
file is *replaced* by a rename: the kernel has found it by its name for a process that is about to open it, and no file system of Linux
answers that with ENOENT. So what a rename replaces lingers until the kernel forgets the inode. That takes a host that hears of it
(`Lingering.on`), and is waited for only so long: the kernel may know another inode by that name, when clients replace it by turns.
One event loop; nothing here asks the database.
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from typing import Final

# Seconds that a replaced file waits for the kernel to forget it: it does so at once unless somebody uses the inode.
_LINGER: Final = 10.0


class Leaving:
    """Removals and openings under way. *is_open* tells of the handles there are."""

    def __init__(self, is_open: Callable[[int], bool]) -> None:
        self._is_open = is_open
        self._opening: dict[int, int] = {}
        self._going: dict[int, int] = {}
        self._waiting: list[asyncio.Future[None]] = []

    @contextlib.contextmanager
    def removal(self) -> Iterator[Callable[[int], bool]]:
        """Around a removal: what tells it whether a file is open, and keeps those closed that are not."""
        going: set[int] = set()

        def is_open(ino: int) -> bool:
            if self._is_open(ino) or ino in self._opening:
                return True
            if ino not in going:  # a second attempt asks again
                going.add(ino)
                self._going[ino] = self._going.get(ino, 0) + 1
            return False

        try:
            yield is_open
        finally:
            for ino in going:
                _less(self._going, ino)
            waiting, self._waiting = self._waiting, []
            for future in waiting:
                if not future.done():
                    future.set_result(None)

    async def settled(self, ino: int) -> None:
        """Wait for removals that have found *ino* closed. At once where there is none, and then `begin_opening` has to follow at once."""
        while ino in self._going:
            future = asyncio.get_running_loop().create_future()
            self._waiting.append(future)
            await future

    def begin_opening(self, ino: int) -> None:
        """From now on *ino* is open for every removal."""
        self._opening[ino] = self._opening.get(ino, 0) + 1

    def end_opening(self, ino: int) -> None:
        """There is a handle, or there will be none."""
        _less(self._opening, ino)


def _less(counts: dict[int, int], ino: int) -> None:
    count = counts[ino] - 1
    if count:
        counts[ino] = count
    else:
        del counts[ino]


class Lingering:
    """Files that renames have replaced, until the kernel forgets them; *let_go* is told of each then."""

    def __init__(self, let_go: Callable[[int], None]) -> None:
        self.on = False
        self._let_go = let_go
        self._timers: dict[int, asyncio.TimerHandle] = {}

    def __contains__(self, ino: int) -> bool:
        return ino in self._timers

    def __bool__(self) -> bool:
        return bool(self._timers)

    def add(self, ino: int) -> None:
        """*ino* was replaced."""
        self._timers[ino] = asyncio.get_running_loop().call_later(_LINGER, self.forgotten, ino)

    def forgotten(self, ino: int) -> None:
        """The kernel does not know *ino* any more, or it has been long enough."""
        timer = self._timers.pop(ino, None)
        if timer is not None:
            timer.cancel()
            self._let_go(ino)

    def clear(self) -> None:
        """Forget them all, and let nothing go: the session ends."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
