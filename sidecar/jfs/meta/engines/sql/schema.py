"""JuiceFS 1.4's tables on database servers, and the sync that adds what an existing database lacks (format §4.2.2, §4.2.3).

Columns, keys and index names are those the real client's ORM makes. The sync only adds, as the real client's does. What makes
names case-insensitive in MySQL, its default collation, is kept from our tables, since names of attributes differ by case.
"""

import logging
from collections.abc import Iterator
from typing import Final, NamedTuple

from jfs.errors import Conflict, StoreUnavailable, VolumeError
from jfs.meta.engines.sql.dialect import Dialect
from jfs.meta.engines.sql.link import Link

log = logging.getLogger(__name__)


class Column(NamedTuple):
    """A column: name, kind (a key of `_TYPES`), and what is behind the type."""

    name: str
    kind: str
    constraint: str = "NOT NULL"


class Table(NamedTuple):
    """A table: columns, primary key, indexes as (unique, name's tail, columns)."""

    name: str
    columns: tuple[Column, ...]
    primary_key: tuple[str, ...]
    indexes: tuple[tuple[bool, str, tuple[str, ...]], ...] = ()


_TYPES: Final = {
    "postgres": {
        "long": "BIGINT",
        "int": "INTEGER",
        "string": "VARCHAR(255)",
        "text": "TEXT",
        "blob": "BYTEA",
        "name": "BYTEA",
        "target": "BYTEA",
        "id": "BIGSERIAL",
        "id32": "SERIAL",
    },
    "mysql": {
        "long": "BIGINT",
        "int": "INT",
        "string": "VARCHAR(255)",
        "text": "TEXT",
        "blob": "BLOB",
        "name": "VARBINARY(255)",
        "target": "VARBINARY(4096)",
        "id": "BIGINT AUTO_INCREMENT",
        "id32": "INT AUTO_INCREMENT",
    },
}
_NULL: Final = "NULL"


def _of(kind: str, *names: str, constraint: str = "NOT NULL") -> tuple[Column, ...]:
    return tuple(Column(name, kind, constraint) for name in names)


_ID: Final = Column("id", "id")
_INODE: Final = _of("long", "inode")
_QUOTA: Final = _of("long", "max_space", "max_inodes", "used_space", "used_inodes")

TABLES: Final = (
    Table("setting", (*_of("string", "name"), *_of("text", "value")), ("name",)),
    Table("counter", (*_of("string", "name"), *_of("long", "value")), ("name",)),
    Table(
        "edge",
        (_ID, *_of("long", "parent"), *_of("name", "name"), *_INODE, *_of("int", "type")),
        ("id",),
        ((True, "edge", ("parent", "name")), (False, "inode", ("inode",))),
    ),
    Table(
        "node",
        (
            *_INODE,
            *_of("int", "type", "flags", "mode", "uid", "gid"),
            *_of("long", "atime", "mtime", "ctime"),
            *_of("int", "atimensec", "mtimensec", "ctimensec", constraint="DEFAULT 0 NOT NULL"),
            *_of("int", "nlink"),
            *_of("long", "length"),
            *_of("int", "rdev", constraint=_NULL),
            *_of("long", "parent", constraint=_NULL),
            *_of("int", "access_acl_id", "default_acl_id", "tier_id", constraint=_NULL),
        ),
        ("inode",),
    ),
    Table("symlink", (*_INODE, *_of("target", "target")), ("inode",)),
    Table(
        "xattr",
        (_ID, *_INODE, *_of("string", "name"), *_of("blob", "value")),
        ("id",),
        ((True, "name", ("inode", "name")),),
    ),
    Table(
        "chunk",
        (_ID, *_INODE, *_of("int", "indx"), *_of("blob", "slices")),
        ("id",),
        ((True, "chunk", ("inode", "indx")),),
    ),
    Table(
        "chunk_ref", (*_of("long", "chunkid"), *_of("int", "size", "refs")), ("chunkid",), ((False, "refs", ("refs",)),)
    ),
    Table("delslices", (*_of("long", "chunkid", "deleted"), *_of("blob", "slices")), ("chunkid",)),
    Table("session2", (*_of("long", "sid", "expire"), *_of("blob", "info", constraint=_NULL)), ("sid",)),
    Table("sustained", (_ID, *_of("long", "sid", "inode")), ("id",), ((True, "sustained", ("sid", "inode")),)),
    Table("delfile", (*_INODE, *_of("long", "length", "expire")), ("inode",)),
    Table(
        "flock",
        (_ID, *_of("long", "inode", "sid", "owner"), *_of("int", "ltype")),
        ("id",),
        ((True, "flock", ("inode", "sid", "owner")),),
    ),
    Table(
        "plock",
        (_ID, *_of("long", "inode", "sid", "owner"), *_of("blob", "records")),
        ("id",),
        ((True, "plock", ("inode", "sid", "owner")),),
    ),
    Table("dir_quota", (*_INODE, *_QUOTA), ("inode",)),
    Table("user_group_quota", (*_of("int", "qtype"), *_of("long", "qkey"), *_QUOTA), ("qtype", "qkey")),
    Table("dir_stats", (*_INODE, *_of("long", "data_length", "used_space", "used_inodes")), ("inode",)),
    Table("detached_node", (*_INODE, *_of("long", "added")), ("inode",)),
    Table(
        "acl",
        (
            Column("id", "id32"),
            *_of("int", "owner", "group", "mask", "other", constraint=_NULL),
            *_of("blob", "named_users", "named_groups", constraint=_NULL),
        ),
        ("id",),
    ),
    Table("delegation_token", (Column("id", "id32"), *_of("blob", "token", constraint=_NULL)), ("id",)),
    Table("change_log", (_ID, *_of("text", "entry")), ("id",)),
)


