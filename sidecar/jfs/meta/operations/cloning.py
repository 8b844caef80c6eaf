"""Copies of inodes by reference: what a clone consists of (format §5.3 clone). Pure.

A copy names the slices of its source, and each record of its chunk lists holds a reference; the source's lists are read in the
transaction, so a compaction that replaces them meanwhile is a conflict. The top directory of a tree is *detached* while the tree is
built: it has no entry, no parent and stands in the list of detached nodes, so that nobody sees half a clone and what a dead client
left is known. Quotas of directories count the whole tree when it is attached; owners are charged copy by copy.
"""

import errno
from collections.abc import Sequence
from typing import Final, NamedTuple

from jfs.errors import FsError
from jfs.format.constants import APPEND, CHUNK, DIRECTORY, FILE, IMMUTABLE, SYMLINK
from jfs.format.slices import unpack
from jfs.meta.model.attr import Attr, Entry
from jfs.meta.model.keys import (
    ChunkKey,
    DetachedKey,
    DirStat,
    DirStatKey,
    EdgeKey,
    NodeKey,
    SliceRefKey,
    SymlinkKey,
    XattrKey,
)
from jfs.meta.operations import journal
from jfs.meta.operations import rules as common
from jfs.meta.operations.access import EXECUTE, READ, Caller
from jfs.meta.operations.acls import Numbered, number, permit, rule_of
from jfs.meta.operations.content import MANY_CHUNKS
from jfs.meta.operations.rules import SECOND, Rules, check_directory
from jfs.meta.store.base import Tx

PRESERVE: Final = 2  # of the mode in the control message


class Place(NamedTuple):
    """Where a copy goes: its inode, and its directory and name; a detached top directory has neither yet."""

    ino: int
    parent: int = 0
    name: bytes = b""


class Copy(NamedTuple):
    """The attributes of a copy, and the access ACL that was made for it."""

    attr: Attr
    acl: Numbered | None = None


class ChunksChanged(Exception):
    """The source got other content since its chunks were asked for: ask again."""


class Chunks(NamedTuple):
    """The chunks of a source that has very many, and its attributes from before they were asked for."""

    attr: Attr
    indexes: Sequence[int]


def has_many_chunks(attr: Attr) -> bool:
    """Whether `copy_node` wants to be told which chunks a file has."""
    return attr.kind == FILE and attr.length // CHUNK >= MANY_CHUNKS


