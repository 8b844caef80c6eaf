"""What the data path asks of the metadata: two protocols, satisfied by `jfs.meta.volume.Meta` and by fakes in tests."""

from collections.abc import Sequence
from typing import Any, Protocol

from jfs.format.slices import Slice


class SliceSink(Protocol):
    """Where finished slices go."""

    async def new_slice_id(self) -> int:
        """An id no other slice of the volume has or had."""
        ...

    async def commit_slice(self, ino: int, indx: int, pos: int, slice: Slice, mtime_ns: int) -> Any:
        """Append the record to chunk *indx* of *ino* and raise the file's length; FsError(ENOENT) when the file is gone, ENOSPC or
        EDQUOT when it may not grow. All objects of the slice exist when this is called."""
        ...

    async def read_slices(self, ino: int, indx: int, *, fresh: bool = False) -> Sequence[Slice]:
        """As `SliceSource.read_slices`: whether a commit with an unknown outcome was made."""
        ...


class SliceSource(Protocol):
    """Where the records of a chunk come from."""

    async def read_slices(self, ino: int, indx: int, *, fresh: bool = False) -> Sequence[Slice]:
        """The records of a chunk, oldest first. The same list object may be returned again while it is valid; with *fresh* the
        database is asked even so (an object of a cached record was missing: the chunk has been compacted)."""
        ...
