"""Making entries: mknod, mkdir, create, symlink, the trash's hour directories, and link (format §5.3). Pure."""

import errno
from typing import NamedTuple

from jfs.errors import FsError
from jfs.format.constants import APPEND, DIRECTORY, FILE, IMMUTABLE, MAX_SYMLINK, SKIP_TRASH, SYMLINK, TRASH, align4k
from jfs.meta.model.attr import Attr, Entry
from jfs.meta.model.keys import DirStat, DirStatKey, EdgeKey, NodeKey, ParentKey, SustainedKey, SymlinkKey
from jfs.meta.operations import journal
from jfs.meta.operations import rules as common
from jfs.meta.operations.access import Caller
from jfs.meta.operations.acls import Numbered, mode_for, number, rule_of
from jfs.meta.operations.rules import Rules, check_directory, check_name
from jfs.meta.store.base import Tx


class New(NamedTuple):
    """What to make: type code, permission bits before the umask, device number, symlink target, and the inode it gets."""

    ino: int
    kind: int
    mode: int
    rdev: int = 0
    target: bytes = b""


class Made(NamedTuple):
    """The entry's inode and attributes, the parent's after the change, whether it was made now, and the access ACL it got."""

    ino: int
    attr: Attr
    parent: Attr
    created: bool
    acl: Numbered | None = None


def check_new(parent: int, name: bytes, kind: int, target: bytes = b"") -> None:
    """What can be refused before anything is read, in the order of format §5.3."""
    if kind not in common.KINDS:
        raise FsError(errno.EINVAL)
    if common.is_trash(parent) or common.is_trash_entry(parent, name):
        raise FsError(errno.EPERM)
    if name in (b".", b".."):
        raise FsError(errno.EEXIST)
    check_name(name)
    if kind == SYMLINK and (not target or len(target) > MAX_SYMLINK or b"\0" in target):
        raise FsError(errno.EINVAL)


async def make(
    tx: Tx, caller: Caller, rules: Rules, parent: int, name: bytes, new: New, now: int, *, open_existing: bool = False
) -> Made:
    """Make an entry and its inode. With *open_existing* a file that is there already is the answer instead of EEXIST.
    Call `check_new` before."""
    found, entry = await tx.get(NodeKey(parent), EdgeKey(parent, name))
    directory = await check_directory(tx, caller, rules, found)
    if entry is not None:
        if not open_existing or entry.kind != FILE:
            raise FsError(errno.EEXIST)
        (node,) = await tx.get(NodeKey(entry.ino))
        return Made(entry.ino, node or common.placeholder(entry.kind, parent), directory, False)
    if directory.flags & IMMUTABLE:
        raise FsError(errno.EPERM)
    space = align4k(0)
    common.check_space(rules, space, 1)
    if rules.quotas is not None:
        await rules.quotas.check(tx, parent, space, 1)
    default = None
    if directory.default_acl and new.kind != SYMLINK:
        default = await rule_of(tx, rules.acls, directory.default_acl)
    mode, rule = mode_for(new.mode & 0o7777, caller.umask, default)
    attr = _inherited(caller, directory, new, mode, now, parent)
    if rules.quotas is not None:
        await rules.quotas.check_owner(tx, attr.uid, attr.gid, space, 1)
    acl: Numbered | None = None
    if default is not None and rules.acls is not None:
        if rule is not None:
            acl = await number(tx, rules.acls, rule)
            attr = attr._replace(access_acl=acl[0])
        if new.kind == DIRECTORY:
            attr = attr._replace(default_acl=directory.default_acl)
    tx.put(NodeKey(new.ino), attr)
    tx.put(EdgeKey(parent, name), Entry(new.kind, new.ino))
    if new.kind == SYMLINK:
        tx.put(SymlinkKey(new.ino), new.target)
    links = 0
    if new.kind == DIRECTORY:
        links = 1
        tx.put(DirStatKey(new.ino), DirStat(0, 0, 0))  # even when the volume keeps no usage, as the real client does
    touched = common.touch(tx, parent, directory, now, rules, links=links)
    await common.count(tx, rules, parent, common.usage(attr))
    common.count_volume(tx, rules, attr, space, 1)
    if tx.journal is not None:
        asked = new.mode if rules.acls is not None else new.mode & ~caller.umask
        owner = caller.uid, caller.gid
        umask = 0 if new.kind == SYMLINK else caller.umask
        journal.created(
            *(tx, now, parent, name, owner, new.kind, asked, umask, new.target, new.ino),
            touched=touched is not directory,
        )
    return Made(new.ino, attr, touched, True, acl)


