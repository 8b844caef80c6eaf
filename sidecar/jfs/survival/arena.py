"""Memory for data that was taken from applications and is not in the storage yet, in files that outlive the process.

Buffers come out of segments of one mapped file (`data`), so that taking a write costs the one copy that it costs anyway. Two tables
say what is in them: `slices` (which file, where, how long, under which id) and `blocks` (which buffer holds which block of which
slice). A write is acknowledged after its bytes and then the slice's length were stored; whatever is killed between, the
request was not answered and comes again. A slice's record is freed before those of its blocks: blocks without a slice are
garbage.
Invariant: space is allocated before it is written to. A full directory gives no buffer (`take` returns None), never a SIGBUS.
Segments stay mapped; idle, their space is given back by a hole (fallocate(2)), in which a late reader sees zeros.
Buffers of one size share extents of a block's size, which are cut anew when all of them are free. One event loop.
"""

import ctypes
import mmap
import os
import struct
from contextlib import suppress
from typing import Final, NamedTuple

from jfs.errors import FsError
from jfs.survival.records import Records

_UNIT: Final = 64 << 10
_SEGMENT: Final = 16 << 20  # bytes that the file grows by, at least an extent
# state, index, inode, sequence, start, length, id, mtime, where the last request wrote, its number, tier
_SLICE: Final = struct.Struct("<IIQQIIQQQQI4x")
_SLICE_BODY: Final = struct.Struct("<IQQIIQQQQI")
_LENGTH: Final = struct.Struct("<I")
_LAST: Final = struct.Struct("<QQQ")
_U64: Final = struct.Struct("<Q")
_U32: Final = struct.Struct("<I")
_LENGTH_AT, _ID_AT, _LAST_AT = 28, 32, 40
_BLOCK: Final = struct.Struct("<IIIIQQ")  # used, block, slice's slot, unused, slice's sequence, offset in the file
_BLOCK_BODY: Final = struct.Struct("<IIIQQ")
_OPEN, _COMMITTING = 1, 2
_KEEP_SIZE, _PUNCH_HOLE = 1, 2  # fallocate(2)

_libc: Final = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


class _Extent:
    """Space of one block, cut into buffers of one size."""

    __slots__ = ("base", "free", "segment", "size", "taken", "view")

    def __init__(self, segment: int, base: int, view: memoryview) -> None:
        self.segment = segment
        self.base = base  # in the file
        self.view = view
        self.size = 0
        self.free: list[int] = []
        self.taken = 0


class _Buffer(NamedTuple):
    """A buffer that was given out."""

    view: memoryview
    extent: _Extent
    at: int  # in the extent


class Left(NamedTuple):
    """A slice that a predecessor left. *blocks* are those that were not in the storage yet, whole; *maybe_committed*: it died while
    the database was asked to take it. *request* is the kernel's number of the last write that appended, *request_at* where in the
    file it wrote."""

    kept: "Kept"
    ino: int
    indx: int
    start: int
    length: int
    id: int
    mtime_ns: int
    request: int
    request_at: int
    tier: int
    maybe_committed: bool
    blocks: dict[int, memoryview]


