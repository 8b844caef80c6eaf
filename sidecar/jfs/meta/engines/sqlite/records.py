"""Each kind of record in its table: how it is read, stored, removed and added to (format §4.2.2).

`Records` holds the statements for one table prefix; its methods run them on the connection and know nothing of
transactions. Invariants: names of entries, link targets and slices are bound as bytes; texts are given as bytes and cast,
since they may hold bytes that are no UTF-8; slices are cast back to BLOB after `||`, whose result SQLite calls TEXT.
Where an old database declares entry names as TEXT, both forms are looked for and the BLOB form is written.
"""

import sqlite3
from collections.abc import Callable, Sequence
from typing import Any, Final, cast

from jfs.errors import CorruptRecord
from jfs.format.slices import RECORD
from jfs.meta.engines.rows import COLUMNS, from_row, to_row
from jfs.meta.engines.sqlite.acls import AclRecords
from jfs.meta.engines.sqlite.locks import LockRecords
from jfs.meta.engines.sqlite.quotas import QuotaRecords
from jfs.meta.engines.sqlite.xattrs import XattrRecords
from jfs.meta.model.attr import Attr, Entry
from jfs.meta.model.keys import (
    ChunkKey,
    CounterKey,
    DelayedKey,
    DeletedFileKey,
    DetachedKey,
    DirStat,
    DirStatKey,
    EdgeKey,
    NodeKey,
    ParentKey,
    Session,
    SessionKey,
    SettingKey,
    SliceRefKey,
    SustainedKey,
    SymlinkKey,
)

_ACL_NUMBERS: Final = "aclMaxId"  # no row: the rules themselves say it
UNKNOWN: Final = object()  # "whether the record exists is not known", where a read record or None would say it


