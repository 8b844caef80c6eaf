"""ACL rules in SQLite (format §3.10, §4.2.2): a row of `acl` each, its id an automatic number.

Bound to a connection like `records`, which registers it. The counter aclMaxId is no row here: it reads as the last automatic number,
and a row that is inserted with the next one moves it.
"""

import sqlite3
from collections.abc import Callable, Sequence
from typing import Any, Final

from jfs.meta.model.acl import ABSENT, AclKey, Rule, pack_named, unpack_named

COLUMNS: Final = "owner,`group`,mask,other,CAST(named_users AS BLOB),CAST(named_groups AS BLOB)"


def from_columns(row: Sequence[Any]) -> Rule:
    """A row of `COLUMNS` as a rule."""
    owner, group, mask, other, users, groups = row
    owner, group, mask, other = (ABSENT if one is None else one for one in (owner, group, mask, other))
    return Rule(owner, group, mask, other, unpack_named(users or b""), unpack_named(groups or b""))


class AclRecords:
    """The statements on the ACL table of one prefix."""

    def __init__(self, connection: sqlite3.Connection, prefix: str) -> None:
        self._execute = connection.execute
        self._p = prefix
        self.readers: dict[str, Callable[[Any], Any]] = {"acl": self.read}
        self.writers: dict[str, Callable[[Any, Any, Any], None]] = {"acl": self.write}

    def read(self, key: AclKey) -> Rule | None:
        row = self._execute(f"SELECT {COLUMNS} FROM {self._p}acl WHERE id=?", (key.id,)).fetchone()
        return None if row is None else from_columns(row)

    def last(self) -> int | None:
        """The last number given out, None when there was none."""
        row = self._execute(
            f"SELECT max(n) FROM (SELECT max(id) n FROM {self._p}acl UNION ALL "
            "SELECT seq FROM sqlite_sequence WHERE name=CAST(? AS TEXT))",
            (f"{self._p}acl",),
        ).fetchone()
        number: int | None = row[0]
        return number

    def write(self, key: AclKey, record: Rule | None, known: Any) -> None:
        if record is None:
            self._execute(f"DELETE FROM {self._p}acl WHERE id=?", (key.id,))
            return
        self._execute(
            f"INSERT OR REPLACE INTO {self._p}acl(id,owner,`group`,mask,other,named_users,named_groups) VALUES(?,?,?,?,?,?,?)",
            (key.id, *record[:4], pack_named(record.users), pack_named(record.groups)),
        )