def missing_statements(
    dialect: Dialect, prefix: str, tables: dict[str, dict[str, str]], indexes: frozenset[str]
) -> Iterator[str]:
    """DDL that adds what is not in *tables* (columns by table) and *indexes*."""
    quote, types = dialect.quote, _TYPES[dialect.name]
    for table in TABLES:
        name = prefix + table.name
        present = tables.get(name)
        if present is None:
            parts = [f"{quote(column.name)} {types[column.kind]} {column.constraint}" for column in table.columns]
            parts.append(f"PRIMARY KEY ({','.join(map(quote, table.primary_key))})")
            options = " DEFAULT CHARSET utf8mb4 COLLATE utf8mb4_bin" if dialect.name == "mysql" else ""
            yield f"CREATE TABLE IF NOT EXISTS {quote(name)} ({', '.join(parts)}){options}"
        else:
            for column in table.columns:
                if column.name not in present and not column.kind.startswith("id"):
                    yield f"ALTER TABLE {quote(name)} ADD COLUMN {quote(column.name)} {types[column.kind]} {column.constraint}"
        for unique, tail, columns in table.indexes:
            index = f"{'UQE' if unique else 'IDX'}_{name}_{tail}"
            if index not in indexes:
                on = ",".join(map(quote, columns))
                yield f"CREATE {'UNIQUE ' if unique else ''}INDEX {quote(index)} ON {quote(name)} ({on})"


async def sync(link: Link[object]) -> None:
    """Add what is missing. Two clients may do it at once: what the other one made meanwhile is no error."""
    statements = list(missing_statements(link.dialect, link.prefix, await link.tables(), await link.indexes()))
    for statement in statements:
        try:
            await link.run(statement)
        except (Conflict, StoreUnavailable) as error:
            remaining = missing_statements(link.dialect, link.prefix, await link.tables(), await link.indexes())
            if statement in remaining:
                if statement.startswith("CREATE TABLE"):
                    raise
                log.warning("left out while completing the tables: %s (%s)", statement, error)


def check_names(prefix: str, tables: dict[str, dict[str, str]]) -> None:
    """VolumeError when entry names are kept in a way that does not hold every name (format §4.2.3)."""
    kind = tables.get(f"{prefix}edge", {}).get("name", "bytea").lower()
    if "char" in kind and "varying" in kind:
        raise VolumeError(
            f"the table {prefix}edge is of a client before 1.0, whose names are text; mount the volume once with juicefs 1.x, "
            "or dump and load it"
        )
