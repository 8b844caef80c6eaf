"""The wait for requests that pyfuse3's workers use here instead of the library's own.

pyfuse3 registers and unregisters the descriptor with the event loop for every request, behind a lock: 3–5 times the cost of
a cached answer. Here a worker that has just answered looks whether the next request is there already and takes it; only an
idle worker parks, and the descriptor stays registered while any does. The end of the mount (POLLERR) wakes every worker.
pyfuse3 has no hook for this: its module-global coroutine `_wait_fuse_readable` is replaced.
"""

import asyncio
import select

BURST = 32  # requests taken in a row before other tasks of the loop get their turn


class Readiness:
    """Who waits for the descriptor *fd*; belongs to one event loop."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._poll = select.poll()
        self._poll.register(fd, select.POLLIN)
        self._parked: list[asyncio.Future[None]] = []
        self._armed = False
        self._woken = False
        self._taken = 0
        self._ended = False

    async def wait(self) -> bool:
        """Whether a request can be read; False when the mount has ended."""
        self._taken += 1
        if self._taken % BURST == 0:
            await asyncio.sleep(0)
        while not self._ended:
            events = self._poll.poll(0)
            if events:
                if events[0][1] & select.POLLIN:
                    return True
                self.end()
                break
            loop = asyncio.get_running_loop()
            future: asyncio.Future[None] = loop.create_future()
            self._parked.append(future)
            if not self._armed:
                loop.add_reader(self._fd, self._readable)
                self._armed = True
            try:
                await future
            finally:
                self._woken = False
        return False

    def _readable(self) -> None:
        """Wake one worker per readiness: it takes what is there, and whoever comes late parks again."""
        if self._woken:
            return
        while self._parked:
            future = self._parked.pop()
            if not future.done():
                self._woken = True
                future.set_result(None)
                return
        self._disarm()

    def _disarm(self) -> None:
        if self._armed:
            asyncio.get_running_loop().remove_reader(self._fd)
            self._armed = False

    def end(self) -> None:
        """Let every worker return."""
        self._ended = True
        self._disarm()
        while self._parked:
            future = self._parked.pop()
            if not future.done():
                future.set_result(None)
