"""What was set on files and answered, and is not in the database yet: for each inode two opaque records, before and after.

Kept by `meta.volume.held` while it holds attributes back; a successor goes on holding them. One event loop.
"""

import logging
import struct
from typing import Final, NamedTuple

from jfs.errors import FsError
from jfs.survival.records import Records

log = logging.getLogger(__name__)
_SLOT: Final = struct.Struct("<IIQII")  # order, flag, inode, sizes of the two records
_BODY: Final = struct.Struct("<IQII")
_U32: Final = struct.Struct("<I")
_SIZE: Final = 256
_WRAP: Final = 1 << 32


def _later(one: int, other: int) -> bool:
    """Whether *one* was counted after *other*, round the end of 32 bits."""
    return 0 < (one - other) % _WRAP < _WRAP // 2


class Set(NamedTuple):
    """Attributes as they were in the database and as they are to be, in stored form; *flag* is the caller's."""

    ino: int
    base: bytes
    want: bytes
    flag: bool


class SetAttributes:
    """See the module. *path* None: nothing survives, and nothing is written."""

    def __init__(self, path: str | None = None) -> None:
        self._records = Records(_SIZE, path) if path is not None else None
        self._slots: dict[int, int] = {}
        self._last = 0  # the order of the last one kept; 0 is a free slot
        self._left: dict[int, Set] = {}
        if self._records is not None:
            self._load(self._records)

    def _load(self, records: Records) -> None:
        orders: dict[int, int] = {}
        for slot in range(len(records)):
            if not records.used(slot):
                continue
            at = records.at(slot)
            order, flag, ino, size, other = _SLOT.unpack_from(records.buffer, at)
            if not self._last or _later(order, self._last):
                self._last = order
            former = self._slots.get(ino)
            if former is not None and _later(orders[ino], order):
                records.give(slot)
                continue
            if former is not None:
                records.give(former)
            body = bytes(records.buffer[at + _SLOT.size : at + _SLOT.size + size + other])
            self._slots[ino], orders[ino] = slot, order
            self._left[ino] = Set(ino, body[:size], body[size:], bool(flag))

    def left(self) -> list[Set]:
        """What a predecessor had answered and not committed, one of each inode."""
        return list(self._left.values())

    def put(self, one: Set) -> None:
        """Keep it, in place of what was kept of that inode: another slot first, so that a kill leaves the one or both, in order."""
        records = self._records
        if records is None or len(one.base) + len(one.want) > _SIZE - _SLOT.size:
            return
        try:
            slot = records.take()
        except FsError:
            log.warning("the state directory is full: attributes just set may be lost in a crash")
            return
        at, buffer = records.at(slot), records.buffer
        body = one.base + one.want
        buffer[at + _SLOT.size : at + _SLOT.size + len(body)] = body
        _BODY.pack_into(buffer, at + 4, one.flag, one.ino, len(one.base), len(one.want))
        self._last = (self._last + 1) % _WRAP or 1
        _U32.pack_into(buffer, at, self._last)
        former = self._slots.get(one.ino)
        self._slots[one.ino] = slot
        if former is not None:
            records.give(former)

    def drop(self, ino: int) -> None:
        """It is in the database, or of no interest any more."""
        slot = self._slots.pop(ino, None)
        if slot is not None and self._records is not None:
            self._records.give(slot)

    def clear(self) -> None:
        """Forget everything."""
        self._slots.clear()
        self._left = {}
        if self._records is not None:
            self._records.clear()

    def close(self) -> None:
        """Unmap; what is in it stays for a successor."""
        if self._records is not None:
            self._records.close()
