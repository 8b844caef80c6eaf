"""The store over an ordered key-value database: attempts by `KvTx`, everything else by reads of ranges.

A result or an error leaves an attempt only when the database agrees to what was read. Usage goes its own way (`usage`); whoever
reads it here sees what this client has added.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from typing import Any, Final, TypeVar

from jfs.errors import Conflict, CorruptRecord
from jfs.meta.engines.kv import layout
from jfs.meta.engines.kv.database import Database
from jfs.meta.engines.kv.transaction import KvTx, UsageWaits, added
from jfs.meta.engines.kv.usage import SECONDS, UsageBuffer
from jfs.meta.model.attr import Attr, Entry, unpack_attr
from jfs.meta.model.keys import (
    ChunkKey,
    CounterKey,
    DelayedKey,
    DeletedFileKey,
    EdgeKey,
    Key,
    NodeKey,
    Session,
    SliceRefKey,
    XattrKey,
)
from jfs.meta.model.locks import FlockKey, PlockKey
from jfs.meta.model.quota import QuotaKey
from jfs.meta.store.base import Tx
from jfs.meta.store.change_log import LogEntry, incremented
from jfs.meta.store.page import StoredPage
from jfs.meta.store.retry import TransactionRunner

K = TypeVar("K")
T = TypeVar("T")

_OLD_SESSION_LIFE: Final = 300  # seconds from a heartbeat record to its end
_FIRST_PAGE: Final = 512  # of a listing: about what the kernel asks for at once
_PAGE: Final = 2048
_REMOVED_TOGETHER: Final = 50


class _Storing:
    """The operation that stores waiting usage. What waits since it began is the next one's, so it does not wait for that."""

    def __init__(self, changes: dict[Any, Any]) -> None:
        self._changes = changes

    async def __call__(self, tx: Tx) -> None:
        keys = list(self._changes)
        for key, present in zip(keys, await tx.get(*keys), strict=True):
            record = added(key, present, self._changes[key])
            if record is not None:
                tx.put(key, record)


def _nothing(keys: Iterable[Any]) -> bool:
    return False


def _is_storing(operation: object) -> bool:
    return isinstance(operation, _Storing)


