"""Lock records on Redis (format §3.4, §4.1.2): hashes `lockf<ino>` and `lockp<ino>` with a field for each owner, and the sets
`locked<sid>` by which the locks of a dead session are found.

Pure, and part of `layout`. A change writes the whole hash again: the transaction has read all of it, and locks are few.
A field that is not understood is refused, since writing the hash again would drop it.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any, Final

from jfs.errors import CorruptRecord
from jfs.meta.engines.redis.connection import Command
from jfs.meta.model.locks import Flock, FlockKey, LockedKey, Plock, PlockKey

_FIELD: Final = re.compile(rb"(\d+)_([0-9A-Fa-f]{1,16})")
_SET_AT_ONCE: Final = 1000  # fields of one HSET: a script can pass only some thousand arguments on


def _owner(field: bytes) -> tuple[int, int]:
    match = _FIELD.fullmatch(field)
    if match is None:
        raise CorruptRecord(f"the lock owner {field!r} is malformed")
    return int(match[1]), int(match[2], 16)


def _decode_flocks(key: FlockKey, replies: Sequence[Any]) -> tuple[Flock, ...] | None:
    flat = replies[0]
    locks = []
    for field, value in zip(flat[::2], flat[1::2], strict=True):
        if value not in (b"R", b"W"):
            raise CorruptRecord(f"the lock {value!r} of inode {key.ino} is malformed")
        locks.append(Flock(*_owner(field), value == b"W"))
    return tuple(sorted(locks)) or None


def _decode_plocks(key: PlockKey, replies: Sequence[Any]) -> tuple[Plock, ...] | None:
    flat = replies[0]
    return tuple(sorted(Plock(*_owner(f), ranges) for f, ranges in zip(flat[::2], flat[1::2], strict=True))) or None


def _whole(name: bytes, fields: list[tuple[bytes, bytes]]) -> list[Command]:
    pieces = [fields[at : at + _SET_AT_ONCE] for at in range(0, len(fields), _SET_AT_ONCE)]
    return [(b"DEL", name), *[(b"HSET", name, *[word for pair in piece for word in pair]) for piece in pieces]]


HASHES: Final = frozenset({"flock", "plock"})


def as_read(writing: Sequence[Command]) -> list[Any]:
    """What HGETALL replies after *writing*: a small hash keeps the order in which its fields were set."""
    return [word for command in writing[1:] for word in command[2:]]


DECODING: Final[dict[str, Callable[[Any, Sequence[Any]], Any]]] = {
    "flock": _decode_flocks,
    "plock": _decode_plocks,
    "locked": lambda key, replies: True if replies[0] else None,
}


class LockLayout:
    """The keys of locks in a volume whose keys begin with *prefix*, and the commands on them."""

    def __init__(self, prefix: bytes) -> None:
        self._flocks = prefix + b"lockf%d"
        self._plocks = prefix + b"lockp%d"
        self._set = prefix + b"locked%d"
        flocks, plocks, locked = self._flocks, self._plocks, self._locked
        self.reading: dict[str, Callable[[Any], tuple[Command, ...]]] = {
            "flock": lambda key: ((b"HGETALL", flocks % key.ino),),
            "plock": lambda key: ((b"HGETALL", plocks % key.ino),),
            "locked": lambda key: ((b"SISMEMBER", *locked(key)),),
        }
        self.putting: dict[str, Callable[[Any, Any], list[Command]]] = {
            "flock": self._put_flocks,
            "plock": self._put_plocks,
            "locked": lambda key, record: [(b"SADD", *locked(key))],
        }
        self.deleting: dict[str, Callable[[Any], list[Command]]] = {
            "flock": lambda key: [(b"DEL", flocks % key.ino)],
            "plock": lambda key: [(b"DEL", plocks % key.ino)],
            "locked": lambda key: [(b"SREM", *locked(key))],
        }

    def of_session(self, sid: int) -> bytes:
        """The set of the keys of a session's locks; its members are whole keys, prefix included."""
        return self._set % sid

    def _locked(self, key: LockedKey) -> tuple[bytes, bytes]:
        return self._set % key.sid, (self._plocks if key.ranges else self._flocks) % key.ino

    def _put_flocks(self, key: FlockKey, locks: tuple[Flock, ...]) -> list[Command]:
        fields = [(b"%d_%016X" % (lock.sid, lock.owner), b"W" if lock.exclusive else b"R") for lock in locks]
        return _whole(self._flocks % key.ino, fields)

    def _put_plocks(self, key: PlockKey, locks: tuple[Plock, ...]) -> list[Command]:
        return _whole(self._plocks % key.ino, [(b"%d_%016X" % (lock.sid, lock.owner), lock.ranges) for lock in locks])
