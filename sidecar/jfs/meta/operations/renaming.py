"""rename with NOREPLACE, EXCHANGE and WHITEOUT (format §5.3, rename(2)), its checks in the order the real client makes them. Pure.

The real client does not look further up than the destination's parent, so that two clients can build a loop (format §12);
here the destination's ancestors are read inside the transaction, which makes the move of one of them a conflict.
"""

import errno
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from jfs.errors import FsError
from jfs.format.constants import APPEND, CHAR_DEVICE, DIRECTORY, IMMUTABLE, ROOT, SYMLINK, TRASH, align4k
from jfs.meta.model.attr import Attr, Entry
from jfs.meta.model.keys import EdgeKey, NodeKey, ParentKey, SymlinkKey
from jfs.meta.model.quota import QuotaChange
from jfs.meta.operations import journal
from jfs.meta.operations import rules as common
from jfs.meta.operations.access import Caller, check_sticky
from jfs.meta.operations.removal import Dropped, drop
from jfs.meta.operations.rules import Rules, check_directory, check_name, check_removable
from jfs.meta.store.base import Tx

NOREPLACE: Final = 1
EXCHANGE: Final = 2
WHITEOUT: Final = 4
RESTORE: Final = 32  # internal, with NOREPLACE: out of the trash
_NO_TREES: Final[Mapping[int, QuotaChange]] = {}


class Side(NamedTuple):
    """One end of a rename: the directory, the entry's name, and the inode it probably names (0: unknown)."""

    parent: int
    name: bytes
    hint: int = 0


class Moved(NamedTuple):
    """What a rename did. *ino* is 0 when nothing had to be done; *other* is the exchanged inode or 0; *replaced* the target,
    *replaced_node* and *replaced_text* what it was, with a symbolic link's target."""

    ino: int
    attr: Attr | None
    source: Attr | None
    target: Attr | None
    entry: Entry | None
    other: Entry | None = None
    other_attr: Attr | None = None
    replaced: Dropped | None = None
    replaced_node: Attr | None = None
    replaced_text: bytes = b""


NOTHING: Final = Moved(0, None, None, None, None)


def check_rename(caller: Caller, source: Side, target: Side, flags: int) -> None:
    """What can be refused before anything is read, in the order of format §5.3."""
    if flags not in (0, NOREPLACE, EXCHANGE, NOREPLACE | RESTORE, WHITEOUT, WHITEOUT | NOREPLACE):
        raise FsError(errno.EINVAL)
    if common.is_trash_entry(*source[:2]) or common.is_trash_entry(*target[:2]) or common.is_trash(target.parent):
        raise FsError(errno.EPERM)
    if common.is_trash(source.parent) and caller.uid:
        raise FsError(errno.EPERM)
    for name in (source.name, target.name):
        if name in (b".", b".."):
            raise FsError(errno.EBUSY)  # rename(2); the kernel never lets them come here
        check_name(name)


