"""What happens to an inode that loses an entry: unlink, rmdir, a replaced target of rename, the end of a sustained inode.

`drop` decides between the trash, one link less, sustained and gone (format §3.11, §3.13, §5.3 unlink). It does not touch the
entry itself nor the directory's times. The data of a file that is gone is removed after the commit, outside. Pure.
"""

import errno
from collections.abc import Callable, Sequence
from typing import NamedTuple

from jfs.errors import FsError
from jfs.format.constants import DIRECTORY, FILE, MAX_NAME, SKIP_TRASH, SYMLINK, align4k
from jfs.meta.model.attr import Attr, Entry
from jfs.meta.model.keys import (
    DeletedFileKey,
    DirStatKey,
    EdgeKey,
    NodeKey,
    ParentKey,
    SustainedKey,
    SymlinkKey,
)
from jfs.meta.operations import journal
from jfs.meta.operations import rules as common
from jfs.meta.operations.access import Caller, check_sticky
from jfs.meta.operations.rules import SECOND, Rules, check_directory, check_name, check_removable
from jfs.meta.store.base import Tx


class Dropped(NamedTuple):
    """An inode after the loss of an entry: *attr* is None when its record is gone; *deleted* is the length of a file whose
    data are now queued for deletion, None otherwise."""

    ino: int
    kind: int
    attr: Attr | None
    deleted: int | None = None
    sustained: bool = False
    trashed: bool = False
    space: int = 0
    inodes: int = 0


class Removed(NamedTuple):
    """What an unlink or rmdir did: to the inode, and the directory's attributes afterwards; for a rmdir what *node* was."""

    dropped: Dropped
    parent: Attr
    node: Attr | None = None


def trash_name(parent: int, ino: int, name: bytes) -> bytes:
    """The name of a removed entry in its hour directory (format §3.13), cut to 255 bytes at its tail."""
    return (b"%d-%d-" % (parent, ino) + name)[:MAX_NAME]


async def drop(
    tx: Tx,
    rules: Rules,
    parent: int,
    name: bytes,
    entry: Entry,
    node: Attr | None,
    now: int,
    is_open: Callable[[int], bool],
) -> Dropped:
    """Take the entry *name* of *parent* away from its inode, whose record *node* may be missing. *is_open* tells whether this
    process has an inode open."""
    kind, ino = entry
    if node is None:
        return Dropped(ino, kind, None)
    await common.count(tx, rules, parent, common.negated(common.usage(node)))
    if kind == DIRECTORY and rules.quotas is not None:
        rules.quotas.drop_directory(tx, ino)
    if rules.trash and not common.is_trash(parent) and not node.flags & SKIP_TRASH:
        place = EdgeKey(rules.trash, trash_name(parent, ino, name))
        there = None
        if node.nlink > 1 and kind != DIRECTORY:
            (there,) = await tx.get(place)
        if there is None:
            return await _to_trash(tx, rules, place, parent, ino, node, kind, now)
    if kind == DIRECTORY:
        tx.delete(NodeKey(ino))
        tx.clear_xattrs(ino)
        tx.delete(DirStatKey(ino))
        space = -align4k(0)
        common.count_volume(tx, rules, node, space, -1)
        return Dropped(ino, kind, None, space=space, inodes=-1)
    links = node.nlink - 1
    if links > 0:
        attr = common.with_ctime(node._replace(nlink=links), now)
        tx.put(NodeKey(ino), attr)
        if not node.parent:
            tx.add(ParentKey(ino, parent), -1)
        return Dropped(ino, kind, attr)
    if kind == FILE and rules.sid and is_open(ino):
        attr = common.with_ctime(node._replace(nlink=0), now)
        tx.put(NodeKey(ino), attr)
        tx.put(SustainedKey(rules.sid, ino), True)
        tx.clear_xattrs(ino)
        if not node.parent:
            tx.clear_parents(ino)
        return Dropped(ino, kind, attr, sustained=True)
    return forget(tx, ino, node, now, rules)


async def _to_trash(
    tx: Tx, rules: Rules, place: EdgeKey, parent: int, ino: int, node: Attr, kind: int, now: int
) -> Dropped:
    attr = common.with_ctime(node, now)
    if node.parent:
        attr = attr._replace(parent=rules.trash)
    else:
        tx.add(ParentKey(ino, rules.trash), 1)
        tx.add(ParentKey(ino, parent), -1)
    tx.put(NodeKey(ino), attr)
    tx.put(place, Entry(kind, ino))
    await common.count(tx, rules, rules.trash, common.usage(node))
    if kind == DIRECTORY:
        tx.delete(DirStatKey(ino))
    return Dropped(ino, kind, attr, trashed=True)


