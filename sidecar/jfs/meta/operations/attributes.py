"""Changing attributes: chmod, chown, utimens and the flags in one step (format §5.3 setattr). Pure."""

import errno
from typing import Final, NamedTuple

from jfs.errors import FsError
from jfs.format.constants import APPEND, DIRECTORY, FILE, IMMUTABLE, ROOT
from jfs.meta.model.acl import Rule
from jfs.meta.model.attr import Attr
from jfs.meta.model.keys import NodeKey
from jfs.meta.operations import journal
from jfs.meta.operations import rules as common
from jfs.meta.operations.access import WRITE, Caller, granted
from jfs.meta.operations.acls import Acls, Numbered, number, rule_of
from jfs.meta.operations.quotas import Ledger
from jfs.meta.operations.rules import SECOND
from jfs.meta.store.base import Tx

NOW: Final = -(1 << 63)  # a time in AttrChange that stands for the time of the call; no file has it


class AttrChange(NamedTuple):
    """What a setattr changes; None leaves it. Times are nanoseconds since the epoch or `NOW`. A size change is `truncate`."""

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    atime: int | None = None
    mtime: int | None = None
    flags: int | None = None


async def setattr(
    tx: Tx,
    caller: Caller,
    ino: int,
    change: AttrChange,
    now: int,
    *,
    acls: Acls | None = None,
    quotas: Ledger | None = None,
) -> tuple[Attr, Numbered | None]:
    """Apply *change*; the attributes afterwards, and the access ACL when a chmod made another of it. ctime moves even when nothing
    else does, as POSIX has it; the real client leaves it."""
    (node,) = await tx.get(NodeKey(ino))
    if node is None:
        raise FsError(errno.ENOENT)
    if common.in_trash(node):
        raise FsError(errno.EPERM)
    if node.flags & (IMMUTABLE | APPEND) and change.flags is None:
        _check_flagged(node, change)
    rule = await rule_of(tx, acls, node.access_acl) if node.access_acl else None
    attr = merged(caller, node, change, now, rule)
    numbered: Numbered | None = None
    if rule is not None and acls is not None and attr.mode & 0o777 != node.mode & 0o777:
        numbered = await number(tx, acls, rule.with_mode(attr.mode))
        attr = attr._replace(access_acl=numbered[0])
    if quotas is not None and ino != ROOT:  # which nobody counts
        quotas.change_owner(tx, node, attr, common.usage(node).space)
    attr = common.with_ctime(attr, now)
    tx.put(NodeKey(ino), attr)
    if tx.journal is not None:
        journal.changed(tx, now, ino, _bits(change), attr)
    return attr, numbered


async def set_tier(tx: Tx, ino: int, tier: int, now: int) -> None:
    """Give a file or directory a storage tier, whatever it has; FsError(EPERM) for what is neither or lies in the trash."""
    (node,) = await tx.get(NodeKey(ino))
    if node is None:
        raise FsError(errno.ENOENT)
    if common.in_trash(node) or node.kind not in (DIRECTORY, FILE):
        raise FsError(errno.EPERM)
    attr = common.with_ctime(node._replace(tier=tier), now)
    tx.put(NodeKey(ino), attr)
    journal.changed(tx, now, ino, journal.TIER, attr)


def _bits(change: AttrChange) -> int:
    """What *change* asks for, in the change log's bits."""
    bits = 0
    for wanted, bit, now_bit in (
        (change.mode, journal.MODE, 0),
        (change.uid, journal.UID, 0),
        (change.gid, journal.GID, 0),
        (change.atime, journal.ATIME, journal.ATIME_NOW),
        (change.mtime, journal.MTIME, journal.MTIME_NOW),
        (change.flags, journal.FLAGS, 0),
    ):
        if wanted is not None:
            bits |= bit | (now_bit if wanted == NOW else 0)
    return bits


