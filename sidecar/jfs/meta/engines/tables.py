"""JuiceFS 1.4's tables, for every SQL engine (format §4.2.2): columns, keys and index names are those the real client's ORM makes.

What an engine calls the kinds of columns, and how it adds what a database lacks, is in its own `schema`. Pure.
"""

from typing import Final, NamedTuple


class Column(NamedTuple):
    """A column: name, kind (which an engine gives a type), and what is behind the type."""

    name: str
    kind: str
    constraint: str = "NOT NULL"


class Table(NamedTuple):
    """A table: columns, primary key, indexes as (unique, name's tail, columns)."""

    name: str
    columns: tuple[Column, ...]
    primary_key: tuple[str, ...]
    indexes: tuple[tuple[bool, str, tuple[str, ...]], ...] = ()

    def index_name(self, prefix: str, unique: bool, tail: str) -> str:
        """The name of one of its indexes."""
        return f"{'UQE' if unique else 'IDX'}_{prefix}{self.name}_{tail}"


_NULL: Final = "NULL"


def _of(kind: str, *names: str, constraint: str = "NOT NULL") -> tuple[Column, ...]:
    return tuple(Column(name, kind, constraint) for name in names)


_ID: Final = Column("id", "id")
_INODE: Final = _of("long", "inode")
_QUOTA: Final = _of("long", "max_space", "max_inodes", "used_space", "used_inodes")

TABLES: Final = (
    Table("setting", (*_of("string", "name"), *_of("text", "value")), ("name",)),
    Table("counter", (*_of("string", "name"), *_of("long", "value")), ("name",)),
    Table(
        "edge",
        (_ID, *_of("long", "parent"), *_of("name", "name"), *_INODE, *_of("int", "type")),
        ("id",),
        ((True, "edge", ("parent", "name")), (False, "inode", ("inode",))),
    ),
    Table(
        "node",
        (
            *_INODE,
            *_of("int", "type", "flags", "mode", "uid", "gid"),
            *_of("long", "atime", "mtime", "ctime"),
            *_of("int", "atimensec", "mtimensec", "ctimensec", constraint="DEFAULT 0 NOT NULL"),
            *_of("int", "nlink"),
            *_of("long", "length"),
            *_of("int", "rdev", constraint=_NULL),
            *_of("long", "parent", constraint=_NULL),
            *_of("int", "access_acl_id", "default_acl_id", "tier_id", constraint=_NULL),
        ),
        ("inode",),
    ),
    Table("symlink", (*_INODE, *_of("target", "target")), ("inode",)),
    Table(
        "xattr",
        (_ID, *_INODE, *_of("string", "name"), *_of("blob", "value")),
        ("id",),
        ((True, "name", ("inode", "name")),),
    ),
    Table(
        "chunk",
        (_ID, *_INODE, *_of("int", "indx"), *_of("blob", "slices")),
        ("id",),
        ((True, "chunk", ("inode", "indx")),),
    ),
    Table(
        "chunk_ref", (*_of("long", "chunkid"), *_of("int", "size", "refs")), ("chunkid",), ((False, "refs", ("refs",)),)
    ),
    Table("delslices", (*_of("long", "chunkid", "deleted"), *_of("blob", "slices")), ("chunkid",)),
    Table("session2", (*_of("long", "sid", "expire"), *_of("blob", "info", constraint=_NULL)), ("sid",)),
    Table("sustained", (_ID, *_of("long", "sid", "inode")), ("id",), ((True, "sustained", ("sid", "inode")),)),
    Table("delfile", (*_INODE, *_of("long", "length", "expire")), ("inode",)),
    Table(
        "flock",
        (_ID, *_of("long", "inode", "sid", "owner"), *_of("int", "ltype")),
        ("id",),
        ((True, "flock", ("inode", "sid", "owner")),),
    ),
    Table(
        "plock",
        (_ID, *_of("long", "inode", "sid", "owner"), *_of("blob", "records")),
        ("id",),
        ((True, "plock", ("inode", "sid", "owner")),),
    ),
    Table("dir_quota", (*_INODE, *_QUOTA), ("inode",)),
    Table("user_group_quota", (*_of("int", "qtype"), *_of("long", "qkey"), *_QUOTA), ("qtype", "qkey")),
    Table("dir_stats", (*_INODE, *_of("long", "data_length", "used_space", "used_inodes")), ("inode",)),
    Table("detached_node", (*_INODE, *_of("long", "added")), ("inode",)),
    Table(
        "acl",
        (
            Column("id", "id32"),
            *_of("int", "owner", "group", "mask", "other", constraint=_NULL),
            *_of("blob", "named_users", "named_groups", constraint=_NULL),
        ),
        ("id",),
    ),
    Table("delegation_token", (Column("id", "id32"), *_of("blob", "token", constraint=_NULL)), ("id",)),
    Table("change_log", (_ID, *_of("text", "entry")), ("id",)),
)