async def rename(
    tx: Tx,
    caller: Caller,
    rules: Rules,
    source: Side,
    target: Side,
    flags: int,
    now: int,
    is_open: Callable[[int], bool],
    trees: Mapping[int, QuotaChange] = _NO_TREES,
    whiteout: int = 0,
) -> Moved:
    """Move the entry *source* to *target*. *trees* has what lies below directories that may move from one quota to another.
    *whiteout* is a new inode for the character device 0:0 that WHITEOUT, which the real client refuses, leaves behind. Call
    `check_rename` before."""
    src, dst = source.parent, target.parent
    same = src == dst
    exchange = bool(flags & EXCHANGE)
    entry, other, src_found, dst_found, node, other_node = await tx.get(
        EdgeKey(src, source.name),
        EdgeKey(dst, target.name),
        NodeKey(src),
        NodeKey(dst),
        NodeKey(source.hint or src),
        NodeKey(target.hint or dst),
    )
    if entry is None:
        raise FsError(errno.ENOENT)
    if same and source.name == target.name:
        return NOTHING
    if other is not None:
        if flags & NOREPLACE:
            raise FsError(errno.EEXIST)
        if other.ino == entry.ino:
            return NOTHING
        if not exchange and entry.kind == DIRECTORY and other.kind != DIRECTORY:
            raise FsError(errno.ENOTDIR)
        if not exchange and entry.kind != DIRECTORY and other.kind == DIRECTORY:
            raise FsError(errno.EISDIR)
    if entry.ino != source.hint or (other is not None and other.ino != target.hint):
        node, other_node = await tx.get(NodeKey(entry.ino), NodeKey(other.ino if other else entry.ino))
    if node is None or (other is not None and other_node is None):
        raise FsError(errno.ENOENT)
    src_dir = await check_directory(tx, caller, rules, src_found, in_trash_ok=True)
    dst_dir = await check_directory(tx, caller, rules, dst_found, in_trash_ok=bool(flags & RESTORE))
    if entry.ino in (dst, dst_dir.parent):
        raise FsError(errno.EPERM)
    if entry.kind == DIRECTORY and not same:
        await _refuse_loop(tx, entry.ino, dst_dir)
    if exchange and other is not None and other.kind == DIRECTORY and not same:
        if other.ino in (src, src_dir.parent):
            raise FsError(errno.EPERM)
        await _refuse_loop(tx, other.ino, src_dir)
    check_removable(src_dir)
    if dst_dir.flags & IMMUTABLE or node.flags & (APPEND | IMMUTABLE):
        raise FsError(errno.EPERM)
    _check_sticky_source(caller, src_dir, node, same)
    links_src, links_dst = 0, 0
    if other is not None and other_node is not None:
        check_removable(other_node)
        if not exchange and other.kind == DIRECTORY and not await tx.is_empty(other.ino):
            raise FsError(errno.ENOTEMPTY)
        check_sticky(caller, dst_dir, other_node)
    elif exchange:
        raise FsError(errno.ENOENT)
    check_sticky(caller, src_dir, node)

    replaced: Dropped | None = None
    replaced_text = b""
    other_attr: Attr | None = None
    if other is not None and other_node is not None:
        if exchange:
            other_attr = await _moved(tx, rules, other.ino, other_node, dst, src, now, trees)
            tx.put(EdgeKey(src, source.name), other)
        else:
            if other.kind == SYMLINK:
                (text,) = await tx.get(SymlinkKey(other.ino))
                replaced_text = text or b""
            replaced = await drop(tx, rules, dst, target.name, other, other_node, now, is_open)
        if other.kind == DIRECTORY and not (exchange and same):
            links_dst -= 1
            links_src += 1 if exchange else 0
    if not exchange:
        tx.delete(EdgeKey(src, source.name))
    tx.put(EdgeKey(dst, target.name), entry)
    attr = await _moved(tx, rules, entry.ino, node, src, dst, now, trees)
    if entry.kind == DIRECTORY and not same:
        links_src -= 1
        links_dst += 1
    if same:
        src_dir = dst_dir = common.touch(tx, src, src_dir, now, rules, links=links_src + links_dst)
    else:
        src_dir = common.touch(tx, src, src_dir, now, rules, links=links_src)
        dst_dir = common.touch(tx, dst, dst_dir, now, rules, links=links_dst)
    if whiteout:
        await _leave_whiteout(tx, caller, rules, source, src_dir, whiteout, now)
    journal.moved(
        *(tx, now, source[:2], target[:2], flags, other.ino if other is not None else 0, entry.ino),
        trash=rules.trash if replaced is None or replaced.trashed else 0,
    )
    if whiteout:
        owner = caller.uid, caller.gid
        journal.created(tx, now, *source[:2], owner, CHAR_DEVICE, 0, 0, b"", whiteout, touched=False)
    exchanged = other if exchange else None
    was = None if replaced is None else other_node
    return Moved(entry.ino, attr, src_dir, dst_dir, entry, exchanged, other_attr, replaced, was, replaced_text)


async def _leave_whiteout(
    tx: Tx, caller: Caller, rules: Rules, source: Side, directory: Attr, ino: int, now: int
) -> None:
    space = align4k(0)
    common.check_space(rules, space, 1)
    gid = directory.gid if directory.kind_mode & 0o2000 else caller.gid
    attr = common.new_attr(CHAR_DEVICE, 0, caller.uid, gid, now, source.parent)
    if rules.quotas is not None:
        await rules.quotas.check(tx, source.parent, space, 1)
        await rules.quotas.check_owner(tx, attr.uid, attr.gid, space, 1)
    tx.put(NodeKey(ino), attr)
    tx.put(EdgeKey(source.parent, source.name), Entry(CHAR_DEVICE, ino))
    await common.count(tx, rules, source.parent, common.usage(attr))
    common.count_volume(tx, rules, attr, space, 1)


async def _moved(
    tx: Tx, rules: Rules, ino: int, node: Attr, src: int, dst: int, now: int, trees: Mapping[int, QuotaChange]
) -> Attr:
    """Write inode *ino* after one of its entries went from directory *src* to *dst*."""
    attr = common.with_ctime(node, now)
    if src != dst:
        if node.parent:
            attr = attr._replace(parent=dst)
        else:
            tx.add(ParentKey(ino, src), -1)
            tx.add(ParentKey(ino, dst), 1)
        stat = common.usage(node)
        below = trees.get(ino)
        if rules.quotas is not None:
            space, inodes = below.plus(stat.space, stat.inodes) if below else stat[1:]
            await rules.quotas.check(tx, dst, space, inodes, except_above=src)
            if below:
                await rules.quotas.charge(tx, src, -below.space, -below.inodes)
                await rules.quotas.charge(tx, dst, *below)
        await common.count(tx, rules, src, common.negated(stat))
        await common.count(tx, rules, dst, stat)
    tx.put(NodeKey(ino), attr)
    return attr


def _check_sticky_source(caller: Caller, src_dir: Attr, node: Attr, same: bool) -> None:
    """Moving out of a sticky directory: the owner of the inode may, the owner of the directory only what is no directory."""
    if same or not caller.uid or not src_dir.kind_mode & 0o1000 or caller.uid == node.uid:
        return
    if caller.uid != src_dir.uid or node.kind == DIRECTORY:
        raise FsError(errno.EACCES)


async def _refuse_loop(tx: Tx, ino: int, directory: Attr) -> None:
    """EINVAL when directory *ino* is an ancestor of *directory*; every ancestor becomes a read of the transaction."""
    at = directory.parent
    seen: set[int] = set()
    while at > ROOT and at < TRASH and at not in seen:
        if at == ino:
            raise FsError(errno.EINVAL)
        seen.add(at)
        (node,) = await tx.get(NodeKey(at))
        if node is None:
            return
        at = node.parent
