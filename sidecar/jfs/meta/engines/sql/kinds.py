"""Each kind of record as rows of a table: which columns find it, which hold it, and how both become keys and records (format §4.2.2).

A `RowKind` is at most one row. `ListKind` is all rows of an inode (locks); `DerivedKind` is a number that rows say without being
one. Pure; the texts made of them are in `statements`.
"""

import errno
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

from jfs.errors import CorruptRecord, FsError
from jfs.meta.engines.lock_rows import flock_rows, flocks_of, plock_rows, plocks_of
from jfs.meta.engines.rows import COLUMNS, from_row, to_row
from jfs.meta.engines.sql.dialect import Value
from jfs.meta.model.acl import ABSENT, AclKey, Rule, pack_named, unpack_named
from jfs.meta.model.attr import Entry
from jfs.meta.model.keys import (
    ChunkKey,
    CounterKey,
    DirStat,
    Key,
    Session,
)
from jfs.meta.model.quota import DIRECTORY, Quota, QuotaKey

ACL_NUMBERS: Final = "aclMaxId"  # a counter without a row: the rules' automatic numbers say it
_RECORD: Final = 24

Row = tuple[Any, ...]


class Column(NamedTuple):
    """A column that holds a value: what a NULL in it reads as, and whether it is text."""

    name: str
    missing: int | bytes | None = None
    text: bool = False


class RowKind(NamedTuple):
    """A record that is a row."""

    table: str
    keys: tuple[Column, ...]
    values: tuple[Column, ...]
    key_values: Callable[[Any], tuple[Value, ...]]
    encode: Callable[[Any], tuple[Value, ...]]
    decode: Callable[[Any, Row], Any]
    # The columns that are unique, where these are not the key's: a row that has them and another key is replaced.
    unique: tuple[str, ...] = ()
    absent: Any = None  # what a missing row reads as


class ListKind(NamedTuple):
    """A record that is all rows of an inode. Who writes it has to lock the inode's row."""

    table: str
    values: tuple[Column, ...]
    encode: Callable[[Any], Sequence[tuple[Value, ...]]]
    decode: Callable[[Sequence[Row]], Any]


class DerivedKind(NamedTuple):
    """A number that a query with one result finds; nothing is written."""

    query: str  # with {p} for the tables' prefix, ? for values
    key_values: Callable[[Any], tuple[Value, ...]]
    decode: Callable[[int], Any]


AnyKind = RowKind | ListKind | DerivedKind


def _columns(*names: str, missing: int | bytes | None = None) -> tuple[Column, ...]:
    return tuple(Column(name, missing) for name in names)