def _check_flagged(node: Attr, change: AttrChange) -> None:
    """FsError(EPERM) for what Linux refuses of immutable and append-only inodes: the real client lets it pass."""
    explicit = any(wanted is not None and wanted != NOW for wanted in (change.atime, change.mtime))
    if node.flags & IMMUTABLE or explicit or (change.mode, change.uid, change.gid) != (None, None, None):
        raise FsError(errno.EPERM)


def merged(caller: Caller, node: Attr, change: AttrChange, now: int, rule: Rule | None = None) -> Attr:
    """*node*, whose access ACL is *rule*, with *change*, by the rules of format §5.3 setattr; FsError(EPERM or EACCES) when the
    caller may not."""
    attr = node
    mode = change.mode
    if change.uid is not None or change.gid is not None:
        if mode is not None:  # the kernel sends one with a chown, without the bits it takes to be cleared
            mode |= node.kind_mode & 0o6000
        if node.kind != DIRECTORY and node.kind_mode & 0o6000:
            both = caller.uid != 0 or node.kind_mode & 0o010
            kept = ~(0o6000 if both else 0o4000)
            attr = attr.with_mode(attr.kind_mode & kept)
            mode = mode if mode is None else mode & kept
    if change.gid is not None and change.gid != node.gid:
        if caller.uid and (caller.uid != node.uid or change.gid not in (caller.gid, *caller.groups())):
            raise FsError(errno.EPERM)
        attr = attr._replace(gid=change.gid)
    if change.uid is not None and change.uid != node.uid:
        if caller.uid:
            raise FsError(errno.EPERM)
        attr = attr._replace(uid=change.uid)
    if mode is not None:
        mode &= 0o7777
        if caller.uid and node.gid != caller.gid and node.gid not in caller.groups():
            mode &= ~0o2000
        if mode != node.mode:
            if caller.uid and caller.uid != node.uid and (node.mode & ~mode) & ~0o6000 | mode & ~node.mode:
                raise FsError(errno.EPERM)
            attr = attr.with_mode(mode)
    attr = _with_times(caller, node, attr, change, now, rule)
    if change.flags is not None and change.flags != node.flags:
        if caller.uid:
            raise FsError(errno.EPERM)
        attr = attr._replace(flags=change.flags)
    return attr


def _with_times(caller: Caller, node: Attr, attr: Attr, change: AttrChange, now: int, rule: Rule | None) -> Attr:
    for wanted, is_atime in ((change.atime, True), (change.mtime, False)):
        if wanted is None:
            continue
        present = common.clock(node.atime, node.atimensec) if is_atime else common.clock(node.mtime, node.mtimensec)
        explicit = wanted != NOW
        if explicit and wanted == present:
            continue
        if explicit and caller.uid and node.uid == 0:
            raise FsError(errno.EPERM)
        if caller.uid and caller.uid != node.uid and not granted(caller, node, rule) & WRITE:
            raise FsError(errno.EACCES)
        seconds, nanoseconds = divmod(wanted if explicit else now, SECOND)
        names = ("atime", "atimensec") if is_atime else ("mtime", "mtimensec")
        attr = attr._replace(**dict(zip(names, (seconds, nanoseconds), strict=True)))
    return attr


async def touch_atime(tx: Tx, ino: int, now: int) -> Attr | None:
    """Set atime to *now* (format §5.4); None when the inode is gone. Nothing else moves."""
    (node,) = await tx.get(NodeKey(ino))
    if node is None:
        return None
    seconds, nanoseconds = divmod(now, SECOND)
    attr = node._replace(atime=seconds, atimensec=nanoseconds)
    tx.put(NodeKey(ino), attr)
    journal.accessed(tx, now, ino)
    return attr


def wants_atime(attr: Attr, mode: str, now: int) -> bool:
    """Whether a read at *now* (ns) writes atime under *mode* noatime, relatime or strictatime (format §5.4)."""
    if mode == "noatime":
        return False
    atime = common.clock(attr.atime, attr.atimensec)
    if atime < common.clock(attr.mtime, attr.mtimensec) or atime < common.clock(attr.ctime, attr.ctimensec):
        return True
    return now - atime > (SECOND if mode == "strictatime" else 86400 * SECOND)
