"""A FUSE connection as something that outlives the process that serves it: what its INIT settled, and how it is taken over.

INIT comes once in the life of a connection. What was agreed is therefore a record (`Agreed.record`) that whoever serves the
connection next is given instead, with a copy of its descriptor. Requests that were read and not answered come again when asked
for (`resend`, Linux 6.9); on older kernels they fail when the descriptor that they were read from is closed, if that is nobody
else's (`clone`). A leaf of `fuse`.
"""

import fcntl
import os
import struct
from typing import Any, Final, NamedTuple

from jfs.fuse.mounting import MountError

MAJOR, OLDEST_MINOR, MINOR = 7, 31, 38
MAX_BACKGROUND: Final = 64
CONGESTION: Final = 48
PAGE: Final = 4096
WRITEBACK_CACHE: Final = 1 << 16  # INIT flag: the kernel keeps what is written for a while
HAS_RESEND: Final = 1 << 39  # INIT flag: requests that were read and not answered can be had again
_RESEND: Final = struct.pack("<IiQ", 16, 7, 0)  # fuse_out_header of FUSE_NOTIFY_RESEND
_CLONE: Final = 0x8004E500  # FUSE_DEV_IOC_CLONE


class Agreed(NamedTuple):
    """What INIT settled: the answer as it was given. Sizes in bytes, *time_gran* in nanoseconds."""

    minor: int
    flags: int  # both halves
    max_write: int
    max_readahead: int = 0
    max_background: int = MAX_BACKGROUND
    congestion_threshold: int = CONGESTION
    time_gran: int = 1
    max_pages: int = 1

    @property
    def resends(self) -> bool:
        """Whether a successor can have the requests again that died with its predecessor."""
        return bool(self.flags & HAS_RESEND)

    @property
    def writes_back(self) -> bool:
        """Whether the kernel keeps what is written, and length and time of files with it (`Files.writes_back`)."""
        return bool(self.flags & WRITEBACK_CACHE)

    def record(self) -> dict[str, int]:
        """The form for the control socket."""
        return {"major": MAJOR, **self._asdict()}

    @classmethod
    def of(cls, record: Any) -> "Agreed":
        """From `record`. MountError when a number is missing or this host cannot serve such a connection."""
        try:
            major, *numbers = (record[name] for name in ("major", *cls._fields))
        except (KeyError, TypeError):
            raise MountError("the record of the FUSE connection's INIT lacks a member") from None
        if any(type(number) is not int or number < 0 for number in (major, *numbers)):
            raise MountError("the record of the FUSE connection's INIT has a member that is no number")
        agreed = cls(*numbers)
        if major != MAJOR or not OLDEST_MINOR <= agreed.minor <= MINOR:
            raise MountError(f"the FUSE connection speaks {major}.{agreed.minor}, which this host does not")
        if not PAGE <= agreed.max_write <= 256 * PAGE:
            raise MountError(
                f"the FUSE connection has requests of {agreed.max_write} bytes, which this host does not take"
            )
        return agreed


class Connection(NamedTuple):
    """A FUSE connection that is served already: its descriptor, of which the host takes a copy, and what its INIT settled. *resume*: a
    predecessor may have read requests that it did not answer."""

    fd: int
    agreed: Agreed
    resume: bool


def resend(fd: int) -> None:
    """Have the kernel queue again whatever was read from the connection and not answered; such requests have bit 63 in their
    unique. OSError when the kernel is older than 6.9 or the connection has ended."""
    os.write(fd, _RESEND)


def clone(fd: int) -> int:
    """Another descriptor of the same connection, with requests of its own: when the last copy of it is closed, the kernel fails
    the requests that were read from it. OSError where /dev/fuse cannot be opened."""
    other = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.ioctl(other, _CLONE, struct.pack("I", fd))
    except BaseException:
        os.close(other)
        raise
    os.set_blocking(other, False)
    return other
