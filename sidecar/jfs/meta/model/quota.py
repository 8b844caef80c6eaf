"""Quotas of directories, users and groups as records (format §3.8): limits, and usage kept with them. Pure.

A directory's usage is that of everything below it, a hard link counted at each of its names; a user's or group's is that of the
inodes it owns, once each, those in the trash included. A limit that is 0 or less is none.
"""

import struct
from typing import Final, Literal, NamedTuple

from jfs.errors import CorruptRecord

DIRECTORY: Final = 0
USER: Final = 1
GROUP: Final = 2
UNLIMITED: Final = -1

_LIMITS: Final = struct.Struct(">qq")


class Quota(NamedTuple):
    """Limits and usage in bytes (each file's rounded up to 4 KiB) and inodes."""

    max_space: int = UNLIMITED
    max_inodes: int = UNLIMITED
    used_space: int = 0
    used_inodes: int = 0

    @property
    def is_limited(self) -> bool:
        """Whether there is any limit."""
        return self.max_space > 0 or self.max_inodes > 0

    def refuses(self, space: int, inodes: int) -> bool:
        """Whether there is no room for *space* more bytes and *inodes* more."""
        return (space > 0 and 0 < self.max_space < self.used_space + space) or (
            inodes > 0 and 0 < self.max_inodes < self.used_inodes + inodes
        )

    def added(self, space: int, inodes: int) -> "Quota":
        """With more in use."""
        return self._replace(used_space=self.used_space + space, used_inodes=self.used_inodes + inodes)


class QuotaKey(NamedTuple):
    """The quota of directory, user or group *id*; *what* is one of the constants of this module."""

    what: int
    id: int
    kind: Literal["quota"] = "quota"

    @property
    def record(self) -> type[Quota]:
        return Quota


class QuotaChange(NamedTuple):
    """A change of usage."""

    space: int
    inodes: int

    def plus(self, space: int, inodes: int) -> "QuotaChange":
        """Both changes."""
        return QuotaChange(self.space + space, self.inodes + inodes)


def pack_limits(quota: Quota) -> bytes:
    """The limits in the stored form of Redis."""
    return _LIMITS.pack(quota.max_space, quota.max_inodes)


def unpack_limits(raw: bytes) -> tuple[int, int]:
    """The reverse; CorruptRecord."""
    if len(raw) != _LIMITS.size:
        raise CorruptRecord(f"the limits of a quota have {len(raw)} bytes instead of {_LIMITS.size}")
    space, inodes = _LIMITS.unpack(raw)
    return space, inodes
