"""JuiceFS's keys on Redis (format §4.1.2): commands that read, write, remove and add to each kind of record.

Pure: it builds command tuples and decodes replies. `reading` and `DECODING` belong together: the replies to a key's reading
commands, in order, decode to the record. A command's second word is always its key, which is what WATCH needs. In a Cluster every
key begins with the hash tag `{db}`, which is put into the forms of the keys once, so that a single server's cost no more.
"""

import re
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

_RECORD: Final = 24  # bytes of a slice record
_PUSH_AT_ONCE: Final = 1000  # elements of one RPUSH: a script can pass only some thousand arguments on

# Kinds whose one reading command gives what the reply to it would be after a write, by `as_read`.
REMEMBERED: Final = frozenset({"node", "edge", *locks.HASHES})

ADD_TO_EXISTING: Final = quotas.ADD_TO_EXISTING

# What belongs to a volume, for `is_blank` and `reset`; the real client's other features included.
_VOLUME_KEYS: Final = (
    rb"(?:setting|next(?:inode|chunk|session|Trash|CleanupSlices)|usedSpace|totalInodes|aclMaxId|krbTokenMaxId"
    rb"|lastCleanup(?:Sessions|Files|Trash|Changelog)|[idpsx]\d+|c\d+_\d+|lock[fp]\d+|locked\d+|session\d+|allSessions"
    rb"|sessions|sessionInfos|sliceRef|delfiles|detachedNodes|delSlices|dirDataLength|dirUsedSpace|dirUsedInodes"
    rb"|(?:dir|user|group)Quota(?:UsedSpace|UsedInodes)?|acl|krbToken|txnLog|txnLastLog)"
)


# Replies to reading commands, by kind.


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


def as_read(kind: str, writing: Sequence[Command]) -> Any:
    """The reply that a REMEMBERED kind's reading command would give after these commands of `putting`, or of `deleting` when there
    are none. A guess: others may write the same in another order."""
    if kind in locks.HASHES:
        return locks.as_read(writing)
    return writing[0][-1] if writing else None


def added(command: Command) -> Iterable[tuple[bytes | str | int, bytes | str | int]]:
    """The hashes that a pseudo-command of `adding_stat` adds to, and how much."""
    return zip(command[3::2], command[4::2], strict=True)


def slice_field(key: SliceRefKey) -> bytes:
    """The field of a slice's references."""
    return b"k%d_%d" % (key.id, key.size)


class _Counters(dict[str, bytes]):
    """The keys of counters by their names, each made when it is first asked for."""

    def __init__(self, prefix: bytes) -> None:
        super().__init__()
        self._prefix = prefix

    def __missing__(self, name: str) -> bytes:
        key = self[name] = self._prefix + (_COUNTERS.get(name) or name.encode())
        return key


