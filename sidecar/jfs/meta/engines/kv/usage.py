"""Usage that is not stored with the commits which cause it: volume counters, directory statistics, quotas (format §3.7, §3.8).

Every commit of a volume would change the same two counters, and conflict with every other: so they are added up here and stored
once a second in a transaction of their own, as the real client does. What a client has not stored yet is lost when it dies;
`fsck` and `quota check` put it right. Reads of this client flush first, so that it sees its own changes. One event loop.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final

from jfs.errors import JfsError
from jfs.meta.model.keys import DirStat
from jfs.meta.model.quota import QuotaChange

log = logging.getLogger(__name__)

SECONDS: Final = 1.0


class UsageBuffer:
    """Additions that wait. *store* puts them into the database, all in one transaction."""

    def __init__(self, store: Callable[[dict[Any, Any]], Awaitable[None]], seconds: float = SECONDS) -> None:
        self._store = store
        self._seconds = seconds
        self._waiting: dict[Any, Any] = {}
        self._timer: asyncio.Task[None] | None = None
        self._turn = asyncio.Lock()

    async def add(self, changes: dict[Any, Any]) -> None:
        """Take additions; with a pause of 0 they are stored when this returns."""
        for key, change in changes.items():
            self._waiting[key] = _sum(self._waiting.get(key), change)
        if not self._seconds:
            await self.flush()
        elif self._timer is None and self._waiting:
            self._timer = asyncio.create_task(self._later(), name="usage")

    async def _later(self) -> None:
        await asyncio.sleep(self._seconds)
        self._timer = None
        try:
            await self.flush()
        except JfsError as error:  # kept for the next time
            log.warning("usage could not be stored yet: %s", error)
            if self._timer is None:
                self._timer = asyncio.create_task(self._later(), name="usage")

    def concerns(self, keys: Iterable[Any]) -> bool:
        """Whether something waits for one of these."""
        return bool(self._waiting) and any(key in self._waiting for key in keys)

    async def flush(self) -> None:
        """Store what waits."""
        async with self._turn:
            changes, self._waiting = self._waiting, {}
            changes = {key: change for key, change in changes.items() if not isinstance(change, tuple) or any(change)}
            if not changes:
                return
            try:
                await self._store(changes)
            except BaseException:
                for key, change in changes.items():
                    self._waiting[key] = _sum(self._waiting.get(key), change)
                raise

    async def close(self) -> None:
        """Store what waits and end the timer."""
        if self._timer is not None:
            self._timer.cancel()
            await asyncio.gather(self._timer, return_exceptions=True)
            self._timer = None
        try:
            await self.flush()
        except JfsError as error:
            log.warning("usage could not be stored before the end; `jfs fsck --repair` puts it right: %s", error)


def _sum(a: Any, b: Any) -> Any:
    if a is None:
        return b
    if isinstance(a, DirStat):
        return DirStat(a.length + b.length, a.space + b.space, a.inodes + b.inodes)
    if isinstance(a, QuotaChange):
        return a.plus(*b)
    return a + b
