"""Reads ranges of local files from an event loop: in the loop when the page cache has them, in a thread when the disk is slow.

Place: the `file` storage and the disk cache. An executor hop (75 µs) costs more than a cached read of 1 MiB (RWF_NOWAIT tells whether it
is one) and than a small read from a fast disk; a disk that needed longer than a millisecond is read in threads for the next hundred reads.
Concurrency: one event loop; the descriptor must stay open until `read` returns.
"""

import asyncio
import errno
import os
import time
from typing import Final

from jfs.object.base import Data

INLINE_COLD: Final = 128 << 10  # bytes; a fast disk reads this in less time than an executor hop takes
SLOW: Final = 1e-3  # seconds; a disk that needs longer for it is not fast …
CAUTION: Final = 100  # … and so many reads go to threads before it is tried again
INLINE_READ: Final = 1 << 20  # bytes; a cached read of this size takes about 100 µs
_NOT_NOW: Final = (errno.EAGAIN, errno.EOPNOTSUPP, errno.ENOSYS)  # not in the page cache; the file system cannot tell


class FileReads:
    """Reads of one disk, whose speed is remembered."""

    def __init__(self) -> None:
        self._cautious = 0  # how many reads that miss the page cache are still to go to a thread

    async def read(self, fd: int, offset: int, size: int) -> Data:
        """Bytes [offset, offset+size) of the open file *fd*, fewer at its end. OSError."""
        if size <= INLINE_READ:
            buffer = bytearray(size)
            try:
                got = os.preadv(fd, (buffer,), offset, os.RWF_NOWAIT)
            except OSError as error:
                if error.errno not in _NOT_NOW:
                    raise
                got = -1
            if got == size:
                return buffer
            # A short answer is the end of the file or of what is cached: only an ordinary read tells which.
            if size <= INLINE_COLD and not self._cautious:
                return self._read_cold(fd, offset, size)
            self._cautious = max(self._cautious - 1, 0)
        return await asyncio.get_running_loop().run_in_executor(None, read_all, fd, offset, size)

    def _read_cold(self, fd: int, offset: int, size: int) -> bytes:
        """Read from the disk in the loop, and see whether that was a good idea."""
        began = time.perf_counter()
        data = read_all(fd, offset, size)
        if time.perf_counter() - began > SLOW:
            self._cautious = CAUTION
        return data


def read_all(fd: int, offset: int, size: int) -> bytes:
    """As `FileReads.read`, waiting for the disk."""
    data = os.pread(fd, size, offset)
    if len(data) == size or not data:
        return data
    pieces = [data]
    at = len(data)
    while at < size and (data := os.pread(fd, size - at, offset + at)):
        pieces.append(data)
        at += len(data)
    return b"".join(pieces)
