"""The bytes of a slice that are not in the object storage yet, block by block.

Invariant: block i holds bytes [i·B, (i+1)·B) of the slice; a block is dropped once uploaded and never written again.
Data are copied once, into preallocated buffers through a memoryview (`bytearray +=` is nine times slower, and assigning to a
bytearray's slice makes a temporary copy). Buffers begin small and grow fourfold, so that a small file does not take a whole
block; whole-block buffers are reused by way of the pool, since fresh pages cost more than the copy.
Where data must survive the process the buffers come out of an arena (`jfs.survival.arena`), and what is in them is recorded there; a
buffer that the arena has no space for makes the pool `overflowed`: then what was taken must be stored before it is acknowledged.
Concurrency: no awaits here; an upload reads its block through `block()` while only later blocks are written.
"""

from typing import Final

from jfs.survival.arena import Arena, Kept

FIRST_BUFFER: Final = 64 << 10  # bytes; also the real client's page of a first block (format §1.2)
_KEPT: Final = 16


class BufferPool:
    """Buffers of blocks. Whole ones wait for their next use: at most 16, dropped by `clear` when the mount is idle. With *arena*
    they are the arena's, and so are the smaller ones."""

    def __init__(self, block_size: int, arena: Arena | None = None) -> None:
        self.block_size = block_size
        self.arena = arena
        self.overflowed = False
        self._free: list[memoryview] = []

    def take(self, size: int) -> memoryview:
        """A buffer of *size* bytes, at most a whole block; its old content is still in it."""
        if self.arena is not None:
            buffer = self.arena.take(size)
            if buffer is not None:
                return buffer
            self.overflowed = True
        return self._free.pop() if self._free and size == self.block_size else memoryview(bytearray(size))

    def give(self, buffer: memoryview) -> None:
        """Take back a buffer nobody reads or writes any more."""
        if self.arena is not None and self.arena.give(buffer):
            return
        if len(buffer) == self.block_size and len(self._free) < _KEPT:
            self._free.append(buffer)

    def clear(self) -> bool:
        """Free the memory; whether there was any."""
        had = bool(self._free)
        self._free.clear()
        if self.arena is not None and self.arena.shrink():
            had = True
        return had


class SliceBuffer:
    """Content of one slice under construction; *length* bytes so far, *allocated* bytes of memory held. *kept* is its record, where
    it is to survive."""

    def __init__(self, pool: BufferPool, kept: Kept | None = None) -> None:
        self._pool = pool
        self.kept = kept
        self._block_size = pool.block_size
        self._blocks: list[memoryview | None] = []
        self.length = 0
        self.allocated = 0

    def write(self, offset: int, data: memoryview) -> int:
        """Copy *data* to *offset* ≤ length of the slice; its blocks must not have been dropped. Returns by how much `allocated` grew."""
        before = self.allocated
        block_size = self._block_size
        at = 0
        size = len(data)
        while at < size:
            indx, begin = divmod(offset + at, block_size)
            count = min(block_size - begin, size - at)
            buffer = self._buffer(indx, begin + count)
            buffer[begin : begin + count] = data[at : at + count]
            at += count
        self.length = max(self.length, offset + size)
        return self.allocated - before

    def block(self, indx: int) -> memoryview:
        """The bytes written so far of block *indx*."""
        buffer = self._blocks[indx]
        assert buffer is not None
        return buffer[: min(self._block_size, self.length - indx * self._block_size)]

    def drop(self, indx: int) -> int:
        """Give back the memory of block *indx*; by how much `allocated` shrank."""
        buffer = self._blocks[indx]
        if buffer is None:
            return 0
        self._blocks[indx] = None
        self.allocated -= len(buffer)
        size = len(buffer)
        if self.kept is not None:
            self.kept.unbind(buffer)
        self._pool.give(buffer)
        return size

    def drop_all(self) -> int:
        """Give back everything; by how much `allocated` shrank."""
        return sum(self.drop(indx) for indx in range(len(self._blocks)))

    def _buffer(self, indx: int, end: int) -> memoryview:
        """The buffer of block *indx* with room up to *end*."""
        if indx == len(self._blocks):
            self._blocks.append(memoryview(b""))
        buffer = self._blocks[indx]
        assert buffer is not None
        if len(buffer) >= end:
            return buffer
        # Blocks after the first follow a full one: a stream, which will fill them too.
        size = max(len(buffer), FIRST_BUFFER) if not indx else self._block_size
        while size < end:
            size *= 4
        larger = self._pool.take(min(size, self._block_size))
        used = min(self.length - indx * self._block_size, len(buffer))
        if used > 0:
            larger[:used] = buffer[:used]
        self.allocated += len(larger) - len(buffer)
        self._blocks[indx] = larger
        kept = self.kept
        if kept is not None:
            if not kept.bind(indx, larger):
                self._pool.overflowed = True
            kept.unbind(buffer)
        if len(buffer):
            self._pool.give(buffer)
        return larger

    def adopt(self, length: int, blocks: dict[int, memoryview]) -> None:
        """Have the content that a predecessor left: *blocks* are whole buffers, those that are missing are in the storage."""
        self.length = length
        self._blocks = [blocks.get(indx) for indx in range(-(-length // self._block_size))]
        self.allocated = sum(map(len, blocks.values()))

    def missing(self, indx: int) -> bool:
        """Whether block *indx* is in the storage, and only there."""
        return self._blocks[indx] is None
