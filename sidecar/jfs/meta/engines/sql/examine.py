"""Whole kinds of records out of a database server, for checks: page by page, by the columns that are unique.

A record that does not decode comes as a CorruptRecord in its place. Locks are all rows of an inode, and few: one look at all of
them. Reads only.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Final

from jfs.errors import CorruptRecord
from jfs.meta.engines.sql.kinds import DIRECTORY_QUOTA, OWNER_QUOTA, Row, RowKind, decode, kind_of, row_kind
from jfs.meta.engines.sql.link import Link
from jfs.meta.engines.sql.statements import Statements
from jfs.meta.model.acl import AclKey
from jfs.meta.model.keys import (
    ChunkKey,
    DetachedKey,
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
from jfs.meta.model.quota import DIRECTORY, QuotaKey

Found = tuple[Any, Any]  # a key and its record
_PAGE: Final = 4096

# Kind of record, the columns to go by, those of the key, and the key they make.
_SCANS: Final[dict[type, tuple[RowKind, Sequence[str], Callable[..., Any]]]] = {
    NodeKey: (row_kind("node"), ("inode",), NodeKey),
    EdgeKey: (row_kind("edge"), ("id",), EdgeKey),
    SymlinkKey: (row_kind("symlink"), ("inode",), SymlinkKey),
    XattrKey: (row_kind("xattr"), ("id",), XattrKey),
    ChunkKey: (row_kind("chunk"), ("inode", "indx"), ChunkKey),
    SliceRefKey: (row_kind("sliceref"), ("chunkid",), SliceRefKey),
    DirStatKey: (row_kind("dirstat"), ("inode",), DirStatKey),
    SustainedKey: (row_kind("sustained"), ("sid", "inode"), SustainedKey),
    DetachedKey: (row_kind("detached"), ("inode",), DetachedKey),
    AclKey: (row_kind("acl"), ("id",), AclKey),
}


async def scan(link: Link[Any], statements: Statements, kind: type) -> AsyncIterator[Found]:
    """See `jfs.meta.store.base.Store.scan`."""
    if kind is ParentKey:
        async for found in _parents(link, statements):
            yield found
    elif kind is FlockKey or kind is PlockKey:
        async for found in _locks(link, statements, kind):
            yield found
    elif kind is QuotaKey:
        async for found in _rows(link, statements, DIRECTORY_QUOTA, ("inode",), lambda ino: QuotaKey(DIRECTORY, ino)):
            yield found
        async for found in _rows(link, statements, OWNER_QUOTA, ("qtype", "qkey"), QuotaKey):
            yield found
    else:
        async for found in _rows(link, statements, *_SCANS[kind]):
            yield found


async def _rows(
    link: Link[Any], statements: Statements, kind: RowKind, by: Sequence[str], make: Callable[..., Any]
) -> AsyncIterator[Found]:
    order, marks = ",".join(map(link.dialect.quote, by)), ",".join("?" * len(by))
    keys = statements.expressions(kind.keys)
    values = "1" if kind.table == "xattr" else statements.expressions(kind.values)
    after: tuple[int, ...] = (-(1 << 31),) * len(by)
    while True:
        rows = await link.rows(
            f"SELECT {order},{keys},{values} FROM {statements.table(kind.table)} WHERE ({order})>({marks}) "
            f"ORDER BY {order} LIMIT {_PAGE}",
            after,
        )
        for row in rows:
            key = make(*row[len(by) : len(by) + len(kind.keys)])
            yield key, _record(kind, key, tuple(row)[len(by) + len(kind.keys) :])
        if len(rows) < _PAGE:
            return
        after = tuple(rows[-1])[: len(by)]


def _record(kind: RowKind, key: Any, row: Row) -> Any:
    if isinstance(key, XattrKey):
        return b""
    try:
        return decode(kind, key, [row])
    except CorruptRecord as error:
        return error


async def _locks(link: Link[Any], statements: Statements, kind: type) -> AsyncIterator[Found]:
    table = statements.table("flock" if kind is FlockKey else "plock")
    for (ino,) in await link.rows(f"SELECT DISTINCT inode FROM {table}"):
        key = kind(ino)
        (rows,) = await link.read([statements.read(key)])
        yield key, decode(kind_of(key), key, rows)


async def _parents(link: Link[Any], statements: Statements) -> AsyncIterator[Found]:
    """There are no records of parents in SQL: the entries of files that have no parent of their own say it."""
    kind = link.dialect.quote("type")
    files = (
        f"SELECT inode FROM {statements.table('node')} WHERE coalesce(parent,0)=0 AND {kind}<>2 AND inode>? "
        f"ORDER BY inode LIMIT {_PAGE}"
    )
    after = -1
    while True:
        inodes = [ino for (ino,) in await link.rows(files, (after,))]
        if inodes:
            listed = ",".join(map(str, inodes))
            for ino, parent, count in await link.rows(
                f"SELECT inode,parent,count(*) FROM {statements.table('edge')} WHERE inode IN ({listed}) GROUP BY inode,parent"
            ):
                yield ParentKey(ino, parent), count
        if len(inodes) < _PAGE:
            return
        after = inodes[-1]
