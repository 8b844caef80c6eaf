"""The texts for one prefix of tables in one language: reading a record, checking that it is as it was read, writing it.

Reads have `?` where their values go, since servers keep plans of them; what belongs to a commit has its values in the text. Pure.
"""

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from jfs.meta.engines.sql.dialect import Dialect, Value
from jfs.meta.engines.sql.kinds import (
    OWNER_QUOTA,
    AnyKind,
    Column,
    DerivedKind,
    ListKind,
    Row,
    RowKind,
    kind_of,
    row_kind,
)
from jfs.meta.model.acl import AclKey
from jfs.meta.model.keys import ChunkKey, CounterKey, DirStat, DirStatKey, Key, SliceRefKey
from jfs.meta.model.quota import DIRECTORY, UNLIMITED, QuotaChange, QuotaKey

_RECORD: Final = 24  # bytes of a slice record
UNREAD: Final = object()  # "what the record was is not known"


class Select(NamedTuple):
    """A query and its values."""

    text: str
    values: tuple[Value, ...] = ()


class Statements:
    """Texts for the tables of one prefix."""

    def __init__(self, dialect: Dialect, prefix: str) -> None:
        self.dialect = dialect
        self.prefix = prefix
        self._reads: dict[int, str] = {}
        self._expressions: dict[Column, str] = {}

    def table(self, name: str) -> str:
        """A table's name, quoted."""
        return self.dialect.quote(self.prefix + name)

    def expression(self, column: Column, alias: str = "") -> str:
        """What a column reads as."""
        name = alias + self.dialect.quote(column.name)
        if column.text:
            return self.dialect.text_as_bytes(name)
        if column.missing is not None:
            return f"coalesce({name},{self.dialect.literal(column.missing)})"
        return name

    def expressions(self, columns: Sequence[Column], alias: str = "") -> str:
        """What columns read as, for a SELECT."""
        return ",".join(self.expression(column, alias) for column in columns) or "1"

    # Reads.

    def read(self, key: Key[Any]) -> Select:
        """The rows of a record."""
        kind = kind_of(key)
        text = self._reads.get(id(kind))
        if text is None:
            text = self._reads[id(kind)] = self._reading(kind)
        return Select(text, (key[0],) if isinstance(kind, ListKind) else kind.key_values(key))  # type: ignore[index]

    def _reading(self, kind: AnyKind) -> str:
        if isinstance(kind, DerivedKind):
            return kind.query.replace("{p}", self.prefix)
        where = "inode=?"
        if isinstance(kind, RowKind):
            where = " AND ".join(f"{self.dialect.quote(column.name)}=?" for column in kind.keys)
        return f"SELECT {self.expressions(kind.values)} FROM {self.table(kind.table)} WHERE {where}"

    def count_entries(self, ino: int, limit: int) -> Select:
        return Select(
            f"SELECT count(*) FROM (SELECT 1 FROM {self.table('edge')} WHERE parent=? LIMIT {limit}) entries", (ino,)
        )

    def xattr_names(self, ino: int) -> Select:
        name = self.dialect.text_as_bytes(self.dialect.quote("name"))
        return Select(f"SELECT {name} FROM {self.table('xattr')} WHERE inode=?", (ino,))

    def parent_counts(self, ino: int) -> Select:
        return Select(f"SELECT parent,count(*) FROM {self.table('edge')} WHERE inode=? GROUP BY parent", (ino,))

    def filled(self, select: Select) -> str:
        """A query with its values in the text."""
        pieces = select.text.split("?")
        values = [self.dialect.literal(value) for value in select.values]
        return "".join(piece + value for piece, value in zip(pieces, [*values, ""], strict=True))

    # Checks: conditions that hold while a read does.

    def check(self, key: Key[Any], rows: Sequence[Row], lock: str) -> str:
        """That the rows of a record are these; a row that is there gets the *lock*."""
        kind = kind_of(key)
        if isinstance(kind, DerivedKind):
            return self.check_number(self.read(key), rows[0][0] if rows else 0)
        if isinstance(kind, ListKind):
            return self._check_list(kind, key[0], rows)  # type: ignore[index]
        where = self._where(kind, key)
        if not rows:
            return f"NOT EXISTS(SELECT 1 FROM {self.table(kind.table)} WHERE {where})"
        condition = self.dialect.condition
        for column, value in zip(kind.values, rows[0], strict=False):  # a kind without values was read as a 1
            where += " AND " + condition(self.expression(column), value)
        return f"EXISTS(SELECT 1 FROM {self.table(kind.table)} WHERE {where}{lock})"

    def check_number(self, select: Select, number: int) -> str:
        """That a query with one result finds this one."""
        return f"({self.filled(select)})={number}"

    def _check_list(self, kind: ListKind, ino: int, rows: Sequence[Row]) -> str:
        table = self.table(kind.table)
        conditions = [f"(SELECT count(*) FROM {table} WHERE inode={ino})={len(rows)}"]
        for row in rows:
            values = " AND ".join(
                self.dialect.condition(self.expression(column), value)
                for column, value in zip(kind.values, row, strict=True)
            )
            conditions.append(f"EXISTS(SELECT 1 FROM {table} WHERE inode={ino} AND {values})")
        return " AND ".join(conditions)

    def check_names(self, ino: int, names: Sequence[bytes]) -> str:
        """That an inode has these extended attributes."""
        table, name = self.table("xattr"), self.dialect.text_as_bytes(self.dialect.quote("name"))
        count = f"(SELECT count(*) FROM {table} WHERE inode={ino})={len(names)}"
        if not names:
            return count
        listed = ",".join(self.dialect.literal(one) for one in names)
        return f"{count} AND (SELECT count(*) FROM {table} WHERE inode={ino} AND {name} IN ({listed}))={len(names)}"

    def check_parents(self, ino: int, counts: dict[int, int]) -> str:
        """That an inode has these entries."""
        edges = self.table("edge")
        conditions = [f"(SELECT count(*) FROM {edges} WHERE inode={ino})={sum(counts.values())}"]
        conditions += [
            f"(SELECT count(*) FROM {edges} WHERE inode={ino} AND parent={parent})={count}"
            for parent, count in counts.items()
        ]
        return " AND ".join(conditions)

    def lock_inode(self, ino: int) -> str:
        """A condition that always holds and keeps the inode's row for this transaction. Whatever is open or locked has one."""
        return f"coalesce((SELECT inode FROM {self.table('node')} WHERE inode={ino}{self.dialect.for_update}),0)>=0"

    # Writes.

    def _where(self, kind: RowKind, key: Key[Any]) -> str:
        return " AND ".join(
            f"{self.dialect.quote(column.name)}={self.dialect.literal(value)}"
            for column, value in zip(kind.keys, kind.key_values(key), strict=True)
        )

    def write(self, key: Key[Any], record: Any, known: Any) -> list[str]:
        """Statements that make the record this one, None for none. *known* are the rows that were read of it (and are checked
        before), or UNREAD."""
        kind = kind_of(key)
        if isinstance(kind, DerivedKind):
            return []
        if isinstance(kind, ListKind):
            return self._write_list(kind, key[0], record)  # type: ignore[index]
        table = self.table(kind.table)
        if record is None:
            return [f"DELETE FROM {table} WHERE {self._where(kind, key)}"]
        values = kind.encode(record)
        if known is not UNREAD and known and kind.values:
            return self._update(kind, key, values, known[0])
        columns = [self.dialect.quote(column.name) for column in (*kind.keys, *kind.values)]
        row = ",".join(map(self.dialect.literal, (*kind.key_values(key), *values)))
        statement = f"INSERT INTO {table}({','.join(columns)}) VALUES({row})"
        if known is UNREAD or kind.unique or not kind.values:
            statement += self._replacing(kind)
        statements = [statement]
        if isinstance(key, AclKey):
            statements += self._number_taken(key.id)
        return statements

    def _update(self, kind: RowKind, key: Key[Any], values: Sequence[Value], before: Row) -> list[str]:
        changes = [
            f"{self.dialect.quote(column.name)}={self.dialect.literal(value)}"
            for column, value, old in zip(kind.values, values, before, strict=True)
            if value != old or column.text
        ]
        if not changes:
            return []
        return [f"UPDATE {self.table(kind.table)} SET {','.join(changes)} WHERE {self._where(kind, key)}"]

    def _replacing(self, kind: RowKind) -> str:
        unique = kind.unique or [column.name for column in kind.keys]
        changed = [column.name for column in (*kind.keys, *kind.values) if column.name not in unique]
        quote = self.dialect.quote
        return self.dialect.upsert(
            self.table(kind.table), [quote(name) for name in unique], [(quote(name), "{new}") for name in changed]
        )

    def _write_list(self, kind: ListKind, ino: int, record: Any) -> list[str]:
        table = self.table(kind.table)
        statements = [f"DELETE FROM {table} WHERE inode={ino}"]
        if rows := kind.encode(record):
            columns = ",".join(self.dialect.quote(column.name) for column in kind.values)
            texts = (f"({ino},{','.join(map(self.dialect.literal, row))})" for row in rows)
            statements.append(f"INSERT INTO {table}(inode,{columns}) VALUES{','.join(texts)}")
        return statements

    def _number_taken(self, number: int) -> list[str]:
        if self.dialect.name != "postgres":
            return []  # an inserted number moves the table's own
        sequence = self.table("acl_id_seq")
        return [f"SELECT setval('{sequence}',greatest({number},(SELECT last_value FROM {sequence})))"]

    def clear_xattrs(self, ino: int) -> str:
        return f"DELETE FROM {self.table('xattr')} WHERE inode={ino}"

    # Additions.

    def _insert(
        self, table: str, columns: Sequence[str], values: Sequence[Value], unique: Sequence[str], added: Sequence[str]
    ) -> str:
        quote = self.dialect.quote
        row = ",".join(map(self.dialect.literal, values))
        updates = [(quote(name), "{old}+{new}") for name in added]
        return f"INSERT INTO {self.table(table)}({','.join(map(quote, columns))}) VALUES({row})" + self.dialect.upsert(
            self.table(table), [quote(name) for name in unique], updates
        )

    def add(self, key: CounterKey | SliceRefKey, delta: int) -> str:
        """A number plus *delta*; a missing one counts as 0."""
        if isinstance(key, CounterKey):
            return self._insert("counter", ("name", "value"), (key.name, delta), ("name",), ("value",))
        return self._insert("chunk_ref", ("chunkid", "size", "refs"), (*key[:2], delta), ("chunkid",), ("refs",))

    def add_stat(self, key: DirStatKey, change: DirStat) -> str:
        return (
            f"UPDATE {self.table('dir_stats')} SET data_length=data_length+({change.length}),"
            f"used_space=used_space+({change.space}),used_inodes=used_inodes+({change.inodes}) WHERE inode={key.ino}"
        )

    def add_quota(self, key: QuotaKey, change: QuotaChange) -> str:
        if key.what == DIRECTORY:
            return (
                f"UPDATE {self.table('dir_quota')} SET used_space=used_space+({change[0]}),"
                f"used_inodes=used_inodes+({change[1]}) WHERE inode={key.id}"
            )
        columns = [column.name for column in (*OWNER_QUOTA.keys, *OWNER_QUOTA.values)]
        values = (key.what, key.id, UNLIMITED, UNLIMITED, *change)
        return self._insert("user_group_quota", columns, values, ("qtype", "qkey"), ("used_space", "used_inodes"))

    def append(self, key: ChunkKey, packed: bytes, existing_only: bool) -> str:
        table, literal = self.table("chunk"), self.dialect.literal(packed)
        if existing_only:
            joined = self.dialect.concatenation.format(old="slices", new=literal)
            return f"UPDATE {table} SET slices={joined} WHERE inode={key.ino} AND indx={key.indx}"
        return f"INSERT INTO {table}(inode,indx,slices) VALUES({key.ino},{key.indx},{literal})" + self.dialect.upsert(
            table, ("inode", "indx"), (("slices", self.dialect.concatenation),)
        )

    # The change log.

    def log_entry(self, line: bytes, counted: ChunkKey | None = None, after: bytes = b"") -> str:
        """A line of the change log; with *counted* the number of records of that chunk and *after* follow."""
        value = self.dialect.literal(line.decode())
        if counted is not None:
            records = f"(SELECT octet_length(slices) FROM {self.table('chunk')} WHERE inode={counted.ino} AND indx={counted.indx})"
            number = self.dialect.whole_part(f"coalesce({records},0)", _RECORD)
            value = f"concat({value},{number},{self.dialect.literal(after.decode())})"
        return f"INSERT INTO {self.table('change_log')}(entry) VALUES({value})"

    # Whole lookups.

    def lookup(self, parent: int, name: bytes) -> Select:
        """Type and inode of an entry, the inode again when it has attributes, and these."""
        return Select(
            f"SELECT e.{self.dialect.quote('type')},e.inode,n.inode,{self._node_columns()} FROM {self.table('edge')} e "
            f"LEFT JOIN {self.table('node')} n ON n.inode=e.inode WHERE e.parent=? AND e.name=?",
            (parent, name),
        )

    def page(self, ino: int, after: bytes, limit: int, *, plus: bool) -> Select:
        """Entries of a directory after a name: name, type, inode, and with *plus* as in `lookup`."""
        text = f"SELECT e.name,e.{self.dialect.quote('type')},e.inode"
        source = f" FROM {self.table('edge')} e"
        if plus:
            text += f",n.inode,{self._node_columns()}"
            source += f" LEFT JOIN {self.table('node')} n ON n.inode=e.inode"
        return Select(f"{text}{source} WHERE e.parent=? AND e.name>? ORDER BY e.name LIMIT {limit}", (ino, after))

    def _node_columns(self) -> str:
        return self.expressions(row_kind("node").values, "n.")

    def nodes(self, after: int, limit: int) -> Select:
        """Inodes with attributes, by number."""
        return Select(
            f"SELECT n.inode,{self._node_columns()} FROM {self.table('node')} n WHERE n.inode>? ORDER BY n.inode LIMIT {limit}",
            (after,),
        )
