"""The records of a volume in dictionaries, shared by all `MemoryStore`s opened on it.

Every method is synchronous, so each is atomic on the event loop; nothing in here awaits. Records are immutable, so
handing them out needs no copy, and comparing a record with what was read earlier is a sound test for "unchanged".
"""

from typing import Any, TypeVar

from jfs.meta.model.attr import Entry
from jfs.meta.model.keys import ChunkKey, DirStatKey, EdgeKey, Key, ParentKey, SliceRefKey, XattrKey
from jfs.meta.model.quota import DIRECTORY, Quota
from jfs.meta.store.tracking import TrackedTx

R = TypeVar("R")
S = TypeVar("S")


class MemoryDatabase:
    """What is stored. Records with a key of two parts that are listed by the first part are kept in nested dictionaries."""

    def __init__(self) -> None:
        self.flat: dict[Any, Any] = {}
        self.edges: dict[int, dict[bytes, Entry]] = {}
        self.xattrs: dict[int, dict[bytes, bytes]] = {}
        self.parents: dict[int, dict[int, int]] = {}
        self.chunks: dict[int, dict[int, bytes]] = {}
        self.change_log: list[bytes] = []
        self.forgotten = 0  # entries that it no longer has

    def read(self, key: Key[Any]) -> Any:
        """The record of *key* as `Tx.get` defines it."""
        if isinstance(key, EdgeKey):
            return self.edges.get(key.parent, {}).get(key.name)
        if isinstance(key, ChunkKey):
            return self.chunks.get(key.ino, {}).get(key.indx)
        if isinstance(key, XattrKey):
            return self.xattrs.get(key.ino, {}).get(key.name)
        if isinstance(key, ParentKey):
            return self.parents.get(key.ino, {}).get(key.parent)
        if isinstance(key, SliceRefKey):
            return self.flat.get(key, 1)
        return self.flat.get(key)

    def write(self, key: Key[Any], record: Any) -> None:
        """Store *record*, or remove what is there when it is None."""
        if isinstance(key, EdgeKey):
            _write_nested(self.edges, key.parent, key.name, record)
        elif isinstance(key, ChunkKey):
            _write_nested(self.chunks, key.ino, key.indx, record)
        elif isinstance(key, XattrKey):
            _write_nested(self.xattrs, key.ino, key.name, record)
        elif isinstance(key, ParentKey):
            _write_nested(self.parents, key.ino, key.parent, record)
        elif record is None:
            self.flat.pop(key, None)
        else:
            self.flat[key] = record

    def count(self, ino: int, limit: int) -> int:
        """Entries of a directory, at most *limit*."""
        return min(len(self.edges.get(ino, ())), limit)

    def xattr_names(self, ino: int) -> list[bytes]:
        return list(self.xattrs.get(ino, ()))

    def parent_counts(self, ino: int) -> dict[int, int]:
        return {parent: count for parent, count in self.parents.get(ino, {}).items() if count > 0}

    def still_holds(self, tx: TrackedTx) -> bool:
        """Whether everything *tx* has read would read the same now."""
        return (
            all(self.read(key) == record for key, record in tx.reads.items())
            and all(self.count(ino, limit) == count for ino, (count, limit) in tx.counted.items())
            and all(self.xattr_names(ino) == names for ino, names in tx.named.items())
            and all(self.parent_counts(ino) == counts for ino, counts in tx.parented.items())
        )

    def apply(self, tx: TrackedTx) -> None:
        """All writes of *tx*."""
        for ino in tx.cleared_xattrs:
            self.xattrs.pop(ino, None)
        for ino in tx.cleared_parents:
            self.parents.pop(ino, None)
        for key, record in tx.writes.items():
            self.write(key, record)
        for number, delta in tx.adds.items():
            self.write(number, (self.read(number) or 0) + delta)
        for usage, change in tx.stats.items():
            self._add_stat(usage, change)
        for quota, more in tx.quotas.items():
            present = self.flat.get(quota)
            if present is not None or quota.what != DIRECTORY:
                self.flat[quota] = (present or Quota()).added(*more)
        for chunk, records in tx.appends.items():
            for packed, existing_only in records:
                present = self.read(chunk)
                if present is not None or not existing_only:
                    self.write(chunk, (present or b"") + packed)
        if tx.journal and tx.log is not None:
            self.change_log += tx.log.lines(tx.journal)

    def _add_stat(self, key: DirStatKey, change: Any) -> None:
        present = self.flat.get(key)
        if present is not None:
            self.flat[key] = type(present)(*map(sum, zip(present, change, strict=True)))

    def all_of(self, kind: type) -> list[tuple[Any, Any]]:
        """Every record of a kind (as `Store.scan` has it)."""
        if kind is EdgeKey:
            return [(EdgeKey(ino, name), entry) for ino, names in self.edges.items() for name, entry in names.items()]
        if kind is ChunkKey:
            return [(ChunkKey(ino, indx), raw) for ino, lists in self.chunks.items() for indx, raw in lists.items()]
        if kind is XattrKey:
            return [(XattrKey(ino, name), b"") for ino, names in self.xattrs.items() for name in names]
        if kind is ParentKey:
            return [(ParentKey(ino, parent), n) for ino, counts in self.parents.items() for parent, n in counts.items()]
        return [(key, record) for key, record in self.flat.items() if isinstance(key, kind)]

    def clear(self) -> None:
        """Remove everything."""
        for records in (self.flat, self.edges, self.xattrs, self.parents, self.chunks):
            records.clear()
        self.change_log.clear()
        self.forgotten = 0

    def is_blank(self) -> bool:
        return not (self.flat or self.edges or self.xattrs or self.parents or self.chunks)


def _write_nested(nested: dict[int, dict[S, R]], first: int, second: S, record: R | None) -> None:
    if record is not None:
        nested.setdefault(first, {})[second] = record
    elif first in nested:
        nested[first].pop(second, None)
        if not nested[first]:
            del nested[first]
