"""Lock records in SQLite (format §3.4, §4.2.2): a row of `flock` or `plock` for each owner (`engines.lock_rows`).

Bound to a connection like `records`, which registers them. A change writes an inode's rows again; sessions are found by their
column, so nothing is kept for `LockedKey`.
"""

import sqlite3
from collections.abc import Callable
from typing import Any

from jfs.meta.engines.lock_rows import flock_rows, flocks_of, plock_rows, plocks_of
from jfs.meta.model.locks import Flock, FlockKey, LockedKey, Plock, PlockKey


class LockRecords:
    """The statements on the lock tables of one prefix."""

    def __init__(self, connection: sqlite3.Connection, prefix: str) -> None:
        self._execute = connection.execute
        self._many = connection.executemany
        self._p = prefix
        self.readers: dict[str, Callable[[Any], Any]] = {
            "flock": self.read_flocks,
            "plock": self.read_plocks,
            "locked": self.read_locked,
        }
        self.writers: dict[str, Callable[[Any, Any, Any], None]] = {
            "flock": self.write_flocks,
            "plock": self.write_plocks,
            "locked": self.write_locked,
        }

    def read_flocks(self, key: FlockKey) -> tuple[Flock, ...] | None:
        rows = self._execute(f"SELECT sid,owner,ltype FROM {self._p}flock WHERE inode=?", (key.ino,)).fetchall()
        return flocks_of(rows)

    def read_plocks(self, key: PlockKey) -> tuple[Plock, ...] | None:
        rows = self._execute(
            f"SELECT sid,owner,CAST(records AS BLOB) FROM {self._p}plock WHERE inode=?", (key.ino,)
        ).fetchall()
        return plocks_of(rows)

    def read_locked(self, key: LockedKey) -> bool | None:
        table = "plock" if key.ranges else "flock"
        found = self._execute(
            f"SELECT 1 FROM {self._p}{table} WHERE inode=? AND sid=? LIMIT 1", (key.ino, key.sid)
        ).fetchone()
        return None if found is None else True

    def write_flocks(self, key: FlockKey, locks: tuple[Flock, ...] | None, known: Any) -> None:
        self._execute(f"DELETE FROM {self._p}flock WHERE inode=?", (key.ino,))
        rows = [(key.ino, *row) for row in flock_rows(locks)]
        self._many(f"INSERT INTO {self._p}flock(inode,sid,owner,ltype) VALUES(?,?,?,?)", rows)

    def write_plocks(self, key: PlockKey, locks: tuple[Plock, ...] | None, known: Any) -> None:
        self._execute(f"DELETE FROM {self._p}plock WHERE inode=?", (key.ino,))
        rows = [(key.ino, *row) for row in plock_rows(locks)]
        self._many(f"INSERT INTO {self._p}plock(inode,sid,owner,records) VALUES(?,?,?,?)", rows)

    def write_locked(self, key: LockedKey, record: bool | None, known: Any) -> None:
        """Nothing: the rows say it."""
