"""JuiceFS 1.4's tables (`engines.tables`) on database servers, and the sync that adds what a database lacks (format §4.2.2, §4.2.3).

The sync only adds, as the real client's does. What makes names case-insensitive in MySQL, its default collation, is kept from
our tables, since names of attributes differ by case.
"""

import logging
from collections.abc import Iterator
from typing import Final

from jfs.errors import Conflict, StoreUnavailable, VolumeError
from jfs.meta.engines.sql.dialect import Dialect
from jfs.meta.engines.sql.link import Link
from jfs.meta.engines.tables import TABLES

log = logging.getLogger(__name__)


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
            index = table.index_name(prefix, unique, tail)
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
