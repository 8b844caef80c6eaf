"""Whole kinds of records out of SQLite, for checks, and flaws of the form of its rows.

A scan reads pages by rowid, each in one statement, so that no read transaction stays open between them. `flaws` counts what no
scan shows: entry names that SQLite keeps as TEXT (a tool or an old client wrote them) are not found by clients that look for a
BLOB, and names of extended attributes the other way round (format §4.2.2).
"""

from collections.abc import AsyncIterator, Callable
from typing import Any, Final

from jfs.errors import CorruptRecord
from jfs.meta.engines.rows import from_row
from jfs.meta.engines.sqlite.acls import COLUMNS as ACL_COLUMNS
from jfs.meta.engines.sqlite.acls import from_columns
from jfs.meta.engines.sqlite.database import SqliteDatabase
from jfs.meta.engines.sqlite.locks import LockRecords
from jfs.meta.model.acl import AclKey
from jfs.meta.model.attr import Entry
from jfs.meta.model.keys import (
    ChunkKey,
    DetachedKey,
    DirStat,
    DirStatKey,
    EdgeKey,
    NodeKey,
    ParentKey,
    SliceRefKey,
    SustainedKey,
    SymlinkKey,
    XattrKey,
)
from jfs.meta.model.locks import FlockKey, PlockKey
from jfs.meta.model.quota import DIRECTORY, Quota, QuotaKey

Found = tuple[Any, Any]  # a key and its record
_PAGE: Final = 4096
_RECORD: Final = 24

# Table, columns, and what a row becomes.
_TABLES: Final[dict[type, tuple[str, str, Callable[[tuple[Any, ...]], Found]]]] = {
    EdgeKey: ("edge", "n.parent,n.name,n.type,n.inode", lambda row: (EdgeKey(row[0], row[1]), Entry(row[2], row[3]))),
    SymlinkKey: ("symlink", "n.inode,CAST(n.target AS BLOB)", lambda row: (SymlinkKey(row[0]), row[1])),
    XattrKey: ("xattr", "n.inode,n.name", lambda row: (XattrKey(row[0], row[1]), b"")),
    SliceRefKey: ("chunk_ref", "n.chunkid,n.size,n.refs", lambda row: (SliceRefKey(row[0], row[1]), row[2])),
    DirStatKey: (
        "dir_stats",
        "n.inode,n.data_length,n.used_space,n.used_inodes",
        lambda row: (DirStatKey(row[0]), DirStat._make(row[1:])),
    ),
    SustainedKey: ("sustained", "n.sid,n.inode", lambda row: (SustainedKey(row[0], row[1]), True)),
    DetachedKey: ("detached_node", "n.inode,n.added", lambda row: (DetachedKey(row[0]), row[1])),
    AclKey: ("acl", f"n.id,{ACL_COLUMNS}", lambda row: (AclKey(row[0]), from_columns(row[1:]))),
    NodeKey: ("node", "", lambda row: (NodeKey(row[0]), from_row(row[1:]))),
    ChunkKey: ("chunk", "n.inode,n.indx,CAST(n.slices AS BLOB)", lambda row: _chunk(row)),
}


def _chunk(row: tuple[Any, ...]) -> Found:
    ino, indx, records = row
    if len(records) % _RECORD:
        return ChunkKey(ino, indx), CorruptRecord(
            f"the slices of inode {ino}, chunk {indx}, have {len(records)} bytes, no multiple of {_RECORD}"
        )
    return ChunkKey(ino, indx), records


_QUOTAS: Final = (
    ("dir_quota", "n.inode", lambda row: (QuotaKey(DIRECTORY, row[0]), Quota._make(row[1:]))),
    ("user_group_quota", "n.qtype,n.qkey", lambda row: (QuotaKey(row[0], row[1]), Quota._make(row[2:]))),
)


