"""What the data path asks of blocks kept on this machine: satisfied by `DiskCache` and `MemoryCache`."""

from typing import Protocol

from jfs.object.base import Data


class LocalCache(Protocol):
    """Blocks by slice and index; *length* is the whole block's. What fails on the disk is not raised: the block is then not here."""

    async def start(self) -> None:
        """Begin; blocks of earlier mounts are found by and by."""
        ...

    async def close(self) -> None:
        """Finish what is being written and end."""
        ...

    def takes(self, length: int) -> bool:
        """Whether blocks of this length are kept at all."""
        ...

    def keeps_written(self, length: int) -> bool:
        """Whether a block of this length that was uploaded is to be kept."""
        ...

    async def read(
        self, slice_id: int, indx: int, length: int, begin: int, count: int, *, known: bool = False
    ) -> Data | None:
        """Bytes [begin, begin+count) of a block, which the caller must not change; None when it is not here. With *known* only what this
        process knows of is looked for."""
        ...

    def has(self, slice_id: int, indx: int) -> bool:
        """Whether this process knows the block to be here; no I/O."""
        ...

    def where(self, slice_id: int, indx: int, length: int) -> str | None:
        """In which place (as `warmup --check` shows it) the block is; None when nowhere."""
        ...

    def advise(self, slice_id: int, indx: int, length: int) -> None:
        """A block that is here will be read soon from its beginning: have the disk read it meanwhile."""
        ...

    def put(self, slice_id: int, indx: int, data: Data, *, force: bool = False) -> bool:
        """Keep a block, whose data must not change any more; whether it is or will be kept. Too many at once are dropped, unless
        *force* is given."""
        ...

    def missed(self, count: int) -> None:
        """*count* bytes of a block were not here and are had from the storage."""
        ...

    async def room(self) -> None:
        """Returns when `put` need not drop."""
        ...

    def remove(self, slice_id: int, indx: int, length: int) -> None:
        """Drop a block: it was deleted, or is not wanted here any more."""
        ...