def forget(tx: Tx, ino: int, node: Attr, now: int, rules: Rules | None = None) -> Dropped:
    """Remove the records of an inode without entries; a file's chunks are queued for deletion. Without *rules* its owner's usage is
    left to a check of the quotas."""
    kind = node.kind
    tx.delete(NodeKey(ino))
    tx.clear_xattrs(ino)
    if not node.parent:
        tx.clear_parents(ino)
    deleted: int | None = None
    space = -align4k(0)
    if kind == FILE:
        deleted = node.length
        space = -align4k(node.length)
        tx.put(DeletedFileKey(ino, node.length), now // SECOND)
    elif kind == SYMLINK:
        tx.delete(SymlinkKey(ino))
    common.count_volume(tx, rules, node, space, -1)
    return Dropped(ino, kind, None, deleted=deleted, space=space, inodes=-1)


async def release_sustained(tx: Tx, sid: int, ino: int, now: int, rules: Rules | None = None) -> Dropped | None:
    """The last close of a sustained inode, or the death of its session (format §7.4). None when there was nothing to remove.
    *rules* as in `forget`."""
    (node,) = await tx.get(NodeKey(ino))
    tx.delete(SustainedKey(sid, ino))
    if node is None or node.nlink:  # removed already, or a record that never should have been
        return None
    journal.released(tx, now, sid, ino)
    return forget(tx, ino, node, now, rules)


def check_removal(caller: Caller, parent: int, name: bytes) -> None:
    """What can be refused of unlink, rmdir and a rename's source before anything is read (format §5.2)."""
    if common.is_trash_entry(parent, name) or (common.is_trash(parent) and caller.uid):
        raise FsError(errno.EPERM)
    check_name(name)


async def unlink(
    tx: Tx,
    caller: Caller,
    rules: Rules,
    parent: int,
    name: bytes,
    now: int,
    is_open: Callable[[int], bool],
    *,
    hint: int,
) -> Removed:
    """Remove a file's entry. *hint* is the inode that the entry probably names (0: unknown), so that its record comes in the same
    round trip; a wrong one only costs another. Call `check_removal` before."""
    found, entry, guess = await tx.get(NodeKey(parent), EdgeKey(parent, name), NodeKey(hint or parent))
    if entry is None:
        raise FsError(errno.ENOENT)
    if entry.kind == DIRECTORY:
        raise FsError(errno.EPERM)
    node = guess
    if entry.ino != hint:
        (node,) = await tx.get(NodeKey(entry.ino))
    directory = await check_directory(tx, caller, rules, found, in_trash_ok=True)
    check_removable(directory)
    if node is not None:
        check_removable(node)
        check_sticky(caller, directory, node)
    dropped = await drop(tx, rules, parent, name, entry, node, now, is_open)
    tx.delete(EdgeKey(parent, name))
    touched = common.touch(tx, parent, directory, now, rules)
    journal.unlinked(
        *(tx, now, parent, name, entry.ino),
        trash=rules.trash if dropped.trashed else 0,
        sustained=dropped.sustained,
        touched=touched is not directory,
    )
    return Removed(dropped, touched)


async def rmdir(tx: Tx, caller: Caller, rules: Rules, parent: int, name: bytes, now: int, *, hint: int) -> Removed:
    """Remove an empty directory; *hint* as in `unlink`. Call `check_rmdir` before."""
    found, entry, guess = await tx.get(NodeKey(parent), EdgeKey(parent, name), NodeKey(hint or parent))
    if entry is None:
        raise FsError(errno.ENOENT)
    if entry.kind != DIRECTORY:
        raise FsError(errno.ENOTDIR)
    node = guess
    if entry.ino != hint:
        (node,) = await tx.get(NodeKey(entry.ino))
    directory = await check_directory(tx, caller, rules, found, in_trash_ok=True)
    check_removable(directory)
    if not await tx.is_empty(entry.ino):
        raise FsError(errno.ENOTEMPTY)
    if node is not None:
        check_removable(node)
        check_sticky(caller, directory, node)
    dropped = await drop(tx, rules, parent, name, entry, node, now, lambda _: False)
    tx.delete(EdgeKey(parent, name))
    journal.removed_directory(tx, now, parent, name, entry.ino, trash=rules.trash if dropped.trashed else 0)
    return Removed(dropped, common.touch(tx, parent, directory, now, rules, links=-1), node)


def check_rmdir(caller: Caller, parent: int, name: bytes) -> None:
    """What can be refused of rmdir before anything is read."""
    if name == b".":
        raise FsError(errno.EINVAL)
    if name == b"..":
        raise FsError(errno.ENOTEMPTY)
    check_removal(caller, parent, name)


async def unlink_many(
    tx: Tx,
    caller: Caller,
    rules: Rules,
    parent: int,
    entries: Sequence[tuple[bytes, int]],
    now: int,
    is_open: Callable[[int], bool],
) -> tuple[list[Dropped], list[tuple[bytes, int]], Attr]:
    """Remove many files' entries (name, inode) of one directory; those that are gone or replaced by directories are left out.
    The second result are entries that must go in another transaction, since this one removes another entry of their inode.
    Call `check_removal` for each name before."""
    edges = [EdgeKey(parent, name) for name, _ in entries]
    (found,), present = await tx.get(NodeKey(parent)), await tx.get(*edges)
    nodes = await tx.get(*(NodeKey(entry.ino) for entry in present if entry is not None))
    directory = await check_directory(tx, caller, rules, found, in_trash_ok=True)
    check_removable(directory)
    dropped: list[Dropped] = []
    names: list[bytes] = []  # of those dropped
    later: list[tuple[bytes, int]] = []
    changed: set[int] = set()
    at = iter(nodes)
    for edge, entry in zip(edges, present, strict=True):
        node = next(at) if entry is not None else None
        if entry is None or entry.kind == DIRECTORY:
            continue
        if entry.ino in changed:
            later.append((edge.name, entry.ino))
            continue
        if node is not None:
            check_removable(node)
            check_sticky(caller, directory, node)
        changed.add(entry.ino)
        dropped.append(await drop(tx, rules, parent, edge.name, entry, node, now, is_open))
        names.append(edge.name)
        tx.delete(edge)
    touched = common.touch(tx, parent, directory, now, rules)
    if tx.journal is not None:
        for trashed in (True, False):
            gone = [(name, one.ino) for name, one in zip(names, dropped, strict=True) if one.trashed == trashed]
            trash = rules.trash if trashed else 0
            journal.unlinked_many(tx, now, parent, gone, trash=trash, touched=touched is not directory)
    return dropped, later, touched
