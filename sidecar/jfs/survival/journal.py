"""Which requests are about to change what: how a request that the kernel repeats is not done twice.

Before a transaction that must not be repeated commits, its *intention* is written here: the request's number and the inode that
is made, removed or moved by it. A successor that is given the request again finds the intention and looks in the database
whether its effect is there (`meta.volume.replay`); without an intention nothing was committed. The intention goes when the
reply is with the kernel. One event loop; no method suspends.
"""

import logging
import struct
from typing import Final, NamedTuple

from jfs.errors import FsError
from jfs.survival.records import Records

log = logging.getLogger(__name__)

_SLOT: Final = struct.Struct("<IIQQQ")  # used, unused, request, inode, other
_BODY: Final = struct.Struct("<QQQ")
_U32: Final = struct.Struct("<I")
RESENT: Final = 1 << 63  # in a request's number (linux/fuse.h FUSE_UNIQUE_RESEND)


class Intention(NamedTuple):
    """The inode that the request makes, removes or moves, and the one in its place before, or with which it changes places."""

    ino: int
    other: int


class Journal:
    """See the module. *path* None: nothing survives."""

    def __init__(self, path: str | None = None) -> None:
        self._records = Records(_SLOT.size, path)
        self._full = False
        self._left: dict[int, tuple[int, Intention]] = {}  # by the request's number, with its slot
        records = self._records
        for slot in range(len(records)):
            if records.used(slot):
                _, _, request, ino, other = _SLOT.unpack_from(records.buffer, records.at(slot))
                self._left[request] = slot, Intention(ino, other)

    def begin(self, unique: int) -> "Request":
        """The request that the kernel calls *unique*."""
        number = unique & ~RESENT
        if number == unique:
            return Request(self, number, resent=False)
        # Its slot is taken along: what is intended now replaces what was intended then.
        slot, intention = self._left.pop(number, (-1, None))
        return Request(self, number, resent=True, slot=slot, intention=intention)

    def put(self, slot: int, request: int, intention: Intention) -> int:
        """Write an intention, to *slot* or with -1 to a new one; the slot, -1 when there is no room."""
        records = self._records
        if slot < 0:
            try:
                slot = records.take()
            except FsError:
                if not self._full:
                    log.warning("the state directory is full: a change under way at a crash may be seen to fail")
                    self._full = True
                return -1
        at = records.at(slot)
        _U32.pack_into(records.buffer, at, 0)
        _BODY.pack_into(records.buffer, at + 8, request, *intention)
        _U32.pack_into(records.buffer, at, 1)
        return slot

    def give(self, slot: int) -> None:
        """The intention is of no use any more."""
        self._records.give(slot)

    def settled(self) -> None:
        """The kernel has repeated all that it will repeat: forget what was left by requests that were answered."""
        for slot, _ in self._left.values():
            self._records.give(slot)
        self._left.clear()

    def clear(self) -> None:
        """Forget everything."""
        self._records.clear()
        self._left.clear()

    def close(self) -> None:
        """Unmap; what is in it stays for a successor."""
        self._records.close()


class Request:
    """One request that must not be done twice. *resent*: a predecessor may have worked on it; *intention* is what it left."""

    __slots__ = ("_journal", "_slot", "intention", "number", "resent")

    def __init__(
        self, journal: Journal, number: int, *, resent: bool, slot: int = -1, intention: Intention | None = None
    ) -> None:
        self._journal = journal
        self._slot = slot
        self.number = number
        self.resent = resent
        self.intention = intention

    def intend(self, ino: int, other: int = 0) -> None:
        """The transaction with this effect commits next; a later call replaces the intention."""
        self._slot = self._journal.put(self._slot, self.number, Intention(ino, other))

    def end(self) -> None:
        """The reply is with the kernel."""
        if self._slot >= 0:
            self._journal.give(self._slot)
            self._slot = -1
