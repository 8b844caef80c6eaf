"""Compares the listing of the object storage with the slices that the metadata know (format §6.2, §9.1, §13).

One pass over `chunks/`, in the storage's order; for a slice a few numbers are kept, for an object nothing. A block is *valid* when
a chunk list names its slice, *compacted* when only the delayed list does, *pending* when its slice waits for deletion, else
*leaked*: young leaked ones are left out, since a client may be about to commit them. What seems to be missing is asked for
again, and its list read again, before it is called so.
"""

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from jfs.check.facts import Facts
from jfs.chunk.naming import block_count, block_key, block_length
from jfs.errors import ObjectNotFound
from jfs.format.setting import Setting
from jfs.format.slices import RECORD, unpack
from jfs.meta.model.keys import ChunkKey
from jfs.meta.store.base import Store
from jfs.object.base import ObjectInfo, ObjectStorage

PREFIX: Final = "chunks/"
_NAME: Final = re.compile(r"(\d+)_(\d+)_(\d+)")
_USED, _DELAYED, _PENDING = range(3)


class Tally(NamedTuple):
    """A number of objects or slices and their bytes."""

    number: int
    size: int

    def plus(self, size: int) -> "Tally":
        return Tally(self.number + 1, self.size + size)

    def __str__(self) -> str:
        return f"({self.size} bytes)"


NOTHING: Final = Tally(0, 0)


class Block(NamedTuple):
    """A block of a slice, and its key in the storage."""

    slice_id: int
    size: int
    indx: int
    key: str


@dataclass(slots=True)
class Listing:
    """What the comparison found; keys are those of the storage."""

    found: Tally = NOTHING
    valid: Tally = NOTHING
    compacted: Tally = NOTHING
    pending: Tally = NOTHING
    leaked: Tally = NOTHING
    skipped: Tally = NOTHING
    foreign: list[str] = field(default_factory=list)  # objects that are no blocks
    wrong_sizes: list[tuple[Block, int]] = field(default_factory=list)  # and the bytes they have
    absent: list[Block] = field(default_factory=list)


class Expectation:
    """The blocks that the metadata know."""

    def __init__(self, facts: Facts) -> None:
        self.block_size = facts.setting.block_size
        self.hash_prefix = facts.setting.hash_prefix
        self._sizes = _size_rule(facts.setting)
        self._slices: dict[int, list[int]] = {}  # size, state, seen blocks as bits
        for (slice_id, size), kept in facts.kept_references.items():
            if kept <= 0:
                self._slices[slice_id] = [size, _PENDING, 0]
        for slice_id, size in facts.delayed:
            self._slices[slice_id] = [size, _DELAYED, 0]
        for slice_id, size in facts.references:
            self._slices[slice_id] = [size, _USED, 0]
        self._doomed = {one[0] for one, count in facts.doomed.items() if facts.references[one] <= count}

    def key(self, slice_id: int, size: int, indx: int) -> str:
        """The key of a block."""
        return block_key(slice_id, indx, block_length(size, indx, self.block_size), hash_prefix=self.hash_prefix)

    def may_hold(self, block: Block, size: int) -> bool:
        """Whether an object of *size* bytes can hold *block*."""
        return self._sizes(block_length(block.size, block.indx, self.block_size), size)

    def see(self, info: ObjectInfo, listing: Listing) -> Block | None:
        """Count one object; its block when it is one in use. What belongs to nothing is counted by the caller."""
        match = _NAME.fullmatch(info.key.rpartition("/")[2])
        if match is None:
            listing.foreign.append(info.key)
            return None
        slice_id, indx, _ = map(int, match.groups())
        known = self._slices.get(slice_id)
        if (
            known is None
            or indx >= block_count(known[0], self.block_size)
            or info.key != self.key(slice_id, known[0], indx)
        ):
            return None
        size, state, seen = known
        known[2] = seen | 1 << indx
        block = Block(slice_id, size, indx, info.key)
        if state == _PENDING:
            listing.pending = listing.pending.plus(info.size)
        elif state == _DELAYED:
            listing.compacted = listing.compacted.plus(info.size)
        else:
            listing.valid = listing.valid.plus(info.size)
            if not self.may_hold(block, info.size):
                listing.wrong_sizes.append((block, info.size))
        return block

    def absent(self) -> Iterator[Block]:
        """Blocks of slices in use that were not seen."""
        for slice_id, (size, state, seen) in self._slices.items():
            blocks = block_count(size, self.block_size)
            if state == _USED and seen != (1 << blocks) - 1 and slice_id not in self._doomed:
                for indx in range(blocks):
                    if not seen >> indx & 1:
                        yield Block(slice_id, size, indx, self.key(slice_id, size, indx))

    def used(self) -> Tally:
        """Slices that chunk lists name, and their bytes."""
        sizes = [size for size, state, _ in self._slices.values() if state == _USED]
        return Tally(len(sizes), sum(sizes))


