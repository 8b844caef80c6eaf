"""An attempt in terms of typed records: what the engine-neutral operations read and write becomes keys and values.

Numbers that are added to are read when the attempt commits, and so are lists that are appended to: the databases know no such
changes. Counters of usage would make every two commits of a volume conflict, so they are not part of them: they are handed to
`UsageBuffer`, as the real client does (format §3.7). Used by one task.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from jfs.errors import Conflict
from jfs.format.slices import RECORD
from jfs.meta.engines.kv import layout
from jfs.meta.engines.kv.database import Attempt
from jfs.meta.model.keys import ChunkKey, CounterKey, DirStat, DirStatKey, Key, SliceRefKey
from jfs.meta.model.locks import LockedKey
from jfs.meta.model.quota import DIRECTORY, Quota, QuotaKey
from jfs.meta.store.tracking import TrackedTx

USAGE: Final = frozenset((CounterKey("usedSpace"), CounterKey("totalInodes")))


class UsageWaits(Conflict):
    """The attempt reads usage that this client has not stored yet: that first, then again."""


class KvTx(TrackedTx):
    """One attempt."""

    __slots__ = ("_waiting", "attempt")

    def __init__(self, attempt: Attempt, waiting: Callable[[Iterable[Any]], bool]) -> None:
        super().__init__()
        self.attempt = attempt
        self._waiting = waiting

    async def _fetch(self, keys: Sequence[Key[Any]]) -> Sequence[Any]:
        if self._waiting(keys):
            raise UsageWaits
        return await read(self.attempt, keys)

    async def _fetch_count(self, ino: int, limit: int) -> int:
        prefix = layout.entries(ino)
        return len(await self.attempt.scan(prefix, layout.after(prefix), limit, values=False))

    async def _fetch_xattr_names(self, ino: int) -> list[bytes]:
        prefix = layout.xattrs(ino)
        found = await self.attempt.scan(prefix, layout.after(prefix), values=False)
        return [name[len(prefix) :] for name, _ in found]

    async def _fetch_parents(self, ino: int) -> dict[int, int]:
        prefix = layout.parents(ino)
        found = await self.attempt.scan(prefix, layout.after(prefix))
        counts = {
            int.from_bytes(name[len(prefix) :], "little"): int.from_bytes(raw, "little", signed=True)
            for name, raw in found
        }
        return {parent: count for parent, count in counts.items() if count > 0}

    async def changes(self) -> dict[bytes, bytes | None]:
        """What the commit stores, None for a removal; reads what is added to."""
        changes: dict[bytes, bytes | None] = {}
        for ino, prefix_of in (
            *((ino, layout.xattrs) for ino in self.cleared_xattrs),
            *((ino, layout.parents) for ino in self.cleared_parents),
        ):
            prefix = prefix_of(ino)
            changes.update(
                (name, None) for name, _ in await self.attempt.scan(prefix, layout.after(prefix), values=False)
            )
        for key, record in self.writes.items():
            if not isinstance(key, LockedKey):
                changes.update(zip(layout.keys(key), layout.encode(key, record), strict=True))
        if added := [key for key in self.adds if key not in USAGE]:
            for key, number in zip(added, await read(self.attempt, added), strict=True):
                changes.update(zip(layout.keys(key), layout.encode(key, (number or 0) + self.adds[key]), strict=True))
        if self.appends:
            chunks: list[ChunkKey] = list(self.appends)
            for chunk, present in zip(chunks, await read(self.attempt, chunks), strict=True):
                records = present
                for packed, existing_only in self.appends[chunk]:
                    if records is not None or not existing_only:
                        records = (records or b"") + packed
                if records is not None:
                    changes[layout.keys(chunk)[0]] = records
        if self.journal and self.log is not None:
            ids = await self.attempt.log_ids(len(self.journal))
            if ids:
                lines = self.log.lines(
                    self.journal, lambda chunk: len(changes.get(layout.keys(chunk)[0]) or b"") // RECORD.size
                )
                changes.update(zip(map(layout.logged, ids), lines, strict=True))
        return changes

    def usage(self) -> dict[Any, Any]:
        """Additions that are stored apart from the commit."""
        return {
            **{key: delta for key, delta in self.adds.items() if key in USAGE},
            **{key: change for key, change in self.stats.items() if any(change)},
            **{key: change for key, change in self.quotas.items() if any(change)},
        }

    def stores_anything(self) -> bool:
        """Whether the commit itself has something to store."""
        return bool(
            self.writes
            or self.appends
            or self.cleared_xattrs
            or self.cleared_parents
            or any(key not in USAGE for key in self.adds)
            or self.journal
        )


async def read(attempt: Attempt, keys: Sequence[Key[Any]]) -> list[Any]:
    """Records in one round trip."""
    places = [layout.keys(key) for key in keys]
    raws = await attempt.get([raw for place in places for raw in place])
    records = []
    at = 0
    for key, place in zip(keys, places, strict=True):
        records.append(layout.decode(key, raws[at : at + len(place)]))
        at += len(place)
    return records


def added(key: Any, present: Any, change: Any) -> Any:
    """The record after an addition of usage; None when there is nothing to add to (see `jfs.meta.store.base.Tx`)."""
    if isinstance(key, CounterKey | SliceRefKey):
        return (present or 0) + change
    if isinstance(key, DirStatKey):
        return None if present is None else DirStat(*(a + b for a, b in zip(present, change, strict=True)))
    assert isinstance(key, QuotaKey)
    if present is None:
        return None if key.what == DIRECTORY else Quota().added(*change)
    return present.added(*change)
