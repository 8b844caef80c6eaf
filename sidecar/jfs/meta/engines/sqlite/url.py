"""The part of a `sqlite3://` address behind the scheme: a path and the options of the real client (format §4.2.4)."""

import re
from typing import NamedTuple
from urllib.parse import parse_qsl

from jfs.errors import ConfigError

_TABLE_PREFIX = re.compile(r"[A-Za-z0-9_]+")
_JOURNAL_MODES = ("DELETE", "TRUNCATE", "PERSIST", "MEMORY", "WAL", "OFF")
# They size the real client's pool of connections and its shared cache; with our one connection any value is satisfied.
_POOL_OPTIONS = frozenset({"cache", "max_open_conns", "max_idle_conns", "max_idle_time", "max_life_time"})


class SqliteAddress(NamedTuple):
    """Where the database is and how it is opened. *patience* is how long a lock of another process is waited for, in seconds."""

    path: str
    table_prefix: str = "jfs_"
    journal_mode: str = "WAL"
    patience: float = 30.0


def parse_address(rest: str) -> SqliteAddress:
    """Parse what stands behind `sqlite3://`; the path is taken as it is, without percent-decoding, as the real client does."""
    path, _, query = rest.partition("?")
    if not path or path.startswith(":memory:"):
        raise ConfigError("the metadata address names no SQLite file; write it as sqlite3://file.db")
    address = SqliteAddress(path)
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name == "table_prefix":
            if not _TABLE_PREFIX.fullmatch(value):
                raise ConfigError(f"table_prefix={value} may have letters, digits and underscores only")
            address = address._replace(table_prefix=f"jfs_{value}_")
        elif name in ("_journal", "_journal_mode"):
            if value.upper() not in _JOURNAL_MODES:
                raise ConfigError(
                    f"{name}={value} is no journal mode of SQLite; use one of {', '.join(_JOURNAL_MODES)}"
                )
            address = address._replace(journal_mode=value.upper())
        elif name in ("_timeout", "_busy_timeout"):
            if not value.isdigit():
                raise ConfigError(f"{name}={value} must be a number of milliseconds")
            address = address._replace(patience=int(value) / 1000)
        elif name not in _POOL_OPTIONS:
            raise ConfigError(f"unknown option {name!r} in the sqlite3:// address; remove it")
    return address
