"""What this process last saw of inodes, entries and locks, as Redis replied; it serves nothing but reads of transactions (see `script`).

A wrong value costs an attempt and is dropped then, so nothing here is ever invalidated by others' changes. Two generations
bound it: when the young one is full it becomes the old one. Pages of listings are only kept as they came, and taken apart
when a transaction first asks for an entry of that directory: `ls` pays nothing, and `rm -r` finds everything here.
"""

from typing import Any, Final

from jfs.meta.model.keys import EdgeKey, Key, NodeKey
from jfs.meta.store.page import StoredPage

UNKNOWN: Final = object()

_GENERATION: Final = 16384  # records
_OFFERED: Final = 8192  # entries of listings that are kept


class RecordCache:
    """Last known replies for inodes, entries and locks, those for missing ones included."""

    __slots__ = ("_offers", "_old", "_young")

    def __init__(self) -> None:
        self._young: dict[Key[Any], Any] = {}
        self._old: dict[Key[Any], Any] = {}
        self._offers: dict[int, list[StoredPage]] = {}

    def get(self, key: Key[Any]) -> Any:
        """The raw value, None for a missing record, or UNKNOWN."""
        raw = self._young.get(key, UNKNOWN)
        if raw is UNKNOWN:
            raw = self._old.get(key, UNKNOWN)
            if raw is UNKNOWN and self._offers and isinstance(key, EdgeKey) and key.parent in self._offers:
                self._take(key.parent)
                return self._young.get(key, UNKNOWN)
        return raw

    def put(self, key: Key[Any], raw: Any) -> None:
        """Remember a value."""
        if len(self._young) >= _GENERATION:
            self._old, self._young = self._young, {}
        self._young[key] = raw

    def drop(self, key: Key[Any]) -> None:
        """Forget a value."""
        self._young.pop(key, None)
        self._old.pop(key, None)

    def offer(self, ino: int, page: StoredPage) -> None:
        """Keep a page of directory *ino*, with attributes, for when it is asked for."""
        self._offers.setdefault(ino, []).append(page)
        while (
            len(self._offers) > 1
            and sum(len(page.names) for pages in self._offers.values() for page in pages) > _OFFERED
        ):
            del self._offers[next(iter(self._offers))]
        if sum(len(page.names) for page in self._offers[ino]) > _OFFERED:
            del self._offers[ino][0]

    def _take(self, parent: int) -> None:
        for page in self._offers.pop(parent):
            for name, entry, attr in zip(page.names, page.raw_entries, page.raw_attrs or (), strict=True):
                for key, raw in ((EdgeKey(parent, name), entry), (NodeKey(int.from_bytes(entry[1:9], "big")), attr)):
                    if raw is not None and key not in self._young and key not in self._old:  # those are newer
                        self.put(key, raw)

    def clear(self) -> None:
        """Forget everything."""
        self._young.clear()
        self._old.clear()
        self._offers.clear()
