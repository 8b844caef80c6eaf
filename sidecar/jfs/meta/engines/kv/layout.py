"""JuiceFS's keys and values in ordered key-value databases (format §4.3.2), without the prefix of a volume's keys.

A record is one value, but for a session, which is two; `keys`, `encode` and `decode` go together, value by value. Inodes in keys
are little-endian, so that they spread; counters that are added to are, too; everything else is big-endian. Pure.
"""

import struct
from collections.abc import Callable, Sequence
from typing import Any, Final

from jfs.errors import CorruptRecord
from jfs.meta.model.acl import AclKey, unpack_rule
from jfs.meta.model.attr import unpack_attr, unpack_entry
from jfs.meta.model.keys import (
    ChunkKey,
    CounterKey,
    DelayedKey,
    DeletedFileKey,
    DetachedKey,
    DirStat,
    DirStatKey,
    EdgeKey,
    Key,
    NodeKey,
    ParentKey,
    Session,
    SessionKey,
    SliceRefKey,
    SustainedKey,
    SymlinkKey,
    XattrKey,
)
from jfs.meta.model.locks import Flock, FlockKey, LockedKey, Plock, PlockKey
from jfs.meta.model.quota import DIRECTORY, GROUP, USER, Quota, QuotaKey

_INO: Final = struct.Struct("<Q")
_NUMBER: Final = struct.Struct("<q")
_TIME: Final = struct.Struct(">q")
_ID: Final = struct.Struct(">Q")
_INDEX: Final = struct.Struct(">I")
_SLICE: Final = struct.Struct(">QI")
_TWO: Final = struct.Struct(">QQ")
_STAT: Final = struct.Struct(">qqq")
_QUOTA: Final = struct.Struct(">qqqq")
_FLOCK: Final = struct.Struct(">QQB")
_PLOCK: Final = struct.Struct(">QQI")
_RECORD: Final = 24

SETTING: Final = b"setting"
NODES: Final = b"A"
COUNTERS: Final = b"C"
DELETED_FILES: Final = b"D"
FLOCKS: Final = b"F"
PLOCKS: Final = b"P"
SLICE_REFS: Final = b"K"
DELAYED: Final = b"L"
SESSIONS: Final = b"SE"
OLD_SESSIONS: Final = b"SH"
SESSION_INFOS: Final = b"SI"
SUSTAINED: Final = b"SS"
DIR_STATS: Final = b"U"
DETACHED: Final = b"N"
QUOTAS: Final = {DIRECTORY: b"QD", USER: b"QU", GROUP: b"QG"}
RULES: Final = b"R"


def inode(ino: int) -> bytes:
    """What all keys of an inode begin with."""
    return NODES + _INO.pack(ino)


def entries(ino: int) -> bytes:
    """What the keys of a directory's entries begin with; the name follows."""
    return NODES + _INO.pack(ino) + b"D"


def xattrs(ino: int) -> bytes:
    return NODES + _INO.pack(ino) + b"X"


def parents(ino: int) -> bytes:
    return NODES + _INO.pack(ino) + b"P"


def chunks(ino: int) -> bytes:
    return NODES + _INO.pack(ino) + b"C"


def sustained(sid: int) -> bytes:
    return SUSTAINED + _ID.pack(sid)


CHANGE_LOG: Final = b"XLOG"
_LOG_RANGES: Final = 64


def logged(id: int) -> bytes:
    """An entry of the change log, as TiKV has it: spread over 64 ranges (format §4.3.2)."""
    return CHANGE_LOG + bytes([(id ^ id >> 18) % _LOG_RANGES]) + id.to_bytes(8, "big")


def logged_version(key: bytes) -> int:
    """The id in the key of an entry."""
    return int.from_bytes(key[-8:], "big")


def logged_ranges(version: int) -> list[tuple[bytes, bytes]]:
    """Where entries with ids above *version* are."""
    places = [CHANGE_LOG + bytes([place]) for place in range(_LOG_RANGES)]
    return [(place + (version + 1).to_bytes(8, "big"), after(place)) for place in places]