def text(raw: bytes) -> str:
    """Bytes for a text column. FsError(EINVAL) when they are no UTF-8, which the servers refuse there."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise FsError(errno.EINVAL) from None


def _ino(key: Any) -> tuple[Value, ...]:
    return (key.ino,)


def _first_two(key: Any) -> tuple[Value, ...]:
    first: tuple[Value, ...] = key[:2]
    return first


def _only(key: Any, row: Row) -> Any:
    return row[0]


def _alone(record: Any) -> tuple[Value, ...]:
    return (record,)


def _slices(key: ChunkKey, row: Row) -> bytes:
    slices: bytes = row[0]
    if len(slices) % _RECORD:
        raise CorruptRecord(
            f"the slices of inode {key.ino}, chunk {key.indx}, have {len(slices)} bytes, no multiple of {_RECORD}"
        )
    return slices


def _rule(key: AclKey, row: Row) -> Rule:
    owner, group, mask, other, users, groups = row
    return Rule(owner, group, mask, other, unpack_named(users), unpack_named(groups))


def _rule_row(rule: Rule) -> tuple[Value, ...]:
    return (rule.owner, rule.group, rule.mask, rule.other, pack_named(rule.users), pack_named(rule.groups))


_QUOTA: Final = _columns("max_space", "max_inodes", "used_space", "used_inodes")
_NULLABLE: Final = frozenset(("rdev", "parent", "access_acl_id", "default_acl_id", "tier_id"))
_NODE: Final = tuple(Column(name, 0 if name in _NULLABLE else None) for name in COLUMNS)
_RULE: Final = (
    *_columns("owner", "group", "mask", "other", missing=ABSENT),
    *_columns("named_users", "named_groups", missing=b""),
)

DIRECTORY_QUOTA: Final = RowKind(
    "dir_quota", _columns("inode"), _QUOTA, lambda key: (key.id,), tuple, lambda key, row: Quota._make(row)
)
OWNER_QUOTA: Final = RowKind(
    "user_group_quota",
    _columns("qtype", "qkey"),
    _QUOTA,
    lambda key: (key.what, key.id),
    tuple,
    lambda key, row: Quota._make(row),
)

_KINDS: Final[dict[str, AnyKind]] = {
    "setting": RowKind(
        "setting",
        (Column("name", text=True),),
        (Column("value", text=True),),
        lambda key: ("format",),
        lambda record: (text(record),),
        _only,
    ),
    "node": RowKind("node", _columns("inode"), _NODE, _ino, to_row, lambda key, row: from_row(row)),
    "edge": RowKind(
        "edge",
        _columns("parent", "name"),
        _columns("type", "inode"),
        _first_two,
        tuple,
        lambda key, row: Entry._make(row),
    ),
    "symlink": RowKind("symlink", _columns("inode"), _columns("target"), _ino, _alone, _only),
    "xattr": RowKind(
        "xattr",
        (Column("inode"), Column("name", text=True)),
        _columns("value"),
        lambda key: (key.ino, text(key.name)),
        _alone,
        _only,
    ),
    "chunk": RowKind("chunk", _columns("inode", "indx"), _columns("slices"), _first_two, _alone, _slices),
    "counter": RowKind(
        "counter", (Column("name", text=True),), _columns("value"), lambda key: (key.name,), _alone, _only
    ),
    "sliceref": RowKind(
        "chunk_ref",
        _columns("chunkid", "size"),
        _columns("refs"),
        _first_two,
        _alone,
        _only,
        unique=("chunkid",),
        absent=0,
    ),
    "dirstat": RowKind(
        "dir_stats",
        _columns("inode"),
        _columns("data_length", "used_space", "used_inodes"),
        _ino,
        tuple,
        lambda key, row: DirStat._make(row),
    ),
    "session": RowKind(
        "session2",
        _columns("sid"),
        (Column("expire"), Column("info", b"")),
        lambda key: (key.sid,),
        tuple,
        lambda key, row: Session._make(row),
    ),
    "sustained": RowKind(
        "sustained", _columns("sid", "inode"), (), _first_two, lambda record: (), lambda key, row: True
    ),
    "delfile": RowKind(
        "delfile", _columns("inode", "length"), _columns("expire"), _first_two, _alone, _only, unique=("inode",)
    ),
    "delayed": RowKind(
        "delslices", _columns("chunkid", "deleted"), _columns("slices"), _first_two, _alone, _only, unique=("chunkid",)
    ),
    "detached": RowKind("detached_node", _columns("inode"), _columns("added"), _ino, _alone, _only),
    "acl": RowKind("acl", _columns("id"), _RULE, lambda key: (key.id,), _rule_row, _rule),
    "flock": ListKind("flock", _columns("sid", "owner", "ltype"), flock_rows, flocks_of),
    "plock": ListKind("plock", _columns("sid", "owner", "records"), plock_rows, plocks_of),
    "parent": DerivedKind(
        "SELECT count(*) FROM {p}edge WHERE inode=? AND parent=?", _first_two, lambda count: count or None
    ),
}
_LOCKED: Final = {
    ranges: DerivedKind(
        f"SELECT count(*) FROM {{p}}{table} WHERE inode=? AND sid=?",
        lambda key: (key.ino, key.sid),
        lambda count: True if count else None,
    )
    for ranges, table in ((False, "flock"), (True, "plock"))
}
ACL_COUNT: Final = DerivedKind("SELECT coalesce(max(id),0) FROM {p}acl", lambda key: (), lambda number: number or None)


def kind_of(key: Key[Any]) -> AnyKind:
    """How the record of *key* is kept."""
    name = key.kind
    if name == "quota":
        assert isinstance(key, QuotaKey)
        return DIRECTORY_QUOTA if key.what == DIRECTORY else OWNER_QUOTA
    if name == "locked":
        return _LOCKED[key[2]]  # type: ignore[index]
    if name == "counter" and isinstance(key, CounterKey) and key.name == ACL_NUMBERS:
        return ACL_COUNT
    return _KINDS[name]


def decode(kind: AnyKind, key: Key[Any], rows: Sequence[Row]) -> Any:
    """The record that the rows found for *key* are."""
    if isinstance(kind, RowKind):
        return kind.decode(key, tuple(rows[0])) if rows else kind.absent
    if isinstance(kind, ListKind):
        return kind.decode(rows)
    return kind.decode(rows[0][0] if rows else 0)


def row_kind(name: str) -> RowKind:
    """The kind of that name, which is one of rows."""
    kind = _KINDS[name]
    assert isinstance(kind, RowKind)
    return kind
