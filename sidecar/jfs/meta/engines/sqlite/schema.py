"""JuiceFS 1.4's tables in SQLite (format §4.2.2, §4.2.3) and the sync that adds what an existing database lacks.

The texts are those the real client's ORM emits, so that a database made here is told from one made there by nothing.
The sync only adds tables, columns and indexes, as the real client's does; what it does not know it leaves alone. Databases
of 0.14.2 keep their TEXT names and have no `id` columns, which nothing in this engine asks for.
"""

import logging
import sqlite3
from typing import Final, NamedTuple

log = logging.getLogger(__name__)

_ID: Final = "`id` INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL"


class Table(NamedTuple):
    """A table: column definitions in order, a composite primary key, and indexes as (unique, name's tail, columns)."""

    name: str
    columns: tuple[str, ...]
    primary_key: tuple[str, ...] = ()
    indexes: tuple[tuple[bool, str, tuple[str, ...]], ...] = ()

    def create(self, prefix: str) -> str:
        """The CREATE TABLE statement."""
        parts = list(self.columns)
        if self.primary_key:
            parts.append(f"PRIMARY KEY ( {','.join(f'`{column}`' for column in self.primary_key)} )")
        return f"CREATE TABLE IF NOT EXISTS `{prefix}{self.name}` ({', '.join(parts)})"

    def create_indexes(self, prefix: str) -> dict[str, str]:
        """CREATE INDEX statements by index name."""
        table = prefix + self.name
        statements = {}
        for unique, tail, columns in self.indexes:
            name = f"{'UQE' if unique else 'IDX'}_{table}_{tail}"
            on = ",".join(f"`{column}`" for column in columns)
            statements[name] = f"CREATE {'UNIQUE ' if unique else ''}INDEX `{name}` ON `{table}` ({on})"
        return statements


def _integers(*names: str, null: str = "NOT NULL") -> tuple[str, ...]:
    return tuple(f"`{name}` INTEGER {null}" for name in names)


_INODE: Final = "`inode` INTEGER PRIMARY KEY NOT NULL"
_QUOTA: Final = _integers("max_space", "max_inodes", "used_space", "used_inodes")

TABLES: Final = (
    Table("setting", ("`name` TEXT PRIMARY KEY NOT NULL", "`value` TEXT NOT NULL")),
    Table("counter", ("`name` TEXT PRIMARY KEY NOT NULL", "`value` INTEGER NOT NULL")),
    Table(
        "edge",
        (_ID, "`parent` INTEGER NOT NULL", "`name` BLOB NOT NULL", *_integers("inode", "type")),
        indexes=((True, "edge", ("parent", "name")), (False, "inode", ("inode",))),
    ),
    Table(
        "node",
        (
            _INODE,
            *_integers("type", "flags", "mode", "uid", "gid", "atime", "mtime", "ctime"),
            *_integers("atimensec", "mtimensec", "ctimensec", null="DEFAULT 0 NOT NULL"),
            *_integers("nlink", "length"),
            *_integers("rdev", "parent", "access_acl_id", "default_acl_id", "tier_id", null="NULL"),
        ),
    ),
    Table("symlink", (_INODE, "`target` BLOB NOT NULL")),
    Table(
        "xattr",
        (_ID, "`inode` INTEGER NOT NULL", "`name` TEXT NOT NULL", "`value` BLOB NOT NULL"),
        indexes=((True, "name", ("inode", "name")),),
    ),
    Table(
        "chunk",
        (_ID, *_integers("inode", "indx"), "`slices` BLOB NOT NULL"),
        indexes=((True, "chunk", ("inode", "indx")),),
    ),
    Table(
        "chunk_ref",
        ("`chunkid` INTEGER PRIMARY KEY NOT NULL", *_integers("size", "refs")),
        indexes=((False, "refs", ("refs",)),),
    ),
    Table(
        "delslices",
        ("`chunkid` INTEGER PRIMARY KEY NOT NULL", "`deleted` INTEGER NOT NULL", "`slices` BLOB NOT NULL"),
    ),
    Table("session2", ("`sid` INTEGER PRIMARY KEY NOT NULL", "`expire` INTEGER NOT NULL", "`info` BLOB NULL")),
    Table("sustained", (_ID, *_integers("sid", "inode")), indexes=((True, "sustained", ("sid", "inode")),)),
    Table("delfile", (_INODE, *_integers("length", "expire"))),
    Table(
        "flock",
        (_ID, *_integers("inode", "sid", "owner", "ltype")),
        indexes=((True, "flock", ("inode", "sid", "owner")),),
    ),
    Table(
        "plock",
        (_ID, *_integers("inode", "sid", "owner"), "`records` BLOB NOT NULL"),
        indexes=((True, "plock", ("inode", "sid", "owner")),),
    ),
    Table("dir_quota", (_INODE, *_QUOTA)),
    Table("user_group_quota", (*_integers("qtype", "qkey"), *_QUOTA), primary_key=("qtype", "qkey")),
    Table("dir_stats", (_INODE, *_integers("data_length", "used_space", "used_inodes"))),
    Table("detached_node", (_INODE, "`added` INTEGER NOT NULL")),
    Table(
        "acl",
        (
            _ID,
            *_integers("owner", "group", "mask", "other", null="NULL"),
            "`named_users` BLOB NULL",
            "`named_groups` BLOB NULL",
        ),
    ),
    Table("delegation_token", (_ID, "`token` BLOB NULL")),
    Table("change_log", (_ID, "`entry` TEXT NOT NULL")),
)


class Present(NamedTuple):
    """What a database has below a prefix: declared column types by table and column, names of indexes."""

    tables: dict[str, dict[str, str]]
    indexes: frozenset[str]


def inspect(connection: sqlite3.Connection, prefix: str) -> Present:
    """Look at the database's own description of itself. The connection gives texts as bytes."""
    tables: dict[str, dict[str, str]] = {}
    indexes = set()
    for kind, raw_name in connection.execute("SELECT type, name FROM sqlite_master").fetchall():
        name = raw_name.decode()
        if kind == b"index":
            indexes.add(name)
        elif kind == b"table" and name.startswith(prefix):
            columns = connection.execute(f"PRAGMA table_info(`{name}`)").fetchall()
            tables[name.removeprefix(prefix)] = {column[1].decode(): column[2].decode() for column in columns}
    return Present(tables, frozenset(indexes))


def missing_statements(present: Present, prefix: str) -> list[str]:
    """DDL that adds what *present* lacks; empty when it is complete."""
    statements = []
    for table in TABLES:
        columns = present.tables.get(table.name)
        if columns is None:
            statements.append(table.create(prefix))
        else:
            statements += [
                f"ALTER TABLE `{prefix}{table.name}` ADD COLUMN {column}"
                for column in table.columns
                if column.split("`")[1] not in columns and "PRIMARY KEY" not in column
            ]
        statements += [
            statement for name, statement in table.create_indexes(prefix).items() if name not in present.indexes
        ]
    return statements


def sync(connection: sqlite3.Connection, prefix: str) -> None:
    """Add what is missing, inside the caller's transaction. An index that the rows do not allow is left out, as by the real client."""
    for statement in missing_statements(inspect(connection, prefix), prefix):
        try:
            connection.execute(statement)
        except sqlite3.IntegrityError as error:
            log.warning("left out while completing the tables: %s (%s)", statement, error)