class Records:
    """The statements on the tables of one prefix, bound to a connection."""

    def __init__(self, connection: sqlite3.Connection, prefix: str, tables: dict[str, dict[str, str]]) -> None:
        self._execute = connection.execute
        self._p = prefix
        # Columns that an old database may lack when the sync was not allowed to add them.
        present = tables.get("node", {})
        columns = [f"ifnull(n.{column},0)" if not present or column in present else "0" for column in COLUMNS]
        self.node_columns = ",".join(columns)
        self.old_names = "BLOB" not in tables.get("edge", {}).get("name", "BLOB").upper()
        name = "name IN (?, CAST(? AS TEXT))" if self.old_names else "name=?"

        p = prefix
        self._sql_node = f"SELECT {self.node_columns} FROM {p}node n WHERE inode=?"
        self._sql_edge = f"SELECT type,inode FROM {p}edge WHERE parent=? AND {name}"
        self._sql_lookup = (
            f"SELECT e.type,e.inode,n.inode,{self.node_columns} FROM {p}edge e LEFT JOIN {p}node n ON n.inode=e.inode "
            f"WHERE e.parent=? AND e.{name}"
        )
        self._sql_delete_edge = f"DELETE FROM {p}edge WHERE parent=? AND {name}"
        self._sql_move_edge = f"UPDATE OR REPLACE {p}edge SET parent=?,name=? WHERE parent=? AND name=?"
        self._sql_update_node = f"UPDATE {p}node SET {','.join(f'{c}=?' for c in COLUMNS)} WHERE inode=?"
        values = ",".join("?" * (len(COLUMNS) + 1))
        updates = ",".join(f"{c}=excluded.{c}" for c in COLUMNS)
        self._sql_put_node = f"INSERT INTO {p}node({','.join(COLUMNS)},inode) VALUES({values}) ON CONFLICT(inode) DO UPDATE SET {updates}"
        self._sql_insert_edge = f"INSERT INTO {p}edge(parent,name,type,inode) VALUES(?,?,?,?)"
        self._sql_put_edge = (
            self._sql_insert_edge + " ON CONFLICT(parent,name) DO UPDATE SET type=excluded.type,inode=excluded.inode"
        )
        self._sql_append = (
            f"INSERT INTO {p}chunk(inode,indx,slices) VALUES(?,?,?) "
            "ON CONFLICT(inode,indx) DO UPDATE SET slices=CAST(slices || excluded.slices AS BLOB)"
        )
        self._sql_add_counter = (
            f"INSERT INTO {p}counter(name,value) VALUES(?,?) ON CONFLICT(name) DO UPDATE SET value=value+excluded.value"
        )
        self._sql_add_usage = self._sql_add_counter.replace("(?,?)", "('usedSpace',?),('totalInodes',?)")
        self._sql_add_stat = (
            f"UPDATE {p}dir_stats SET data_length=data_length+?,used_space=used_space+?,used_inodes=used_inodes+? "
            "WHERE inode=?"
        )
        locks = LockRecords(connection, prefix)
        self._acls = AclRecords(connection, prefix)
        quotas = QuotaRecords(connection, prefix)
        self.add_quota = quotas.add
        xattrs = XattrRecords(connection, prefix)
        self.xattr_names, self.clear_xattrs = xattrs.names, xattrs.clear
        self.readers: dict[str, Callable[[Any], Any]] = {
            **locks.readers,
            **self._acls.readers,
            **quotas.readers,
            **xattrs.readers,
            "setting": self.read_setting,
            "node": self.read_node,
            "edge": self.read_edge,
            "symlink": self.read_symlink,
            "chunk": self.read_chunk,
            "counter": self.read_counter,
            "parent": self.read_parent,
            "sliceref": self.read_slice_ref,
            "dirstat": self.read_dir_stat,
            "session": self.read_session,
            "sustained": self.read_sustained,
            "delfile": self.read_deleted_file,
            "delayed": self.read_delayed,
            "detached": self.read_detached,
        }
        self.writers: dict[str, Callable[[Any, Any, Any], None]] = {
            **locks.writers,
            **self._acls.writers,
            **quotas.writers,
            **xattrs.writers,
            "setting": self.write_setting,
            "node": self.write_node,
            "edge": self.write_edge,
            "symlink": self.write_symlink,
            "chunk": self.write_chunk,
            "counter": self.write_counter,
            "parent": self.write_parent,
            "sliceref": self.write_slice_ref,
            "dirstat": self.write_dir_stat,
            "session": self.write_session,
            "sustained": self.write_sustained,
            "delfile": self.write_deleted_file,
            "delayed": self.write_delayed,
            "detached": self.write_detached,
        }

    def _value(self, sql: str, parameters: tuple[Any, ...]) -> Any:
        row = self._execute(sql, parameters).fetchone()
        return None if row is None else row[0]

    def _name(self, name: bytes) -> tuple[bytes, ...]:
        return (name, name) if self.old_names else (name,)

    # Reads: the record, or None.

    def read_setting(self, key: SettingKey) -> bytes | None:
        value: bytes | None = self._value(f"SELECT value FROM {self._p}setting WHERE name='format'", ())
        return value

    def read_node(self, key: NodeKey) -> Attr | None:
        row = self._execute(self._sql_node, (key.ino,)).fetchone()
        return None if row is None else from_row(row)

    def read_edge(self, key: EdgeKey) -> Entry | None:
        row = self._execute(self._sql_edge, (key.parent, *self._name(key.name))).fetchone()
        return None if row is None else Entry._make(row)

    def lookup(self, key: EdgeKey) -> tuple[Entry, Attr | None] | None:
        """An entry and its inode, None where there is none."""
        row = self._execute(self._sql_lookup, (key.parent, *self._name(key.name))).fetchone()
        return None if row is None else (Entry(row[0], row[1]), None if row[2] is None else from_row(row[3:]))

    def read_symlink(self, key: SymlinkKey) -> bytes | None:
        return cast("bytes | None", self._value(f"SELECT target FROM {self._p}symlink WHERE inode=?", (key.ino,)))

    def read_chunk(self, key: ChunkKey) -> bytes | None:
        slices: bytes | None = self._value(
            f"SELECT CAST(slices AS BLOB) FROM {self._p}chunk WHERE inode=? AND indx=?", (key.ino, key.indx)
        )
        if slices is not None and len(slices) % 24:
            raise CorruptRecord(
                f"the slices of inode {key.ino}, chunk {key.indx}, have {len(slices)} bytes, no multiple of 24"
            )
        return slices

    def read_counter(self, key: CounterKey) -> int | None:
        if key.name == _ACL_NUMBERS:
            return self._acls.last()
        return cast("int | None", self._value(f"SELECT value FROM {self._p}counter WHERE name=?", (key.name,)))

    def read_parent(self, key: ParentKey) -> int | None:
        count = self._value(f"SELECT count(*) FROM {self._p}edge WHERE inode=? AND parent=?", (key.ino, key.parent))
        return count or None

    def read_slice_ref(self, key: SliceRefKey) -> int:
        return self._value(f"SELECT refs FROM {self._p}chunk_ref WHERE chunkid=? AND size=?", (key.id, key.size)) or 0

    def read_dir_stat(self, key: DirStatKey) -> DirStat | None:
        row = self._execute(
            f"SELECT data_length,used_space,used_inodes FROM {self._p}dir_stats WHERE inode=?", (key.ino,)
        ).fetchone()
        return None if row is None else DirStat._make(row)

    def read_session(self, key: SessionKey) -> Session | None:
        row = self._execute(
            f"SELECT expire,ifnull(CAST(info AS BLOB),x'') FROM {self._p}session2 WHERE sid=?", (key.sid,)
        ).fetchone()
        return None if row is None else Session._make(row)

    def read_sustained(self, key: SustainedKey) -> bool | None:
        return True if self._value(f"SELECT 1 FROM {self._p}sustained WHERE sid=? AND inode=?", key[:2]) else None

    def read_deleted_file(self, key: DeletedFileKey) -> int | None:
        return cast(
            "int | None", self._value(f"SELECT expire FROM {self._p}delfile WHERE inode=? AND length=?", key[:2])
        )

    def read_delayed(self, key: DelayedKey) -> bytes | None:
        records: bytes | None = self._value(
            f"SELECT CAST(slices AS BLOB) FROM {self._p}delslices WHERE chunkid=? AND deleted=?", key[:2]
        )
        return records

    def read_detached(self, key: DetachedKey) -> int | None:
        return cast("int | None", self._value(f"SELECT added FROM {self._p}detached_node WHERE inode=?", (key.ino,)))

    def count_entries(self, ino: int, limit: int) -> int:
        """Entries of a directory, at most *limit*."""
        sql = f"SELECT count(*) FROM (SELECT 1 FROM {self._p}edge WHERE parent=? LIMIT ?)"
        return cast("int", self._value(sql, (ino, limit)))

    def parent_counts(self, ino: int) -> dict[int, int]:
        sql = f"SELECT parent,count(*) FROM {self._p}edge WHERE inode=? GROUP BY parent"
        return dict(self._execute(sql, (ino,)).fetchall())

    # Writes: record None removes. *known* is what the transaction read of the key, or UNKNOWN.

    def write_setting(self, key: SettingKey, record: bytes | None, known: Any) -> None:
        if record is None:
            self._execute(f"DELETE FROM {self._p}setting WHERE name='format'")
        else:
            self._execute(
                f"INSERT INTO {self._p}setting(name,value) VALUES('format',CAST(? AS TEXT)) "
                "ON CONFLICT(name) DO UPDATE SET value=excluded.value",
                (record,),
            )

    def write_node(self, key: NodeKey, record: Attr | None, known: Any) -> None:
        if record is None:
            self._execute(f"DELETE FROM {self._p}node WHERE inode=?", (key.ino,))
        elif known is None or known is UNKNOWN:
            self._execute(self._sql_put_node, (*to_row(record), key.ino))
        else:
            self._execute(self._sql_update_node, (*to_row(record), key.ino))

    def write_edge(self, key: EdgeKey, record: Entry | None, known: Any) -> None:
        if record is None:
            self._execute(self._sql_delete_edge, (key.parent, *self._name(key.name)))
            return
        if self.old_names and known is not None:  # an entry may be there in the other form
            self._execute(self._sql_delete_edge, (key.parent, key.name, key.name))
        self._execute(
            self._sql_insert_edge if known is None else self._sql_put_edge,
            (key.parent, key.name, record.kind, record.ino),
        )

    def move_edge(self, source: EdgeKey, target: EdgeKey) -> None:
        """Give an entry, whose name is a BLOB, another parent and name; one that is there goes."""
        self._execute(self._sql_move_edge, (target.parent, target.name, source.parent, source.name))

    def write_symlink(self, key: SymlinkKey, record: bytes | None, known: Any) -> None:
        if record is None:
            self._execute(f"DELETE FROM {self._p}symlink WHERE inode=?", (key.ino,))
        else:
            self._execute(
                f"INSERT INTO {self._p}symlink(inode,target) VALUES(?,?) "
                "ON CONFLICT(inode) DO UPDATE SET target=excluded.target",
                (key.ino, record),
            )

    def write_chunk(self, key: ChunkKey, record: bytes | None, known: Any) -> None:
        if record is None:
            self._execute(f"DELETE FROM {self._p}chunk WHERE inode=? AND indx=?", (key.ino, key.indx))
        else:
            self._execute(
                f"INSERT INTO {self._p}chunk(inode,indx,slices) VALUES(?,?,?) "
                "ON CONFLICT(inode,indx) DO UPDATE SET slices=excluded.slices",
                (key.ino, key.indx, record),
            )

    def write_counter(self, key: CounterKey, record: int | None, known: Any) -> None:
        if key.name == _ACL_NUMBERS:
            return
        if record is None:
            self._execute(f"DELETE FROM {self._p}counter WHERE name=?", (key.name,))
        else:
            self._execute(
                f"INSERT INTO {self._p}counter(name,value) VALUES(?,?) ON CONFLICT(name) DO UPDATE SET value=excluded.value",
                (key.name, record),
            )

    def write_parent(self, key: ParentKey, record: int | None, known: Any) -> None:
        """Nothing: the edges say it."""

    def write_slice_ref(self, key: SliceRefKey, record: int | None, known: Any) -> None:
        if record is None:
            self._execute(f"DELETE FROM {self._p}chunk_ref WHERE chunkid=? AND size=?", (key.id, key.size))
        else:
            self._execute(
                f"INSERT INTO {self._p}chunk_ref(chunkid,size,refs) VALUES(?,?,?) "
                "ON CONFLICT(chunkid) DO UPDATE SET size=excluded.size,refs=excluded.refs",
                (key.id, key.size, record),
            )

    def write_dir_stat(self, key: DirStatKey, record: DirStat | None, known: Any) -> None:
        if record is None:
            self._execute(f"DELETE FROM {self._p}dir_stats WHERE inode=?", (key.ino,))
        else:
            self._execute(
                f"INSERT INTO {self._p}dir_stats(inode,data_length,used_space,used_inodes) VALUES(?,?,?,?) "
                "ON CONFLICT(inode) DO UPDATE SET data_length=excluded.data_length,used_space=excluded.used_space,"
                "used_inodes=excluded.used_inodes",
                (key.ino, *record),
            )

    def write_session(self, key: SessionKey, record: Session | None, known: Any) -> None:
        if record is None:
            self._execute(f"DELETE FROM {self._p}session2 WHERE sid=?", (key.sid,))
        else:
            self._execute(
                f"INSERT INTO {self._p}session2(sid,expire,info) VALUES(?,?,?) "
                "ON CONFLICT(sid) DO UPDATE SET expire=excluded.expire,info=excluded.info",
                (key.sid, record.expire, record.info),
            )

    def write_sustained(self, key: SustainedKey, record: bool | None, known: Any) -> None:
        if record is None:
            self._execute(f"DELETE FROM {self._p}sustained WHERE sid=? AND inode=?", key[:2])
        else:
            self._execute(f"INSERT INTO {self._p}sustained(sid,inode) VALUES(?,?) ON CONFLICT DO NOTHING", key[:2])

    def write_deleted_file(self, key: DeletedFileKey, record: int | None, known: Any) -> None:
        if record is None:
            self._execute(f"DELETE FROM {self._p}delfile WHERE inode=? AND length=?", key[:2])
        else:
            self._execute(
                f"INSERT INTO {self._p}delfile(inode,length,expire) VALUES(?,?,?) "
                "ON CONFLICT(inode) DO UPDATE SET length=excluded.length,expire=excluded.expire",
                (key.ino, key.length, record),
            )

    def write_delayed(self, key: DelayedKey, record: bytes | None, known: Any) -> None:
        if record is None:
            self._execute(f"DELETE FROM {self._p}delslices WHERE chunkid=? AND deleted=?", key[:2])
        else:
            self._execute(
                f"INSERT INTO {self._p}delslices(chunkid,deleted,slices) VALUES(?,?,?) "
                "ON CONFLICT(chunkid) DO UPDATE SET deleted=excluded.deleted,slices=excluded.slices",
                (key.id, key.time, record),
            )

    def write_detached(self, key: DetachedKey, record: int | None, known: Any) -> None:
        if record is None:
            self._execute(f"DELETE FROM {self._p}detached_node WHERE inode=?", (key.ino,))
        else:
            self._execute(
                f"INSERT INTO {self._p}detached_node(inode,added) VALUES(?,?) "
                "ON CONFLICT(inode) DO UPDATE SET added=excluded.added",
                (key.ino, record),
            )

    # Additions.

    def add(self, key: CounterKey | ParentKey | SliceRefKey, delta: int) -> None:
        """A number plus *delta*; a missing one counts as 0."""
        if isinstance(key, CounterKey):
            self._execute(self._sql_add_counter, (key.name, delta))
        elif isinstance(key, SliceRefKey):
            self._execute(
                f"INSERT INTO {self._p}chunk_ref(chunkid,size,refs) VALUES(?,?,?) "
                "ON CONFLICT(chunkid) DO UPDATE SET refs=refs+excluded.refs",
                (key.id, key.size, delta),
            )

    def add_usage(self, space: int, inodes: int) -> None:
        """The volume's two counters of usage plus so much, in one statement."""
        self._execute(self._sql_add_usage, (space, inodes))

    def add_stat(self, key: DirStatKey, change: DirStat) -> None:
        self._execute(self._sql_add_stat, (*change, key.ino))

    def append(self, key: ChunkKey, packed: bytes, existing_only: bool) -> None:
        if not existing_only:
            self._execute(self._sql_append, (key.ino, key.indx, packed))
            return
        sql = f"UPDATE {self._p}chunk SET slices=CAST(slices || ? AS BLOB) WHERE inode=? AND indx=?"
        self._execute(sql, (packed, key.ino, key.indx))

    def count_slices(self, key: ChunkKey) -> int:
        """Records of a chunk's list."""
        sql = f"SELECT length(CAST(slices AS BLOB)) FROM {self._p}chunk WHERE inode=? AND indx=?"
        row = self._execute(sql, (key.ino, key.indx)).fetchone()
        return row[0] // RECORD.size if row else 0

    def log(self, lines: Sequence[bytes]) -> None:
        """Add to the change log."""
        for line in lines:
            self._execute(f"INSERT INTO {self._p}change_log(entry) VALUES(?)", (line.decode(),))