def _size_rule(setting: Setting) -> Callable[[int, int], bool]:
    """Whether an object with so many bytes of content, encryption aside, can hold a block of *length* bytes (format §6.3)."""
    if setting.compression == "none":
        return lambda length, size: size == length
    return lambda length, size: 0 < size <= length + length // 128 + 1024


async def compare(
    storage: ObjectStorage,
    expectation: Expectation,
    *,
    young_from: float,
    on_valid: Callable[[Block], Awaitable[None]] | None = None,
    on_leaked: Callable[[str], Awaitable[None]] | None = None,
) -> Listing:
    """List the storage. Leaked objects not older than *young_from* (unix seconds) are skipped; *on_leaked* gets the others' keys,
    *on_valid* the blocks in use. ObjectError when the storage fails."""
    listing = Listing()
    async for info in storage.list(PREFIX):
        before = len(listing.foreign)
        block = expectation.see(info, listing)
        listing.found = listing.found.plus(info.size)
        if block is not None:
            if on_valid is not None:
                await on_valid(block)
        elif len(listing.foreign) == before:
            if info.mtime > young_from:
                listing.skipped = listing.skipped.plus(info.size)
            else:
                listing.leaked = listing.leaked.plus(info.size)
                if on_leaked is not None:
                    await on_leaked(info.key)
    listing.absent = list(expectation.absent())
    return listing


class Lost(NamedTuple):
    """A block that is not there, and the files whose lists name its slice."""

    block: Block
    inodes: list[int]


async def confirm(storage: ObjectStorage, store: Store, absent: list[Block]) -> AsyncIterator[Lost]:
    """Those of *absent* that really are: not in the storage when asked for by name, and still in a list."""
    owners = await find_owners(store, {block.slice_id for block in absent})
    still: dict[tuple[int, int], set[int]] = {}  # slices of a chunk, read again
    for block in absent:
        inodes: dict[int, None] = {}
        for chunk in owners.get(block.slice_id, ()):
            if chunk not in still:
                (raw,) = await store.get(ChunkKey(*chunk))
                still[chunk] = {record.id for record in unpack(raw or b"")}
            if block.slice_id in still[chunk]:
                inodes[chunk[0]] = None
        if inodes and not await _exists(storage, block.key):
            yield Lost(block, list(inodes))


async def _exists(storage: ObjectStorage, key: str) -> bool:
    try:
        await storage.head(key)
    except ObjectNotFound:
        return False
    return True


async def find_owners(store: Store, slices: set[int]) -> dict[int, list[tuple[int, int]]]:
    """(inode, chunk) of the lists that name each of *slices*: a pass over all lists."""
    owners: dict[int, list[tuple[int, int]]] = {}
    if slices:
        async for key, raw in store.scan(ChunkKey):
            if isinstance(raw, bytes):
                for slice_id in {fields[1] for fields in RECORD.iter_unpack(raw)} & slices:
                    owners.setdefault(slice_id, []).append((key.ino, key.indx))
    return owners