def after(prefix: bytes) -> bytes:
    """The first key behind all that begin with *prefix*, which does not end in 0xFF."""
    return prefix[:-1] + bytes((prefix[-1] + 1,))


def end_of(prefix: bytes) -> bytes:
    """As `after`, for any prefix."""
    kept = prefix.rstrip(b"\xff")
    return after(kept)


def _quota_key(key: QuotaKey) -> bytes:
    return QUOTAS[key.what] + (_INO if key.what == DIRECTORY else _ID).pack(key.id)


_KEYS: Final[dict[str, Callable[[Any], tuple[bytes, ...]]]] = {
    "setting": lambda key: (SETTING,),
    "node": lambda key: (NODES + _INO.pack(key.ino) + b"I",),
    "edge": lambda key: (NODES + _INO.pack(key.parent) + b"D" + key.name,),
    "symlink": lambda key: (NODES + _INO.pack(key.ino) + b"S",),
    "xattr": lambda key: (xattrs(key.ino) + key.name,),
    "chunk": lambda key: (chunks(key.ino) + _INDEX.pack(key.indx),),
    "counter": lambda key: (COUNTERS + key.name.encode(),),
    "parent": lambda key: (parents(key.ino) + _INO.pack(key.parent),),
    "sliceref": lambda key: (SLICE_REFS + _SLICE.pack(key.id, key.size),),
    "dirstat": lambda key: (DIR_STATS + _INO.pack(key.ino),),
    "session": lambda key: (SESSIONS + _ID.pack(key.sid), SESSION_INFOS + _ID.pack(key.sid)),
    "sustained": lambda key: (sustained(key.sid) + _INO.pack(key.ino),),
    "delfile": lambda key: (DELETED_FILES + _INO.pack(key.ino) + _ID.pack(key.length),),
    "delayed": lambda key: (DELAYED + _TWO.pack(key.time, key.id),),
    "detached": lambda key: (DETACHED + _INO.pack(key.ino),),
    "acl": lambda key: (RULES + _INDEX.pack(key.id),),
    "quota": lambda key: (_quota_key(key),),
    "flock": lambda key: (FLOCKS + _INO.pack(key.ino),),
    "plock": lambda key: (PLOCKS + _INO.pack(key.ino),),
    # There is no index: a session's locks are found by looking at all locks; nothing is written for it.
    "locked": lambda key: ((PLOCKS if key.ranges else FLOCKS) + _INO.pack(key.ino),),
}


def keys(key: Key[Any]) -> tuple[bytes, ...]:
    """Where the record of *key* is."""
    return _KEYS[key.kind](key)


def _number_form(name: str) -> struct.Struct:
    """Times that elections set are big-endian (format §3.7)."""
    return _TIME if name.startswith("lastCleanup") or name == "nextCleanupSlices" else _NUMBER


def _unpacked(form: struct.Struct, raw: bytes, what: str) -> tuple[Any, ...]:
    if len(raw) != form.size:
        raise CorruptRecord(f"{what} has {len(raw)} bytes instead of {form.size}")
    return form.unpack(raw)


def _slices(key: ChunkKey, raw: bytes) -> bytes:
    if len(raw) % _RECORD:
        raise CorruptRecord(
            f"the slices of inode {key.ino}, chunk {key.indx}, have {len(raw)} bytes, no multiple of {_RECORD}"
        )
    return raw


def _flocks(key: FlockKey, raw: bytes) -> tuple[Flock, ...] | None:
    if len(raw) % _FLOCK.size:
        raise CorruptRecord(f"the flocks of inode {key.ino} have {len(raw)} bytes, no multiple of {_FLOCK.size}")
    return tuple(sorted(Flock(sid, owner, kind == ord("W")) for sid, owner, kind in _FLOCK.iter_unpack(raw))) or None