async def copy_node(
    tx: Tx,
    caller: Caller,
    rules: Rules,
    source: int,
    place: Place,
    now: int,
    *,
    preserve: bool,
    umask: int,
    chunks: Chunks | None = None,
    entry: tuple[int, bytes] | None = None,
) -> Copy:
    """Copy inode *source*, a directory without its entries. With *preserve* it keeps mode, owner and times, else it is the caller's,
    made now. The directory of *place* is one of the clone: it is not checked, and keeps its times. *entry* (directory, name) is the
    clone's own, given for its top. FsError: ENOENT, EACCES, ENOSPC,
    EDQUOT."""
    node, first, target = await tx.get(NodeKey(source), ChunkKey(source, 0), SymlinkKey(source))
    if node is None:
        raise FsError(errno.ENOENT)
    if node.kind in (FILE, DIRECTORY):  # nothing is read of others
        await permit(tx, rules.acls, caller, node, READ | EXECUTE if node.kind == DIRECTORY else READ)
    attr, acl = await _attributes(tx, caller, rules, node, place.parent, now, preserve=preserve, umask=umask)
    stat = common.usage(attr)
    common.check_space(rules, stat.space, 1)
    if rules.quotas is not None:
        await rules.quotas.check_owner(tx, attr.uid, attr.gid, stat.space, 1)
    tx.put(NodeKey(place.ino), attr)
    names = await tx.xattr_names(source)
    for name, value in zip(names, await tx.get(*(XattrKey(source, n) for n in names)) if names else (), strict=True):
        if value is not None:
            tx.put(XattrKey(place.ino, name), value)
    if node.kind == FILE:
        await _share_chunks(tx, source, node, first, place.ino, chunks)
    elif node.kind == SYMLINK:
        tx.put(SymlinkKey(place.ino), target or b"")
    elif node.kind == DIRECTORY:
        tx.put(DirStatKey(place.ino), DirStat(0, 0, 0))
        if place.parent:
            (directory,) = await tx.get(NodeKey(place.parent))
            if directory is None:
                raise FsError(errno.ENOENT)
            tx.put(NodeKey(place.parent), directory._replace(nlink=directory.nlink + 1))
    if place.parent:
        tx.put(EdgeKey(place.parent, place.name), Entry(node.kind, place.ino))
        await common.count(tx, rules, place.parent, stat)
    else:
        tx.put(DetachedKey(place.ino), now // SECOND)
    common.count_volume(tx, rules, attr, stat.space, 1)
    folder, name = entry or place[1:]
    mode = PRESERVE if preserve else 0
    journal.cloned(tx, now, source, folder, name, place.ino, mode, umask, top=entry is not None)
    return Copy(attr, acl)


async def _attributes(
    tx: Tx, caller: Caller, rules: Rules, node: Attr, parent: int, now: int, *, preserve: bool, umask: int
) -> Copy:
    attr = node._replace(
        parent=parent,
        nlink=2 if node.kind == DIRECTORY else 1,
        flags=node.flags & ~(IMMUTABLE | APPEND),  # they would be in the way of the clone itself
    )
    if preserve:
        return Copy(attr)
    seconds, nanoseconds = divmod(now, SECOND)
    attr = attr.with_mode(node.mode & ~umask)._replace(
        uid=caller.uid,
        gid=caller.gid,
        atime=seconds,
        atimensec=nanoseconds,
        mtime=seconds,
        mtimensec=nanoseconds,
        ctime=seconds,
        ctimensec=nanoseconds,
    )
    rule = await rule_of(tx, rules.acls, node.access_acl)
    if rule is None or rules.acls is None or attr.mode == node.mode:
        return Copy(attr)
    acl = await number(tx, rules.acls, rule.with_mode(attr.mode))
    return Copy(attr._replace(access_acl=acl[0]), acl)


async def _share_chunks(
    tx: Tx, source: int, node: Attr, first: bytes | None, target: int, chunks: Chunks | None
) -> None:
    lists = [(0, first)]
    if has_many_chunks(node):
        if chunks is None or chunks.attr != node:
            raise ChunksChanged
        keys = [ChunkKey(source, indx) for indx in chunks.indexes if indx]
    else:
        keys = [ChunkKey(source, indx) for indx in range(1, (max(node.length, 1) - 1) // CHUNK + 1)]
    if keys:
        lists += [(key.indx, raw) for key, raw in zip(keys, await tx.get(*keys), strict=True)]
    for indx, raw in lists:
        if raw:
            tx.put(ChunkKey(target, indx), raw)
            for record in unpack(raw):
                if record.id:
                    tx.add(SliceRefKey(record.id, record.size), 1)


async def check_target(tx: Tx, caller: Caller, rules: Rules, parent: int, name: bytes, total: DirStat) -> Attr:
    """The directory that is to get the clone, of *total* usage. FsError: ENOENT, ENOTDIR, EACCES, EEXIST, EPERM, ENOSPC, EDQUOT."""
    found, entry = await tx.get(NodeKey(parent), EdgeKey(parent, name))
    directory = await check_directory(tx, caller, rules._replace(check_access=True), found)
    if directory.flags & IMMUTABLE:
        raise FsError(errno.EPERM)
    if entry is not None:
        raise FsError(errno.EEXIST)
    common.check_space(rules, total.space, total.inodes)
    if rules.quotas is not None:
        await rules.quotas.check(tx, parent, total.space, total.inodes)
    return directory


async def attach(
    tx: Tx, caller: Caller, rules: Rules, ino: int, parent: int, name: bytes, total: DirStat, now: int
) -> tuple[Attr, Attr]:
    """Give the detached directory *ino*, with everything below of *total* usage, its entry; its attributes and the parent's. Errors as
    `check_target`, and ENOENT when somebody has cleaned it up."""
    directory = await check_target(tx, caller, rules._replace(space_left=None, inodes_left=None), parent, name, total)
    node, since = await tx.get(NodeKey(ino), DetachedKey(ino))
    if node is None or since is None:
        raise FsError(errno.ENOENT)
    attr = node._replace(parent=parent)
    tx.put(NodeKey(ino), attr)
    tx.put(EdgeKey(parent, name), Entry(DIRECTORY, ino))
    tx.delete(DetachedKey(ino))
    stat = common.usage(attr)
    await common.count(tx, rules, parent, stat)
    if rules.quotas is not None:
        await rules.quotas.charge(tx, parent, total.space - stat.space, total.inodes - stat.inodes)
    journal.attached(tx, now, ino, parent, name)
    return attr, common.touch(tx, parent, directory, now, rules, links=1)


async def attach_copy(
    tx: Tx,
    caller: Caller,
    rules: Rules,
    source: int,
    place: Place,
    now: int,
    *,
    preserve: bool,
    umask: int,
    chunks: Chunks | None = None,
) -> tuple[Copy, Attr]:
    """Clone what is no directory in one step; the copy and the parent's attributes. Errors as `check_target` and `copy_node`."""
    (node,) = await tx.get(NodeKey(source))
    if node is None:
        raise FsError(errno.ENOENT)
    directory = await check_target(tx, caller, rules, place.parent, place.name, common.usage(node))
    copy = await copy_node(
        *(tx, caller, rules, source, place, now), preserve=preserve, umask=umask, chunks=chunks, entry=place[1:]
    )
    return copy, common.touch(tx, place.parent, directory, now, rules)


async def drop_detached(tx: Tx, rules: Rules, ino: int) -> None:
    """Remove an empty detached directory, or forget one that is none any more. FsError(ENOTEMPTY)."""
    node, since = await tx.get(NodeKey(ino), DetachedKey(ino))
    if since is None:
        return
    tx.delete(DetachedKey(ino))
    if node is None:
        return
    if not await tx.is_empty(ino):
        raise FsError(errno.ENOTEMPTY)
    tx.delete(NodeKey(ino))
    tx.clear_xattrs(ino)
    tx.delete(DirStatKey(ino))
    journal.cleaned(tx, ino)
    stat = common.usage(node)
    common.count_volume(tx, rules, node, -stat.space, -stat.inodes)