class KvStore(TransactionRunner):
    """A volume's records in a key-value database."""

    initial_counters: Mapping[str, int] = {
        "nextInode": 2,
        "nextChunk": 1,
        "nextSession": 0,
        "usedSpace": 0,
        "totalInodes": 0,
        "nextCleanupSlices": 0,
    }

    def __init__(self, database: Database, *, usage_seconds: float = SECONDS) -> None:
        super().__init__()
        self._database = database
        self.name = database.name
        self._usage = UsageBuffer(self._store_usage, usage_seconds)

    async def _attempt(self, operation: Callable[[Tx], Awaitable[T]], number: int) -> T:
        attempt = self._database.attempt(fresh=number > 0)
        tx = KvTx(attempt, _nothing if _is_storing(operation) else self._usage.concerns)
        tx.keep_journal(self.change_log)
        try:
            try:
                result = await operation(tx)
            except UsageWaits:
                await self._usage.flush()
                raise
            except Conflict:
                raise
            except Exception:
                if attempt.needs_check:
                    await attempt.check()
                raise
            if tx.stores_anything():
                await attempt.commit(await tx.changes())
            elif attempt.needs_check:
                await attempt.check()
        finally:
            await attempt.drop()
        if usage := tx.usage():
            await self._usage.add(usage)
        return result

    async def _store_usage(self, changes: dict[Any, Any]) -> None:
        await self.run(_Storing(changes))

    async def get(self, *keys: Key[Any]) -> tuple[Any, ...]:
        if self._usage.concerns(keys):
            await self._usage.flush()
        places = [layout.keys(key) for key in keys]
        raws = await self._database.get([raw for place in places for raw in place])
        records = []
        at = 0
        for key, place in zip(keys, places, strict=True):
            records.append(layout.decode(key, raws[at : at + len(place)]))
            at += len(place)
        return tuple(records)

    async def lookup(self, parent: int, name: bytes) -> tuple[Entry, Attr | None] | None:
        (entry,) = await self.get(EdgeKey(parent, name))
        if entry is None:
            return None
        (attr,) = await self.get(NodeKey(entry.ino))
        return entry, attr

    async def list_directory(self, ino: int, *, plus: bool) -> AsyncIterator[StoredPage]:
        prefix = layout.entries(ino)
        start, end, limit = prefix, layout.after(prefix), _FIRST_PAGE
        while True:
            pairs = await self._database.page(start, end, limit)
            if pairs:
                names = [name[len(prefix) :] for name, _ in pairs]
                entries = [raw for _, raw in pairs]
                attrs = None
                if plus:
                    nodes = [layout.keys(NodeKey(int.from_bytes(raw[1:9], "big")))[0] for raw in entries]
                    attrs = await self._database.get(nodes)
                yield StoredPage(names, entries, attrs)
            if len(pairs) < limit:
                return
            start, limit = pairs[-1][0] + b"\0", _PAGE

    async def allot(self, counter: str, count: int) -> int:
        return await self._increment(counter, count) - count

    async def next_id(self, counter: str) -> int:
        return await self._increment(counter, 1)

    async def _increment(self, counter: str, count: int) -> int:
        key = CounterKey(counter)

        async def operation(tx: Tx) -> int:
            (present,) = await tx.get(key)
            value = (self.initial_counters.get(counter, 0) if present is None else present) + count
            tx.put(key, value)
            if tx.journal is not None and counter != "nextTrash":  # which the real client does not log
                tx.journal.append(LogEntry(incremented(counter, count)))
            return value

        return await self.run(operation)

    async def _found(self, kind: type) -> AsyncIterator[tuple[Any, Any]]:
        """Keys of a kind with their records; a CorruptRecord for one that does not decode."""
        prefix, parse = layout.PARSING[kind]
        async for raw_key, raw in self._database.scan(prefix, layout.after(prefix)):
            key = parse(raw_key)
            if key is None:
                continue
            if isinstance(key, XattrKey):  # scans give no values of these
                yield key, b""
                continue
            try:
                yield key, layout.decode(key, (raw, None))
            except CorruptRecord as error:
                yield key, error

    async def sessions(self) -> AsyncIterator[tuple[int, Session]]:
        start = len(layout.SESSION_INFOS)
        infos = {
            name[start:]: raw
            async for name, raw in self._database.scan(layout.SESSION_INFOS, layout.after(layout.SESSION_INFOS))
        }
        async for name, raw in self._database.scan(layout.SESSIONS, layout.after(layout.SESSIONS)):
            yield int.from_bytes(name[start:], "big"), Session(layout.heartbeat(raw)[0], infos.get(name[start:], b""))
        async for name, raw in self._database.scan(layout.OLD_SESSIONS, layout.after(layout.OLD_SESSIONS)):
            life = layout.heartbeat(raw)[0] + _OLD_SESSION_LIFE
            yield int.from_bytes(name[start:], "big"), Session(life, infos.get(name[start:], b""))

    async def sustained(self, sid: int) -> AsyncIterator[int]:
        prefix = layout.sustained(sid)
        async for name, _ in self._database.scan(prefix, layout.end_of(prefix), values=False):
            yield int.from_bytes(name[len(prefix) :], "little")

    async def forget_session(self, sid: int) -> None:
        number = sid.to_bytes(8, "big")
        for kind in (FlockKey, PlockKey):
            async for key, record in self._found(kind):
                if not isinstance(record, CorruptRecord) and any(lock.sid == sid for lock in record or ()):
                    await self._unlock(key, sid)
        prefix = layout.sustained(sid)
        names = [name async for name, _ in self._database.scan(prefix, layout.end_of(prefix), values=False)]
        names += [layout.SESSIONS + number, layout.OLD_SESSIONS + number, layout.SESSION_INFOS + number]
        for start in range(0, len(names), _REMOVED_TOGETHER):
            attempt = self._database.attempt(fresh=True)
            try:
                await attempt.commit(dict.fromkeys(names[start : start + _REMOVED_TOGETHER]))
            finally:
                await attempt.drop()

    async def _unlock(self, key: Any, sid: int) -> None:
        async def operation(tx: Tx) -> None:
            locks: Any = (await tx.get(key))[0]
            kept = tuple(lock for lock in locks or () if lock.sid != sid)
            if kept:
                tx.put(key, kept)
            else:
                tx.delete(key)

        await self.run(operation)

    async def deleted_files(self) -> AsyncIterator[tuple[int, int, int]]:
        queue = [(since, key) async for key, since in self._found(DeletedFileKey) if isinstance(since, int)]
        for since, key in sorted(queue):
            yield key.ino, key.length, since

    async def delayed_slices(self) -> AsyncIterator[tuple[int, int, bytes]]:
        async for key, records in self._found(DelayedKey):
            yield key.id, key.time, records

    async def unreferenced_slices(self) -> AsyncIterator[tuple[int, int]]:
        async for key, count in self._found(SliceRefKey):
            if isinstance(count, int) and count <= 0:
                yield key.id, key.size

    async def chunk_indexes(self, ino: int, length: int | None = None) -> list[int]:
        prefix = layout.chunks(ino)
        found = self._database.scan(prefix, layout.after(prefix), values=False)
        return [int.from_bytes(name[len(prefix) :], "big") async for name, _ in found]

    async def nodes(self) -> AsyncIterator[tuple[int, Attr]]:
        prefix, parse = layout.PARSING[NodeKey]
        async for raw_key, raw in self._database.scan(prefix, layout.after(prefix)):
            key = parse(raw_key)
            if key is not None:
                yield key.ino, unpack_attr(raw)

    async def chunks(self) -> AsyncIterator[tuple[int, int, bytes]]:
        prefix, parse = layout.PARSING[ChunkKey]
        async for raw_key, raw in self._database.scan(prefix, layout.after(prefix)):
            key = parse(raw_key)
            if key is not None:
                yield key.ino, key.indx, raw

    async def scan(self, kind: type[K]) -> AsyncIterator[tuple[K, Any]]:
        await self._usage.flush()
        if kind is QuotaKey:
            for prefix in layout.QUOTAS.values():
                async for raw_key, raw in self._database.scan(prefix, layout.after(prefix)):
                    quota = layout.parse_quota(raw_key)
                    yield quota, layout.decode(quota, (raw,))  # type: ignore[misc]
            return
        async for key, record in self._found(kind):
            yield key, record

    async def flaws(self, *, repair: bool) -> list[str]:
        return []

    async def _logged(self) -> list[bytes]:
        """Keys of the change log, oldest first."""
        scan = self._database.scan(layout.CHANGE_LOG, layout.after(layout.CHANGE_LOG), values=False)
        return sorted([key async for key, _ in scan], key=lambda key: key[-8:])

    async def logged(self) -> int:
        return len(await self._logged())

    async def oldest_logged(self, count: int) -> list[bytes]:
        return [line for line in await self._database.get((await self._logged())[:count]) if line is not None]

    async def last_logged(self) -> int:
        keys = await self._logged()
        return layout.logged_version(keys[-1]) if keys else 0

    async def logged_after(self, version: int, count: int) -> list[tuple[int, bytes]]:
        pages = await asyncio.gather(
            *(self._database.page(start, end, count) for start, end in layout.logged_ranges(version))
        )
        found = sorted((layout.logged_version(key), line) for page in pages for key, line in page)
        return found[:count]

    async def forget_logged(self, count: int) -> None:
        oldest = (await self._logged())[:count]
        attempt = self._database.attempt(fresh=True)
        try:
            await attempt.commit(dict.fromkeys(oldest))
        finally:
            await attempt.drop()

    async def is_blank(self) -> bool:
        return not await self._database.page(b"", b"\xff", 1, values=False)

    async def reset(self) -> None:
        await self._usage.flush()
        await self._database.remove_all()

    async def close(self) -> None:
        await self._usage.close()
        await self._database.close()


async def open_database(url: str, password: str) -> KvStore:
    """The store at an `etcd://` or `tikv://` address, connected."""
    from jfs.meta.engines.kv.url import parse_address

    address = parse_address(url, password)
    database: Database
    if url.startswith("etcd:"):
        from jfs.meta.engines.kv.etcd import EtcdDatabase

        database = EtcdDatabase(address)
    else:
        from jfs.meta.engines.kv.tikv import TikvDatabase

        database = TikvDatabase(address)
    try:
        await database.open()
    except BaseException:
        await database.close()
        raise
    return KvStore(database)
