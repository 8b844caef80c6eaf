"""Gives memory back to the system when the mount falls idle: after a burst of data, freed buffers stay with malloc, and a
sidecar's pod would be charged for them for ever.

Concurrency: one task; a look every ten seconds costs a comparison, giving back a few milliseconds once per burst.
"""

import asyncio
import ctypes
from collections.abc import Callable
from typing import Final

LOOK_SECONDS: Final = 10.0
QUIET_LOOKS: Final = 2


async def trim_when_idle(work: Callable[[], float], seconds: float = LOOK_SECONDS) -> None:
    """Forever: when the number that *work* gives stood still for two looks after it had moved, call malloc_trim(3). Returns at
    once where the C library has none."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is None:
        return
    seen, quiet = work(), QUIET_LOOKS + 1
    while True:
        await asyncio.sleep(seconds)
        now = work()
        quiet = 0 if now != seen else quiet + 1
        seen = now
        if quiet == QUIET_LOOKS:
            trim(0)
