"""Repairs, each an operation of one transaction (see `jfs.check.damage.Fix`). Numbers are corrected by a difference, so that what
others add meanwhile stays; records are written only where they still are what the examination saw. Pure."""

from collections.abc import Mapping, Sequence

from jfs.check.damage import Fix
from jfs.format.constants import DIRECTORY
from jfs.meta.model.keys import (
    CounterKey,
    DeletedFileKey,
    DirStat,
    DirStatKey,
    NodeKey,
    ParentKey,
    SliceRefKey,
    SustainedKey,
    SymlinkKey,
)
from jfs.meta.operations import journal
from jfs.meta.operations.content import drop_chunks
from jfs.meta.operations.removal import forget, release_sustained
from jfs.meta.operations.rules import SECOND, new_attr
from jfs.meta.store.base import Tx


def add_links(ino: int, difference: int) -> Fix:
    async def fix(tx: Tx) -> None:
        (attr,) = await tx.get(NodeKey(ino))
        if attr is not None:
            tx.put(NodeKey(ino), attr._replace(nlink=max(attr.nlink + difference, 0)))
            if attr.kind == DIRECTORY:
                journal.repaired_directory(tx, ino)

    return fix


def set_parent(ino: int, wrong: int, right: int) -> Fix:
    async def fix(tx: Tx) -> None:
        (attr,) = await tx.get(NodeKey(ino))
        if attr is not None and attr.parent == wrong:
            tx.put(NodeKey(ino), attr._replace(parent=right))

    return fix


def set_parents(ino: int, wrong: Mapping[int, int], right: Mapping[int, int]) -> Fix:
    async def fix(tx: Tx) -> None:
        for parent in wrong.keys() | right.keys():
            difference = right.get(parent, 0) - wrong.get(parent, 0)
            if difference:
                tx.add(ParentKey(ino, parent), difference)

    return fix


def split_parent(ino: int, parents: Mapping[int, int]) -> Fix:
    """The parents of a file with several entries that still names one of them itself (format §3.9)."""

    async def fix(tx: Tx) -> None:
        (attr,) = await tx.get(NodeKey(ino))
        if attr is not None and attr.parent:
            tx.put(NodeKey(ino), attr._replace(parent=0))
            tx.clear_parents(ino)
            for parent, count in parents.items():
                tx.put(ParentKey(ino, parent), count)

    return fix


def set_usage(ino: int, kept: DirStat | None, right: DirStat) -> Fix:
    async def fix(tx: Tx) -> None:
        node, present = await tx.get(NodeKey(ino), DirStatKey(ino))
        if node is None:
            return
        if kept is None or present is None:
            tx.put(DirStatKey(ino), right)
        else:
            tx.add_stat(DirStatKey(ino), DirStat(*(b - a for a, b in zip(kept, right, strict=True))))
        journal.counted(tx, ino, right)

    return fix


def delete_usage(ino: int) -> Fix:
    async def fix(tx: Tx) -> None:
        (node,) = await tx.get(NodeKey(ino))
        if node is None:
            tx.delete(DirStatKey(ino))

    return fix


def make_directory(ino: int, parent: int, mode: int, subdirectories: int, now: int) -> Fix:
    """New attributes for a directory that lost them; *now* in unix seconds."""

    async def fix(tx: Tx) -> None:
        (node,) = await tx.get(NodeKey(ino))
        if node is None:
            attr = new_attr(DIRECTORY, mode, 0, 0, now * SECOND, parent)
            tx.put(NodeKey(ino), attr._replace(nlink=2 + subdirectories))
            journal.repaired_directory(tx, ino)

    return fix


def forget_removed(ino: int, now: int) -> Fix:
    """End the removal of a file that has no entry and is open nowhere; *now* in unix seconds."""

    async def fix(tx: Tx) -> None:
        (attr,) = await tx.get(NodeKey(ino))
        if attr is not None and not attr.nlink:
            forget(tx, ino, attr, now * SECOND)

    return fix


def release(sid: int, ino: int, now: int) -> Fix:
    """Close what a session that is gone had open."""

    async def fix(tx: Tx) -> None:
        await release_sustained(tx, sid, ino, now * SECOND)

    return fix


def drop_sustained(sid: int, ino: int) -> Fix:
    async def fix(tx: Tx) -> None:
        (attr,) = await tx.get(NodeKey(ino))
        if attr is None or attr.nlink:
            tx.delete(SustainedKey(sid, ino))

    return fix


def unqueue(ino: int, length: int) -> Fix:
    """Take a file that is there out of the queue of deleted files."""

    async def fix(tx: Tx) -> None:
        (attr,) = await tx.get(NodeKey(ino))
        if attr is not None and attr.nlink:
            tx.delete(DeletedFileKey(ino, length))

    return fix


def drop_lists(ino: int, indexes: Sequence[int]) -> Fix:
    """Remove the chunk lists of an inode that does not exist, with their references."""

    async def fix(tx: Tx) -> None:
        (attr,) = await tx.get(NodeKey(ino))
        if attr is None:
            await drop_chunks(tx, [(ino, indx) for indx in indexes], ())

    return fix


def drop_leftovers(ino: int) -> Fix:
    """Remove link target, extended attributes and parents of an inode that does not exist."""

    async def fix(tx: Tx) -> None:
        (attr,) = await tx.get(NodeKey(ino))
        if attr is None:
            tx.delete(SymlinkKey(ino))
            tx.clear_xattrs(ino)
            tx.clear_parents(ino)

    return fix


def add_references(slice_id: int, size: int, difference: int) -> Fix:
    async def fix(tx: Tx) -> None:
        tx.add(SliceRefKey(slice_id, size), difference)

    return fix


def add_to_counter(name: str, difference: int) -> Fix:
    async def fix(tx: Tx) -> None:
        tx.add(CounterKey(name), difference)

    return fix


def raise_counter(name: str, least: int) -> Fix:
    async def fix(tx: Tx) -> None:
        (value,) = await tx.get(CounterKey(name))
        if (value or 0) < least:
            tx.put(CounterKey(name), least)

    return fix
