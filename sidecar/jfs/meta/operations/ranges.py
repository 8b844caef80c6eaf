"""Changes of a file's ranges that move no data: fallocate and copy_file_range, by records alone (format §5.3). Pure.

A hole is a zero record over what is there; where a chunk has no list it is a hole already, so zero records go to existing lists only.
A copied range names the slices of its source, and each new record holds a reference: the source's lists are read in the
transaction, so a compaction that replaces them meanwhile is a conflict and never leaves a record without its objects.
"""

import errno
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple

from jfs.errors import FsError
from jfs.format.constants import APPEND, CHUNK, FIFO, FILE, IMMUTABLE, MAX_FILE, align4k
from jfs.format.slices import Slice, unpack, view
from jfs.meta.model.keys import ChunkKey, NodeKey, SliceRefKey
from jfs.meta.operations import journal
from jfs.meta.operations import rules as common
from jfs.meta.operations.content import MANY_CHUNKS, Written, count_growth
from jfs.meta.operations.rules import Rules
from jfs.meta.store.base import Tx

# Modes of fallocate(2).
KEEP_SIZE: Final = 1
PUNCH_HOLE: Final = 2
COLLAPSE_RANGE: Final = 8
ZERO_RANGE: Final = 16
INSERT_RANGE: Final = 32

MAX_COPY: Final = 1 << 31  # bytes of one transaction; the caller of copy_file_range(2) goes on where it ended


def check_fallocate(mode: int, offset: int, size: int) -> None:
    """What can be refused before anything is read. FsError: EINVAL, ENOTSUP, EFBIG."""
    if size <= 0 or offset < 0:
        raise FsError(errno.EINVAL)
    if mode & (COLLAPSE_RANGE | INSERT_RANGE):
        raise FsError(errno.ENOTSUP if mode in (COLLAPSE_RANGE, INSERT_RANGE) else errno.EINVAL)
    if mode & ~(KEEP_SIZE | PUNCH_HOLE | ZERO_RANGE):
        raise FsError(errno.ENOTSUP)
    if mode & PUNCH_HOLE and (not mode & KEEP_SIZE or mode & ZERO_RANGE):
        raise FsError(errno.EINVAL)
    if offset + size > MAX_FILE:
        raise FsError(errno.EFBIG)


def needs_chunks(mode: int, offset: int, size: int) -> bool:
    """Whether `fallocate` may pass so many chunks that it wants to know which exist: those of the range, and those between the end
    of a file that grows and the range."""
    return (size if mode & KEEP_SIZE else offset + size) // CHUNK >= MANY_CHUNKS


async def fallocate(
    tx: Tx, rules: Rules, ino: int, mode: int, offset: int, size: int, now: int, *, chunks: Sequence[int] | None = None
) -> Written:
    """Make a range a hole (PUNCH_HOLE, ZERO_RANGE) and, unless KEEP_SIZE, the file reach its end; nothing is reserved.
    Call `check_fallocate` before; *chunks* as in `content.truncate`."""
    (node,) = await tx.get(NodeKey(ino))
    if node is None:
        raise FsError(errno.ENOENT)
    if node.kind == FIFO:
        raise FsError(errno.EPIPE)
    if node.kind != FILE or node.flags & IMMUTABLE or (node.flags & APPEND and mode & ~KEEP_SIZE):
        raise FsError(errno.EPERM)
    end = offset + size
    length = node.length if mode & KEEP_SIZE else max(node.length, end)
    grown = align4k(length) - align4k(node.length)
    common.check_space(rules, grown, 0)
    if mode & (PUNCH_HOLE | ZERO_RANGE):
        _clear(tx, ino, offset, min(end, node.length), chunks)
    if length > node.length:
        _clear(tx, ino, node.length, length, chunks)  # nothing that a former end has left behind comes back
    attr = common.with_mtime(node._replace(length=length), now, now)
    tx.put(NodeKey(ino), attr)
    await count_growth(tx, rules, ino, node, length)
    journal.allocated(tx, now, ino, offset, size, mode)
    return Written(node, attr, grown)


