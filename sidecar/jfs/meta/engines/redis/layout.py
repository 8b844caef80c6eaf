"""JuiceFS's keys on Redis (format §4.1.2): commands that read, write, remove and add to each kind of record.

Pure: it builds command tuples and decodes replies. `reading` and `decode` belong together: the replies to a key's reading
commands, in order, decode to the record. A command's second word is always its key, which is what WATCH needs.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from jfs.errors import CorruptRecord
from jfs.meta.engines.redis import locks, quotas
from jfs.meta.engines.redis.connection import Command
from jfs.meta.model.acl import AclKey, Rule, unpack_rule
from jfs.meta.model.attr import Attr, Entry, unpack_attr, unpack_entry
from jfs.meta.model.keys import (
    ChunkKey,
    CounterKey,
    DelayedKey,
    DirStat,
    DirStatKey,
    EdgeKey,
    NodeKey,
    ParentKey,
    Session,
    SessionKey,
    SliceRefKey,
)

# The three counters that Redis spells in lower case (format §3.7).
_COUNTERS: Final = {"nextInode": b"nextinode", "nextChunk": b"nextchunk", "nextSession": b"nextsession"}

SETTING: Final = b"setting"
SLICE_REFS: Final = b"sliceRef"
SESSIONS: Final = b"allSessions"
OLD_SESSIONS: Final = b"sessions"
SESSION_INFOS: Final = b"sessionInfos"
DELETED_FILES: Final = b"delfiles"
DELAYED: Final = b"delSlices"
DETACHED: Final = b"detachedNodes"
CHANGE_LOG: Final = b"txnLog"
LOGGED: Final = b"txnLastLog"  # how many entries there ever were
DIR_LENGTH: Final = b"dirDataLength"
DIR_SPACE: Final = b"dirUsedSpace"
DIR_INODES: Final = b"dirUsedInodes"
ACLS: Final = b"acl"

_RECORD: Final = 24  # bytes of a slice record
_PUSH_AT_ONCE: Final = 1000  # elements of one RPUSH: a script can pass only some thousand arguments on

# Kinds whose one reading command gives what the reply to it would be after a write, by `as_read`.
REMEMBERED: Final = frozenset({"node", "edge", *locks.HASHES})

ADD_TO_EXISTING: Final = quotas.ADD_TO_EXISTING


def counter_name(name: str) -> bytes:
    """The key of a counter."""
    return _COUNTERS.get(name) or name.encode()


def node(ino: int) -> bytes:
    return b"i%d" % ino


def directory(ino: int) -> bytes:
    return b"d%d" % ino


def chunk(ino: int, indx: int) -> bytes:
    return b"c%d_%d" % (ino, indx)


def xattrs(ino: int) -> bytes:
    return b"x%d" % ino


def parents(ino: int) -> bytes:
    return b"p%d" % ino


def sustained(sid: int) -> bytes:
    return b"session%d" % sid


def slice_field(key: SliceRefKey) -> bytes:
    return b"k%d_%d" % (key.id, key.size)


# Reading commands by kind.

READING: Final[dict[str, Callable[[Any], tuple[Command, ...]]]] = {
    **locks.READING,
    **quotas.READING,
    "setting": lambda key: ((b"GET", SETTING),),
    "node": lambda key: ((b"GET", b"i%d" % key.ino),),
    "edge": lambda key: ((b"HGET", b"d%d" % key.parent, key.name),),
    "symlink": lambda key: ((b"GET", b"s%d" % key.ino),),
    "xattr": lambda key: ((b"HGET", xattrs(key.ino), key.name),),
    "chunk": lambda key: ((b"LRANGE", chunk(key.ino, key.indx), 0, -1),),
    "counter": lambda key: ((b"GET", counter_name(key.name)),),
    "parent": lambda key: ((b"HGET", parents(key.ino), key.parent),),
    "sliceref": lambda key: ((b"HGET", SLICE_REFS, slice_field(key)),),
    "dirstat": lambda key: (
        (b"HGET", DIR_LENGTH, key.ino),
        (b"HGET", DIR_SPACE, key.ino),
        (b"HGET", DIR_INODES, key.ino),
    ),
    "session": lambda key: ((b"ZSCORE", SESSIONS, key.sid), (b"HGET", SESSION_INFOS, key.sid)),
    "sustained": lambda key: ((b"SISMEMBER", sustained(key.sid), key.ino),),
    "delfile": lambda key: ((b"ZSCORE", DELETED_FILES, b"%d:%d" % key[:2]),),
    "delayed": lambda key: ((b"HGET", DELAYED, b"%d_%d" % key[:2]),),
    "detached": lambda key: ((b"ZSCORE", DETACHED, key.ino),),
    "acl": lambda key: ((b"HGET", ACLS, key.id),),
}


def _number(raw: bytes | None) -> int | None:
    return None if raw is None else int(raw)


def score(raw: bytes | None) -> int | None:
    """A sorted set's score as the whole number it is."""
    return None if raw is None else int(float(raw))


