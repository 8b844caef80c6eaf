"""Rewriting a chunk's slices as one (format §6.9): what to rewrite, and the transaction that puts the new slice in their place. Pure.

Between `plan` and `replace` the data are copied outside. Invariant: the visible bytes of the chunk are the same before and after
`replace`, whatever was appended to the list meanwhile: it touches only the first records, and only when they are byte-equal to
what was planned on. References: the new slice gets one; each replaced record gives its own up, at once or when its entry of the
delayed list expires.
"""

import struct
from collections.abc import Sequence
from typing import Final, NamedTuple

from jfs.format.slices import Segment, Slice, unpack, view
from jfs.meta.model.keys import ChunkKey, DelayedKey, SliceRefKey
from jfs.meta.operations import journal
from jfs.meta.store.base import Tx

MAX_RECORDS: Final = 1000  # of a list that one compaction looks at
SETTLED: Final = 1 << 20  # bytes from which on a first slice may be left as it is
_DELAYED: Final = struct.Struct(">QI")


class Plan(NamedTuple):
    """*skipped* records stay, *replaced* ones become one slice of *size* bytes at *pos* of the chunk, which holds *segments*
    (zeros where their id is 0)."""

    skipped: tuple[Slice, ...]
    replaced: tuple[Slice, ...]
    pos: int
    size: int
    segments: tuple[Segment, ...]

    @property
    def head(self) -> bytes:
        """The beginning of the list that the plan rests on."""
        return b"".join(record.pack() for record in (*self.skipped, *self.replaced))


def plan(records: Sequence[Slice]) -> Plan | None:
    """What a compaction of a chunk with these records rewrites; None when it would gain nothing."""
    working = list(records[:MAX_RECORDS])
    skipped = 0
    pos, size, segments = _visible(working)
    while skipped < len(working) and _is_settled(working[skipped:], pos, size, segments):
        skipped += 1
        pos, size, segments = _visible(working[skipped:])
    replaced = working[skipped:]
    if len(replaced) < 2 or not size:
        return None
    kept = working[:skipped]
    if any(pos + size > record.pos and record.pos + record.len > pos for record in kept):
        return None  # it would hide what stays; cannot be, as a settled record lies apart from all later ones
    return Plan(tuple(kept), tuple(replaced), pos, size, tuple(segments))


def _visible(records: Sequence[Slice]) -> tuple[int, int, list[Segment]]:
    """Position, size and segments of what is visible of *records*, without zeros at either end; a single byte of them when there
    is nothing else."""
    segments = view(list(records))
    first, last = 0, len(segments)
    while last - first > 1 and not segments[first].id:
        first += 1
    while last - first > 1 and not segments[last - 1].id:
        last -= 1
    segments = segments[first:last]
    if not segments:
        return 0, 0, []
    if len(segments) == 1 and not segments[0].id:
        segments = [segments[0]._replace(len=1)]
    return segments[0].pos, sum(segment.len for segment in segments), segments


def _is_settled(records: Sequence[Slice], pos: int, size: int, segments: Sequence[Segment]) -> bool:
    """Whether the first of *records* is large and untouched by the others, so that rewriting it is not worth it."""
    first = records[0]
    if first.len < SETTLED or first.len * 5 < size or not size:
        return False
    begin = segments[0]
    if pos != first.pos or (begin.id, begin.off, begin.len) != (first.id, first.off, first.len):
        return False
    return first not in records[1:]


def delayed_records(replaced: Sequence[Slice]) -> bytes:
    """The entry of the delayed list for replaced records (format §3.5): one for each reference."""
    return b"".join(_DELAYED.pack(record.id, record.size) for record in replaced if record.id)


def split_delayed(records: bytes) -> list[tuple[int, int]]:
    """(slice id, size) of an entry of the delayed list; a torn end is left out."""
    return list(_DELAYED.iter_unpack(records[: len(records) // _DELAYED.size * _DELAYED.size]))


async def replace(
    tx: Tx, ino: int, indx: int, made: Plan, new_id: int, *, delay_from: int | None
) -> set[tuple[int, int]] | None:
    """Put slice *new_id* in the place of what *made* replaces. The slices (id, size) that lost a reference, or None when the list
    is not what was planned on any more. *delay_from*: keep their references for the trash days from then on (unix seconds)."""
    key = ChunkKey(ino, indx)
    (raw,) = await tx.get(key)
    head = made.head
    if raw is None or not raw.startswith(head):
        return None
    record = Slice(made.pos, new_id, made.size, 0, made.size)
    kept = b"".join(skipped.pack() for skipped in made.skipped)
    tx.put(key, kept + record.pack() + raw[len(head) :])
    tx.put(SliceRefKey(new_id, made.size), 1)
    freed = {(old.id, old.size) for old in made.replaced if old.id}
    journal.compacted(tx, key, len(made.skipped), len(made.replaced), made.pos, new_id, made.size)
    if delay_from is not None:
        if freed:
            tx.put(DelayedKey(new_id, delay_from), delayed_records(made.replaced))
        return set()
    for old in made.replaced:
        if old.id:
            tx.add(SliceRefKey(old.id, old.size), -1)
    return freed


async def was_replaced(tx: Tx, ino: int, indx: int, made: Plan, new_id: int) -> bool | None:
    """After a commit whose outcome is unknown: True when it was made. When it certainly was not, the new slice is marked as without
    references, so that its objects are deleted by the hourly job, and False returned; a commit that is still under way makes the
    mark good again. None when the list says neither: the objects are left alone."""
    key = ChunkKey(ino, indx)
    (raw,) = await tx.get(key)
    raw = raw or b""
    if any(record.id == new_id for record in unpack(raw)):
        return True
    if not raw.startswith(made.head):
        return None
    tx.put(SliceRefKey(new_id, made.size), 0)
    return False


async def mark_wasted(tx: Tx, new_id: int, size: int) -> None:
    """Leave the objects of a slice that never became visible to the hourly job (format §3.12)."""
    tx.put(SliceRefKey(new_id, size), 0)
