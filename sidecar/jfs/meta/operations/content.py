"""What a file holds: write commits, truncation, and the removal of a deleted file's chunk lists (format §5.3, §3.12, §7.5). Pure.

Data are in the object store before the transaction that makes them visible, and leave it after the one that removes them.
"""

import errno
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from jfs.errors import FsError
from jfs.format.constants import APPEND, CHUNK, FILE, IMMUTABLE, MAX_FILE, align4k
from jfs.format.slices import Slice, unpack
from jfs.meta.model.attr import Attr
from jfs.meta.model.keys import ChunkKey, DeletedFileKey, DirStat, NodeKey, SliceRefKey
from jfs.meta.operations import journal
from jfs.meta.operations import rules as common
from jfs.meta.operations.access import WRITE, Caller
from jfs.meta.operations.acls import permit
from jfs.meta.operations.rules import Rules
from jfs.meta.store.base import Tx

# From so many chunks on, a truncation asks which chunks there are instead of naming all between (format §5.3 truncate).
MANY_CHUNKS: Final = 10_000


class ManyChunks(Exception):
    """`truncate` spans so many chunks that it must be told which exist: call again with them. No name for what a caller sees."""


class Written(NamedTuple):
    """A file's attributes before and after a change of its content, and how much the volume grew in bytes."""

    before: Attr
    attr: Attr
    space: int


async def commit_slice(tx: Tx, rules: Rules, ino: int, indx: int, record: Slice, mtime: int, now: int) -> Written:
    """Make an uploaded slice visible in chunk *indx*; *mtime* is the time of the last write into it (ns)."""
    (node,) = await tx.get(NodeKey(ino))
    if node is None:
        raise FsError(errno.ENOENT)
    if node.kind != FILE:
        raise FsError(errno.EPERM)
    length = max(node.length, indx * CHUNK + record.pos + record.len)
    attr = common.with_length(node, length, mtime, now)
    grown = align4k(length) - align4k(node.length)
    common.check_space(rules, grown, 0)
    tx.put(NodeKey(ino), attr)
    tx.append(ChunkKey(ino, indx), record)
    if record.id:
        tx.put(SliceRefKey(record.id, record.size), 1)
    await count_growth(tx, rules, ino, node, length)
    journal.wrote(tx, now, ChunkKey(ino, indx), record.pos, record.id, record.len, mtime)
    return Written(node, attr, grown)


async def truncate(
    tx: Tx,
    caller: Caller,
    rules: Rules,
    ino: int,
    length: int,
    now: int,
    *,
    opened: bool,
    chunks: Sequence[int] | None = None,
) -> Written:
    """Set a file's length, covering what is cut off or gained with zero records. *opened*: by a writable handle, which needs no
    permission. The times move even when the length is what it was, as on Linux. *chunks* are the indexes that have a list, without
    which `ManyChunks` is raised from `MANY_CHUNKS` on (`needs_chunks`)."""
    (node,) = await tx.get(NodeKey(ino))
    if node is None:
        raise FsError(errno.ENOENT)
    if node.kind != FILE:
        raise FsError(errno.EPERM)
    if length < 0:
        raise FsError(errno.EINVAL)
    if length >= MAX_FILE:
        raise FsError(errno.EFBIG)
    if node.flags & (IMMUTABLE | APPEND) or (common.in_trash(node) and not opened):
        raise FsError(errno.EPERM)
    if not opened and (rules.check_access or caller.checked):
        await permit(tx, rules.acls, caller, node, WRITE)
    if chunks is None and needs_chunks(node.length, length):
        raise ManyChunks
    grown = align4k(length) - align4k(node.length)
    common.check_space(rules, grown, 0)
    for indx, record, existing_only in zero_records(node.length, length, chunks):
        tx.append(ChunkKey(ino, indx), record, existing_only=existing_only)
    attr = common.with_length(node, length, now, now)
    tx.put(NodeKey(ino), attr)
    await count_growth(tx, rules, ino, node, length)
    journal.truncated(tx, now, ino, node.length, length, opened=opened)
    return Written(node, attr, grown)


def needs_chunks(old: int, new: int) -> bool:
    """Whether `truncate` from *old* to *new* bytes spans so many chunks that it wants to know which exist."""
    return abs(new - old) // CHUNK >= MANY_CHUNKS


def zero_records(old: int, new: int, chunks: Sequence[int] | None = None) -> Iterable[tuple[int, Slice, bool]]:
    """(chunk, record, only when the chunk has a list) that a truncation from *old* to *new* appends (format §5.3)."""
    low, high = min(old, new), max(old, new)
    if low == high:
        return
    first, last = low // CHUNK, high // CHUNK
    at = low % CHUNK
    yield first, Slice(at, 0, 0, 0, min(high - low, CHUNK - at)), False
    between: Iterable[int] = range(first + 1, last)
    if chunks is not None:
        between = [indx for indx in chunks if first < indx < last]
    for indx in between:
        yield indx, Slice(0, 0, 0, 0, CHUNK), True
    if last > first and high % CHUNK:
        yield last, Slice(0, 0, 0, 0, high % CHUNK), False


async def count_growth(tx: Tx, rules: Rules, ino: int, node: Attr, length: int) -> None:
    """Add a file's change of length to the volume and to each of its directories (format §5.3 quota). FsError(EDQUOT)."""
    change = DirStat(length - node.length, align4k(length) - align4k(node.length), 0)
    quotas = rules.quotas
    if quotas is not None:
        await quotas.check_owner(tx, node.uid, node.gid, change.space, 0)
    common.count_volume(tx, rules, node, change.space, 0)
    if (
        not (rules.dir_stats or quotas) or not node.nlink or not any(change)
    ):  # an unlinked file counts in no directory any more
        return
    if node.parent:
        if quotas is not None:
            await quotas.check(tx, node.parent, change.space, 0)
        await common.count(tx, rules, node.parent, change)
        return
    for parent, entries in (await tx.parents(ino)).items():
        if quotas is not None:
            await quotas.check(tx, parent, change.space * entries, 0)
        await common.count(tx, rules, parent, DirStat(change.length * entries, change.space * entries, 0))


class Freed(NamedTuple):
    """Slices (id, size) that lost a reference, and inodes whose lists may go on beyond the chunks that were dropped: their queue
    entries are still there."""

    slices: set[tuple[int, int]]
    cut: set[int]


async def drop_chunks(tx: Tx, chunks: Sequence[tuple[int, int]], queue: Sequence[DeletedFileKey]) -> Freed:
    """Remove chunk lists (inode, index) with their references, and the entries *queue* of the deleted-file queue.

    Whether a slice's objects may go is read after the commit, since references are only added to.
    """
    keys = [ChunkKey(ino, indx) for ino, indx in chunks]
    slices: set[tuple[int, int]] = set()
    cut: set[int] = set()
    for key, raw in zip(keys, await tx.get(*keys) if keys else (), strict=True):
        if raw is None:
            continue
        for record in unpack(raw):
            if record.id:
                tx.add(SliceRefKey(record.id, record.size), -1)
                slices.add((record.id, record.size))
            elif record.pos + record.len == CHUNK:
                cut.add(key.ino)  # a truncation reached over the chunk's end: lists of later chunks may have stayed
        tx.delete(key)
        journal.dropped_chunk(tx, key)
    for entry in queue:
        if entry.ino not in cut:
            tx.delete(entry)
    return Freed(slices, cut)


async def drop_slice(tx: Tx, id: int, size: int) -> None:
    """Remove the reference record of a slice whose objects are deleted."""
    tx.delete(SliceRefKey(id, size))
    journal.deleted_slice(tx, id, size)
