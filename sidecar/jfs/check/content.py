"""Judges what files hold: chunk lists, slice references, and the volume's counters (format §3.2, §3.7, §3.12).

Pure functions from `Facts` to damages. References are not repaired while a list cannot be read, since it may hold some.
"""

from collections.abc import Iterator
from typing import Final

from jfs.check import fixes
from jfs.check.damage import Damage
from jfs.check.facts import Facts
from jfs.format.constants import FILE, ROOT, SPECIAL, TRASH, align4k
from jfs.meta.model.keys import ChunkKey, DirStatKey

_BACKUP: Final = "restore the record from a metadata backup"
_WAITS: Final = 2 * 3600  # seconds after which somebody should have deleted what is queued


def judge(facts: Facts) -> Iterator[Damage]:
    """Everything wrong with contents and counters."""
    for key, text in facts.corrupt:
        if isinstance(key, DirStatKey) and facts.setting.dir_stats and key.ino in facts.nodes:
            continue  # judged with the directory
        place = key.ino if isinstance(key, ChunkKey) else None
        yield Damage("corrupt", place, f"{text}{' ({path})' if place is not None else ''}", remedy=_BACKUP)
    for flaw in facts.flaws:
        yield Damage("form", None, flaw, remedy="the right form is there too: remove one of both by hand")
    for ino, indx, record in facts.impossible:
        text = f"chunk {indx} of {{path}} has a record that cannot be: {tuple(record)}"
        yield Damage("record", ino, text, remedy=_BACKUP)
    yield from _lists(facts)
    yield from _references(facts)
    yield from _counters(facts)


def _lists(facts: Facts) -> Iterator[Damage]:
    """Chunk lists of inodes that do not exist and are not about to be deleted; files that should have been."""
    for ino, indexes in facts.chunk_indexes.items():
        if ino in facts.queued or ino in facts.unreadable:
            continue
        names = ", ".join(f"c{ino}_{indx}" for indx in sorted(indexes)[:10]) + (" …" if len(indexes) > 10 else "")
        torn = any(isinstance(key, ChunkKey) and key.ino == ino for key, _ in facts.corrupt)
        if torn or facts.links(ino):
            remedy = _BACKUP if torn else "it is the content of an entry whose attributes are missing"
            yield Damage("leaked", ino, f"found leaked chunk {names}", remedy=remedy)
        else:
            yield Damage("leaked", ino, f"found leaked chunk {names}", fixes.drop_lists(ino, indexes))
    waiting = sum(since < facts.now - _WAITS for _, since in facts.queued.values())
    if waiting:
        text = f"{waiting} deleted files wait for longer than two hours to be cleaned: mount, or `jfs gc --delete`"
        yield Damage("queue", None, text, note=True)


def _references(facts: Facts) -> Iterator[Damage]:
    sizes: dict[int, int] = {}
    missing = facts.missing_reference
    for (slice_id, size), count in facts.references.items():
        if sizes.setdefault(slice_id, size) != size:
            text = f"slice {slice_id} has two sizes: {sizes[slice_id]} and {size} bytes"
            yield Damage("slice", None, text, remedy=_BACKUP)
            continue
        right = count + facts.delayed.get((slice_id, size), 0)
        kept = facts.kept_references.get((slice_id, size), missing)
        if kept != right:
            yield _reference(facts, slice_id, size, kept, right)
    for (slice_id, size), right in facts.delayed.items():
        if (slice_id, size) not in facts.references:
            kept = facts.kept_references.get((slice_id, size), missing)
            if kept != right:
                yield _reference(facts, slice_id, size, kept, right)
    for (slice_id, size), kept in facts.kept_references.items():
        if kept > 0 and (slice_id, size) not in facts.references and (slice_id, size) not in facts.delayed:
            yield _reference(facts, slice_id, size, kept, 0)


def _reference(facts: Facts, slice_id: int, size: int, kept: int, right: int) -> Damage:
    text = f"references of slice {slice_id} ({size} bytes) should be {right}, but got {kept}"
    if facts.torn_lists:
        return Damage("references", None, text, remedy="lists that cannot be read may hold the others")
    return Damage("references", None, text, fixes.add_references(slice_id, size, right - kept))


def _counters(facts: Facts) -> Iterator[Damage]:
    space = inodes = last_inode = 0
    for ino, node in facts.nodes.items():
        if ino < SPECIAL:
            last_inode = max(last_inode, ino)
        if ino not in (ROOT, TRASH):
            space += align4k(node.length) if node.kind == FILE else align4k(0)
            inodes += 1
    for name, right in (("usedSpace", space), ("totalInodes", inodes)):
        kept = facts.counters[name] or 0
        if kept != right and not facts.unreadable:
            text = f"counter {name} should be {right}, but got {kept}"
            yield Damage("counter", None, text, fixes.add_to_counter(name, right - kept))
    last_slice = max(
        (slice_id for slice_id, _ in (*facts.references, *facts.delayed, *facts.kept_references)), default=0
    )
    for name, last in (("nextInode", last_inode), ("nextChunk", last_slice)):
        least = last + facts.counts_from_next
        kept = facts.counters[name] or 0
        if last > 1 and kept < least:
            text = f"counter {name} is {kept}, but {last} is in use: the next ones would be given out twice"
            yield Damage("counter", None, text, fixes.raise_counter(name, least))
