"""The store over one Redis server, which may be that node of a Cluster which has the volume's slot.

Transactions commit by a server-side script when the server lets us (`script`), else by WATCH and MULTI (`transaction`);
both answer the same contract. Reads outside transactions share one pipelined connection.
"""

import functools
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from jfs.errors import Conflict
from jfs.meta.engines.redis import scans
from jfs.meta.engines.redis.connection import Command
from jfs.meta.engines.redis.failures import ConnectionLost, first_error
from jfs.meta.engines.redis.layout import DECODING, REMEMBERED, Layout, joined, score
from jfs.meta.engines.redis.link import Link, PartOfCluster
from jfs.meta.engines.redis.outcome import was_made
from jfs.meta.engines.redis.script import Scripts, ScriptTx, lookup_plainly
from jfs.meta.engines.redis.startup import check_server
from jfs.meta.engines.redis.transaction import WatchTx, plain_commands
from jfs.meta.engines.redis.url import RedisAddress
from jfs.meta.model.attr import Attr, Entry, unpack_attr
from jfs.meta.model.keys import ChunkKey, DirStatKey, Key, Session
from jfs.meta.model.quota import DIRECTORY, QuotaKey
from jfs.meta.store.base import Tx
from jfs.meta.store.change_log import incremented
from jfs.meta.store.page import StoredPage
from jfs.meta.store.retry import TransactionRunner

A = TypeVar("A")
K = TypeVar("K")
T = TypeVar("T")

_CHUNK_BITS = 26
_SEARCH_ABOVE = 10_000  # chunks of a file from which on a search of the database is cheaper than asking for each
_OLD_SESSION_LIFE = 300  # seconds from a heartbeat record to its end (format §4.1.2)
_KNOWN_STATS = 65536


