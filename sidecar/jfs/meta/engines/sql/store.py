"""The store over a database server.

Attempts read without a transaction and commit by one text (`transaction`); a result or an error leaves an attempt only when a
last query agrees to its reads, or they were one query. A database without tables is a blank one: they are made by the first
write. Listings and scans read page by page, by key, so that nothing stays open at the server between them.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

from jfs.errors import Conflict
from jfs.meta.engines.rows import RowPage, from_row
from jfs.meta.engines.sql import schema
from jfs.meta.engines.sql.kinds import Row, decode, kind_of
from jfs.meta.engines.sql.link import Link, Unanswered
from jfs.meta.engines.sql.statements import Statements
from jfs.meta.engines.sql.transaction import SqlTx
from jfs.meta.engines.tables import TABLES
from jfs.meta.model.attr import Attr, Entry
from jfs.meta.model.keys import EdgeKey, Key, NodeKey, Session
from jfs.meta.store.base import Tx
from jfs.meta.store.change_log import incremented
from jfs.meta.store.outcome import was_made
from jfs.meta.store.remembered import Remembered
from jfs.meta.store.retry import TransactionRunner

K = TypeVar("K")
T = TypeVar("T")

_PAGE: Final = 4096
_FIRST_PAGE: Final = 512  # of a listing: about what the kernel asks for at once
_OLD_SESSION_LIFE: Final = 300  # seconds from a heartbeat record to its end (format §4.2.2)


class SqlStore(TransactionRunner):
    """A volume's records at a database server."""

    missing_slice = SqlTx.MISSING_SLICE

    initial_counters: Mapping[str, int] = {
        "nextInode": 2,
        "nextChunk": 1,
        "nextSession": 0,
        "usedSpace": 0,
        "totalInodes": 0,
        "nextCleanupSlices": 0,
    }

    def __init__(self, link: Link[Any]) -> None:
        super().__init__()
        self._link = link
        self.name = link.dialect.name
        self._statements = Statements(link.dialect, link.prefix)
        self._remembered: Remembered[Key[Any], Sequence[Row]] = Remembered()
        self._made = False  # whether the tables are there

    async def open(self) -> None:
        """Connect; complete the tables when there is a volume. StoreUnavailable, CredentialsRefused, VolumeError."""
        await self._link.open()
        tables = await self._link.tables()
        schema.check_names(self._link.prefix, tables)
        if self._link.prefix + "setting" in tables:
            await self._make()

    async def _make(self) -> None:
        await schema.sync(self._link)
        self._made = True

    async def _attempt(self, operation: Callable[[Tx], Awaitable[T]], number: int) -> T:
        tx = SqlTx(self._link.read, self._statements, self._remembered, trust=number == 0)
        tx.keep_journal(self.change_log)
        try:
            result = await operation(tx)
        except Conflict:
            raise
        except Exception:
            if tx.needs_check:
                await self.verify(tx)
            raise
        if tx.changes_anything():
            if not self._made:
                await self._make()
            try:
                await self._commit(tx)
            except BaseException:  # what was read is wrong, or may be by now
                tx.forget()
                raise
            tx.remember_writes()
        elif tx.needs_check:
            await self.verify(tx)
        return result

    async def _commit(self, tx: SqlTx) -> None:
        try:
            await self._link.run(tx.script())
        except Unanswered as lost:
            if not await was_made(tx, _Witness(self, tx, lost.name), str(lost)):
                raise Conflict from lost

    async def end(self, name: str) -> bool:
        """Have the server end the connection of that name; whether that is certain. StoreAway."""
        return await self._link.end(name)

    async def verify(self, tx: SqlTx) -> None:
        """Conflict unless everything that the attempt has read holds at one moment."""
        single, wide = tx.checks(locking=False)
        conditions = " AND ".join((*single, *wide))
        (row,) = await self._link.rows(f"SELECT CASE WHEN {conditions} THEN 1 ELSE 0 END") or [(1,)]
        if not row[0]:
            tx.forget()
            raise Conflict

    async def get(self, *keys: Key[Any]) -> tuple[Any, ...]:
        found = await self._link.read([self._statements.read(key) for key in keys])
        records = []
        for key, rows in zip(keys, found, strict=True):
            records.append(decode(kind_of(key), key, rows))
            if key.kind in ("node", "edge"):
                self._remembered.put(key, rows)
        return tuple(records)

    async def lookup(self, parent: int, name: bytes) -> tuple[Entry, Attr | None] | None:
        (rows,) = await self._link.read([self._statements.lookup(parent, name)])
        key = EdgeKey(parent, name)
        if not rows:
            self._remembered.put(key, ())
            return None
        kind, ino, present, *values = rows[0]
        self._remembered.put(key, ((kind, ino),))
        if present is None:
            return Entry(kind, ino), None
        self._remembered.put(NodeKey(ino), (tuple(values),))
        return Entry(kind, ino), from_row(tuple(values))

    async def list_directory(self, ino: int, *, plus: bool) -> AsyncIterator[RowPage]:
        after, limit = b"", _FIRST_PAGE  # no name is empty
        while True:
            (rows,) = await self._link.read([self._statements.page(ino, after, limit, plus=plus)])
            if rows:
                yield RowPage(rows, plus=plus)
            if len(rows) < limit:
                return
            after, limit = rows[-1][0], _PAGE

    async def allot(self, counter: str, count: int) -> int:
        return await self._increment(counter, count) - count

    async def next_id(self, counter: str) -> int:
        return await self._increment(counter, 1)

    async def _increment(self, counter: str, count: int) -> int:
        if not self._made:
            await self._make()
        value = await self._link.increment(counter, count, self.initial_counters.get(counter, 0))
        if self.change_log is not None and counter != "nextTrash":  # which the real client does not log
            await self._link.run(self._statements.log_entry(self.change_log.line(incremented(counter, count))))
        return value

    async def _pages(self, table: str, columns: str, keys: Sequence[str]) -> AsyncIterator[Row]:
        """All rows of a table, their numeric *keys* (unique together) first, then *columns*."""
        quoted = [self._link.dialect.quote(key) for key in keys]
        order, marks = ",".join(quoted), ",".join("?" * len(keys))
        after: tuple[int, ...] = (-(1 << 31),) * len(keys)
        while True:
            rows = await self._link.rows(
                f"SELECT {order}{',' if columns else ''}{columns} FROM {self._statements.table(table)} "
                f"WHERE ({order})>({marks}) ORDER BY {order} LIMIT {_PAGE}",
                after,
            )
            for row in rows:
                yield row
            if len(rows) < _PAGE:
                return
            after = tuple(rows[-1][: len(keys)])

    async def sessions(self) -> AsyncIterator[tuple[int, Session]]:
        empty = self._link.dialect.literal(b"")
        for sid, expire, info in await self._link.rows(
            f"SELECT sid,expire,coalesce(info,{empty}) FROM {self._statements.table('session2')} ORDER BY expire"
        ):
            yield sid, Session(expire, info)
        for sid, heartbeat, info in await self._link.rows(  # where there is no such table it has no rows
            f"SELECT sid,heartbeat,coalesce(info,{empty}) FROM {self._statements.table('session')} ORDER BY heartbeat"
        ):
            yield sid, Session(heartbeat + _OLD_SESSION_LIFE, info)

    async def sustained(self, sid: int) -> AsyncIterator[int]:
        for (ino,) in await self._link.rows(
            f"SELECT inode FROM {self._statements.table('sustained')} WHERE sid=?", (sid,)
        ):
            yield ino

    async def forget_session(self, sid: int) -> None:
        present = await self._link.tables()
        texts = [
            f"DELETE FROM {self._statements.table(table)} WHERE sid={sid}"
            for table in ("flock", "plock", "sustained", "session2", "session")
            if self._link.prefix + table in present
        ]
        if texts:
            await self._link.run(self._link.dialect.script(texts))

    async def deleted_files(self) -> AsyncIterator[tuple[int, int, int]]:
        table = self._statements.table("delfile")
        for ino, length, since in await self._link.rows(
            f"SELECT inode,length,expire FROM {table} ORDER BY expire,inode"
        ):
            yield ino, length, since

    async def delayed_slices(self) -> AsyncIterator[tuple[int, int, bytes]]:
        table = self._statements.table("delslices")
        for slice_id, since, records in await self._link.rows(
            f"SELECT chunkid,deleted,slices FROM {table} ORDER BY deleted"
        ):
            yield slice_id, since, records

    async def unreferenced_slices(self) -> AsyncIterator[tuple[int, int]]:
        table = self._statements.table("chunk_ref")
        for slice_id, size in await self._link.rows(f"SELECT chunkid,size FROM {table} WHERE refs<=0"):
            yield slice_id, size

    async def chunk_indexes(self, ino: int, length: int | None = None) -> list[int]:
        table = self._statements.table("chunk")
        rows = await self._link.rows(f"SELECT indx FROM {table} WHERE inode=? ORDER BY indx", (ino,))
        return [indx for (indx,) in rows]

    async def nodes(self) -> AsyncIterator[tuple[int, Attr]]:
        after = -1
        while True:
            (rows,) = await self._link.read([self._statements.nodes(after, _PAGE)])
            for row in rows:
                yield row[0], from_row(tuple(row)[1:])
            if len(rows) < _PAGE:
                return
            after = rows[-1][0]

    async def chunks(self) -> AsyncIterator[tuple[int, int, bytes]]:
        async for ino, indx, records in self._pages("chunk", "slices", ("inode", "indx")):
            yield ino, indx, records

    def scan(self, kind: type[K]) -> AsyncIterator[tuple[K, Any]]:
        from jfs.meta.engines.sql import examine  # for checks only

        return examine.scan(self._link, self._statements, kind)

    async def flaws(self, *, repair: bool) -> list[str]:
        return []

    async def logged(self) -> int:
        rows = await self._link.rows(f"SELECT count(*) FROM {self._statements.table('change_log')}")
        return rows[0][0] if rows else 0

    async def oldest_logged(self, count: int) -> list[bytes]:
        entry = self._link.dialect.text_as_bytes("entry")
        rows = await self._link.rows(
            f"SELECT {entry} FROM {self._statements.table('change_log')} ORDER BY id LIMIT {int(count)}"
        )
        return [line for (line,) in rows]

    async def last_logged(self) -> int:
        rows = await self._link.rows(f"SELECT coalesce(max(id),0) FROM {self._statements.table('change_log')}")
        return rows[0][0] if rows else 0

    async def logged_after(self, version: int, count: int) -> list[tuple[int, bytes]]:
        entry, table = self._link.dialect.text_as_bytes("entry"), self._statements.table("change_log")
        rows = await self._link.rows(
            f"SELECT id,{entry} FROM {table} WHERE id>{int(version)} ORDER BY id LIMIT {int(count)}"
        )
        return [(number, line) for number, line in rows]

    async def forget_logged(self, count: int) -> None:
        table = self._statements.table("change_log")
        rows = await self._link.rows(f"SELECT id FROM {table} ORDER BY id LIMIT 1 OFFSET {max(count - 1, 0)}")
        if rows and count > 0:
            await self._link.run(f"DELETE FROM {table} WHERE id<={rows[0][0]}")

    async def is_blank(self) -> bool:
        for table in await self._tables():
            if await self._link.rows(f"SELECT 1 FROM {table} LIMIT 1"):
                return False
        return True

    async def _tables(self) -> list[str]:
        present = await self._link.tables()
        names = [*(table.name for table in TABLES), "session"]
        return [self._statements.table(name) for name in names if self._link.prefix + name in present]

    async def reset(self) -> None:
        self._remembered.clear()
        if tables := await self._tables():
            await self._link.run(f"DROP TABLE {','.join(tables)}")
        await self._make()

    async def close(self) -> None:
        await self._link.close()


class _Witness:
    """See `jfs.meta.store.outcome.Witness`."""

    def __init__(self, store: SqlStore, tx: SqlTx, name: str) -> None:
        self._store = store
        self._tx = tx
        self._name = name

    async def end(self) -> bool:
        return await self._store.end(self._name)

    async def get(self, *keys: Key[Any]) -> tuple[Any, ...]:
        return await self._store.get(*keys)

    async def holds(self) -> bool:
        try:
            await self._store.verify(self._tx)
        except Conflict:
            return False
        return True


async def open_server(url: str, password: str) -> SqlStore:
    """The store at a `postgres://` or `mysql://` address, connected."""
    from jfs.meta.engines.sql.url import parse_mysql, parse_postgres

    link: Link[Any]
    if url.startswith("mysql:"):
        from jfs.meta.engines.sql.mysql import MysqlLink

        link = MysqlLink(parse_mysql(url, password))
    else:
        from jfs.meta.engines.sql.postgres import PostgresLink

        link = PostgresLink(parse_postgres(url, password))
    store = SqlStore(link)
    try:
        await store.open()
    except BaseException:
        await store.close()
        raise
    return store
