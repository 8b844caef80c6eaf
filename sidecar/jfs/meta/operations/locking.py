"""flock(2) and fcntl(2) locks in the volume's lock records (format §3.4, §5.3): one try to have, release or find one. Pure.

Every record of an inode's locks is read, so two tries conflict whoever makes them; waiting is the volume's. An owner is 64 bits that
the kernel gives: for fcntl locks the process' table of files or, for open-file-description locks, the open file; for flocks the open
file. Lock changes touch nothing else of the inode, not even its existence.
"""

from typing import Final, NamedTuple

from jfs.meta.model.locks import (
    READ,
    UNLOCK,
    WRITE,
    Flock,
    FlockKey,
    LockedKey,
    Plock,
    PlockKey,
    Range,
    pack_ranges,
    unpack_ranges,
    with_range,
)
from jfs.meta.operations import journal
from jfs.meta.store.base import Tx

_LETTERS: Final = {READ: "R", WRITE: "W", UNLOCK: "U"}


class Tried(NamedTuple):
    """What a try came to: *blocker* is the session that holds what is in the way (None: the lock was taken or released),
    *holds* whether the owner has any lock of the inode now, *lost* whether it gave one up."""

    blocker: int | None
    holds: bool
    lost: bool


async def flock(tx: Tx, sid: int, ino: int, owner: int, kind: int) -> Tried:
    """Try to change *owner*'s flock of *ino* to READ, WRITE or UNLOCK. As on Linux a lock that is to be converted and cannot be is
    lost: two owners that both wait to make theirs exclusive would wait for ever."""
    key = FlockKey(ino)
    (found,) = await tx.get(key)
    held = found or ()
    mine = next((lock for lock in held if lock.sid == sid and lock.owner == owner), None)
    others = [lock for lock in held if lock is not mine]
    blocker = None
    if kind != UNLOCK:
        blocker = next((lock.sid for lock in others if kind == WRITE or lock.exclusive), None)
        if blocker is None:
            if mine is None or mine.exclusive != (kind == WRITE):
                tx.put(key, tuple(sorted([*others, Flock(sid, owner, kind == WRITE)])))
                tx.put(LockedKey(sid, ino, False), True)
            journal.locked(tx, ino, owner, "W" if kind == WRITE else "R")
            return Tried(None, True, mine is not None and mine.exclusive and kind == READ)
    if mine is not None:
        if others:
            tx.put(key, tuple(others))
        else:
            tx.delete(key)
        if not any(lock.sid == sid for lock in others):
            tx.delete(LockedKey(sid, ino, False))
        journal.locked(tx, ino, owner, "U")
    return Tried(blocker, False, mine is not None)


async def setlk(tx: Tx, sid: int, ino: int, owner: int, wanted: Range) -> Tried:
    """Try to lock or unlock a range for *owner*; its own locks are never in the way and are replaced."""
    key = PlockKey(ino)
    (found,) = await tx.get(key)
    held = found or ()
    mine = b""
    others = []
    for lock in held:
        if lock.sid == sid and lock.owner == owner:
            mine = lock.ranges
        else:
            others.append(lock)
    if wanted.kind != UNLOCK and (blocking := _first_conflict(others, wanted)) is not None:
        return Tried(blocking[0].sid, bool(mine), False)
    ranges = pack_ranges(with_range(unpack_ranges(mine), wanted))
    if ranges != mine:
        if ranges:
            others.append(Plock(sid, owner, ranges))
        if others:
            tx.put(key, tuple(sorted(others)))
        else:
            tx.delete(key)
        if ranges:
            tx.put(LockedKey(sid, ino, True), True)
        elif not any(lock.sid == sid for lock in others):
            tx.delete(LockedKey(sid, ino, True))
    if ranges or mine:
        pid = 0 if wanted.kind == UNLOCK else wanted.pid
        journal.locked_range(tx, ino, owner, _LETTERS[wanted.kind], wanted.start, wanted.end, pid)
    return Tried(None, bool(ranges), bool(mine))


def conflicting(found: tuple[Plock, ...] | None, sid: int, owner: int, wanted: Range) -> Range | None:
    """The first lock of others that *wanted* would wait for; its pid is 0 when another session holds it, whose processes mean
    nothing here."""
    others = [lock for lock in found or () if (lock.sid, lock.owner) != (sid, owner)]
    blocking = _first_conflict(others, wanted)
    if blocking is None:
        return None
    lock, held = blocking
    return held if lock.sid == sid else held._replace(pid=0)


def _first_conflict(others: list[Plock], wanted: Range) -> tuple[Plock, Range] | None:
    for lock in others:
        for held in unpack_ranges(lock.ranges):
            if held.start <= wanted.end and wanted.start <= held.end and WRITE in (held.kind, wanted.kind):
                return lock, held
    return None
