"""Quotas in SQLite (format §4.2.2): rows of `dir_quota` by inode, and of `user_group_quota` by kind and number.

Bound to a connection like `records`, which registers it. Usage of users and groups makes a row without limits when there is none.
"""

import sqlite3
from collections.abc import Callable
from typing import Any, Final

from jfs.meta.model.quota import DIRECTORY, UNLIMITED, Quota, QuotaChange, QuotaKey

COLUMNS: Final = "max_space,max_inodes,used_space,used_inodes"
_UPDATES: Final = ",".join(f"{column}=excluded.{column}" for column in COLUMNS.split(","))


class QuotaRecords:
    """The statements on the quota tables of one prefix."""

    def __init__(self, connection: sqlite3.Connection, prefix: str) -> None:
        self._execute = connection.execute
        self._p = prefix
        self.readers: dict[str, Callable[[Any], Any]] = {"quota": self.read}
        self.writers: dict[str, Callable[[Any, Any, Any], None]] = {"quota": self.write}

    def _place(self, key: QuotaKey) -> tuple[str, str, tuple[int, ...]]:
        """Table, columns of its key, their values."""
        if key.what == DIRECTORY:
            return f"{self._p}dir_quota", "inode", (key.id,)
        return f"{self._p}user_group_quota", "qtype,qkey", (key.what, key.id)

    def read(self, key: QuotaKey) -> Quota | None:
        table, columns, values = self._place(key)
        marks = ",".join("?" * len(values))
        row = self._execute(f"SELECT {COLUMNS} FROM {table} WHERE ({columns})=({marks})", values).fetchone()
        return None if row is None else Quota._make(row)

    def write(self, key: QuotaKey, record: Quota | None, known: Any) -> None:
        table, columns, values = self._place(key)
        marks = ",".join("?" * len(values))
        if record is None:
            self._execute(f"DELETE FROM {table} WHERE ({columns})=({marks})", values)
        else:
            self._execute(
                f"INSERT INTO {table}({columns},{COLUMNS}) VALUES({marks},?,?,?,?) "
                f"ON CONFLICT({columns}) DO UPDATE SET {_UPDATES}",
                (*values, *record),
            )

    def add(self, key: QuotaKey, change: QuotaChange) -> None:
        """More in use."""
        if key.what == DIRECTORY:
            self._execute(
                f"UPDATE {self._p}dir_quota SET used_space=used_space+?,used_inodes=used_inodes+? WHERE inode=?",
                (*change, key.id),
            )
        else:
            self._execute(
                f"INSERT INTO {self._p}user_group_quota(qtype,qkey,{COLUMNS}) VALUES(?,?,?,?,?,?) "
                "ON CONFLICT(qtype,qkey) DO UPDATE SET used_space=used_space+excluded.used_space,"
                "used_inodes=used_inodes+excluded.used_inodes",
                (key.what, key.id, UNLIMITED, UNLIMITED, *change),
            )
