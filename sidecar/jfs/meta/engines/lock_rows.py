"""Locks of an inode as rows of SQL engines, and back (format §3.4, §4.2.2): one for each owner, whose 64 bits are stored signed. Pure."""

from collections.abc import Iterable
from typing import Any, Final

from jfs.meta.model.locks import Flock, Plock

_SIGN: Final = 1 << 63
_SHARED, _EXCLUSIVE = ord("R"), ord("W")


def _signed(owner: int) -> int:
    return owner - 2 * _SIGN if owner >= _SIGN else owner


def _unsigned(owner: int) -> int:
    return owner + 2 * _SIGN if owner < 0 else owner


def flock_rows(locks: tuple[Flock, ...] | None) -> list[tuple[int, int, int]]:
    """Rows (sid, owner, ltype)."""
    return [(sid, _signed(owner), _EXCLUSIVE if write else _SHARED) for sid, owner, write in locks or ()]


def flocks_of(rows: Iterable[tuple[Any, ...]]) -> tuple[Flock, ...] | None:
    """Locks of rows (sid, owner, ltype)."""
    return tuple(sorted(Flock(sid, _unsigned(owner), kind == _EXCLUSIVE) for sid, owner, kind in rows)) or None


def plock_rows(locks: tuple[Plock, ...] | None) -> list[tuple[int, int, bytes]]:
    """Rows (sid, owner, records)."""
    return [(sid, _signed(owner), ranges) for sid, owner, ranges in locks or ()]


def plocks_of(rows: Iterable[tuple[Any, ...]]) -> tuple[Plock, ...] | None:
    """Locks of rows (sid, owner, records)."""
    return tuple(sorted(Plock(sid, _unsigned(owner), ranges) for sid, owner, ranges in rows)) or None