class RedisStore(TransactionRunner):
    """A volume's records in one Redis server or a Cluster."""

    name = "redis"
    initial_counters: Mapping[str, int] = {}

    def __init__(self, address: RedisAddress, *, use_scripts: bool = True) -> None:
        super().__init__()
        self._use_scripts = use_scripts
        self._scripts: Scripts
        self._use(address)
        # Directories that have a usage record. They keep it as long as they live, and inodes are never used again.
        self._known_stats: set[DirStatKey] = set()

    def _use(self, address: RedisAddress) -> None:
        self._address = str(address)
        self._link = Link(address)
        self._link.dialled = self._present
        self._layout = Layout(self._link.prefix)

    async def open(self) -> None:
        """Connect and check the server. StoreUnavailable, CredentialsRefused."""
        try:
            connection = await self._link.dial()
        except PartOfCluster as found:
            if found.address is None:
                raise
            self._use(found.address)  # the same server, as the real client does, by whose nodes the others are found
            connection = await self._link.dial()
        self._link.adopt(connection)
        major = await check_server(connection, self._address)
        self._scripts = Scripts(self._link, self._layout, self._address, major)
        if self._use_scripts:
            await self._scripts.load()
        else:
            self._scripts.usable = False

    def presence(self) -> str:
        """See `jfs.meta.store.base.Store.presence`."""
        server, clients = self._link.clients()
        return json.dumps([server, *clients]) if server else ""

    async def cut_off(self, presence: str) -> bool:
        """See `jfs.meta.store.base.Store.cut_off`."""
        try:
            server, *clients = json.loads(presence) if presence else [""]
        except ValueError:
            return False
        return await self._link.end_clients(str(server), [int(client) for client in clients])

    def _present(self) -> None:
        if self.on_presence is not None:
            self.on_presence(self.presence())

    async def _attempt(self, operation: Callable[[Tx], Awaitable[T]], number: int) -> T:
        if self._scripts.usable:
            return await self._scripts.attempt(operation, number, self.change_log)
        return await self._attempt_watching(operation)

    async def run_then_get(
        self, operation: Callable[[Tx], Awaitable[T]], key: Key[A], *, near: Sequence[int] = ()
    ) -> tuple[T, A | None]:
        """See `jfs.meta.store.base.Store.run_then_get`: the reading command travels behind the commit script."""
        reading = self._layout.reading[key.kind](key)
        last: ScriptTx | None = None

        @functools.wraps(operation)
        async def with_reading(tx: Tx) -> T:
            nonlocal last
            last = tx if isinstance(tx, ScriptTx) else None
            if last is not None:
                last.afterwards = reading
            return await operation(tx)

        result = await self.run(with_reading, near=near)
        replies = last.came if last is not None else None
        if replies is None or first_error(list(replies)):
            (record,) = await self.get(key)
            return result, record
        if key.kind in REMEMBERED:
            self._scripts.cache.put(key, replies[0])
        return result, DECODING[key.kind](key, replies)

    async def _attempt_watching(self, operation: Callable[[Tx], Awaitable[T]]) -> T:
        async with self._link.borrow() as connection:
            tx = WatchTx(connection, self._layout, self._address)
            tx.keep_journal(self.change_log)
            try:
                result = await operation(tx)
            except Conflict:
                await tx.unwatch()
                raise
            except Exception:
                if tx.is_torn:
                    await tx.check()
                else:
                    await tx.unwatch()
                raise
            if not tx.changes_anything():
                if tx.batches > 1:
                    await tx.check()
                else:
                    await tx.unwatch()
                return result
            commands = tx.commands()
            if tx.stats or tx.quotas:
                await self._learn_stats(list(tx.stats))
                commands = plain_commands(
                    commands, self._layout, self._known_stats, await self._present_quotas(tx.quotas)
                )
            try:
                await tx.commit(commands)
            except ConnectionLost as error:
                if not await was_made(self._link, self._layout, tx, connection):
                    raise Conflict from error
            return result

    async def _present_quotas(self, keys: Iterable[QuotaKey]) -> set[QuotaKey]:
        """Those directories' quotas of *keys* that there are."""
        asked = [key for key in keys if key.what == DIRECTORY]
        if not asked:
            return set()
        replies = await self._link.read(
            [(b"HEXISTS", self._layout.quotas.hashes[DIRECTORY][0], key.id) for key in asked]
        )
        return {key for key, exists in zip(asked, replies, strict=True) if exists}

    async def _learn_stats(self, usages: list[DirStatKey]) -> None:
        unknown = [key for key in usages if key not in self._known_stats]
        if unknown:
            replies = await self._link.read([(b"HEXISTS", self._layout.dir_inodes, key.ino) for key in unknown])
            if len(self._known_stats) > _KNOWN_STATS:
                self._known_stats.clear()
            self._known_stats.update(key for key, exists in zip(unknown, replies, strict=True) if exists)

    async def get(self, *keys: Key[Any]) -> tuple[Any, ...]:
        readings = [self._layout.reading[key.kind](key) for key in keys]
        replies = await self._link.read([command for reading in readings for command in reading])
        records = []
        at = 0
        for key, reading in zip(keys, readings, strict=True):
            records.append(DECODING[key.kind](key, replies[at : at + len(reading)]))
            if key.kind in REMEMBERED:
                self._scripts.cache.put(key, replies[at])
            at += len(reading)
        return tuple(records)

    async def lookup(self, parent: int, name: bytes) -> tuple[Entry, Attr | None] | None:
        if self._scripts.usable:
            return await self._scripts.lookup(parent, name)
        return await lookup_plainly(self._link, self._layout, self._scripts.cache, parent, name)

    async def list_directory(self, ino: int, *, plus: bool) -> AsyncIterator[StoredPage]:
        async for page in scans.list_directory(self._link, self._layout, ino, plus):
            if plus:
                self._scripts.cache.offer(ino, page)
            yield page

    async def allot(self, counter: str, count: int) -> int:
        last = await self._increment(counter, count)
        return last - count + 1

    async def next_id(self, counter: str) -> int:
        return await self._increment(counter, 1)

    async def _increment(self, counter: str, count: int) -> int:
        command: Command = (b"INCRBY", self._layout.counters[counter], count)
        value: int
        if self.change_log is None or counter == "nextTrash":  # which the real client does not log
            (value,) = await self._link.change([command], twice=True)  # of ids some may remain unused
        else:
            logged = self._layout.logging([self.change_log.line(incremented(counter, count))])
            transaction: list[Command] = [(b"MULTI",), command, *logged, (b"EXEC",)]
            *_, (value, *_) = await self._link.change(transaction, twice=True)
        return value

    async def sessions(self) -> AsyncIterator[tuple[int, Session]]:
        layout = self._layout
        everything: list[Command] = [
            (b"ZRANGE", name, 0, -1, b"WITHSCORES") for name in (layout.sessions, layout.old_sessions) if name
        ]
        everything.append((b"HGETALL", layout.session_infos))
        *queues, flat = await self._link.read(everything)
        infos = dict(zip(flat[::2], flat[1::2], strict=True))
        for life, pairs in zip((0, _OLD_SESSION_LIFE), queues, strict=False):
            for sid, raw in zip(pairs[::2], pairs[1::2], strict=True):
                yield int(sid), Session((score(raw) or 0) + life, infos.get(sid, b""))

    async def sustained(self, sid: int) -> AsyncIterator[int]:
        (members,) = await self._link.read([(b"SMEMBERS", self._layout.sustained(sid))])
        for ino in members:
            yield int(ino)

    async def forget_session(self, sid: int) -> None:
        await scans.forget_session(self._link, self._layout, sid)

    async def deleted_files(self) -> AsyncIterator[tuple[int, int, int]]:
        (pairs,) = await self._link.read([(b"ZRANGE", self._layout.deleted_files, 0, -1, b"WITHSCORES")])
        for member, raw in zip(pairs[::2], pairs[1::2], strict=True):
            ino, length = scans.split_pair(member, b":")
            yield ino, length, score(raw) or 0

    async def delayed_slices(self) -> AsyncIterator[tuple[int, int, bytes]]:
        seen: set[bytes] = set()
        async for field, records in scans.hash_items(self._link, self._layout.delayed):
            if field not in seen:
                seen.add(field)
                slice_id, since = scans.split_pair(field, b"_")
                yield slice_id, since, records

    async def unreferenced_slices(self) -> AsyncIterator[tuple[int, int]]:
        seen: set[bytes] = set()
        async for field, extra in scans.hash_items(self._link, self._layout.slice_refs):
            if extra.startswith(b"-") and field not in seen:
                seen.add(field)
                yield scans.split_slice_field(field)

    async def chunk_indexes(self, ino: int, length: int | None = None) -> list[int]:
        below = None if length is None else (length + (1 << _CHUNK_BITS) - 1) >> _CHUNK_BITS
        if below is not None and below > _SEARCH_ABOVE:
            below = None
        return await scans.chunk_indexes(self._link, self._layout, ino, below)

    async def nodes(self) -> AsyncIterator[tuple[int, Attr]]:
        async for ino, raw in scans.nodes(self._link, self._layout):
            yield ino, unpack_attr(raw)

    async def chunks(self) -> AsyncIterator[tuple[int, int, bytes]]:
        async for ino, indx, records in scans.chunks(self._link, self._layout):
            yield ino, indx, joined(ChunkKey(ino, indx), records) or b""

    def scan(self, kind: type[K]) -> AsyncIterator[tuple[K, Any]]:
        from jfs.meta.engines.redis import examine  # for checks only

        return examine.SCANS[kind](self._link, self._layout)

    async def flaws(self, *, repair: bool) -> list[str]:
        return []

    async def logged(self) -> int:
        (length,) = await self._link.read([(b"LLEN", self._layout.change_log)])
        return int(length)

    async def oldest_logged(self, count: int) -> list[bytes]:
        (lines,) = await self._link.read([(b"LRANGE", self._layout.change_log, 0, count - 1)])
        return list(lines)

    async def last_logged(self) -> int:
        (raw,) = await self._link.read([(b"GET", self._layout.logged)])
        return int(raw or 0)

    async def logged_after(self, version: int, count: int) -> list[tuple[int, bytes]]:
        start, first = 0, None
        while True:  # until the place of the first entry is known, and was still that when they were read
            transaction: list[Command] = [
                (b"MULTI",),
                (b"GET", self._layout.logged),
                (b"LLEN", self._layout.change_log),
                (b"LRANGE", self._layout.change_log, start, start if first is None else start + count - 1),
                (b"EXEC",),
            ]
            last, length, lines = (await self._link.read(transaction))[-1]
            begin = int(last or 0) - length + 1
            if first == begin:
                return list(enumerate(lines, begin + start))
            first, start = begin, max(version + 1 - begin, 0)

    async def forget_logged(self, count: int) -> None:
        await self._link.change([(b"LTRIM", self._layout.change_log, count, -1)])

    async def is_blank(self) -> bool:
        return await scans.is_blank(self._link, self._layout)

    async def reset(self) -> None:
        self._known_stats.clear()
        self._scripts.cache.clear()
        await scans.remove_volume(self._link, self._layout)

    async def close(self) -> None:
        await self._link.close()
