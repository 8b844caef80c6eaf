"""When lookups follow each other in one directory, its whole listing is read at once (a cold `stat` of thousands of names).

Decides only: which directory to list and when; `reads.py` lists and fills the cache. Two misses in a row that found something
start it, where the lookups of several threads in several directories (`git status`) do not come between each other. A directory that
turns out to be large is listed whole only after many more: a few names in it are cheaper one by one. One too large, or whose last
listing was hardly used, is left alone for a while. No method suspends.
"""

import time
from typing import Final

LIMIT: Final = 10_000  # entries; a directory with more is not read ahead
SMALL: Final = 2_000  # entries that are read for two misses
_MISSES: Final = 2
_MANY_MISSES: Final = 200  # with more than SMALL entries: reading all costs as much as some hundred lookups
_GAP: Final = 1.0  # seconds between two misses that still count as following each other
_PAUSE: Final = 30.0  # seconds to leave a directory alone
_WORTH: Final = 0.1  # share of a listing that has to be used for another one
_AT_ONCE: Final = 32  # directories that are looked into by turns
_DIRECTORIES: Final = 256


class _Listing:
    __slots__ = ("hits", "size", "until")

    def __init__(self) -> None:
        self.size = 0
        self.hits = 0
        self.until = 0.0


class Prefetch:
    """Misses and listings of a mount."""

    def __init__(self) -> None:
        self._misses: dict[int, tuple[int, float]] = {}  # of the directories looked into last: how many, and when
        self._listings: dict[int, _Listing] = {}

    def found(self, parent: int) -> None:
        """A lookup in *parent* was not in the cache and found something."""
        now = time.monotonic()
        count, last = self._misses.pop(parent, (0, 0.0))
        if len(self._misses) >= _AT_ONCE:
            del self._misses[next(iter(self._misses))]
        self._misses[parent] = (count + 1 if now - last <= _GAP else 1), now

    def not_found(self, parent: int) -> None:
        """A lookup found nothing: names are being tried or made, which a listing does not help."""
        self._misses.pop(parent, None)

    def hit(self, parent: int) -> None:
        """A lookup in *parent* was answered from the cache."""
        listing = self._listings.get(parent)
        if listing is not None:
            listing.hits += 1

    def wanted(self, parent: int) -> bool:
        """Whether the next miss in *parent* is a reason to list it."""
        count, last = self._misses.get(parent, (0, 0.0))
        if count < _MISSES or time.monotonic() - last > _GAP:
            return False
        listing = self._listings.get(parent)
        if listing is None:
            return True
        return listing.until <= time.monotonic() and (listing.size <= SMALL or count >= _MANY_MISSES)

    def limit(self, parent: int) -> int:
        """Entries after which a listing of *parent* that is about to begin ends."""
        listing = self._listings.get(parent)
        return SMALL if listing is None or listing.size <= SMALL else LIMIT

    def begin(self, parent: int) -> None:
        """*parent* is being listed. The last listing must have been worth it, else there is a pause after this one."""
        if parent not in self._listings and len(self._listings) >= _DIRECTORIES:
            del self._listings[next(iter(self._listings))]
        listing = self._listings.setdefault(parent, _Listing())
        wasted = listing.size > 16 and listing.hits < listing.size * _WORTH
        listing.until = time.monotonic() + _PAUSE if wasted else 0.0
        listing.hits = 0
        self._misses.pop(parent, None)

    def end(self, parent: int, size: int) -> None:
        """*parent* had *size* entries, or more than the limit."""
        listing = self._listings.get(parent)
        if listing is not None:
            listing.size = size
            if size > LIMIT:
                listing.until = time.monotonic() + _PAUSE
