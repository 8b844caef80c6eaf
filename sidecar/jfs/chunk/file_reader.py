"""One open handle that reads: where its streams are, and so what is fetched ahead of them (format §6.5).

Place in the flow: `vfs` → here → `Reader`, which has the bytes. A handle knows the length only as its caller tells it with each
read, since it may change at any time. One event loop.
"""

from typing import TYPE_CHECKING

from jfs.chunk.readahead import Streams, Stride
from jfs.object.base import Data

if TYPE_CHECKING:
    from jfs.chunk.reader import Reader


class FileReader:
    """One open handle of an inode."""

    __slots__ = ("_ino", "_reader", "_streams", "_stride")

    def __init__(self, reader: "Reader", ino: int) -> None:
        self._reader = reader
        self._ino = ino
        self._stride = Stride()
        self._streams: Streams | None = None

    async def read(self, offset: int, size: int, length: int) -> Data:
        """Bytes [offset, min(offset+size, length)) of the file of *length* bytes; FsError(EIO) when they cannot be read."""
        size = min(size, length - offset)
        if size <= 0:
            return b""
        reader = self._reader
        streams = self._streams
        if streams is None:
            if size == length:  # all of it at once: nothing to read ahead of
                return await reader.read(self._ino, 0, size, whole_blocks=True)
            streams = self._streams = Streams(reader.blocks.block_size, reader.max_readahead)
        stream = streams.note(offset, size, reader.room)
        if not stream.window:
            if step := self._stride.note(offset):
                reader.read_on(self._ino, offset, step, length)
            return await reader.read(self._ino, offset, size, whole_blocks=False)
        if reader.blocks.cheap_ranges:  # the disk may begin with what comes next while it is asked for this
            reader.read_ahead(self._ino, stream, length)
            return await reader.read(self._ino, offset, size, whole_blocks=True)
        data = await reader.read(self._ino, offset, size, whole_blocks=True)
        reader.read_ahead(self._ino, stream, length)
        return data

    def close(self) -> None:
        """The handle is gone. Blocks it had fetched stay for others until they are old."""
        self._streams = None