def _inherited(caller: Caller, directory: Attr, new: New, mode: int, now: int, parent: int) -> Attr:
    """Attributes of a new inode with the *mode* that umask or default ACL left: group and sgid, skip-trash and tier of its directory."""
    gid = caller.gid
    if new.kind == SYMLINK:
        mode = 0o777
    if directory.kind_mode & 0o2000:
        gid = directory.gid
        if new.kind == DIRECTORY:
            mode |= 0o2000
        elif mode & 0o2010 == 0o2010 and caller.uid and gid not in caller.groups():
            mode &= ~0o2000
    return common.new_attr(
        new.kind,
        mode,
        caller.uid,
        gid,
        now,
        parent,
        length=len(new.target) if new.kind == SYMLINK else 0,
        rdev=new.rdev,
        flags=directory.flags & SKIP_TRASH,
        tier=directory.tier,
    )


async def make_hour_directory(tx: Tx, rules: Rules, name: bytes, ino: int, now: int) -> int:
    """The inode of the trash's directory *name* (`YYYY-MM-DD-HH`), made as *ino* when missing (format §3.13)."""
    trash, entry = await tx.get(NodeKey(TRASH), EdgeKey(TRASH, name))
    if trash is None:
        raise FsError(errno.ENOENT)
    if entry is not None:
        return entry.ino
    attr = common.new_attr(DIRECTORY, 0o555, 0, 0, now, TRASH)
    tx.put(NodeKey(ino), attr)
    tx.put(EdgeKey(TRASH, name), Entry(DIRECTORY, ino))
    tx.put(DirStatKey(ino), DirStat(0, 0, 0))
    common.count_volume(
        tx, rules, attr, align4k(0), 1
    )  # hour directories count, their parent's times and usage do not change
    journal.created(tx, now, TRASH, name, (0, 0), DIRECTORY, 0o555, 0, b"", ino, touched=False)
    return ino


class Linked(NamedTuple):
    """Attributes of the inode and of the directory after the link."""

    attr: Attr
    parent: Attr


async def link(
    tx: Tx, caller: Caller, rules: Rules, ino: int, parent: int, name: bytes, now: int, *, nameless: bool = False
) -> Linked:
    """Give file *ino* another entry, or its first one when it is *nameless*: made by this session without a name (O_TMPFILE). Call
    `check_link` before."""
    found, entry, node = await tx.get(NodeKey(parent), EdgeKey(parent, name), NodeKey(ino))
    directory = await check_directory(tx, caller, rules, found)
    if directory.flags & IMMUTABLE:
        raise FsError(errno.EPERM)
    if node is None:
        raise FsError(errno.ENOENT)
    if common.in_trash(node):
        raise FsError(errno.EPERM)
    if node.kind == DIRECTORY or node.flags & (APPEND | IMMUTABLE):
        raise FsError(errno.EPERM)
    if entry is not None:
        raise FsError(errno.EEXIST)
    if not node.nlink:
        sustained = SustainedKey(rules.sid, ino)
        (kept,) = await tx.get(sustained)
        if not kept or not nameless:
            raise FsError(errno.ENOENT)
        tx.delete(sustained)
    stat = common.usage(node)
    if rules.quotas is not None:
        await rules.quotas.check(tx, parent, stat.space, stat.inodes)
    attr = common.with_ctime(node._replace(nlink=node.nlink + 1, parent=0 if node.nlink else parent), now)
    tx.put(NodeKey(ino), attr)
    tx.put(EdgeKey(parent, name), Entry(node.kind, ino))
    if node.nlink:
        if node.parent:
            tx.add(ParentKey(ino, node.parent), 1)
        tx.add(ParentKey(ino, parent), 1)
    touched = common.touch(tx, parent, directory, now, rules)
    await common.count(tx, rules, parent, stat)
    journal.linked(tx, now, ino, parent, name, attr.nlink, touched=touched is not directory)
    return Linked(attr, touched)


def check_link(parent: int, name: bytes) -> None:
    """What can be refused of a link before anything is read."""
    if common.is_trash(parent) or common.is_trash_entry(parent, name):
        raise FsError(errno.EPERM)
    if name in (b".", b".."):
        raise FsError(errno.EEXIST)
    check_name(name)
