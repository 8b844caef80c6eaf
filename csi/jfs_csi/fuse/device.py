"""Descriptors of /dev/fuse: is it one, does its connection live, which connection is it. Never blocks.

A descriptor that came from a pod is judged here before anything else is done with it. The kernel tells the number of the
connection (the minor of the mount's superblock, as mountinfo shows it) in fdinfo since Linux 6.17; where it does not,
the pod's own word has to do: with a wrong descriptor it only spoils its own volume.
"""

import fcntl
import os
import select
import stat
import struct
from pathlib import Path

_DEVICE = os.makedev(10, 229)  # misc major, FUSE minor: Documentation/admin-guide/devices.txt
_FIELD = "fuse_connection:"
_CLONE = 0x8004E500  # FUSE_DEV_IOC_CLONE


def is_fuse_device(descriptor: int) -> bool:
    """Whether the descriptor is /dev/fuse opened."""
    status = os.fstat(descriptor)
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == _DEVICE


def is_connected(descriptor: int) -> bool:
    """Whether it belongs to a connection that has not been aborted and whose mount has not ended (fuse_dev_poll)."""
    poll = select.poll()
    poll.register(descriptor, 0)
    return not any(events & (select.POLLERR | select.POLLNVAL) for _, events in poll.poll(0))


def connection_of(descriptor: int) -> str | None:
    """The connection as mountinfo names its device ("0:39"); None where the kernel does not tell."""
    text = Path(f"/proc/self/fdinfo/{descriptor}").read_text(encoding="ascii")
    for line in text.splitlines():
        if line.startswith(_FIELD):
            return f"0:{int(line.removeprefix(_FIELD))}"
    return None


def clone(descriptor: int) -> int:
    """Another descriptor of the connection, with requests of its own: when its last duplicate is closed the kernel fails
    those that were read from it, so that on kernels without RESEND nothing hangs. Raises OSError."""
    other = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.ioctl(other, _CLONE, struct.pack("I", descriptor))
    except BaseException:
        os.close(other)
        raise
    return other
