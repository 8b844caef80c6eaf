"""What holds for a whole mount while an operation runs, and the checks and small steps that the operations share.

`Rules` is built by the volume from the setting and the mount's options; a new one replaces it when they change. Pure.
"""

import errno
from typing import Final, NamedTuple

from jfs.errors import FsError
from jfs.format import constants
from jfs.format.constants import APPEND, DIRECTORY, FILE, IMMUTABLE, MAX_NAME, ROOT, TRASH, TRASH_NAME, align4k
from jfs.meta.model.attr import Attr
from jfs.meta.model.keys import CounterKey, DirStat, DirStatKey, NodeKey
from jfs.meta.operations.access import EXECUTE, WRITE, Caller
from jfs.meta.operations.acls import Acls, permit
from jfs.meta.operations.quotas import Ledger
from jfs.meta.store.base import Tx

SECOND: Final = 1_000_000_000
USED_SPACE: Final = CounterKey("usedSpace")
TOTAL_INODES: Final = CounterKey("totalInodes")


class Rules(NamedTuple):
    """*skip_dir_mtime* in nanoseconds; *trash* is the inode of the current hour directory, 0 when removing is for good;
    *sid* the own session; *space_left* (bytes) and *inodes_left* are None without a limit; *acls* and
    *quotas* (the ledger of this operation) are None on volumes without."""

    dir_stats: bool = True
    skip_dir_mtime: int = 100_000_000
    check_access: bool = False
    trash: int = 0
    sid: int = 0
    space_left: int | None = None
    inodes_left: int | None = None
    acls: Acls | None = None
    quotas: Ledger | None = None


def clock(seconds: int, nanoseconds: int) -> int:
    """Nanoseconds since the epoch."""
    return seconds * SECOND + nanoseconds


def with_ctime(attr: Attr, now: int) -> Attr:
    """*attr* with ctime *now* (ns)."""
    return Attr._make(attr[:8] + divmod(now, SECOND) + attr[10:])  # three times as fast as _replace


def with_mtime(attr: Attr, mtime: int, now: int) -> Attr:
    """*attr* with *mtime* and ctime *now* (ns)."""
    return Attr._make(attr[:6] + divmod(mtime, SECOND) + divmod(now, SECOND) + attr[10:])


def with_length(attr: Attr, length: int, mtime: int, now: int) -> Attr:
    """*attr* with *length* in bytes, *mtime* and ctime *now* (ns)."""
    return Attr._make(attr[:6] + divmod(mtime, SECOND) + divmod(now, SECOND) + (attr.nlink, length) + attr[12:])


def check_name(name: bytes) -> None:
    """ENAMETOOLONG or EINVAL for what can never be an entry's name (format §5.2)."""
    if len(name) > MAX_NAME:
        raise FsError(errno.ENAMETOOLONG)
    if not name or b"/" in name or b"\0" in name:
        raise FsError(errno.EINVAL)


def is_trash(ino: int) -> bool:
    """Whether *ino* is the trash or one of its hour directories."""
    return ino >= TRASH


def in_trash(attr: Attr) -> bool:
    """Whether the inode of *attr* lies in an hour directory."""
    return attr.parent > TRASH


def is_trash_entry(parent: int, name: bytes) -> bool:
    """Whether the entry is the trash itself, which nobody may make, link, move or remove."""
    return parent == ROOT and name == TRASH_NAME


async def check_directory(
    tx: Tx, caller: Caller, rules: Rules, attr: Attr | None, *, in_trash_ok: bool = False
) -> Attr:
    """The attributes of a directory that is about to change, checked in the order of format §5.3: ENOENT, ENOTDIR, in trash
    ENOENT, W|X access."""
    if attr is None:
        raise FsError(errno.ENOENT)
    if attr.kind != DIRECTORY:
        raise FsError(errno.ENOTDIR)
    if not in_trash_ok and in_trash(attr):
        raise FsError(errno.ENOENT)
    if rules.check_access or caller.checked:
        await permit(tx, rules.acls, caller, attr, WRITE | EXECUTE)
    return attr


