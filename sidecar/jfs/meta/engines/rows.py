"""Attributes as a row of the node table of SQL engines, and back (format §4.2.2); and a page of a listing made of such rows.

Times are microseconds with the remaining nanoseconds apart; the division truncates toward zero as Go's does, so both parts
of a time before 1970 may be negative. Reading is microseconds times 1000 plus nanoseconds in every case.
"""

from collections.abc import Sequence
from typing import Any, Final

from jfs.meta.model.attr import Attr, Entry

_SECOND: Final = 1_000_000_000
_new: Final = tuple.__new__
COLUMNS: Final = (
    "type",
    "flags",
    "mode",
    "uid",
    "gid",
    "atime",
    "mtime",
    "ctime",
    "atimensec",
    "mtimensec",
    "ctimensec",
    "nlink",
    "length",
    "rdev",
    "parent",
    "access_acl_id",
    "default_acl_id",
    "tier_id",
)


def to_row(attr: Attr) -> tuple[int, ...]:
    """Values in the order of COLUMNS."""
    flags, kind_mode, uid, gid, asec, anano, msec, mnano, csec, cnano, *others = attr
    atime, anano = _split(asec, anano)
    mtime, mnano = _split(msec, mnano)
    ctime, cnano = _split(csec, cnano)
    return (kind_mode >> 12, flags, kind_mode & 0o7777, uid, gid, atime, mtime, ctime, anano, mnano, cnano, *others)


def _split(seconds: int, nanoseconds: int) -> tuple[int, int]:
    micro = seconds * 1_000_000 + nanoseconds // 1000
    nano = nanoseconds % 1000
    if micro < 0 and nano:
        return micro + 1, nano - 1000
    return micro, nano


def from_row(row: Sequence[Any]) -> Attr:
    """Attributes of a row with the columns COLUMNS, NULLs already 0."""
    (
        kind,
        flags,
        mode,
        uid,
        gid,
        atime,
        mtime,
        ctime,
        anano,
        mnano,
        cnano,
        nlink,
        length,
        rdev,
        parent,
        acl,
        default,
        tier,
    ) = row
    asec, anano = divmod(atime * 1000 + anano, _SECOND)
    msec, mnano = divmod(mtime * 1000 + mnano, _SECOND)
    csec, cnano = divmod(ctime * 1000 + cnano, _SECOND)
    values = (
        flags,
        kind << 12 | mode,
        uid,
        gid,
        asec,
        anano,
        msec,
        mnano,
        csec,
        cnano,
        nlink,
        length,
        rdev,
        parent,
        acl,
        default,
        tier,
    )
    return _new(Attr, values)  # half the time of Attr(…)


class RowPage:
    """A page of rows (name, type, inode[, inode of the attributes or NULL, attributes]); decoded on access."""

    __slots__ = ("_attrs", "_entries", "_plus", "_rows", "names")

    raw_entries: Sequence[bytes] | None = None
    raw_attrs: Sequence[bytes | None] | None = None

    def __init__(self, rows: Sequence[tuple[Any, ...]], *, plus: bool) -> None:
        self.names = [row[0] for row in rows]
        self._rows = rows
        self._plus = plus
        self._entries: list[Entry] | None = None
        self._attrs: list[Attr | None] | None = None

    @property
    def entries(self) -> Sequence[Entry]:
        if self._entries is None:
            self._entries = [Entry(row[1], row[2]) for row in self._rows]
        return self._entries

    @property
    def attrs(self) -> Sequence[Attr | None] | None:
        if self._attrs is None and self._plus:
            self._attrs = [None if row[3] is None else from_row(tuple(row)[4:]) for row in self._rows]
        return self._attrs
