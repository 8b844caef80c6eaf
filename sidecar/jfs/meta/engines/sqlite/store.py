"""The store over an SQLite file.

Everything runs in the event-loop thread: a hop to an executor costs more than a transaction (performance notes). A
transaction suspends only when another process's is under way, or when it shares its commit with others (`group`). Listings
read page by page, each page in one statement, so no read transaction stays open between them.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from functools import partial
from typing import Any, TypeVar

from jfs.meta.engines.rows import RowPage, from_row
from jfs.meta.engines.sqlite import schema
from jfs.meta.engines.sqlite.group import GroupedDatabase
from jfs.meta.engines.sqlite.transaction import SqliteTx
from jfs.meta.engines.sqlite.url import SqliteAddress
from jfs.meta.engines.tables import TABLES
from jfs.meta.model.attr import Attr, Entry
from jfs.meta.model.keys import EdgeKey, Key, Session
from jfs.meta.store.base import Tx
from jfs.meta.store.change_log import incremented
from jfs.meta.store.retry import TransactionRunner

K = TypeVar("K")
T = TypeVar("T")

_PAGE = 4096
_FIRST = 384  # entries of a listing's first page: about what the kernel asks for at once
_LATER = 1024  # of the others, which are read while it takes in earlier ones
_OLD_SESSION_LIFE = 300  # seconds from a heartbeat record to its end (format §4.1.2)


class SqliteStore(TransactionRunner):
    """A volume's records in an SQLite file."""

    name = "sqlite3"
    locks_directories = False
    missing_slice = SqliteTx.MISSING_SLICE
    initial_counters: Mapping[str, int] = {
        "nextInode": 2,
        "nextChunk": 1,
        "nextSession": 0,
        "usedSpace": 0,
        "totalInodes": 0,
        "nextCleanupSlices": 0,
    }

    def __init__(self, address: SqliteAddress) -> None:
        super().__init__()
        self._database = GroupedDatabase(address)
        self._p = address.table_prefix

    async def open(self) -> None:
        """Open the file when there is one; complete its tables. VolumeError, StoreUnavailable."""
        await self._database.open()

    async def _attempt(self, operation: Callable[[Tx], Awaitable[T]], number: int) -> T:
        return await self._database.run(operation, self.change_log, alone=number > 0)

    async def get(self, *keys: Key[Any]) -> tuple[Any, ...]:
        return await self._database.read(lambda: self._get(keys))

    def _get(self, keys: tuple[Key[Any], ...]) -> tuple[Any, ...]:
        readers = self._database.records.readers
        return tuple([readers[key.kind](key) for key in keys])

    async def lookup(self, parent: int, name: bytes) -> tuple[Entry, Attr | None] | None:
        return await self._database.read(lambda: self._database.records.lookup(EdgeKey(parent, name)))

    async def list_directory(self, ino: int, *, plus: bool) -> AsyncIterator[RowPage]:
        after: bytes | None = b""  # no name is empty
        count = _FIRST
        while after is not None:
            rows, after = await self._database.read(partial(self._page, ino, after, count, plus))
            count = _LATER
            if rows:
                yield RowPage(rows, plus=plus)

    def _page(self, ino: int, after: bytes, count: int, plus: bool) -> tuple[list[tuple[Any, ...]], bytes | None]:
        records = self._database.records
        select = "SELECT e.name,e.type,e.inode"
        source = f"FROM {self._p}edge e"
        if plus:
            select += f",n.inode,{records.node_columns}"
            source += f" LEFT JOIN {self._p}node n ON n.inode=e.inode"
        execute = self._database.connection.execute
        if records.old_names:  # two kinds of names do not sort together: all in one page
            return execute(f"{select} {source} WHERE e.parent=?", (ino,)).fetchall(), None
        rows = execute(
            f"{select} {source} WHERE e.parent=? AND e.name>? ORDER BY e.name LIMIT ?", (ino, after, count)
        ).fetchall()
        return rows, rows[-1][0] if len(rows) == count else None

    async def allot(self, counter: str, count: int) -> int:
        return await self._increment(counter, count) - count

    async def next_id(self, counter: str) -> int:
        return await self._increment(counter, 1)

    async def _increment(self, counter: str, count: int) -> int:
        async with self._database.transaction():
            execute = self._database.connection.execute
            execute(
                f"INSERT INTO {self._p}counter(name,value) VALUES(?,?) ON CONFLICT DO NOTHING",
                (counter, self.initial_counters.get(counter, 0)),
            )
            execute(f"UPDATE {self._p}counter SET value=value+? WHERE name=?", (count, counter))
            value: int = execute(f"SELECT value FROM {self._p}counter WHERE name=?", (counter,)).fetchone()[0]
            if self.change_log is not None and counter != "nextTrash":  # which the real client does not log
                self._database.records.log([self.change_log.line(incremented(counter, count))])
        return value

    async def _rows(self, sql: str, parameters: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        return await self._database.read(lambda: self._database.connection.execute(sql, parameters).fetchall())

    async def _has_table(self, name: str) -> bool:
        return bool(await self._rows("SELECT 1 FROM sqlite_master WHERE type='table' AND name=?", (self._p + name,)))

    async def sessions(self) -> AsyncIterator[tuple[int, Session]]:
        for sid, expire, info in await self._rows(
            f"SELECT sid,expire,ifnull(CAST(info AS BLOB),x'') FROM {self._p}session2 ORDER BY expire"
        ):
            yield sid, Session(expire, info)
        if await self._has_table("session"):
            for sid, heartbeat, info in await self._rows(
                f"SELECT sid,heartbeat,ifnull(CAST(info AS BLOB),x'') FROM {self._p}session ORDER BY heartbeat"
            ):
                yield sid, Session(heartbeat + _OLD_SESSION_LIFE, info)

    async def sustained(self, sid: int) -> AsyncIterator[int]:
        for (ino,) in await self._rows(f"SELECT inode FROM {self._p}sustained WHERE sid=?", (sid,)):
            yield ino

    async def forget_session(self, sid: int) -> None:
        tables = ["flock", "plock", "sustained", "session2"]
        if await self._has_table("session"):
            tables.append("session")
        async with self._database.transaction():
            for table in tables:
                self._database.connection.execute(f"DELETE FROM {self._p}{table} WHERE sid=?", (sid,))

    async def deleted_files(self) -> AsyncIterator[tuple[int, int, int]]:
        for ino, length, since in await self._rows(
            f"SELECT inode,length,expire FROM {self._p}delfile ORDER BY expire,inode"
        ):
            yield ino, length, since

    async def delayed_slices(self) -> AsyncIterator[tuple[int, int, bytes]]:
        for slice_id, since, records in await self._rows(
            f"SELECT chunkid,deleted,CAST(slices AS BLOB) FROM {self._p}delslices ORDER BY deleted"
        ):
            yield slice_id, since, records

    async def unreferenced_slices(self) -> AsyncIterator[tuple[int, int]]:
        for slice_id, size in await self._rows(f"SELECT chunkid,size FROM {self._p}chunk_ref WHERE refs<=0"):
            yield slice_id, size

    async def chunk_indexes(self, ino: int, length: int | None = None) -> list[int]:
        return [
            indx for (indx,) in await self._rows(f"SELECT indx FROM {self._p}chunk WHERE inode=? ORDER BY indx", (ino,))
        ]

    async def nodes(self) -> AsyncIterator[tuple[int, Attr]]:
        after = -1
        while True:
            rows = await self._rows(
                f"SELECT n.inode,{self._database.records.node_columns} FROM {self._p}node n WHERE n.inode>? "
                f"ORDER BY n.inode LIMIT {_PAGE}",
                (after,),
            )
            for row in rows:
                yield row[0], from_row(row[1:])
            if len(rows) < _PAGE:
                return
            after = rows[-1][0]

    async def chunks(self) -> AsyncIterator[tuple[int, int, bytes]]:
        after = (-1, -1)
        while True:
            rows = await self._rows(
                f"SELECT inode,indx,CAST(slices AS BLOB) FROM {self._p}chunk WHERE (inode,indx)>(?,?) "
                f"ORDER BY inode,indx LIMIT {_PAGE}",
                after,
            )
            for ino, indx, records in rows:
                yield ino, indx, records
            if len(rows) < _PAGE:
                return
            after = (rows[-1][0], rows[-1][1])

    def scan(self, kind: type[K]) -> AsyncIterator[tuple[K, Any]]:
        from jfs.meta.engines.sqlite import examine  # for checks only

        return examine.scan(self._database, self._p, kind)

    async def flaws(self, *, repair: bool) -> list[str]:
        from jfs.meta.engines.sqlite import examine

        return await examine.flaws(self._database, self._p, repair=repair)

    async def logged(self) -> int:
        ((length,),) = await self._rows(f"SELECT count(*) FROM {self._p}change_log")
        return int(length)

    async def oldest_logged(self, count: int) -> list[bytes]:
        sql = f"SELECT CAST(entry AS BLOB) FROM {self._p}change_log ORDER BY id LIMIT ?"
        return [entry for (entry,) in await self._rows(sql, (count,))]

    async def last_logged(self) -> int:
        ((last,),) = await self._rows(f"SELECT coalesce(max(id),0) FROM {self._p}change_log")
        return int(last)

    async def logged_after(self, version: int, count: int) -> list[tuple[int, bytes]]:
        sql = f"SELECT id,CAST(entry AS BLOB) FROM {self._p}change_log WHERE id>? ORDER BY id LIMIT ?"
        return [(number, entry) for number, entry in await self._rows(sql, (version, count))]

    async def forget_logged(self, count: int) -> None:
        table = f"{self._p}change_log"
        async with self._database.transaction():
            self._database.connection.execute(
                f"DELETE FROM {table} WHERE id IN (SELECT id FROM {table} ORDER BY id LIMIT ?)", (count,)
            )

    async def is_blank(self) -> bool:
        return await self._database.read(self._is_blank)

    def _is_blank(self) -> bool:
        connection = self._database.connection
        known = {table.name for table in TABLES} | {"session"}
        present = schema.inspect(connection, self._p).tables.keys() & known
        return not any(connection.execute(f"SELECT 1 FROM `{self._p}{table}` LIMIT 1").fetchone() for table in present)

    async def reset(self) -> None:
        async with self._database.transaction():
            connection = self._database.connection
            known = {table.name for table in TABLES} | {"session"}
            for table in schema.inspect(connection, self._p).tables.keys() & known:
                connection.execute(f"DROP TABLE `{self._p}{table}`")
            schema.sync(connection, self._p)

    async def close(self) -> None:
        await self._database.close()
