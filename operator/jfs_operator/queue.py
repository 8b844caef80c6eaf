"""Objects that an event of something else concerns: each waits here once, however many events ask for it.

Handlers of watch events only name a key; workers reconcile it. A failing key comes back by the delay that its reconcile gave, a
crash of a reconcile is logged and comes back too. Used by the event loop's thread alone.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from jfs_operator.api import ApiError, ApiUnavailable
from jfs_operator.reconcile import Outcome
from jfs_operator.references import Key

_log = logging.getLogger(__name__)
_WORKERS: Final = 8
AFTER_ERROR: Final = 5.0  # seconds


class Queue:
    """`handle` reconciles a key."""

    def __init__(self, handle: Callable[[Key], Awaitable[Outcome]]) -> None:
        self._handle = handle
        self._waiting: asyncio.Queue[Key] = asyncio.Queue()
        self._queued: set[Key] = set()
        self._timers: dict[Key, asyncio.TimerHandle] = {}
        self._sleepers: dict[Key, asyncio.Event] = {}

    def add(self, key: Key) -> None:
        """Reconcile soon; whoever sleeps until something happens to the key wakes up instead."""
        if sleeper := self._sleepers.get(key):
            sleeper.set()
            return
        if timer := self._timers.pop(key, None):
            timer.cancel()
        if key not in self._queued:
            self._queued.add(key)
            self._waiting.put_nowait(key)

    def later(self, key: Key, delay: float) -> None:
        """Reconcile in `delay` seconds, unless an event asks for it earlier."""
        if timer := self._timers.pop(key, None):
            timer.cancel()
        self._timers[key] = asyncio.get_running_loop().call_later(delay, self._expired, key)

    def within(self, key: Key, delay: float) -> None:
        """Reconcile in `delay` seconds at the latest, however often that is asked for meanwhile."""
        timer = self._timers.get(key)
        if key not in self._queued and (timer is None or timer.when() > asyncio.get_running_loop().time() + delay):
            self.later(key, delay)

    def forget(self, key: Key) -> None:
        if timer := self._timers.pop(key, None):
            timer.cancel()

    async def something_happens(self, key: Key, seconds: float) -> None:
        """Return at the next `add` of the key, or after so many seconds."""
        event = self._sleepers.setdefault(key, asyncio.Event())
        try:
            async with asyncio.timeout(seconds):
                await event.wait()
        except TimeoutError:
            pass
        finally:
            self._sleepers.pop(key, None)

    def start(self) -> list[asyncio.Task[None]]:
        """The workers; cancel them to end."""
        return [asyncio.create_task(self._work(), name=f"queue-{number}") for number in range(_WORKERS)]

    def stop(self) -> None:
        """Let no timer go off any more."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()

    def _expired(self, key: Key) -> None:
        self._timers.pop(key, None)
        self.add(key)

    async def _work(self) -> None:
        while True:
            key = await self._waiting.get()
            self._queued.discard(key)  # before the pass: an event during it asks for another one
            try:
                outcome = await self._handle(key)
            except (ApiError, ApiUnavailable) as error:
                _log.warning("%s %s/%s: %s", key.kind, key.namespace, key.name, error)
                self.later(key, AFTER_ERROR)
            except Exception:
                _log.exception("%s %s/%s: the reconcile failed", key.kind, key.namespace, key.name)
                self.later(key, AFTER_ERROR)
            else:
                if outcome.delay is not None:
                    self.later(key, outcome.delay)