class Arena:
    """See the module. *block_size* is the volume's."""

    def __init__(self, directory: str, block_size: int) -> None:
        """Open or create the files in *directory*. OSError."""
        os.makedirs(directory, mode=0o700, exist_ok=True)
        self.block_size = block_size
        self._extent_size = -(-block_size // _UNIT) * _UNIT
        self._directory = directory
        self._fd = os.open(os.path.join(directory, "data"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self.slices = Records(_SLICE.size, os.path.join(directory, "slices"))
        self.blocks = Records(_BLOCK.size, os.path.join(directory, "blocks"))
        self._segment = max(_SEGMENT // self._extent_size, 1) * self._extent_size
        self._maps: list[mmap.mmap] = []
        self._hollow: set[int] = set()  # segments whose space must be allocated before it is used
        self._extents: list[_Extent] = []
        self._unused: list[_Extent] = []
        self._partly: dict[int, list[_Extent]] = {}  # by size, those with a free buffer
        self._given: dict[int, _Buffer] = {}  # by id of the view
        self._sequence = 0
        length = os.fstat(self._fd).st_size
        for _ in range(length // self._segment):
            self._add_segment()

    @property
    def capacity(self) -> int:
        """Bytes that the file has."""
        return len(self._extents) * self._extent_size

    # -- space ------------------------------------------------------------------------------------------------------

    def _add_segment(self) -> None:
        segment = len(self._maps)
        base = segment * self._segment
        mapped = mmap.mmap(self._fd, self._segment, offset=base)
        self._maps.append(mapped)
        self._hollow.add(segment)
        whole = memoryview(mapped)
        for at in range(0, self._segment, self._extent_size):
            extent = _Extent(segment, base + at, whole[at : at + self._extent_size])
            self._extents.append(extent)
            self._unused.append(extent)

    def _allocate(self, segment: int) -> bool:
        """Have the file system reserve the segment's space; whether there was enough."""
        try:
            os.posix_fallocate(self._fd, segment * self._segment, self._segment)
        except OSError:
            return False
        return True

    def _unused_extent(self) -> _Extent | None:
        if not self._unused:
            if not self._allocate(len(self._maps)):
                return None
            self._add_segment()
            self._hollow.discard(len(self._maps) - 1)
        extent = self._unused.pop()
        if extent.segment in self._hollow:
            if not self._allocate(extent.segment):
                self._unused.append(extent)
                return None
            self._hollow.discard(extent.segment)
        return extent

    def take(self, size: int) -> memoryview | None:
        """A buffer of *size* bytes ≤ the block size, with anything in it; None when there is no space for it."""
        partly = self._partly.setdefault(size, [])
        if not partly:
            extent = self._unused_extent()
            if extent is None:
                return None
            extent.size = size
            extent.free = list(range(0, self._extent_size - size + 1, size))
            partly.append(extent)
        extent = partly[-1]
        at = extent.free.pop()
        extent.taken += 1
        if not extent.free:
            partly.pop()
        view = extent.view[at : at + size]
        self._given[id(view)] = _Buffer(view, extent, at)
        return view

    def give(self, view: memoryview) -> bool:
        """Take back a buffer of `take`; False when it is none."""
        buffer = self._given.pop(id(view), None)
        if buffer is None:
            return False
        extent = buffer.extent
        if not extent.free:
            self._partly[extent.size].append(extent)
        extent.free.append(buffer.at)
        extent.taken -= 1
        if not extent.taken:  # it may be cut into another size
            self._partly[extent.size].remove(extent)
            self._unused.append(extent)
        return True

    def shrink(self) -> bool:
        """Give all space back if nothing is in use; whether there was any."""
        if self._given or len(self._hollow) == len(self._maps):
            return False
        if _libc.fallocate(self._fd, _PUNCH_HOLE | _KEEP_SIZE, 0, len(self._maps) * self._segment):
            return False  # this file system cannot; the space is used again
        self._hollow.update(range(len(self._maps)))
        return True

    # -- slices -------------------------------------------------------------------------------------------------------

    def keep(self, ino: int, indx: int, start: int, tier: int) -> "Kept | None":
        """A new slice at *start* of chunk *indx*; None when the table cannot grow."""
        try:
            slot = self.slices.take()
        except FsError:
            return None
        self._sequence += 1
        at, buffer = self.slices.at(slot), self.slices.buffer
        _SLICE_BODY.pack_into(buffer, at + 4, indx, ino, self._sequence, start, 0, 0, 0, 0, 0, tier)
        _U32.pack_into(buffer, at, _OPEN)
        return Kept(self, slot, self._sequence)

    def left(self) -> list[Left]:
        """What a predecessor left, in the order it was begun. To be called once, before anything is taken."""
        found: dict[int, Left] = {}
        for slot in range(len(self.slices)):
            if not self.slices.used(slot):
                continue
            state, indx, ino, sequence, start, length, id, mtime, request_at, request, tier = _SLICE.unpack_from(
                self.slices.buffer, self.slices.at(slot)
            )
            self._sequence = max(self._sequence, sequence)
            if not length:
                self.slices.give(slot)
                continue
            kept = Kept(self, slot, sequence)
            committing = state == _COMMITTING
            found[sequence] = Left(kept, ino, indx, start, length, id, mtime, request, request_at, tier, committing, {})
        blocks: dict[tuple[int, int], tuple[int, int, int]] = {}  # the larger one of two of the same block has all
        for slot in range(len(self.blocks)):
            if not self.blocks.used(slot):
                continue
            size, block, _, _, sequence, offset = _BLOCK.unpack_from(self.blocks.buffer, self.blocks.at(slot))
            other = blocks.get((sequence, block))
            if sequence not in found or (other is not None and other[1] > size):
                self.blocks.give(slot)
                continue
            if other is not None:
                self.blocks.give(other[0])
            blocks[sequence, block] = slot, size, offset
        for (sequence, block), (slot, size, offset) in blocks.items():
            view = self._claim(offset, size)
            if view is None:
                self.blocks.give(slot)
                continue
            found[sequence].blocks[block] = view
            found[sequence].kept.bound(view, slot)
        return [found[sequence] for sequence in sorted(found)]

    def _claim(self, offset: int, size: int) -> memoryview | None:
        """The buffer that a predecessor had at *offset*."""
        number, at = divmod(offset, self._extent_size)
        if number >= len(self._extents) or at + size > self._extent_size:
            return None
        extent = self._extents[number]
        self._hollow.discard(extent.segment)
        if not extent.taken:
            self._unused.remove(extent)
            extent.size = size
            extent.free = list(range(0, self._extent_size - size + 1, size))
            self._partly.setdefault(size, []).append(extent)
        if extent.size != size or at not in extent.free:
            return None
        extent.free.remove(at)
        extent.taken += 1
        if not extent.free:
            self._partly[size].remove(extent)
        view = extent.view[at : at + size]
        self._given[id(view)] = _Buffer(view, extent, at)
        return view

    def offset(self, view: memoryview) -> int:
        """Where a buffer of `take` is in the file; -1 when it is none."""
        buffer = self._given.get(id(view))
        return buffer.extent.base + buffer.at if buffer is not None else -1

    def clear(self) -> None:
        """Forget what a predecessor left."""
        self.slices.clear()
        self.blocks.clear()

    def close(self, *, keep: bool) -> None:
        """Give up, and unless a successor is to *keep* them remove the files. What is still looked at stays mapped."""
        self._given.clear()
        for some in (self._extents, self._unused):
            some.clear()
        self._partly.clear()
        while self._maps:
            mapped = self._maps.pop()
            with suppress(BufferError):
                mapped.close()
        self.slices.close()
        self.blocks.close()
        os.close(self._fd)
        if not keep:
            for name in ("data", "slices", "blocks"):
                os.unlink(os.path.join(self._directory, name))
            os.rmdir(self._directory)


class Kept:
    """One slice's records. Every method is one or two stores."""

    __slots__ = ("_arena", "_slot", "_slots", "sequence")

    def __init__(self, arena: Arena, slot: int, sequence: int) -> None:
        self._arena = arena
        self._slot = slot
        self._slots: dict[int, int] = {}  # of `blocks`, by id of the buffer
        self.sequence = sequence

    def bound(self, view: memoryview, slot: int) -> None:
        """The buffer has that record already."""
        self._slots[id(view)] = slot

    def bind(self, block: int, view: memoryview) -> bool:
        """The buffer holds the block from now on, with all that was written of it; False when that cannot be recorded."""
        arena = self._arena
        offset = arena.offset(view)
        if offset < 0 or self._slot < 0:
            return False
        try:
            slot = arena.blocks.take()
        except FsError:
            return False
        at, buffer = arena.blocks.at(slot), arena.blocks.buffer
        _BLOCK_BODY.pack_into(buffer, at + 4, block, self._slot, 0, self.sequence, offset)
        _U32.pack_into(buffer, at, len(view))
        self._slots[id(view)] = slot
        return True

    def unbind(self, view: memoryview) -> None:
        """The buffer does not hold its block any more."""
        slot = self._slots.pop(id(view), None)
        if slot is not None:
            self._arena.blocks.give(slot)

    def wrote(self, length: int, mtime_ns: int, request: int, request_at: int) -> None:
        """The slice has *length* bytes, which are taken when this returns. *request* appended at *request_at* of the file; 0 if it
        did not append."""
        if self._slot >= 0:
            buffer, at = self._arena.slices.buffer, self._arena.slices.at(self._slot)
            _LAST.pack_into(
                buffer, at + _LAST_AT, mtime_ns, request_at, request
            )  # the number last: it vouches for the rest
            _LENGTH.pack_into(buffer, at + _LENGTH_AT, length)

    def identified(self, id: int) -> None:
        """Blocks of the slice may be in the storage under this id from now on."""
        if self._slot >= 0:
            _U64.pack_into(self._arena.slices.buffer, self._arena.slices.at(self._slot) + _ID_AT, id)

    def committing(self) -> None:
        """The database is asked to take the slice."""
        if self._slot >= 0:
            _U32.pack_into(self._arena.slices.buffer, self._arena.slices.at(self._slot), _COMMITTING)

    def end(self) -> None:
        """The slice is committed, or has failed. Idempotent."""
        if self._slot >= 0:
            self._arena.slices.give(self._slot)
            self._slot = -1
