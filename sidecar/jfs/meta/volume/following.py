"""Entries of a volume's change log as they come, for programs that follow the volume (format §3.14).

Place: between a command and the record store; no session is needed. The database is asked again and again, as it tells nobody of
new entries. Where clients commit at the same time, an entry may appear after one with a later version (versions are given before
the commit): so what does not follow the last one directly is held back for as long as such a commit takes.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Final

from jfs.meta.store.base import Store

_LINES: Final = 1000  # asked for at a time
_SOON, _LATE = 0.1, 1.0  # seconds between two looks, after news and without
_HELD: Final = 2.0  # seconds


async def follow(store: Store, version: int) -> AsyncIterator[tuple[int, bytes]]:
    """(version, line) of every entry after *version*, for ever."""
    clock = asyncio.get_running_loop().time
    seen: dict[int, float] = {}  # entries held back, and when they appeared
    pause = _SOON
    while True:
        found = await store.logged_after(version, _LINES)
        now, shown = clock(), 0
        for number, line in found:
            if number != version + 1 and now - seen.setdefault(number, now) < _HELD:
                break
            yield number, line
            version = number
            shown += 1
        for number in [number for number in seen if number <= version]:
            del seen[number]
        for number, _ in found[shown:]:
            seen.setdefault(number, now)
        if shown < _LINES:
            pause = _SOON if shown else min(pause * 2, _LATE)
            await asyncio.sleep(pause)
