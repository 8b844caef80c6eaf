"""What this process last saw of inodes, entries and locks, as Redis replied (see `script` for what it serves).

Pages of listings are only kept as they came, and taken apart when a transaction first asks for an entry of that directory:
`ls` pays nothing, and `rm -r` finds everything here.
"""

from typing import Any, Final

from jfs.meta.model.keys import EdgeKey, Key, NodeKey
from jfs.meta.store.page import StoredPage
from jfs.meta.store.remembered import UNKNOWN, Remembered

_OFFERED: Final = 8192  # entries of listings that are kept


class RecordCache(Remembered[Key[Any], Any]):
    """Last known replies for inodes, entries and locks; None is that of a missing record."""

    __slots__ = ("_offers",)

    def __init__(self) -> None:
        super().__init__()
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

    def offer(self, ino: int, page: StoredPage) -> None:
        """Keep a page of directory *ino*, with attributes, for when it is asked for."""
        # in the order of the last listing, so that what is listed now is not what has to go
        pages = self._offers[ino] = self._offers.pop(ino, [])
        pages.append(page)
        while (
            len(self._offers) > 1
            and sum(len(page.names) for several in self._offers.values() for page in several) > _OFFERED
        ):
            del self._offers[next(iter(self._offers))]
        if sum(len(page.names) for page in pages) > _OFFERED:
            del pages[0]

    def _take(self, parent: int) -> None:
        for page in self._offers.pop(parent):
            for name, entry, attr in zip(page.names, page.raw_entries, page.raw_attrs or (), strict=True):
                for key, raw in ((EdgeKey(parent, name), entry), (NodeKey(int.from_bytes(entry[1:9], "big")), attr)):
                    if raw is not None and key not in self._young and key not in self._old:  # those are newer
                        self.put(key, raw)

    def clear(self) -> None:
        """Forget everything."""
        super().clear()
        self._offers.clear()
