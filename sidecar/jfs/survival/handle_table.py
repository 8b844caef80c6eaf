"""The numbers under which the kernel knows what is open, and what a successor needs to serve them.

A number is `generation << 32 | slot << 1 | read-only`: the slot of the table, how often it has been given out (a request that the
kernel repeats must not meet the next user of the slot), and the real client's parity (format §8.5). A slot holds the inode,
the flags of open(2), the request that opened it – the kernel repeats that one when it was not answered – and the lock owners
that have taken locks by it; more owners than fit go on in further slots. One event loop; no method suspends.
"""

import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

from jfs.survival.records import Records

FILE, DIRECTORY, VIRTUAL, _MORE = 1, 2, 3, 4
_SLOT: Final = struct.Struct("<IIQIIQ")  # kind generation inode flags owners request; then the owners
_BODY: Final = struct.Struct("<IQIIQ")
_OWNER: Final = struct.Struct("<Q")
_COUNT_AT: Final = 20
_SIZE: Final = 96
_OWNERS: Final = (_SIZE - _SLOT.size) // _OWNER.size
_U32: Final = struct.Struct("<I")
_GENERATIONS: Final = 0x7FFFFFFF


class Handle(NamedTuple):
    """A handle as a successor finds it. *request* is the kernel's number of the request that opened it, 0 when unknown."""

    fh: int
    kind: int
    ino: int
    flags: int
    request: int
    owners: tuple[int, ...]


class HandleTable:
    """See the module. In memory, or in the file *path* that outlives the process."""

    def __init__(self, path: str | None = None) -> None:
        self._records = Records(_SIZE, path)

    def take(self, kind: int, ino: int, flags: int, *, read_only: bool, request: int = 0) -> int:
        """A number for what was opened just now. FsError(ENOSPC) when the table cannot grow."""
        records = self._records
        slot = records.take()
        at, buffer = records.at(slot), records.buffer
        generation: int = _U32.unpack_from(buffer, at + 4)[0] % _GENERATIONS + 1
        _BODY.pack_into(buffer, at + 4, generation, ino, flags & 0xFFFFFFFF, 0, request)
        _U32.pack_into(buffer, at, kind)
        return generation << 32 | slot << 1 | read_only

    def free(self, fh: int) -> None:
        """Nobody uses the number any more. Unknown ones are ignored."""
        slot = self._slot(fh)
        if slot is None:
            return
        records = self._records
        if _U32.unpack_from(records.buffer, records.at(slot) + _COUNT_AT)[0] >= _OWNERS:
            for more, kind, _, ino, *_ in list(self._slots()):
                if kind == _MORE and ino == fh:
                    records.give(more)
        records.give(slot)

    def add_owner(self, fh: int, owner: int) -> None:
        """*owner* (64 bits) takes locks by this handle. FsError(ENOSPC)."""
        slot = self._slot(fh)
        if slot is None:
            return
        records = self._records
        at = records.at(slot)
        count: int = _U32.unpack_from(records.buffer, at + _COUNT_AT)[0]
        if count >= _OWNERS:
            more = records.take()
            there, buffer = records.at(more), records.buffer
            generation = _U32.unpack_from(buffer, there + 4)[0]
            _BODY.pack_into(buffer, there + 4, generation, fh, 0, 1, 0)
            _OWNER.pack_into(buffer, there + _SLOT.size, owner)
            _U32.pack_into(buffer, there, _MORE)
            return
        _OWNER.pack_into(records.buffer, at + _SLOT.size + count * _OWNER.size, owner)
        _U32.pack_into(records.buffer, at + _COUNT_AT, count + 1)

    def _slot(self, fh: int) -> int | None:
        records = self._records
        slot, generation = (fh & 0xFFFFFFFF) >> 1, fh >> 32
        if slot >= len(records):
            return None
        kind, present = struct.unpack_from("<II", records.buffer, records.at(slot))
        return slot if kind and present == generation else None

    def _slots(self) -> Iterator[tuple[int, int, int, int, int, int, int]]:
        """(slot, kind, generation, inode, flags, owners, request) of those in use."""
        records = self._records
        for slot in range(len(records)):
            if records.used(slot):
                yield slot, *_SLOT.unpack_from(records.buffer, records.at(slot))

    def handles(self) -> list[Handle]:
        """Everything that is open."""
        found: dict[int, Handle] = {}
        more: list[tuple[int, int]] = []
        buffer = self._records.buffer
        for slot, kind, generation, ino, flags, count, request in self._slots():
            first = self._records.at(slot) + _SLOT.size
            owners = struct.unpack_from(f"<{min(count, _OWNERS)}Q", buffer, first)
            if kind == _MORE:
                more += [(ino, owner) for owner in owners]
                continue
            read_only = kind != FILE or not flags & 3
            fh = generation << 32 | slot << 1 | read_only
            found[fh] = Handle(fh, kind, ino, flags, request, owners)
        for fh, owner in more:
            if fh in found:
                found[fh] = found[fh]._replace(owners=(*found[fh].owners, owner))
        return list(found.values())

    @property
    def owner(self) -> bytes:
        """Whose table it is: up to 256 bytes, zeros at first."""
        return self._records.own

    @owner.setter
    def owner(self, data: bytes) -> None:
        self._records.own = data

    def clear(self) -> None:
        """Forget everything."""
        self._records.clear()

    def close(self) -> None:
        """Unmap; what is in it stays for a successor."""
        self._records.close()