def _plocks(key: PlockKey, raw: bytes) -> tuple[Plock, ...] | None:
    found = []
    at = 0
    while at < len(raw):
        if at + _PLOCK.size > len(raw):
            raise CorruptRecord(f"the fcntl locks of inode {key.ino} end in the middle of one")
        sid, owner, size = _PLOCK.unpack_from(raw, at)
        at += _PLOCK.size
        if at + size > len(raw):
            raise CorruptRecord(f"the fcntl locks of inode {key.ino} end in the middle of one")
        found.append(Plock(sid, owner, raw[at : at + size]))
        at += size
    return tuple(sorted(found)) or None


def _pack_plocks(locks: tuple[Plock, ...]) -> bytes:
    return b"".join(_PLOCK.pack(sid, owner, len(ranges)) + ranges for sid, owner, ranges in locks)


def _locked(key: LockedKey, raws: Sequence[Any]) -> bool | None:
    locks = _plocks(PlockKey(key.ino), raws[0]) if key.ranges else _flocks(FlockKey(key.ino), raws[0])
    return True if any(lock.sid == key.sid for lock in locks or ()) else None


# The first value is not None.
_DECODE: Final[dict[str, Callable[[Any, Sequence[Any]], Any]]] = {
    "setting": lambda key, raws: raws[0],
    "node": lambda key, raws: unpack_attr(raws[0]),
    "edge": lambda key, raws: unpack_entry(raws[0]),
    "symlink": lambda key, raws: raws[0],
    "xattr": lambda key, raws: raws[0],
    "chunk": lambda key, raws: _slices(key, raws[0]),
    "counter": lambda key, raws: _unpacked(_number_form(key.name), raws[0], f"counter {key.name}")[0],
    "parent": lambda key, raws: _unpacked(_NUMBER, raws[0], f"a parent's count of inode {key.ino}")[0],
    "sliceref": lambda key, raws: _unpacked(_NUMBER, raws[0], f"the references of slice {key.id}")[0] + 1,
    "dirstat": lambda key, raws: DirStat._make(_unpacked(_STAT, raws[0], f"the usage of directory {key.ino}")),
    "session": lambda key, raws: Session(_unpacked(_TIME, raws[0], f"session {key.sid}")[0], raws[1] or b""),
    "sustained": lambda key, raws: True,
    "delfile": lambda key, raws: _unpacked(_TIME, raws[0], f"the deleted file {key.ino}")[0],
    "delayed": lambda key, raws: raws[0],
    "detached": lambda key, raws: _unpacked(_TIME, raws[0], f"the detached inode {key.ino}")[0],
    "acl": lambda key, raws: unpack_rule(raws[0]),
    "quota": lambda key, raws: Quota._make(_unpacked(_QUOTA, raws[0], f"quota {key.id}")),
    "flock": lambda key, raws: _flocks(key, raws[0]),
    "plock": lambda key, raws: _plocks(key, raws[0]),
    "locked": _locked,
}


def decode(key: Key[Any], raws: Sequence[bytes | None]) -> Any:
    """The record of the values at `keys(key)`. CorruptRecord."""
    if not raws or raws[0] is None:
        return 1 if key.kind == "sliceref" else None
    return _DECODE[key.kind](key, raws)


_ENCODE: Final[dict[str, Callable[[Any, Any], tuple[bytes | None, ...]]]] = {
    "setting": lambda key, record: (record,),
    "node": lambda key, record: (record.pack(),),
    "edge": lambda key, record: (record.pack(),),
    "symlink": lambda key, record: (record,),
    "xattr": lambda key, record: (record,),
    "chunk": lambda key, record: (record,),
    "counter": lambda key, record: (_number_form(key.name).pack(record),),
    "parent": lambda key, record: (_NUMBER.pack(record),),
    # What a missing value means is not stored.
    "sliceref": lambda key, record: (None if record == 1 else _NUMBER.pack(record - 1),),
    "dirstat": lambda key, record: (_STAT.pack(*record),),
    "session": lambda key, record: (_TIME.pack(record.expire), record.info),
    "sustained": lambda key, record: (b"\x01",),
    "delfile": lambda key, record: (_TIME.pack(record),),
    "delayed": lambda key, record: (record,),
    "detached": lambda key, record: (_TIME.pack(record),),
    "acl": lambda key, record: (record.pack(),),
    "quota": lambda key, record: (_QUOTA.pack(*record),),
    "flock": lambda key, record: (
        b"".join(_FLOCK.pack(sid, owner, ord("W") if w else ord("R")) for sid, owner, w in record),
    ),
    "plock": lambda key, record: (_pack_plocks(record),),
}


