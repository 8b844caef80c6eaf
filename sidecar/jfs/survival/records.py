"""A growing array of slots of fixed size in a shared memory map, or in plain memory where nothing is to survive.

File: a header of 4096 bytes (magic, slot size, 256 bytes of the owner's), then the slots. Invariant: every byte of the file is
allocated before it is mapped (`posix_fallocate`), so that a full disk is an error of `grow`, never a SIGBUS. A slot is free
while its first 4 bytes are 0; writers store them last, so that a kill leaves no half slot. One thread.
"""

import errno
import mmap
import os
import struct
from typing import Final

from jfs.errors import FsError

_HEADER: Final = 4096
_MAGIC: Final = b"jfstate1"
_HEAD: Final = struct.Struct("<8sI")
_OWN: Final = 16  # where the owner's part of the header begins
OWN_SIZE: Final = 256
_GROWTH: Final = 4096  # bytes that a table begins with, and doubles from
_U32: Final = struct.Struct("<I")


class Records:
    """Slots of *size* bytes; `buffer` with `at(slot)` is where they are. The buffer may be another object after `take`."""

    def __init__(self, size: int, path: str | None = None) -> None:
        """Open or create the file *path*; one of another layout is begun anew. OSError."""
        self.size = size
        self._fd = -1
        self.buffer: mmap.mmap | bytearray
        if path is None:
            self.buffer = bytearray(_HEADER + _GROWTH)
        else:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                self._map()
            except BaseException:
                os.close(self._fd)
                raise
        self._slots = (len(self.buffer) - _HEADER) // size
        self._free: list[int] = []
        self._never = 0  # slots from here on were never looked at
        if path is not None:
            self._free = [slot for slot in range(self._slots) if not self.used(slot)]
            self._free.reverse()
            self._never = self._slots

    def _map(self) -> None:
        length = os.fstat(self._fd).st_size
        if length > _HEADER:
            self.buffer = mmap.mmap(self._fd, length)
            if _HEAD.unpack_from(self.buffer) == (_MAGIC, self.size):
                return
            self.buffer.close()
        os.ftruncate(self._fd, 0)
        os.posix_fallocate(self._fd, 0, _HEADER + _GROWTH)
        self.buffer = mmap.mmap(self._fd, _HEADER + _GROWTH)
        _HEAD.pack_into(self.buffer, 0, _MAGIC, self.size)

    def at(self, slot: int) -> int:
        """Where *slot* begins in the buffer."""
        return _HEADER + slot * self.size

    def __len__(self) -> int:
        """Slots that there are, free ones among them."""
        return self._slots

    def used(self, slot: int) -> bool:
        """Whether the slot is not free."""
        used: int = _U32.unpack_from(self.buffer, self.at(slot))[0]
        return used != 0

    def take(self) -> int:
        """A free slot, which the caller marks as used. FsError(ENOSPC) when there is no room for more."""
        if self._free:
            return self._free.pop()
        if self._never >= self._slots:
            self._grow()
        self._never += 1
        return self._never - 1

    def give(self, slot: int) -> None:
        """Free the slot; all but its first 4 bytes stays as it is."""
        _U32.pack_into(self.buffer, self.at(slot), 0)
        self._free.append(slot)

    def _grow(self) -> None:
        length = _HEADER + 2 * (len(self.buffer) - _HEADER)
        if isinstance(self.buffer, bytearray):
            self.buffer.extend(bytes(length - len(self.buffer)))
        else:
            try:
                os.posix_fallocate(self._fd, 0, length)
                self.buffer.resize(length)
            except OSError as error:
                raise FsError(errno.ENOSPC) from error
        self._slots = (length - _HEADER) // self.size

    @property
    def own(self) -> bytes:
        """The owner's part of the header, zeros at first."""
        return bytes(self.buffer[_OWN : _OWN + OWN_SIZE])

    @own.setter
    def own(self, data: bytes) -> None:
        self.buffer[_OWN : _OWN + len(data)] = data

    def clear(self) -> None:
        """Free every slot and the owner's part."""
        self.buffer[_OWN:] = bytes(len(self.buffer) - _OWN)
        self._free.clear()
        self._never = 0

    def close(self) -> None:
        """Unmap; the file stays."""
        if isinstance(self.buffer, mmap.mmap):
            self.buffer.close()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
