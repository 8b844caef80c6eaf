"""The data part of a compaction (format §6.9 step 4): copies the visible bytes of a chunk into one new slice.

Place in the flow: `meta.volume.compaction` decides and commits; it is given `SliceCopier.copy` as a plain callable. Invariant: when
`copy` returns, every block of the new slice is in the storage; what it had stored when it fails is deleted again as far as the
storage allows. Holes become real zeros. Concurrency: one output block at a time is in memory, filled by at most four reads at
once, so that a compaction stays behind what the mount does in the foreground; the storage's own limits hold as for everyone.
"""

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from jfs.chunk.blocks import BlockStore
from jfs.chunk.naming import block_count, block_length
from jfs.errors import ObjectError
from jfs.format.slices import Segment
from jfs.object.base import Data

READS: Final = 4
_WHOLE_FROM: Final = 4  # a part of at least 1/4 of a block is had by reading all of it, when others follow
_PATIENCE: Final = 5.0  # seconds for deleting after a failure: an unmount waits for it
_KEPT: Final = 2  # source blocks kept while their neighbours are copied


class _Part(NamedTuple):
    """*length* bytes at *at* of an output block come from *begin* of block *indx* of slice *id* of *size* bytes."""

    at: int
    id: int
    size: int
    indx: int
    begin: int
    length: int


class SliceCopier:
    """Copies between slices of one volume."""

    def __init__(self, blocks: BlockStore) -> None:
        self._blocks = blocks

    async def copy(self, new_id: int, size: int, segments: Sequence[Segment], tier: int = 0) -> None:
        """Store *segments*, *size* bytes in all without gaps, as the blocks of slice *new_id* in storage *tier*. ObjectError
        (ObjectNotFound when a source is gone: the chunk was changed meanwhile)."""
        block_size = self._blocks.block_size
        source = _Source(self._blocks)
        parts = _by_output(segments, block_size)
        try:
            for indx in range(block_count(size, block_size)):
                block = bytearray(block_length(size, indx, block_size))
                await source.fill(block, parts.get(indx, ()))
                await self._blocks.put_block(new_id, indx, block, tier)
        except BaseException:
            with contextlib.suppress(ObjectError, TimeoutError):  # what stays is found by gc
                async with asyncio.timeout(_PATIENCE):
                    await self._blocks.delete_slice(new_id, size)
            raise


def _by_output(segments: Iterable[Segment], block_size: int) -> dict[int, list[_Part]]:
    """The parts of each output block, cut at the blocks of source and output; holes have none."""
    parts: dict[int, list[_Part]] = {}
    at = 0
    for segment in segments:
        done = 0
        while segment.id and done < segment.len:
            indx, begin = divmod(segment.off + done, block_size)
            output, place = divmod(at + done, block_size)
            count = min(segment.len - done, block_size - begin, block_size - place)
            parts.setdefault(output, []).append(_Part(place, segment.id, segment.size, indx, begin, count))
            done += count
        at += segment.len
    return parts


class _Source:
    """Reads parts, keeping the last whole blocks: a compressed block is fetched once for all its parts."""

    def __init__(self, blocks: BlockStore) -> None:
        self._blocks = blocks
        self._whole: OrderedDict[tuple[int, int], Data] = OrderedDict()

    async def fill(self, block: bytearray, parts: Sequence[_Part]) -> None:
        """Copy all *parts* to their places in *block*."""
        by_source: dict[tuple[int, int], list[_Part]] = {}
        for part in parts:
            by_source.setdefault((part.id, part.indx), []).append(part)
        waiting = list(by_source.values())
        for start in range(0, len(waiting), READS):
            reads = [asyncio.ensure_future(self._copy(block, group)) for group in waiting[start : start + READS]]
            try:
                await asyncio.gather(*reads)
            except BaseException:
                for read in reads:
                    read.cancel()
                await asyncio.gather(*reads, return_exceptions=True)  # nobody writes into the block any more
                raise

    async def _copy(self, block: bytearray, group: Sequence[_Part]) -> None:
        """Copy parts that lie in the same source block."""
        first = group[0]
        name = (first.id, first.indx)
        length = block_length(first.size, first.indx, self._blocks.block_size)
        whole = self._whole.get(name)
        wanted = sum(part.length for part in group)
        if whole is None and (not self._blocks.seekable or wanted * _WHOLE_FROM >= length or len(group) > READS):
            whole = await self._blocks.get_block(first.id, first.size, first.indx, keep=False)
            self._whole[name] = whole
            if len(self._whole) > _KEPT:
                self._whole.popitem(last=False)
        for part in group:
            if whole is None:
                data = await self._blocks.get_range(part.id, part.size, part.indx, part.begin, part.length)
                block[part.at : part.at + part.length] = data
            else:
                block[part.at : part.at + part.length] = memoryview(whole)[part.begin : part.begin + part.length]