def joined(key: ChunkKey, records: Sequence[bytes]) -> bytes | None:
    """A chunk's list as one string; CorruptRecord when an element is not a slice record."""
    if not records:
        return None
    if any(len(record) != _RECORD for record in records):
        raise CorruptRecord(
            f"the slices of inode {key.ino}, chunk {key.indx}, have an element that is not {_RECORD} bytes long"
        )
    return b"".join(records)


def _dir_stat(key: DirStatKey, replies: Sequence[Any]) -> DirStat | None:
    if all(reply is None for reply in replies):
        return None
    return DirStat._make(int(reply or 0) for reply in replies)


def _session(key: SessionKey, replies: Sequence[Any]) -> Session | None:
    expire = score(replies[0])
    return None if expire is None else Session(expire, replies[1] or b"")


DECODING: Final[dict[str, Callable[[Any, Sequence[Any]], Any]]] = {
    **locks.DECODING,
    **quotas.DECODING,
    "setting": lambda key, replies: replies[0],
    "node": lambda key, replies: None if replies[0] is None else unpack_attr(replies[0]),
    "edge": lambda key, replies: None if replies[0] is None else unpack_entry(replies[0]),
    "symlink": lambda key, replies: replies[0],
    "xattr": lambda key, replies: replies[0],
    "chunk": lambda key, replies: joined(key, replies[0]),
    "counter": lambda key, replies: _number(replies[0]),
    "parent": lambda key, replies: _number(replies[0]),
    "sliceref": lambda key, replies: 1 if replies[0] is None else int(replies[0]) + 1,
    "dirstat": _dir_stat,
    "session": _session,
    "sustained": lambda key, replies: True if replies[0] else None,
    "delfile": lambda key, replies: score(replies[0]),
    "delayed": lambda key, replies: replies[0],
    "detached": lambda key, replies: score(replies[0]),
    "acl": lambda key, replies: None if replies[0] is None else unpack_rule(replies[0]),
}


# Writing commands by kind.


def _put_chunk(key: ChunkKey, records: bytes) -> list[Command]:
    name = chunk(key.ino, key.indx)
    pieces = [records[at : at + _RECORD] for at in range(0, len(records), _RECORD)]
    pushes: list[Command] = [
        (b"RPUSH", name, *pieces[at : at + _PUSH_AT_ONCE]) for at in range(0, len(pieces), _PUSH_AT_ONCE)
    ]
    return [(b"DEL", name), *pushes]


def _put_slice_ref(key: SliceRefKey, count: int) -> list[Command]:
    if count == 1:  # what a missing field means
        return [(b"HDEL", SLICE_REFS, slice_field(key))]
    return [(b"HSET", SLICE_REFS, slice_field(key), count - 1)]


def _put_dir_stat(key: DirStatKey, stat: DirStat) -> list[Command]:
    return [
        (b"HSET", DIR_LENGTH, key.ino, stat.length),
        (b"HSET", DIR_SPACE, key.ino, stat.space),
        (b"HSET", DIR_INODES, key.ino, stat.inodes),
    ]


def _put_session(key: SessionKey, session: Session) -> list[Command]:
    return [(b"ZADD", SESSIONS, session.expire, key.sid), (b"HSET", SESSION_INFOS, key.sid, session.info)]


def _put_node(key: NodeKey, attr: Attr) -> list[Command]:
    return [(b"SET", b"i%d" % key.ino, attr.pack())]


def _put_edge(key: EdgeKey, entry: Entry) -> list[Command]:
    return [(b"HSET", b"d%d" % key.parent, key.name, entry.pack())]


def _put_delayed(key: DelayedKey, records: bytes) -> list[Command]:
    return [(b"HSET", DELAYED, b"%d_%d" % key[:2], records)]


def _put_acl(key: AclKey, rule: Rule) -> list[Command]:
    return [(b"HSET", ACLS, key.id, rule.pack())]


PUTTING: Final[dict[str, Callable[[Any, Any], list[Command]]]] = {
    **locks.PUTTING,
    **quotas.PUTTING,
    "setting": lambda key, record: [(b"SET", SETTING, record)],
    "node": _put_node,
    "edge": _put_edge,
    "symlink": lambda key, record: [(b"SET", b"s%d" % key.ino, record)],
    "xattr": lambda key, record: [(b"HSET", xattrs(key.ino), key.name, record)],
    "chunk": _put_chunk,
    "counter": lambda key, record: [(b"SET", counter_name(key.name), record)],
    "parent": lambda key, record: [(b"HSET", parents(key.ino), key.parent, record)],
    "sliceref": _put_slice_ref,
    "dirstat": _put_dir_stat,
    "session": _put_session,
    "sustained": lambda key, record: [(b"SADD", sustained(key.sid), key.ino)],
    "delfile": lambda key, record: [(b"ZADD", DELETED_FILES, record, b"%d:%d" % key[:2])],
    "delayed": _put_delayed,
    "detached": lambda key, record: [(b"ZADD", DETACHED, record, key.ino)],
    "acl": _put_acl,
}

