"""The part of a transaction that all engines share: what the attempt has read and what it wants to write.

Everything is in terms of typed keys and records; an engine adds how to fetch what is not known yet and how to commit.
Invariants: a key is fetched at most once in an attempt; own buffered writes are seen by own reads; a later write of a key
replaces an earlier one, and additions after a `put` or `delete` are folded into it, so that at commit each key is in
exactly one of `writes`, `adds`, `stats`, `quotas` and `appends`. Clears come before all of them. Used by one task.
"""

import abc
from collections.abc import Sequence
from typing import Any, ClassVar, Final

from jfs.format.slices import Slice
from jfs.meta.model.keys import (
    ChunkKey,
    CounterKey,
    DirStat,
    DirStatKey,
    EdgeKey,
    Key,
    ParentKey,
    SliceRefKey,
    XattrKey,
)
from jfs.meta.model.quota import QuotaChange, QuotaKey
from jfs.meta.store.change_log import ChangeLog, LogEntry

_NO_CHANGE: Final = QuotaChange(0, 0)


class TrackedTx(abc.ABC):
    """Read memory and write buffer of one attempt."""

    __slots__ = (
        "adds",
        "appends",
        "cleared_parents",
        "cleared_xattrs",
        "counted",
        "journal",
        "log",
        "named",
        "parented",
        "quotas",
        "reads",
        "stats",
        "writes",
    )

    # What a slice without a record reads as (format §3.12).
    MISSING_SLICE: ClassVar[int] = 1

    def __init__(self) -> None:
        self.reads: dict[Any, Any] = {}  # as fetched
        self.writes: dict[Any, Any] = {}  # None: delete
        self.adds: dict[CounterKey | ParentKey | SliceRefKey, int] = {}
        self.stats: dict[DirStatKey, DirStat] = {}
        self.quotas: dict[QuotaKey, QuotaChange] = {}
        self.appends: dict[ChunkKey, list[tuple[bytes, bool]]] = {}  # packed record, only to an existing list
        self.cleared_xattrs: set[int] = set()
        self.cleared_parents: set[int] = set()
        # Wide reads, as fetched: (entries counted up to a limit, that limit), names of xattrs, parent counts.
        self.counted: dict[int, tuple[int, int]] = {}
        self.named: dict[int, list[bytes]] = {}
        self.parented: dict[int, dict[int, int]] = {}
        self.log: ChangeLog | None = None
        self.journal: list[LogEntry] | None = None

    def keep_journal(self, log: ChangeLog | None) -> None:
        """Have the operation's entries for *log*, if there is one, written with the commit."""
        if log is not None:
            self.log = log
            self.journal = []

    # What an engine adds.

    @abc.abstractmethod
    async def _fetch(self, keys: Sequence[Key[Any]]) -> Sequence[Any]:
        """Records of *keys* (none twice, none fetched before) in one round trip."""

    @abc.abstractmethod
    async def _fetch_count(self, ino: int, limit: int) -> int:
        """Number of entries of directory *ino*, or *limit* when there are more."""

    @abc.abstractmethod
    async def _fetch_xattr_names(self, ino: int) -> list[bytes]: ...

    @abc.abstractmethod
    async def _fetch_parents(self, ino: int) -> dict[int, int]: ...

    # Reads.

    async def get(self, *keys: Key[Any]) -> tuple[Any, ...]:
        """See `jfs.meta.store.base.Tx.get`."""
        reads, writes = self.reads, self.writes
        missing = [key for key in keys if key not in reads and key not in writes]
        if missing:
            if len(missing) > 1:
                missing = list(dict.fromkeys(missing))
            if self.cleared_xattrs or self.cleared_parents:
                missing = [key for key in missing if not self._is_cleared(key)]
            if missing:
                for key, record in zip(missing, await self._fetch(missing), strict=True):
                    reads[key] = record
        if self.adds or self.stats or self.quotas or self.appends or self.cleared_xattrs or self.cleared_parents:
            return tuple([self._overlaid(key) for key in keys])
        if writes:
            return tuple([self._written(key) if key in writes else reads[key] for key in keys])
        return tuple([reads[key] for key in keys])

    def _is_cleared(self, key: Key[Any]) -> bool:
        if isinstance(key, XattrKey):
            return key.ino in self.cleared_xattrs
        return isinstance(key, ParentKey) and key.ino in self.cleared_parents

    def _written(self, key: Any) -> Any:
        record = self.writes[key]
        return self.MISSING_SLICE if record is None and isinstance(key, SliceRefKey) else record

    def _overlaid(self, key: Any) -> Any:
        if key in self.writes:
            return self._written(key)
        if self._is_cleared(key):
            return None
        record = self.reads[key]
        if key in self.adds:
            return (record or 0) + self.adds[key]
        if key in self.quotas:
            return None if record is None else record.added(*self.quotas[key])
        if key in self.stats:
            return None if record is None else _sum(record, self.stats[key])
        for packed, existing_only in self.appends.get(key, ()):
            if record is not None or not existing_only:
                record = (record or b"") + packed
        return record

    async def is_empty(self, ino: int) -> bool:
        """See `jfs.meta.store.base.Tx.is_empty`."""
        deleted = []
        for key, record in self.writes.items():
            if isinstance(key, EdgeKey) and key.parent == ino:
                if record is not None:
                    return False
                deleted.append(key)
        count, limit = self.counted.get(ino, (0, 0))
        if limit <= len(deleted):  # own deletions do not count, so more entries than those have to be looked at
            limit = len(deleted) + 1
            count = await self._fetch_count(ino, limit)
            self.counted[ino] = count, limit
        unknown = [key for key in deleted if key not in self.reads]
        if unknown:
            for unread, record in zip(unknown, await self._fetch(unknown), strict=True):
                self.reads[unread] = record
        return count <= sum(self.reads[key] is not None for key in deleted)

    async def xattr_names(self, ino: int) -> list[bytes]:
        """See `jfs.meta.store.base.Tx.xattr_names`."""
        if ino in self.cleared_xattrs:
            names: dict[bytes, None] = {}
        else:
            if ino not in self.named:
                self.named[ino] = await self._fetch_xattr_names(ino)
            names = dict.fromkeys(self.named[ino])
        for key, record in self.writes.items():
            if isinstance(key, XattrKey) and key.ino == ino:
                if record is None:
                    names.pop(key.name, None)
                else:
                    names[key.name] = None
        return list(names)

    async def parents(self, ino: int) -> dict[int, int]:
        """See `jfs.meta.store.base.Tx.parents`."""
        if ino in self.cleared_parents:
            counts: dict[int, int] = {}
        else:
            if ino not in self.parented:
                self.parented[ino] = await self._fetch_parents(ino)
            counts = dict(self.parented[ino])
        for key, record in self.writes.items():
            if isinstance(key, ParentKey) and key.ino == ino:
                counts[key.parent] = record or 0
        for added, delta in self.adds.items():
            if isinstance(added, ParentKey) and added.ino == ino:
                counts[added.parent] = counts.get(added.parent, 0) + delta
        return {parent: count for parent, count in counts.items() if count > 0}

    # Writes.

    def put(self, key: Key[Any], record: Any) -> None:
        """See `jfs.meta.store.base.Tx.put`."""
        self.writes[key] = record
        self._drop_increments(key)

    def delete(self, key: Key[Any]) -> None:
        """See `jfs.meta.store.base.Tx.delete`."""
        self.writes[key] = None
        self._drop_increments(key)

    def _drop_increments(self, key: Any) -> None:
        if self.adds:
            self.adds.pop(key, None)
        if self.stats:
            self.stats.pop(key, None)
        if self.quotas:
            self.quotas.pop(key, None)
        if self.appends:
            self.appends.pop(key, None)

    def clear_xattrs(self, ino: int) -> None:
        """See `jfs.meta.store.base.Tx.clear_xattrs`."""
        self.cleared_xattrs.add(ino)
        for key in [key for key in self.writes if isinstance(key, XattrKey) and key.ino == ino]:
            del self.writes[key]

    def clear_parents(self, ino: int) -> None:
        """See `jfs.meta.store.base.Tx.clear_parents`."""
        self.cleared_parents.add(ino)
        for written in [key for key in self.writes if isinstance(key, ParentKey) and key.ino == ino]:
            del self.writes[written]
        for added in [key for key in self.adds if isinstance(key, ParentKey) and key.ino == ino]:
            del self.adds[added]

    def add(self, key: CounterKey | ParentKey | SliceRefKey, delta: int) -> None:
        """See `jfs.meta.store.base.Tx.add`."""
        if key in self.writes:
            base = self.writes[key]
            if base is None:
                base = self.MISSING_SLICE if isinstance(key, SliceRefKey) else 0
            self.writes[key] = base + delta
        elif isinstance(key, ParentKey) and key.ino in self.cleared_parents:
            self.writes[key] = delta
        else:
            self.adds[key] = self.adds.get(key, 0) + delta

    def add_stat(self, key: DirStatKey, change: DirStat) -> None:
        """See `jfs.meta.store.base.Tx.add_stat`."""
        if key in self.writes:
            base = self.writes[key]
            if base is not None:
                self.writes[key] = _sum(base, change)
        else:
            earlier = self.stats.get(key)
            self.stats[key] = change if earlier is None else _sum(earlier, change)

    def add_quota(self, key: QuotaKey, space: int, inodes: int) -> None:
        """See `jfs.meta.store.base.Tx.add_quota`."""
        if key in self.writes:
            base = self.writes[key]
            if base is not None:
                self.writes[key] = base.added(space, inodes)
        else:
            self.quotas[key] = self.quotas.get(key, _NO_CHANGE).plus(space, inodes)

    def append(self, key: ChunkKey, record: Slice, *, existing_only: bool = False) -> None:
        """See `jfs.meta.store.base.Tx.append`."""
        if key in self.writes:
            base = self.writes[key]
            if base is not None or not existing_only:
                self.writes[key] = (base or b"") + record.pack()
        else:
            self.appends.setdefault(key, []).append((record.pack(), existing_only))

    def changes_anything(self) -> bool:
        """Whether a commit would write."""
        return bool(
            self.writes
            or self.adds
            or self.stats
            or self.quotas
            or self.appends
            or self.cleared_xattrs
            or self.cleared_parents
            or self.journal
        )


def _sum(a: DirStat, b: DirStat) -> DirStat:
    return DirStat(a.length + b.length, a.space + b.space, a.inodes + b.inodes)