def _clear(tx: Tx, ino: int, start: int, end: int, chunks: Sequence[int] | None) -> None:
    if start >= end:
        return
    indexes: Iterable[int] = range(start // CHUNK, (end - 1) // CHUNK + 1)
    if chunks is not None:
        indexes = [indx for indx in chunks if indx in indexes]
    for indx in indexes:
        base = indx * CHUNK
        first, last = max(start - base, 0), min(end - base, CHUNK)
        tx.append(ChunkKey(ino, indx), Slice(first, 0, 0, 0, last - first), existing_only=True)


class Copied(NamedTuple):
    """How many bytes were copied, and the target's change; None when nothing was to do."""

    size: int
    written: Written | None


async def copy_range(
    tx: Tx, rules: Rules, source: int, offset: int, target: int, position: int, size: int, now: int
) -> Copied:
    """Let [position, position+size) of file *target* show what *source* holds at *offset*; less at the source's end, at most
    MAX_COPY. FsError: ENOENT, EINVAL (no file, or ranges of one file that overlap), EPERM, EFBIG, ENOSPC."""
    from_node, node = await tx.get(NodeKey(source), NodeKey(target))
    if from_node is None or node is None:
        raise FsError(errno.ENOENT)
    if from_node.kind != FILE or node.kind != FILE or min(offset, position, size) < 0:
        raise FsError(errno.EINVAL)
    if node.flags & (IMMUTABLE | APPEND):
        raise FsError(errno.EPERM)
    size = min(size, from_node.length - offset, MAX_COPY)
    if size <= 0:
        return Copied(0, None)
    if source == target and offset < position + size and position < offset + size:
        raise FsError(errno.EINVAL)
    if position + size > MAX_FILE:
        raise FsError(errno.EFBIG)
    length = max(node.length, position + size)
    grown = align4k(length) - align4k(node.length)
    common.check_space(rules, grown, 0)
    keys = [ChunkKey(source, indx) for indx in range(offset // CHUNK, (offset + size - 1) // CHUNK + 1)]
    lists = [(key.indx, raw or b"") for key, raw in zip(keys, await tx.get(*keys), strict=True)]
    for indx, record in moved(lists, offset, size, position):
        tx.append(ChunkKey(target, indx), record, existing_only=not record.id)
        if record.id:
            tx.add(SliceRefKey(record.id, record.size), 1)
    attr = common.with_mtime(node._replace(length=length), now, now)
    tx.put(NodeKey(target), attr)
    await count_growth(tx, rules, target, node, length)
    journal.copied(tx, now, source, offset, target, position, size, size)
    return Copied(size, Written(node, attr, grown))


def moved(lists: Sequence[tuple[int, bytes]], offset: int, size: int, position: int) -> Iterator[tuple[int, Slice]]:
    """(chunk, record) that show at *position* what chunk lists (index, records) hold at [offset, offset+size), cut at the borders
    of the chunks they go to; holes as zero records."""
    for indx, raw in lists:
        base = indx * CHUNK
        begin, end = max(offset - base, 0), min(offset + size - base, CHUNK)
        at = begin
        for segment in view(unpack(raw)):
            first, last = max(segment.pos, begin), min(segment.pos + segment.len, end)
            if first >= last:
                continue
            skipped = segment.off + first - segment.pos if segment.id else 0
            piece = Slice(0, segment.id, segment.size if segment.id else 0, skipped, last - first)
            yield from _placed(piece, base + first - offset + position)
            at = last
        if at < end:
            yield from _placed(Slice(0, 0, 0, 0, end - at), base + at - offset + position)


def _placed(piece: Slice, position: int) -> Iterator[tuple[int, Slice]]:
    while piece.len:
        indx, pos = divmod(position, CHUNK)
        part = min(piece.len, CHUNK - pos)
        yield indx, piece._replace(pos=pos, len=part)
        piece = piece._replace(off=piece.off + part if piece.id else 0, len=piece.len - part)
        position += part