DELETING: Final[dict[str, Callable[[Any], list[Command]]]] = {
    **locks.DELETING,
    **quotas.DELETING,
    "setting": lambda key: [(b"DEL", SETTING)],
    "node": lambda key: [(b"DEL", b"i%d" % key.ino)],
    "edge": lambda key: [(b"HDEL", b"d%d" % key.parent, key.name)],
    "symlink": lambda key: [(b"DEL", b"s%d" % key.ino)],
    "xattr": lambda key: [(b"HDEL", xattrs(key.ino), key.name)],
    "chunk": lambda key: [(b"DEL", chunk(key.ino, key.indx))],
    "counter": lambda key: [(b"DEL", counter_name(key.name))],
    "parent": lambda key: [(b"HDEL", parents(key.ino), key.parent)],
    "sliceref": lambda key: [(b"HDEL", SLICE_REFS, slice_field(key))],
    "dirstat": lambda key: [(b"HDEL", name, key.ino) for name in (DIR_LENGTH, DIR_SPACE, DIR_INODES)],
    "session": lambda key: [(b"ZREM", SESSIONS, key.sid), (b"HDEL", SESSION_INFOS, key.sid)],
    "sustained": lambda key: [(b"SREM", sustained(key.sid), key.ino)],
    "delfile": lambda key: [(b"ZREM", DELETED_FILES, b"%d:%d" % key[:2])],
    "delayed": lambda key: [(b"HDEL", DELAYED, b"%d_%d" % key[:2])],
    "detached": lambda key: [(b"ZREM", DETACHED, key.ino)],
    "acl": lambda key: [(b"HDEL", ACLS, key.id)],
}


def as_read(kind: str, writing: Sequence[Command]) -> Any:
    """The reply that a REMEMBERED kind's reading command would give after these commands of PUTTING, or of DELETING when there are
    none. A guess: others may write the same in another order."""
    if kind in locks.HASHES:
        return locks.as_read(writing)
    return writing[0][-1] if writing else None


def adding(key: CounterKey | ParentKey | SliceRefKey, delta: int) -> Command:
    """The command that adds to a number."""
    if isinstance(key, CounterKey):
        return (b"INCRBY", counter_name(key.name), delta)
    if isinstance(key, ParentKey):
        return (b"HINCRBY", parents(key.ino), key.parent, delta)
    return (b"HINCRBY", SLICE_REFS, slice_field(key), delta)


def adding_stat(key: DirStatKey, change: DirStat) -> list[Command]:
    """The pseudo-command that adds to a directory's usage where there is one; nothing when nothing is to be added."""
    length, space, inodes = change
    parts: list[bytes | int] = []
    if inodes:
        parts += (DIR_INODES, inodes)
    if space:
        parts += (DIR_SPACE, space)
    if length:
        parts += (DIR_LENGTH, length)
    return [(ADD_TO_EXISTING, DIR_INODES, key.ino, *parts)] if parts else []


def added(command: Command) -> Iterable[tuple[bytes | str | int, bytes | str | int]]:
    """The hashes that a pseudo-command of `adding_stat` adds to, and how much."""
    return zip(command[3::2], command[4::2], strict=True)


def appending(key: ChunkKey, packed: bytes, existing_only: bool) -> Command:
    """The command that appends a slice record."""
    return (b"RPUSHX" if existing_only else b"RPUSH", chunk(key.ino, key.indx), packed)


def logging(lines: Sequence[bytes]) -> list[Command]:
    """The commands that add to the change log."""
    return [(b"RPUSH", CHANGE_LOG, *lines), (b"INCRBY", LOGGED, len(lines))]


# What belongs to a volume, for `is_blank` and `reset`; the real client's other features included.
VOLUME_KEYS: Final = (
    rb"(?:setting|next(?:inode|chunk|session|Trash|CleanupSlices)|usedSpace|totalInodes|aclMaxId|krbTokenMaxId"
    rb"|lastCleanup(?:Sessions|Files|Trash|Changelog)|[idpsx]\d+|c\d+_\d+|lock[fp]\d+|locked\d+|session\d+|allSessions"
    rb"|sessions|sessionInfos|sliceRef|delfiles|detachedNodes|delSlices|dirDataLength|dirUsedSpace|dirUsedInodes"
    rb"|(?:dir|user|group)Quota(?:UsedSpace|UsedInodes)?|acl|krbToken|txnLog|txnLastLog)"
)
