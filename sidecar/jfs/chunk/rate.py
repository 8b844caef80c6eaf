"""Limits how many object bytes a second go to or come from the storage (format §6.6): a token bucket that holds a tenth of a second.

Place: `blocks.py` asks before each request. Invariant: what has passed by any moment is at most the bucket and the rate times the time;
requests pass in the order they asked in. The limit may change at any time. Pure but for the clock it is given. One event loop.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final

_USED: Final = 0.85  # of the limit; the rest is left to the protocols' own bytes
_BURST: Final = 0.1  # seconds


class RateLimit:
    """*limit* gives the present limit in Mbit/s (1,000,000 bits), 0 for none."""

    def __init__(
        self,
        limit: Callable[[], float],
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._limit = limit
        self._clock = clock
        self._sleep = sleep
        self._tokens = 0.0
        self._rate = 0.0  # the limit that the tokens were counted by, in bytes a second
        self._at = 0.0

    async def take(self, size: int) -> None:
        """Wait until *size* bytes may pass. They count as passed even when the wait is cancelled."""
        rate = self._limit() * 1e6 / 8
        if not rate:
            return
        now = self._clock()
        if rate != self._rate:
            self._rate, self._tokens, self._at = rate, rate * _BURST, now
        self._tokens = min(self._tokens + (now - self._at) * rate * _USED, rate * _BURST) - size
        self._at = now
        if self._tokens < 0:
            await self._sleep(-self._tokens / (rate * _USED))

    def give_back(self, size: int) -> None:
        """*size* bytes that were taken did not pass; a negative number more that did."""
        self._tokens += size