def check_removable(*attrs: Attr) -> None:
    """EPERM when one of *attrs* is immutable or append-only, so that neither its names nor its extended attributes change."""
    for attr in attrs:
        if attr.flags & (APPEND | IMMUTABLE):
            raise FsError(errno.EPERM)


def touch(tx: Tx, ino: int, attr: Attr, now: int, rules: Rules, *, links: int = 0, always: bool = False) -> Attr:
    """The parent touch of format §5.3: times and nlink of directory *ino*, skipped when its mtime is young and nlink stays."""
    if is_trash(ino):
        return attr
    if not links and not always and now - clock(attr.mtime, attr.mtimensec) < rules.skip_dir_mtime:
        return attr
    touched = with_mtime(attr._replace(nlink=max(attr.nlink + links, 0)) if links else attr, now, now)
    tx.put(NodeKey(ino), touched)
    return touched


def usage(attr: Attr) -> DirStat:
    """What an inode counts for in its directory's usage (format §3.8)."""
    if attr.kind == FILE:
        return DirStat(attr.length, align4k(attr.length), 1)
    return DirStat(0, align4k(0), 1)


def negated(stat: DirStat) -> DirStat:
    """The change that takes *stat* away."""
    return DirStat(-stat.length, -stat.space, -stat.inodes)


async def count(tx: Tx, rules: Rules, directory: int, change: DirStat) -> None:
    """Add *change* to the usage of *directory* when the volume keeps it, and to the quotas above; the trash root has none
    (format §3.8)."""
    if rules.quotas is not None:
        await rules.quotas.charge(tx, directory, change.space, change.inodes)
    if rules.dir_stats and directory != TRASH and any(change):
        tx.add_stat(DirStatKey(directory), change)


def count_volume(tx: Tx, rules: Rules | None, attr: Attr, space: int, inodes: int) -> None:
    """Add to the volume's counters (format §3.7) and to the usage of the owner of *attr*."""
    if rules is not None and rules.quotas is not None:
        rules.quotas.charge_owner(tx, attr, space, inodes)
    if space:
        tx.add(USED_SPACE, space)
    if inodes:
        tx.add(TOTAL_INODES, inodes)


def check_space(rules: Rules, space: int, inodes: int) -> None:
    """ENOSPC when the volume's limits leave no room for *space* bytes and *inodes*."""
    if space > 0 and rules.space_left is not None and space > rules.space_left:
        raise FsError(errno.ENOSPC)
    if inodes > 0 and rules.inodes_left is not None and inodes > rules.inodes_left:
        raise FsError(errno.ENOSPC)


def default_attr(ino: int) -> Attr:
    """What stands for a missing or unreachable root or trash root, so that a mountpoint never fails (format §5.3 getattr)."""
    mode = 0o555 if is_trash(ino) else 0o777
    return new_attr(DIRECTORY, mode, 0, 0, 0, ROOT)


def placeholder(kind: int, parent: int) -> Attr:
    """Attributes for an entry whose inode record is missing, so that it can be seen and removed (format §5.3 lookup)."""
    return new_attr(kind, 0, 0, 0, 0, parent)


def new_attr(
    kind: int,
    mode: int,
    uid: int,
    gid: int,
    now: int,
    parent: int,
    *,
    length: int = 0,
    rdev: int = 0,
    flags: int = 0,
    tier: int = 0,
) -> Attr:
    """Attributes of a new inode at time *now* (ns)."""
    seconds, nanoseconds = divmod(now, SECOND)
    directory = kind == DIRECTORY
    return Attr(
        flags=flags,
        kind_mode=kind << 12 | mode & 0o7777,
        uid=uid,
        gid=gid,
        atime=seconds,
        atimensec=nanoseconds,
        mtime=seconds,
        mtimensec=nanoseconds,
        ctime=seconds,
        ctimensec=nanoseconds,
        nlink=2 if directory else 1,
        length=4096 if directory else length,
        rdev=rdev,
        parent=parent,
        tier=tier,
    )


KINDS: Final = range(constants.FILE, constants.SOCKET + 1)
