"""An attempt on SQLite: reads run at once inside BEGIN IMMEDIATE, writes are flushed before COMMIT.

As nobody else writes meanwhile, reads need no validation and an error may escape as it is. None of the methods suspends.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any, ClassVar, Final

from jfs.meta.engines.sqlite.records import UNKNOWN, Records
from jfs.meta.model.attr import Entry
from jfs.meta.model.keys import CounterKey, EdgeKey, Key, ParentKey, SliceRefKey
from jfs.meta.store.tracking import TrackedTx

_USED_SPACE: Final = CounterKey("usedSpace")
_TOTAL_INODES: Final = CounterKey("totalInodes")


class SqliteTx(TrackedTx):
    """An attempt inside an open SQLite transaction."""

    __slots__ = ("_records",)

    MISSING_SLICE: ClassVar[int] = 0

    def __init__(self, records: Records) -> None:
        super().__init__()
        self._records = records

    async def _fetch(self, keys: Sequence[Key[Any]]) -> Sequence[Any]:
        readers = self._records.readers
        return [readers[key.kind](key) for key in keys]

    async def _fetch_count(self, ino: int, limit: int) -> int:
        return self._records.count_entries(ino, limit)

    async def _fetch_xattr_names(self, ino: int) -> list[bytes]:
        return self._records.xattr_names(ino)

    async def _fetch_parents(self, ino: int) -> dict[int, int]:
        return self._records.parent_counts(ino)

    async def parents(self, ino: int) -> dict[int, int]:
        """From the edges, own buffered ones included: there is no record of parents in SQL (format §3.9)."""
        counts = Counter(self._records.parent_counts(ino))
        for key, entry in self.writes.items():
            if isinstance(key, EdgeKey):
                stored = self._records.read_edge(key)
                counts[key.parent] += int(entry is not None and entry.ino == ino)
                counts[key.parent] -= int(stored is not None and stored.ino == ino)
        return {parent: count for parent, count in counts.items() if count > 0}

    def add(self, key: CounterKey | ParentKey | SliceRefKey, delta: int) -> None:
        """As for every engine, but parents are not counted apart from the edges."""
        if not isinstance(key, ParentKey):
            super().add(key, delta)

    def flush(self) -> None:
        """Run the buffered writes."""
        records = self._records
        for ino in self.cleared_xattrs:
            records.clear_xattrs(ino)
        reads, writers = self.reads, records.writers
        moved = self._moved()
        for key, record in self.writes.items():
            if key not in moved:
                writers[key.kind](key, record, reads.get(key, UNKNOWN))
            elif record is not None:
                records.move_edge(moved[key], key)
        adds = self.adds
        if _USED_SPACE in adds and _TOTAL_INODES in adds:
            records.add_usage(adds.pop(_USED_SPACE), adds.pop(_TOTAL_INODES))
        for number, delta in adds.items():
            records.add(number, delta)
        for usage, change in self.stats.items():
            records.add_stat(usage, change)
        for quota, more in self.quotas.items():
            records.add_quota(quota, more)
        for chunk, appended in self.appends.items():
            for packed, existing_only in appended:
                records.append(chunk, packed, existing_only)
        if self.journal and self.log is not None:
            records.log(self.log.lines(self.journal, records.count_slices))

    def _moved(self) -> dict[EdgeKey, EdgeKey]:
        """Entries that go elsewhere (into the trash, by a rename): both places, each with the old one. Their row is changed where it
        is, which adds fewer pages to the log than a removal and an insertion do."""
        reads = self.reads
        gone: dict[Entry, EdgeKey] = {}
        for key, record in self.writes.items():
            if record is None and key.kind == "edge" and (known := reads.get(key)) is not None:
                gone[known] = key
        moved: dict[EdgeKey, EdgeKey] = {}
        if gone and not self._records.old_names:
            for key, record in self.writes.items():
                if key.kind == "edge" and record in gone and reads.get(key) is None:
                    source = gone.pop(record)
                    moved[source] = moved[key] = source
        return moved