class Layout:
    """The keys of a volume, all of which begin with *prefix*, and the commands on them by kind of record."""

    def __init__(self, prefix: bytes = b"") -> None:
        self.prefix = prefix
        self.setting = prefix + b"setting"
        self.slice_refs = prefix + b"sliceRef"
        self.sessions = prefix + b"allSessions"
        # Of clients before 1.0. In a Cluster it has no prefix all the same: it is in another slot, and of all volumes.
        self.old_sessions = b"" if prefix else b"sessions"
        self.session_infos = prefix + b"sessionInfos"
        self.deleted_files = prefix + b"delfiles"
        self.delayed = prefix + b"delSlices"
        self.detached = prefix + b"detachedNodes"
        self.change_log = prefix + b"txnLog"
        self.logged = prefix + b"txnLastLog"  # how many entries there ever were
        self.dir_length = prefix + b"dirDataLength"
        self.dir_space = prefix + b"dirUsedSpace"
        self.dir_inodes = prefix + b"dirUsedInodes"
        self.acls = prefix + b"acl"
        self.locks = locks.LockLayout(prefix)
        self.quotas = quotas.QuotaLayout(prefix)
        self.counters = _Counters(prefix)
        self._node = prefix + b"i%d"
        self._directory = prefix + b"d%d"
        self._chunk = prefix + b"c%d_%d"
        self._symlink = prefix + b"s%d"
        self._xattrs = prefix + b"x%d"
        self._parents = prefix + b"p%d"
        self._sustained = prefix + b"session%d"
        self.reading: Final = self._reading()
        self.putting: Final = self._putting()
        self.deleting: Final = self._deleting()

    def pattern(self, pattern: bytes) -> re.Pattern[bytes]:
        """A regular expression for whole keys from one for what follows the prefix."""
        return re.compile(re.escape(self.prefix) + pattern)

    def volume_keys(self) -> re.Pattern[bytes]:
        """What every key of a volume matches."""
        return self.pattern(_VOLUME_KEYS)

    def node(self, ino: int) -> bytes:
        return self._node % ino

    def directory(self, ino: int) -> bytes:
        return self._directory % ino

    def chunk(self, ino: int, indx: int) -> bytes:
        return self._chunk % (ino, indx)

    def xattrs(self, ino: int) -> bytes:
        return self._xattrs % ino

    def parents(self, ino: int) -> bytes:
        return self._parents % ino

    def sustained(self, sid: int) -> bytes:
        return self._sustained % sid

    def _reading(self) -> dict[str, Callable[[Any], tuple[Command, ...]]]:
        node, directory, chunk, symlink = self._node, self._directory, self._chunk, self._symlink
        xattrs, parents, sustained, counters = self._xattrs, self._parents, self._sustained, self.counters
        setting, slice_refs, deleted_files, delayed = self.setting, self.slice_refs, self.deleted_files, self.delayed
        detached, acls, sessions, session_infos = self.detached, self.acls, self.sessions, self.session_infos
        length, space, inodes = self.dir_length, self.dir_space, self.dir_inodes
        return {
            **self.locks.reading,
            **self.quotas.reading,
            "setting": lambda key: ((b"GET", setting),),
            "node": lambda key: ((b"GET", node % key.ino),),
            "edge": lambda key: ((b"HGET", directory % key.parent, key.name),),
            "symlink": lambda key: ((b"GET", symlink % key.ino),),
            "xattr": lambda key: ((b"HGET", xattrs % key.ino, key.name),),
            "chunk": lambda key: ((b"LRANGE", chunk % (key.ino, key.indx), 0, -1),),
            "counter": lambda key: ((b"GET", counters[key.name]),),
            "parent": lambda key: ((b"HGET", parents % key.ino, key.parent),),
            "sliceref": lambda key: ((b"HGET", slice_refs, slice_field(key)),),
            "dirstat": lambda key: (
                (b"HGET", length, key.ino),
                (b"HGET", space, key.ino),
                (b"HGET", inodes, key.ino),
            ),
            "session": lambda key: ((b"ZSCORE", sessions, key.sid), (b"HGET", session_infos, key.sid)),
            "sustained": lambda key: ((b"SISMEMBER", sustained % key.sid, key.ino),),
            "delfile": lambda key: ((b"ZSCORE", deleted_files, b"%d:%d" % key[:2]),),
            "delayed": lambda key: ((b"HGET", delayed, b"%d_%d" % key[:2]),),
            "detached": lambda key: ((b"ZSCORE", detached, key.ino),),
            "acl": lambda key: ((b"HGET", acls, key.id),),
        }

    def _putting(self) -> dict[str, Callable[[Any, Any], list[Command]]]:
        node, directory = self._node, self._directory

        def put_node(key: NodeKey, attr: Attr) -> list[Command]:
            return [(b"SET", node % key.ino, attr.pack())]

        def put_edge(key: EdgeKey, entry: Entry) -> list[Command]:
            return [(b"HSET", directory % key.parent, key.name, entry.pack())]

        return {
            **self.locks.putting,
            **self.quotas.putting,
            "setting": lambda key, record: [(b"SET", self.setting, record)],
            "node": put_node,
            "edge": put_edge,
            "symlink": lambda key, record: [(b"SET", self._symlink % key.ino, record)],
            "xattr": lambda key, record: [(b"HSET", self.xattrs(key.ino), key.name, record)],
            "chunk": self._put_chunk,
            "counter": lambda key, record: [(b"SET", self.counters[key.name], record)],
            "parent": lambda key, record: [(b"HSET", self.parents(key.ino), key.parent, record)],
            "sliceref": self._put_slice_ref,
            "dirstat": self._put_dir_stat,
            "session": self._put_session,
            "sustained": lambda key, record: [(b"SADD", self.sustained(key.sid), key.ino)],
            "delfile": lambda key, record: [(b"ZADD", self.deleted_files, record, b"%d:%d" % key[:2])],
            "delayed": self._put_delayed,
            "detached": lambda key, record: [(b"ZADD", self.detached, record, key.ino)],
            "acl": self._put_acl,
        }

    def _put_chunk(self, key: ChunkKey, records: bytes) -> list[Command]:
        name = self.chunk(key.ino, key.indx)
        pieces = [records[at : at + _RECORD] for at in range(0, len(records), _RECORD)]
        pushes: list[Command] = [
            (b"RPUSH", name, *pieces[at : at + _PUSH_AT_ONCE]) for at in range(0, len(pieces), _PUSH_AT_ONCE)
        ]
        return [(b"DEL", name), *pushes]

    def _put_slice_ref(self, key: SliceRefKey, count: int) -> list[Command]:
        if count == 1:  # what a missing field means
            return [(b"HDEL", self.slice_refs, slice_field(key))]
        return [(b"HSET", self.slice_refs, slice_field(key), count - 1)]

    def _put_dir_stat(self, key: DirStatKey, stat: DirStat) -> list[Command]:
        return [
            (b"HSET", self.dir_length, key.ino, stat.length),
            (b"HSET", self.dir_space, key.ino, stat.space),
            (b"HSET", self.dir_inodes, key.ino, stat.inodes),
        ]

    def _put_session(self, key: SessionKey, session: Session) -> list[Command]:
        return [
            (b"ZADD", self.sessions, session.expire, key.sid),
            (b"HSET", self.session_infos, key.sid, session.info),
        ]

    def _put_delayed(self, key: DelayedKey, records: bytes) -> list[Command]:
        return [(b"HSET", self.delayed, b"%d_%d" % key[:2], records)]

    def _put_acl(self, key: AclKey, rule: Rule) -> list[Command]:
        return [(b"HSET", self.acls, key.id, rule.pack())]

    def _deleting(self) -> dict[str, Callable[[Any], list[Command]]]:
        stats = (self.dir_length, self.dir_space, self.dir_inodes)
        return {
            **self.locks.deleting,
            **self.quotas.deleting,
            "setting": lambda key: [(b"DEL", self.setting)],
            "node": lambda key: [(b"DEL", self._node % key.ino)],
            "edge": lambda key: [(b"HDEL", self._directory % key.parent, key.name)],
            "symlink": lambda key: [(b"DEL", self._symlink % key.ino)],
            "xattr": lambda key: [(b"HDEL", self.xattrs(key.ino), key.name)],
            "chunk": lambda key: [(b"DEL", self.chunk(key.ino, key.indx))],
            "counter": lambda key: [(b"DEL", self.counters[key.name])],
            "parent": lambda key: [(b"HDEL", self.parents(key.ino), key.parent)],
            "sliceref": lambda key: [(b"HDEL", self.slice_refs, slice_field(key))],
            "dirstat": lambda key: [(b"HDEL", name, key.ino) for name in stats],
            "session": lambda key: [(b"ZREM", self.sessions, key.sid), (b"HDEL", self.session_infos, key.sid)],
            "sustained": lambda key: [(b"SREM", self.sustained(key.sid), key.ino)],
            "delfile": lambda key: [(b"ZREM", self.deleted_files, b"%d:%d" % key[:2])],
            "delayed": lambda key: [(b"HDEL", self.delayed, b"%d_%d" % key[:2])],
            "detached": lambda key: [(b"ZREM", self.detached, key.ino)],
            "acl": lambda key: [(b"HDEL", self.acls, key.id)],
        }

    def adding(self, key: CounterKey | ParentKey | SliceRefKey, delta: int) -> Command:
        """The command that adds to a number."""
        if isinstance(key, CounterKey):
            return (b"INCRBY", self.counters[key.name], delta)
        if isinstance(key, ParentKey):
            return (b"HINCRBY", self.parents(key.ino), key.parent, delta)
        return (b"HINCRBY", self.slice_refs, slice_field(key), delta)

    def adding_stat(self, key: DirStatKey, change: DirStat) -> list[Command]:
        """The pseudo-command that adds to a directory's usage where there is one; nothing when nothing is to be added."""
        length, space, inodes = change
        parts: list[bytes | int] = []
        if inodes:
            parts += (self.dir_inodes, inodes)
        if space:
            parts += (self.dir_space, space)
        if length:
            parts += (self.dir_length, length)
        return [(ADD_TO_EXISTING, self.dir_inodes, key.ino, *parts)] if parts else []

    def appending(self, key: ChunkKey, packed: bytes, existing_only: bool) -> Command:
        """The command that appends a slice record."""
        return (b"RPUSHX" if existing_only else b"RPUSH", self._chunk % (key.ino, key.indx), packed)

    def logging(self, lines: Sequence[bytes]) -> list[Command]:
        """The commands that add to the change log."""
        return [(b"RPUSH", self.change_log, *lines), (b"INCRBY", self.logged, len(lines))]
