"""Extended attributes (format §5.3 xattr), their checks in the order given there, and ACLs, which are set as such. Pure."""

import errno
from typing import Final

from jfs.errors import FsError
from jfs.format.constants import DIRECTORY, IMMUTABLE
from jfs.meta.model.acl import ACCESS, ACL_NAMES, Rule
from jfs.meta.model.attr import Attr
from jfs.meta.model.keys import NodeKey, XattrKey
from jfs.meta.operations import journal
from jfs.meta.operations import rules as common
from jfs.meta.operations.access import READ, WRITE, Caller, check_access
from jfs.meta.operations.acls import Acls, Numbered, number
from jfs.meta.store.base import Tx

CREATE: Final = 1
REPLACE: Final = 2
MAX_VALUE: Final = 65536
MAX_NAME: Final = 255


def check_set(name: bytes, value: bytes, flags: int) -> None:
    """What can be refused before anything is read."""
    if len(value) > MAX_VALUE or len(name) > MAX_NAME:
        raise FsError(errno.ERANGE)
    if not name:
        raise FsError(errno.EINVAL)
    if name in ACL_NAMES:  # no attributes but records of their own (format §3.10): `set_acl`
        raise FsError(errno.ENOTSUP)
    if flags not in (0, CREATE, REPLACE):
        raise FsError(errno.EINVAL)


def check_permission(caller: Caller, attr: Attr, name: bytes, *, write: bool, rule: Rule | None) -> None:
    """What xattr(7) asks of who reads or writes an attribute of *name*, where the kernel leaves that to us; *rule* as in `check_access`.
    FsError: EPERM, EACCES, ENODATA."""
    if not caller.uid or name in ACL_NAMES:  # `set_acl` asks for the owner
        return
    if name.startswith(b"trusted."):
        raise FsError(errno.EPERM if write else errno.ENODATA)
    if name.startswith(b"security."):
        if write:
            raise FsError(errno.EPERM)
        return
    if write and attr.kind == DIRECTORY and attr.kind_mode & 0o1000 and caller.uid != attr.uid:
        raise FsError(errno.EPERM)
    check_access(caller, attr, WRITE if write else READ, rule)


async def set_xattr(tx: Tx, ino: int, name: bytes, value: bytes, flags: int, now: int) -> Attr:
    """Set an attribute; the inode's attributes with a new ctime, which Linux moves and the real client does not. Call `check_set`
    before."""
    key = XattrKey(ino, name)
    node, present = await tx.get(NodeKey(ino), key)
    if node is None:
        raise FsError(errno.ENOENT)
    if common.in_trash(node):
        raise FsError(errno.EPERM)
    common.check_removable(node)
    if flags == CREATE and present is not None:
        raise FsError(errno.EEXIST)
    if flags == REPLACE and present is None:
        raise FsError(errno.ENODATA)
    if present != value:
        tx.put(key, value)
    attr = common.with_ctime(node, now)
    tx.put(NodeKey(ino), attr)
    journal.set_xattr(tx, ino, name, value, flags)
    return attr


async def remove_xattr(tx: Tx, ino: int, name: bytes, now: int) -> Attr:
    """Remove an attribute; the inode's attributes with a new ctime. ENODATA when there is none, ENOENT without an inode."""
    if not name:
        raise FsError(errno.EINVAL)
    key = XattrKey(ino, name)
    node, present = await tx.get(NodeKey(ino), key)
    if node is not None:
        if common.in_trash(node):
            raise FsError(errno.EPERM)
        common.check_removable(node)
    if present is None:
        raise FsError(errno.ENODATA)
    if node is None:
        raise FsError(errno.ENOENT)
    tx.delete(key)
    attr = common.with_ctime(node, now)
    tx.put(NodeKey(ino), attr)
    journal.removed_xattr(tx, ino, name)
    return attr


async def set_acl(
    tx: Tx, acls: Acls, caller: Caller, ino: int, name: bytes, rule: Rule, now: int
) -> tuple[Attr, Numbered | None]:
    """Make *rule* the access or default ACL (by the attribute's *name*) of an inode; an empty rule removes it, and a minimal access
    rule becomes the mode alone. The attributes afterwards, and the rule when the inode refers to it."""
    (node,) = await tx.get(NodeKey(ino))
    if node is None:
        raise FsError(errno.ENOENT)
    if common.in_trash(node) or caller.uid not in (0, node.uid) or node.flags & IMMUTABLE:
        raise FsError(errno.EPERM)
    is_access = name == ACCESS
    if not is_access and node.kind != DIRECTORY and not rule.is_empty:
        raise FsError(errno.EACCES)
    attr = node
    if caller.uid and node.gid not in caller.groups():
        attr = attr.with_mode(attr.mode & 0o5777)
    numbered: Numbered | None = None
    if not rule.is_empty and not (is_access and rule.is_minimal):
        numbered = await number(tx, acls, rule.completed(attr.mode))
    if is_access:
        if not rule.is_empty:
            attr = attr.with_mode(attr.mode & 0o7000 | rule.completed(attr.mode).mode)
        attr = attr._replace(access_acl=numbered[0] if numbered else 0)
    else:
        attr = attr._replace(default_acl=numbered[0] if numbered else 0)
    if attr != node:
        attr = common.with_ctime(attr, now)
        tx.put(NodeKey(ino), attr)
    journal.set_acl(tx, now, ino, name, rule)
    return attr, numbered
