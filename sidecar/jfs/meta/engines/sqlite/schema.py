"""JuiceFS 1.4's tables (`engines.tables`) in SQLite (format §4.2.2, §4.2.3) and the sync that adds what an existing database lacks.

The texts are those the real client's ORM emits, so that a database made here is told from one made there by nothing.
The sync only adds tables, columns and indexes, as the real client's does; what it does not know it leaves alone. Databases
of 0.14.2 keep their TEXT names and have no `id` columns, which nothing in this engine asks for.
"""

import logging
import sqlite3
from collections.abc import Iterable
from typing import Final, NamedTuple

from jfs.meta.engines.tables import TABLES, Column, Table

log = logging.getLogger(__name__)

_TYPES: Final = {
    "long": "INTEGER",
    "int": "INTEGER",
    "string": "TEXT",
    "text": "TEXT",
    "blob": "BLOB",
    "name": "BLOB",
    "target": "BLOB",
    "id": "INTEGER",
    "id32": "INTEGER",
}


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


def _definition(table: Table, column: Column) -> str:
    """A column in CREATE TABLE and ALTER TABLE; a key of one column stands there too."""
    key = ""
    if table.primary_key == (column.name,):
        key = "PRIMARY KEY AUTOINCREMENT " if column.kind.startswith("id") else "PRIMARY KEY "
    return f"`{column.name}` {_TYPES[column.kind]} {key}{column.constraint}"


def _names(columns: Iterable[str]) -> str:
    return ",".join(f"`{column}`" for column in columns)


def missing_statements(present: Present, prefix: str) -> list[str]:
    """DDL that adds what *present* lacks; empty when it is complete."""
    statements = []
    for table in TABLES:
        name = prefix + table.name
        columns = present.tables.get(table.name)
        if columns is None:
            parts = [_definition(table, column) for column in table.columns]
            if len(table.primary_key) > 1:
                parts.append(f"PRIMARY KEY ( {_names(table.primary_key)} )")
            statements.append(f"CREATE TABLE IF NOT EXISTS `{name}` ({', '.join(parts)})")
        else:
            statements += [
                f"ALTER TABLE `{name}` ADD COLUMN {_definition(table, column)}"
                for column in table.columns
                if column.name not in columns and table.primary_key != (column.name,)
            ]
        for unique, tail, keys in table.indexes:
            index = table.index_name(prefix, unique, tail)
            if index not in present.indexes:
                statements.append(f"CREATE {'UNIQUE ' if unique else ''}INDEX `{index}` ON `{name}` ({_names(keys)})")
    return statements


def sync(connection: sqlite3.Connection, prefix: str) -> None:
    """Add what is missing, inside the caller's transaction. An index that the rows do not allow is left out, as by the real client."""
    for statement in missing_statements(inspect(connection, prefix), prefix):
        try:
            connection.execute(statement)
        except sqlite3.IntegrityError as error:
            log.warning("left out while completing the tables: %s (%s)", statement, error)