def encode(key: Key[Any], record: Any) -> tuple[bytes | None, ...]:
    """The values at `keys(key)`, None for none."""
    return (None,) * len(keys(key)) if record is None else _ENCODE[key.kind](key, record)


# Keys back from what is stored, for scans: what the keys of a kind begin with, and the key of the rest.


def _after_inode(letter: bytes, make: Callable[[int, bytes], Any]) -> Callable[[bytes], Any]:
    def parse(raw: bytes) -> Any:
        if raw[9:10] != letter:
            return None
        return make(_INO.unpack_from(raw, 1)[0], raw[10:])

    return parse


PARSING: Final[dict[type, tuple[bytes, Callable[[bytes], Any]]]] = {
    NodeKey: (NODES, _after_inode(b"I", lambda ino, rest: NodeKey(ino))),
    EdgeKey: (NODES, _after_inode(b"D", EdgeKey)),
    SymlinkKey: (NODES, _after_inode(b"S", lambda ino, rest: SymlinkKey(ino))),
    XattrKey: (NODES, _after_inode(b"X", XattrKey)),
    ChunkKey: (NODES, _after_inode(b"C", lambda ino, rest: ChunkKey(ino, _INDEX.unpack(rest)[0]))),
    ParentKey: (NODES, _after_inode(b"P", lambda ino, rest: ParentKey(ino, _INO.unpack(rest)[0]))),
    SliceRefKey: (SLICE_REFS, lambda raw: SliceRefKey(*_SLICE.unpack(raw[1:]))),
    DirStatKey: (DIR_STATS, lambda raw: DirStatKey(_INO.unpack(raw[1:])[0])),
    SessionKey: (SESSIONS, lambda raw: SessionKey(_ID.unpack(raw[2:])[0])),
    SustainedKey: (SUSTAINED, lambda raw: SustainedKey(_ID.unpack_from(raw, 2)[0], _INO.unpack_from(raw, 10)[0])),
    DeletedFileKey: (
        DELETED_FILES,
        lambda raw: DeletedFileKey(_INO.unpack_from(raw, 1)[0], _ID.unpack_from(raw, 9)[0]),
    ),
    DelayedKey: (DELAYED, lambda raw: DelayedKey(*reversed(_TWO.unpack(raw[1:])))),
    DetachedKey: (DETACHED, lambda raw: DetachedKey(_INO.unpack(raw[1:])[0])),
    AclKey: (RULES, lambda raw: AclKey(_INDEX.unpack(raw[1:])[0])),
    FlockKey: (FLOCKS, lambda raw: FlockKey(_INO.unpack(raw[1:])[0])),
    PlockKey: (PLOCKS, lambda raw: PlockKey(_INO.unpack(raw[1:])[0])),
}


def parse_quota(raw: bytes) -> QuotaKey:
    """The key of a stored quota."""
    what = next(what for what, prefix in QUOTAS.items() if raw.startswith(prefix))
    return QuotaKey(what, (_INO if what == DIRECTORY else _ID).unpack(raw[2:])[0])


def parse_counter(raw: bytes) -> CounterKey:
    """The key of a stored counter."""
    return CounterKey(raw[1:].decode("utf-8", "replace"))


def heartbeat(raw: bytes) -> tuple[int, ...]:
    """Seconds of an old session's record."""
    return _unpacked(_TIME, raw, "the heartbeat of an old session")
