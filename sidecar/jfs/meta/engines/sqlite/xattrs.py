"""Extended attributes in SQLite (format §4.2.2): rows of `xattr`, whose names are TEXT that may hold any bytes.

Bound to a connection like `records`, which registers them.
"""

import sqlite3
from collections.abc import Callable
from typing import Any, cast

from jfs.meta.model.keys import XattrKey


class XattrRecords:
    """The statements on the table of one prefix."""

    def __init__(self, connection: sqlite3.Connection, prefix: str) -> None:
        self._execute = connection.execute
        self._p = prefix
        self.readers: dict[str, Callable[[Any], Any]] = {"xattr": self.read}
        self.writers: dict[str, Callable[[Any, Any, Any], None]] = {"xattr": self.write}

    def read(self, key: XattrKey) -> bytes | None:
        row = self._execute(
            f"SELECT value FROM {self._p}xattr WHERE inode=? AND name=CAST(? AS TEXT)", (key.ino, key.name)
        ).fetchone()
        return None if row is None else cast("bytes", row[0])

    def names(self, ino: int) -> list[bytes]:
        return [name for (name,) in self._execute(f"SELECT name FROM {self._p}xattr WHERE inode=?", (ino,)).fetchall()]

    def write(self, key: XattrKey, record: bytes | None, known: Any) -> None:
        if record is None:
            self._execute(f"DELETE FROM {self._p}xattr WHERE inode=? AND name=CAST(? AS TEXT)", (key.ino, key.name))
        else:
            self._execute(
                f"INSERT INTO {self._p}xattr(inode,name,value) VALUES(?,CAST(? AS TEXT),?) "
                "ON CONFLICT(inode,name) DO UPDATE SET value=excluded.value",
                (key.ino, key.name, record),
            )

    def clear(self, ino: int) -> None:
        self._execute(f"DELETE FROM {self._p}xattr WHERE inode=?", (ino,))