async def scan(database: SqliteDatabase, prefix: str, kind: type) -> AsyncIterator[Found]:
    """See `jfs.meta.store.base.Store.scan`."""
    if kind is ParentKey:
        async for found in _parents(database, prefix):
            yield found
        return
    if kind is QuotaKey:
        for table, key, make in _QUOTAS:
            limits = "n.max_space,n.max_inodes,n.used_space,n.used_inodes"
            async for found in _table(database, prefix, table, f"{key},{limits}", make):
                yield found
        return
    if kind is FlockKey or kind is PlockKey:
        async for found in _locks(database, prefix, kind):
            yield found
        return
    table, columns, make = _TABLES[kind]
    if kind is NodeKey:
        columns = f"n.inode,{database.records.node_columns}"
    async for found in _table(database, prefix, table, columns, make):
        yield found


async def _table(
    database: SqliteDatabase, prefix: str, table: str, columns: str, make: Callable[[tuple[Any, ...]], Found]
) -> AsyncIterator[Found]:
    after = -(1 << 63)
    while True:
        sql = f"SELECT n.rowid,{columns} FROM {prefix}{table} n WHERE n.rowid>? ORDER BY n.rowid LIMIT {_PAGE}"
        rows = await _rows(database, sql, (after,))
        for row in rows:
            yield make(row[1:])
        if len(rows) < _PAGE:
            return
        after = rows[-1][0]


async def _locks(database: SqliteDatabase, prefix: str, kind: type) -> AsyncIterator[Found]:
    """A record is all rows of an inode. Locks are few: one look at all of them."""
    records = LockRecords(database.connection, prefix)

    def look() -> list[Found]:
        table = "flock" if kind is FlockKey else "plock"
        inodes = database.connection.execute(f"SELECT DISTINCT inode FROM {prefix}{table}").fetchall()
        if kind is FlockKey:
            return [(FlockKey(ino), records.read_flocks(FlockKey(ino))) for (ino,) in inodes]
        return [(PlockKey(ino), records.read_plocks(PlockKey(ino))) for (ino,) in inodes]

    for found in await database.read(look):
        yield found


async def _parents(database: SqliteDatabase, prefix: str) -> AsyncIterator[Found]:
    """There are no records of parents in SQL: the entries say it."""
    after = -1
    while True:
        sql = (
            f"SELECT e.inode,e.parent,count(*) FROM {prefix}edge e JOIN (SELECT inode FROM {prefix}node "
            f"WHERE ifnull(parent,0)=0 AND type!=2 AND inode>? ORDER BY inode LIMIT {_PAGE}) n ON n.inode=e.inode "
            "GROUP BY e.inode,e.parent"
        )
        last = await _rows(
            database,
            f"SELECT max(inode),count(*) FROM (SELECT inode FROM {prefix}node WHERE ifnull(parent,0)=0 AND type!=2 "
            f"AND inode>? ORDER BY inode LIMIT {_PAGE})",
            (after,),
        )
        for ino, parent, count in await _rows(database, sql, (after,)):
            yield ParentKey(ino, parent), count
        if last[0][1] < _PAGE:
            return
        after = last[0][0]


async def _rows(database: SqliteDatabase, sql: str, parameters: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    return await database.read(lambda: database.connection.execute(sql, parameters).fetchall())


# Table, the type its names must not have, the one they must have, what they are.
_NAMES: Final = (
    ("edge", "text", "BLOB", "names of entries are stored as TEXT, so that other clients do not find them"),
    (
        "xattr",
        "blob",
        "TEXT",
        "names of extended attributes are stored as BLOB, so that other clients do not find them",
    ),
)


async def flaws(database: SqliteDatabase, prefix: str, *, repair: bool) -> list[str]:
    """See `jfs.meta.store.base.Store.flaws`. A name whose right form is there too stays as it is."""
    found = []
    for table, wrong, right, what in _NAMES:
        if repair:
            async with database.transaction():
                database.connection.execute(
                    f"UPDATE OR IGNORE {prefix}{table} SET name=CAST(name AS {right}) WHERE typeof(name)='{wrong}'"
                )
        ((count,),) = await _rows(database, f"SELECT count(*) FROM {prefix}{table} WHERE typeof(name)='{wrong}'")
        if count:
            found.append(f"{count} {what}")
    return found
