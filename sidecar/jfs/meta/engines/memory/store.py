"""The store over a `MemoryDatabase`: optimistic, validated at commit, like the engines over a network.

Invariant: validation and application happen between two awaits, so they are one step for every other task.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

from jfs.errors import Conflict
from jfs.meta.engines.memory.database import MemoryDatabase
from jfs.meta.model.attr import Attr, Entry
from jfs.meta.model.keys import (
    CounterKey,
    DelayedKey,
    DeletedFileKey,
    EdgeKey,
    Key,
    NodeKey,
    Session,
    SessionKey,
    SliceRefKey,
    SustainedKey,
)
from jfs.meta.model.locks import FlockKey, LockedKey, PlockKey
from jfs.meta.store.base import Tx
from jfs.meta.store.change_log import incremented
from jfs.meta.store.page import RecordPage
from jfs.meta.store.retry import TransactionRunner
from jfs.meta.store.tracking import TrackedTx

K = TypeVar("K")
T = TypeVar("T")

_PAGE = 4096


class MemoryTx(TrackedTx):
    """An attempt on a `MemoryDatabase`."""

    __slots__ = ("_database",)

    def __init__(self, database: MemoryDatabase) -> None:
        super().__init__()
        self._database = database

    async def _fetch(self, keys: Sequence[Key[Any]]) -> Sequence[Any]:
        read = self._database.read
        return [read(key) for key in keys]

    async def _fetch_count(self, ino: int, limit: int) -> int:
        return self._database.count(ino, limit)

    async def _fetch_xattr_names(self, ino: int) -> list[bytes]:
        return self._database.xattr_names(ino)

    async def _fetch_parents(self, ino: int) -> dict[int, int]:
        return self._database.parent_counts(ino)


class MemoryStore(TransactionRunner):
    """A volume's records in memory. Several stores on one database are as several clients."""

    name = "memory"
    initial_counters: Mapping[str, int] = {}

    def __init__(self, database: MemoryDatabase | None = None) -> None:
        super().__init__()
        self._database = MemoryDatabase() if database is None else database

    async def _attempt(self, operation: Callable[[Tx], Awaitable[T]], number: int) -> T:
        tx = MemoryTx(self._database)
        tx.keep_journal(self.change_log)
        try:
            result = await operation(tx)
        except Exception:
            if not self._database.still_holds(tx):
                raise Conflict from None
            raise
        if not self._database.still_holds(tx):
            raise Conflict
        self._database.apply(tx)
        return result

    async def get(self, *keys: Key[Any]) -> tuple[Any, ...]:
        read = self._database.read
        return tuple([read(key) for key in keys])

    async def lookup(self, parent: int, name: bytes) -> tuple[Entry, Attr | None] | None:
        entry = self._database.read(EdgeKey(parent, name))
        return None if entry is None else (entry, self._database.read(NodeKey(entry.ino)))

    async def list_directory(self, ino: int, *, plus: bool) -> AsyncIterator[RecordPage]:
        listing = list(self._database.edges.get(ino, {}).items())
        for start in range(0, len(listing), _PAGE):
            piece = listing[start : start + _PAGE]
            attrs = [self._database.flat.get(NodeKey(entry.ino)) for _, entry in piece] if plus else None
            yield RecordPage([name for name, _ in piece], [entry for _, entry in piece], attrs)

    async def allot(self, counter: str, count: int) -> int:
        return self._increment(counter, count) - count + 1

    async def next_id(self, counter: str) -> int:
        return self._increment(counter, 1)

    def _increment(self, counter: str, count: int) -> int:
        key = CounterKey(counter)
        value: int = self._database.flat.get(key, 0) + count
        self._database.flat[key] = value
        if self.change_log is not None and counter != "nextTrash":  # which the real client does not log
            self._database.change_log.append(self.change_log.line(incremented(counter, count)))
        return value

    async def sessions(self) -> AsyncIterator[tuple[int, Session]]:
        for key, record in list(self._database.flat.items()):
            if isinstance(key, SessionKey):
                yield key.sid, record

    async def sustained(self, sid: int) -> AsyncIterator[int]:
        for key in list(self._database.flat):
            if isinstance(key, SustainedKey) and key.sid == sid:
                yield key.ino

    async def forget_session(self, sid: int) -> None:
        for key in list(self._database.flat):
            if isinstance(key, SessionKey | SustainedKey | LockedKey) and key.sid == sid:
                del self._database.flat[key]
        for key, record in list(self._database.flat.items()):
            if isinstance(key, FlockKey | PlockKey):
                self._database.write(key, tuple(lock for lock in record if lock.sid != sid) or None)

    async def deleted_files(self) -> AsyncIterator[tuple[int, int, int]]:
        queue = [(since, key) for key, since in self._database.flat.items() if isinstance(key, DeletedFileKey)]
        for since, key in sorted(queue):
            yield key.ino, key.length, since

    async def delayed_slices(self) -> AsyncIterator[tuple[int, int, bytes]]:
        for key, records in list(self._database.flat.items()):
            if isinstance(key, DelayedKey):
                yield key.id, key.time, records

    async def unreferenced_slices(self) -> AsyncIterator[tuple[int, int]]:
        for key, count in list(self._database.flat.items()):
            if isinstance(key, SliceRefKey) and count <= 0:
                yield key.id, key.size

    async def chunk_indexes(self, ino: int, length: int | None = None) -> list[int]:
        return sorted(self._database.chunks.get(ino, ()))

    async def nodes(self) -> AsyncIterator[tuple[int, Attr]]:
        for key, record in list(self._database.flat.items()):
            if isinstance(key, NodeKey):
                yield key.ino, record

    async def chunks(self) -> AsyncIterator[tuple[int, int, bytes]]:
        for ino, lists in list(self._database.chunks.items()):
            for indx, records in list(lists.items()):
                yield ino, indx, records

    async def scan(self, kind: type[K]) -> AsyncIterator[tuple[K, Any]]:
        for key, record in self._database.all_of(kind):
            yield key, record

    async def flaws(self, *, repair: bool) -> list[str]:
        return []

    async def logged(self) -> int:
        return len(self._database.change_log)

    async def oldest_logged(self, count: int) -> list[bytes]:
        return self._database.change_log[:count]

    async def last_logged(self) -> int:
        return self._database.forgotten + len(self._database.change_log)

    async def logged_after(self, version: int, count: int) -> list[tuple[int, bytes]]:
        first = max(version - self._database.forgotten, 0)
        lines = self._database.change_log[first : first + count]
        return list(enumerate(lines, self._database.forgotten + first + 1))

    async def forget_logged(self, count: int) -> None:
        self._database.forgotten += len(self._database.change_log[:count])
        del self._database.change_log[:count]

    async def is_blank(self) -> bool:
        return self._database.is_blank()

    async def reset(self) -> None:
        self._database.clear()

    async def close(self) -> None:
        return
