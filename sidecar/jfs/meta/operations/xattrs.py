"""Extended attributes (format §5.3 xattr), their checks in the order given there. Pure."""

import errno
from typing import Final

from jfs.errors import FsError
from jfs.meta.model.keys import NodeKey, XattrKey
from jfs.meta.operations import rules as common
from jfs.meta.store.base import Tx

CREATE: Final = 1
REPLACE: Final = 2
MAX_VALUE: Final = 65536
MAX_NAME: Final = 255
# Kept in their own records and only on volumes with ACLs, which this client refuses (format §3.10).
ACL_NAMES: Final = frozenset({b"system.posix_acl_access", b"system.posix_acl_default"})


def check_set(name: bytes, value: bytes, flags: int) -> None:
    """What can be refused before anything is read."""
    if len(value) > MAX_VALUE or len(name) > MAX_NAME:
        raise FsError(errno.ERANGE)
    if not name:
        raise FsError(errno.EINVAL)
    if name in ACL_NAMES:
        raise FsError(errno.ENOTSUP)
    if flags not in (0, CREATE, REPLACE):
        raise FsError(errno.EINVAL)


async def set_xattr(tx: Tx, ino: int, name: bytes, value: bytes, flags: int) -> None:
    """Set an attribute; ctime does not move. Call `check_set` before."""
    key = XattrKey(ino, name)
    node, present = await tx.get(NodeKey(ino), key)
    if node is None:
        raise FsError(errno.ENOENT)
    if common.in_trash(node):
        raise FsError(errno.EPERM)
    if flags == CREATE and present is not None:
        raise FsError(errno.EEXIST)
    if flags == REPLACE and present is None:
        raise FsError(errno.ENODATA)
    if present != value:
        tx.put(key, value)


async def remove_xattr(tx: Tx, ino: int, name: bytes) -> None:
    """Remove an attribute; ENODATA when there is none."""
    if not name:
        raise FsError(errno.EINVAL)
    key = XattrKey(ino, name)
    node, present = await tx.get(NodeKey(ino), key)
    if node is not None and common.in_trash(node):
        raise FsError(errno.EPERM)
    if present is None:
        raise FsError(errno.ENODATA)
    tx.delete(key)
